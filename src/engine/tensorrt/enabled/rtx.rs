//! What only TensorRT-RTX does: it builds for GPUs that are not present, compiles kernels for the
//! GPU when it loads a plan, and captures CUDA graphs by itself.

use std::sync::{Arc, Mutex};

use trtx::{BuilderConfig, CudaEngine, CudaGraphStrategy, RuntimeCache, RuntimeConfig};

use super::{
    ComputeCapability, KIND,
    compatibility::{Flavour, GpuInfo},
    library,
};
use crate::{
    cache::{ArtifactCache, CacheKey},
    engine::EngineError,
    sync::lock,
};

/// The flavour that this program is built for.
pub(super) const FLAVOUR: Flavour = Flavour::Rtx;

/// Whether lanes have to record CUDA graphs themselves; see [`CompiledKernels::configure`].
pub(super) const RECORDS_GRAPHS: bool = false;

/// Selects the GPUs that a plan is built for.
pub(super) fn set_target(
    config: &mut BuilderConfig,
    target: ComputeCapability,
) -> Result<(), EngineError> {
    use trtx::ComputeCapability as Known;

    let known = match target.sm() {
        75 => Known::kSM75,
        80 => Known::kSM80,
        86 => Known::kSM86,
        89 => Known::kSM89,
        120 => Known::kSM120,
        121 => Known::kSM121,
        _ => {
            return Err(EngineError::Unavailable {
                kind: KIND,
                reason: format!("TensorRT-RTX builds nothing for compute capability {target}"),
                advice: "it knows 75, 80, 86, 89, 120 and 121; other GPUs need the feature \
                         tensorrt-enterprise"
                    .into(),
            });
        }
    };
    let failed = |error: trtx::Error| KIND.failed(library::take_errors(error));
    config.set_nb_compute_capabilities(1).map_err(failed)?;
    config.set_compute_capability(known, 0).map_err(failed)
}

/// Kernels that were compiled from a plan for this GPU and driver, and where they are kept.
pub(super) struct CompiledKernels {
    kernels: Arc<RuntimeCache>,
    cache: ArtifactCache,
    key: CacheKey,
    /// Size of the kernels that were saved last, in bytes.
    saved_len: Mutex<usize>,
}

impl CompiledKernels {
    /// Loads the kernels that an earlier process compiled and kept in `cache`, if any.
    pub(super) fn new(
        engine: &mut CudaEngine<'static>,
        cache: &ArtifactCache,
        plan: &CacheKey,
        gpu: &GpuInfo,
    ) -> trtx::Result<Self> {
        let kernels = engine.create_runtime_config()?.create_runtime_cache()?;
        let key = CacheKey::new([
            ("kind", "compiled kernels".to_owned()),
            ("plan", plan.file_name()),
            ("GPU", gpu.name.clone()),
            ("driver", gpu.driver.to_string()),
        ]);

        // Kernels that can't be read are compiled again.
        let saved_len = match cache.get(&key) {
            Ok(saved) if kernels.deserialize(&saved).is_ok() => saved.len(),
            _ => 0,
        };
        Ok(Self {
            kernels: Arc::new(kernels),
            cache: cache.clone(),
            key,
            saved_len: Mutex::new(saved_len),
        })
    }

    /// Sets up a new execution context.
    pub(super) fn configure(&self, config: &mut RuntimeConfig<'static>) -> trtx::Result<()> {
        config.set_runtime_cache(Arc::clone(&self.kernels))?;
        // Captures a graph for each shape once its kernels are compiled.
        config.set_cuda_graph_strategy(CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE)
    }

    /// Saves the kernels if more have been compiled since the last time.
    pub(super) fn save(&self) {
        let mut saved_len = lock(&self.saved_len);
        if let Ok(kernels) = self.kernels.serialize()
            && kernels.len() != *saved_len
        {
            self.cache.put(&self.key, &kernels);
            *saved_len = kernels.len();
        }
    }
}
