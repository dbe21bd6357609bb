//! Cores that help others to decode.

use super::*;
use crate::{
    image::{Assist, Helpers},
    scheduler::helping::IdleCores,
};

/// Work that says when it begins, and lasts until the test ends it.
struct Slow {
    begin: Mutex<mpsc::Sender<()>>,
    end: Mutex<mpsc::Receiver<()>>,
}

impl Assist for Slow {
    fn assist(&self) {
        self.begin.lock().unwrap().send(()).unwrap();
        let _ = self.end.lock().unwrap().recv();
    }
}

fn slow() -> (Arc<dyn Assist>, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (begin, begun) = mpsc::channel();
    let (end, ended) = mpsc::channel();
    let work = Slow {
        begin: Mutex::new(begin),
        end: Mutex::new(ended),
    };
    (Arc::new(work), begun, end)
}

fn cores(bench: &Bench) -> IdleCores {
    IdleCores(Arc::clone(&bench.scheduler.shared))
}

#[test]
fn only_idle_cores_help_and_requests_come_first() {
    let bench = Setup {
        narrow: 2,
        ..Setup::default()
    }
    .start();
    let cores = cores(&bench);
    assert_eq!(cores.idle(), 2);
    let first = bench.occupy(1);
    assert_eq!(cores.idle(), 1);

    let (work, begun, end) = slow();
    assert!(cores.call(Arc::clone(&work)));
    begun.recv_timeout(SOON).expect("the idle core helps");
    assert!(cores.call(Arc::clone(&work)), "the next task may wait");
    assert!(!cores.call(Arc::clone(&work)), "one for each core");

    let second = bench.submit(2);
    assert_eq!(cores.idle(), 0, "there is other work");
    assert!(!cores.call(work));
    end.send(()).unwrap();
    assert_eq!(bench.call().images, [2]);
    assert!(begun.try_recv().is_err(), "before the other task");
    bench.go();
    bench.go();
    assert_eq!((logit(first), logit(second)), (1.0, 2.0));
    begun.recv_timeout(SOON).expect("then it is done");
    end.send(()).unwrap();
}

#[test]
fn helpers_that_hang_are_replaced() {
    let config = SchedulerConfig {
        stall_timeout: Duration::from_millis(200),
        preprocess: PreprocessConfig {
            max_decode_time: Duration::from_millis(100),
            ..PreprocessConfig::default()
        },
        ..Setup::default().config
    };
    let bench = Setup {
        config,
        ..Setup::default()
    }
    .start();
    let (work, begun, end) = slow();
    assert!(cores(&bench).call(work));
    begun.recv_timeout(SOON).expect("it helps");
    let answer = bench.submit(1);
    assert_eq!(bench.call().images, [1], "by another thread");
    bench.go();
    assert_eq!(logit(answer), 1.0);
    assert_eq!(bench.scheduler.shared.lock().lost, 1);
    end.send(()).unwrap();
    wait_until("the thread that was left behind ends", || {
        bench.scheduler.shared.lock().lost == 0
    });
    let state = bench.scheduler.shared.lock();
    assert_eq!(
        (state.active, state.helping.len(), state.threads),
        (0, 0, 1)
    );
}

#[test]
fn a_scheduler_that_stops_waits_for_no_helper_without_a_limit() {
    let bench = Setup::default().start();
    let (work, begun, end) = slow();
    assert!(cores(&bench).call(work));
    begun.recv_timeout(SOON).expect("it helps");
    let left = bench.scheduler.stop(Duration::from_millis(100));
    assert_eq!(left, 1);
    drop(end);
}

#[test]
fn a_photo_that_is_alone_is_decoded_by_two_cores() {
    let bench = Setup {
        narrow: 2,
        ..Setup::default()
    }
    .start();
    let photo = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cat.jpg"));
    let source = Source::Encoded(photo.unwrap().into());
    let mut pixel = vec![0; GEOMETRY.bytes()];
    crate::image::Preprocessor::new(PreprocessConfig::default())
        .crop(&source, &GEOMETRY, &mut pixel)
        .unwrap();
    let give_up = Instant::now() + SOON;
    loop {
        let image = InputImage {
            source: source.clone(),
            ..input_image(0)
        };
        let runs = bench.scheduler.shared.lock().next_run;
        let answer = bench
            .queue
            .submit(Job {
                fetch: Box::new(move || Some(image)),
                ..job(0)
            })
            .unwrap();
        assert_eq!(bench.call().images, [pixel[0]]);
        bench.go();
        assert_eq!(logit(answer), f32::from(pixel[0]));
        // One to decode, one to infer.
        if bench.scheduler.shared.lock().next_run > runs + 2 {
            return;
        }
        assert!(Instant::now() < give_up, "nobody helped");
    }
}
