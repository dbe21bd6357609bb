//! The messages and services of `proto/inference`, the Open Inference Protocol.
#![allow(missing_docs)]

tonic::include_proto!("inference");

#[cfg(feature = "server")]
include!(concat!(env!("OUT_DIR"), "/server/inference.rs"));

/// The protocol as a serialized `google.protobuf.FileDescriptorSet`, for reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"));
