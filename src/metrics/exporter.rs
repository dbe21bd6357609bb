//! Collects everything for `/metrics`.

#[cfg(feature = "tensorrt")]
use std::sync::Arc;
use std::{num::NonZeroUsize, sync::OnceLock};

use metrics::{Gauge, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;

use super::{
    model::ModelMetrics,
    table::{BUILD_INFO, CALLS_ACTIVE, Kind, METRICS, READY, WORKERS},
};
use crate::state::StateCell;

/// Collects everything for `/metrics`.
#[derive(Clone)]
pub struct Exporter {
    prometheus: PrometheusHandle,
    process: Collector,
    ready: Gauge,
    calls: Gauge,
    #[cfg(feature = "tensorrt")]
    gpus: Arc<crate::metrics::nvml::Gpus>,
}

impl Exporter {
    /// The process's exporter; installed at the first call.
    pub fn install() -> Self {
        static EXPORTER: OnceLock<Exporter> = OnceLock::new();
        EXPORTER.get_or_init(Self::build).clone()
    }

    fn build() -> Self {
        let buckets = METRICS.iter().filter_map(|metric| match metric.kind {
            Kind::Histogram(bounds) => Some((Matcher::Full(metric.name.into()), bounds)),
            _ => None,
        });
        let prometheus = buckets
            .fold(PrometheusBuilder::new(), |builder, (name, bounds)| {
                builder
                    .set_buckets_for_metric(name, bounds)
                    .expect("the bounds are not empty")
            })
            .install_recorder()
            .expect("nothing else installs a recorder");
        describe();
        gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        let process = Collector::default();
        process.describe();
        Self {
            prometheus,
            process,
            ready: gauge!(READY),
            calls: gauge!(CALLS_ACTIVE),
            #[cfg(feature = "tensorrt")]
            gpus: Arc::new(crate::metrics::nvml::Gpus::find()),
        }
    }

    /// The text that Prometheus scrapes, with what `models` and `state` say at this moment.
    pub fn render<'a>(
        &self,
        models: impl IntoIterator<Item = &'a ModelMetrics>,
        state: &StateCell,
    ) -> String {
        models.into_iter().for_each(ModelMetrics::refresh);
        self.ready.set(if state.get().ready().is_ok() {
            1.0
        } else {
            0.0
        });
        self.calls.set(state.calls() as f64);
        self.process.collect();
        #[cfg(feature = "tensorrt")]
        self.gpus.read().iter().for_each(super::gpu::show);
        with_true_types(self.prometheus.render())
    }

    /// Folds what histograms collected since the last scrape, so that it does not pile up. To be
    /// called now and then.
    pub fn upkeep(&self) {
        self.prometheus.run_upkeep();
    }
}

fn describe() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.help),
            Kind::FractionalCounter | Kind::Gauge => describe_gauge!(metric.name, metric.help),
            Kind::Histogram(_) => describe_histogram!(metric.name, metric.help),
        }
    }
}

/// The recorder's counters are whole numbers, so that a fractional one is kept in a gauge; here it
/// gets its true type.
fn with_true_types(text: String) -> String {
    let fractional = METRICS
        .iter()
        .filter(|metric| metric.kind == Kind::FractionalCounter)
        .map(|metric| metric.name);
    fractional
        .chain(["process_cpu_seconds_total"])
        .fold(text, |text, name| {
            text.replacen(
                &format!("# TYPE {name} gauge\n"),
                &format!("# TYPE {name} counter\n"),
                1,
            )
        })
}

/// How many threads decode and infer.
pub fn workers(threads: NonZeroUsize) {
    gauge!(WORKERS).set(threads.get() as f64);
}
