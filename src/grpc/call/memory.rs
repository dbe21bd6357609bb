//! The memory that a call's messages hold.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use crate::{
    budget::{BudgetKey, MemoryBudget, OutOfMemory, Reservation},
    sync::lock,
};

/// The memory of a call's messages, in the order in which they arrived.
#[derive(Clone)]
pub(in crate::grpc) struct MessageMemory {
    pub budget: MemoryBudget,
    pub key: BudgetKey,
    held: Arc<Mutex<VecDeque<Reservation>>>,
}

impl MessageMemory {
    pub fn new(budget: MemoryBudget, key: BudgetKey) -> Self {
        Self {
            budget,
            key,
            held: Arc::default(),
        }
    }

    /// The memory of the oldest message that was not asked for yet. It is given back when this is
    /// dropped.
    pub fn take(&self) -> Option<Reservation> {
        lock(&self.held).pop_front()
    }

    /// Holds the memory of the crops of an image, of this many bytes each. A single one is not
    /// counted: each of these is in the place of an image.
    ///
    /// # Errors
    /// When they do not fit now.
    pub fn crops(&self, crops: usize, bytes: usize) -> Result<Option<Reservation>, OutOfMemory> {
        let several = crops > 1;
        several
            .then(|| self.budget.reserve(self.key, (crops * bytes) as u64))
            .transpose()
    }

    /// Like [`Self::crops`], as soon as they fit.
    ///
    /// # Errors
    /// When they never will.
    pub async fn crops_later(
        &self,
        crops: usize,
        bytes: usize,
    ) -> Result<Option<Reservation>, OutOfMemory> {
        if crops <= 1 {
            return Ok(None);
        }
        let held = self.budget.reserve_later(self.key, (crops * bytes) as u64);
        held.await.map(Some)
    }

    /// Keeps the memory of a message that arrives.
    pub fn put(&self, reservation: Reservation) {
        lock(&self.held).push_back(reservation);
    }
}
