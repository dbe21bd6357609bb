//! How batches form, and how cores share them out.

use super::*;

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
    assert_eq!(
        outcome.blocking_recv().unwrap().unwrap().outputs[0].logits,
        [5.0]
    );
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
                regions: [].into(),
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
