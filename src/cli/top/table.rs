//! A snapshot as a table, for pipes and logs.

use std::fmt::Write;

use console::style;

use super::text;
use crate::{
    cli::output::{escaped, time},
    client::monitor::{MetricsAddress, ModelSnapshot, Quantiles, Snapshot},
};

/// A server and its models, or why the server could not be measured.
pub fn table(address: &MetricsAddress, measured: &Result<Snapshot, String>) -> String {
    let mut table = style(address.to_string()).bold().to_string();
    match measured {
        Err(reason) => table += &format!("  {}\n", style(escaped(reason)).red()),
        Ok(snapshot) => {
            let state = style(escaped(&snapshot.state));
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

/// The properties of the server's process, in one line.
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

/// A row per model.
fn models(snapshot: &Snapshot) -> String {
    let longest = snapshot
        .models
        .iter()
        .map(|model| escaped(&model.name).chars().count())
        .max()
        .unwrap_or(0)
        .max("Model".len());
    let header = format!(
        "{:<longest$} {:<16} {:>8} {:>10} {:>9} {:>9} {:>9} {:>9} {:>6} {:>7}  Rejected\n",
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
    let mut table = style(header).bold().to_string();
    for model in &snapshot.models {
        let engine = match &model.engine {
            Some(engine) => format!("{} {}", engine.engine, engine.precision),
            None => "not loaded".into(),
        };
        let latency = |quantile: fn(&Quantiles) -> f64| match &model.latency_ms.request {
            Some(latency) => time(quantile(latency)),
            None => "–".into(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "{:<longest$} {engine:<16} {:>8.1} {:>10.1} {:>9} {:>9} {:>9} {:>9} {:>6} {:>7.0}  {}",
            escaped(&model.name),
            model.images_per_second,
            model.requests(),
            latency(|latency| latency.p50),
            latency(|latency| latency.p95),
            latency(|latency| latency.p99),
            text::queue(model),
            model
                .batch_size
                .map_or("–".into(), |images| format!("{images:.1}")),
            model.streams,
            rejected(model),
        );
    }
    table
}

/// The rates of rejections, by reason.
fn rejected(model: &ModelSnapshot) -> String {
    let rates = text::nonzero_rates(&model.rejected_per_second);
    if rates.is_empty() {
        "none".into()
    } else {
        style(rates).red().to_string()
    }
}
