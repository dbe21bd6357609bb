//! The memory that may be held on behalf of callers: one limit for all of them, and half of it for
//! each.
//!
//! Messages are charged while they arrive, are decompressed and wait, before memory is allocated
//! for them. What does not fit is rejected, or left with its sender by flow control.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::sync;

/// The part of the budget that one client may hold, as a divisor: the rest stays for others.
const SHARE_OF_A_CLIENT: u64 = 2;
/// What memory is counted in, in bytes.
const UNIT: u64 = 1 << 10;
/// The largest budget, in units.
const MAX_UNITS: u64 = u32::MAX as u64;

/// The budget. Clones of the handle share it.
#[derive(Clone)]
pub struct MemoryBudget(Arc<Shared>);

struct Shared {
    /// In units.
    total: u32,
    /// One permit for each free unit. Waiters are served first in, first out.
    free: Arc<Semaphore>,
    /// The same for each client that holds something or waits for it.
    clients: Mutex<HashMap<BudgetKey, Weak<Semaphore>>>,
}

/// Whom memory is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BudgetKey(pub u64);

/// Bytes that are held, until this is dropped.
pub struct Reservation {
    budget: MemoryBudget,
    client: Arc<Semaphore>,
    /// Of the client and of all, in this order; both hold as many units.
    permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

/// The bytes do not fit into the budget now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfMemory {
    /// All callers together hold too much.
    #[error(
        "the messages of all callers have {held} MiB in memory, of {limit} at most (half of the \
         server's flag --max-memory)"
    )]
    Total {
        /// What is held, in MiB.
        held: u64,
        /// The budget, in MiB.
        limit: u64,
    },
    /// This caller alone holds too much.
    #[error(
        "your messages have {held} MiB in memory, of {limit} that one caller may have (a quarter \
         of the server's flag --max-memory)"
    )]
    Client {
        /// What is held, in MiB.
        held: u64,
        /// The part of one caller, in MiB.
        limit: u64,
    },
}

impl MemoryBudget {
    /// A budget of `total` bytes.
    pub fn new(total: u64) -> Self {
        let total = (total / UNIT).clamp(SHARE_OF_A_CLIENT, MAX_UNITS) as u32;
        Self(Arc::new(Shared {
            total,
            free: Arc::new(Semaphore::new(total as usize)),
            clients: Mutex::default(),
        }))
    }

    /// The budget, in bytes.
    pub fn total(&self) -> u64 {
        u64::from(self.0.total) * UNIT
    }

    /// What is held now, in bytes.
    pub fn used(&self) -> u64 {
        self.total() - self.0.free.available_permits() as u64 * UNIT
    }

    /// The most that one client may hold, in bytes.
    fn client_limit(&self) -> u64 {
        self.total() / SHARE_OF_A_CLIENT
    }

    /// Holds `bytes` for a client.
    ///
    /// # Errors
    /// When they do not fit now.
    pub fn reserve(&self, key: BudgetKey, bytes: u64) -> Result<Reservation, OutOfMemory> {
        let mut reservation = self.nothing(key);
        reservation.grow(bytes)?;
        Ok(reservation)
    }

    /// Holds `bytes` for a client as soon as they fit.
    ///
    /// # Errors
    /// When they never will.
    pub async fn reserve_later(
        &self,
        key: BudgetKey,
        bytes: u64,
    ) -> Result<Reservation, OutOfMemory> {
        let mut reservation = self.nothing(key);
        let units = units(bytes);
        if u64::from(units) * UNIT > self.client_limit() {
            return Err(self.client_exceeded(&reservation.client));
        }
        let of_client = Arc::clone(&reservation.client).acquire_many_owned(units);
        let of_client = of_client.await.expect("the semaphore is never closed");
        let of_all = Arc::clone(&self.0.free).acquire_many_owned(units);
        let of_all = of_all.await.expect("the semaphore is never closed");
        reservation.permits = Some((of_client, of_all));
        Ok(reservation)
    }

    fn nothing(&self, key: BudgetKey) -> Reservation {
        let mut clients = sync::lock(&self.0.clients);
        let known = clients.get(&key).and_then(Weak::upgrade);
        let client = known.unwrap_or_else(|| {
            clients.retain(|_, client| client.strong_count() > 0);
            let units = (self.client_limit() / UNIT) as usize;
            let client = Arc::new(Semaphore::new(units));
            clients.insert(key, Arc::downgrade(&client));
            client
        });
        Reservation {
            budget: self.clone(),
            client,
            permits: None,
        }
    }

    fn client_exceeded(&self, client: &Semaphore) -> OutOfMemory {
        let limit = self.client_limit();
        let free = client.available_permits() as u64 * UNIT;
        OutOfMemory::Client {
            held: (limit - free) >> 20,
            limit: limit >> 20,
        }
    }
}

impl Reservation {
    /// Holds `bytes` more.
    ///
    /// # Errors
    /// When they do not fit now; what is held already stays.
    pub fn grow(&mut self, bytes: u64) -> Result<(), OutOfMemory> {
        let units = units(bytes);
        let budget = &self.budget;
        let of_client = try_acquire(&self.client, units);
        let of_client = of_client.map_err(|_| budget.client_exceeded(&self.client))?;
        let of_all = try_acquire(&budget.0.free, units).map_err(|_| OutOfMemory::Total {
            held: budget.used() >> 20,
            limit: budget.total() >> 20,
        })?;

        match &mut self.permits {
            None => self.permits = Some((of_client, of_all)),
            Some((client, all)) => {
                client.merge(of_client);
                all.merge(of_all);
            }
        }
        Ok(())
    }

    /// Gives back what exceeds `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        if let Some((client, all)) = &mut self.permits {
            let excess = client.num_permits().saturating_sub(units(bytes) as usize);
            drop((client.split(excess), all.split(excess)));
        }
    }

    fn bytes(&self) -> u64 {
        let held = self
            .permits
            .as_ref()
            .map(|(client, _)| client.num_permits());
        held.unwrap_or_default() as u64 * UNIT
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({} bytes)", self.bytes())
    }
}

/// The units that hold `bytes`.
fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

fn try_acquire(
    semaphore: &Arc<Semaphore>,
    units: u32,
) -> Result<OwnedSemaphorePermit, TryAcquireError> {
    Arc::clone(semaphore).try_acquire_many_owned(units)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const A: BudgetKey = BudgetKey(1);
    const B: BudgetKey = BudgetKey(2);
    const C: BudgetKey = BudgetKey(3);

    #[test]
    fn one_client_leaves_half_to_the_others() {
        let budget = MemoryBudget::new(100 << 20);
        let first = budget.reserve(A, 40 << 20).unwrap();
        let error = budget.reserve(A, 11 << 20).unwrap_err();
        assert_eq!(
            error,
            OutOfMemory::Client {
                held: 40,
                limit: 50
            }
        );

        let _second = budget.reserve(B, 50 << 20).unwrap();
        let error = budget.reserve(C, 11 << 20).unwrap_err();
        assert_eq!(
            error,
            OutOfMemory::Total {
                held: 90,
                limit: 100
            }
        );

        drop(first);
        assert!(budget.reserve(C, 50 << 20).is_ok());
    }

    #[test]
    fn everything_is_given_back() {
        let budget = MemoryBudget::new(100 << 10);
        let mut reservation = budget.reserve(A, 10 << 10).unwrap();
        reservation.grow(40 << 10).unwrap();
        assert!(reservation.grow(1).is_err());
        assert_eq!(budget.used(), 50 << 10, "a failed attempt changes nothing");
        reservation.shrink_to(20_000);
        assert_eq!(budget.used(), 20 << 10, "whole units are held");
        drop(reservation);
        assert_eq!(budget.used(), 0);

        for key in 0..1000 {
            drop(budget.reserve(BudgetKey(key), 1));
        }
        let known = sync::lock(&budget.0.clients).len();
        assert_eq!(known, 1, "clients that hold nothing are forgotten");
    }

    #[tokio::test]
    async fn waiters_are_served_first_in_first_out() {
        let budget = MemoryBudget::new(100 << 10);
        let held = budget.reserve(A, 50 << 10).unwrap();
        let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
        for (name, kib) in [("large", 50), ("small", 1)] {
            let (budget, served) = (budget.clone(), served.clone());
            tokio::spawn(async move {
                let reservation = budget.reserve_later(A, kib << 10).await.unwrap();
                served.send(name).unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
                drop(reservation);
            });
            tokio::task::yield_now().await;
        }
        assert!(order.try_recv().is_err());
        drop(held);
        assert_eq!(order.recv().await, Some("large"));
        assert_eq!(order.recv().await, Some("small"));

        let never = budget.reserve_later(A, 51 << 10).await;
        assert!(matches!(never, Err(OutOfMemory::Client { .. })));
    }
}
