//! A gRPC image-classification server.
//!
//! An image travels `grpc → image → scheduler → engine`, its logits travel back through `answer` to
//! `grpc`; each module owns one step and knows nothing of the others' insides.

pub mod answer;
pub mod cli;
pub mod client;
pub mod code;
pub mod dataset;
pub mod engine;
pub mod evaluation;
#[cfg(feature = "tensorrt")]
pub mod gpu;
pub mod grpc;
pub mod http;
pub mod image;
pub mod loader;
pub mod metrics;
pub mod model;
pub mod monitor;
pub mod offline;
pub mod quantization;
pub mod registry;
pub mod scheduler;
pub mod server;
pub mod state;
pub mod statistics;
pub mod telemetry;
pub mod watch;

#[cfg(test)]
mod testing;
pub mod training;

/// The messages and services of `proto/resnet18/v1/classifier.proto`.
#[allow(missing_docs)]
pub mod proto {
    tonic::include_proto!("resnet18.v1");

    /// The contract as a serialised `google.protobuf.FileDescriptorSet`, for reflection.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/classifier.bin"));
}

/// The messages and services of `proto/inference`, the Open Inference Protocol.
#[allow(missing_docs)]
pub mod inference {
    tonic::include_proto!("inference");

    /// The protocol as a serialised `google.protobuf.FileDescriptorSet`, for reflection.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"));
}

/// The README's Rust code, compiled as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
