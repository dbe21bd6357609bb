//! The Open Inference Protocol, version 2, for the clients and load tools of Triton and KServe.
//!
//! A request becomes images (`tensors`), they go through the same queues as those of the
//! `Classifier` service (`infer`), and their logits become tensors again (`answers`).

mod answers;
pub(crate) mod codec;
mod infer;
mod metadata;
mod names;
mod options;
mod parameters;
mod repository;
mod service;
mod statistics;
mod stream;
pub mod tensors;
mod versions;

pub use self::{
    codec::{MessageError, read_request},
    names::Form,
    parameters::WrongParameter,
};
pub(super) use self::{names::SERVICE, service::InferenceService};

use crate::grpc::call::status::CallError;

impl From<tensors::TensorError> for CallError {
    fn from(error: tensors::TensorError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<WrongParameter> for CallError {
    fn from(error: WrongParameter) -> Self {
        Self::Invalid(error.to_string())
    }
}
