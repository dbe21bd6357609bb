//! A fair queue over clients with priorities: clients get equal time however much each sends and
//! whatever its items cost, urgent items go first, and no priority starves.

use std::collections::{HashMap, VecDeque};

use super::{
    ClientId, Priority,
    turns::{Cost, Turns},
};

/// Anti-starvation: how many items of the next higher priority may be served in a row before one of
/// a lower priority is. Each further priority in between allows one more.
const MAX_PASSED: usize = 4;

/// Items by priority. Within a priority the clients take turns by what their items cost, and each
/// client's items keep their order of arrival.
///
/// Counted items are limited in number. Those that were admitted in a burst are counted apart: they
/// do not use up the standing limit, and are displaced only when the whole queue is full.
pub(super) struct FairQueue<T> {
    clients: HashMap<ClientId, Client<T>>,
    /// For each priority the clients that have items of it.
    turns: [Turns; Priority::LEVELS],
    /// For each priority how many items of higher ones have been served in a row while it waited.
    passed: [usize; Priority::LEVELS],
    len: usize,
    counted: Counted,
}

/// How many items may wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct QueueLimits {
    /// How many that count, but for those of a burst.
    pub standing: usize,
    /// How many may be served before an item that comes in a burst; 0 if this one does not.
    pub burst: usize,
    /// How many that count, those of a burst included.
    pub total: usize,
}

/// Whose turn an item takes: its client and its priority.
pub(super) type Turn = (ClientId, Priority);

struct Client<T> {
    items: [VecDeque<Item<T>>; Priority::LEVELS],
    counted: Counted,
}

struct Item<T> {
    counts: Counts,
    cost: Cost,
    item: T,
}

/// What an item counts against.
#[derive(Clone, Copy, PartialEq)]
enum Counts {
    Nothing,
    Standing,
    Burst,
}

/// The result of pushing an item.
#[derive(Debug, PartialEq)]
pub(super) enum Pushed<T> {
    /// The item waits.
    Queued,
    /// The item waits in place of this one, which was removed: the newest of the least urgent items
    /// of the client with the most items, or of the item's own client.
    Displaced(T),
    /// The queue is full; this is the item that was pushed.
    Full(T),
}

/// Where another item could wait.
#[derive(PartialEq)]
enum Room {
    Free(Counts),
    /// In place of the newest item that this client has of this priority.
    InPlaceOf {
        client: ClientId,
        level: usize,
        is_full: bool,
    },
    None,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self {
            clients: HashMap::default(),
            turns: Default::default(),
            passed: [0; _],
            len: 0,
            counted: Counted::default(),
        }
    }
}

impl<T> Default for Client<T> {
    fn default() -> Self {
        Self {
            items: Default::default(),
            counted: Counted::default(),
        }
    }
}

impl<T> Client<T> {
    fn is_empty(&self) -> bool {
        self.items.iter().all(VecDeque::is_empty)
    }

    /// The lowest priority of its items that give way to others.
    fn least_urgent(&self, is_full: bool) -> Option<usize> {
        self.items
            .iter()
            .rposition(|items| items.iter().any(|item| item.counts.gives_way(is_full)))
    }

    /// How many items it has of this priority and of higher ones.
    fn up_to(&self, level: usize) -> usize {
        self.items[..=level].iter().map(VecDeque::len).sum()
    }
}

impl Counts {
    /// Whether an item may be removed for another one, if the queue `is_full` or else has no place
    /// beside a burst.
    fn gives_way(self, is_full: bool) -> bool {
        self == Self::Standing || is_full && self == Self::Burst
    }
}

/// How many items count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counted {
    standing: usize,
    burst: usize,
}

impl Counted {
    fn all(self) -> usize {
        self.standing + self.burst
    }

    fn of(&mut self, counts: Counts) -> Option<&mut usize> {
        match counts {
            Counts::Nothing => None,
            Counts::Standing => Some(&mut self.standing),
            Counts::Burst => Some(&mut self.burst),
        }
    }

    fn add(&mut self, counts: Counts) {
        if let Some(number) = self.of(counts) {
            *number += 1;
        }
    }

    fn remove(&mut self, counts: Counts) {
        if let Some(number) = self.of(counts) {
            *number -= 1;
        }
    }
}

impl<T> FairQueue<T> {
    /// How many items wait, whether they count against the capacity or not.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many of them count.
    pub fn counted(&self) -> usize {
        self.counted.all()
    }

    /// Adds an item. With `limits` the item counts, and is accepted if one of these holds:
    /// - fewer counted items wait than may stand, and no more are served before this one;
    /// - it belongs to a burst, and no more items are served before it than may be;
    /// - another client or group has at least two more counted items than this one, and gives one up;
    /// - this client has a less urgent counted item, which it gives up.
    pub fn push(
        &mut self,
        (client, priority): Turn,
        limits: Option<QueueLimits>,
        cost: Cost,
        item: T,
    ) -> Pushed<T> {
        let (counts, displaced) = match self.room((client, priority), limits) {
            Room::None => return Pushed::Full(item),
            Room::Free(counts) => (counts, None),
            Room::InPlaceOf {
                client,
                level,
                is_full,
            } => (Counts::Standing, self.remove_newest(client, level, is_full)),
        };
        let level = priority as usize;
        let entry = self.clients.entry(client).or_default();
        if entry.items[level].is_empty() {
            self.turns[level].join(client, cost);
        }
        entry.items[level].push_back(Item { counts, cost, item });
        entry.counted.add(counts);
        self.len += 1;
        self.counted.add(counts);
        displaced.map_or(Pushed::Queued, Pushed::Displaced)
    }

    /// Whether an item that counts would be accepted.
    pub fn has_room(&self, turn: Turn, limits: QueueLimits) -> bool {
        self.room(turn, Some(limits)) != Room::None
    }

    /// Whether `condition` holds for any item.
    pub fn any(&self, condition: impl Fn(&T) -> bool) -> bool {
        self.clients
            .values()
            .flat_map(|client| client.items.iter().flatten())
            .any(|item| condition(&item.item))
    }

    fn room(&self, (client, priority): Turn, limits: Option<QueueLimits>) -> Room {
        let Some(limits) = limits else {
            return Room::Free(Counts::Nothing);
        };
        let is_full = self.counted() >= limits.total;
        let in_burst = limits.burst > 0;
        let has_place = self.counted.standing < limits.standing;
        if !is_full && (in_burst || has_place) {
            // Unless there is a burst, no more are served before this one than stand.
            let before = if in_burst || self.counted.burst > 0 {
                self.served_before((client, priority))
            } else {
                0
            };
            if before < limits.burst {
                return Room::Free(Counts::Burst);
            }
            if has_place && before < limits.standing {
                return Room::Free(Counts::Standing);
            }
        }

        // Where there is no place at all, those of a burst give way as well.
        let in_place_of = |client, level| Room::InPlaceOf {
            client,
            level,
            is_full,
        };
        let weigh = |items: &Client<T>| {
            if is_full {
                items.counted.all()
            } else {
                items.counted.standing
            }
        };
        if let Some((heaviest, items)) = self.heavier_than(client, weigh) {
            let level = items.least_urgent(is_full);
            return level.map_or(Room::None, |level| in_place_of(heaviest, level));
        }

        let own = self.clients.get(&client);
        match own.and_then(|own| own.least_urgent(is_full)) {
            Some(level) if level > priority as usize => in_place_of(client, level),
            _ => Room::None,
        }
    }

    /// How many of the items that wait are served before another one of this client and priority, if
    /// all cost the same.
    fn served_before(&self, (client, priority): Turn) -> usize {
        let level = priority as usize;
        let own = self.clients.get(&client).map_or(0, |own| own.up_to(level));
        let mut in_group = own;
        let mut others: HashMap<u64, usize> = HashMap::new();
        for (id, items) in &self.clients {
            if id.group != client.group {
                *others.entry(id.group).or_default() += items.up_to(level);
            } else if *id != client {
                in_group += items.up_to(level).min(own + 1);
            }
        }
        let of_others = others.into_values().map(|items| items.min(in_group + 1));
        in_group + of_others.sum::<usize>()
    }

    /// The client that gives up an item for one of this `client`: that with the most items in the
    /// group with the most, if these are at least two more than those of the client's group; else one
    /// in the client's own group, by the same measure. The items of a client are counted by `weigh`.
    fn heavier_than(
        &self,
        client: ClientId,
        weigh: impl Fn(&Client<T>) -> usize,
    ) -> Option<(ClientId, &Client<T>)> {
        let mut groups: HashMap<u64, usize> = HashMap::new();
        for (id, items) in &self.clients {
            *groups.entry(id.group).or_default() += weigh(items);
        }
        let own_group = groups.get(&client.group).copied().unwrap_or(0);
        let group = groups
            .into_iter()
            .max_by_key(|(_, counted)| *counted)
            .filter(|(_, counted)| *counted > own_group + 1)
            .map_or(client.group, |(group, _)| group);

        let own = self.clients.get(&client).map_or(0, &weigh);
        self.clients
            .iter()
            .filter(|(id, _)| id.group == group)
            .max_by_key(|(_, items)| weigh(items))
            .filter(|(_, items)| group != client.group || weigh(items) > own + 1)
            .map(|(id, items)| (*id, items))
    }

    /// Takes the oldest item of the client whose turn it is, and charges the client for it. With
    /// `hold_heavy` clients whose oldest item is heavy have to wait.
    pub fn pop(&mut self, hold_heavy: bool) -> Option<T> {
        let level = self.next_level(hold_heavy)?;
        let served = self.turns[level].take(hold_heavy)?;
        let id = served.client;
        let client = self.clients.get_mut(&id)?;
        let Item { counts, item, .. } = client.items[level].pop_front()?;

        client.counted.remove(counts);
        let next = client.items[level].front().map(|next| next.cost);
        self.turns[level].put_back(served, next);
        if client.is_empty() {
            self.clients.remove(&id);
        }
        self.len -= 1;
        self.counted.remove(counts);
        Some(item)
    }

    /// Charges a client for the difference between what an item has cost, in seconds of the whole
    /// machine, and what was expected.
    pub fn correct(&mut self, (client, priority): Turn, difference: f64) {
        self.turns[priority as usize].correct(client, difference);
    }

    /// Clears all accounts. Called when no item waits or is in progress.
    pub fn settle(&mut self) {
        self.turns.iter_mut().for_each(Turns::settle);
    }

    /// The priority that is served next: the highest that waits, unless a lower one has been passed
    /// over too often.
    fn next_level(&mut self, hold_heavy: bool) -> Option<usize> {
        let waits = self.turns.each_ref().map(|turns| turns.any(hold_heavy));
        let highest = waits.iter().position(|waits| *waits)?;
        let overdue = (highest..Priority::LEVELS)
            .find(|level| waits[*level] && self.passed[*level] >= MAX_PASSED);
        let chosen = overdue.unwrap_or(highest);
        for (level, passed) in self.passed.iter_mut().enumerate() {
            if level == chosen || !self.turns[level].any(false) {
                *passed = 0;
            } else if level > chosen && waits[level] {
                *passed += 1;
            }
        }
        Some(chosen)
    }

    /// Removes every item for which `condition` holds, and returns them in no particular order.
    pub fn remove_all(&mut self, condition: impl Fn(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        for (id, client) in &mut self.clients {
            for (items, turns) in client.items.iter_mut().zip(&mut self.turns) {
                let (removed_now, kept): (VecDeque<_>, VecDeque<_>) = std::mem::take(items)
                    .into_iter()
                    .partition(|item| condition(&item.item));
                *items = kept;
                if !removed_now.is_empty() {
                    turns.withdrawn(*id, items.front().map(|item| item.cost));
                }
                removed.extend(removed_now);
            }
            client.counted = Counted::default();
            for item in client.items.iter().flatten() {
                client.counted.add(item.counts);
            }
        }
        self.clients.retain(|_, client| !client.is_empty());
        self.len -= removed.len();
        for item in &removed {
            self.counted.remove(item.counts);
        }
        removed.into_iter().map(|item| item.item).collect()
    }

    /// Removes the newest item of a priority that a client has to give up.
    fn remove_newest(&mut self, id: ClientId, level: usize, is_full: bool) -> Option<T> {
        let client = self.clients.get_mut(&id)?;
        let newest = |item: &Item<T>| item.counts.gives_way(is_full);
        let index = client.items[level].iter().rposition(newest)?;
        let removed = client.items[level].remove(index)?;
        client.counted.remove(removed.counts);
        self.len -= 1;
        self.counted.remove(removed.counts);
        let oldest = client.items[level].front().map(|item| item.cost);
        self.turns[level].withdrawn(id, oldest);
        if client.is_empty() {
            self.clients.remove(&id);
        }
        Some(removed.item)
    }
}

#[cfg(test)]
impl QueueLimits {
    /// The same for all items.
    pub fn fixed(capacity: usize) -> Self {
        Self {
            standing: capacity,
            burst: 0,
            total: capacity,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Turn = (ClientId::alone(1), Priority::Normal);
    const B: Turn = (ClientId::alone(2), Priority::Normal);
    const C: Turn = (ClientId::alone(3), Priority::Normal);

    /// Pushes an item that costs as much as any other.
    fn push<T>(
        queue: &mut FairQueue<T>,
        turn: Turn,
        capacity: Option<usize>,
        item: T,
    ) -> Pushed<T> {
        queue.push(turn, capacity.map(QueueLimits::fixed), cost(1.0), item)
    }

    fn cost(decode: f64) -> Cost {
        Cost {
            decode,
            ..Cost::default()
        }
    }

    fn drain<T>(queue: &mut FairQueue<T>) -> Vec<T> {
        std::iter::from_fn(|| queue.pop(false)).collect()
    }

    #[test]
    fn clients_take_turns_and_each_keeps_its_order() {
        let mut queue = FairQueue::default();
        for item in ["a1", "a2", "a3", "a4"] {
            push(&mut queue, A, Some(10), item);
        }
        push(&mut queue, B, Some(10), "b1");
        push(&mut queue, C, None, "c1");
        push(&mut queue, C, None, "c2");
        assert_eq!((queue.len(), queue.counted()), (7, 5));
        assert_eq!(
            drain(&mut queue),
            ["a1", "b1", "c1", "a2", "c2", "a3", "a4"]
        );
        assert!(queue.is_empty() && queue.counted() == 0);
    }

    #[test]
    fn a_full_queue_refuses_an_equal_client() {
        let mut queue = FairQueue::default();
        assert_eq!(push(&mut queue, A, Some(2), "a1"), Pushed::Queued);
        assert_eq!(push(&mut queue, B, Some(2), "b1"), Pushed::Queued);
        assert_eq!(push(&mut queue, C, Some(2), "c1"), Pushed::Full("c1"));
        assert_eq!(push(&mut queue, A, Some(2), "a2"), Pushed::Full("a2"));
    }

    #[test]
    fn the_heaviest_client_gives_way_with_its_newest() {
        let mut queue = FairQueue::default();
        for item in ["a1", "a2", "a3"] {
            push(&mut queue, A, Some(3), item);
        }
        assert_eq!(push(&mut queue, B, Some(3), "b1"), Pushed::Displaced("a3"));
        assert_eq!(
            push(&mut queue, B, Some(3), "b2"),
            Pushed::Full("b2"),
            "both would have as many"
        );
        assert_eq!(drain(&mut queue), ["a1", "b1", "a2"]);
    }

    #[test]
    fn the_heaviest_group_gives_way_however_many_clients_it_has() {
        let mut queue = FairQueue::default();
        let many = |id| (ClientId::in_group(id, 77), Priority::Normal);
        for id in 10..14 {
            push(&mut queue, many(id), Some(4), id);
        }
        assert_eq!(push(&mut queue, many(14), Some(4), 14), Pushed::Full(14));
        assert!(matches!(
            push(&mut queue, A, Some(4), 1),
            Pushed::Displaced(10..14)
        ));
        assert!(matches!(
            push(&mut queue, B, Some(4), 2),
            Pushed::Displaced(10..14)
        ));
        assert_eq!(
            push(&mut queue, A, Some(4), 3),
            Pushed::Full(3),
            "both would have as many"
        );
    }

    #[test]
    fn uncounted_items_always_have_a_place_and_never_give_way() {
        let mut queue = FairQueue::default();
        for item in ["s1", "s2", "s3"] {
            assert_eq!(push(&mut queue, A, None, item), Pushed::Queued);
        }
        push(&mut queue, A, Some(1), "a1");
        assert_eq!(push(&mut queue, B, Some(1), "b1"), Pushed::Full("b1"));
        assert_eq!(drain(&mut queue), ["s1", "s2", "s3", "a1"]);
    }

    #[test]
    fn a_burst_gives_way_to_nobody_and_leaves_others_their_room() {
        let mut queue = FairQueue::default();
        let limits = |burst| {
            Some(QueueLimits {
                standing: 2,
                burst,
                total: 8,
            })
        };
        for item in 0..6 {
            let pushed = queue.push(A, limits(6), cost(1.0), ("a", item));
            assert_eq!(pushed, Pushed::Queued);
        }
        let too_late = queue.push(A, limits(6), cost(1.0), ("a", 6));
        assert_eq!(too_late, Pushed::Full(("a", 6)), "six are served before it");
        let standing = queue.push(A, limits(0), cost(1.0), ("a", 7));
        assert_eq!(standing, Pushed::Full(("a", 7)));

        // One is served before the first item of another client, and two before its second.
        assert_eq!(
            queue.push(B, limits(0), cost(1.0), ("b", 0)),
            Pushed::Queued
        );
        assert_eq!(queue.counted(), 7);
        let second = queue.push(B, limits(0), cost(1.0), ("b", 1));
        assert_eq!(second, Pushed::Full(("b", 1)));

        let order = drain(&mut queue);
        assert_eq!(order[..3], [("a", 0), ("b", 0), ("a", 1)]);
        assert_eq!((order.len(), queue.counted()), (7, 0));
    }

    #[test]
    fn dead_items_make_room() {
        let mut queue = FairQueue::default();
        for item in [1, 2, 3] {
            push(&mut queue, A, Some(4), item);
        }
        push(&mut queue, B, Some(4), 10);
        push(&mut queue, C, None, 11);
        assert_eq!(push(&mut queue, C, Some(4), 12), Pushed::Displaced(3));
        let mut removed = queue.remove_all(|item| *item >= 10);
        removed.sort_unstable();
        assert_eq!(removed, [10, 11, 12]);
        assert_eq!((queue.len(), queue.counted()), (2, 2));
        assert_eq!(push(&mut queue, B, Some(4), 4), Pushed::Queued);
        assert_eq!(drain(&mut queue), [1, 4, 2]);
    }

    const URGENT: Turn = (ClientId::alone(1), Priority::High);
    const PATIENT: Turn = (ClientId::alone(2), Priority::Low);

    #[test]
    fn what_is_urgent_goes_first_but_not_for_ever() {
        let mut queue = FairQueue::default();
        for i in 0..40 {
            push(&mut queue, PATIENT, None, ("low", i));
            push(&mut queue, B, None, ("normal", i));
            push(&mut queue, URGENT, None, ("high", i));
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop(false)).collect();
        let first_of = |name| {
            order
                .iter()
                .filter(move |(priority, _)| *priority == name)
                .map(|(_, i)| *i)
        };
        assert!(
            ["low", "normal", "high"]
                .into_iter()
                .all(|name| first_of(name).eq(0..40)),
            "each keeps its order"
        );
        assert_eq!(
            order[..6].iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            ["high", "high", "high", "high", "normal", "low"]
        );
        let (urgent, rest) = (&order[..60], &order[60..]);
        assert_eq!(
            urgent.iter().filter(|(name, _)| *name == "high").count(),
            40,
            "two of three while there are any"
        );
        let lows: Vec<_> = rest
            .iter()
            .take(60)
            .enumerate()
            .filter(|(_, (name, _))| *name == "low")
            .collect();
        assert!(
            lows.windows(2)
                .all(|pair| pair[1].0 - pair[0].0 <= MAX_PASSED + 1),
            "{lows:?}"
        );
    }

    #[test]
    fn clients_of_one_priority_take_turns() {
        let mut queue = FairQueue::default();
        for item in ["a1", "a2", "a3"] {
            push(&mut queue, URGENT, Some(9), item);
        }
        push(
            &mut queue,
            (ClientId::alone(3), Priority::High),
            Some(9),
            "c1",
        );
        push(&mut queue, A, Some(9), "a4");
        assert_eq!(drain(&mut queue), ["a1", "c1", "a2", "a3", "a4"]);
    }

    #[test]
    fn in_a_full_queue_urgency_displaces_only_ones_own() {
        let mut queue = FairQueue::default();
        push(&mut queue, A, Some(2), "a1");
        push(&mut queue, PATIENT, Some(2), "b1");
        assert_eq!(
            push(
                &mut queue,
                (ClientId::alone(3), Priority::High),
                Some(2),
                "c1"
            ),
            Pushed::Full("c1")
        );
        assert_eq!(
            push(&mut queue, URGENT, Some(2), "a2"),
            Pushed::Displaced("a1")
        );
        assert_eq!(
            push(&mut queue, URGENT, Some(2), "a3"),
            Pushed::Full("a3"),
            "it is not more urgent than the one before"
        );
        assert_eq!(drain(&mut queue), ["a2", "b1"]);
    }

    #[test]
    fn the_heaviest_client_gives_way_with_its_least_urgent() {
        let mut queue = FairQueue::default();
        for (turn, item) in [(URGENT, "a1"), (A, "a2"), (URGENT, "a3")] {
            push(&mut queue, turn, Some(3), item);
        }
        assert_eq!(
            push(&mut queue, PATIENT, Some(3), "b1"),
            Pushed::Displaced("a2")
        );
    }

    #[test]
    fn costs_are_shared_and_not_numbers() {
        let mut queue = FairQueue::default();
        for i in 0..3 {
            queue.push(A, None, cost(20.0), ("heavy", i));
        }
        for i in 0..30 {
            queue.push(B, None, cost(1.0), ("light", i));
        }
        let first: Vec<_> = std::iter::from_fn(|| queue.pop(false)).take(21).collect();
        let lights = first.iter().filter(|(name, _)| *name == "light").count();
        assert_eq!(lights, 20, "{first:?}");
    }

    #[test]
    fn what_is_held_back_holds_up_its_own_client_and_priority_only() {
        let mut queue = FairQueue::default();
        let heavy = Cost {
            heavy: true,
            ..cost(5.0)
        };
        queue.push(URGENT, None, heavy, "heavy");
        queue.push(URGENT, None, cost(1.0), "behind it");
        queue.push(B, None, cost(1.0), "b1");
        queue.push(PATIENT, None, cost(1.0), "p1");
        assert_eq!(
            std::iter::from_fn(|| queue.pop(true)).collect::<Vec<_>>(),
            ["b1", "p1"]
        );
        assert_eq!(drain(&mut queue), ["heavy", "behind it"]);
    }

    /// Against a plain model: whatever is pushed comes out once or was refused or displaced, and
    /// nobody is served twice while another waits.
    #[test]
    fn nothing_is_lost_in_random_use() {
        let mut queue = FairQueue::default();
        let mut random = 12345_u64;
        let mut next = |n: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        let (mut pushed, mut gone) = (0_u64, 0_u64);
        for i in 0..20_000 {
            if next(3) < 2 {
                let capacity = (next(4) > 0).then_some(8);
                pushed += 1;
                match push(
                    &mut queue,
                    (ClientId::alone(next(5)), Priority::from_number(next(4))),
                    capacity,
                    i,
                ) {
                    Pushed::Queued => {}
                    Pushed::Displaced(_) | Pushed::Full(_) => gone += 1,
                }
            } else if queue.pop(false).is_some() {
                gone += 1;
            }
            assert!(queue.counted() <= 8);
            assert_eq!(queue.len() as u64, pushed - gone);
        }
        while queue.pop(false).is_some() {
            gone += 1;
        }
        assert_eq!(pushed, gone);
        assert_eq!(
            (queue.len(), queue.counted(), queue.clients.len()),
            (0, 0, 0)
        );
        assert!(queue.turns.iter().all(|turns| !turns.any(false)));
    }
}
