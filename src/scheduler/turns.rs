//! Whose turn it is within one priority: clients share the machine's time, whatever each image
//! costs.
//!
//! This is weighted fair queuing (Demers, Keshav and Shenker, 1989). Each client has an account of
//! the time that it has been charged, and the client whose next item would leave its account lowest
//! is served. The waiting clients of a group share the weight of one client: each is charged the
//! cost of its item times the number of clients of its group that wait.
//!
//! A clock advances at the rate of a client that gets its fair share. A client that joins starts at
//! the lowest account among those that wait, but not far behind the clock. So an idle client saves
//! up no credit, a client that pauses briefly loses none, and new clients cannot starve old ones. If
//! all items cost the same, clients take turns in the order in which they joined.

use std::collections::{HashMap, VecDeque, hash_map::Entry};

use super::ClientId;

/// How many clients that do not wait are remembered for what they have been charged. Beyond that
/// those with the least are forgotten.
const MAX_REMEMBERED: usize = 4096;
/// Forgetting looks at all of them, so it is not worth its time for fewer.
const MIN_REMEMBERED: usize = 64;

/// The clients that wait, and what they and others have been charged. Times are in seconds of the
/// whole machine.
pub(super) struct Turns {
    /// Ordered by when each client's current oldest item reached the head; ties go to the earliest.
    waiting: VecDeque<Head>,
    /// The accounts of clients that do not wait, unless the clock has left them behind.
    accounts: HashMap<ClientId, f64>,
    /// How many of those who wait each group has.
    groups: HashMap<u64, u32>,
    /// The number of accounts at which those that the clock has left behind are removed again.
    forget_at: usize,
    clock: f64,
    /// The spread of what the waiting items are charged, when the last one was taken: the clock may
    /// lead a client that gets its share by as much.
    lag: f64,
}

/// A client that waits, and its oldest item.
struct Head {
    client: ClientId,
    account: f64,
    /// Where the client began when it came.
    since: f64,
    cost: Cost,
}

/// What an item is expected to cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cost {
    /// The part of decoding.
    pub decode: f64,
    /// The part of inference.
    pub inference: f64,
    /// Whether the item occupies a core for so long that it may be held back.
    pub heavy: bool,
}

impl Cost {
    pub fn time(self) -> f64 {
        self.decode + self.inference
    }
}

impl Head {
    fn start(&self) -> f64 {
        self.account.max(self.since)
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            accounts: HashMap::new(),
            groups: HashMap::new(),
            forget_at: MIN_REMEMBERED,
            clock: 0.0,
            lag: 0.0,
        }
    }
}

impl Turns {
    /// Whether any client waits; with `hold_heavy` only those whose oldest item is not heavy count.
    pub fn any(&self, hold_heavy: bool) -> bool {
        self.waiting.iter().any(|head| head.may_go(hold_heavy))
    }

    /// A client begins to wait; its oldest item costs `cost`.
    pub fn join(&mut self, client: ClientId, cost: Cost) {
        let starts = self.waiting.iter().map(Head::start);
        let least = starts.fold(self.clock, f64::min).max(self.past());
        // A joining client is never placed behind two items of a client that already waits.
        let finishes = self.waiting.iter().map(|head| self.finish(head));
        let since = finishes.fold(least, f64::min);
        let account = self.accounts.remove(&client).unwrap_or(since);
        self.push(Head {
            client,
            account,
            since,
            cost,
        });
    }

    /// Items of a client were withdrawn; the oldest one costs this now, or there is none left.
    pub fn withdrawn(&mut self, client: ClientId, oldest: Option<Cost>) {
        let Some(index) = self.waiting.iter().position(|head| head.client == client) else {
            return;
        };
        match oldest {
            Some(cost) => self.waiting[index].cost = cost,
            None => {
                let account = self.remove(index).map_or(0.0, |head| head.account);
                self.remember(client, account);
            }
        }
    }

    /// Charges the client whose turn it is for its oldest item, and returns it; it waits no longer.
    /// With `hold_heavy` clients whose oldest item is heavy are passed over.
    pub fn take(&mut self, hold_heavy: bool) -> Option<Served> {
        let (mut first, mut least) = (None, f64::INFINITY);
        let mut sharing = 0.0;
        let (mut cheapest, mut dearest) = (f64::INFINITY, 0.0);
        for (index, head) in self.waiting.iter().enumerate() {
            if !head.may_go(hold_heavy) {
                continue;
            }
            let charge = self.charge(head);
            sharing += 1.0 / self.sharers(head.client);
            cheapest = f64::min(cheapest, charge);
            dearest = f64::max(dearest, charge);
            let finish = head.start() + charge;
            if finish < least {
                (first, least) = (Some(index), finish);
            }
        }

        let head = self.remove(first?)?;
        // Each of those who wait is due its share of the time.
        let shared = self.clock + head.cost.time() / sharing;
        self.clock = shared.max(head.start());
        self.lag = dearest - cheapest;
        Some(Served {
            client: head.client,
            account: least,
        })
    }

    /// The client that was served has another item of this cost, or none.
    pub fn put_back(&mut self, served: Served, next: Option<Cost>) {
        let Served { client, account } = served;
        match next {
            None => self.remember(client, account),
            Some(cost) => self.push(Head {
                client,
                account,
                since: f64::NEG_INFINITY,
                cost,
            }),
        }
    }

    /// Charges a client for the difference between what an item has cost and what was expected.
    pub fn correct(&mut self, client: ClientId, difference: f64) {
        // The clock was moved by what was expected.
        self.clock += difference / (self.groups.len() + 1) as f64;
        let difference = difference * self.sharers(client);
        if let Some(head) = self.head(client) {
            head.account += difference;
            return;
        }
        let account = self.accounts.remove(&client).unwrap_or(self.clock);
        self.remember(client, account + difference);
    }

    /// Clears all accounts. Called when no item waits or is in progress.
    pub fn settle(&mut self) {
        self.accounts.clear();
        self.forget_at = MIN_REMEMBERED;
    }

    fn push(&mut self, head: Head) {
        *self.groups.entry(head.client.group).or_default() += 1;
        self.waiting.push_back(head);
    }

    fn remove(&mut self, index: usize) -> Option<Head> {
        let head = self.waiting.remove(index)?;
        if let Entry::Occupied(mut members) = self.groups.entry(head.client.group) {
            *members.get_mut() -= 1;
            if *members.get() == 0 {
                members.remove();
            }
        }
        Some(head)
    }

    /// How many clients of a client's group wait, which share a weight; at least 1.
    fn sharers(&self, client: ClientId) -> f64 {
        let waiting = self.groups.get(&client.group).copied();
        f64::from(waiting.unwrap_or(1))
    }

    /// What a client is charged for its oldest item.
    fn charge(&self, head: &Head) -> f64 {
        head.cost.time() * self.sharers(head.client)
    }

    /// The client's account once its oldest item has been served.
    fn finish(&self, head: &Head) -> f64 {
        head.start() + self.charge(head)
    }

    /// Clients whose account is at or below this value count as idle and are forgotten.
    fn past(&self) -> f64 {
        self.clock - self.lag
    }

    fn head(&mut self, client: ClientId) -> Option<&mut Head> {
        self.waiting.iter_mut().find(|head| head.client == client)
    }

    fn remember(&mut self, client: ClientId, account: f64) {
        let past = self.past();
        if account <= past {
            return;
        }
        self.accounts.insert(client, account);
        if self.accounts.len() <= self.forget_at {
            return;
        }

        self.accounts.retain(|_, account| *account > past);
        if self.accounts.len() > MAX_REMEMBERED {
            let mut accounts: Vec<f64> = self.accounts.values().copied().collect();
            let middle = accounts.len() / 2;
            let (_, median, _) = accounts.select_nth_unstable_by(middle, f64::total_cmp);
            let median = *median;
            self.accounts.retain(|_, account| *account > median);
        }
        self.forget_at = (2 * self.accounts.len()).clamp(MIN_REMEMBERED, MAX_REMEMBERED);
    }
}

impl Head {
    fn may_go(&self, hold_heavy: bool) -> bool {
        !(hold_heavy && self.cost.heavy)
    }
}

/// A client that has just been served, and its account.
pub(super) struct Served {
    pub client: ClientId,
    account: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(decode: f64) -> Cost {
        Cost {
            decode,
            ..Cost::default()
        }
    }

    /// Serves clients that always have another item, of the cost that `cost_of` tells, `times`
    /// times, and returns what each has got.
    fn serve(turns: &mut Turns, times: usize, cost_of: impl Fn(u64) -> f64) -> HashMap<u64, f64> {
        let mut got = HashMap::new();
        for _ in 0..times {
            let served = turns.take(false).unwrap();
            let client = served.client.id;
            *got.entry(client).or_default() += cost_of(client);
            turns.put_back(served, Some(cost(cost_of(client))));
        }
        got
    }

    #[test]
    fn clients_get_equal_time_for_items_of_unequal_cost() {
        let mut turns = Turns::default();
        let cost_of = |client| if client == 1 { 2.0 } else { 0.1 };
        for client in [1, 2, 3] {
            turns.join(ClientId::alone(client), cost(cost_of(client)));
        }
        let got = serve(&mut turns, 2000, cost_of);
        assert!((got[&1] - got[&2]).abs() <= 2.0 + 0.1, "{got:?}");
        assert!((got[&2] - got[&3]).abs() < 0.11, "{got:?}");
    }

    #[test]
    fn a_group_gets_what_one_client_outside_of_it_gets() {
        let mut turns = Turns::default();
        turns.join(ClientId::alone(0), cost(1.0));
        for client in 1..=9 {
            turns.join(ClientId::in_group(client, 77), cost(1.0));
        }
        let got = serve(&mut turns, 1800, |_| 1.0);
        assert!((got[&0] - 900.0).abs() <= 2.0, "{got:?}");
        assert!((1..=9).all(|client| (got[&client] - 100.0).abs() <= 2.0));

        // Nor does it help to come with a new connection for each call.
        let mut own = 0;
        let mut next = 100;
        let mut turns = Turns::default();
        turns.join(ClientId::alone(0), cost(1.0));
        for _ in 0..50 {
            next += 1;
            turns.join(ClientId::in_group(next, 77), cost(1.0));
        }
        for _ in 0..1000 {
            let served = turns.take(false).unwrap();
            let again = (served.client == ClientId::alone(0)).then_some(cost(1.0));
            own += usize::from(again.is_some());
            turns.put_back(served, again);
            if again.is_none() {
                next += 1;
                turns.join(ClientId::in_group(next, 77), cost(1.0));
            }
        }
        assert!(own >= 450, "served {own} times of 1000");

        while let Some(served) = turns.take(false) {
            turns.put_back(served, None);
        }
        assert!(turns.groups.is_empty());
    }

    #[test]
    fn a_light_item_waits_for_none_of_the_heavy_ones_that_wait() {
        let mut turns = Turns::default();
        for client in 10..30 {
            turns.join(ClientId::alone(client), cost(1.0));
        }
        let served = turns.take(false).unwrap();
        turns.put_back(served, Some(cost(1.0)));
        for _ in 0..20 {
            turns.join(ClientId::alone(1), cost(0.01));
            let served = turns.take(false).unwrap();
            assert_eq!(served.client, ClientId::alone(1));
            turns.put_back(served, None);
        }
    }

    #[test]
    fn what_was_underestimated_is_paid_for_afterwards() {
        let mut turns = Turns::default();
        for client in [1, 2] {
            turns.join(ClientId::alone(client), cost(0.1));
        }
        let mut got = [0.0; 3];
        for _ in 0..2000 {
            let served = turns.take(false).unwrap();
            let client = served.client;
            turns.put_back(served, Some(cost(0.1)));
            let really = if client == ClientId::alone(1) {
                1.0
            } else {
                0.1
            };
            turns.correct(client, really - 0.1);
            got[client.id as usize] += really;
        }
        assert!((got[1] - got[2]).abs() < 1.2, "{got:?}");
    }

    #[test]
    fn idleness_earns_nothing_and_clients_that_come_starve_nobody() {
        let mut turns = Turns::default();
        turns.join(ClientId::alone(1), cost(1.0));
        serve(&mut turns, 100, |_| 1.0);
        turns.join(ClientId::alone(2), cost(1.0));
        let got = serve(&mut turns, 20, |_| 1.0);
        assert_eq!((got[&1], got[&2]), (10.0, 10.0));

        // A new client comes for each that is served.
        let mut turns = Turns::default();
        turns.join(ClientId::alone(1), cost(1.0));
        let mut next = 100;
        let mut own = 0;
        for _ in 0..1000 {
            next += 1;
            turns.join(ClientId::alone(next), cost(1.0));
            let served = turns.take(false).unwrap();
            let again = (served.client == ClientId::alone(1)).then_some(cost(1.0));
            own += usize::from(again.is_some());
            turns.put_back(served, again);
        }
        // About twenty clients wait beside it on average once it has its share.
        assert!(own > 20, "served {own} times of 1000");
    }

    #[test]
    fn heavy_items_are_passed_over_while_they_are_held() {
        let mut turns = Turns::default();
        let heavy = Cost {
            heavy: true,
            ..cost(1.0)
        };
        turns.join(ClientId::alone(1), heavy);
        assert!(!turns.any(true) && turns.any(false));
        assert!(turns.take(true).is_none());
        turns.join(ClientId::alone(2), cost(5.0));
        assert_eq!(turns.take(true).unwrap().client, ClientId::alone(2));
        assert_eq!(turns.take(false).unwrap().client, ClientId::alone(1));
    }

    #[test]
    fn only_so_many_debts_are_remembered() {
        let mut turns = Turns::default();
        for client in 0..20_000 {
            turns.correct(ClientId::alone(client), 1.0 + client as f64);
            assert!(turns.accounts.len() <= MAX_REMEMBERED + 1);
        }
        assert!(turns.accounts.contains_key(&ClientId::alone(19_999)));
        turns.settle();
        assert!(turns.accounts.is_empty());

        // The clock passes them.
        for client in 0..1000 {
            turns.join(ClientId::alone(client), cost(1.0));
            let served = turns.take(false).unwrap();
            turns.put_back(served, None);
        }
        assert!(turns.accounts.len() <= MIN_REMEMBERED);
    }
}
