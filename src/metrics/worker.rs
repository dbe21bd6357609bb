//! Counts worker threads that were replaced.

use metrics::counter;

use super::{labels::Restart, table::WORKER_RESTARTS};

/// Registers the series, so that they exist, at 0, before the first restart.
pub(super) fn register() {
    for reason in Restart::LABELS {
        let _ = counter!(WORKER_RESTARTS, "reason" => reason);
    }
}

/// A worker thread was replaced.
pub(crate) fn worker_restarted(reason: Restart) {
    counter!(WORKER_RESTARTS, "reason" => Restart::LABELS[reason as usize]).increment(1);
}
