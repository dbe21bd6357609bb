//! Metrics for Prometheus: functions that record events, and the table that defines every series.

mod connections;
mod decoder;
mod exemplar;
mod exporter;
mod exposition;
#[cfg(feature = "tensorrt")]
mod gpu;
mod labels;
mod model;
mod openmetrics;
mod plan;
mod rate;
mod removed;
mod request;
pub mod statistics;
mod table;
mod worker;

pub use self::{
    connections::{ConnectionGuard, ConnectionMetrics},
    exporter::{Exporter, Format, workers},
    labels::{Closure, FrameOutcome, Method, Refusal, Rejection, Restart},
    model::{EndedRequest, EngineLabels, ModelMetrics, StreamGuard, request_ended},
    rate::RateMeter,
    table::{Label, METRICS, Metric, MetricKind, Presence, markdown},
};
pub(crate) use self::{
    decoder::{decode_timed_out, decoder_panicked},
    plan::engine_plan,
    worker::worker_restarted,
};
