//! Sends spans to an OpenTelemetry collector, with the SDK's batch processor: a bounded queue,
//! emptied by a thread of its own.

mod span;

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::WithTonicConfig;
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter, SpanProcessor as _},
};
use tonic::transport::ClientTlsConfig;

use self::span::Clock;
pub use self::span::Span;
use crate::address::ServerAddress;

/// The most spans that wait, about a thousand calls' worth. Spans that arrive while the queue is
/// full are dropped; the SDK counts them, and logs the first one and at the end their number.
const QUEUE: usize = 4096;
/// The most spans in one request to the collector.
const BATCH: usize = 512;
/// Spans wait no longer than this for a batch to fill.
const INTERVAL: Duration = Duration::from_secs(2);
/// A request that the collector does not answer within this time has failed.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A collector that does not accept a connection within this time is treated as down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Exporter {
    processor: Arc<BatchSpanProcessor>,
    scope: InstrumentationScope,
}

impl Exporter {
    /// Starts to send to `collector`. Must be called within a tokio runtime.
    pub fn start(collector: &ServerAddress) -> Result<Self, String> {
        let reporter = FailureReporter {
            exporter: otlp_exporter(collector)?,
            collector: collector.to_string(),
            lost: AtomicU64::new(0),
        };
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(INTERVAL)
            .build();

        Ok(Self {
            processor: Arc::new(BatchSpanProcessor::new(reporter, config)),
            scope: InstrumentationScope::builder(env!("CARGO_PKG_NAME"))
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
        })
    }

    /// Queues spans of one call, or drops them where the queue is full. Never blocks.
    pub fn export(&self, spans: Vec<Span>) {
        let clock = Clock::now();
        for span in spans {
            self.processor
                .on_end(span.into_data(clock, self.scope.clone()));
        }
    }

    /// Sends the queued spans, for at most `limit`, and stops.
    pub async fn flush(&self, limit: Duration) {
        let processor = Arc::clone(&self.processor);
        let shutdown = tokio::task::spawn_blocking(move || processor.shutdown_with_timeout(limit));

        // Other errors have been logged by the reporter.
        if let Ok(Err(OTelSdkError::Timeout(_))) = shutdown.await {
            tracing::warn!("some traces were not sent: the collector takes longer than {limit:?}");
        }
    }
}

fn otlp_exporter(collector: &ServerAddress) -> Result<opentelemetry_otlp::SpanExporter, String> {
    let mut endpoint = collector
        .endpoint()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT);
    if collector.uses_tls() {
        let roots = ClientTlsConfig::new().with_native_roots();
        endpoint = endpoint
            .tls_config(roots)
            .map_err(|error| error.to_string())?;
    }

    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_channel(endpoint.connect_lazy())
        .build()
        .map_err(|error| error.to_string())?;
    exporter.set_resource(&resource());
    Ok(exporter)
}

/// Identifies this program, as `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say, else as
/// `resnet18`.
fn resource() -> Resource {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let is_named = !variable("OTEL_SERVICE_NAME").is_empty()
        || variable("OTEL_RESOURCE_ATTRIBUTES").contains("service.name=");

    let resource = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if is_named {
        resource.build()
    } else {
        resource.with_service_name("resnet18").build()
    }
}

/// Logs when the collector begins to refuse spans and when it accepts them again, not each batch
/// that fails.
#[derive(Debug)]
struct FailureReporter<E> {
    exporter: E,
    collector: String,
    /// Spans that were lost since the last success.
    lost: AtomicU64,
}

impl<E: SpanExporter> SpanExporter for FailureReporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let collector = &self.collector;

        match self.exporter.export(batch).await {
            Ok(()) => {
                let lost = self.lost.swap(0, Relaxed);
                if lost > 0 {
                    tracing::info!(
                        "the collector at {collector} accepts traces again; {lost} spans were lost"
                    );
                }
            }
            Err(error) => {
                if self.lost.fetch_add(spans, Relaxed) == 0 {
                    tracing::warn!(
                        "the collector at {collector} takes no traces; \
                         requests are served without them: {error}"
                    );
                }
            }
        }

        // The processor would log every error.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }
}
