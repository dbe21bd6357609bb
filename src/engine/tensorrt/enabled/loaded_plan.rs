//! A plan on a GPU, which several lanes run.

#![allow(unsafe_code)]

use std::{
    rc::Rc,
    sync::{Arc, Mutex},
};

use trtx::{
    CudaEngine, ExecutionContext, ExecutionContextAllocationStrategy, Runtime, RuntimeConfig,
};

use super::{flavour::CompiledKernels, gpu::Gpu, library, pipeline::DeviceError};
use crate::{
    cache::{ArtifactCache, CacheKey},
    sync::lock,
};

/// A plan on a GPU, which several lanes run.
pub(super) struct LoadedPlan {
    // Dropped from top to bottom: TensorRT requires that an engine is dropped before its runtime.
    engine: Mutex<CudaEngine<'static>>,
    _runtime: Mutex<Runtime<'static>>,
    kernels: CompiledKernels,
    pub(super) gpu: Gpu,
}

// SAFETY: TensorRT's engine and runtime are not bound to a thread; the mutexes keep calls apart,
// and the CUDA context is bound to the calling thread before each of them.
unsafe impl Send for LoadedPlan {}
// SAFETY: engine and runtime are not reached without their mutexes; CUDA contexts and
// TensorRT-RTX's cache of kernels synchronise their callers themselves (`trtx` declares the cache
// `Sync` for that reason).
unsafe impl Sync for LoadedPlan {}

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
        // Discards errors of earlier calls, which would otherwise be reported for this one.
        library::take_errors("");
        let logger = library::logger().map_err(|error| DeviceError::Failed(error.to_string()))?;

        let mut runtime = Runtime::new(logger).map_err(|error| gpu.tensorrt_error(error))?;
        let mut engine = runtime
            .deserialize_cuda_engine(plan)
            .map_err(|error| gpu.tensorrt_error(error))?;
        let kernels = CompiledKernels::new(&mut engine, cache, key, &gpu.info)
            .map_err(|error| gpu.tensorrt_error(error))?;
        Ok(Arc::new(Self {
            engine: Mutex::new(engine),
            _runtime: Mutex::new(runtime),
            kernels,
            gpu: gpu.clone(),
        }))
    }

    /// Creates an execution context without memory for a batch. The GPU must be bound to the
    /// calling thread.
    pub(super) fn execution_context(&self) -> trtx::Result<ExecutionContext<'static>> {
        let mut engine = lock(&self.engine);
        let mut config: RuntimeConfig<'static> = engine.create_runtime_config()?;
        // The lane allocates memory for the batches that it really gets, and notices there if
        // there is too little.
        config.set_execution_context_allocation_strategy(
            ExecutionContextAllocationStrategy::kUSER_MANAGED,
        );
        self.kernels.configure(&mut config)?;
        engine.create_execution_context_with_config(Rc::new(config))
    }

    /// Keeps the kernels that have been compiled so far.
    pub(super) fn save_kernels(&self) {
        self.kernels.save();
    }
}

impl Drop for LoadedPlan {
    fn drop(&mut self) {
        // TensorRT frees its memory in the context of the calling thread.
        let _ = self.gpu.context.bind_to_thread();
        self.save_kernels();
    }
}
