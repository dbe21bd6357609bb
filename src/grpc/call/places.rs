//! Slots for calls in progress, streams and health checks, of which no caller may take all.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::{Arc, Mutex},
};

use super::caller::{Caller, Peer};
use crate::{budget::BudgetKey, sync::lock};

/// Whom a place is counted for: a caller with a name on all of its connections, and one without by
/// its address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::grpc) enum Holder {
    Name(String),
    Network(IpAddr),
}

impl Holder {
    /// `None` for a caller without a name on a Unix socket, whose places are not counted: all
    /// programs of the machine would be the same caller.
    pub fn of(caller: Option<&Caller>, peer: Option<&Peer>) -> Option<Self> {
        match caller {
            Some(Caller(name)) => Some(Self::Name(name.clone())),
            None => peer?.network().map(Self::Network),
        }
    }

    /// Whom the memory of messages is charged to; all callers without a holder are one.
    pub fn budget_key(holder: Option<&Self>) -> BudgetKey {
        let mut hasher = DefaultHasher::new();
        holder.hash(&mut hasher);
        BudgetKey(hasher.finish())
    }
}

/// The part of the places that the other callers leave which one caller may hold, in percent.
///
/// A caller that is alone gets this part of all places; beside others it gets this part of what
/// they leave ("dynamic thresholds" of Choudhury and Hahne, 1998). So one caller can use most of the
/// server while nobody else wants it, each caller leaves something for the next one, and nobody has
/// to give a place back.
#[derive(Clone, Copy, Debug)]
pub(in crate::grpc) struct Share(pub u8);

impl Share {
    /// Whether a caller that holds `held` places may take one of the `free` ones, of which there is
    /// at least one. The first place is everybody's.
    pub fn allows(self, held: usize, free: usize) -> bool {
        held == 0 || (held + 1) * 100 <= usize::from(self.0) * (held + free)
    }

    /// Whether callers are not limited at all.
    pub fn is_whole(self) -> bool {
        self.0 >= 100
    }
}

/// A limited number of places, and who holds them.
pub(in crate::grpc) struct Places {
    limit: usize,
    share: Share,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    total: usize,
    by: HashMap<Holder, usize>,
}

/// Why a caller gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::grpc) enum NoPlace {
    /// All of them are taken.
    Taken { limit: usize },
    /// The caller holds its share.
    Share { held: usize, limit: usize },
}

impl Places {
    pub fn new(limit: usize, share: Share) -> Arc<Self> {
        Arc::new(Self {
            limit,
            share,
            held: Mutex::default(),
        })
    }

    /// Takes a place until the returned one is dropped. `None` is a caller without a share.
    ///
    /// # Errors
    /// When there is none for this caller.
    pub fn take(self: &Arc<Self>, holder: Option<Holder>) -> Result<Place, NoPlace> {
        let mut held = lock(&self.held);
        let free = self.limit.saturating_sub(held.total);
        if free == 0 {
            return Err(NoPlace::Taken { limit: self.limit });
        }
        if let Some(holder) = &holder {
            let own = held.by.get(holder).copied().unwrap_or(0);
            if !self.share.allows(own, free) {
                return Err(NoPlace::Share {
                    held: own,
                    limit: self.limit,
                });
            }
            held.by.insert(holder.clone(), own + 1);
        }
        held.total += 1;
        Ok(Place {
            places: Arc::clone(self),
            holder,
        })
    }
}

/// One place, until it is dropped.
pub(in crate::grpc) struct Place {
    places: Arc<Places>,
    holder: Option<Holder>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = lock(&self.places.held);
        held.total -= 1;
        let Some(holder) = &self.holder else { return };
        if let Some(own) = held.by.get_mut(holder) {
            *own -= 1;
            if *own == 0 {
                held.by.remove(holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Option<Holder> {
        Some(Holder::Name(name.into()))
    }

    /// Takes as many places as there are for this caller.
    fn take_all(places: &Arc<Places>, holder: Option<Holder>) -> Vec<Place> {
        std::iter::from_fn(|| places.take(holder.clone()).ok()).collect()
    }

    #[test]
    fn a_caller_alone_gets_its_share_and_others_what_is_left() {
        let places = Places::new(512, Share(75));
        let first = take_all(&places, name("a"));
        assert_eq!(first.len(), 384);
        assert_eq!(
            places.take(name("a")).err(),
            Some(NoPlace::Share {
                held: 384,
                limit: 512
            })
        );
        let second = take_all(&places, name("b"));
        assert_eq!(second.len(), 96);

        // What others give back, a caller that waits may take, up to its share again.
        drop(first);
        assert_eq!(
            take_all(&places, name("b")).len() + second.len(),
            384,
            "alone again"
        );
    }

    #[test]
    fn each_caller_that_takes_all_it_may_leaves_something_for_the_next() {
        let places = Places::new(512, Share(75));
        let greedy: Vec<_> = ["a", "b", "c", "d"]
            .map(|caller| take_all(&places, name(caller)))
            .into();
        let taken: Vec<usize> = greedy.iter().map(Vec::len).collect();
        assert_eq!(taken, [384, 96, 24, 6]);

        // The first place is everybody's, to the last one.
        let last = [places.take(name("e")), places.take(name("f"))];
        assert!(last.iter().all(Result::is_ok));
        let late = places.take(name("g"));
        assert_eq!(late.err(), Some(NoPlace::Taken { limit: 512 }));
    }

    #[test]
    fn a_share_is_one_place_at_least_and_may_be_everything() {
        for (limit, share, expected) in [
            (1, 75, 1),
            (2, 75, 1),
            (3, 75, 2),
            (4, 75, 3),
            (4, 1, 1),
            (7, 100, 7),
        ] {
            let places = Places::new(limit, Share(share));
            let held = take_all(&places, name("a")).len();
            assert_eq!(held, expected, "{share} % of {limit}");
        }
        let places = Places::new(5, Share(1));
        assert_eq!(
            take_all(&places, None).len(),
            5,
            "callers that are not counted"
        );
        drop(take_all(&places, name("a")));
        assert!(lock(&places.held).by.is_empty());
    }
}
