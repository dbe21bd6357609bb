//! Who calls: the connection a call came on, and the name that its token gave it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::activity::Activity;
use crate::scheduler::ClientId;

/// The other end of a connection.
#[derive(Clone)]
pub(crate) struct Peer {
    /// Unique among the connections of both ports.
    pub id: u64,
    address: Arc<str>,
    network: Option<IpAddr>,
    /// `None` on the HTTP port, which looks after its connections by itself.
    activity: Option<Arc<Activity>>,
    /// When the next call should come at the earliest, as the last rejection said: in milliseconds
    /// since [`START`].
    retry_at: Arc<AtomicU64>,
}

/// What times are measured from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Peer {
    /// The other end of a new connection; one without an address is a Unix socket's.
    pub fn next(address: Option<SocketAddr>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let text = address.map_or_else(|| "unix".to_owned(), |address| address.to_string());
        Self {
            id: NEXT.fetch_add(1, Relaxed),
            address: text.into(),
            network: address.map(|address| network(address.ip())),
            activity: None,
            retry_at: Arc::default(),
        }
    }

    /// The same peer, whose calls are counted as the use of its connection.
    pub(in crate::grpc) fn with_activity(self, activity: Arc<Activity>) -> Self {
        Self {
            activity: Some(activity),
            ..self
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

    /// The address without its port, for the log.
    pub fn host(&self) -> &str {
        self.address
            .rsplit_once(':')
            .map_or(&self.address, |(host, _)| host)
    }

    /// The part of the address by which callers without a name are told apart; `None` for a Unix
    /// socket.
    pub(in crate::grpc) fn network(&self) -> Option<IpAddr> {
        self.network
    }

    /// Counts an admitted call as the use of the connection until the returned guard is dropped;
    /// `is_known` if the call shows that its caller may call.
    pub(in crate::grpc) fn call(&self, is_known: bool) -> Option<OpenCall> {
        let activity = self.activity.clone()?;
        activity.call_begins(is_known);
        Some(OpenCall(activity))
    }
}

/// One call on a connection, until it is dropped.
pub(in crate::grpc) struct OpenCall(Arc<Activity>);

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.call_ends();
    }
}

/// The name of the token that a call was authenticated with.
#[derive(Clone, Debug)]
pub(in crate::grpc) struct Caller(pub String);

/// The unit of fair queuing: a caller with a name is the same on all of its connections, and each
/// connection without one is a client of its own, in the group of its address.
pub(in crate::grpc) fn client_id(caller: Option<&Caller>, peer: Option<&Peer>) -> ClientId {
    if let Some(Caller(name)) = caller {
        return ClientId::alone(hash(name));
    }

    let id = hash(peer.map(|peer| peer.id));
    match peer.and_then(Peer::network) {
        Some(network) => ClientId::in_group(id, hash(network)),
        None => ClientId::alone(id),
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The address that a caller can't change at will: of IPv6 the first 64 bits, since each site has
/// at least all addresses below them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_a_caller_can_choose_are_one() {
        let parse = |text: &str| network(text.parse().unwrap());
        assert_eq!(parse("2001:db8:1:2::3"), parse("2001:db8:1:2:ffff::9"));
        assert_ne!(parse("2001:db8:1:2::3"), parse("2001:db8:1:3::3"));
        assert_eq!(parse("::ffff:192.0.2.1"), parse("192.0.2.1"));
        assert_ne!(parse("192.0.2.1"), parse("192.0.2.2"));
    }
}
