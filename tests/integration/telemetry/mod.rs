//! Logging and, with the feature `otlp`, tracing of calls, as a collector receives the spans.

mod calls;
#[cfg(feature = "otlp")]
mod collector;
mod log;
#[cfg(feature = "otlp")]
mod traces;
