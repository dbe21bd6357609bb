//! Who calls: the connection a call came on, and the name that its token gave it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{budget::BudgetKey, scheduler::ClientId};

/// The other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Unique among the connections of both ports.
    pub id: u64,
    address: Arc<str>,
    /// When the next call should come at the earliest, as the last rejection said: in milliseconds
    /// since [`START`].
    retry_at: Arc<AtomicU64>,
}

/// What times are measured from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Peer {
    /// The other end of a new connection.
    pub fn next(address: String) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Relaxed),
            address: address.into(),
            retry_at: Arc::default(),
        }
    }

    /// Notes a rejection of a call on this connection, with the delay after which it should be
    /// repeated. Returns whether the call came earlier than a previous rejection asked for.
    pub fn rejected(&self, delay: Duration) -> bool {
        let now = START.elapsed().as_millis() as u64;
        let retry_at = now + delay.as_millis() as u64;
        self.retry_at.fetch_max(retry_at, Relaxed) > now
    }

    /// For the log.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The address without its port.
    pub fn host(&self) -> &str {
        self.address
            .rsplit_once(':')
            .map_or(&self.address, |(host, _)| host)
    }
}

/// The name of the token that a call was authenticated with.
#[derive(Clone, Debug)]
pub(in crate::grpc) struct Caller(pub String);

/// The unit of fair queuing: a caller with a name is the same on all of its connections, and each
/// connection without one is a client of its own.
pub(in crate::grpc) fn client_id(caller: Option<&Caller>, peer: Option<&Peer>) -> ClientId {
    let mut hasher = DefaultHasher::new();
    match caller {
        Some(Caller(name)) => name.hash(&mut hasher),
        None => peer.map(|peer| peer.id).hash(&mut hasher),
    }
    ClientId(hasher.finish())
}

/// Whom the memory of messages is charged to: a caller with a name, else all connections from one
/// address.
pub(in crate::grpc) fn budget_key(caller: Option<&Caller>, peer: Option<&Peer>) -> BudgetKey {
    let mut hasher = DefaultHasher::new();
    match caller {
        Some(Caller(name)) => (true, name).hash(&mut hasher),
        None => (false, peer.map(Peer::host)).hash(&mut hasher),
    }
    BudgetKey(hasher.finish())
}
