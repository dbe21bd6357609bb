//! Renders `/metrics`: installs the recorder, refreshes gauges at each scrape, and writes the text.

#[cfg(feature = "tensorrt")]
use std::sync::Arc;
use std::{num::NonZeroUsize, sync::OnceLock};

use metrics::{
    Counter, Gauge, counter, describe_counter, describe_gauge, describe_histogram, gauge,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;

use super::{
    decoder,
    model::ModelMetrics,
    openmetrics::{RequestExemplars, openmetrics},
    removed,
    table::{
        BUILD_INFO, CALLS_ACTIVE, LOG_LINES_DROPPED, MESSAGE_MEMORY, MESSAGE_MEMORY_LIMIT, METRICS,
        MetricKind, READY, WORKERS,
    },
    worker,
};
use crate::{budget::MemoryBudget, state::StateCell, telemetry::log};

/// In which format metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format 0.0.4.
    Text,
    /// OpenMetrics 1.0, with exemplars.
    OpenMetrics,
}

/// The process's Prometheus exporter.
#[derive(Clone)]
pub struct Exporter {
    prometheus: PrometheusHandle,
    process: Collector,
    ready: Gauge,
    calls: Gauge,
    memory_used: Gauge,
    memory_limit: Gauge,
    dropped_log_lines: Counter,
    #[cfg(feature = "tensorrt")]
    gpus: Arc<super::gpu::Gpus>,
}

impl Exporter {
    /// Returns the exporter of this process, which the first call installs.
    pub fn install() -> Self {
        static EXPORTER: OnceLock<Exporter> = OnceLock::new();
        EXPORTER.get_or_init(Self::build).clone()
    }

    fn build() -> Self {
        let mut builder = PrometheusBuilder::new();
        for metric in METRICS {
            if let MetricKind::Histogram(bounds) = metric.kind {
                builder = builder
                    .set_buckets_for_metric(Matcher::Full(metric.name.into()), bounds)
                    .expect("the bounds are not empty");
            }
        }
        let prometheus = builder
            .install_recorder()
            .expect("nothing else installs a recorder");

        describe();
        gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        let process = Collector::default();
        process.describe();
        decoder::register();
        worker::register();

        Self {
            prometheus,
            process,
            ready: gauge!(READY),
            calls: gauge!(CALLS_ACTIVE),
            memory_used: gauge!(MESSAGE_MEMORY),
            memory_limit: gauge!(MESSAGE_MEMORY_LIMIT),
            dropped_log_lines: counter!(LOG_LINES_DROPPED),
            #[cfg(feature = "tensorrt")]
            gpus: Arc::new(super::gpu::Gpus::find()),
        }
    }

    /// Numbers GPUs as the engine does, by these identities in its order; without this, as
    /// `nvidia-smi` does. They are asked for at the first scrape that finds a GPU.
    #[cfg(feature = "tensorrt")]
    pub fn number_gpus(&self, uuids: fn() -> Vec<String>) {
        self.gpus.number(uuids);
    }

    /// Renders the text that Prometheus scrapes, with current values from `models`, `state` and
    /// `memory`.
    pub fn render<'a>(
        &self,
        format: Format,
        models: impl IntoIterator<Item = &'a ModelMetrics>,
        state: &StateCell,
        memory: &MemoryBudget,
    ) -> String {
        let mut exemplars = RequestExemplars::new();
        for model in models {
            model.refresh();
            if format == Format::OpenMetrics {
                exemplars.extend(model.exemplars());
            }
        }
        let is_ready = state.get().ready().is_ok();
        self.ready.set(if is_ready { 1.0 } else { 0.0 });
        self.calls.set(state.calls() as f64);
        self.memory_used.set(memory.used() as f64);
        self.memory_limit.set(memory.total() as f64);
        self.dropped_log_lines.absolute(log::dropped_lines());
        self.process.collect();
        #[cfg(feature = "tensorrt")]
        super::gpu::refresh(&self.gpus);

        let text = with_true_types(removed::without_removed(self.prometheus.render()));
        match format {
            Format::Text => text,
            Format::OpenMetrics => openmetrics(&text, &exemplars),
        }
    }

    /// Folds the samples that histograms have collected since the last scrape. Must be called
    /// regularly: without scrapes the samples would accumulate in memory.
    pub fn upkeep(&self) {
        self.prometheus.run_upkeep();
    }
}

fn describe() {
    for metric in METRICS {
        match metric.kind {
            MetricKind::Counter => describe_counter!(metric.name, metric.help),
            MetricKind::FractionalCounter | MetricKind::Gauge => {
                describe_gauge!(metric.name, metric.help);
            }
            MetricKind::Histogram(_) => describe_histogram!(metric.name, metric.help),
        }
    }
}

/// Declares fractional counters as counters. The recorder's own counters hold whole numbers only,
/// so fractional ones are kept, and rendered, as gauges.
fn with_true_types(mut text: String) -> String {
    let fractional = METRICS
        .iter()
        .filter(|metric| metric.kind == MetricKind::FractionalCounter)
        .map(|metric| metric.name);

    for name in fractional.chain(["process_cpu_seconds_total"]) {
        text = text.replacen(
            &format!("# TYPE {name} gauge\n"),
            &format!("# TYPE {name} counter\n"),
            1,
        );
    }
    text
}

/// Sets the number of worker threads, which decode and infer.
pub fn workers(threads: NonZeroUsize) {
    gauge!(WORKERS).set(threads.get() as f64);
}
