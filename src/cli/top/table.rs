//! One snapshot as a table, for pipes and logs.

use std::fmt::Write;

use console::style;

use super::{live::app::ServerView, text};
use crate::{
    cli::output::time,
    client::monitor::{ModelSnapshot, Snapshot},
};

/// A server and its models.
pub fn table(server: &ServerView) -> String {
    let mut table = style(server.address.to_string()).bold().to_string();
    match (&server.gone, &server.snapshot) {
        (Some((_, reason)), _) => table += &format!("  {}\n", style(reason).red()),
        (None, None) => table += "\n",
        (None, Some(snapshot)) => {
            let state = style(&snapshot.state);
            let state = if snapshot.ready {
                state.green()
            } else {
                state.yellow()
            };
            table += &format!("  {state}{}\n", process(snapshot));
            table += &models(snapshot);
        }
    }
    table
}

fn process(snapshot: &Snapshot) -> String {
    let parts = [
        snapshot
            .version
            .as_ref()
            .map(|version| format!("resnet18 {version}")),
        snapshot
            .uptime_s
            .map(|seconds| format!("up {}", text::age(seconds))),
        snapshot
            .saturation
            .map(|share| format!("saturation {}", text::percent(share))),
        snapshot
            .cpu_cores
            .map(|cores| format!("CPU {cores:.2} cores")),
        snapshot
            .resident_bytes
            .map(|bytes| format!("memory {}", text::bytes(bytes))),
        snapshot
            .calls_active
            .map(|calls| format!("{calls:.0} calls")),
    ];
    parts
        .into_iter()
        .flatten()
        .map(|part| format!("  {part}"))
        .collect()
}

fn models(snapshot: &Snapshot) -> String {
    let longest = snapshot
        .models
        .iter()
        .map(|model| model.name.chars().count())
        .max()
        .unwrap_or(0)
        .max(5);
    let head = format!(
        "{:<longest$} {:<16} {:>8} {:>10} {:>9} {:>9} {:>9} {:>9} {:>6} {:>7}  Refused\n",
        "Model",
        "Engine",
        "Images/s",
        "Requests/s",
        "p50",
        "p95",
        "p99",
        "Queue",
        "Batch",
        "Streams"
    );
    let mut table = style(head).bold().to_string();
    for model in &snapshot.models {
        let engine = model.engine.as_ref().map_or("not loaded".into(), |e| {
            format!("{} {}", e.engine, e.precision)
        });
        let latency = |of: fn(&crate::client::monitor::Quantiles) -> f64| {
            model
                .latency_ms
                .request
                .as_ref()
                .map_or("–".into(), |latency| time(of(latency)))
        };
        // Writing to a string can't fail.
        let _ = writeln!(
            table,
            "{:<longest$} {engine:<16} {:>8.1} {:>10.1} {:>9} {:>9} {:>9} {:>9} {:>6} {:>7.0}  {}",
            model.name,
            model.images_per_second,
            model.requests(),
            latency(|l| l.p50),
            latency(|l| l.p95),
            latency(|l| l.p99),
            text::queue(model),
            model
                .batch_size
                .map_or("–".into(), |images| format!("{images:.1}")),
            model.streams,
            refused(model),
        );
    }
    table
}

fn refused(model: &ModelSnapshot) -> String {
    let refused = text::nonzero(&model.rejected_per_second);
    if refused.is_empty() {
        "nothing".into()
    } else {
        style(refused).red().to_string()
    }
}
