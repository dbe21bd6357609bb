//! Exemplars: which trace a recent value of a histogram came from, for each of its buckets.

use std::{
    sync::Mutex,
    time::{Duration, SystemTime},
};

use crate::{sync::lock, telemetry::context::TraceId};

/// A value that was measured in a sampled trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Exemplar {
    pub trace: TraceId,
    /// In seconds.
    pub value: f64,
    pub at: SystemTime,
}

/// The last exemplar of each bucket of one series; the last bucket has no upper bound.
///
/// Holds nothing until a sampled trace is recorded: most series never have one.
#[derive(Default)]
pub(super) struct Exemplars(Mutex<Vec<Option<Exemplar>>>);

impl Exemplars {
    /// Keeps a duration of this trace as the exemplar of its bucket; `bounds` are the buckets'
    /// upper bounds, in seconds.
    pub fn record(&self, bounds: &[f64], duration: Duration, trace: TraceId) {
        let value = duration.as_secs_f64();
        let bucket = bounds.partition_point(|&bound| bound < value);
        let mut buckets = lock(&self.0);
        buckets.resize(bounds.len() + 1, None);
        buckets[bucket] = Some(Exemplar {
            trace,
            value,
            at: SystemTime::now(),
        });
    }

    /// The exemplars by bucket; empty if there are none at all.
    pub fn by_bucket(&self) -> Vec<Option<Exemplar>> {
        lock(&self.0).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_keeps_the_last_trace_that_was_within_its_bounds() {
        let exemplars = Exemplars::default();
        assert!(exemplars.by_bucket().is_empty());

        let bounds = [0.1, 0.2];
        for (milliseconds, trace) in [(100, 1), (150, 2), (200, 3), (201, 4)] {
            let duration = Duration::from_millis(milliseconds);
            exemplars.record(&bounds, duration, TraceId([trace; 16]));
        }
        let traces: Vec<_> = exemplars
            .by_bucket()
            .iter()
            .map(|exemplar| exemplar.unwrap().trace.0[0])
            .collect();
        assert_eq!(traces, [1, 3, 4]);
    }
}
