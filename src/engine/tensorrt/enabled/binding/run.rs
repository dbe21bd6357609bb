//! Running plans: TensorRT's runtime with an engine, its execution contexts, and the kernels that
//! are compiled from it.

use std::{
    ffi::{CString, c_void},
    sync::{Arc, Mutex},
};

use cxx::UniquePtr;
use trtx::{
    ExecutionContextAllocationStrategy,
    trtx_sys::{
        self, Dims64,
        nvinfer1::{ICudaEngine, IExecutionContext, IRuntime, IRuntimeConfig},
    },
};

pub(in super::super) use super::flavour::Kernels;
use super::{super::network::Memory, Failure, RUNTIME, flavour, log};
use crate::{
    model::{IMAGES, LOGITS},
    sync::lock,
};

/// A plan that was put on the GPU of the thread that loaded it.
pub(in super::super) struct Plan {
    // Dropped from top to bottom: TensorRT requires that an engine is dropped before its runtime.
    engine: Mutex<UniquePtr<ICudaEngine>>,
    /// Only kept.
    _runtime: Mutex<UniquePtr<IRuntime>>,
}

// SAFETY: TensorRT's engine and runtime are not bound to a thread; callers bind the GPU's CUDA
// context to theirs before each call.
unsafe impl Send for Plan {}
// SAFETY: engine and runtime are not reached without their mutexes.
unsafe impl Sync for Plan {}

impl Plan {
    /// Puts a plan on the GPU that is bound to the calling thread.
    pub(in super::super) fn load(plan: &[u8]) -> Result<Self, Failure> {
        log::forget_errors();
        let mut runtime = create_runtime()?;
        // SAFETY: the slice is valid for its length during the call, and TensorRT copies it.
        let engine = unsafe {
            UniquePtr::from_raw(
                runtime
                    .pin_mut()
                    .deserializeCudaEngine(plan.as_ptr().cast(), plan.len()),
            )
        };
        if engine.is_null() {
            return Err(Failure::of("the plan can't be put on the GPU"));
        }
        Ok(Self {
            engine: Mutex::new(engine),
            _runtime: Mutex::new(runtime),
        })
    }

    /// An empty collection of compiled kernels for this plan, filled with those that were `saved`
    /// by an earlier process. Kernels that can't be read are compiled again: the second value says
    /// whether they were read.
    pub(in super::super) fn kernels(
        &self,
        saved: Option<&[u8]>,
    ) -> Result<(Kernels, bool), Failure> {
        log::forget_errors();
        let config = runtime_config(&mut lock(&self.engine))?;
        let kernels = Kernels::new(&config)?;
        let was_read = saved.is_some_and(|saved| kernels.deserialize(saved));
        log::forget_errors();
        Ok((kernels, was_read))
    }

    /// Creates an execution context without memory. The GPU must be bound to the calling thread,
    /// and the plan has to outlive the context.
    pub(in super::super) fn context(
        plan: &Arc<Self>,
        kernels: &Arc<Kernels>,
    ) -> Result<Context, Failure> {
        log::forget_errors();
        let mut engine = lock(&plan.engine);
        let mut config = runtime_config(&mut engine)?;
        // The lane allocates memory for the batches that it really gets, and notices there if
        // there is too little. With memory of TensorRT's own, graphs could not be captured.
        config.pin_mut().setExecutionContextAllocationStrategy(
            ExecutionContextAllocationStrategy::kUSER_MANAGED.into(),
        );
        flavour::configure(&mut config, kernels)?;
        // SAFETY: the configuration is alive, and `Context` keeps it as long as the context.
        let context = unsafe {
            UniquePtr::from_raw(
                engine
                    .pin_mut()
                    .createExecutionContext1(config.as_mut_ptr()),
            )
        };
        if context.is_null() {
            return Err(Failure::of("no execution context could be created"));
        }
        Ok(Context {
            context,
            _config: config,
            _kernels: Arc::clone(kernels),
            _plan: Arc::clone(plan),
        })
    }
}

fn create_runtime() -> Result<UniquePtr<IRuntime>, Failure> {
    let logger = log::interface()?;
    let library = RUNTIME
        .get()
        .ok_or_else(|| Failure("TensorRT is not loaded".into()))?;
    // SAFETY: `NvInferRuntime.h` declares this function with these types; the version is that of
    // the headers, and the logger lives until the process ends.
    let runtime = unsafe {
        let create = library
            .get::<unsafe extern "C" fn(*mut c_void, i32) -> *mut c_void>(
                b"createInferRuntime_INTERNAL",
            )
            .map_err(|error| Failure(super::reason(error)))?;
        let runtime = create(logger, trtx_sys::get_tensorrt_version() as i32);
        UniquePtr::from_raw(runtime.cast::<IRuntime>())
    };
    if runtime.is_null() {
        return Err(Failure::of("TensorRT's runtime does not start"));
    }
    Ok(runtime)
}

fn runtime_config(
    engine: &mut UniquePtr<ICudaEngine>,
) -> Result<UniquePtr<IRuntimeConfig>, Failure> {
    // SAFETY: TensorRT returns a new object that the caller owns, or null.
    let config = unsafe { UniquePtr::from_raw(engine.pin_mut().createRuntimeConfig()) };
    if config.is_null() {
        return Err(Failure::of("no runtime configuration could be created"));
    }
    Ok(config)
}

/// An execution context: one run of the plan at a time.
pub(in super::super) struct Context {
    // Dropped from top to bottom: the context uses all that follows.
    context: UniquePtr<IExecutionContext>,
    _config: UniquePtr<IRuntimeConfig>,
    _plan: Arc<Plan>,
    _kernels: Arc<Kernels>,
}

// SAFETY: an execution context may be used from any thread, by one at a time: it is not `Clone`, and
// what runs takes `&mut`. The configuration is only kept.
unsafe impl Send for Context {}

impl Context {
    /// Sets the shape of the images: batch, height, width, channels.
    pub(in super::super) fn set_images(&mut self, shape: [i64; 4]) -> Result<(), Failure> {
        log::forget_errors();
        let name = tensor(IMAGES);
        let dims = Dims64::from_slice(&shape);
        // SAFETY: the name ends with a zero, and both are alive during the call.
        let set = unsafe { self.context.pin_mut().setInputShape(name.as_ptr(), &dims) };
        if set {
            Ok(())
        } else {
            Err(Failure::of("the batch size was refused"))
        }
    }

    /// The memory that TensorRT needs for the current shape, in bytes.
    pub(in super::super) fn scratch_size(&mut self) -> Result<usize, Failure> {
        log::forget_errors();
        let size = self.context.pin_mut().updateDeviceMemorySizeForShapes();
        scratch_size(size, log::take_errors())
    }

    /// Says where the memory is.
    ///
    /// # Safety
    /// The addresses must be of device memory of the current GPU, as large as the current shape
    /// needs, and stay valid until other ones are set or the context is dropped.
    pub(in super::super) unsafe fn set_memory(&mut self, memory: Memory) -> Result<(), Failure> {
        log::forget_errors();
        let (images, logits) = (tensor(IMAGES), tensor(LOGITS));
        let (scratch, size) = memory.scratch;
        // SAFETY: the caller vouches for the addresses; the names end with a zero.
        let set = unsafe {
            let mut context = self.context.pin_mut();
            context
                .as_mut()
                .setDeviceMemoryV2(scratch as *mut _, size as i64);
            context
                .as_mut()
                .setTensorAddress(images.as_ptr(), memory.images as *mut _)
                && context.setTensorAddress(logits.as_ptr(), memory.logits as *mut _)
        };
        if set {
            Ok(())
        } else {
            Err(Failure::of("the memory was refused"))
        }
    }

    /// Queues the network on a stream.
    ///
    /// # Safety
    /// The stream must be alive and belong to the plan's GPU, which must be bound to the calling
    /// thread; shape and memory must have been set.
    pub(in super::super) unsafe fn enqueue(&mut self, stream: *mut c_void) -> Result<(), Failure> {
        log::forget_errors();
        // SAFETY: the caller vouches for the stream.
        let queued = unsafe { self.context.pin_mut().enqueueV3(stream.cast()) };
        if queued {
            Ok(())
        } else {
            Err(Failure::of("the network could not be queued"))
        }
    }

    /// Whether the network for the current shape can be captured as a CUDA graph.
    ///
    /// # Safety
    /// As for [`enqueue`](Self::enqueue).
    pub(in super::super) unsafe fn is_capturable(&self, stream: *mut c_void) -> bool {
        // SAFETY: the caller vouches for the stream.
        unsafe { flavour::is_capturable(&self.context, stream) }
    }
}

fn tensor(name: &str) -> CString {
    CString::new(name).expect("the serving graph's names contain no zero")
}

/// TensorRT returns 0 both for a network that needs no memory and for an error, which it logs.
fn scratch_size(size: usize, errors: Option<String>) -> Result<usize, Failure> {
    match errors {
        Some(errors) if size == 0 => Err(Failure(errors)),
        _ => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::testing::skipped;

    #[test]
    fn no_scratch_memory_is_told_from_an_error() {
        assert_eq!(scratch_size(4096, None), Ok(4096));
        assert_eq!(scratch_size(0, None), Ok(0));
        let failed = Failure("shapes are not set".into());
        assert_eq!(
            scratch_size(0, Some("shapes are not set".into())),
            Err(failed)
        );
        assert_eq!(scratch_size(4096, Some("only a warning".into())), Ok(4096));
    }

    #[test]
    fn the_real_runtime_starts_and_refuses_what_is_not_a_plan() {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(".runtime/tensorrt-rtx/tensorrt_rtx_libs");
        let library = folder.join("libtensorrt_rtx.so.1");
        if !library.exists() || cfg!(feature = "tensorrt-enterprise") {
            skipped("there is no TensorRT-RTX; `make tensorrt` fetches it");
            return;
        }
        super::super::load_runtime(&library).unwrap();
        let error = Plan::load(&[1; 1000]).err().unwrap().to_string();
        assert!(error.contains("deserializeCudaEngine"), "{error}");
        assert_eq!(log::take_errors(), None, "each error is told once");
    }
}
