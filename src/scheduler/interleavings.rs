//! The scheduler in thousands of random orders of its threads' steps: no job is lost, and no thread
//! waits for ever. `make shuttle` runs this.

use shuttle::{
    Config, Runner,
    rand::{Rng, thread_rng},
    scheduler::RandomScheduler,
};

use super::{
    properties::{Fate, Machine, Numbered, Submitted},
    *,
};

/// How many orders each test explores.
const ORDERS: usize = 10_000;

/// Runs `test` with shuttle's threads in many random orders of their steps.
///
/// # Panics
/// When `test` does, or when all threads wait for each other; the message has the order of steps
/// that leads there.
fn explore(test: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = 256 << 10;
    Runner::new(RandomScheduler::new(ORDERS), config).run(test);
}

const FATES: [Fate; 8] = [
    Fate::Wanted,
    Fate::Wanted,
    Fate::Wanted,
    Fate::Wanted,
    Fate::Late,
    Fate::Gone,
    Fate::Bad,
    Fate::Withdrawn,
];

fn machine() -> Machine {
    let mut random = thread_rng();
    let offloaded = random.gen_bool(0.5);
    Machine {
        lanes: random.gen_range(1..3),
        wide: !offloaded && random.gen_bool(0.5),
        max_batch: random.gen_range(1..4),
        offloaded,
        capacity: random.gen_range(1..4),
        delay_ms: random.gen_ratio(1, 8).into(),
    }
}

/// A thread that submits a few jobs whose numbers begin at `first`, as several clients do at once.
fn submitter(queue: &Arc<Queue>, machine: Machine, first: u8) -> JoinHandle<Submitted> {
    let queue = Arc::clone(queue);
    let submit = move || {
        let mut submitted = Submitted::default();
        for value in first..first + thread_rng().gen_range(1..4) {
            let (counts, fate) = (
                thread_rng().gen_bool(0.7),
                FATES[thread_rng().gen_range(0..FATES.len())],
            );
            submitted.submit(
                &queue,
                machine.capacity,
                Numbered {
                    value,
                    client: first.into(),
                    counts,
                    fate,
                },
            );
        }
        submitted
    };
    Builder::new().spawn(submit).unwrap()
}

/// Admitted jobs are answered although the queue is dropped at once and the scheduler stops
/// meanwhile.
#[test]
fn whatever_the_order_admitted_jobs_are_answered() {
    explore(|| {
        let machine = machine();
        let (scheduler, queue, executed) = machine.start();
        let queue = Arc::new(queue);
        let clients = [
            submitter(&queue, machine, 0),
            submitter(&queue, machine, 100),
        ];
        drop(queue);
        let submitted = clients.map(|client| client.join().unwrap());
        drop(scheduler);
        submitted
            .into_iter()
            .for_each(|submitted| submitted.check(&executed.lock().unwrap()));
    });
}

/// Of two models on the same threads one is retired while both are at work: both answer what they
/// admitted, and its engines are dropped before the scheduler stops.
#[test]
fn whatever_the_order_a_retired_model_is_dropped() {
    explore(|| {
        let machines = [machine(), machine()];
        // The first one's capacity holds for both.
        let machines = machines.map(|machine| Machine {
            capacity: machines[0].capacity,
            ..machine
        });
        let (scheduler, stays, executed) = machines[0].start();
        let (goes, retired) = machines[1].add(&scheduler);
        let (stays, goes) = (Arc::new(stays), Arc::new(goes));
        let clients = [
            submitter(&stays, machines[0], 0),
            submitter(&goes, machines[1], 100),
        ];
        drop(goes);
        let [staying, going] = clients.map(|client| client.join().unwrap());
        // Its engines hold what they executed.
        while Arc::strong_count(&retired) > 1 {
            shuttle::thread::yield_now();
        }
        drop(stays);
        drop(scheduler);
        staying.check(&executed.lock().unwrap());
        going.check(&retired.lock().unwrap());
    });
}
