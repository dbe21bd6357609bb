//! What only the data-centre TensorRT does: it compiles and measures kernels on the GPU when it
//! builds a plan, so there is nothing to select or to keep later.

use trtx::{BuilderConfig, CudaEngine, RuntimeConfig};

use super::{
    ComputeCapability,
    compatibility::{Flavour, GpuInfo},
};
use crate::{
    cache::{ArtifactCache, CacheKey},
    engine::EngineError,
};

/// The flavour that this program is built for.
pub(super) const FLAVOUR: Flavour = Flavour::Enterprise;

/// Whether lanes have to record CUDA graphs themselves.
pub(super) const RECORDS_GRAPHS: bool = true;

/// Does nothing: TensorRT always builds for the GPU on which it measures.
pub(super) fn set_target(_: &mut BuilderConfig, _: ComputeCapability) -> Result<(), EngineError> {
    Ok(())
}

/// Stands in for TensorRT-RTX's compiled kernels.
pub(super) struct CompiledKernels;

impl CompiledKernels {
    pub(super) fn new(
        _: &mut CudaEngine<'static>,
        _: &ArtifactCache,
        _: &CacheKey,
        _: &GpuInfo,
    ) -> trtx::Result<Self> {
        Ok(Self)
    }

    pub(super) fn configure(&self, _: &mut RuntimeConfig<'static>) -> trtx::Result<()> {
        Ok(())
    }

    pub(super) fn save(&self) {}
}
