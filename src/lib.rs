//! A gRPC image-classification server.
//!
//! An image travels `grpc → image → scheduler → engine`, its logits travel back through `answer` to `grpc`; each module
//! owns one step and knows nothing of the others' insides.

// The public crate.
pub mod client;
pub mod inference;
pub mod proto;
pub mod server;

// Reachable for the program, its tests, benches and fuzz targets; no part of the public crate.
#[doc(hidden)]
pub mod answer;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod engine;
#[doc(hidden)]
pub mod grpc;
#[doc(hidden)]
pub mod image;
#[doc(hidden)]
pub mod metrics;
#[doc(hidden)]
pub mod model;
#[doc(hidden)]
pub mod offline;
#[doc(hidden)]
pub mod state;

mod address;
mod cache;
mod http;
mod quantization;
mod registry;
mod scheduler;
mod sync;
mod telemetry;
#[cfg(test)]
mod testing;
mod watch;

/// The README's Rust code, compiled as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
