//! Distributions of latencies.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// A distribution of latencies, in milliseconds, with three significant digits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LatencySummary {
    /// How many latencies were recorded.
    pub count: u64,
    /// The arithmetic mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The 99.9th percentile.
    #[serde(rename = "p99.9")]
    pub p999: f64,
    /// The largest latency.
    pub max: f64,
}

/// The largest latency that is recorded, an hour, in microseconds; a longer one counts as an hour.
const LONGEST: u64 = 3_600_000_000;

/// Records latencies in microseconds, to three significant digits.
pub(super) struct LatencyRecorder {
    histogram: Histogram<u64>,
    max: u64,
}

impl Default for LatencyRecorder {
    fn default() -> Self {
        Self {
            histogram: Histogram::new_with_max(LONGEST, 3).expect("the limits are valid"),
            max: 0,
        }
    }
}

impl LatencyRecorder {
    pub fn record(&mut self, latency: Duration) {
        let microseconds = u64::try_from(latency.as_micros()).map_or(LONGEST, |us| us.min(LONGEST));
        self.histogram.saturating_record(microseconds);
        self.max = self.max.max(microseconds);
    }

    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The distribution so far; `None` if nothing was recorded.
    pub fn summary(&self) -> Option<LatencySummary> {
        if self.histogram.is_empty() {
            return None;
        }
        // A bucket's value is its upper bound, which may exceed the slowest latency in it.
        let quantile = |q| self.histogram.value_at_quantile(q).min(self.max) as f64 / 1e3;
        Some(LatencySummary {
            count: self.histogram.len(),
            mean: self.histogram.mean().round() / 1e3,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p95: quantile(0.95),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: self.max as f64 / 1e3,
        })
    }
}
