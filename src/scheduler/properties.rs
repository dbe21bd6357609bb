//! Properties of the queues and batches that hold for every order of events.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use tokio::sync::oneshot;

use super::{
    fair_queue::{FairQueue, Pushed, QueueLimits},
    model_queue::{Ready, Waiting},
    reply_to::ReplyTo,
    turns::Cost,
    *,
};
use crate::{
    engine::{Engine, EngineError, EngineInfo, EngineKind, Precision},
    image::{PixelFormat, RawFrame, Source},
    metrics::statistics::{RequestKind, Stages},
};

const GEOMETRY: Geometry = Geometry::cropped(2, 2, 2);

/// What items cost that all cost the same.
const EQUAL: Cost = Cost {
    decode: 0.002,
    inference: 0.009,
    heavy: false,
};

#[derive(Clone, Copy, Debug)]
enum Step {
    Push {
        client: u64,
        counts: bool,
    },
    Pop,
    /// Every item whose number is `rest` modulo 3 dies.
    RemoveAll {
        rest: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..5_u64, prop::bool::weighted(0.8)).prop_map(|(client, counts)| Step::Push { client, counts }),
        4 => Just(Step::Pop),
        1 => (0..3_usize).prop_map(|rest| Step::RemoveAll { rest }),
    ]
}

/// What a fair queue should hold: for each client the numbers of its items, and whether they count.
#[derive(Default)]
struct Expected {
    clients: BTreeMap<u64, VecDeque<(usize, bool)>>,
    /// Who was served since each waiting client was, or since it came.
    served_since: BTreeMap<u64, Vec<u64>>,
}

impl Expected {
    fn counted(&self, client: u64) -> usize {
        self.clients.get(&client).map_or(0, |items| {
            items.iter().filter(|(_, counts)| *counts).count()
        })
    }

    fn all_counted(&self) -> usize {
        self.clients
            .keys()
            .map(|client| self.counted(*client))
            .sum()
    }

    fn remove(&mut self, item: usize) {
        let (client, items) = self
            .clients
            .iter_mut()
            .find(|(_, items)| items.iter().any(|(other, _)| *other == item))
            .expect("it is there");
        items.retain(|(other, _)| *other != item);
        let client = *client;
        if items.is_empty() {
            self.clients.remove(&client);
            self.served_since.remove(&client);
        }
    }

    fn push(
        &mut self,
        capacity: usize,
        (client, counts): (u64, bool),
        item: usize,
        pushed: Pushed<usize>,
    ) {
        let full = counts && self.all_counted() >= capacity;
        let heaviest = self
            .clients
            .keys()
            .map(|client| self.counted(*client))
            .max()
            .unwrap_or(0);
        let may_displace = heaviest > self.counted(client) + 1;
        match pushed {
            Pushed::Queued => assert!(!full),
            Pushed::Full(own) => return assert!(own == item && full && !may_displace),
            Pushed::Displaced(other) => {
                assert!(full && may_displace);
                let owner = *self
                    .clients
                    .iter()
                    .find(|(_, items)| items.contains(&(other, true)))
                    .expect("it counts")
                    .0;
                assert_eq!(
                    self.counted(owner),
                    heaviest,
                    "the client with most gives way"
                );
                let newest = self.clients[&owner]
                    .iter()
                    .rev()
                    .find(|(_, counts)| *counts);
                assert_eq!(newest, Some(&(other, true)), "with its newest");
                self.remove(other);
            }
        }
        self.clients
            .entry(client)
            .or_default()
            .push_back((item, counts));
        self.served_since.entry(client).or_default();
    }

    fn pop(&mut self, popped: Option<usize>) {
        let Some(item) = popped else {
            return assert!(self.clients.is_empty(), "something is kept back");
        };
        let client = *self
            .clients
            .iter()
            .find(|(_, items)| items.front().is_some_and(|(first, _)| *first == item))
            .expect("the oldest of a client")
            .0;
        for (other, served) in &mut self.served_since {
            assert!(
                *other == client || !served.contains(&client),
                "{client} twice while {other} waits"
            );
            served.push(client);
        }
        self.served_since.insert(client, Vec::new());
        self.remove(item);
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// It is wanted until it is answered.
    Wanted,
    /// Its deadline has passed before it is queued, or before it is decoded, or before its batch is
    /// taken.
    Late,
    /// Its deadline passes about now.
    Soon,
    /// Its caller goes away at once.
    Gone,
    /// Its image can't be decoded.
    Bad,
    /// Its image is withdrawn.
    Withdrawn,
}

fn fate() -> impl Strategy<Value = Fate> {
    use Fate::*;
    prop_oneof![
        6 => Just(Wanted),
        2 => Just(Late),
        1 => Just(Soon),
        1 => Just(Gone),
        1 => Just(Bad),
        1 => Just(Withdrawn),
    ]
}

fn input_image(value: u8, fate: Fate) -> Option<InputImage> {
    let data = match fate {
        Fate::Withdrawn => return None,
        Fate::Bad => Bytes::new(),
        _ => Bytes::from(vec![value; GEOMETRY.bytes()]),
    };
    let frame = RawFrame {
        format: PixelFormat::Rgb8,
        width: 2,
        height: 2,
        stride: 0,
        data,
    };
    Some(InputImage {
        source: Source::Raw(frame),
        arrived: Instant::now(),
        regions: [].into(),
        mirrored: false,
    })
}

/// A job with a number of its own, which its image bears and its answer repeats.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbered {
    pub value: u8,
    pub client: u64,
    pub counts: bool,
    pub fate: Fate,
}

impl Numbered {
    fn job(self) -> Job {
        let Self {
            value,
            client,
            counts,
            fate,
        } = self;
        let deadline = match fate {
            Fate::Late => Some(Instant::now()),
            Fate::Soon => Some(Instant::now() + Duration::from_micros(300)),
            _ => Some(Instant::now() + Duration::from_secs(3600)),
        };
        Job {
            client: ClientId::alone(client),
            priority: Priority::default(),
            called: Instant::now(),
            deadline,
            counted: counts,
            decode_estimate: Some(Duration::from_millis(1)),
            crops: 1,
            wants_embedding: false,
            fetch: Box::new(move || input_image(value, fate)),
            span: None,
            kind: RequestKind::Contract,
        }
    }
}

/// Jobs that were given to a queue, and what it said.
#[derive(Default)]
pub(super) struct Submitted {
    accepted: Vec<(Numbered, oneshot::Receiver<Outcome>)>,
    refused: Vec<u8>,
}

impl Submitted {
    pub fn submit(&mut self, queue: &Queue, capacity: usize, numbered: Numbered) {
        match queue.submit(numbered.job()) {
            Ok(outcome) if matches!(numbered.fate, Fate::Gone) => drop(outcome),
            Ok(outcome) => self.accepted.push((numbered, outcome)),
            Err(full) => {
                assert!(
                    numbered.counts && full.waiting >= 1 && full.waiting <= capacity,
                    "{full}"
                );
                self.refused.push(numbered.value);
            }
        }
    }

    /// When all has ended: each has exactly one outcome, the right one, and what was late or
    /// refused was not `executed`.
    pub fn check(self, executed: &[u8]) {
        let times = |value: u8| executed.iter().filter(|other| **other == value).count();
        assert!(self.refused.into_iter().all(|value| times(value) == 0));
        for (
            numbered @ Numbered {
                value,
                counts,
                fate,
                ..
            },
            outcome,
        ) in self.accepted
        {
            let outcome = outcome
                .blocking_recv()
                .expect("an accepted job has an outcome");
            let done = match (&outcome, fate) {
                (Ok(reply), Fate::Wanted | Fate::Soon) => {
                    reply.outputs[0].logits == [f32::from(value)]
                }
                (Err(JobError::DeadlineExceeded), Fate::Late | Fate::Soon) => false,
                (Err(JobError::Image(_)), Fate::Bad) => false,
                (Err(JobError::Abandoned), Fate::Withdrawn) => false,
                (Err(JobError::Displaced(_)), _) if counts => false,
                _ => panic!("the outcome of {numbered:?} is {outcome:?}"),
            };
            assert_eq!(
                times(value),
                usize::from(done),
                "the outcome of {numbered:?} is {outcome:?}"
            );
            assert!(
                done || outcome.is_err(),
                "{numbered:?} has another's answer"
            );
        }
        assert!((0..u8::MAX).all(|value| times(value) <= 1));
    }
}

/// Of one among equals; priorities have tests of their own.
fn turn(client: u64) -> (ClientId, Priority) {
    (ClientId::alone(client), Priority::default())
}

/// The first bytes of the images that an engine has seen.
pub(super) type Executed = Arc<Mutex<Vec<u8>>>;

/// Answers each image with its first byte, and remembers it.
struct Recorder(Executed);

impl Engine for Recorder {
    fn infer(&mut self, images: &[u8], n: usize, logits: &mut [f32]) -> Result<(), EngineError> {
        let firsts: Vec<u8> = images
            .chunks_exact(GEOMETRY.bytes())
            .map(|image| image[0])
            .collect();
        assert_eq!(firsts.len(), n);
        logits
            .iter_mut()
            .zip(&firsts)
            .for_each(|(logit, first)| *logit = f32::from(*first));
        self.0.lock().unwrap().extend(firsts);
        Ok(())
    }
}

fn info(max_batch: usize, offloaded: bool) -> EngineInfo {
    EngineInfo {
        kind: EngineKind::Embedded,
        version: "1".into(),
        precision: Precision::Fp32,
        device: "test".into(),
        max_batch,
        fixed_batch: false,
        batch_sizes: Vec::new(),
        offloaded,
        embedding: None,
        warnings: Vec::new(),
    }
}

fn metrics() -> Arc<ModelMetrics> {
    Arc::new(ModelMetrics::new("test"))
}

/// The machine of a test, whose engines write down what they execute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub lanes: usize,
    pub wide: bool,
    pub max_batch: usize,
    pub offloaded: bool,
    pub capacity: usize,
    pub delay_ms: u64,
}

prop_compose! {
    fn machine()(lanes in 1..4_usize, wide: bool, max_batch in 1..5_usize, offloaded: bool, capacity in 1..12_usize,
                 delay_ms in 0..3_u64) -> Machine {
        Machine { lanes, wide: wide && !offloaded, max_batch, offloaded, capacity, delay_ms }
    }
}

impl Machine {
    pub fn start(self) -> (Scheduler, Queue, Executed) {
        let scheduler = Scheduler::new(SchedulerConfig {
            threads: NonZeroUsize::new(self.lanes).unwrap(),
            queue_capacity: Capacity::Exactly(NonZeroUsize::new(self.capacity).unwrap()),
            max_queue_delay: Duration::from_millis(self.delay_ms),
            preprocess: PreprocessConfig::default(),
            stall_timeout: SchedulerConfig::STALL_TIMEOUT,
        })
        .unwrap();
        let (queue, executed) = self.add(&scheduler);
        (scheduler, queue, executed)
    }

    /// One more model.
    pub fn add(self, scheduler: &Scheduler) -> (Queue, Executed) {
        let executed = Executed::default();
        let engine = || -> Box<dyn Engine> { Box::new(Recorder(Arc::clone(&executed))) };
        let lanes = Lanes {
            info: info(self.max_batch, self.offloaded),
            wide: self.wide.then(engine),
            narrow: (0..self.lanes).map(|_| engine()).collect(),
            plans: Vec::new(),
        };
        let queue = scheduler
            .add(LoadedModel {
                lanes,
                geometry: GEOMETRY,
                classes: 1,
                metrics: metrics(),
            })
            .unwrap();
        (queue, executed)
    }
}

proptest! {
    /// Nothing lost, nothing twice, never more than there is room for, each client in its order and
    /// none twice while another waits.
    #[test]
    fn a_fair_queue_is_a_queue_and_fair(capacity in 1..10_usize, steps in vec(step(), 1..300)) {
        let (mut queue, mut expected) = (FairQueue::default(), Expected::default());
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Push { client, counts } => {
                    let pushed = queue.push(turn(client), counts.then_some(QueueLimits::fixed(capacity)), EQUAL, number);
                    expected.push(capacity, (client, counts), number, pushed);
                }
                Step::Pop => expected.pop(queue.pop(false)),
                Step::RemoveAll { rest } => {
                    let removed = queue.remove_all(|item| item % 3 == rest);
                    assert!(removed.iter().all(|item| item % 3 == rest));
                    for item in removed {
                        expected.remove(item);
                    }
                    assert!(expected.clients.values().flatten().all(|(item, _)| item % 3 != rest));
                }
            }
            assert_eq!(queue.len(), expected.clients.values().map(VecDeque::len).sum::<usize>());
            assert_eq!(queue.counted(), expected.all_counted());
            assert!(queue.counted() <= capacity);
        }
        while !queue.is_empty() {
            expected.pop(queue.pop(false));
        }
        assert!(expected.clients.is_empty());
    }

    /// Clients that always have something waiting get the same time, whatever their items cost and
    /// however wrong the estimates are. So do those that send one item after the other, as far as
    /// the estimates are right.
    #[test]
    fn clients_share_the_time_whatever_their_items_cost(
        clients in vec((1..100_u32, 0.2..5.0_f64), 2..6),
        rounds in 200..600_usize,
        several in any::<bool>(),
    ) {
        let mut queue = FairQueue::default();
        let clients: Vec<_> = clients
            .into_iter()
            .map(|(cost, factor)| (cost, if several { factor } else { 1.0 }))
            .collect();
        let cost = |client: usize| {
            let decode = f64::from(clients[client].0) / 1000.0;
            Cost { decode, ..Cost::default() }
        };
        let push = |queue: &mut FairQueue<usize>, client: usize| {
            queue.push(turn(client as u64), None, cost(client), client);
        };
        for client in 0..clients.len() {
            (0..=usize::from(several)).for_each(|_| push(&mut queue, client));
        }
        let mut got = vec![0.0; clients.len()];
        for _ in 0..rounds {
            let client = queue.pop(false).expect("everybody waits");
            let (estimated, factor) = (cost(client).time(), clients[client].1);
            queue.correct(turn(client as u64), estimated * factor - estimated);
            push(&mut queue, client);
            got[client] += estimated * factor;
        }
        let dearest = (0..clients.len()).map(|client| cost(client).time() * clients[client].1.max(1.0));
        let dearest = dearest.fold(0.0, f64::max);
        let [least, most] = [f64::min, f64::max].map(|pick| got.iter().copied().reduce(pick).unwrap());
        assert!(most - least <= 2.0 * dearest + 1e-9, "{got:?}");
    }

    /// Late and abandoned images leave the queue on their own; the others come out once, in order,
    /// in batches that fit.
    #[test]
    fn batches_hold_what_is_still_wanted(
        max_batch in 1..5_usize,
        lanes in 1..4_usize,
        fates in vec((fate(), fate()), 1..40),
        takes in vec(any::<bool>(), 200),
    ) {
        let model = ModelInfo { geometry: GEOMETRY, classes: 1, engine: info(max_batch, false), metrics: metrics() };
        let mut queue = ModelQueue::new(Arc::new(model), lanes);
        let mut outcomes = BTreeMap::new();
        for (number, (fate, _)) in fates.iter().enumerate() {
            let (reply, outcome) = oneshot::channel();
            outcomes.insert(number, outcome);
            // All of one client, so that the order is the queue's.
            let job = Numbered { value: 0, client: 1, counts: true, fate: *fate }.job();
            let job = Job { fetch: Box::new(move || input_image(number as u8, Fate::Wanted)), ..job };
            let cost = Cost::default();
            queue.waiting.push(turn(1), None, cost, Waiting { job, reply, cost });
            if matches!(fate, Fate::Gone) {
                outcomes.remove(&number);
            }
        }
        let mut inferred = Vec::new();
        for decode in takes {
            if decode {
                let Some(Waiting { job, reply, .. }) = queue.take_waiting(false) else { continue };
                let Some(InputImage { source: Source::Raw(frame), .. }) = (job.fetch)() else { panic!("it is a raw frame") };
                let number = usize::from(frame.data[0]);
                let (before, after) = fates[number];
                assert!(!matches!(before, Fate::Late | Fate::Gone), "{number} was not wanted any more");
                // Its fate may change while it is decoded.
                let deadline = if matches!(after, Fate::Late) { Some(Instant::now()) } else { job.deadline };
                if matches!(after, Fate::Gone) {
                    outcomes.remove(&number);
                }
                let crop = frame.data.to_vec();
                let (stages, since) = (Stages::default(), Instant::now());
                let (span, kind, turn, inference_cost) = (None, job.kind, turn(1), 0.0);
                let (reply, wants_embedding) = (ReplyTo::Caller(reply), false);
                queue.ready.push_back(Ready { crop, deadline, reply, wants_embedding, stages, since, span, kind, turn, inference_cost });
                assert!(queue.ready.len() <= max_batch * (lanes + 1));
            } else if let Ok((crops, batch)) = queue.take_batch(Duration::ZERO) {
                assert!(!batch.is_empty() && batch.len() <= max_batch && batch.len() == crops.len());
                inferred.extend(crops.iter().map(|crop| usize::from(crop[0])));
            }
        }
        assert!(inferred.is_sorted_by(|a, b| a < b), "{inferred:?}");
        for number in inferred {
            assert!(!matches!(fates[number].1, Fate::Late | Fate::Gone), "{number} was not wanted any more");
            outcomes.remove(&number);
        }
        drop(queue);
        for (number, mut outcome) in outcomes {
            if let Ok(told) = outcome.try_recv() {
                assert!(matches!(told, Err(JobError::DeadlineExceeded)));
                assert!(matches!(fates[number], (Fate::Late | Fate::Soon, _) | (_, Fate::Late)), "{number} had time");
            }
        }
    }

    /// Through all the threads: every accepted job has exactly one outcome, the right one, and what
    /// is late is not done.
    #[test]
    fn every_job_has_one_outcome_and_late_ones_are_not_done(
        machine in machine(),
        jobs in vec((0..4_u64, any::<bool>(), fate()), 1..60),
    ) {
        let (scheduler, queue, executed) = machine.start();
        let mut submitted = Submitted::default();
        for (number, (client, counts, fate)) in jobs.into_iter().enumerate() {
            submitted.submit(&queue, machine.capacity, Numbered { value: number as u8, client, counts, fate });
        }
        drop(queue);
        // Finishes what was admitted.
        drop(scheduler);
        submitted.check(&executed.lock().unwrap());
    }
}
