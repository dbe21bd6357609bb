//! A plan on a GPU, which several lanes run.

#![allow(unsafe_code)]

use std::{ffi::c_void, sync::Arc};

use super::{
    binding::{Context, Failure, Kernels, Plan, RECORDS_GRAPHS},
    gpu::Gpu,
    kernel_store::KernelStore,
    network::{Memory, Network},
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

    /// Creates an execution context without memory for a batch.
    pub(super) fn execution(plan: &Arc<Self>) -> Result<Execution, DeviceError> {
        let gpu = &plan.gpu;
        gpu.context
            .bind_to_thread()
            .map_err(|error| gpu.cuda_error(error))?;
        let context = Plan::context(&plan.plan, &plan.kernels)
            .map_err(|failure| gpu.tensorrt_error(failure))?;
        Ok(Execution {
            context,
            plan: Arc::clone(plan),
        })
    }

    /// Keeps the kernels that have been compiled so far.
    fn save_kernels(&self) {
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

/// One execution context of a plan.
pub(super) struct Execution {
    // Dropped from top to bottom: the context uses the engine.
    context: Context,
    plan: Arc<LoadedPlan>,
}

impl Network for Execution {
    const RECORDED_BY_LANE: bool = RECORDS_GRAPHS;

    fn set_images(&mut self, shape: [i64; 4]) -> Result<(), Failure> {
        self.context.set_images(shape)
    }

    fn scratch_size(&mut self) -> Result<usize, Failure> {
        self.context.scratch_size()
    }

    unsafe fn set_memory(&mut self, memory: Memory) -> Result<(), Failure> {
        // SAFETY: the caller vouches for the addresses.
        unsafe { self.context.set_memory(memory) }
    }

    unsafe fn enqueue(&mut self, stream: *mut c_void) -> Result<(), Failure> {
        // SAFETY: the caller vouches for the stream and has set shape and memory.
        unsafe { self.context.enqueue(stream) }
    }

    unsafe fn is_capturable(&self, stream: *mut c_void) -> bool {
        // SAFETY: as above.
        unsafe { self.context.is_capturable(stream) }
    }

    fn save_kernels(&self) {
        self.plan.save_kernels();
    }
}
