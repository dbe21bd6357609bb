//! Threads that hang or panic, stalls, and an end with a limit.

use super::*;

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
    wait_until("the thread that was left behind ends", || {
        bench.scheduler.shared.lock().lost == 0
    });
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

#[cfg(feature = "tensorrt")]
#[test]
fn a_gpu_that_answers_nothing_is_given_up() {
    let (lane, release) = crate::engine::tensorrt::hanging_lane(GEOMETRY.bytes(), 1);
    let mut config = impatient(1).config;
    config.threads = NonZeroUsize::MIN;
    let scheduler = Scheduler::new(config).unwrap();
    let queue = scheduler
        .add(LoadedModel {
            lanes: Lanes {
                info: EngineInfo {
                    kind: EngineKind::TensorRt,
                    version: "1".into(),
                    precision: Precision::Fp16,
                    device: "test".into(),
                    max_batch: 2,
                    fixed_batch: false,
                    batch_sizes: vec![1, 2],
                    offloaded: true,
                    embedding: None,
                    warnings: Vec::new(),
                },
                wide: None,
                narrow: vec![lane],
                plans: Vec::new(),
            },
            geometry: GEOMETRY,
            classes: 1,
            metrics: Arc::new(ModelMetrics::new("test")),
        })
        .unwrap();
    let answer = queue.submit(job(1)).unwrap().blocking_recv().unwrap();
    assert!(
        matches!(&answer, Err(JobError::Engine(error)) if error.to_string().contains("--stall-timeout")),
        "{answer:?}"
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let failure = runtime.block_on(scheduler.failed());
    assert!(failure.to_string().contains("--stall-timeout"), "{failure}");
    drop(release);
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
    wait_until("it ends when it can", || bench.scheduler.stop(SOON) == 0);
}

#[test]
fn it_is_told_when_nothing_moves_and_when_something_does_again() {
    let mut setup = Setup::default();
    setup.config.stall_timeout = Duration::from_millis(100);
    setup.config.preprocess.max_decode_time = Duration::from_millis(100);
    let bench = setup.start();
    let stalled = |wanted: bool| {
        wait_until(&format!("stalled is {wanted}"), || {
            bench.scheduler.stalled().is_some() == wanted
        });
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
