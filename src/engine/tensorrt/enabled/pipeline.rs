//! A lane on a GPU: pads batches to the sizes that are compiled, splits them into parts that fit,
//! takes smaller parts when memory runs out, and gives up for good when the GPU is lost.
//!
//! What happens on the GPU itself is behind the trait [`Device`], so that tests need no GPU.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use super::KIND;
use crate::engine::{Engine, EngineError, batch_sizes};

/// After this many runs newly compiled kernels are saved, and again each time that the number of runs
/// has doubled.
const RUNS_BEFORE_SAVING_AGAIN: u64 = 1024;

/// One execution context with its stream and buffers.
///
/// `upload`, `run` and `download` only queue their work, in this order; `synchronise` waits for it.
pub(super) trait Device: Send {
    /// Allocates memory for batches of up to `n` images.
    fn reserve(&mut self, n: usize) -> Result<(), DeviceError>;

    /// The memory that `n` images are copied to the device from, to be filled before
    /// [`upload`](Self::upload). Nothing that was queued uses it any more.
    fn input(&mut self, n: usize) -> Result<&mut [u8], DeviceError>;

    /// Queues the copy of the `n` images in [`input`](Self::input) to the device.
    fn upload(&mut self, n: usize) -> Result<(), DeviceError>;

    /// Queues the network for `n` images, as a CUDA graph if one was captured for `n`. The first
    /// call for `n` compiles the kernels that all later ones use.
    fn run(&mut self, n: usize) -> Result<(), DeviceError>;

    /// Queues the copy of `n` images' logits from the device.
    fn download(&mut self, n: usize) -> Result<(), DeviceError>;

    /// Waits for everything that was queued. After [`DeviceError::Lost`] every later call fails
    /// too.
    fn synchronise(&mut self) -> Result<(), DeviceError>;

    /// The logits of `n` images that were downloaded last.
    fn logits(&self, n: usize) -> Result<&[f32], DeviceError>;

    /// Makes a CUDA graph of the network for `n` images, which have run before.
    ///
    /// # Errors
    /// Why there is none. Batches run without.
    fn capture(&mut self, n: usize) -> Result<(), DeviceError>;

    /// Keeps the kernels that have been compiled, unless these are kept already.
    fn save_kernels(&mut self);
}

/// Why an operation on a device failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DeviceError {
    /// There is no memory for a batch of this size.
    #[error("out of memory: {0}")]
    OutOfMemory(String),

    /// This and all later calls fail: the CUDA context is corrupted or the GPU is gone.
    #[error("{0}")]
    Lost(String),

    /// This call failed.
    #[error("{0}")]
    Failed(String),
}

/// State that the lanes of one GPU share.
#[derive(Debug)]
pub(super) struct GpuState {
    /// The sizes of batches that are computed, in ascending order.
    sizes: Vec<usize>,
    /// The largest of them that fits, as far as is known.
    limit: AtomicUsize,
    lost: AtomicBool,
    /// Whether it was logged that batches run without CUDA graphs.
    without_graphs: AtomicBool,
    /// Name of the GPU, for messages.
    gpu: String,
}

impl GpuState {
    pub(super) fn new(max_batch: usize, fixed_batch: bool, gpu: String) -> Arc<Self> {
        Arc::new(Self {
            sizes: batch_sizes(max_batch, fixed_batch),
            limit: AtomicUsize::new(max_batch),
            lost: AtomicBool::new(false),
            without_graphs: AtomicBool::new(false),
            gpu,
        })
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// The index of the smallest size that holds `n` images.
    fn padded(&self, n: usize) -> usize {
        self.sizes.partition_point(|size| *size < n)
    }

    /// Lowers the limit because batches of `n` don't fit. Returns the new limit.
    fn shrink(&self, n: usize, reason: &str) -> Result<usize, EngineError> {
        let Some(&smaller) = self.sizes.iter().rev().find(|size| **size < n) else {
            return Err(KIND.failed(format!(
                "{} has too little memory for {n} image(s) at once ({reason}); end what else uses \
                 it, or choose another GPU with --device",
                self.gpu
            )));
        };

        let previous = self.limit.fetch_min(smaller, Ordering::Relaxed);
        // Another lane may have lowered it before.
        if previous > smaller {
            tracing::warn!(
                "{} has too little memory for batches of {n} ({reason}); continuing with batches \
                 of up to {smaller}: set --max-batch {smaller}, or end what else uses the GPU",
                self.gpu
            );
        }
        Ok(self.limit())
    }

    /// Logs once that there are no CUDA graphs. Returns whether this call did.
    fn note_without_graphs(&self, reason: &DeviceError) -> bool {
        let first = !self.without_graphs.swap(true, Ordering::Relaxed);
        if first {
            tracing::warn!(
                "{} runs batches without CUDA graphs, so that small ones cost more time on the \
                 CPU: {reason}",
                self.gpu
            );
        }
        first
    }
}

/// The engine for one lane.
pub(super) struct Pipeline<D> {
    device: D,
    state: Arc<GpuState>,
    /// Bytes of one image.
    image_len: usize,
    classes: usize,
    /// The largest batch that there is memory for.
    reserved: usize,
    /// For each size: whether a batch of it has run and capturing it was tried.
    warm: Vec<bool>,
    /// Batches that have run, and after how many of them kernels are saved again.
    runs: u64,
    next_save: u64,
}

impl<D: Device> Pipeline<D> {
    /// Allocates memory for the largest batch that fits.
    pub(super) fn new(
        mut device: D,
        state: Arc<GpuState>,
        image_len: usize,
        classes: usize,
    ) -> Result<Self, EngineError> {
        let mut n = state.limit();
        loop {
            match device.reserve(n) {
                Ok(()) => break,
                Err(DeviceError::OutOfMemory(reason)) => n = state.shrink(n, &reason)?,
                Err(DeviceError::Lost(reason)) => return Err(lost(reason)),
                Err(DeviceError::Failed(reason)) => return Err(KIND.failed(reason)),
            }
        }
        Ok(Self {
            device,
            image_len,
            classes,
            reserved: n,
            warm: vec![false; state.sizes.len()],
            runs: 0,
            next_save: RUNS_BEFORE_SAVING_AGAIN,
            state,
        })
    }

    /// Runs a batch that fits, padded to the next size.
    fn run(&mut self, images: Images, n: usize, logits: &mut [f32]) -> Result<(), DeviceError> {
        let queued = self.queue(images, n);
        // Waits also after an error: work that was queued before it still uses the buffers.
        let finished = self.device.synchronise();
        if let Err(error @ DeviceError::Lost(_)) = finished {
            return Err(error);
        }
        queued.and(finished)?;
        logits.copy_from_slice(self.device.logits(n)?);
        Ok(())
    }

    fn queue(&mut self, images: Images, n: usize) -> Result<(), DeviceError> {
        images.write(self.device.input(n)?);
        self.device.upload(n)?;
        // What pads the batch are images of earlier ones, whose logits nobody reads.
        self.device.run(self.state.sizes[self.state.padded(n)])?;
        self.device.download(n)
    }

    /// Captures the CUDA graph for the size of `n` images, unless that was tried before, and keeps
    /// the compiled kernels when every size has run. The first batch of the size must have run, so
    /// that neither lazy initialization nor compilation is recorded.
    fn warm_up(&mut self, n: usize) -> Result<(), DeviceError> {
        self.runs += 1;
        let index = self.state.padded(n);
        if std::mem::replace(&mut self.warm[index], true) {
            if self.runs >= self.next_save {
                self.next_save = self.runs * 2;
                self.device.save_kernels();
            }
            return Ok(());
        }

        let size = self.state.sizes[index];
        match self.device.capture(size) {
            Ok(()) => tracing::trace!(batch = size, "batch size warmed up"),
            Err(error @ DeviceError::Lost(_)) => return Err(error),
            Err(error) => {
                self.state.note_without_graphs(&error);
            }
        }

        let limit = self.part_limit();
        let mut warm = self.state.sizes.iter().zip(&self.warm);
        if warm.all(|(size, warm)| *warm || *size > limit) {
            self.device.save_kernels();
        }
        Ok(())
    }

    /// Largest batch that this lane runs as a whole.
    fn part_limit(&self) -> usize {
        self.state.limit().min(self.reserved)
    }

    /// The device itself, to measure it.
    pub(super) fn device(&mut self) -> &mut D {
        &mut self.device
    }
}

/// The images of a batch.
#[derive(Clone, Copy)]
enum Images<'a> {
    /// One after another.
    Together(&'a [u8]),
    /// Each for itself.
    Apart(&'a [Vec<u8>]),
}

impl Images<'_> {
    /// The images in this range; each has `len` bytes.
    fn part(self, range: Range<usize>, len: usize) -> Self {
        match self {
            Self::Together(images) => Self::Together(&images[range.start * len..range.end * len]),
            Self::Apart(images) => Self::Apart(&images[range]),
        }
    }

    /// Copies them one after another.
    fn write(self, target: &mut [u8]) {
        match self {
            Self::Together(images) => target.copy_from_slice(images),
            Self::Apart(images) => {
                let mut rest = target;
                for image in images {
                    let (place, after) = rest.split_at_mut(image.len());
                    place.copy_from_slice(image);
                    rest = after;
                }
            }
        }
    }
}

impl<D: Device> Pipeline<D> {
    fn infer_parts(
        &mut self,
        images: Images,
        n: usize,
        logits: &mut [f32],
    ) -> Result<(), EngineError> {
        let mut done = 0;
        while done < n {
            if self.state.lost.load(Ordering::Relaxed) {
                return Err(lost(format!("{} failed before", self.state.gpu)));
            }

            let part = self.part_limit().min(n - done);
            let end = done + part;
            let result = self
                .run(
                    images.part(done..end, self.image_len),
                    part,
                    &mut logits[done * self.classes..end * self.classes],
                )
                .and_then(|()| self.warm_up(part));
            match result {
                Ok(()) => done = end,
                // The same images are tried again in smaller parts.
                Err(DeviceError::OutOfMemory(reason)) => {
                    self.state
                        .shrink(self.state.sizes[self.state.padded(part)], &reason)?;
                }
                Err(DeviceError::Lost(reason)) => {
                    self.state.lost.store(true, Ordering::Relaxed);
                    return Err(lost(reason));
                }
                Err(DeviceError::Failed(reason)) => return Err(KIND.failed(reason)),
            }
        }
        Ok(())
    }
}

impl<D: Device> Engine for Pipeline<D> {
    fn infer(&mut self, images: &[u8], n: usize, logits: &mut [f32]) -> Result<(), EngineError> {
        self.infer_parts(Images::Together(images), n, logits)
    }

    fn infer_apart(
        &mut self,
        images: &[Vec<u8>],
        _: &mut Vec<u8>,
        logits: &mut [f32],
    ) -> Result<(), EngineError> {
        self.infer_parts(Images::Apart(images), images.len(), logits)
    }
}

fn lost(reason: impl Into<String>) -> EngineError {
    EngineError::Lost {
        kind: KIND,
        reason: reason.into(),
    }
}

#[cfg(test)]
pub(super) mod tests;
