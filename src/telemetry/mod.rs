//! Logging and tracing of single calls, beside the metrics.
//!
//! A call is reported once, when it has ended: [`trace::Trace`] identifies it, and its spans are
//! built afterwards from the times that its answer carries. The code that does the work therefore
//! knows nothing about spans.
//!
//! Spans and their exporter exist only with the feature `otlp`; without it `otlp_disabled.rs`
//! stands in for them, so that the callers need no conditions of their own.

pub mod context;
pub mod log;
#[cfg_attr(not(feature = "otlp"), path = "otlp_disabled.rs")]
mod otlp;
mod period;
pub mod summary;
pub mod trace;

use std::{sync::OnceLock, time::Duration};

use self::otlp::{Exporter, Span};
use crate::address::ServerAddress;

/// Where traces are sent, and which calls are traced.
#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// The collector's address; it must accept OTLP over gRPC.
    pub collector: ServerAddress,
    /// The fraction of calls that is traced, 0 to 1, unless the caller's `traceparent` decides.
    pub sampling: f64,
}

/// Set once by [`start_tracing`].
static TRACER: OnceLock<Tracer> = OnceLock::new();

struct Tracer {
    sampling: f64,
    exporter: Exporter,
}

/// Starts to send the spans of all sampled calls to a collector. Must be called within a tokio
/// runtime. Only the first call has an effect.
///
/// # Errors
/// What is wrong with the configuration, or that the program was built without the feature `otlp`.
/// An unreachable collector is not an error: the log reports it once.
pub fn start_tracing(config: &TraceConfig) -> Result<(), String> {
    let tracer = Tracer {
        sampling: config.sampling,
        exporter: Exporter::start(&config.collector)?,
    };

    let _ = TRACER.set(tracer);
    Ok(())
}

/// Sends the spans that still wait, for at most `limit`, writes the rest of the log, and ends both.
pub async fn flush(limit: Duration) {
    if let Some(tracer) = TRACER.get() {
        tracer.exporter.flush(limit).await;
    }
    log::flush();
}

/// Passes finished spans to the exporter. Never blocks.
fn export(spans: Vec<Span>) {
    if let Some(tracer) = TRACER.get() {
        tracer.exporter.export(spans);
    }
}
