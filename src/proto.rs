//! The messages and services of `proto/resnet18/v1`, and the names of gRPC's status codes.
#![allow(missing_docs)]

use tonic::Code;

tonic::include_proto!("resnet18.v1");

/// The contract as a serialized `google.protobuf.FileDescriptorSet`, for reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/classifier.bin"));

impl Image {
    /// An image file (JPEG, PNG, WebP and others), as it is.
    pub fn encoded(file: impl Into<prost::bytes::Bytes>) -> Self {
        Self {
            source: Some(image::Source::Encoded(file.into())),
        }
    }
}

/// A code's name as the gRPC documentation writes it, such as `NOT_FOUND`.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
