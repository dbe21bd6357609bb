//! A gRPC image-classification server.
//!
//! An image travels `grpc → image → scheduler → engine` and its classes travel back; each module of that name owns one
//! step and knows nothing of the others' insides.

pub mod image;
pub mod model;

/// The messages and services of `proto/resnet18/v1/classifier.proto`.
#[allow(missing_docs)]
pub mod proto {
    tonic::include_proto!("resnet18.v1");

    /// The contract as a serialised `google.protobuf.FileDescriptorSet`, for reflection.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/classifier.bin"));
}
