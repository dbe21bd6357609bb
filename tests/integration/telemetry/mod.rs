//! What the server tells of each call: its log, and with the feature `otlp` its traces, as a
//! collector gets them.

mod calls;
#[cfg(feature = "otlp")]
mod collector;
mod log;
#[cfg(feature = "otlp")]
mod traces;
