//! A lane on a GPU: splits batches into parts that fit, halves these when memory runs out, and
//! gives up for good when the GPU is lost.
//!
//! What happens on the GPU itself is behind the trait [`Device`], so that tests need no GPU.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::KIND;
use crate::engine::{Engine, EngineError};

/// One execution context with its stream and buffers.
///
/// `upload`, `run` and `download` only queue their work, in this order; `synchronise` waits for it.
pub(super) trait Device: Send {
    /// Allocates memory for batches of up to `n` images.
    fn reserve(&mut self, n: usize) -> Result<(), DeviceError>;

    /// Queues the copy of `n` images to the device. `images` may be reused when this returns.
    fn upload(&mut self, images: &[u8], n: usize) -> Result<(), DeviceError>;

    /// Queues the network, as a CUDA graph if one was captured for `n`.
    fn run(&mut self, n: usize) -> Result<(), DeviceError>;

    /// Queues the copy of `n` images' logits from the device.
    fn download(&mut self, n: usize) -> Result<(), DeviceError>;

    /// Waits for everything that was queued. After [`DeviceError::Lost`] every later call fails
    /// too.
    fn synchronise(&mut self) -> Result<(), DeviceError>;

    /// The logits of `n` images that were downloaded last.
    fn logits(&self, n: usize) -> Result<&[f32], DeviceError>;

    /// Records the network for `n` images as a CUDA graph. Returns whether there is one now.
    fn capture(&mut self, n: usize) -> Result<bool, DeviceError>;

    /// Called when every batch size has run once.
    fn warmed_up(&mut self);
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
    /// Largest batch that fits, as far as is known.
    limit: AtomicUsize,
    /// The network has one batch size, so batches can't be split.
    fixed_batch: bool,
    lost: AtomicBool,
    /// Name of the GPU, for messages.
    gpu: String,
}

impl GpuState {
    pub(super) fn new(max_batch: usize, fixed_batch: bool, gpu: String) -> Arc<Self> {
        Arc::new(Self {
            limit: AtomicUsize::new(max_batch),
            fixed_batch,
            lost: AtomicBool::new(false),
            gpu,
        })
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Lowers the limit because batches of `n` don't fit. Returns the new limit.
    fn halve(&self, n: usize, reason: &str) -> Result<usize, EngineError> {
        if n == 1 || self.fixed_batch {
            return Err(KIND.failed(format!(
                "{} has too little memory for {n} image(s) at once ({reason}); end what else uses \
                 it, or choose another GPU with --device",
                self.gpu
            )));
        }

        let half = n / 2;
        let previous = self.limit.fetch_min(half, Ordering::Relaxed);
        // Another lane may have lowered it before.
        if previous > half {
            tracing::warn!(
                "{} has too little memory for batches of {n} ({reason}); continuing with batches \
                 of up to {half}: set --max-batch {half}, or end what else uses the GPU",
                self.gpu
            );
        }
        Ok(self.limit())
    }
}

/// The engine for one lane.
pub(super) struct Pipeline<D> {
    device: D,
    state: Arc<GpuState>,
    /// Bytes of one image.
    image_len: usize,
    classes: usize,
    /// At index `n - 1`: whether a batch of `n` images has run and capturing it was tried.
    warm: Vec<bool>,
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
                Err(DeviceError::OutOfMemory(reason)) => n = state.halve(n, &reason)?,
                Err(DeviceError::Lost(reason)) => return Err(lost(reason)),
                Err(DeviceError::Failed(reason)) => return Err(KIND.failed(reason)),
            }
        }
        Ok(Self {
            device,
            state,
            image_len,
            classes,
            warm: vec![false; n],
        })
    }

    /// Runs a batch that fits.
    fn run(&mut self, images: &[u8], n: usize, logits: &mut [f32]) -> Result<(), DeviceError> {
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

    fn queue(&mut self, images: &[u8], n: usize) -> Result<(), DeviceError> {
        self.device.upload(images, n)?;
        self.device.run(n)?;
        self.device.download(n)
    }

    /// Captures the CUDA graph for `n` images, unless that was tried before. The first batch of
    /// that size must have run, so that lazy initialization is not recorded.
    fn warm_up(&mut self, n: usize) -> Result<(), DeviceError> {
        match self.warm.get_mut(n - 1) {
            Some(warm) if !*warm => *warm = true,
            _ => return Ok(()),
        }
        match self.device.capture(n) {
            Ok(captured) => tracing::trace!(batch = n, captured, "batch size warmed up"),
            Err(error @ DeviceError::Lost(_)) => return Err(error),
            // It works without a graph, only a little slower.
            Err(error) => tracing::debug!(batch = n, "no CUDA graph: {error}"),
        }

        let sizes = self.part_limit();
        if self.warm[..sizes].iter().all(|warm| *warm) {
            self.device.warmed_up();
        }
        Ok(())
    }

    /// Largest batch that this lane runs as a whole.
    fn part_limit(&self) -> usize {
        self.state.limit().min(self.warm.len())
    }

    /// The device itself, to measure it.
    pub(super) fn device(&mut self) -> &mut D {
        &mut self.device
    }
}

impl<D: Device> Engine for Pipeline<D> {
    fn infer(&mut self, images: &[u8], n: usize, logits: &mut [f32]) -> Result<(), EngineError> {
        let mut done = 0;
        while done < n {
            if self.state.lost.load(Ordering::Relaxed) {
                return Err(lost(format!("{} failed before", self.state.gpu)));
            }

            let part = self.part_limit().min(n - done);
            let end = done + part;
            let result = self
                .run(
                    &images[done * self.image_len..end * self.image_len],
                    part,
                    &mut logits[done * self.classes..end * self.classes],
                )
                .and_then(|()| self.warm_up(part));
            match result {
                Ok(()) => done = end,
                // The same images are tried again in smaller parts.
                Err(DeviceError::OutOfMemory(reason)) => {
                    self.state.halve(part, &reason)?;
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

fn lost(reason: impl Into<String>) -> EngineError {
    EngineError::Lost {
        kind: KIND,
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::Mutex};

    use super::*;

    const IMAGE: usize = 2;
    const CLASSES: usize = 3;

    /// The calls that a scripted device received, in order.
    type Calls = Arc<Mutex<Vec<String>>>;

    /// Answers with the first byte of each image, and fails as its script says.
    #[derive(Default)]
    struct Scripted {
        calls: Calls,
        /// Larger batches run out of memory in `run`; 0 means no limit.
        fits: usize,
        /// Larger batches run out of memory in `reserve`; 0 means no limit.
        room: usize,
        /// Results of the first calls of `run`; later ones succeed.
        runs: VecDeque<Option<DeviceError>>,
        captures: Option<DeviceError>,
        sticky: Option<DeviceError>,
        input: Vec<u8>,
        output: Vec<f32>,
    }

    impl Scripted {
        fn note(&self, call: String) {
            self.calls.lock().unwrap().push(call);
        }
    }

    impl Device for Scripted {
        fn reserve(&mut self, n: usize) -> Result<(), DeviceError> {
            self.note(format!("reserve {n}"));
            if self.room > 0 && n > self.room {
                Err(DeviceError::OutOfMemory("scratch".into()))
            } else {
                Ok(())
            }
        }

        fn upload(&mut self, images: &[u8], n: usize) -> Result<(), DeviceError> {
            assert_eq!(images.len(), n * IMAGE);
            self.note(format!("upload {n}"));
            self.input = images.to_vec();
            Ok(())
        }

        fn run(&mut self, n: usize) -> Result<(), DeviceError> {
            self.note(format!("run {n}"));
            if self.fits > 0 && n > self.fits {
                return Err(DeviceError::OutOfMemory("kernel".into()));
            }
            match self.runs.pop_front().flatten() {
                Some(error) => Err(error),
                None => Ok(()),
            }
        }

        fn download(&mut self, n: usize) -> Result<(), DeviceError> {
            self.note(format!("download {n}"));
            let logits = self
                .input
                .chunks(IMAGE)
                .flat_map(|image| [f32::from(image[0]); CLASSES]);
            self.output = logits.collect();
            Ok(())
        }

        fn synchronise(&mut self) -> Result<(), DeviceError> {
            self.note("synchronise".into());
            self.sticky.clone().map_or(Ok(()), Err)
        }

        fn logits(&self, n: usize) -> Result<&[f32], DeviceError> {
            assert_eq!(self.output.len(), n * CLASSES);
            Ok(&self.output)
        }

        fn capture(&mut self, n: usize) -> Result<bool, DeviceError> {
            self.note(format!("capture {n}"));
            self.captures.clone().map_or(Ok(true), Err)
        }

        fn warmed_up(&mut self) {
            self.note("warmed_up".into());
        }
    }

    fn state(max_batch: usize) -> Arc<GpuState> {
        GpuState::new(max_batch, false, "GPU 0".into())
    }

    fn pipeline(device: Scripted, state: &Arc<GpuState>) -> (Pipeline<Scripted>, Calls) {
        let calls = Arc::clone(&device.calls);
        (
            Pipeline::new(device, Arc::clone(state), IMAGE, CLASSES).unwrap(),
            calls,
        )
    }

    /// Infers `n` images and checks that each has its own answer.
    fn infer(pipeline: &mut Pipeline<Scripted>, n: usize) -> Result<(), EngineError> {
        let images: Vec<u8> = (0..n as u8).flat_map(|image| [image, 0]).collect();
        let mut logits = vec![f32::NAN; n * CLASSES];
        pipeline.infer(&images, n, &mut logits)?;
        let expected: Vec<f32> = (0..n).flat_map(|image| [image as f32; CLASSES]).collect();
        assert_eq!(logits, expected);
        Ok(())
    }

    #[test]
    fn a_batch_is_queued_as_a_whole_and_captured_after_its_first_run() {
        let (mut pipeline, calls) = pipeline(Scripted::default(), &state(4));
        infer(&mut pipeline, 3).unwrap();
        infer(&mut pipeline, 3).unwrap();
        let run = ["upload 3", "run 3", "download 3", "synchronise"];
        let expected = [&["reserve 4"], &run[..], &["capture 3"], &run[..]].concat();
        assert_eq!(*calls.lock().unwrap(), expected);
    }

    #[test]
    fn it_is_warm_when_every_size_has_run() {
        let (mut pipeline, calls) = pipeline(Scripted::default(), &state(2));
        let warmed = |calls: &Calls| {
            calls
                .lock()
                .unwrap()
                .iter()
                .filter(|call| *call == "warmed_up")
                .count()
        };
        infer(&mut pipeline, 1).unwrap();
        assert_eq!(warmed(&calls), 0);
        infer(&mut pipeline, 2).unwrap();
        infer(&mut pipeline, 2).unwrap();
        assert_eq!(warmed(&calls), 1);
    }

    #[test]
    fn what_cannot_be_captured_runs_without() {
        let captures = Some(DeviceError::Failed("not capturable".into()));
        let (mut pipeline, calls) = pipeline(
            Scripted {
                captures,
                ..Scripted::default()
            },
            &state(2),
        );
        infer(&mut pipeline, 1).unwrap();
        infer(&mut pipeline, 1).unwrap();
        assert_eq!(
            calls
                .lock()
                .unwrap()
                .iter()
                .filter(|call| call.starts_with("capture"))
                .count(),
            1
        );
    }

    #[test]
    fn without_room_for_the_largest_batch_half_of_it_is_taken() {
        let state = state(16);
        let (mut pipeline, calls) = pipeline(
            Scripted {
                room: 5,
                ..Scripted::default()
            },
            &state,
        );
        assert_eq!(
            calls.lock().unwrap()[..],
            ["reserve 16", "reserve 8", "reserve 4"]
        );
        infer(&mut pipeline, 11).unwrap();
        let runs: Vec<_> = calls
            .lock()
            .unwrap()
            .iter()
            .filter(|call| call.starts_with("run"))
            .cloned()
            .collect();
        assert_eq!(runs, ["run 4", "run 4", "run 3"]);
    }

    #[test]
    fn out_of_memory_halves_the_batch_for_all_lanes_and_loses_no_image() {
        let state = state(16);
        let (mut first, calls) = pipeline(
            Scripted {
                fits: 6,
                ..Scripted::default()
            },
            &state,
        );
        let (mut second, others) = pipeline(Scripted::default(), &state);
        infer(&mut first, 16).unwrap();
        let runs = |calls: &Calls| -> Vec<String> {
            calls
                .lock()
                .unwrap()
                .iter()
                .filter(|call| call.starts_with("run"))
                .cloned()
                .collect()
        };
        assert_eq!(
            runs(&calls),
            ["run 16", "run 8", "run 4", "run 4", "run 4", "run 4"]
        );
        infer(&mut second, 8).unwrap();
        assert_eq!(runs(&others), ["run 4", "run 4"]);
    }

    #[test]
    fn when_not_one_image_fits_the_error_says_so() {
        let runs =
            std::iter::repeat_n(Some(DeviceError::OutOfMemory("kernel".into())), 9).collect();
        let (mut pipeline, _) = pipeline(
            Scripted {
                runs,
                ..Scripted::default()
            },
            &state(4),
        );
        let error = infer(&mut pipeline, 4).unwrap_err().to_string();
        assert!(
            error.contains("too little memory for 1 image") && error.contains("--device"),
            "{error}"
        );
    }

    #[test]
    fn a_fixed_batch_is_never_split() {
        let state = GpuState::new(4, true, "GPU 0".into());
        let device = Scripted {
            room: 2,
            ..Scripted::default()
        };
        let Err(error) = Pipeline::new(device, state, IMAGE, CLASSES) else {
            panic!("there is no room for it")
        };
        assert!(error.to_string().contains("for 4 image"), "{error}");
    }

    #[test]
    fn a_failed_call_fails_alone() {
        let runs = [Some(DeviceError::Failed("bad weather".into()))].into();
        let (mut pipeline, calls) = pipeline(
            Scripted {
                runs,
                ..Scripted::default()
            },
            &state(4),
        );
        assert!(matches!(
            infer(&mut pipeline, 2),
            Err(EngineError::Inference { .. })
        ));
        // The upload that was queued has ended before the images' buffer is used again.
        assert_eq!(calls.lock().unwrap().last().unwrap(), "synchronise");
        infer(&mut pipeline, 2).unwrap();
    }

    #[test]
    fn a_lost_gpu_ends_every_lane_at_once() {
        let state = state(4);
        let lost = DeviceError::Lost("an illegal memory access".into());
        let device = Scripted {
            sticky: Some(lost),
            ..Scripted::default()
        };
        let (mut first, _) = pipeline(device, &state);
        let (mut second, calls) = pipeline(Scripted::default(), &state);
        let error = infer(&mut first, 2).unwrap_err();
        assert!(matches!(&error, EngineError::Lost { .. }), "{error}");
        assert!(
            error.to_string().contains("illegal memory access"),
            "{error}"
        );
        assert!(matches!(
            infer(&mut second, 1),
            Err(EngineError::Lost { .. })
        ));
        assert_eq!(
            *calls.lock().unwrap(),
            ["reserve 4"],
            "the lost GPU is left alone"
        );
    }
}
