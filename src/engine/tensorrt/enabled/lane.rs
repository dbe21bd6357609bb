//! One execution context of a plan on a GPU, with its CUDA stream and buffers.

#![allow(unsafe_code)]

use std::{collections::HashMap, sync::Arc, time::Duration};

use cudarc::driver::{
    CudaEvent, CudaGraph, CudaSlice, CudaStream, DevicePtrMut, DriverError, PinnedHostSlice, sys,
};

use super::{
    binding::{Context, Failure, Memory, RECORDS_GRAPHS},
    loaded_plan::LoadedPlan,
    pipeline::{Device, DeviceError},
};

/// Memory for batches up to a certain size.
struct Buffers {
    /// TensorRT's own memory; only the execution context uses it.
    scratch: CudaSlice<u8>,
    images: CudaSlice<u8>,
    logits: CudaSlice<f32>,
    host_images: PinnedHostSlice<u8>,
    host_logits: PinnedHostSlice<f32>,
}

/// One execution context of a plan, with its stream and buffers.
pub(super) struct GpuLane {
    // Dropped from top to bottom: graphs use the context, the context uses the buffers and the
    // engine.
    graphs: HashMap<usize, CudaGraph>,
    context: Context,
    /// `None` before `reserve`, and after it failed.
    buffers: Option<Buffers>,
    /// Recorded behind what was queued, to wait for it without a thread that spins: cores are there
    /// to decode.
    finished: CudaEvent,
    stream: Arc<CudaStream>,
    plan: Arc<LoadedPlan>,
    /// Height, width, channels.
    image_shape: [i64; 3],
    classes: usize,
    /// The batch size that the context is set up for, if any.
    batch: Option<usize>,
}

// SAFETY: CUDA's graphs may be used from any thread, by one at a time; `GpuLane` is not `Clone` and
// every use of them is through `&mut`.
unsafe impl Send for GpuLane {}

impl GpuLane {
    /// Creates a context for images of this shape (height, width, channels). It can't run before
    /// [`Device::reserve`].
    pub(super) fn new(
        plan: &Arc<LoadedPlan>,
        image_shape: [i64; 3],
        classes: usize,
    ) -> Result<Self, DeviceError> {
        let gpu = &plan.gpu;
        gpu.context
            .bind_to_thread()
            .map_err(|error| gpu.cuda_error(error))?;
        let stream = gpu
            .context
            .new_stream()
            .map_err(|error| gpu.cuda_error(error))?;
        let finished = gpu
            .context
            .new_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC))
            .map_err(|error| gpu.cuda_error(error))?;
        let context = plan
            .execution_context()
            .map_err(|error| gpu.tensorrt_error(error))?;
        Ok(Self {
            graphs: HashMap::new(),
            context,
            buffers: None,
            finished,
            stream,
            plan: Arc::clone(plan),
            image_shape,
            classes,
            batch: None,
        })
    }

    /// Bytes of one image.
    fn image_len(&self) -> usize {
        self.image_shape.iter().product::<i64>() as usize
    }

    fn cuda<T>(&self, result: Result<T, DriverError>) -> Result<T, DeviceError> {
        result.map_err(|error| self.plan.gpu.cuda_error(error))
    }

    fn tensorrt<T>(&self, result: Result<T, Failure>) -> Result<T, DeviceError> {
        result.map_err(|failure| self.plan.gpu.tensorrt_error(failure))
    }

    fn bind(&self) -> Result<(), DeviceError> {
        self.cuda(self.plan.gpu.context.bind_to_thread())
    }

    fn set_batch(&mut self, n: usize) -> Result<(), DeviceError> {
        if self.batch == Some(n) {
            return Ok(());
        }
        let [height, width, channels] = self.image_shape;
        self.batch = None;
        let set = self.context.set_images([n as i64, height, width, channels]);
        self.tensorrt(set)?;
        self.batch = Some(n);
        Ok(())
    }

    /// Allocates memory for batches of up to `n` images, of which `scratch` bytes are TensorRT's.
    fn allocate(&self, n: usize, scratch: usize) -> Result<Buffers, DriverError> {
        let image_bytes = n * self.image_len();
        let logit_count = n * self.classes;
        let images = self.stream.alloc_zeros::<u8>(image_bytes)?;
        let logits = self.stream.alloc_zeros::<f32>(logit_count)?;
        // TensorRT requires an address even where it needs no memory.
        let scratch = self.stream.alloc_zeros::<u8>(scratch.max(1))?;

        let context = &self.plan.gpu.context;
        // SAFETY: the memory is uninitialized only until the next lines write all of it.
        let (mut host_images, mut host_logits) = unsafe {
            (
                context.alloc_pinned_with_flags::<u8>(image_bytes, 0)?,
                context.alloc_pinned_with_flags::<f32>(logit_count, 0)?,
            )
        };
        host_images.as_mut_slice()?.fill(0);
        host_logits.as_mut_slice()?.fill(0.0);
        self.stream.synchronize()?;
        Ok(Buffers {
            scratch,
            images,
            logits,
            host_images,
            host_logits,
        })
    }

    /// Tells the execution context where its memory is.
    fn set_addresses(&mut self, buffers: &mut Buffers, scratch: usize) -> Result<(), Failure> {
        let (images, _images) = buffers.images.device_ptr_mut(&self.stream);
        let (logits, _logits) = buffers.logits.device_ptr_mut(&self.stream);
        let (scratch_memory, _scratch) = buffers.scratch.device_ptr_mut(&self.stream);
        // SAFETY: the three addresses are of device memory of the sizes that TensorRT requires for
        // the current batch. `reserve` moves the buffers into `self`, which owns them until the
        // next `reserve` sets new addresses before anything runs again.
        unsafe {
            self.context.set_memory(Memory {
                scratch: (scratch_memory, scratch),
                images,
                logits,
            })
        }
    }

    /// Refuses batches that `reserve` has made no room for.
    fn check_reserved(&self, n: usize) -> Result<(), DeviceError> {
        match &self.buffers {
            Some(buffers) if buffers.images.len() >= n * self.image_len() => Ok(()),
            _ => Err(not_reserved()),
        }
    }

    /// Queues the network itself. TensorRT's error is returned uninterpreted.
    ///
    /// # Safety
    /// [`check_reserved`](Self::check_reserved) and [`set_batch`](Self::set_batch) must have
    /// succeeded for the batch, and the GPU must be bound to the calling thread.
    unsafe fn enqueue(&mut self) -> Result<(), Failure> {
        // SAFETY: the stream is alive and belongs to the CUDA context in which the engine was
        // loaded. `reserve` gave the execution context addresses of device memory that is large
        // enough for every batch up to its own; the memory is owned by `self` and freed on this
        // same stream. The caller has checked the rest.
        unsafe { self.context.enqueue(self.stream.cu_stream().cast()) }
    }

    /// How long the device alone takes for `n` images, by CUDA's clock, averaged over `runs`.
    pub(super) fn device_time(&mut self, n: usize, runs: u32) -> Result<Duration, DeviceError> {
        let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let start = self.cuda(self.stream.record_event(timed))?;
        for _ in 0..runs {
            self.run(n)?;
        }
        let end = self.cuda(self.stream.record_event(timed))?;
        let elapsed = self.cuda(start.elapsed_ms(&end))?;
        Ok(Duration::from_secs_f64(
            f64::from(elapsed) / 1e3 / f64::from(runs),
        ))
    }
}

fn not_reserved() -> DeviceError {
    DeviceError::Failed("no memory was reserved for this batch".into())
}

impl Device for GpuLane {
    fn reserve(&mut self, n: usize) -> Result<(), DeviceError> {
        self.bind()?;
        self.graphs.clear();
        // Freed first: there may be no room for both the old and the new buffers.
        self.buffers = None;

        self.set_batch(n)?;
        let scratch = self.context.scratch_size();
        let scratch = self.tensorrt(scratch)?;
        let mut buffers = self.cuda(self.allocate(n, scratch))?;
        let set = self.set_addresses(&mut buffers, scratch);
        self.tensorrt(set)?;
        self.buffers = Some(buffers);
        Ok(())
    }

    fn upload(&mut self, images: &[u8], n: usize) -> Result<(), DeviceError> {
        let Some(buffers) = &mut self.buffers else {
            return Err(not_reserved());
        };
        let len = images.len();
        if len > buffers.host_images.len() || len > buffers.images.len() || len < n {
            return Err(not_reserved());
        }
        let copied = (|| {
            // A copy that an earlier call left behind still reads the buffer.
            self.finished.synchronize()?;
            let host = &mut buffers.host_images.as_mut_slice()?[..len];
            host.copy_from_slice(images);
            self.stream.memcpy_htod(&*host, &mut buffers.images)
        })();
        self.cuda(copied)
    }

    fn run(&mut self, n: usize) -> Result<(), DeviceError> {
        self.check_reserved(n)?;
        self.bind()?;
        if let Some(graph) = self.graphs.get(&n) {
            return self.cuda(graph.launch());
        }
        self.set_batch(n)?;
        // SAFETY: the lines above have checked and set the batch, and bound the GPU.
        let queued = unsafe { self.enqueue() };
        self.tensorrt(queued)
    }

    fn download(&mut self, n: usize) -> Result<(), DeviceError> {
        let logit_count = n * self.classes;
        let Some(buffers) = &mut self.buffers else {
            return Err(not_reserved());
        };
        let Some(logits) = buffers.logits.try_slice(..logit_count) else {
            return Err(not_reserved());
        };
        let copied = buffers
            .host_logits
            .as_mut_slice()
            .and_then(|host| self.stream.memcpy_dtoh(&logits, &mut host[..logit_count]));
        self.cuda(copied)
    }

    fn synchronise(&mut self) -> Result<(), DeviceError> {
        let waited = match self.finished.record(&self.stream) {
            Ok(()) => self.finished.synchronize(),
            // Nothing may run on whose buffers are used again.
            Err(error) => self.stream.synchronize().and(Err(error)),
        };
        self.cuda(waited)
    }

    fn logits(&self, n: usize) -> Result<&[f32], DeviceError> {
        let Some(buffers) = &self.buffers else {
            return Err(not_reserved());
        };
        self.cuda(buffers.host_logits.as_slice())?
            .get(..n * self.classes)
            .ok_or_else(not_reserved)
    }

    fn capture(&mut self, n: usize) -> Result<(), DeviceError> {
        self.check_reserved(n)?;
        self.set_batch(n)?;
        // SAFETY: the stream belongs to the plan's GPU, which is bound since `n` images ran on this
        // thread; the lines above have checked and set the batch.
        if !unsafe { self.context.is_capturable(self.stream.cu_stream().cast()) } {
            return Err(DeviceError::Failed(
                "TensorRT can't capture this network".into(),
            ));
        }
        if !RECORDS_GRAPHS {
            return Ok(());
        }

        let begun = self
            .stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
        self.cuda(begun)?;
        // SAFETY: as above.
        let queued = unsafe { self.enqueue() };
        // Capturing has to be ended whatever happened within.
        let graph = self.stream.end_capture(
            sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH,
        );
        self.tensorrt(queued)?;
        let Some(graph) = self.cuda(graph)? else {
            return Err(DeviceError::Failed("nothing was captured".into()));
        };
        self.graphs.insert(n, graph);
        Ok(())
    }

    fn save_kernels(&mut self) {
        self.plan.save_kernels();
    }
}

impl Drop for GpuLane {
    fn drop(&mut self) {
        // TensorRT and CUDA free memory in the context of the calling thread, and not under a
        // kernel that runs.
        let _ = self.plan.gpu.context.bind_to_thread();
        let _ = self.stream.synchronize();
    }
}
