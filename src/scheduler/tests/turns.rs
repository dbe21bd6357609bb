//! Capacity, fair turns of clients and models, priorities, and heavy images.

use super::*;

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
            client: ClientId::alone(2),
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
fn work_in_the_background_comes_behind_requests_and_is_not_starved() {
    let bench = Setup::default().start();
    let background = Setup {
        background: true,
        ..Setup::default()
    };
    let (calls, go, other) = background.add("background", &bench.scheduler);
    let submit = |queue: &Queue, value| {
        let job = Job {
            counted: false,
            ..job(value)
        };
        queue.submit(job).unwrap()
    };
    let first = bench.occupy(0);
    let requests: Vec<_> = (1..=40).map(|value| submit(&bench.queue, value)).collect();
    let behind: Vec<_> = (100..140).map(|value| submit(&other, value)).collect();
    let state = bench.scheduler.shared.lock();
    assert_eq!(state.share(bench.queue.id), 1.0, "it takes no queue's room");
    assert_eq!(state.share(other.id), 0.5);
    drop(state);
    bench.go();
    assert_eq!(logit(first), 0.0);
    let mut order = Vec::new();
    while order.len() < 80 {
        if let Ok(call) = bench.calls.recv_timeout(Duration::from_millis(5)) {
            order.push(call.images[0]);
            bench.go();
        } else if let Ok(call) = calls.recv_timeout(Duration::from_millis(5)) {
            order.push(call.images[0]);
            go.send(()).unwrap();
        }
    }
    let last = order.iter().position(|value| *value == 40).unwrap();
    let overtaken = last + 1 - 40;
    assert!((1..=16).contains(&overtaken), "{order:?}");
    requests
        .into_iter()
        .chain(behind)
        .for_each(|outcome| assert!(outcome.blocking_recv().unwrap().is_ok()));
}

/// Which is long before a hundred images of 10 ms each are done, as is assumed of them.
#[test]
fn a_burst_waits_as_long_as_its_deadlines_allow_and_a_standing_queue_refuses() {
    let mut setup = Setup {
        max_batch: 1,
        ..Setup::default()
    };
    setup.config.queue_capacity = Capacity::default();
    let bench = setup.start();
    let begun = Instant::now();
    let _first = bench.occupy(0);
    let burst: Vec<_> = (1..=100).map(|value| bench.submit(value)).collect();

    let by = |millis| Job {
        deadline: Some(Instant::now() + Duration::from_millis(millis)),
        ..job(101)
    };
    assert!(bench.queue.submit(by(700)).is_err(), "it would be late");
    let _in_time = bench.queue.submit(by(60_000)).unwrap();

    let later = |client| Job {
        called: begun + Duration::from_secs(2),
        client: ClientId::alone(client),
        ..job(102)
    };
    assert!(bench.queue.submit(later(1)).is_err(), "the queue stands");
    let other = bench.queue.submit(later(9)).expect("of another client");

    for _ in 0..burst.len() + 2 {
        bench.go();
        bench.call();
    }
    bench.go();
    for (outcome, value) in burst.into_iter().zip(1_u8..) {
        assert_eq!(logit(outcome), f32::from(value));
    }
    assert_eq!(logit(other), 102.0);
}

#[test]
fn what_is_in_work_counts_towards_the_latency_target() {
    let mut setup = Setup {
        max_batch: 2,
        ..Setup::default()
    };
    // Of images that take 10 ms, as is assumed before the first is done.
    setup.config.queue_capacity = Capacity::Within {
        target: Duration::from_millis(45),
        burst: NonZeroUsize::MIN,
    };
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
        let client = ClientId::alone(u64::from(value / 50));
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
        client: ClientId::alone(2),
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
        let client = ClientId::alone(100);
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
                regions: [].into(),
                mirrored: false,
            })
        });
        Job {
            client: ClientId::alone(3),
            counted: false,
            decode_estimate: None,
            fetch,
            ..job(0)
        }
    };
    let live = bench.queue.submit(live).unwrap();
    wait_until("it is fetched", || fetched.load(SeqCst) > 0);
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
                client: ClientId::alone(client),
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
