//! A plan on a GPU, which several lanes run.

use std::sync::Arc;

use super::{
    binding::{Context, Failure, Kernels, Plan},
    gpu::Gpu,
    kernel_store::KernelStore,
    pipeline::DeviceError,
};
use crate::cache::{ArtifactCache, CacheKey};

/// A plan on a GPU, which several lanes run.
pub(super) struct LoadedPlan {
    plan: Arc<Plan>,
    kernels: Arc<Kernels>,
    store: KernelStore,
    pub(super) gpu: Gpu,
}

impl LoadedPlan {
    /// Puts a plan on a GPU. Kernels that are compiled from it are kept in `cache`, where the plan
    /// itself has this `key`.
    pub(super) fn new(
        gpu: &Gpu,
        plan: &[u8],
        cache: &ArtifactCache,
        key: &CacheKey,
    ) -> Result<Arc<Self>, DeviceError> {
        gpu.context
            .bind_to_thread()
            .map_err(|error| gpu.cuda_error(error))?;
        let failed = |failure| gpu.tensorrt_error(failure);
        let plan = Plan::load(plan).map_err(failed)?;

        let key = CacheKey::new([
            ("kind", "compiled kernels".to_owned()),
            ("plan", key.file_name()),
            ("GPU", gpu.info.name.clone()),
            ("driver", gpu.info.driver.to_string()),
        ]);
        let saved = cache.get(&key).ok();
        let (kernels, was_read) = plan.kernels(saved.as_deref()).map_err(failed)?;
        let saved = saved.filter(|_| was_read);
        Ok(Arc::new(Self {
            kernels: Arc::new(kernels),
            plan: Arc::new(plan),
            store: KernelStore::new(cache.clone(), key, saved.as_deref()),
            gpu: gpu.clone(),
        }))
    }

    /// Creates an execution context without memory for a batch. The GPU must be bound to the
    /// calling thread.
    pub(super) fn execution_context(&self) -> Result<Context, Failure> {
        Plan::context(&self.plan, &self.kernels)
    }

    /// Keeps the kernels that have been compiled so far.
    pub(super) fn save_kernels(&self) {
        if let Some(kernels) = self.kernels.serialize() {
            self.store.save(&kernels);
        }
    }
}

impl Drop for LoadedPlan {
    fn drop(&mut self) {
        // TensorRT frees its memory in the context of the calling thread.
        let _ = self.gpu.context.bind_to_thread();
        self.save_kernels();
    }
}
