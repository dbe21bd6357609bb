//! The memory that may be held on behalf of callers: one limit for all of them, and half of it for
//! each.
//!
//! Messages are charged while they arrive, are decompressed and wait, before memory is allocated
//! for them. What does not fit is rejected, or left with its sender by flow control.

use std::{
    collections::HashMap,
    fmt,
    pin::pin,
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;

use crate::sync;

/// The part of the budget that one client may hold, as a divisor: the rest stays for others.
const SHARE_OF_A_CLIENT: u64 = 2;

/// The budget. Clones of the handle share it.
#[derive(Clone)]
pub struct MemoryBudget(Arc<Shared>);

struct Shared {
    /// In bytes.
    total: u64,
    used: Mutex<Used>,
    /// Notified whenever bytes are given back.
    freed: Notify,
}

#[derive(Default)]
struct Used {
    total: u64,
    /// Only clients that hold something have an entry.
    by_client: HashMap<BudgetKey, u64>,
}

/// Whom memory is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BudgetKey(pub u64);

/// Bytes that are held, until this is dropped.
pub struct Reservation {
    budget: MemoryBudget,
    key: BudgetKey,
    bytes: u64,
}

/// The bytes do not fit into the budget now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfMemory {
    /// All callers together hold too much.
    #[error(
        "{held} MiB of images are in memory, of {limit} that all callers may have there (its flag \
         --max-memory)"
    )]
    Total {
        /// What is held, in MiB.
        held: u64,
        /// The budget, in MiB.
        limit: u64,
    },
    /// This caller alone holds too much.
    #[error(
        "you have {held} MiB of images in memory, of {limit} that one caller may have there (half \
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
        Self(Arc::new(Shared {
            total,
            used: Mutex::default(),
            freed: Notify::new(),
        }))
    }

    /// The budget, in bytes.
    pub fn total(&self) -> u64 {
        self.0.total
    }

    /// The most that one client may hold, in bytes.
    pub fn client_limit(&self) -> u64 {
        self.0.total / SHARE_OF_A_CLIENT
    }

    /// What is held now, in bytes.
    pub fn used(&self) -> u64 {
        sync::lock(&self.0.used).total
    }

    /// Holds `bytes` for a client.
    ///
    /// # Errors
    /// When they do not fit now.
    pub fn reserve(&self, key: BudgetKey, bytes: u64) -> Result<Reservation, OutOfMemory> {
        let mut reservation = Reservation {
            budget: self.clone(),
            key,
            bytes: 0,
        };
        reservation.grow(bytes)?;
        Ok(reservation)
    }

    /// Holds `bytes` for a client as soon as they fit.
    pub async fn reserve_later(&self, key: BudgetKey, bytes: u64) -> Reservation {
        loop {
            // Registered before the attempt, so that nothing freed in between is missed.
            let mut freed = pin!(self.0.freed.notified());
            freed.as_mut().enable();
            if let Ok(reservation) = self.reserve(key, bytes) {
                return reservation;
            }
            freed.await;
        }
    }

    fn add(&self, key: BudgetKey, bytes: u64) -> Result<(), OutOfMemory> {
        let limit = self.client_limit();
        let mut used = sync::lock(&self.0.used);
        if used.total.saturating_add(bytes) > self.0.total {
            return Err(OutOfMemory::Total {
                held: used.total >> 20,
                limit: self.0.total >> 20,
            });
        }

        let held = used.by_client.get(&key).copied().unwrap_or_default();
        if held.saturating_add(bytes) > limit {
            return Err(OutOfMemory::Client {
                held: held >> 20,
                limit: limit >> 20,
            });
        }
        used.total += bytes;
        used.by_client.insert(key, held + bytes);
        Ok(())
    }

    fn give_back(&self, key: BudgetKey, bytes: u64) {
        let mut used = sync::lock(&self.0.used);
        used.total -= bytes;
        let held = used.by_client.get_mut(&key);
        let held = held.expect("a client that gives bytes back holds them");
        *held -= bytes;
        if *held == 0 {
            used.by_client.remove(&key);
        }
        drop(used);
        self.0.freed.notify_waiters();
    }
}

impl Reservation {
    /// Holds `bytes` more.
    ///
    /// # Errors
    /// When they do not fit now; what is held already stays.
    pub fn grow(&mut self, bytes: u64) -> Result<(), OutOfMemory> {
        if bytes > 0 {
            self.budget.add(self.key, bytes)?;
            self.bytes += bytes;
        }
        Ok(())
    }

    /// Gives back what exceeds `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        if let Some(excess) = self.bytes.checked_sub(bytes).filter(|excess| *excess > 0) {
            self.budget.give_back(self.key, excess);
            self.bytes = bytes;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({} bytes)", self.bytes)
    }
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
        let budget = MemoryBudget::new(100);
        let mut reservation = budget.reserve(A, 10).unwrap();
        reservation.grow(40).unwrap();
        assert!(reservation.grow(1).is_err());
        assert_eq!(budget.used(), 50, "a failed attempt changes nothing");
        reservation.shrink_to(20);
        assert_eq!(budget.used(), 20);
        drop(reservation);
        assert_eq!(budget.used(), 0);
        assert!(sync::lock(&budget.0.used).by_client.is_empty());
    }

    #[tokio::test]
    async fn whoever_waits_gets_what_is_freed() {
        let budget = MemoryBudget::new(100);
        let held = budget.reserve(A, 50).unwrap();
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.reserve_later(A, 30).await.bytes }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!waiting.is_finished());
        drop(held);
        assert_eq!(waiting.await.unwrap(), 30);
    }
}
