//! Lanes on a scripted device.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Mutex, mpsc},
};

use super::*;
use crate::cache::{ArtifactCache, CacheKey};
use crate::engine::tensorrt::enabled::kernel_store::KernelStore;

const IMAGE: usize = 2;
const CLASSES: usize = 3;

/// The calls that a scripted device received, in order.
type Calls = Arc<Mutex<Vec<String>>>;

/// Answers with the first byte of each image, and fails as its script says.
#[derive(Default)]
struct Scripted {
    calls: Calls,
    /// Bytes of an image, if they are not [`IMAGE`].
    image_len: Option<usize>,
    /// Larger batches run out of memory in `run`; 0 means no limit.
    fits: usize,
    /// Larger batches run out of memory in `reserve`; 0 means no limit.
    room: usize,
    /// Results of the first calls of `run`; later ones succeed.
    runs: VecDeque<Option<DeviceError>>,
    captures: Option<DeviceError>,
    sticky: Option<DeviceError>,
    /// Waits in `synchronise` until this has a message, or its sender is gone.
    hangs: Option<mpsc::Receiver<()>>,
    /// The sizes that kernels were compiled for.
    compiled: BTreeSet<usize>,
    /// Where these are kept.
    store: Option<KernelStore>,
    /// As large as `reserve` made it.
    input: Vec<u8>,
    /// Whether something was queued that may still read it.
    is_busy: bool,
    uploaded: Vec<u8>,
    output: Vec<f32>,
}

impl Scripted {
    fn image_len(&self) -> usize {
        self.image_len.unwrap_or(IMAGE)
    }

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
            self.input = vec![0; n * self.image_len()];
            Ok(())
        }
    }

    fn input(&mut self, n: usize) -> Result<&mut [u8], DeviceError> {
        assert!(!self.is_busy, "what was queued still reads it");
        let len = n * self.image_len();
        Ok(&mut self.input[..len])
    }

    fn upload(&mut self, n: usize) -> Result<(), DeviceError> {
        self.note(format!("upload {n}"));
        self.is_busy = true;
        self.uploaded = self.input[..n * self.image_len()].to_vec();
        Ok(())
    }

    fn run(&mut self, n: usize) -> Result<(), DeviceError> {
        self.note(format!("run {n}"));
        self.compiled.insert(n);
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
            .uploaded
            .chunks(self.image_len())
            .flat_map(|image| [f32::from(image[0]); CLASSES]);
        self.output = logits.collect();
        Ok(())
    }

    fn synchronise(&mut self) -> Result<(), DeviceError> {
        self.note("synchronise".into());
        if let Some(hangs) = &self.hangs {
            let _ = hangs.recv();
        }
        self.is_busy = false;
        self.sticky.clone().map_or(Ok(()), Err)
    }

    fn logits(&self, n: usize) -> Result<&[f32], DeviceError> {
        assert_eq!(self.output.len(), n * CLASSES);
        Ok(&self.output)
    }

    fn capture(&mut self, n: usize) -> Result<(), DeviceError> {
        self.note(format!("capture {n}"));
        self.captures.clone().map_or(Ok(()), Err)
    }

    fn save_kernels(&mut self) {
        self.note("save".into());
        if let Some(store) = &self.store {
            let kernels: Vec<u8> = self.compiled.iter().map(|size| *size as u8).collect();
            store.save(&kernels);
        }
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

/// The same for images that lie apart from each other.
fn infer_apart(pipeline: &mut Pipeline<Scripted>, n: usize) {
    let images: Vec<Vec<u8>> = (0..n as u8).map(|image| vec![image, 0]).collect();
    let mut together = Vec::new();
    let mut logits = vec![f32::NAN; n * CLASSES];
    pipeline
        .infer_apart(&images, &mut together, &mut logits)
        .unwrap();
    let expected: Vec<f32> = (0..n).flat_map(|image| [image as f32; CLASSES]).collect();
    assert_eq!(logits, expected);
    assert_eq!(together.capacity(), 0, "they were copied once more");
}

/// The calls that begin with `what`.
fn named(calls: &Calls, what: &str) -> Vec<String> {
    let calls = calls.lock().unwrap();
    let named = calls.iter().filter(|call| call.starts_with(what));
    named.cloned().collect()
}

#[test]
fn a_batch_is_padded_to_the_next_size_and_captured_after_its_first_run() {
    let (mut pipeline, calls) = pipeline(Scripted::default(), &state(8));
    infer(&mut pipeline, 3).unwrap();
    infer(&mut pipeline, 4).unwrap();
    let run = |n: usize| {
        [
            format!("upload {n}"),
            "run 4".into(),
            format!("download {n}"),
            "synchronise".into(),
        ]
    };
    let expected = [
        &["reserve 8".to_owned()],
        &run(3)[..],
        &["capture 4".to_owned()],
        &run(4)[..],
    ]
    .concat();
    assert_eq!(*calls.lock().unwrap(), expected);
}

#[test]
fn sizes_are_powers_of_two_and_the_largest_batch() {
    assert_eq!(batch_sizes(32, false), [1, 2, 4, 8, 16, 32]);
    assert_eq!(batch_sizes(24, false), [1, 2, 4, 8, 16, 24]);
    assert_eq!(batch_sizes(1, false), [1]);
    assert_eq!(batch_sizes(4, true), [4]);
}

#[test]
fn no_batch_needs_a_kernel_that_the_warm_up_has_not_compiled() {
    for max in [1, 6, 32] {
        let (mut pipeline, calls) = pipeline(Scripted::default(), &state(max));
        for size in batch_sizes(max, false) {
            infer(&mut pipeline, size).unwrap();
        }
        let compiled = pipeline.device().compiled.clone();
        assert_eq!(named(&calls, "save").len(), 1, "all of them are kept");
        for n in 1..=2 * max {
            infer(&mut pipeline, n).unwrap();
        }
        assert_eq!(pipeline.device().compiled, compiled);
        assert_eq!(named(&calls, "capture").len(), compiled.len());
    }
}

#[test]
fn kernels_are_kept_when_every_size_has_run_and_again_when_there_are_more() {
    let folder = tempfile::tempdir().unwrap();
    let cache = ArtifactCache::open(folder.path(), 1 << 20).unwrap();
    let key = CacheKey::new([("kind", "kernels".to_owned())]);
    let device = Scripted {
        store: Some(KernelStore::new(cache.clone(), key.clone(), None)),
        ..Scripted::default()
    };
    let (mut pipeline, calls) = pipeline(device, &state(2));
    infer(&mut pipeline, 1).unwrap();
    assert!(cache.get(&key).is_err(), "one size has not run");
    infer(&mut pipeline, 2).unwrap();
    assert_eq!(cache.get(&key).unwrap(), [1, 2]);

    // As when a library compiles more in the background.
    pipeline.device().compiled.insert(9);
    for _ in 0..RUNS_BEFORE_SAVING_AGAIN {
        infer(&mut pipeline, 1).unwrap();
    }
    assert_eq!(cache.get(&key).unwrap(), [1, 2, 9]);
    assert_eq!(named(&calls, "save").len(), 2, "not after every batch");
}

#[test]
fn what_cannot_be_captured_runs_without_and_is_logged_once_for_a_gpu() {
    let reason = DeviceError::Failed("not capturable".into());
    let state = state(2);
    let device = Scripted {
        captures: Some(reason.clone()),
        ..Scripted::default()
    };
    let (mut pipeline, calls) = pipeline(device, &state);
    for n in [1, 1, 2, 2] {
        infer(&mut pipeline, n).unwrap();
    }
    assert_eq!(named(&calls, "capture"), ["capture 1", "capture 2"]);
    assert!(!state.note_without_graphs(&reason), "it was told");
}

#[test]
fn a_capture_that_runs_out_of_memory_costs_no_batch() {
    let captures = Some(DeviceError::OutOfMemory("graph".into()));
    let (mut pipeline, calls) = pipeline(
        Scripted {
            captures,
            ..Scripted::default()
        },
        &state(2),
    );
    infer(&mut pipeline, 2).unwrap();
    infer(&mut pipeline, 2).unwrap();
    assert_eq!(named(&calls, "run"), ["run 2", "run 2"]);
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
    assert_eq!(runs, ["run 4", "run 4", "run 4"]);
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
fn images_that_lie_apart_are_copied_once_and_straight_to_where_the_gpu_reads_them() {
    let state = state(16);
    let device = Scripted {
        fits: 6,
        ..Scripted::default()
    };
    let (mut pipeline, calls) = pipeline(device, &state);
    for n in [1, 3, 11] {
        infer_apart(&mut pipeline, n);
    }
    // The eleven don't fit at once: what has been done is not done again.
    let runs = [
        "run 1", "run 4", "run 16", "run 8", "run 4", "run 4", "run 4",
    ];
    assert_eq!(named(&calls, "run"), runs);
}

#[test]
fn when_not_one_image_fits_the_error_says_so() {
    let runs = std::iter::repeat_n(Some(DeviceError::OutOfMemory("kernel".into())), 9).collect();
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

/// A lane for images of `image_len` bytes whose device answers nothing until `release` is used or
/// dropped.
pub(crate) fn hanging_lane(
    image_len: usize,
    classes: usize,
) -> (Box<dyn Engine>, mpsc::Sender<()>) {
    let (release, hangs) = mpsc::channel();
    let device = Scripted {
        image_len: Some(image_len),
        hangs: Some(hangs),
        ..Scripted::default()
    };
    let lane = Pipeline::new(device, state(2), image_len, classes).unwrap();
    (Box::new(lane), release)
}
