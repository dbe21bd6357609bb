//! The scheduler on scripted engines.

use std::sync::{
    atomic::{AtomicUsize, Ordering::SeqCst},
    mpsc,
};

use std::time::Instant;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::*;
use crate::{
    engine::{Engine, EngineError, EngineInfo, EngineKind, Precision},
    image::{Crop, ImageError, PixelFormat, RawFrame, Source},
};

const GEOMETRY: Geometry = Geometry {
    width: 2,
    height: 2,
    resize_shorter_side: 2,
};

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
                offloaded: self.offloaded,
                warnings: Vec::new(),
            },
            wide: self.wide.then(|| lane("wide")),
            narrow: (0..self.narrow).map(|_| lane(name)).collect(),
            plans: Vec::new(),
        };
        let metrics = Arc::new(ModelMetrics::new("test"));
        let queue = scheduler
            .add(LoadedModel {
                lanes,
                geometry: GEOMETRY,
                classes: 1,
                metrics,
            })
            .unwrap();
        (calls, go, queue)
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
        mirrored: false,
    }
}

fn job(value: u8) -> Job {
    Job {
        client: ClientId(1),
        priority: Priority::Normal,
        deadline: None,
        counted: true,
        decode_estimate: Some(Duration::from_millis(1)),
        fetch: Box::new(move || Some(input_image(value))),
        span: None,
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
    outcome.blocking_recv().unwrap().unwrap().logits[0]
}

#[test]
fn an_image_is_decoded_inferred_and_answered() {
    let bench = Setup::default().start();
    let outcome = bench.submit(7);
    assert_eq!(
        bench.call(),
        Call {
            lane: "narrow",
            images: vec![7]
        }
    );
    bench.go();
    let reply = outcome.blocking_recv().unwrap().unwrap();
    assert_eq!(reply.logits, [7.0]);
    assert!(reply.stages.decode > Duration::ZERO && reply.stages.inference > Duration::ZERO);
}

#[test]
fn an_image_that_is_alone_gets_all_cores_and_several_share_them() {
    let bench = Setup {
        narrow: 2,
        wide: true,
        ..Setup::default()
    }
    .start();
    let first = bench.submit(1);
    assert_eq!(
        bench.call(),
        Call {
            lane: "wide",
            images: vec![1]
        }
    );
    let (second, third) = (bench.submit(2), bench.submit(3));
    bench.no_call();
    bench.go();
    assert_eq!(logit(first), 1.0);
    let calls = [bench.call(), bench.call()];
    assert!(calls.iter().all(|call| call.lane == "narrow"), "{calls:?}");
    bench.go();
    bench.go();
    assert_eq!((logit(second), logit(third)), (2.0, 3.0));
    let fourth = bench.submit(4);
    assert_eq!(bench.call().lane, "wide");
    bench.go();
    assert_eq!(logit(fourth), 4.0);
}

#[test]
fn batches_form_from_what_waits() {
    let bench = Setup {
        max_batch: 4,
        ..Setup::default()
    }
    .start();
    let first = bench.occupy(0);
    let rest: Vec<_> = (1..=6).map(|value| bench.submit(value)).collect();
    bench.go();
    assert_eq!(bench.call().images, [1, 2, 3, 4]);
    bench.go();
    assert_eq!(bench.call().images, [5, 6]);
    bench.go();
    assert_eq!(logit(first), 0.0);
    assert_eq!(
        rest.into_iter().map(logit).collect::<Vec<_>>(),
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    );
}

#[test]
fn cores_share_out_what_waits() {
    let bench = Setup {
        narrow: 2,
        max_batch: 4,
        ..Setup::default()
    }
    .start();
    let mut outcomes = vec![bench.submit(0), bench.submit(1)];
    let calls = [bench.call(), bench.call()];
    assert!(calls.iter().all(|call| call.images.len() == 1), "{calls:?}");
    outcomes.extend((2..=5).map(|value| bench.submit(value)));
    for images in [&[2, 3][..], &[4], &[5]] {
        bench.go();
        assert_eq!(bench.call().images, images);
    }
    (0..2).for_each(|_| bench.go());
    assert_eq!(
        outcomes.into_iter().map(logit).collect::<Vec<_>>(),
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    );
}

#[test]
fn an_incomplete_batch_waits_as_long_as_it_may() {
    let start = |max_queue_delay| {
        let config = SchedulerConfig {
            max_queue_delay,
            ..Setup::default().config
        };
        Setup {
            max_batch: 2,
            config,
            ..Setup::default()
        }
        .start()
    };
    let bench = start(Duration::from_secs(3600));
    let first = bench.submit(1);
    bench.no_call();
    let second = bench.submit(2);
    assert_eq!(bench.call().images, [1, 2], "a full batch does not wait");
    bench.go();
    assert_eq!((logit(first), logit(second)), (1.0, 2.0));
    let bench = start(Duration::from_millis(200));
    let started = Instant::now();
    let third = bench.submit(3);
    assert_eq!(bench.call().images, [3]);
    assert!(started.elapsed() >= Duration::from_millis(200));
    bench.go();
    assert_eq!(logit(third), 3.0);
}

#[test]
fn a_fixed_batch_is_filled_up() {
    let bench = Setup {
        max_batch: 3,
        fixed_batch: true,
        ..Setup::default()
    }
    .start();
    let outcome = bench.submit(5);
    assert_eq!(bench.call().images, [5, 0, 0]);
    bench.go();
    assert_eq!(outcome.blocking_recv().unwrap().unwrap().logits, [5.0]);
}

#[test]
fn expired_and_abandoned_work_is_neither_decoded_nor_inferred() {
    let bench = Setup::default().start();
    let first = bench.occupy(1);
    let fetched = Arc::new(AtomicUsize::new(0));
    let counting = |deadline| {
        let fetched = Arc::clone(&fetched);
        let fetch = Box::new(move || {
            fetched.fetch_add(1, SeqCst);
            Some(input_image(9))
        });
        bench
            .queue
            .submit(Job {
                deadline,
                fetch,
                ..job(9)
            })
            .unwrap()
    };
    let expired = counting(Some(Instant::now() + Duration::from_millis(10)));
    drop(counting(None));
    let last = bench.submit(2);
    std::thread::sleep(Duration::from_millis(20));
    bench.go();
    assert_eq!(bench.call().images, [2]);
    bench.go();
    assert!(matches!(
        expired.blocking_recv().unwrap(),
        Err(JobError::DeadlineExceeded)
    ));
    assert_eq!((logit(first), logit(last)), (1.0, 2.0));
    assert_eq!(fetched.load(SeqCst), 0);
}

#[test]
fn a_withdrawn_job_does_not_hold_up_the_batch_before_it() {
    let bench = Setup {
        max_batch: 2,
        ..Setup::default()
    }
    .start();
    let first = bench.occupy(0);
    let live = bench.submit(1);
    drop(bench.submit(9));
    bench.go();
    assert_eq!(bench.call().images, [1]);
    bench.go();
    assert_eq!((logit(first), logit(live)), (0.0, 1.0));
}

#[test]
fn images_that_cannot_be_decoded_do_not_hold_up_the_batch_before_them() {
    let bench = Setup {
        max_batch: 2,
        ..Setup::default()
    }
    .start();
    let slow = || {
        let fetch = Box::new(|| {
            std::thread::sleep(Duration::from_millis(5));
            Some(InputImage {
                source: Source::Encoded(Bytes::new()),
                arrived: Instant::now(),
                mirrored: false,
            })
        });
        bench
            .queue
            .submit(Job {
                fetch,
                counted: false,
                ..job(0)
            })
            .unwrap()
    };
    let good = bench.submit(1);
    let bad: Vec<_> = (0..200).map(|_| slow()).collect();
    assert_eq!(bench.call().images, [1]);
    let waiting = bench
        .scheduler
        .shared
        .lock()
        .queues
        .values()
        .map(|queue| queue.waiting.len())
        .sum::<usize>();
    assert!(waiting > 100, "most of the bad ones still wait");
    bench.go();
    assert_eq!(logit(good), 1.0);
    drop(bad);
}

#[test]
fn jobs_whose_callers_have_gone_give_their_places_back() {
    let config = SchedulerConfig {
        queue_capacity: Capacity::Exactly(NonZeroUsize::new(2).unwrap()),
        ..Setup::default().config
    };
    let bench = Setup {
        config,
        ..Setup::default()
    }
    .start();
    let first = bench.occupy(0);
    drop([bench.submit(8), bench.submit(9)]);
    let second = bench.submit(1);
    bench.go();
    bench.go();
    assert_eq!((logit(first), logit(second)), (0.0, 1.0));
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let bench = Setup::default().start();
    let outcome = bench.occupy(253);
    bench.go();
    assert!(matches!(
        outcome.blocking_recv().unwrap(),
        Err(JobError::Engine(_))
    ));
}

#[test]
fn a_full_queue_refuses_and_streams_are_not_counted() {
    let config = SchedulerConfig {
        queue_capacity: Capacity::Exactly(NonZeroUsize::new(2).unwrap()),
        ..Setup::default().config
    };
    let bench = Setup {
        config,
        ..Setup::default()
    }
    .start();
    let first = bench.occupy(0);
    let waiting = [bench.submit(1), bench.submit(2)];
    let full = bench.queue.submit(job(3)).unwrap_err();
    assert_eq!(full.waiting, 2);
    assert!(full.retry_after > Duration::ZERO);
    let stream = bench
        .queue
        .submit(Job {
            counted: false,
            ..job(4)
        })
        .unwrap();
    for _ in 0..4 {
        bench.go();
    }
    assert_eq!(logit(first), 0.0);
    assert_eq!((waiting.map(logit), logit(stream)), ([1.0, 2.0], 4.0));
}

#[test]
fn a_flooding_client_gives_way_to_another() {
    let config = SchedulerConfig {
        queue_capacity: Capacity::Exactly(NonZeroUsize::new(3).unwrap()),
        ..Setup::default().config
    };
    let bench = Setup {
        config,
        ..Setup::default()
    }
    .start();
    let first = bench.occupy(0);
    let flood: Vec<_> = (1..=3).map(|value| bench.submit(value)).collect();
    let other = bench
        .queue
        .submit(Job {
            client: ClientId(2),
            ..job(9)
        })
        .unwrap();
    for _ in 0..4 {
        bench.go();
    }
    assert_eq!((logit(first), logit(other)), (0.0, 9.0));
    let flood: Vec<_> = flood
        .into_iter()
        .map(|outcome| outcome.blocking_recv().unwrap())
        .collect();
    assert!(
        matches!(flood[..], [Ok(_), Ok(_), Err(JobError::Displaced(_))]),
        "{flood:?}"
    );
}

#[test]
fn a_bad_image_fails_alone() {
    let bench = Setup::default().start();
    let fetch = Box::new(|| {
        Some(InputImage {
            source: Source::Encoded(Bytes::new()),
            arrived: Instant::now(),
            mirrored: false,
        })
    });
    let bad = bench.queue.submit(Job { fetch, ..job(0) }).unwrap();
    assert!(matches!(
        bad.blocking_recv().unwrap(),
        Err(JobError::Image(_))
    ));
    let good = bench.occupy(1);
    bench.go();
    assert_eq!(logit(good), 1.0);
}

#[test]
fn an_engine_that_fails_or_panics_fails_its_batch_only() {
    let bench = Setup::default().start();
    for (value, reason) in [(255, "as told"), (254, "panicked")] {
        let failed = bench.occupy(value);
        bench.go();
        match failed.blocking_recv().unwrap() {
            Err(JobError::Engine(error)) => assert!(error.to_string().contains(reason), "{error}"),
            other => panic!("{other:?}"),
        }
    }
    let good = bench.occupy(1);
    bench.go();
    assert_eq!(logit(good), 1.0);
}

#[test]
fn stopping_finishes_what_was_admitted() {
    let bench = Setup {
        narrow: 2,
        wide: true,
        ..Setup::default()
    }
    .start();
    let outcomes: Vec<_> = (0..8).map(|value| bench.submit(value)).collect();
    for _ in 0..8 {
        bench.go();
    }
    drop(bench);
    assert_eq!(
        outcomes.into_iter().map(logit).collect::<Vec<_>>(),
        [0., 1., 2., 3., 4., 5., 6., 7.]
    );
}

#[test]
fn a_live_source_gives_its_newest_image_when_its_turn_comes() {
    let bench = Setup::default().start();
    let first = bench.occupy(0);
    let newest = Arc::new(Mutex::new(1));
    let fetch = {
        let newest = Arc::clone(&newest);
        Box::new(move || Some(input_image(*newest.lock().unwrap())))
    };
    let live = bench.queue.submit(Job { fetch, ..job(0) }).unwrap();
    *newest.lock().unwrap() = 2;
    bench.go();
    assert_eq!(bench.call().images, [2]);
    bench.go();
    assert_eq!((logit(first), logit(live)), (0.0, 2.0));
}

#[test]
fn models_take_turns_however_much_is_asked_of_one() {
    let bench = Setup::default().start();
    let (calls, go, other) = Setup::default().add("other", &bench.scheduler);
    let submit = |queue: &Queue, value| {
        queue
            .submit(Job {
                counted: false,
                ..job(value)
            })
            .unwrap()
    };
    let first = bench.occupy(0);
    let flood: Vec<_> = (1..=20).map(|value| submit(&bench.queue, value)).collect();
    let few: Vec<_> = (100..104).map(|value| submit(&other, value)).collect();
    bench.go();
    assert_eq!(logit(first), 0.0);
    let mut order = Vec::new();
    while order.len() < 24 {
        if let Ok(call) = bench.calls.recv_timeout(Duration::from_millis(5)) {
            order.push(call.images[0]);
            bench.go();
        } else if let Ok(call) = calls.recv_timeout(Duration::from_millis(5)) {
            order.push(call.images[0]);
            go.send(()).unwrap();
        }
    }
    let last_of_few = order.iter().position(|value| *value == 103).unwrap();
    assert!(
        last_of_few <= 10,
        "four images of one model wait for about as many of the other: {order:?}"
    );
    flood
        .into_iter()
        .chain(few)
        .for_each(|outcome| assert!(outcome.blocking_recv().unwrap().is_ok()));
}

#[test]
fn a_retired_model_finishes_what_it_was_given_and_then_drops_its_engines() {
    let bench = Setup {
        max_batch: 2,
        ..Setup::default()
    }
    .start();
    let (calls, go, other) = Setup::default().add("other", &bench.scheduler);
    let outcomes = [other.submit(job(1)).unwrap(), other.submit(job(2)).unwrap()];
    drop(other);
    for _ in 0..2 {
        calls
            .recv_timeout(Duration::from_secs(5))
            .expect("what was admitted is inferred");
        go.send(()).unwrap();
    }
    assert_eq!(outcomes.map(logit), [1.0, 2.0]);
    // The sender lives in the engine.
    let gone = calls.recv_timeout(Duration::from_secs(5));
    assert!(
        matches!(gone, Err(mpsc::RecvTimeoutError::Disconnected)),
        "{gone:?}"
    );
    let first = bench.occupy(7);
    bench.go();
    assert_eq!(logit(first), 7.0);
}

#[test]
fn an_idle_model_is_retired_at_once() {
    for offloaded in [false, true] {
        let bench = Setup::default().start();
        let (calls, _go, other) = Setup {
            offloaded,
            ..Setup::default()
        }
        .add("other", &bench.scheduler);
        drop(other);
        let gone = calls.recv_timeout(Duration::from_secs(5));
        assert!(
            matches!(gone, Err(mpsc::RecvTimeoutError::Disconnected)),
            "{gone:?}"
        );
    }
}

#[test]
fn images_are_decoded_while_a_device_is_busy() {
    let bench = Setup {
        narrow: 2,
        max_batch: 2,
        offloaded: true,
        ..Setup::default()
    }
    .start();
    let first = bench.occupy(0);
    let second = bench.occupy(1);
    let fetched = Arc::new(AtomicUsize::new(0));
    let rest: Vec<_> = (2..12)
        .map(|value| {
            let fetched = Arc::clone(&fetched);
            let fetch = Box::new(move || {
                fetched.fetch_add(1, SeqCst);
                Some(input_image(value))
            });
            bench
                .queue
                .submit(Job {
                    fetch,
                    ..job(value)
                })
                .unwrap()
        })
        .collect();
    let give_up = Instant::now() + Duration::from_secs(5);
    while fetched.load(SeqCst) < 6 && Instant::now() < give_up {
        std::thread::sleep(Duration::from_millis(5));
    }
    bench.no_call();
    assert_eq!(
        fetched.load(SeqCst),
        6,
        "one batch for each lane is decoded ahead, and one more"
    );
    bench.go();
    assert_eq!(bench.call().images.len(), 2, "a full batch was ready");
    // However the rest falls into batches.
    (0..10).for_each(|_| bench.go());
    assert_eq!((logit(first), logit(second)), (0.0, 1.0));
    assert_eq!(
        rest.into_iter().map(logit).collect::<Vec<_>>(),
        (2_u8..12).map(f32::from).collect::<Vec<_>>()
    );
}

#[test]
fn an_incomplete_batch_does_not_wait_for_bad_images_before_a_device() {
    let config = SchedulerConfig {
        max_queue_delay: Duration::from_millis(100),
        ..Setup::default().config
    };
    let bench = Setup {
        max_batch: 2,
        offloaded: true,
        config,
        ..Setup::default()
    }
    .start();
    let good = bench.submit(1);
    let fetch = Box::new(|| {
        Some(InputImage {
            source: Source::Encoded(Bytes::new()),
            arrived: Instant::now(),
            mirrored: false,
        })
    });
    let bad = bench.queue.submit(Job { fetch, ..job(0) }).unwrap();
    assert!(bad.blocking_recv().unwrap().is_err());
    assert_eq!(bench.call().images, [1]);
    bench.go();
    assert_eq!(logit(good), 1.0);
}

#[test]
fn an_engine_that_is_lost_is_told_to_whoever_watches() {
    for offloaded in [false, true] {
        let bench = Setup {
            offloaded,
            ..Setup::default()
        }
        .start();
        let failed = bench.occupy(252);
        bench.go();
        assert!(matches!(
            failed.blocking_recv().unwrap(),
            Err(JobError::Engine(_))
        ));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let failure = runtime.block_on(bench.scheduler.failed());
        assert!(
            matches!(failure, Failure::Engine(error) if matches!(*error, EngineError::Lost { .. }))
        );
    }
}

#[test]
fn the_capacity_follows_the_pace_and_the_share() {
    let mut pace = Pace::default();
    (0..300).for_each(|_| pace.record_inference(1, Duration::from_millis(18), 0.5));
    // 1 ms of decoding and 9 of inference an image.
    let capacity = |capacity: Capacity, share| capacity.requests(&pace, share, 2);
    assert_eq!(
        (
            capacity(Capacity::Usual, 1.0),
            capacity(Capacity::Usual, 0.5)
        ),
        (20, 10)
    );
    assert_eq!(
        capacity(Capacity::Within(Duration::from_millis(105)), 1.0),
        8
    );
    assert_eq!(
        capacity(Capacity::Within(Duration::from_millis(105)), 0.5),
        4
    );
    assert_eq!(capacity(Capacity::Within(Duration::from_millis(1)), 1.0), 1);
    assert_eq!(
        capacity(Capacity::Exactly(NonZeroUsize::new(3).unwrap()), 0.1),
        3
    );
}

#[test]
fn what_is_in_work_counts_towards_the_latency_target() {
    let mut setup = Setup {
        max_batch: 2,
        ..Setup::default()
    };
    // Of images that take 10 ms, as is assumed before the first is done.
    setup.config.queue_capacity = Capacity::Within(Duration::from_millis(45));
    let bench = setup.start();
    let first = bench.occupy(0);
    let rest: Vec<_> = (1..=3).map(|value| bench.submit(value)).collect();
    assert_eq!(
        bench.queue.submit(job(4)).unwrap_err().waiting,
        3,
        "with the one in work there are four"
    );
    for calls in [2, 1] {
        bench.go();
        assert_eq!(bench.call().images.len(), calls);
    }
    bench.go();
    assert_eq!(
        [first]
            .into_iter()
            .chain(rest)
            .map(logit)
            .collect::<Vec<_>>(),
        [0.0, 1.0, 2.0, 3.0]
    );
}

#[test]
fn what_is_urgent_goes_first_and_what_can_wait_is_not_forgotten() {
    let bench = Setup::default().start();
    let first = bench.occupy(0);
    let submit = |priority, value| {
        let client = ClientId(u64::from(value / 50));
        bench
            .queue
            .submit(Job {
                client,
                priority,
                counted: false,
                ..job(value)
            })
            .unwrap()
    };
    let low: Vec<_> = (100..104)
        .map(|value| submit(Priority::Low, value))
        .collect();
    let high: Vec<_> = (1..=12)
        .map(|value| submit(Priority::High, value))
        .collect();
    let mut order = Vec::new();
    bench.go();
    for _ in 0..16 {
        order.extend(bench.call().images);
        bench.go();
    }
    assert_eq!(
        order,
        [1, 2, 3, 4, 100, 5, 6, 7, 8, 101, 9, 10, 11, 12, 102, 103]
    );
    assert_eq!(logit(first), 0.0);
    assert_eq!(
        high.into_iter().map(logit).sum::<f32>() + low.into_iter().map(logit).sum::<f32>(),
        78.0 + 406.0
    );
}

#[test]
fn a_request_of_several_images_takes_one_place() {
    let config = SchedulerConfig {
        queue_capacity: Capacity::Exactly(NonZeroUsize::new(2).unwrap()),
        ..Setup::default().config
    };
    let bench = Setup {
        config,
        ..Setup::default()
    }
    .start();
    let first = bench.occupy(0);
    let images = bench.queue.submit_all((1..=8).map(job)).unwrap();
    let more = bench.queue.submit_all((9..=10).map(job)).unwrap();
    let other = |value| Job {
        client: ClientId(2),
        ..job(value)
    };
    // Each of the two has one place, of two; nobody has enough of them to give one up but to the
    // first of another client.
    assert!(
        bench.queue.submit_all((11..=12).map(job)).is_err(),
        "as many requests wait as there are places"
    );
    let displacing = bench.queue.submit(other(13)).unwrap();
    assert!(matches!(
        more.into_iter().next().unwrap().blocking_recv().unwrap(),
        Err(JobError::Displaced(_))
    ));
    for _ in 0..10 {
        bench.go();
    }
    assert_eq!(logit(first), 0.0);
    assert_eq!(logit(displacing), 13.0);
    assert_eq!(
        images.into_iter().map(logit).collect::<Vec<_>>(),
        [1., 2., 3., 4., 5., 6., 7., 8.]
    );
}

#[test]
fn a_device_that_finds_only_abandoned_images_lets_others_be_decoded() {
    let bench = Setup {
        offloaded: true,
        ..Setup::default()
    }
    .start();
    let first = bench.occupy(0);
    // As many as are decoded ahead, and one that waits for room.
    let abandoned = [1, 2].map(|value| bench.queue.submit(job(value)).unwrap());
    let last = bench.queue.submit(job(3)).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    drop(abandoned);
    bench.go();
    assert_eq!(logit(first), 0.0);
    assert_eq!(
        bench
            .calls
            .recv_timeout(Duration::from_secs(5))
            .expect("the last image is not forgotten")
            .images,
        [3]
    );
    bench.go();
    assert_eq!(logit(last), 3.0);
}

#[test]
fn a_retired_device_that_finds_only_abandoned_images_ends() {
    let Bench {
        go,
        queue,
        scheduler,
        calls,
    } = Setup {
        offloaded: true,
        ..Setup::default()
    }
    .start();
    let first = queue.submit(job(0)).unwrap();
    calls
        .recv_timeout(Duration::from_secs(5))
        .expect("the device is called");
    // A thread that does not end would keep a failing test from ending.
    let scheduler = std::mem::ManuallyDrop::new(scheduler);
    let abandoned = queue.submit(job(1)).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    drop((abandoned, queue));
    go.send(()).unwrap();
    assert_eq!(logit(first), 0.0);
    let gone = calls.recv_timeout(Duration::from_secs(5)).unwrap_err();
    assert_eq!(
        gone,
        mpsc::RecvTimeoutError::Disconnected,
        "its engine is dropped"
    );
    drop(std::mem::ManuallyDrop::into_inner(scheduler));
}

#[test]
fn a_ready_crop_is_taken_as_it_is() {
    let bench = Setup::default().start();
    let crop = |pixels: Vec<u8>| {
        let fetch = Box::new(|| {
            let image = Source::Crop(Crop::Pixels(pixels.into()));
            Some(InputImage {
                source: image,
                arrived: Instant::now(),
                mirrored: false,
            })
        });
        bench.queue.submit(Job { fetch, ..job(0) }).unwrap()
    };
    let wrong = crop(vec![1; GEOMETRY.bytes() - 1]);
    assert!(matches!(
        wrong.blocking_recv().unwrap(),
        Err(JobError::Image(ImageError::ReadyCropLength { .. }))
    ));
    let right = crop((40..40 + GEOMETRY.bytes() as u8).collect());
    assert_eq!(bench.call().images, [40]);
    bench.go();
    assert_eq!(logit(right), 40.0);
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
        client: ClientId(2),
        decode_estimate: Some(estimate),
        fetch,
        ..job(0)
    };
    (job, release, begun)
}

const SOON: Duration = Duration::from_secs(10);

/// A scheduler that takes its threads for lost after this time.
fn impatient(narrow: usize) -> Setup {
    let config = SchedulerConfig {
        stall_timeout: Duration::from_millis(200),
        preprocess: PreprocessConfig {
            max_decode_time: Duration::from_millis(100),
            ..PreprocessConfig::default()
        },
        ..Setup::default().config
    };
    Setup {
        narrow,
        config,
        ..Setup::default()
    }
}

#[test]
fn a_worker_that_hangs_is_replaced_and_its_image_answered() {
    let bench = impatient(1).start();
    let (job, release, begun) = blocked(Duration::ZERO);
    let stuck = bench.queue.submit(job).unwrap();
    begun.recv_timeout(SOON).expect("it is fetched");
    let next = bench.submit(1);
    let answer = stuck.blocking_recv().unwrap();
    assert!(matches!(answer, Err(JobError::Stuck(after)) if after > Duration::from_millis(200)));
    assert_eq!(bench.call().images, [1], "by another thread");
    bench.go();
    assert_eq!(logit(next), 1.0);

    // It comes back, too late: nothing is left of it.
    assert_eq!(bench.scheduler.shared.lock().lost, 1);
    release.send(()).unwrap();
    let give_up = Instant::now() + SOON;
    while bench.scheduler.shared.lock().lost > 0 {
        assert!(Instant::now() < give_up, "it ends");
        std::thread::sleep(Duration::from_millis(5));
    }
    let last = bench.occupy(2);
    bench.go();
    assert_eq!(logit(last), 2.0);
    let state = bench.scheduler.shared.lock();
    assert_eq!((state.active, state.heavy, state.threads), (0, 0, 1));
}

#[test]
fn an_engine_that_hangs_takes_its_lane_and_the_last_one_the_server() {
    for offloaded in [false, true] {
        let bench = Setup {
            offloaded,
            ..impatient(2)
        }
        .start();
        let first = bench.occupy(1);
        let error = match first.blocking_recv().unwrap() {
            Err(JobError::Engine(error)) => error,
            other => panic!("{other:?}"),
        };
        assert!(error.to_string().contains("1 of its lanes"), "{error}");
        let second = bench.occupy(2);
        assert!(matches!(
            second.blocking_recv().unwrap(),
            Err(JobError::Engine(error)) if matches!(*error, EngineError::Lost { .. })
        ));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let failure = runtime.block_on(bench.scheduler.failed());
        assert!(failure.to_string().contains("--stall-timeout"), "{failure}");
        assert_eq!(
            bench.scheduler.stop(Duration::from_millis(100)),
            2,
            "they are not waited for"
        );
        drop(bench);
    }
}

#[test]
fn so_many_hanging_threads_are_the_end() {
    let bench = impatient(1).start();
    let mut held = Vec::new();
    for _ in 0..MAX_LOST_PER_THREAD {
        let (job, release, begun) = blocked(Duration::ZERO);
        let stuck = bench.queue.submit(job).unwrap();
        begun.recv_timeout(SOON).expect("there is a thread for it");
        assert!(stuck.blocking_recv().unwrap().is_err());
        held.push(release);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let failure = runtime.block_on(bench.scheduler.failed());
    assert!(matches!(
        failure,
        Failure::Hanging {
            threads: MAX_LOST_PER_THREAD
        }
    ));
}

#[test]
fn a_worker_that_panics_goes_on_with_the_next_image() {
    let bench = Setup::default().start();
    let fetch = Box::new(|| panic!("as told"));
    let panicked = bench.queue.submit(Job { fetch, ..job(0) }).unwrap();
    assert!(matches!(
        panicked.blocking_recv().unwrap(),
        Err(JobError::Panicked)
    ));
    let good = bench.occupy(1);
    bench.go();
    assert_eq!(logit(good), 1.0);
    assert_eq!(bench.scheduler.shared.lock().threads, 1);
}

#[test]
fn stopping_waits_for_no_thread_without_a_limit() {
    let bench = Setup::default().start();
    let (job, release, begun) = blocked(Duration::ZERO);
    let outcome = bench.queue.submit(job).unwrap();
    begun.recv_timeout(SOON).expect("it is fetched");
    let started = Instant::now();
    assert_eq!(bench.scheduler.stop(Duration::from_millis(50)), 1);
    assert!(started.elapsed() < SOON);
    assert!(
        outcome.blocking_recv().is_err(),
        "its caller waits no longer"
    );
    release.send(()).unwrap();
    let give_up = Instant::now() + SOON;
    while bench.scheduler.stop(SOON) > 0 {
        assert!(Instant::now() < give_up, "it ends when it can");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn heavy_images_leave_half_of_the_cores_to_others() {
    let bench = Setup {
        narrow: 2,
        ..Setup::default()
    }
    .start();
    let heavy = HEAVY_DECODE + Duration::from_millis(1);
    let (first, release_first, begun_first) = blocked(heavy);
    let (second, release_second, begun_second) = blocked(heavy);
    let heavies = [first, second].map(|job| {
        let client = ClientId(100);
        bench.queue.submit(Job { client, ..job }).unwrap()
    });
    begun_first.recv_timeout(SOON).expect("one is decoded");
    for value in 1..5 {
        let light = bench.occupy(value);
        bench.go();
        assert_eq!(logit(light), f32::from(value));
    }
    assert!(begun_second.try_recv().is_err(), "the other one waits");

    // Of a live stream it is known only when it is fetched.
    let frame = RawFrame {
        format: PixelFormat::Rgb8,
        width: 6000,
        height: 6000,
        stride: 0,
        data: vec![0; 6000 * 6000 * 3].into(),
    };
    let fetched = Arc::new(AtomicUsize::new(0));
    let live = {
        let fetched = Arc::clone(&fetched);
        let fetch = Box::new(move || {
            fetched.fetch_add(1, SeqCst);
            Some(InputImage {
                source: Source::Raw(frame),
                arrived: Instant::now(),
                mirrored: false,
            })
        });
        Job {
            client: ClientId(3),
            counted: false,
            decode_estimate: None,
            fetch,
            ..job(0)
        }
    };
    let live = bench.queue.submit(live).unwrap();
    let give_up = Instant::now() + SOON;
    while fetched.load(SeqCst) == 0 {
        assert!(Instant::now() < give_up, "it is fetched");
        std::thread::sleep(Duration::from_millis(1));
    }
    let light = bench.occupy(5);
    bench.go();
    assert_eq!(logit(light), 5.0);
    assert_eq!(bench.scheduler.shared.lock().heavy, 1, "it waits too");

    drop((release_first, release_second));
    (0..3).for_each(|_| bench.go());
    for outcome in heavies.into_iter().chain([live]) {
        assert!(outcome.blocking_recv().unwrap().is_ok());
    }
    let state = bench.scheduler.shared.lock();
    assert_eq!((state.heavy, state.active), (0, 0));
}

#[test]
fn a_client_of_heavy_images_waits_behind_one_of_light_ones() {
    let bench = Setup::default().start();
    let first = bench.occupy(0);
    let submit = |client, value, estimate| {
        bench
            .queue
            .submit(Job {
                client: ClientId(client),
                counted: false,
                decode_estimate: Some(Duration::from_millis(estimate)),
                ..job(value)
            })
            .unwrap()
    };
    let heavy: Vec<_> = (100..104).map(|value| submit(2, value, 400)).collect();
    let light: Vec<_> = (1..=8).map(|value| submit(3, value, 1)).collect();
    let mut order = Vec::new();
    bench.go();
    for _ in 0..12 {
        order.extend(bench.call().images);
        bench.go();
    }
    assert_eq!(order[..8], [1, 2, 3, 4, 5, 6, 7, 8], "{order:?}");
    drop((first, heavy, light));
}

#[test]
fn it_is_told_when_nothing_moves_and_when_something_does_again() {
    let mut setup = Setup::default();
    setup.config.stall_timeout = Duration::from_millis(100);
    setup.config.preprocess.max_decode_time = Duration::from_millis(100);
    let bench = setup.start();
    let stalled = |wanted: bool| {
        let give_up = Instant::now() + SOON;
        while bench.scheduler.stalled().is_some() != wanted {
            assert!(Instant::now() < give_up, "stalled is not {wanted}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    // As if a wide engine ran that no thread runs.
    bench.scheduler.shared.lock().exclusive = true;
    let outcome = bench.submit(1);
    stalled(true);
    bench.scheduler.shared.lock().exclusive = false;
    bench.scheduler.shared.work_available.notify_all();
    assert_eq!(bench.call().images, [1]);
    bench.go();
    assert_eq!(logit(outcome), 1.0);
    stalled(false);
}

#[test]
fn time_in_which_the_process_stood_still_does_not_count() {
    let bench = Setup::default().start();
    let outcome = bench.occupy(1);
    let mut watchdog = Watchdog::new(Arc::clone(&bench.scheduler.shared));
    watchdog.step(Instant::now() + Duration::from_secs(3600));
    bench.go();
    assert_eq!(logit(outcome), 1.0);
}
