//! What only the data-centre TensorRT does: it compiles and measures kernels on the GPU when it
//! builds a plan, so there is nothing to select or to keep later.

use std::ffi::c_void;

use cxx::UniquePtr;
use trtx::{
    BuilderConfig,
    trtx_sys::nvinfer1::{IExecutionContext, IRuntimeConfig},
};

use super::{super::ComputeCapability, Failure};

pub(in super::super) use super::super::compatibility::Flavour;

/// The flavour that this program is built for.
pub(in super::super) const FLAVOUR: Flavour = Flavour::Enterprise;

/// Whether lanes have to record CUDA graphs themselves.
pub(in super::super) const RECORDS_GRAPHS: bool = true;

/// Does nothing: TensorRT always builds for the GPU on which it measures.
pub(super) fn set_target(_: &mut BuilderConfig, _: ComputeCapability) -> Result<(), Failure> {
    Ok(())
}

/// Does nothing: this TensorRT has no such flag. Its execution contexts get their memory from us in
/// any case.
pub(super) fn require_user_allocation(_: &mut BuilderConfig) {}

/// Does nothing.
pub(super) fn configure(_: &mut UniquePtr<IRuntimeConfig>, _: &Kernels) -> Result<(), Failure> {
    Ok(())
}

/// This TensorRT does not tell: whether the network can be captured shows when it is.
///
/// # Safety
/// None; the signature is TensorRT-RTX's.
pub(super) unsafe fn is_capturable(_: &UniquePtr<IExecutionContext>, _: *mut c_void) -> bool {
    true
}

/// Stands in for TensorRT-RTX's compiled kernels.
pub(in super::super) struct Kernels;

impl Kernels {
    pub(super) fn new(_: &UniquePtr<IRuntimeConfig>) -> Result<Self, Failure> {
        Ok(Self)
    }

    pub(super) fn deserialize(&self, _: &[u8]) -> bool {
        false
    }

    pub(in super::super) fn serialize(&self) -> Option<Vec<u8>> {
        None
    }
}
