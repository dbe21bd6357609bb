//! Lanes of a device, which run beside the cores.

use super::*;

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
    wait_until("six are fetched", || fetched.load(SeqCst) >= 6);
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
            regions: [].into(),
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
