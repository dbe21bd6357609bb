//! Lanes that run a network of the caller's in place of TensorRT's, with the streams, buffers, events
//! and graphs of those that serve; for tests, on GPUs too that TensorRT does not run on.

use std::{sync::Arc, time::Duration};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, sys};

use super::{
    LANES_PER_GPU,
    gpu::{self, Gpu},
    lane::GpuLane,
    pipeline::{Device, DeviceError, GpuState, Pipeline},
};
pub use super::{
    binding::Failure,
    network::{Memory, Network},
};
use crate::{
    engine::tensorrt::ComputeCapability,
    engine::{Engine, EngineError},
};

/// A GPU that was opened as the engine opens it.
pub struct Card(Gpu);

/// What networks take and give.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Height, width, channels.
    pub image: [i64; 3],
    /// Logits of an image.
    pub classes: usize,
    /// The largest batch.
    pub max_batch: usize,
}

impl Card {
    /// Opens the GPU with this index.
    ///
    /// # Errors
    /// If there is no driver or no such GPU.
    pub fn open(index: usize) -> Result<Self, EngineError> {
        let mut gpus = gpu::find(Some(&[index]))?;
        Ok(Self(gpus.remove(0)))
    }

    /// Its name and index, for messages.
    pub fn name(&self) -> String {
        self.0.info.to_string()
    }

    /// Its generation.
    pub fn capability(&self) -> ComputeCapability {
        self.0.info.capability
    }

    /// The newest CUDA that its driver supports, such as 12.9.
    pub fn driver(&self) -> String {
        self.0.info.driver.to_string()
    }

    /// The CUDA context in which its lanes run.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.0.context
    }

    /// As many lanes as serve on a GPU; they share their limits as those do.
    ///
    /// # Errors
    /// If a network can't be made, or there is no memory for one image.
    pub fn lanes<N: Network>(
        &self,
        shape: Shape,
        network: impl Fn() -> Result<N, DriverError>,
    ) -> Result<Vec<Lane<N>>, EngineError> {
        let gpu = &self.0;
        let cuda = |error| gpu.engine_error(gpu.cuda_error(error));
        gpu.bind()?;
        let state = GpuState::new(shape.max_batch, false, gpu.info.to_string());
        let image_len = shape.image.iter().product::<i64>() as usize;
        let clock = gpu.context.default_stream();
        let origin = Arc::new(timed(&clock).map_err(cuda)?);
        (0..LANES_PER_GPU)
            .map(|_| {
                let network = network().map_err(cuda)?;
                let lane = GpuLane::new(gpu, network, shape.image, shape.classes)
                    .map_err(|error| gpu.engine_error(error))?;
                let device = Timed {
                    lane,
                    origin: Arc::clone(&origin),
                    gpu: gpu.clone(),
                    is_on: false,
                    marks: Vec::new(),
                };
                let pipeline = Pipeline::new(device, Arc::clone(&state), image_len, shape.classes)?;
                Ok(Lane(pipeline))
            })
            .collect()
    }
}

/// A lane whose steps can be timed.
pub struct Lane<N: Network>(Pipeline<Timed<N>>);

/// What the GPU does for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Copying images to the device.
    Upload,
    /// Running the network.
    Run,
    /// Copying logits from the device.
    Download,
}

/// A stage of one batch, by CUDA's clock, since the lanes were made.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub stage: Stage,
    pub start: Duration,
    pub end: Duration,
}

impl<N: Network> Lane<N> {
    /// Times every step from now on, until [`Self::steps`].
    pub fn record(&mut self) {
        self.0.device().is_on = true;
    }

    /// The steps since [`Self::record`], in order.
    ///
    /// # Errors
    /// What CUDA says.
    pub fn steps(&mut self) -> Result<Vec<Step>, EngineError> {
        let device = self.0.device();
        device.is_on = false;
        let marks = std::mem::take(&mut device.marks);
        let since = |event: &CudaEvent| {
            let elapsed = device.origin.elapsed_ms(event)?;
            Ok(Duration::from_secs_f64(f64::from(elapsed) / 1e3))
        };
        let step = |(stage, start, end): (Stage, CudaEvent, CudaEvent)| {
            Ok(Step {
                stage,
                start: since(&start)?,
                end: since(&end)?,
            })
        };
        let steps: Result<_, DriverError> = marks.into_iter().map(step).collect();
        steps.map_err(|error| device.gpu.engine_error(device.gpu.cuda_error(error)))
    }

    /// How long the network alone takes for `n` images, averaged over `runs`.
    ///
    /// # Errors
    /// What CUDA or the network says.
    pub fn device_time(&mut self, n: usize, runs: u32) -> Result<Duration, EngineError> {
        let Timed { lane, gpu, .. } = self.0.device();
        lane.device_time(n, runs)
            .map_err(|error| gpu.engine_error(error))
    }
}

impl<N: Network> Engine for Lane<N> {
    fn infer(&mut self, images: &[u8], n: usize, logits: &mut [f32]) -> Result<(), EngineError> {
        self.0.infer(images, n, logits)
    }

    fn infer_apart(
        &mut self,
        images: &[Vec<u8>],
        together: &mut Vec<u8>,
        logits: &mut [f32],
    ) -> Result<(), EngineError> {
        self.0.infer_apart(images, together, logits)
    }
}

/// A lane that marks where its steps begin and end.
struct Timed<N> {
    lane: GpuLane<N>,
    origin: Arc<CudaEvent>,
    gpu: Gpu,
    is_on: bool,
    marks: Vec<(Stage, CudaEvent, CudaEvent)>,
}

impl<N: Network> Timed<N> {
    fn mark(
        &mut self,
        stage: Stage,
        queue: impl FnOnce(&mut GpuLane<N>) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        if !self.is_on {
            return queue(&mut self.lane);
        }
        let stream = Arc::clone(self.lane.stream());
        let cuda = |error| self.gpu.cuda_error(error);
        let start = timed(&stream).map_err(cuda)?;
        queue(&mut self.lane)?;
        let end = timed(&stream).map_err(cuda)?;
        self.marks.push((stage, start, end));
        Ok(())
    }
}

/// An event with a time, behind what has been queued.
fn timed(stream: &CudaStream) -> Result<CudaEvent, DriverError> {
    stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))
}

impl<N: Network> Device for Timed<N> {
    fn reserve(&mut self, n: usize) -> Result<(), DeviceError> {
        self.lane.reserve(n)
    }

    fn input(&mut self, n: usize) -> Result<&mut [u8], DeviceError> {
        self.lane.input(n)
    }

    fn upload(&mut self, n: usize) -> Result<(), DeviceError> {
        self.mark(Stage::Upload, |lane| lane.upload(n))
    }

    fn run(&mut self, n: usize) -> Result<(), DeviceError> {
        self.mark(Stage::Run, |lane| lane.run(n))
    }

    fn download(&mut self, n: usize) -> Result<(), DeviceError> {
        self.mark(Stage::Download, |lane| lane.download(n))
    }

    fn synchronise(&mut self) -> Result<(), DeviceError> {
        self.lane.synchronise()
    }

    fn logits(&self, n: usize) -> Result<&[f32], DeviceError> {
        self.lane.logits(n)
    }

    fn capture(&mut self, n: usize) -> Result<(), DeviceError> {
        self.lane.capture(n)
    }

    fn save_kernels(&mut self) {
        self.lane.save_kernels();
    }
}
