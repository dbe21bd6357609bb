//! Counts worker threads that panicked, or that hung and were replaced.

use metrics::counter;

use super::{labels::Restart, table::WORKER_RESTARTS};

/// Registers the series, so that they exist, at 0, before the first restart.
pub(super) fn register() {
    for reason in Restart::LABELS {
        let _ = counter!(WORKER_RESTARTS, "reason" => reason);
    }
}

/// A worker thread panicked, or it hung and was replaced.
pub(crate) fn worker_restarted(reason: Restart) {
    counter!(WORKER_RESTARTS, "reason" => Restart::LABELS[reason as usize]).increment(1);
}
