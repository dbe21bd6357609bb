//! The only `unsafe` code of the engine: what CUDA and TensorRT do with pointers, behind types that
//! can't be misused.

#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cudarc::driver::{
    CudaContext, CudaEvent, CudaGraph, CudaSlice, CudaStream, DevicePtrMut, DriverError,
    PinnedHostSlice, sys,
};
use trtx::{CudaEngine, ExecutionContext, Runtime, RuntimeConfig, trtx_sys};

use super::{
    ComputeCapability, KIND,
    compatibility::{CudaVersion, Gpu},
    library,
    pipeline::{Device, DeviceError},
};
use crate::{
    engine::EngineError,
    model::{IMAGES, LOGITS},
};

/// A GPU with its CUDA context, which is the one that TensorRT uses too.
#[derive(Clone)]
pub(super) struct Card {
    pub(super) facts: Gpu,
    context: Arc<CudaContext>,
}

/// The GPUs of these numbers, or all of them.
pub(super) fn cards(wanted: Option<&[usize]>) -> Result<Vec<Card>, EngineError> {
    let unavailable = |reason: String, advice: &str| EngineError::Unavailable {
        kind: KIND,
        reason,
        advice: advice.into(),
    };
    let without = "use --engine openvino to serve on the CPU";
    // SAFETY: loads libcuda.so and unloads it again, which the driver's library supports at any
    // time.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable(
            "there is no NVIDIA driver here (libcuda.so was not found)".into(),
            "install NVIDIA's driver, or start the container with `--gpus all`, or use --engine openvino to serve on the CPU",
        ));
    }
    let count = CudaContext::device_count().map_err(|error| {
        let reason = match error.0 {
            sys::cudaError_enum::CUDA_ERROR_NO_DEVICE => "the NVIDIA driver finds no GPU".into(),
            _ => format!("the NVIDIA driver does not start: {error}"),
        };
        unavailable(reason, without)
    })?;
    let mut number = 0;
    // SAFETY: writes one `int` through the pointer, which is valid for that.
    let driver = unsafe { sys::cuDriverGetVersion(&mut number) }
        .result()
        .map(|()| CudaVersion::from_number(number));
    let all: Vec<usize> = (0..count.max(0) as usize).collect();
    let mut cards = Vec::new();
    for &index in wanted.unwrap_or(&all) {
        if index >= all.len() {
            return Err(unavailable(
                format!("there is no GPU {index}"),
                &format!(
                    "--device takes numbers below {}, the number of GPUs",
                    all.len()
                ),
            ));
        }
        let card = || -> Result<Card, DriverError> {
            let context = CudaContext::new(index)?;
            // SAFETY: every buffer of this module is allocated, used and freed on one stream.
            unsafe { context.disable_event_tracking() };
            let (major, minor) = context.compute_capability()?;
            let (free, memory) = context.mem_get_info()?;
            let facts = Gpu {
                index,
                name: context.name()?,
                capability: ComputeCapability {
                    major: major.unsigned_abs(),
                    minor: minor.unsigned_abs(),
                },
                driver: driver?,
                free: free as u64,
                memory: memory as u64,
            };
            Ok(Card { facts, context })
        };
        cards.push(card().map_err(|error| {
            unavailable(format!("GPU {index} can't be used: {error}"), without)
        })?);
    }
    if cards.is_empty() {
        return Err(unavailable(
            "the NVIDIA driver finds no GPU".into(),
            without,
        ));
    }
    Ok(cards)
}

impl Card {
    /// Makes this the GPU of the calling thread.
    pub(super) fn bind(&self) -> Result<(), EngineError> {
        self.context
            .bind_to_thread()
            .map_err(|error| KIND.failed(error))
    }

    fn error(&self, error: DriverError) -> DeviceError {
        match error.0 {
            sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => {
                DeviceError::OutOfMemory(error.to_string())
            }
            _ if sticks(error) => DeviceError::Lost(error.to_string()),
            _ => self
                .stuck()
                .map_or_else(|| DeviceError::Failed(error.to_string()), DeviceError::Lost),
        }
    }

    /// The error that the context is stuck with. Such an error is reported again by whatever comes
    /// next.
    fn stuck(&self) -> Option<String> {
        self.context
            .mem_get_info()
            .err()
            .filter(|error| sticks(*error))
            .map(|error| error.to_string())
    }

    /// A call of TensorRT failed, which says so without a code.
    fn failure(&self, error: trtx::Error) -> DeviceError {
        let reason = library::take_errors(error);
        if let Some(error) = self.stuck() {
            return DeviceError::Lost(format!("{reason} ({error})"));
        }
        // TensorRT's own allocations are only known from its words.
        let lower = reason.to_ascii_lowercase();
        if lower.contains("out of memory") || lower.contains("outofmemory") {
            return DeviceError::OutOfMemory(reason);
        }
        DeviceError::Failed(reason)
    }
}

/// Whether everything in the process that uses this GPU fails after this error.
fn sticks(error: DriverError) -> bool {
    use sys::cudaError_enum::*;
    matches!(
        error.0,
        CUDA_ERROR_ASSERT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_MPS_CLIENT_TERMINATED
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_UNKNOWN
    )
}

/// A plan on a GPU, which several lanes run.
pub(super) struct Loaded {
    // Dropped from top to bottom: TensorRT wants an engine to go before its runtime.
    engine: Mutex<CudaEngine<'static>>,
    _runtime: Mutex<Runtime<'static>>,
    #[cfg(not(feature = "tensorrt-enterprise"))]
    kernels: Option<Kernels>,
    card: Card,
}

// SAFETY: TensorRT's engine and runtime are not bound to a thread; the mutexes keep calls apart,
// and the CUDA context is bound to the calling thread before each of them.
unsafe impl Send for Loaded {}
// SAFETY: engine and runtime are not reached without their mutexes; CUDA contexts and
// TensorRT-RTX's cache of kernels keep their callers apart by themselves (`trtx` declares the cache
// `Sync` for that reason).
unsafe impl Sync for Loaded {}

/// What TensorRT-RTX compiled for this very GPU, and who keeps it.
#[cfg(not(feature = "tensorrt-enterprise"))]
struct Kernels {
    cache: Arc<trtx::RuntimeCache>,
    keep: Keep,
    kept: Mutex<usize>,
}

#[cfg(not(feature = "tensorrt-enterprise"))]
impl Kernels {
    /// Keeps what has been compiled since the last time.
    fn save(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(blob) = self.cache.serialize()
            && blob.len() != *kept
        {
            (self.keep)(&blob);
            *kept = blob.len();
        }
    }
}

/// Keeps compiled kernels for the next start.
pub(super) type Keep = Box<dyn Fn(&[u8]) + Send + Sync>;

/// Where compiled kernels come from and go to.
pub(super) struct KernelStore {
    pub(super) kept: Option<Vec<u8>>,
    pub(super) keep: Keep,
}

impl Loaded {
    /// Puts a plan on a GPU.
    pub(super) fn new(
        card: &Card,
        plan: &[u8],
        store: KernelStore,
    ) -> Result<Arc<Self>, DeviceError> {
        card.context
            .bind_to_thread()
            .map_err(|error| card.error(error))?;
        library::take_errors("");
        let logger = library::logger().map_err(|error| DeviceError::Failed(error.to_string()))?;
        let mut runtime = Runtime::new(logger).map_err(|error| card.failure(error))?;
        let mut engine = runtime
            .deserialize_cuda_engine(plan)
            .map_err(|error| card.failure(error))?;
        #[cfg(not(feature = "tensorrt-enterprise"))]
        let kernels = {
            let cache = engine
                .create_runtime_config()
                .and_then(|config| config.create_runtime_cache());
            let cache = cache.map_err(|error| card.failure(error))?;
            // What can't be read is compiled again.
            let known = store.kept.filter(|kept| cache.deserialize(kept).is_ok());
            let kept = Mutex::new(known.map_or(0, |kept| kept.len()));
            Some(Kernels {
                cache: Arc::new(cache),
                keep: store.keep,
                kept,
            })
        };
        // The data-centre TensorRT compiles when it builds, so there is nothing more to keep.
        #[cfg(feature = "tensorrt-enterprise")]
        let (_, _, _) = (store.kept, store.keep, &mut engine);
        Ok(Arc::new(Self {
            engine: Mutex::new(engine),
            _runtime: Mutex::new(runtime),
            #[cfg(not(feature = "tensorrt-enterprise"))]
            kernels,
            card: card.clone(),
        }))
    }

    #[cfg(not(feature = "tensorrt-enterprise"))]
    fn configure(&self, config: &mut RuntimeConfig<'static>) -> trtx::Result<()> {
        if let Some(kernels) = &self.kernels {
            config.set_runtime_cache(Arc::clone(&kernels.cache))?;
        }
        // TensorRT-RTX captures a graph for each shape by itself, once its kernels are compiled.
        config.set_cuda_graph_strategy(trtx::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE)
    }

    #[cfg(feature = "tensorrt-enterprise")]
    fn configure(&self, _: &mut RuntimeConfig<'static>) -> trtx::Result<()> {
        Ok(())
    }

    fn save_kernels(&self) {
        #[cfg(not(feature = "tensorrt-enterprise"))]
        self.kernels.iter().for_each(Kernels::save);
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // TensorRT frees its memory in the context of the thread.
        let _ = self.card.context.bind_to_thread();
        self.save_kernels();
    }
}

/// One execution context of a plan, with a stream and buffers of its own.
pub(super) struct Lane {
    // Dropped from top to bottom: graphs use the context, the context uses the buffers and the
    // engine.
    graphs: HashMap<usize, CudaGraph>,
    context: ExecutionContext<'static>,
    scratch: Option<CudaSlice<u8>>,
    images: Option<CudaSlice<u8>>,
    logits: Option<CudaSlice<f32>>,
    host_images: Option<PinnedHostSlice<u8>>,
    host_logits: Option<PinnedHostSlice<f32>>,
    stream: Arc<CudaStream>,
    loaded: Arc<Loaded>,
    shape: [i64; 3],
    classes: usize,
    /// The batch that the context is set up for; 0 = none.
    batch: usize,
}

// SAFETY: an execution context may be used from any thread, by one at a time; `Lane` is not `Clone`
// and every use is through `&mut`. The `Rc` inside is of the runtime configuration that this
// context alone was made with. CUDA's graphs need the same care, and get it.
unsafe impl Send for Lane {}

impl Lane {
    /// A context for images of this shape (height, width, channels) and so many classes. It can't
    /// run before `reserve`.
    pub(super) fn new(
        loaded: &Arc<Loaded>,
        shape: [i64; 3],
        classes: usize,
    ) -> Result<Self, DeviceError> {
        let card = &loaded.card;
        card.context
            .bind_to_thread()
            .map_err(|error| card.error(error))?;
        library::take_errors("");
        let stream = card
            .context
            .new_stream()
            .map_err(|error| card.error(error))?;
        let context = {
            let mut engine = loaded.engine.lock().unwrap_or_else(PoisonError::into_inner);
            let context = engine.create_runtime_config().and_then(|mut config| {
                // So that the memory is for the batches that really come, and that its lack is
                // noticed here.
                config.set_execution_context_allocation_strategy(
                    trtx::ExecutionContextAllocationStrategy::kUSER_MANAGED,
                );
                loaded.configure(&mut config)?;
                engine.create_execution_context_with_config(std::rc::Rc::new(config))
            });
            context.map_err(|error| card.failure(error))?
        };
        Ok(Self {
            graphs: HashMap::new(),
            context,
            scratch: None,
            images: None,
            logits: None,
            host_images: None,
            host_logits: None,
            stream,
            loaded: Arc::clone(loaded),
            shape,
            classes,
            batch: 0,
        })
    }

    fn image_bytes(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }

    fn cuda<T>(&self, result: Result<T, DriverError>) -> Result<T, DeviceError> {
        result.map_err(|error| self.loaded.card.error(error))
    }

    fn trt<T>(&self, result: trtx::Result<T>) -> Result<T, DeviceError> {
        result.map_err(|error| self.loaded.card.failure(error))
    }

    fn set_batch(&mut self, n: usize) -> Result<(), DeviceError> {
        if self.batch != n {
            let [height, width, channels] = self.shape;
            let shape = trtx_sys::Dims64::from_slice(&[n as i64, height, width, channels]);
            self.batch = 0;
            let set = self.context.set_input_shape(IMAGES, &shape);
            self.trt(set)?;
            self.batch = n;
        }
        Ok(())
    }

    /// Queues the network itself.
    fn enqueue(&mut self, n: usize) -> Result<(), DeviceError> {
        self.set_batch(n)?;
        // SAFETY: the stream is alive and of the context in which the engine was loaded, which is
        // bound to this thread. `reserve` gave the context addresses of device memory large enough
        // for every batch up to its own; `run` and `capture` refuse larger ones. The memory is
        // owned by `self` and freed on this same stream.
        let queued = unsafe { self.context.enqueue_v3(self.stream.cu_stream().cast()) };
        self.trt(queued)
    }

    /// How long the device alone takes for `n` images, by CUDA's own clock, averaged over `runs`.
    pub(super) fn device_time(&mut self, n: usize, runs: u32) -> Result<Duration, DeviceError> {
        let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let record =
            |lane: &Self| -> Result<CudaEvent, DriverError> { lane.stream.record_event(timed) };
        let start = self.cuda(record(self))?;
        for _ in 0..runs {
            self.run(n)?;
        }
        let end = self.cuda(record(self))?;
        let elapsed = self.cuda(start.elapsed_ms(&end))?;
        Ok(Duration::from_secs_f64(
            f64::from(elapsed) / 1e3 / f64::from(runs),
        ))
    }

    fn missing() -> DeviceError {
        DeviceError::Failed("no memory was reserved for this batch".into())
    }
}

impl Device for Lane {
    fn reserve(&mut self, n: usize) -> Result<(), DeviceError> {
        let card = self.loaded.card.clone();
        let cuda = |error| card.error(error);
        card.context.bind_to_thread().map_err(cuda)?;
        self.graphs.clear();
        // Given back first: there may be no room for both.
        (
            self.scratch,
            self.images,
            self.logits,
            self.host_images,
            self.host_logits,
        ) = (None, None, None, None, None);
        self.set_batch(n)?;
        let scratch = self.context.update_device_memory_size_for_shapes();
        let (bytes, values) = (n * self.image_bytes(), n * self.classes);
        let mut images = self.stream.alloc_zeros::<u8>(bytes).map_err(cuda)?;
        let mut logits = self.stream.alloc_zeros::<f32>(values).map_err(cuda)?;
        // TensorRT wants an address even where it needs no memory.
        let mut room = self
            .stream
            .alloc_zeros::<u8>(scratch.max(1))
            .map_err(cuda)?;
        // SAFETY: the memory is uninitialised only until the next lines write all of it.
        let (mut host_images, mut host_logits) = unsafe {
            (
                card.context
                    .alloc_pinned_with_flags::<u8>(bytes, 0)
                    .map_err(cuda)?,
                card.context
                    .alloc_pinned_with_flags::<f32>(values, 0)
                    .map_err(cuda)?,
            )
        };
        host_images.as_mut_slice().map_err(cuda)?.fill(0);
        host_logits.as_mut_slice().map_err(cuda)?.fill(0.0);
        self.stream.synchronize().map_err(cuda)?;
        {
            let (images, _images) = images.device_ptr_mut(&self.stream);
            let (logits, _logits) = logits.device_ptr_mut(&self.stream);
            let (room, _room) = room.device_ptr_mut(&self.stream);
            // SAFETY: the three addresses are of device memory of the sizes that TensorRT wants for
            // `n` images. They stay valid while `self` owns the buffers, and a new `reserve` sets
            // new ones before anything runs again.
            let set = unsafe {
                self.context
                    .set_device_memory_v2(room as *mut _, scratch as i64);
                self.context
                    .set_tensor_address(IMAGES, images as *mut _)
                    .and_then(|()| self.context.set_tensor_address(LOGITS, logits as *mut _))
            };
            set.map_err(|error| card.failure(error))?;
        }
        self.scratch = Some(room);
        (self.images, self.logits) = (Some(images), Some(logits));
        (self.host_images, self.host_logits) = (Some(host_images), Some(host_logits));
        Ok(())
    }

    fn upload(&mut self, images: &[u8], n: usize) -> Result<(), DeviceError> {
        let (Some(host), Some(device)) = (&mut self.host_images, &mut self.images) else {
            return Err(Self::missing());
        };
        if images.len() > host.len() || images.len() > device.len() || images.len() < n {
            return Err(Self::missing());
        }
        let copied = (|| {
            // A copy that an earlier call left behind still reads the buffer.
            self.stream.synchronize()?;
            let host = &mut host.as_mut_slice()?[..images.len()];
            host.copy_from_slice(images);
            self.stream.memcpy_htod(&*host, device)
        })();
        self.cuda(copied)
    }

    fn run(&mut self, n: usize) -> Result<(), DeviceError> {
        if self
            .images
            .as_ref()
            .is_none_or(|images| images.len() < n * self.image_bytes())
        {
            return Err(Self::missing());
        }
        let bound = self.loaded.card.context.bind_to_thread();
        self.cuda(bound)?;
        match self.graphs.get(&n) {
            Some(graph) => self.cuda(graph.launch()),
            None => self.enqueue(n),
        }
    }

    fn download(&mut self, n: usize) -> Result<(), DeviceError> {
        let values = n * self.classes;
        let (Some(host), Some(device)) = (&mut self.host_logits, &self.logits) else {
            return Err(Self::missing());
        };
        let Some(device) = device.try_slice(..values) else {
            return Err(Self::missing());
        };
        let copied = host
            .as_mut_slice()
            .and_then(|host| self.stream.memcpy_dtoh(&device, &mut host[..values]));
        self.cuda(copied)
    }

    fn synchronise(&mut self) -> Result<(), DeviceError> {
        self.cuda(self.stream.synchronize())
    }

    fn logits(&self, n: usize) -> Result<&[f32], DeviceError> {
        let Some(host) = &self.host_logits else {
            return Err(Self::missing());
        };
        self.cuda(host.as_slice())?
            .get(..n * self.classes)
            .ok_or_else(Self::missing)
    }

    /// TensorRT-RTX does this by itself (see `configure`).
    #[cfg(not(feature = "tensorrt-enterprise"))]
    fn capture(&mut self, _: usize) -> Result<bool, DeviceError> {
        Ok(false)
    }

    #[cfg(feature = "tensorrt-enterprise")]
    fn capture(&mut self, n: usize) -> Result<bool, DeviceError> {
        if self
            .images
            .as_ref()
            .is_none_or(|images| images.len() < n * self.image_bytes())
        {
            return Err(Self::missing());
        }
        let begun = self
            .stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
        self.cuda(begun)?;
        let queued = {
            let queued = self.set_batch(n);
            // SAFETY: as in `enqueue`.
            queued.map(|()| unsafe { self.context.enqueue_v3(self.stream.cu_stream().cast()) })
        };
        // Capturing ends whatever happened within.
        let graph = self.stream.end_capture(
            sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH,
        );
        self.trt(queued?)?;
        let graph = self.cuda(graph)?;
        Ok(graph.is_some_and(|graph| self.graphs.insert(n, graph).is_none()))
    }

    fn warmed(&mut self) {
        self.loaded.save_kernels();
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // TensorRT and CUDA free memory in the context of the thread, and not under a kernel that
        // runs.
        let _ = self.loaded.card.context.bind_to_thread();
        let _ = self.stream.synchronize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_outlive_their_call_are_told_from_those_that_do_not() {
        use sys::cudaError_enum::*;
        for error in [
            CUDA_ERROR_ILLEGAL_ADDRESS,
            CUDA_ERROR_LAUNCH_FAILED,
            CUDA_ERROR_ECC_UNCORRECTABLE,
        ] {
            assert!(sticks(DriverError(error)), "{error:?}");
        }
        for error in [
            CUDA_ERROR_OUT_OF_MEMORY,
            CUDA_ERROR_INVALID_VALUE,
            CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
        ] {
            assert!(!sticks(DriverError(error)), "{error:?}");
        }
    }
}
