//! A period of time between two instants.

use std::time::{Duration, Instant};

/// When a piece of work began and ended.
#[derive(Clone, Copy, Debug)]
pub struct Period {
    pub start: Instant,
    pub end: Instant,
}

impl Period {
    /// A period that begins at `start` and lasts for `time`.
    pub fn lasting(start: Instant, time: Duration) -> Self {
        Self {
            start,
            end: start + time,
        }
    }
}
