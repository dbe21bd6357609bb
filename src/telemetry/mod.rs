//! What the server tells of its work beside the metrics: the log, and traces of single calls.
//!
//! A call is told of once, when it has ended: [`trace::Trace`] says who it is, and its spans are
//! made from the times that its answer brings along. So the work itself knows nothing of spans.

pub mod context;
pub mod log;
#[cfg(feature = "otlp")]
mod otlp;
pub mod trace;

use std::{sync::OnceLock, time::Duration};

use self::trace::Span;
use crate::address::ServerAddress;

/// Where traces go.
#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// The collector, which takes OTLP over gRPC.
    pub collector: ServerAddress,
    /// The part of the calls that is traced, 0 to 1, where the caller has not decided.
    pub sampling: f64,
}

/// Whoever sends spans to the collector, once there is one.
static TRACER: OnceLock<Tracer> = OnceLock::new();

struct Tracer {
    sampling: f64,
    #[cfg(feature = "otlp")]
    exporter: otlp::Exporter,
}

/// Sends the spans of all further calls that are sampled to a collector. Needs tokio. Only the
/// first call counts.
///
/// # Errors
/// What is wrong with the configuration. That the collector does not answer is no error; the log
/// says so once.
#[cfg(feature = "otlp")]
pub fn start_tracing(config: &TraceConfig) -> Result<(), String> {
    let tracer = Tracer {
        sampling: config.sampling,
        exporter: otlp::Exporter::start(&config.collector)?,
    };
    let _ = TRACER.set(tracer);
    Ok(())
}

/// Always an error: this program was built without the feature `otlp`.
///
/// # Errors
/// See above.
#[cfg(not(feature = "otlp"))]
pub fn start_tracing(_: &TraceConfig) -> Result<(), String> {
    Err(
        "this program was built without it; build it with `cargo build --release --features otlp`"
            .into(),
    )
}

/// Sends what has not been sent yet, for `limit` at most.
pub async fn flush(limit: Duration) {
    #[cfg(feature = "otlp")]
    if let Some(tracer) = TRACER.get() {
        tracer.exporter.flush(limit).await;
    }
    #[cfg(not(feature = "otlp"))]
    let _ = limit;
}

/// Hands over spans that have ended. Never waits.
fn export(spans: Vec<Span>) {
    #[cfg(feature = "otlp")]
    if let Some(tracer) = TRACER.get() {
        tracer.exporter.export(spans);
    }
    #[cfg(not(feature = "otlp"))]
    drop(spans);
}
