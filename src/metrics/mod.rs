//! What happens, counted and timed for Prometheus: functions that say what happened, and the table
//! of what that means.

mod connections;
mod exporter;
mod guard;
mod labels;
mod model;
mod rate;
mod request;
pub mod statistics;
mod table;

#[cfg(feature = "tensorrt")]
pub(crate) use self::gpu::{engine_built, engine_cache};
pub use self::{
    connections::{ConnectionGuard, ConnectionMetrics},
    exporter::{Exporter, workers},
    guard::RequestGuard,
    labels::{FrameOutcome, Method, Refusal, Rejection},
    model::{ModelMetrics, StreamGuard},
    rate::RateMeter,
    table::{Kind, Label, METRICS, Metric, Presence, markdown},
};

#[cfg(feature = "tensorrt")]
mod gpu;
#[cfg(feature = "tensorrt")]
pub mod nvml;
