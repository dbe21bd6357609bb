//! Formatting of numbers, for the dashboard and the table.

use std::collections::BTreeMap;

use crate::client::monitor::ModelSnapshot;

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// A number of bytes with a readable unit.
pub fn bytes(bytes: f64) -> String {
    let (unit, name) = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")]
        .into_iter()
        .find(|(unit, _)| bytes >= *unit)
        .unwrap_or((1.0, "B"));
    let value = bytes / unit;
    if value < 10.0 && unit > 1.0 {
        format!("{value:.1} {name}")
    } else {
        format!("{value:.0} {name}")
    }
}

/// A duration in seconds, in its largest unit.
pub fn age(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

/// The number of queued requests, and the capacity of the queue.
pub fn queue(model: &ModelSnapshot) -> String {
    match (model.queue_requests, model.queue_capacity) {
        (Some(requests), Some(capacity)) => format!("{requests:.0} of {capacity:.0}"),
        (Some(requests), None) => format!("{requests:.0}"),
        (None, _) => "–".into(),
    }
}

/// The rates that are not zero, the largest first; empty if there are none.
pub fn nonzero_rates(rates: &BTreeMap<String, f64>) -> String {
    let mut rates: Vec<_> = rates.iter().filter(|(_, rate)| **rate > 0.0).collect();
    rates.sort_by(|a, b| b.1.total_cmp(a.1));
    let texts: Vec<String> = rates
        .iter()
        .map(|(name, rate)| format!("{name} {rate:.1}/s"))
        .collect();
    texts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_readable_units() {
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(1234.0), "1.2 kB");
        assert_eq!(bytes(189e6), "189 MB");
        assert_eq!(bytes(80e9), "80 GB");
        assert_eq!(
            [age(5.2), age(600.0), age(86_400.0), age(1e6)],
            ["5 s", "10 min", "24 h", "12 days"]
        );
        assert_eq!(percent(0.956), "96 %");
    }

    #[test]
    fn only_nonzero_rates_are_listed_the_largest_first() {
        let rates = [("deadline", 0.5), ("queue_full", 12.34), ("cancelled", 0.0)];
        let rates = rates.map(|(name, rate)| (name.to_owned(), rate)).into();
        assert_eq!(nonzero_rates(&rates), "queue_full 12.3/s  deadline 0.5/s");
        assert_eq!(nonzero_rates(&BTreeMap::new()), "");
    }
}
