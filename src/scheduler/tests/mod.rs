//! The scheduler on scripted engines.

mod batches;
mod devices;
mod helping;
mod jobs;
mod regions;
mod turns;
mod watchdog;

use std::{
    sync::{
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::*;
use crate::{
    engine::{Engine, EngineError, EngineInfo, EngineKind, Precision, Results},
    image::{Crop, ImageError, PixelFormat, RawFrame, Source},
    metrics::statistics::RequestKind,
};

const GEOMETRY: Geometry = Geometry::cropped(2, 2, 2);

/// One call of an engine: its lane, and the first byte of each image.
#[derive(Debug, PartialEq)]
struct Call {
    lane: &'static str,
    images: Vec<u8>,
}

/// Reports each call and answers it when the test allows it. The logits are the image's first byte;
/// an image of 255 fails.
struct Scripted {
    lane: &'static str,
    calls: mpsc::Sender<Call>,
    go: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl Engine for Scripted {
    fn infer(&mut self, images: &[u8], n: usize, logits: &mut [f32]) -> Result<(), EngineError> {
        assert_eq!((images.len(), logits.len()), (n * GEOMETRY.bytes(), n));
        let firsts: Vec<u8> = images
            .chunks_exact(GEOMETRY.bytes())
            .map(|image| image[0])
            .collect();
        logits
            .iter_mut()
            .zip(&firsts)
            .for_each(|(logit, first)| *logit = f32::from(*first));
        self.calls
            .send(Call {
                lane: self.lane,
                images: firsts.clone(),
            })
            .unwrap();
        self.go.lock().unwrap().recv().unwrap();
        match firsts[0] {
            255 => Err(EngineError::Inference {
                kind: EngineKind::Embedded,
                reason: "as told".into(),
            }),
            252 => Err(EngineError::Lost {
                kind: EngineKind::Embedded,
                reason: "as told".into(),
            }),
            254 => panic!("as told"),
            253 => {
                logits.fill(f32::NAN);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The embedding of an image is its first byte and the size of the batch.
    fn infer_with_embeddings(
        &mut self,
        images: &[u8],
        n: usize,
        results: Results<'_>,
    ) -> Result<(), EngineError> {
        self.infer(images, n, results.logits)?;
        let rows = results.embeddings.chunks_exact_mut(2);
        for (row, image) in rows.zip(images.chunks_exact(GEOMETRY.bytes())) {
            row.copy_from_slice(&[f32::from(image[0]), n as f32]);
        }
        Ok(())
    }
}

/// Fields are dropped from top to bottom: when a test fails, waiting engines fail too instead of
/// blocking for ever.
struct Bench {
    go: mpsc::Sender<()>,
    queue: Queue,
    scheduler: Scheduler,
    calls: mpsc::Receiver<Call>,
}

struct Setup {
    narrow: usize,
    wide: bool,
    max_batch: usize,
    fixed_batch: bool,
    offloaded: bool,
    embedding: Option<usize>,
    background: bool,
    config: SchedulerConfig,
}

impl Default for Setup {
    fn default() -> Self {
        let config = SchedulerConfig {
            threads: NonZeroUsize::MIN,
            queue_capacity: Capacity::Exactly(NonZeroUsize::new(16).unwrap()),
            max_queue_delay: Duration::ZERO,
            preprocess: PreprocessConfig::default(),
            stall_timeout: SchedulerConfig::STALL_TIMEOUT,
        };
        Self {
            narrow: 1,
            wide: false,
            max_batch: 1,
            fixed_batch: false,
            offloaded: false,
            embedding: None,
            background: false,
            config,
        }
    }
}

impl Setup {
    /// Starts as many cores as lanes, unless the lanes are on a device.
    fn start(self) -> Bench {
        let threads = if self.offloaded { 1 } else { self.narrow };
        let config = SchedulerConfig {
            threads: NonZeroUsize::new(threads).unwrap(),
            ..self.config
        };
        let scheduler = Scheduler::new(config).unwrap();
        let (calls, go, queue) = self.add("narrow", &scheduler);
        Bench {
            scheduler,
            queue,
            calls,
            go,
        }
    }

    /// Adds another model to the same scheduler.
    fn add(
        self,
        name: &'static str,
        scheduler: &Scheduler,
    ) -> (mpsc::Receiver<Call>, mpsc::Sender<()>, Queue) {
        let (call_sender, calls) = mpsc::channel();
        let (go, go_receiver) = mpsc::channel();
        let go_receiver = Arc::new(Mutex::new(go_receiver));
        let lane = |lane| -> Box<dyn Engine> {
            Box::new(Scripted {
                lane,
                calls: call_sender.clone(),
                go: Arc::clone(&go_receiver),
            })
        };
        let lanes = Lanes {
            info: EngineInfo {
                kind: EngineKind::Embedded,
                version: "1".into(),
                precision: Precision::Fp32,
                device: "test".into(),
                max_batch: self.max_batch,
                fixed_batch: self.fixed_batch,
                batch_sizes: Vec::new(),
                offloaded: self.offloaded,
                embedding: self.embedding,
                warnings: Vec::new(),
            },
            wide: self.wide.then(|| lane("wide")),
            narrow: (0..self.narrow).map(|_| lane(name)).collect(),
            plans: Vec::new(),
        };
        let metrics = Arc::new(ModelMetrics::new("test"));
        let loaded = LoadedModel {
            lanes,
            geometry: GEOMETRY,
            classes: 1,
            metrics,
        };
        let queue = if self.background {
            scheduler.add_background(loaded)
        } else {
            scheduler.add(loaded)
        };
        (calls, go, queue.unwrap())
    }
}

fn input_image(value: u8) -> InputImage {
    let data = Bytes::from(vec![value; GEOMETRY.bytes()]);
    let frame = RawFrame {
        format: PixelFormat::Rgb8,
        width: 2,
        height: 2,
        stride: 0,
        data,
    };
    InputImage {
        source: Source::Raw(frame),
        arrived: Instant::now(),
        regions: [].into(),
        mirrored: false,
    }
}

fn job(value: u8) -> Job {
    Job {
        client: ClientId::alone(1),
        priority: Priority::Normal,
        called: Instant::now(),
        deadline: None,
        counted: true,
        decode_estimate: Some(Duration::from_millis(1)),
        crops: 1,
        wants_embedding: false,
        fetch: Box::new(move || Some(input_image(value))),
        span: None,
        kind: RequestKind::Contract,
    }
}

impl Bench {
    fn submit(&self, value: u8) -> oneshot::Receiver<Outcome> {
        self.queue
            .submit(job(value))
            .expect("there is a place in the queue")
    }

    /// The next call of an engine, which then waits for [`Bench::go`].
    fn call(&self) -> Call {
        self.calls
            .recv_timeout(Duration::from_secs(5))
            .expect("the engine is called")
    }

    fn no_call(&self) {
        assert!(
            self.calls.recv_timeout(Duration::from_millis(50)).is_err(),
            "no engine should be called"
        );
    }

    fn go(&self) {
        self.go.send(()).unwrap();
    }

    /// Occupies the only lane with image `value`.
    fn occupy(&self, value: u8) -> oneshot::Receiver<Outcome> {
        let outcome = self.submit(value);
        assert_eq!(self.call().images, [value]);
        outcome
    }
}

fn logit(outcome: oneshot::Receiver<Outcome>) -> f32 {
    outcome.blocking_recv().unwrap().unwrap().outputs[0].logits[0]
}

/// Decoding takes as long as the test wants: an image whose source blocks.
fn blocked(estimate: Duration) -> (Job, mpsc::Sender<()>, mpsc::Receiver<()>) {
    let (release, released) = mpsc::channel();
    let (begin, begun) = mpsc::channel();
    let fetch = Box::new(move || {
        let _ = begin.send(());
        let _ = released.recv();
        Some(input_image(99))
    });
    let job = Job {
        client: ClientId::alone(2),
        decode_estimate: Some(estimate),
        fetch,
        ..job(0)
    };
    (job, release, begun)
}

/// How long the tests wait for what other threads do.
const SOON: Duration = Duration::from_secs(10);

/// Waits until this holds, which is asked again and again.
#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let give_up = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < give_up, "not seen: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
