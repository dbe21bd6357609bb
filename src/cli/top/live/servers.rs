//! The list of servers, when there are several.

use super::app::ServerView;
use crate::{
    cli::output::time,
    client::monitor::{ModelSnapshot, Snapshot},
};

pub const COLUMNS: [&str; 7] = [
    "Server",
    "State",
    "Images/s",
    "Requests/s",
    "p99",
    "Queued",
    "Rejected/s",
];

/// The values of a server: sums over its models, and the p99 of the slowest one.
pub fn cells(server: &ServerView) -> [String; 7] {
    let address = server.address.authority().to_owned();
    let snapshot = match &server.snapshot {
        Some(snapshot) if server.gone.is_none() => snapshot,
        _ => {
            let state = if server.gone.is_some() {
                "gone"
            } else {
                "waiting"
            };
            return [&address, state, "–", "–", "–", "–", "–"].map(str::to_owned);
        }
    };

    let models = &snapshot.models;
    let sum = |value: fn(&ModelSnapshot) -> f64| {
        // Not `sum`, whose neutral element is -0.
        let sum = models.iter().map(value).fold(0.0, |sum, value| sum + value);
        format!("{sum:.1}")
    };
    let queued = models
        .iter()
        .filter_map(|model| model.queue_depth)
        .fold(0.0, |sum, depth| sum + depth);
    [
        address,
        if snapshot.ready { "ready" } else { "not ready" }.into(),
        sum(|model| model.images_per_second),
        sum(ModelSnapshot::requests),
        slowest_p99(snapshot).map_or("–".into(), time),
        format!("{queued:.0}"),
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

/// One line of the list, 80 columns wide.
pub fn row<T: AsRef<str>>(cells: [T; 7]) -> String {
    let [server, state, images, requests, p99, queued, rejected] =
        cells.each_ref().map(AsRef::as_ref);
    format!(
        "{server:<20} {state:<9} {images:>9} {requests:>10} {p99:>9} {queued:>7} {rejected:>10}"
    )
}
