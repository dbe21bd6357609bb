//! A network on a GPU with a CUDA stream and buffers of its own.

#![allow(unsafe_code)]

use std::{collections::HashMap, sync::Arc, time::Duration};

use cudarc::driver::{
    CudaEvent, CudaGraph, CudaSlice, CudaStream, DevicePtrMut, DriverError, PinnedHostSlice, sys,
};

use super::{
    binding::Failure,
    gpu::Gpu,
    network::{Memory, Network},
    pipeline::{Device, DeviceError},
};

/// Memory for batches up to a certain size.
struct Buffers {
    /// The network's own memory; nothing else uses it.
    scratch: CudaSlice<u8>,
    images: CudaSlice<u8>,
    logits: CudaSlice<f32>,
    host_images: PinnedHostSlice<u8>,
    host_logits: PinnedHostSlice<f32>,
}

/// A network with its stream and buffers.
pub(super) struct GpuLane<N> {
    // Dropped from top to bottom: graphs use the network, the network uses the buffers.
    graphs: HashMap<usize, CudaGraph>,
    network: N,
    /// `None` before `reserve`, and after it failed.
    buffers: Option<Buffers>,
    /// Recorded behind what was queued, to wait for it without a thread that spins: cores are there
    /// to decode.
    finished: CudaEvent,
    stream: Arc<CudaStream>,
    gpu: Gpu,
    /// Height, width, channels.
    image_shape: [i64; 3],
    classes: usize,
    /// The batch size that the network is set up for, if any.
    batch: Option<usize>,
}

// SAFETY: CUDA's graphs may be used from any thread, by one at a time; `GpuLane` is not `Clone` and
// every use of them is through `&mut`.
unsafe impl<N: Network> Send for GpuLane<N> {}

impl<N: Network> GpuLane<N> {
    /// Creates a lane for images of this shape (height, width, channels). It can't run before
    /// [`Device::reserve`].
    pub(super) fn new(
        gpu: &Gpu,
        network: N,
        image_shape: [i64; 3],
        classes: usize,
    ) -> Result<Self, DeviceError> {
        let stream = gpu
            .context
            .new_stream()
            .map_err(|error| gpu.cuda_error(error))?;
        let finished = gpu
            .context
            .new_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC))
            .map_err(|error| gpu.cuda_error(error))?;
        Ok(Self {
            graphs: HashMap::new(),
            network,
            buffers: None,
            finished,
            stream,
            gpu: gpu.clone(),
            image_shape,
            classes,
            batch: None,
        })
    }

    /// What its work is queued on.
    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Bytes of one image.
    fn image_len(&self) -> usize {
        self.image_shape.iter().product::<i64>() as usize
    }

    fn cuda<T>(&self, result: Result<T, DriverError>) -> Result<T, DeviceError> {
        result.map_err(|error| self.gpu.cuda_error(error))
    }

    fn tensorrt<T>(&self, result: Result<T, Failure>) -> Result<T, DeviceError> {
        result.map_err(|failure| self.gpu.tensorrt_error(failure))
    }

    fn bind(&self) -> Result<(), DeviceError> {
        self.cuda(self.gpu.context.bind_to_thread())
    }

    fn set_batch(&mut self, n: usize) -> Result<(), DeviceError> {
        if self.batch == Some(n) {
            return Ok(());
        }
        let [height, width, channels] = self.image_shape;
        self.batch = None;
        let set = self.network.set_images([n as i64, height, width, channels]);
        self.tensorrt(set)?;
        self.batch = Some(n);
        Ok(())
    }

    /// Allocates memory for batches of up to `n` images, of which `scratch` bytes are the network's.
    fn allocate(&self, n: usize, scratch: usize) -> Result<Buffers, DriverError> {
        let image_bytes = n * self.image_len();
        let logit_count = n * self.classes;
        let images = self.stream.alloc_zeros::<u8>(image_bytes)?;
        let logits = self.stream.alloc_zeros::<f32>(logit_count)?;
        // TensorRT requires an address even where it needs no memory.
        let scratch = self.stream.alloc_zeros::<u8>(scratch.max(1))?;

        let context = &self.gpu.context;
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

    /// Tells the network where its memory is.
    fn set_addresses(&mut self, buffers: &mut Buffers, scratch: usize) -> Result<(), Failure> {
        let (images, _images) = buffers.images.device_ptr_mut(&self.stream);
        let (logits, _logits) = buffers.logits.device_ptr_mut(&self.stream);
        let (scratch_memory, _scratch) = buffers.scratch.device_ptr_mut(&self.stream);
        // SAFETY: the three addresses are of device memory of the sizes that the network requires for
        // the current batch. `reserve` moves the buffers into `self`, which owns them until the
        // next `reserve` sets new addresses before anything runs again.
        unsafe {
            self.network.set_memory(Memory {
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
        // SAFETY: the stream is alive and belongs to the CUDA context in which the network was
        // loaded. `reserve` gave the network addresses of device memory that is large enough for
        // every batch up to its own; the memory is owned by `self` and freed on this same stream.
        // The caller has checked the rest.
        unsafe { self.network.enqueue(self.stream.cu_stream().cast()) }
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

impl<N: Network> Device for GpuLane<N> {
    fn reserve(&mut self, n: usize) -> Result<(), DeviceError> {
        self.bind()?;
        self.graphs.clear();
        // Freed first: there may be no room for both the old and the new buffers.
        self.buffers = None;

        self.set_batch(n)?;
        let scratch = self.network.scratch_size();
        let scratch = self.tensorrt(scratch)?;
        let mut buffers = self.cuda(self.allocate(n, scratch))?;
        let set = self.set_addresses(&mut buffers, scratch);
        self.tensorrt(set)?;
        self.buffers = Some(buffers);
        Ok(())
    }

    fn input(&mut self, n: usize) -> Result<&mut [u8], DeviceError> {
        let len = n * self.image_len();
        let Some(buffers) = &mut self.buffers else {
            return Err(not_reserved());
        };
        let gpu = &self.gpu;
        // A copy that an earlier call left behind still reads the buffer.
        let input = self
            .finished
            .synchronize()
            .and_then(|()| buffers.host_images.as_mut_slice())
            .map_err(|error| gpu.cuda_error(error))?;
        input.get_mut(..len).ok_or_else(not_reserved)
    }

    fn upload(&mut self, n: usize) -> Result<(), DeviceError> {
        self.check_reserved(n)?;
        let len = n * self.image_len();
        let Some(buffers) = &mut self.buffers else {
            return Err(not_reserved());
        };
        let Buffers {
            images,
            host_images,
            ..
        } = buffers;
        let copied = host_images
            .as_slice()
            .and_then(|host| self.stream.memcpy_htod(&host[..len], images));
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
            // Wait for the whole stream, because the caller reuses the buffers.
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
        // SAFETY: the stream belongs to the network's GPU, which is bound since `n` images ran on this
        // thread; the lines above have checked and set the batch.
        if !unsafe { self.network.is_capturable(self.stream.cu_stream().cast()) } {
            return Err(DeviceError::Failed(
                "TensorRT can't capture this network".into(),
            ));
        }
        if !N::RECORDED_BY_LANE {
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
        self.network.save_kernels();
    }
}

impl<N> Drop for GpuLane<N> {
    fn drop(&mut self) {
        // TensorRT and CUDA free memory in the context of the calling thread, and not under a
        // kernel that runs.
        let _ = self.gpu.context.bind_to_thread();
        let _ = self.stream.synchronize();
    }
}
