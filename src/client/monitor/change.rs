//! What happened between two scrapes: rates of counters and quantiles of histograms.

use super::{exposition::Series, scrape::Scrape};

/// Two scrapes of one server, the older one first.
pub struct Change<'a> {
    /// `None`: the server has started anew since, and all its counters with it.
    before: Option<&'a Scrape>,
    after: &'a Scrape,
    seconds: f64,
}

impl<'a> Change<'a> {
    /// Lays two scrapes side by side.
    pub fn between(before: &'a Scrape, after: &'a Scrape) -> Self {
        let seconds = after.at.saturating_duration_since(before.at).as_secs_f64();
        let same = !restarted(before, after);
        Self {
            before: same.then_some(before),
            after,
            seconds,
        }
    }

    /// Whether the server is the same process as before.
    pub fn same_process(&self) -> bool {
        self.before.is_some()
    }

    /// The time between them, in seconds.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// How much the counters with these labels grew a second; `None` when there is none.
    pub fn rate(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let series = self
            .after
            .series(name)
            .iter()
            .filter(|series| series.has(labels));
        let growth = series
            .map(|series| self.growth(name, series))
            .reduce(|a, b| a + b)?;
        (self.seconds > 0.0).then(|| growth / self.seconds)
    }

    /// What the histograms with these labels took in.
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

    /// A series that is new was 0 before.
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

/// Whether another process answered, or the same one after its counters began anew.
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

/// What a histogram took in, by its buckets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Upper bounds, ascending, with how many values were no larger.
    buckets: Vec<(f64, f64)>,
    sum: f64,
    count: f64,
}

impl Histogram {
    /// Takes in a bucket; those of the same bound are added up.
    fn add(&mut self, bound: f64, count: f64) {
        match self
            .buckets
            .binary_search_by(|(other, _)| other.total_cmp(&bound))
        {
            Ok(at) => self.buckets[at].1 += count,
            Err(at) => self.buckets.insert(at, (bound, count)),
        }
    }

    /// Adds what another one of the same buckets took in.
    pub fn merge(&mut self, other: &Self) {
        other
            .buckets
            .iter()
            .for_each(|(bound, count)| self.add(*bound, *count));
        self.sum += other.sum;
        self.count += other.count;
    }

    /// How many values.
    pub fn count(&self) -> f64 {
        self.count
    }

    /// Their mean, if there are any.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }

    /// The value that a share of all is not larger than, as Prometheus' `histogram_quantile`
    /// estimates it: values are taken to be spread evenly over their bucket, and those above the
    /// last finite bound to lie on it. `None` when there are none.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let &(_, all) = self.buckets.last()?;
        if all <= 0.0 {
            return None;
        }
        let rank = share.clamp(0.0, 1.0) * all;
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
        match () {
            () if upper.is_infinite() => Some(lower),
            () if count <= below => Some(upper),
            () => Some(lower + (upper - lower) * (rank - below) / (count - below)),
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
            "requests{code=\"OK\",model=\"a\"} 130\nrequests{code=\"OK\",model=\"b\"} 7\nrequests{code=\"X\",model=\"a\"} 5\n",
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

    const BEFORE: &str = "h_bucket{le=\"0.1\"} 10\nh_bucket{le=\"0.2\"} 10\nh_bucket{le=\"+Inf\"} 10\nh_sum 0.5\nh_count 10\n";
    const AFTER: &str = "h_bucket{le=\"0.1\"} 60\nh_bucket{le=\"0.2\"} 100\nh_bucket{le=\"+Inf\"} 110\nh_sum 30.5\nh_count 110\n";

    #[test]
    fn quantiles_are_of_what_came_in_between() {
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
