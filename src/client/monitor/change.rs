//! The change between two scrapes: rates of counters and quantiles of histograms.

use super::{exposition::Series, scrape::Scrape};

/// The change between two scrapes of one server.
pub struct Change<'a> {
    /// `None` if the server was restarted since, which resets all its counters.
    before: Option<&'a Scrape>,
    after: &'a Scrape,
    seconds: f64,
}

impl<'a> Change<'a> {
    /// Compares an earlier scrape with a later one.
    pub fn between(before: &'a Scrape, after: &'a Scrape) -> Self {
        let seconds = after.at.saturating_duration_since(before.at).as_secs_f64();
        let before = if restarted(before, after) {
            None
        } else {
            Some(before)
        };
        Self {
            before,
            after,
            seconds,
        }
    }

    /// Whether the server has not been restarted between the scrapes.
    pub fn same_process(&self) -> bool {
        self.before.is_some()
    }

    /// The time between the scrapes, in seconds.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// The growth per second of the counters with these labels, summed. `None` if there are no such
    /// counters, or no time passed between the scrapes.
    pub fn rate(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let growth = self
            .after
            .series(name)
            .iter()
            .filter(|series| series.has(labels))
            .map(|series| self.growth(name, series))
            .reduce(|a, b| a + b)?;
        if self.seconds > 0.0 {
            Some(growth / self.seconds)
        } else {
            None
        }
    }

    /// The values that the histograms with these labels recorded between the scrapes, merged.
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Histogram {
        let mut histogram = Histogram {
            sum: self.growth_of(&format!("{name}_sum"), labels),
            count: self.growth_of(&format!("{name}_count"), labels),
            buckets: Vec::new(),
        };

        let name = format!("{name}_bucket");
        for series in self
            .after
            .series(&name)
            .iter()
            .filter(|series| series.has(labels))
        {
            if let Ok(bound) = series.label("le").parse() {
                histogram.add(bound, self.growth(&name, series));
            }
        }
        histogram
    }

    fn growth_of(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.after
            .series(name)
            .iter()
            .filter(|series| series.has(labels))
            .map(|series| self.growth(name, series))
            .sum()
    }

    /// The growth of one counter. A series that appeared between the scrapes was 0 before.
    fn growth(&self, name: &str, series: &Series) -> f64 {
        let before = self
            .before
            .and_then(|before| value_of(before, name, series))
            .unwrap_or(0.0);
        let growth = series.value - before;
        if growth.is_finite() {
            growth.max(0.0)
        } else {
            0.0
        }
    }
}

fn value_of(scrape: &Scrape, name: &str, series: &Series) -> Option<f64> {
    scrape
        .series(name)
        .iter()
        .find(|other| other.labels == series.labels)
        .map(|other| other.value)
}

/// Whether the server was restarted: its start time changed, or a counter fell.
fn restarted(before: &Scrape, after: &Scrape) -> bool {
    let start = |scrape: &Scrape| scrape.value("process_start_time_seconds", &[]);
    let fell = |name: &str| {
        let fell = |series: &Series| {
            value_of(before, name, series).is_some_and(|value| series.value < value)
        };
        after.series(name).iter().any(fell)
    };
    matches!((start(before), start(after)), (Some(before), Some(after)) if before != after)
        || fell("classifier_requests_total")
        || fell("classifier_batch_size_count")
}

/// The values that a histogram recorded, by bucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// The upper bounds, ascending, each with the number of values up to it.
    buckets: Vec<(f64, f64)>,
    sum: f64,
    count: f64,
}

impl Histogram {
    /// Adds a bucket; the counts of buckets with the same bound are summed.
    fn add(&mut self, bound: f64, count: f64) {
        match self
            .buckets
            .binary_search_by(|(other, _)| other.total_cmp(&bound))
        {
            Ok(at) => self.buckets[at].1 += count,
            Err(at) => self.buckets.insert(at, (bound, count)),
        }
    }

    /// Adds the values of another histogram with the same buckets.
    pub fn merge(&mut self, other: &Self) {
        for (bound, count) in &other.buckets {
            self.add(*bound, *count);
        }
        self.sum += other.sum;
        self.count += other.count;
    }

    /// The number of values.
    pub fn count(&self) -> f64 {
        self.count
    }

    /// The mean of the values; `None` without values.
    pub fn mean(&self) -> Option<f64> {
        if self.count > 0.0 {
            Some(self.sum / self.count)
        } else {
            None
        }
    }

    /// The quantile `q`, 0 to 1, as Prometheus' `histogram_quantile` estimates it: the values are
    /// assumed to be spread evenly within their bucket, and those above the last finite bound to
    /// lie on it. `None` without values.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let &(_, total) = self.buckets.last()?;
        if total <= 0.0 {
            return None;
        }

        let rank = q.clamp(0.0, 1.0) * total;
        let at = self
            .buckets
            .partition_point(|(_, count)| *count < rank)
            .min(self.buckets.len() - 1);
        let (lower, below) = if at == 0 {
            (0.0, 0.0)
        } else {
            self.buckets[at - 1]
        };
        let (upper, count) = self.buckets[at];

        if upper.is_infinite() {
            Some(lower)
        } else if count <= below {
            Some(upper)
        } else {
            Some(lower + (upper - lower) * (rank - below) / (count - below))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    fn scrapes(before: &str, after: &str, seconds: u64) -> (Scrape, Scrape) {
        let start = Instant::now();
        (
            Scrape::of(before, start),
            Scrape::of(after, start + Duration::from_secs(seconds)),
        )
    }

    #[test]
    fn rates_are_growth_by_time_summed_over_series() {
        let (before, after) = scrapes(
            "requests{code=\"OK\",model=\"a\"} 100\nrequests{code=\"OK\",model=\"b\"} 7\n",
            "requests{code=\"OK\",model=\"a\"} 130\nrequests{code=\"OK\",model=\"b\"} 7\n\
             requests{code=\"X\",model=\"a\"} 5\n",
            5,
        );
        let change = Change::between(&before, &after);
        assert!(change.same_process());
        assert_eq!(change.rate("requests", &[]), Some(7.0));
        assert_eq!(change.rate("requests", &[("model", "b")]), Some(0.0));
        // It appeared in between, so it was 0.
        assert_eq!(change.rate("requests", &[("code", "X")]), Some(1.0));
        assert_eq!(change.rate("others", &[]), None);
    }

    #[test]
    fn two_scrapes_at_the_same_moment_have_no_rate() {
        let (before, after) = scrapes("m 1\n", "m 2\n", 0);
        assert_eq!(Change::between(&before, &after).rate("m", &[]), None);
    }

    #[test]
    fn after_a_restart_counters_count_from_zero() {
        for (before, after) in [
            (
                "process_start_time_seconds 100\nclassifier_frames_total 5\n",
                "process_start_time_seconds 200\nclassifier_frames_total 8\n",
            ),
            (
                "classifier_requests_total{code=\"OK\"} 9\nclassifier_frames_total 5\n",
                "classifier_requests_total{code=\"OK\"} 2\nclassifier_frames_total 8\n",
            ),
        ] {
            let (before, after) = scrapes(before, after, 4);
            let change = Change::between(&before, &after);
            assert!(!change.same_process());
            assert_eq!(change.rate("classifier_frames_total", &[]), Some(2.0));
        }
    }

    #[test]
    fn counters_that_are_no_numbers_do_not_spread() {
        let (before, after) = scrapes(
            "m{a=\"1\"} NaN\nm{a=\"2\"} 1\n",
            "m{a=\"1\"} 5\nm{a=\"2\"} +Inf\n",
            1,
        );
        assert_eq!(Change::between(&before, &after).rate("m", &[]), Some(0.0));
    }

    const BEFORE: &str = "h_bucket{le=\"0.1\"} 10\nh_bucket{le=\"0.2\"} 10\n\
         h_bucket{le=\"+Inf\"} 10\nh_sum 0.5\nh_count 10\n";
    const AFTER: &str = "h_bucket{le=\"0.1\"} 60\nh_bucket{le=\"0.2\"} 100\n\
         h_bucket{le=\"+Inf\"} 110\nh_sum 30.5\nh_count 110\n";

    #[test]
    fn quantiles_cover_the_values_between_the_scrapes() {
        let (before, after) = scrapes(BEFORE, AFTER, 1);
        let histogram = Change::between(&before, &after).histogram("h", &[]);
        assert_eq!((histogram.count(), histogram.mean()), (100.0, Some(0.3)));
        // 50 in (0, 0.1], 40 in (0.1, 0.2], 10 above.
        for (share, expected) in [
            (0.0, 0.0),
            (0.25, 0.05),
            (0.5, 0.1),
            (0.7, 0.15),
            (0.9, 0.2),
            (0.99, 0.2),
        ] {
            let quantile = histogram.quantile(share).unwrap();
            assert!((quantile - expected).abs() < 1e-9, "{share}: {quantile}");
        }
    }

    #[test]
    fn nothing_has_no_quantiles() {
        let (before, after) = scrapes(AFTER, AFTER, 1);
        let histogram = Change::between(&before, &after).histogram("h", &[]);
        assert_eq!((histogram.quantile(0.5), histogram.mean()), (None, None));
        assert_eq!(
            Change::between(&before, &after).histogram("other", &[]),
            Histogram::default()
        );
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn histograms_of_the_same_buckets_add_up() {
        let (before, after) = scrapes(BEFORE, AFTER, 1);
        let mut histogram = Change::between(&before, &after).histogram("h", &[]);
        histogram.merge(&histogram.clone());
        assert_eq!((histogram.count(), histogram.mean()), (200.0, Some(0.3)));
        assert!((histogram.quantile(0.7).unwrap() - 0.15).abs() < 1e-9);
    }
}
