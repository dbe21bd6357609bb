//! The open connections: how many there may be, for whom, and which of them gives way to a new one.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{sync::Notify, time::sleep};

use crate::{
    grpc::call::{
        activity::{Activity, Closing},
        places::Share,
    },
    metrics::{Closure, ConnectionMetrics},
    sync::lock,
};

/// An address may have one in this many of all connections open without ever having made a call: its
/// callers are not known yet.
const STRANGERS: usize = 8;
/// How many such strangers an address may have in any case.
const MIN_STRANGERS: usize = 16;
/// How long a new connection may take to make its first call before it counts as a stranger.
const GREETING: Duration = Duration::from_secs(1);
/// How many connections may be closing gracefully at once. Others are closed at once.
const MAX_GRACEFUL: usize = 32;
/// How many connections may be closing at once; meanwhile no other is accepted.
const MAX_CLOSING: usize = 64;
/// The longest time between two looks for connections that have been idle for too long.
const SWEEP: Duration = Duration::from_secs(10);
/// The shortest time between two looks.
const SHORTEST_SWEEP: Duration = Duration::from_millis(10);

/// The limits on connections.
#[derive(Clone, Copy)]
pub(in crate::grpc) struct ConnectionLimits {
    /// The most open connections.
    pub max: usize,
    /// How many of them one address may have.
    pub share: Share,
    /// How long a connection may be open without a call in progress; `None` means for ever.
    pub idle_timeout: Option<Duration>,
}

/// The open connections.
pub(super) struct Table {
    limits: ConnectionLimits,
    open: Mutex<Connections>,
    /// Notified when a connection has closed.
    freed: Notify,
    metrics: ConnectionMetrics,
}

#[derive(Default)]
struct Connections {
    /// By address, and there in the order in which they were opened. Unix sockets have no address.
    by_address: HashMap<Option<IpAddr>, BTreeMap<u64, Entry>>,
    total: usize,
    /// Connections that no longer count, but are not closed yet.
    closing: usize,
}

struct Entry {
    activity: Arc<Activity>,
    opened: Instant,
}

/// Where an entry is in the table.
type Place = (Option<IpAddr>, u64);

/// The limits for one address.
struct Limits {
    max: usize,
    share: Share,
}

/// A connection that is one of the open ones until it is dropped.
pub(super) struct Registered {
    table: Arc<Table>,
    address: Option<IpAddr>,
    id: u64,
    pub activity: Arc<Activity>,
    /// Whether it took the place of another one.
    pub displaced: bool,
}

/// What becomes of a new connection.
pub(super) enum Decision {
    Open(Registered),
    /// As many connections are open as there may be, and none is idle.
    Wait,
    /// As many are closing as there may be.
    Later,
    /// The address has its share of the connections, and none of its own is idle.
    Refuse {
        open: usize,
    },
}

impl Table {
    pub fn new(limits: ConnectionLimits, metrics: ConnectionMetrics) -> Arc<Self> {
        Arc::new(Self {
            limits,
            open: Mutex::default(),
            freed: Notify::new(),
            metrics,
        })
    }

    /// Decides about a new connection from this address. It may take the place of an idle one: of
    /// its own address if that has its share, else of any that has more connections.
    pub fn open(self: &Arc<Self>, id: u64, address: Option<IpAddr>) -> Decision {
        let mut open = lock(&self.open);
        if open.closing >= MAX_CLOSING {
            return Decision::Later;
        }
        let gives_way = match self.gives_way(&open, address) {
            Ok(gives_way) => gives_way,
            Err(decision) => return decision,
        };
        if let Some((address, id)) = gives_way {
            self.close(&mut open, address, id, Closure::Displaced);
        }

        let activity = Arc::new(Activity::new());
        let entry = Entry {
            activity: Arc::clone(&activity),
            opened: Instant::now(),
        };
        open.by_address
            .entry(address)
            .or_default()
            .insert(id, entry);
        open.total += 1;
        Decision::Open(Registered {
            table: Arc::clone(self),
            address,
            id,
            activity,
            displaced: gives_way.is_some(),
        })
    }

    /// Which connection a new one from this address replaces, if it is to replace one.
    fn gives_way(
        &self,
        open: &Connections,
        address: Option<IpAddr>,
    ) -> Result<Option<Place>, Decision> {
        let Limits { max, share } = self.limits_of(address);
        let own = open.of(address);
        let free = max.saturating_sub(open.total);

        if free == 0 {
            let is_candidate =
                |other, count: usize| share.is_whole() || other == address || count > own;
            return match open.idlest(is_candidate) {
                Some(idlest) => Ok(Some(idlest)),
                None if own == 0 || share.is_whole() => Err(Decision::Wait),
                None => Err(Decision::Refuse { open: own }),
            };
        }
        if !share.allows(own, free) {
            return match open.idlest(|other, _| other == address) {
                Some(idlest) => Ok(Some(idlest)),
                None => Err(Decision::Refuse { open: own }),
            };
        }
        if share.is_whole() {
            return Ok(None);
        }
        let most = (max / STRANGERS).max(MIN_STRANGERS);
        Ok(open.stranger_beyond(address, most))
    }

    /// Unix sockets have no address that could have its share.
    fn limits_of(&self, address: Option<IpAddr>) -> Limits {
        Limits {
            max: self.limits.max,
            share: address.map_or(Share(100), |_| self.limits.share),
        }
    }

    /// Returns when a connection has closed, or one may have become idle.
    pub async fn changed(&self) {
        const IDLE_AGAIN: Duration = Duration::from_millis(100);
        tokio::select! {
            () = self.freed.notified() => {}
            () = sleep(IDLE_AGAIN) => {}
        }
    }

    /// Closes connections that have been idle for too long, for as long as the server runs.
    pub async fn sweep(&self) {
        let Some(timeout) = self.limits.idle_timeout else {
            return std::future::pending().await;
        };
        loop {
            sleep((timeout / 4).clamp(SHORTEST_SWEEP, SWEEP)).await;
            let mut open = lock(&self.open);
            let idle: Vec<Place> = open
                .entries()
                .filter(|(.., entry)| entry.activity.is_idle_for(timeout))
                .map(|(address, id, _)| (address, id))
                .collect();
            for (address, id) in idle {
                if open.closing >= MAX_CLOSING {
                    break;
                }
                self.close(&mut open, address, id, Closure::Idle);
            }
        }
    }

    /// Asks a connection to close; from now on it does not count any more.
    fn close(&self, open: &mut Connections, address: Option<IpAddr>, id: u64, why: Closure) {
        let Some(entry) = open.remove(address, id) else {
            return;
        };
        let has_called = entry.activity.idle().is_none_or(|idle| idle.has_called);
        let how = if has_called && open.closing < MAX_GRACEFUL {
            Closing::Gracefully
        } else {
            Closing::AtOnce
        };
        open.closing += 1;
        self.metrics.closed(why);
        entry.activity.close(how);
    }
}

impl Connections {
    /// How many connections an address has.
    fn of(&self, address: Option<IpAddr>) -> usize {
        self.by_address.get(&address).map_or(0, BTreeMap::len)
    }

    fn entries(&self) -> impl Iterator<Item = (Option<IpAddr>, u64, &Entry)> {
        self.by_address
            .iter()
            .flat_map(|(address, own)| own.iter().map(|(id, entry)| (*address, *id, entry)))
    }

    /// The connection that gives way first, among those of addresses that `is_candidate` says yes
    /// to, given how many connections they have: the oldest without any call, of the address that
    /// has most of those; or else the one that is idle longest.
    fn idlest(&self, is_candidate: impl Fn(Option<IpAddr>, usize) -> bool) -> Option<Place> {
        let candidates = || {
            self.by_address
                .iter()
                .filter(|(address, own)| is_candidate(**address, own.len()))
        };
        let most = candidates()
            .map(|(address, own)| (strangers(own).count(), address))
            .max()?;
        if let (1.., address) = most {
            let (oldest, _) = strangers(&self.by_address[address]).next()?;
            return Some((*address, oldest));
        }
        let idle = candidates().flat_map(|(address, own)| {
            own.iter()
                .filter_map(|(id, entry)| Some((entry.activity.idle()?.since, (*address, *id))))
        });
        idle.min().map(|(_, place)| place)
    }

    /// The oldest connection of an address that has made no call in time, if the address has at
    /// least `most` of them.
    fn stranger_beyond(&self, address: Option<IpAddr>, most: usize) -> Option<Place> {
        let own = self.by_address.get(&address)?;
        if own.len() < most {
            return None;
        }
        let mut late = strangers(own).filter(|(_, entry)| entry.opened.elapsed() >= GREETING);
        let (oldest, _) = late.next()?;
        (late.count() + 1 >= most).then_some((address, oldest))
    }

    fn remove(&mut self, address: Option<IpAddr>, id: u64) -> Option<Entry> {
        let own = self.by_address.get_mut(&address)?;
        let entry = own.remove(&id)?;
        if own.is_empty() {
            self.by_address.remove(&address);
        }
        self.total -= 1;
        Some(entry)
    }
}

/// The connections that have made no call, the oldest first.
fn strangers(own: &BTreeMap<u64, Entry>) -> impl Iterator<Item = (u64, &Entry)> {
    own.iter()
        .filter(|(_, entry)| entry.activity.idle().is_some_and(|idle| !idle.has_called))
        .map(|(id, entry)| (*id, entry))
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut open = lock(&self.table.open);
        if open.remove(self.address, self.id).is_none() {
            open.closing -= 1;
        }
        drop(open);
        self.table.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(max: usize, share: u8) -> Arc<Table> {
        let limits = ConnectionLimits {
            max,
            share: Share(share),
            idle_timeout: None,
        };
        Table::new(limits, ConnectionMetrics::default())
    }

    fn address(last: u8) -> Option<IpAddr> {
        Some([192, 0, 2, last].into())
    }

    fn opened(decision: Decision) -> Registered {
        match decision {
            Decision::Open(registered) => registered,
            Decision::Wait | Decision::Later => panic!("it waits"),
            Decision::Refuse { open } => panic!("it is refused at {open}"),
        }
    }

    /// Which of the connections have been asked to close.
    fn closing(connections: &[Registered]) -> Vec<usize> {
        let closing = |connection: &Registered| connection.activity.closing() != Closing::Not;
        let all = connections.iter().enumerate();
        all.filter(|(_, connection)| closing(connection))
            .map(|(number, _)| number)
            .collect()
    }

    #[test]
    fn a_new_connection_replaces_the_one_idle_longest_strangers_first() {
        let table = table(4, 100);
        let open: Vec<_> = (0..4)
            .map(|id| opened(table.open(id, address(id as u8 % 2))))
            .collect();
        for connection in &open[..3] {
            connection.activity.call_begins(true);
        }
        for connection in [2, 0] {
            open[connection].activity.call_ends();
        }
        let first = opened(table.open(4, address(9)));
        assert_eq!(closing(&open), [3], "it has never made a call");
        first.activity.call_begins(true);
        let second = opened(table.open(5, address(9)));
        assert_eq!(closing(&open), [2, 3], "it is idle longest");
        second.activity.call_begins(true);
        let third = opened(table.open(6, address(9)));
        assert_eq!(closing(&open), [0, 2, 3]);
        third.activity.call_begins(true);
        assert!(matches!(table.open(7, address(9)), Decision::Wait));
        drop(third);
        opened(table.open(8, address(9)));
    }

    #[test]
    fn an_address_with_its_share_replaces_its_own_or_is_refused() {
        let table = table(8, 75);
        let mut own: Vec<_> = (0..6)
            .map(|id| opened(table.open(id, address(1))))
            .collect();
        own.push(opened(table.open(6, address(1))));
        assert_eq!(closing(&own), [0]);
        for connection in &own[1..] {
            connection.activity.call_begins(false);
        }
        assert!(matches!(
            table.open(7, address(1)),
            Decision::Refuse { open: 6 }
        ));
        let _other = opened(table.open(8, address(2)));
        let _local = opened(table.open(9, None));
        assert!(matches!(table.open(10, None), Decision::Open(_)));
        assert_eq!(closing(&own), [0], "it took the place of one that is idle");
    }

    #[test]
    fn the_address_with_most_strangers_gives_way_first() {
        let table = table(8, 75);
        let many: Vec<_> = (0..5)
            .map(|id| opened(table.open(id, address(1))))
            .collect();
        let few: Vec<_> = (5..8)
            .map(|id| opened(table.open(id, address(id as u8))))
            .collect();
        let _next = opened(table.open(8, address(9)));
        assert_eq!((closing(&many), closing(&few)), (vec![0], vec![]));
    }

    #[test]
    fn closed_connections_leave_nothing_behind() {
        let table = table(2, 75);
        let first = opened(table.open(0, address(1)));
        let second = opened(table.open(1, address(1)));
        drop((first, second));
        let open = lock(&table.open);
        assert_eq!((open.total, open.closing), (0, 0));
        assert!(open.by_address.is_empty());
    }
}
