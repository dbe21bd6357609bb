//! What becomes of single jobs: answered, expired, failed, or finished by a model that retires.

use super::*;

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
    assert_eq!(reply.outputs[0].logits, [7.0]);
    assert!(reply.stages.decode > Duration::ZERO && reply.stages.inference > Duration::ZERO);
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
fn a_bad_image_fails_alone() {
    let bench = Setup::default().start();
    let fetch = Box::new(|| {
        Some(InputImage {
            source: Source::Encoded(Bytes::new()),
            arrived: Instant::now(),
            regions: [].into(),
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
fn watchers_are_told_of_a_lost_engine() {
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
fn a_ready_crop_is_taken_as_it_is() {
    let bench = Setup::default().start();
    let crop = |pixels: Vec<u8>| {
        let fetch = Box::new(|| {
            let image = Source::Crop(Crop::Pixels(pixels.into()));
            Some(InputImage {
                source: image,
                arrived: Instant::now(),
                regions: [].into(),
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
