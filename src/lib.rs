//! A gRPC image-classification server.
//!
//! An image travels `grpc → image → scheduler → engine`, its logits travel back through `answer` to `grpc`; each module
//! owns one step and knows nothing of the others' insides.

pub mod address;
pub mod answer;
pub mod cache;
pub mod cli;
pub mod client;
pub mod engine;
pub mod grpc;
pub mod http;
pub mod image;
pub mod inference;
pub mod metrics;
pub mod model;
pub mod offline;
pub mod proto;
pub mod quantization;
pub mod registry;
pub mod scheduler;
pub mod server;
pub mod state;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod watch;

/// The README's Rust code, compiled as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
