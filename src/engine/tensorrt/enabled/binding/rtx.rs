//! What only TensorRT-RTX does: it builds for GPUs that are not present, compiles kernels for the
//! GPU when it runs a plan, and captures CUDA graphs by itself.

use std::ffi::c_void;

use cxx::UniquePtr;
use trtx::{
    BuilderConfig, BuilderFlag, CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy,
    trtx_sys::nvinfer1::{IExecutionContext, IRuntimeCache, IRuntimeConfig},
};

use super::{super::ComputeCapability, Failure, log};

pub(in super::super) use super::super::compatibility::Flavour;

/// The flavour that this program is built for.
pub(in super::super) const FLAVOUR: Flavour = Flavour::Rtx;

/// Whether lanes have to record CUDA graphs themselves; see [`configure`].
pub(in super::super) const RECORDS_GRAPHS: bool = false;

/// Selects the GPUs that a plan is built for.
pub(super) fn set_target(
    config: &mut BuilderConfig,
    target: ComputeCapability,
) -> Result<(), Failure> {
    use trtx::ComputeCapability as Known;

    let known = match target.sm() {
        75 => Known::kSM75,
        80 => Known::kSM80,
        86 => Known::kSM86,
        89 => Known::kSM89,
        120 => Known::kSM120,
        121 => Known::kSM121,
        _ => {
            return Err(Failure(format!(
                "TensorRT-RTX builds nothing for compute capability {target}"
            )));
        }
    };
    config.set_nb_compute_capabilities(1).map_err(Failure::of)?;
    config.set_compute_capability(known, 0).map_err(Failure::of)
}

/// Makes a plan that allocates nothing while it runs, which CUDA graphs require.
pub(super) fn require_user_allocation(config: &mut BuilderConfig) {
    config.set_flag(BuilderFlag::kREQUIRE_USER_ALLOCATION);
}

/// Sets up a new execution context.
pub(super) fn configure(
    config: &mut UniquePtr<IRuntimeConfig>,
    kernels: &Kernels,
) -> Result<(), Failure> {
    let mut config = config.pin_mut();
    if !config.as_mut().setRuntimeCache(&kernels.0) {
        return Err(Failure::of("the compiled kernels were refused"));
    }
    // A kernel is compiled when its batch size runs for the first time, before the call returns.
    // By default, others serve meanwhile: those would be checked, and the compiled ones not.
    config
        .as_mut()
        .setDynamicShapesKernelSpecializationStrategy(
            DynamicShapesKernelSpecializationStrategy::kEAGER.into(),
        );
    // Captures a graph for each shape once its kernels are compiled.
    if !config.setCudaGraphStrategy(CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE.into()) {
        return Err(Failure::of("CUDA graphs were refused"));
    }
    Ok(())
}

/// Whether TensorRT-RTX can capture what would be queued now.
///
/// # Safety
/// The stream must be alive and belong to the context's GPU.
pub(super) unsafe fn is_capturable(
    context: &UniquePtr<IExecutionContext>,
    stream: *mut c_void,
) -> bool {
    log::forget_errors();
    // SAFETY: the caller vouches for the stream.
    unsafe { context.isStreamCapturable(stream.cast()) }
}

/// Kernels that were compiled from a plan for this GPU and driver.
pub(in super::super) struct Kernels(UniquePtr<IRuntimeCache>);

// SAFETY: TensorRT-RTX's cache of kernels synchronises its callers itself (`trtx` declares it `Send`
// and `Sync` for that reason).
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    pub(super) fn new(config: &UniquePtr<IRuntimeConfig>) -> Result<Self, Failure> {
        // SAFETY: TensorRT-RTX returns a new object that the caller owns, or null.
        let cache = unsafe { UniquePtr::from_raw(config.createRuntimeCache()) };
        if cache.is_null() {
            return Err(Failure::of("no cache of kernels could be created"));
        }
        Ok(Self(cache))
    }

    /// Adds kernels that were saved. Returns whether they could be read.
    pub(super) fn deserialize(&self, saved: &[u8]) -> bool {
        // SAFETY: the slice is valid for its length during the call, and TensorRT-RTX copies it.
        unsafe { self.0.deserialize(saved.as_ptr().cast(), saved.len()) }
    }

    /// All kernels that have been compiled so far; `None` if there are none to keep.
    pub(in super::super) fn serialize(&self) -> Option<Vec<u8>> {
        // SAFETY: TensorRT-RTX returns a new object that the caller owns, or null; its memory is
        // valid for its size as long as the object lives.
        unsafe {
            let memory = UniquePtr::from_raw(self.0.serialize());
            let memory = memory.as_ref()?;
            let (data, size) = (memory.data().cast::<u8>().cast_const(), memory.size());
            (!data.is_null() && size > 0).then(|| std::slice::from_raw_parts(data, size).to_vec())
        }
    }
}
