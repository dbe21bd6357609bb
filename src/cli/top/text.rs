//! Numbers as the picture and the table show them.

use std::collections::BTreeMap;

use super::live::app::ServerView;
use crate::{
    cli::output::time,
    client::monitor::{ModelSnapshot, Snapshot},
};

/// From this share on, a queue or the cores are as good as full.
pub const TROUBLE_FILL: f64 = 0.9;

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// A number of bytes with a sensible unit.
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

/// A time for people, in its largest unit.
pub fn age(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

/// How many single requests wait, and for how many there is room.
pub fn queue(model: &ModelSnapshot) -> String {
    match (model.queue_requests, model.queue_capacity) {
        (Some(requests), Some(capacity)) => format!("{requests:.0} of {capacity:.0}"),
        (Some(requests), None) => format!("{requests:.0}"),
        (None, _) => "–".into(),
    }
}

/// What there is of these rates, the greatest first; empty when there is nothing.
pub fn nonzero(rates: &BTreeMap<String, f64>) -> String {
    let mut rates: Vec<_> = rates.iter().filter(|(_, rate)| **rate > 0.0).collect();
    rates.sort_by(|a, b| b.1.total_cmp(a.1));
    let text = rates
        .iter()
        .map(|(name, rate)| format!("{name} {rate:.1}/s"));
    text.collect::<Vec<_>>().join("  ")
}

/// The columns of a list of servers.
pub const SERVER_COLUMNS: [&str; 7] = [
    "Server",
    "State",
    "Images/s",
    "Requests/s",
    "p99",
    "Waiting",
    "Refused/s",
];

/// What a server does, all its models together; the p99 is that of its slowest one.
pub fn server_cells(server: &ServerView) -> [String; 7] {
    let address = server.address.authority().to_owned();
    let Some(snapshot) = server.snapshot.as_ref().filter(|_| server.gone.is_none()) else {
        let state = if server.gone.is_some() {
            "gone"
        } else {
            "waiting"
        };
        return [
            address,
            state.into(),
            "–".into(),
            "–".into(),
            "–".into(),
            "–".into(),
            "–".into(),
        ];
    };
    let sum = |value: fn(&ModelSnapshot) -> f64| {
        format!(
            "{:.1}",
            snapshot
                .models
                .iter()
                .map(value)
                .fold(0.0, |sum, value| sum + value)
        )
    };
    [
        address,
        if snapshot.ready { "ready" } else { "not ready" }.into(),
        sum(|model| model.images_per_second),
        sum(ModelSnapshot::requests),
        slowest_p99(snapshot).map_or("–".into(), time),
        format!(
            "{:.0}",
            snapshot
                .models
                .iter()
                .filter_map(|model| model.queue_depth)
                .sum::<f64>()
        ),
        sum(ModelSnapshot::rejected),
    ]
}

fn slowest_p99(snapshot: &Snapshot) -> Option<f64> {
    let p99s = snapshot
        .models
        .iter()
        .filter_map(|model| Some(model.latency_ms.request?.p99));
    p99s.reduce(f64::max)
}

/// One line of a list of servers, less than 80 characters wide.
pub fn server_row<T: AsRef<str>>(cells: [T; 7]) -> String {
    let [server, state, images, requests, p99, waiting, refused] =
        cells.each_ref().map(AsRef::as_ref);
    format!("{server:<21} {state:<9} {images:>9} {requests:>10} {p99:>9} {waiting:>7} {refused:>9}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_sensible_units() {
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
    fn only_what_happens_is_listed_the_most_frequent_first() {
        let rates = [("deadline", 0.5), ("queue_full", 12.34), ("cancelled", 0.0)];
        let rates = rates.map(|(name, rate)| (name.to_owned(), rate)).into();
        assert_eq!(nonzero(&rates), "queue_full 12.3/s  deadline 0.5/s");
        assert_eq!(nonzero(&BTreeMap::new()), "");
    }
}
