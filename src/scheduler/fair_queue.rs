//! A queue that serves its clients in turn, however much each of them sends.

use std::collections::{HashMap, VecDeque};

use super::ClientId;

/// Items in order of arrival for each client, one client after the other.
pub(super) struct FairQueue<T> {
    clients: HashMap<ClientId, Client<T>>,
    /// Every client that has items, the next to be served first.
    turns: VecDeque<ClientId>,
    len: usize,
    counted: usize,
}

struct Client<T> {
    items: VecDeque<Item<T>>,
    counted: usize,
}

struct Item<T> {
    counts: bool,
    item: T,
}

/// What became of an item that was pushed.
#[derive(Debug, PartialEq)]
pub(super) enum Pushed<T> {
    /// It waits.
    Queued,
    /// It waits, in the place of this newest item of the client that had most.
    Displaced(T),
    /// There is no place for it; here it is.
    Full(T),
}

/// Where a further item could wait.
#[derive(PartialEq)]
enum Place {
    Free,
    /// In the place of the newest of this client, which has most.
    Of(ClientId),
    None,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { clients: HashMap::default(), turns: VecDeque::new(), len: 0, counted: 0 }
    }
}

impl<T> FairQueue<T> {
    /// All items.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The items that count against the capacity.
    pub fn counted(&self) -> usize {
        self.counted
    }

    /// Adds an item; with a `capacity` it counts, and has a place only while fewer than that many counted items wait
    /// or another client has at least two more of them than this one.
    pub fn push(&mut self, client: ClientId, capacity: Option<usize>, item: T) -> Pushed<T> {
        let displaced = match self.place(client, capacity) {
            Place::None => return Pushed::Full(item),
            Place::Free => None,
            Place::Of(heaviest) => self.remove_newest(heaviest),
        };
        let counts = capacity.is_some();
        let entry = self.clients.entry(client).or_insert_with(|| {
            self.turns.push_back(client);
            Client { items: VecDeque::new(), counted: 0 }
        });
        entry.items.push_back(Item { counts, item });
        entry.counted += usize::from(counts);
        self.len += 1;
        self.counted += usize::from(counts);
        displaced.map_or(Pushed::Queued, Pushed::Displaced)
    }

    /// Whether an item of `client` that counts would be taken.
    pub fn has_place(&self, client: ClientId, capacity: usize) -> bool {
        self.place(client, Some(capacity)) != Place::None
    }

    /// Whether `condition` holds for an item.
    pub fn any(&self, condition: impl Fn(&T) -> bool) -> bool {
        self.clients.values().flat_map(|client| &client.items).any(|item| condition(&item.item))
    }

    fn place(&self, client: ClientId, capacity: Option<usize>) -> Place {
        if capacity.is_none_or(|capacity| self.counted < capacity) {
            return Place::Free;
        }
        let own = self.clients.get(&client).map_or(0, |client| client.counted);
        let heaviest = self.heaviest().filter(|(_, counted)| *counted > own + 1);
        heaviest.map_or(Place::None, |(client, _)| Place::Of(client))
    }

    /// Takes the oldest item of the client whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let id = self.turns.pop_front()?;
        let client = self.clients.get_mut(&id)?;
        let Item { counts, item } = client.items.pop_front()?;
        client.counted -= usize::from(counts);
        self.len -= 1;
        self.counted -= usize::from(counts);
        if client.items.is_empty() {
            self.clients.remove(&id);
        } else {
            self.turns.push_back(id);
        }
        Some(item)
    }

    /// Takes out every item for which `dead` holds, in no particular order.
    pub fn remove_dead(&mut self, dead: impl Fn(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        for client in self.clients.values_mut() {
            let (gone, kept): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut client.items).into_iter().partition(|item| dead(&item.item));
            client.items = kept;
            client.counted = client.items.iter().filter(|item| item.counts).count();
            removed.extend(gone);
        }
        self.clients.retain(|_, client| !client.items.is_empty());
        self.turns.retain(|turn| self.clients.contains_key(turn));
        self.len -= removed.len();
        self.counted -= removed.iter().filter(|item| item.counts).count();
        removed.into_iter().map(|item| item.item).collect()
    }

    fn heaviest(&self) -> Option<(ClientId, usize)> {
        self.clients.iter().map(|(id, client)| (*id, client.counted)).max_by_key(|(_, counted)| *counted)
    }

    fn remove_newest(&mut self, id: ClientId) -> Option<T> {
        let client = self.clients.get_mut(&id)?;
        let newest = client.items.iter().rposition(|item| item.counts)?;
        let removed = client.items.remove(newest)?;
        client.counted -= 1;
        self.len -= 1;
        self.counted -= 1;
        if client.items.is_empty() {
            self.clients.remove(&id);
            self.turns.retain(|turn| *turn != id);
        }
        Some(removed.item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);
    const C: ClientId = ClientId(3);

    fn drain<T>(queue: &mut FairQueue<T>) -> Vec<T> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn clients_take_turns_and_each_keeps_its_order() {
        let mut queue = FairQueue::default();
        for item in ["a1", "a2", "a3", "a4"] {
            queue.push(A, Some(10), item);
        }
        queue.push(B, Some(10), "b1");
        queue.push(C, None, "c1");
        queue.push(C, None, "c2");
        assert_eq!((queue.len(), queue.counted()), (7, 5));
        assert_eq!(drain(&mut queue), ["a1", "b1", "c1", "a2", "c2", "a3", "a4"]);
        assert!(queue.is_empty() && queue.counted() == 0);
    }

    #[test]
    fn a_full_queue_refuses_an_equal_client() {
        let mut queue = FairQueue::default();
        assert_eq!(queue.push(A, Some(2), "a1"), Pushed::Queued);
        assert_eq!(queue.push(B, Some(2), "b1"), Pushed::Queued);
        assert_eq!(queue.push(C, Some(2), "c1"), Pushed::Full("c1"));
        assert_eq!(queue.push(A, Some(2), "a2"), Pushed::Full("a2"));
    }

    #[test]
    fn the_heaviest_client_gives_way_with_its_newest() {
        let mut queue = FairQueue::default();
        for item in ["a1", "a2", "a3"] {
            queue.push(A, Some(3), item);
        }
        assert_eq!(queue.push(B, Some(3), "b1"), Pushed::Displaced("a3"));
        assert_eq!(queue.push(B, Some(3), "b2"), Pushed::Full("b2"), "both would have as many");
        assert_eq!(drain(&mut queue), ["a1", "b1", "a2"]);
    }

    #[test]
    fn uncounted_items_always_have_a_place_and_never_give_way() {
        let mut queue = FairQueue::default();
        for item in ["s1", "s2", "s3"] {
            assert_eq!(queue.push(A, None, item), Pushed::Queued);
        }
        queue.push(A, Some(1), "a1");
        assert_eq!(queue.push(B, Some(1), "b1"), Pushed::Full("b1"));
        assert_eq!(drain(&mut queue), ["s1", "s2", "s3", "a1"]);
    }

    #[test]
    fn dead_items_make_room() {
        let mut queue = FairQueue::default();
        for item in [1, 2, 3] {
            queue.push(A, Some(4), item);
        }
        queue.push(B, Some(4), 10);
        queue.push(C, None, 11);
        assert_eq!(queue.push(C, Some(4), 12), Pushed::Displaced(3));
        let mut removed = queue.remove_dead(|item| *item >= 10);
        removed.sort_unstable();
        assert_eq!(removed, [10, 11, 12]);
        assert_eq!((queue.len(), queue.counted()), (2, 2));
        assert_eq!(queue.push(B, Some(4), 4), Pushed::Queued);
        assert_eq!(drain(&mut queue), [1, 4, 2]);
    }

    /// Against a plain model: whatever is pushed comes out once or was refused or displaced, and nobody is served
    /// twice while another waits.
    #[test]
    fn nothing_is_lost_in_random_use() {
        let mut queue = FairQueue::default();
        let mut random = 12345_u64;
        let mut next = |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        let (mut pushed, mut gone) = (0_u64, 0_u64);
        for i in 0..20_000 {
            if next(3) < 2 {
                let capacity = (next(4) > 0).then_some(8);
                pushed += 1;
                match queue.push(ClientId(next(5)), capacity, i) {
                    Pushed::Queued => {}
                    Pushed::Displaced(_) | Pushed::Full(_) => gone += 1,
                }
            } else if queue.pop().is_some() {
                gone += 1;
            }
            assert!(queue.counted() <= 8);
            assert_eq!(queue.len() as u64, pushed - gone);
        }
        while queue.pop().is_some() {
            gone += 1;
        }
        assert_eq!(pushed, gone);
        assert_eq!((queue.len(), queue.counted(), queue.turns.len(), queue.clients.len()), (0, 0, 0, 0));
    }
}
