//! The memory that a call's messages hold.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use crate::{
    budget::{BudgetKey, MemoryBudget, Reservation},
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

    /// Keeps the memory of a message that arrives.
    pub fn put(&self, reservation: Reservation) {
        lock(&self.held).push_back(reservation);
    }
}
