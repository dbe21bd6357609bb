//! Who calls: the connection a call came on, and the name that its token gave it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::scheduler::ClientId;

/// The other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Unique among the connections of both ports.
    pub id: u64,
    address: Arc<str>,
}

impl Peer {
    /// The other end of a new connection.
    pub fn next(address: String) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Relaxed),
            address: address.into(),
        }
    }

    /// For the log.
    pub fn address(&self) -> &str {
        &self.address
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
