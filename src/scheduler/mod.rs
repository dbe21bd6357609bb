//! Admission, fairness, deadlines, batching, and the threads that decode and infer.
//!
//! Each CPU core has one worker thread, which takes whatever is most advanced: a decoded image to infer, else a waiting
//! one to decode. So the machine never runs more compute threads than it has cores, and nothing is decoded long before
//! it can be inferred. An image that is alone gets all the cores at once (see [`Lanes`]).

mod fair_queue;
mod pace;
mod worker;

use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use self::{
    fair_queue::{FairQueue, Pushed},
    pace::Pace,
    worker::Worker,
};
use crate::{
    engine::{Engine, EngineError, EngineInfo, Lanes},
    image::{Geometry, ImageError, PreprocessConfig, Source},
    metrics::{ModelMetrics, Rejection},
};

/// How the scheduler treats what waits.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// The most single requests that may wait; `None` = as many as take about 0.2 s, but at least 16.
    pub queue_capacity: Option<NonZeroUsize>,
    /// How long an incomplete batch may wait for more images.
    pub max_queue_delay: Duration,
    /// How images are decoded.
    pub preprocess: PreprocessConfig,
}

/// Whoever shares one place in the round of fairness: a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientId(pub u64);

/// An image, and since when it has been waiting.
pub struct Arrival {
    /// The image.
    pub image: Source,
    /// When it reached the server.
    pub at: Instant,
    /// Whether its crop is mirrored, left to right; training looks at photos both ways.
    pub mirrored: bool,
}

/// One image to classify.
pub struct Job {
    /// Whose turn it takes.
    pub client: ClientId,
    /// After this the answer is worthless; the work is then never done.
    pub deadline: Option<Instant>,
    /// Whether it counts against the queue's capacity. Streams don't: they limit themselves to a few frames.
    pub counts: bool,
    /// Gives the image at the moment when a worker is free for it, so that a live stream can give its newest.
    pub fetch: Box<dyn FnOnce() -> Option<Arrival> + Send>,
}

/// What became of a job.
pub type Outcome = Result<Reply, JobError>;

/// A classified image.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The network's output, `float32 [classes]`.
    pub logits: Vec<f32>,
    /// Where the time went.
    pub stages: Stages,
}

/// The time that each stage took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stages {
    /// Decoding, resizing and cropping.
    pub decode: Duration,
    /// Waiting before decoding and between decoding and inference.
    pub queue: Duration,
    /// The engine's call, shared with the batch.
    pub inference: Duration,
}

/// Why an admitted job has no answer.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The image can't be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The deadline passed while the job waited.
    #[error("the deadline passed while the request waited; it was not executed")]
    DeadlineExceeded,
    /// Another client, with less in the queue, got the place.
    #[error(transparent)]
    Displaced(#[from] QueueFull),
    /// The engine failed.
    #[error(transparent)]
    Engine(Arc<EngineError>),
    /// The image was withdrawn, or the scheduler stopped.
    #[error("the request was abandoned")]
    Abandoned,
}

/// The queue has no place left.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the queue is full ({waiting} requests wait); retry in {} ms", retry_after.as_millis())]
pub struct QueueFull {
    /// How many requests wait.
    pub waiting: usize,
    /// When a place is likely to be free, spread over the clients that were refused.
    pub retry_after: Duration,
}

/// Runs jobs on the lanes of one model.
pub struct Scheduler {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// What a [`Scheduler`] is started with.
pub struct Start {
    /// The loaded network.
    pub lanes: Lanes,
    /// The network's input.
    pub geometry: Geometry,
    /// The network's output.
    pub classes: usize,
    /// The model's metrics.
    pub metrics: Arc<ModelMetrics>,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled whenever a worker may find something to do.
    work: Condvar,
    config: SchedulerConfig,
    geometry: Geometry,
    classes: usize,
    engine: EngineInfo,
    metrics: Arc<ModelMetrics>,
}

struct State {
    waiting: FairQueue<Waiting>,
    ready: VecDeque<Ready>,
    /// The engine that uses all cores, while it is idle.
    wide: Option<Box<dyn Engine>>,
    /// The wide engine runs; nothing else may.
    exclusive: bool,
    /// Workers that decode or infer.
    active: usize,
    pace: Pace,
    stopping: bool,
}

struct Waiting {
    job: Job,
    reply: oneshot::Sender<Outcome>,
}

impl Waiting {
    fn expired(&self, now: Instant) -> Option<Rejection> {
        expired(self.job.deadline, &self.reply, now)
    }
}

/// Why work is not worth doing any more.
fn expired(deadline: Option<Instant>, reply: &oneshot::Sender<Outcome>, now: Instant) -> Option<Rejection> {
    match deadline {
        Some(deadline) if deadline <= now => Some(Rejection::Deadline),
        _ => reply.is_closed().then_some(Rejection::Cancelled),
    }
}

/// A decoded image.
struct Ready {
    crop: Vec<u8>,
    deadline: Option<Instant>,
    reply: oneshot::Sender<Outcome>,
    stages: Stages,
    since: Instant,
}

impl Scheduler {
    /// Starts one worker thread a lane.
    pub fn start(start: Start, config: SchedulerConfig) -> Self {
        let Start { lanes, geometry, classes, metrics } = start;
        let count = lanes.narrow.len();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                waiting: FairQueue::default(),
                ready: VecDeque::new(),
                wide: lanes.wide,
                exclusive: false,
                active: 0,
                pace: Pace::default(),
                stopping: false,
            }),
            work: Condvar::new(),
            config,
            geometry,
            classes,
            engine: lanes.info,
            metrics,
        });
        let workers = lanes.narrow.into_iter().enumerate().map(|(i, lane)| {
            let worker = Worker::new(Arc::clone(&shared), lane, count);
            let thread = std::thread::Builder::new().name(format!("worker-{i}"));
            thread.spawn(move || worker.run()).expect("the system can start a thread for each core")
        });
        Self { workers: workers.collect(), shared }
    }

    /// Queues a job. Its outcome comes through the receiver; dropping that withdraws the job.
    ///
    /// # Errors
    /// [`QueueFull`], at once, when as many jobs wait as may. A job of the client that has most of them waiting gives
    /// way to one of a client that has fewer.
    pub fn submit(&self, job: Job) -> Result<oneshot::Receiver<Outcome>, QueueFull> {
        let (reply, outcome) = oneshot::channel();
        let (client, counts) = (job.client, job.counts);
        let mut state = self.shared.lock();
        let capacity = match self.shared.config.queue_capacity {
            Some(capacity) => capacity.get(),
            None => state.pace.images_in(Duration::from_millis(200)).max(16),
        };
        let mut dead = Vec::new();
        if counts && state.waiting.counted() >= capacity {
            let now = Instant::now();
            dead = state.waiting.remove_dead(|waiting| waiting.expired(now).is_some());
        }
        let pushed = state.waiting.push(client, counts.then_some(capacity), Waiting { job, reply });
        let (refused, queued) = match pushed {
            Pushed::Queued => (None, true),
            Pushed::Displaced(other) => (Some(other), true),
            Pushed::Full(own) => (Some(own), false),
        };
        let full = refused.as_ref().map(|_| {
            let waiting = state.waiting.counted();
            QueueFull { waiting, retry_after: state.pace.next_place(waiting) }
        });
        self.shared.metrics.queue_depth(state.waiting.len());
        // Images can be large: they are freed when nobody waits for the lock.
        drop(state);
        dead.into_iter().for_each(|waiting| self.shared.give_up(waiting));
        if queued {
            self.shared.work.notify_one();
        }
        if let (Some(refused), Some(full)) = (refused, full) {
            self.shared.metrics.rejected(Rejection::QueueFull);
            if !queued {
                return Err(full);
            }
            // The receiver may have gone; then nobody is left to tell.
            let _ = refused.reply.send(Err(full.into()));
        }
        Ok(outcome)
    }

    /// How many images can be worked on at once.
    pub fn lanes(&self) -> usize {
        self.workers.len()
    }
}

/// Finishes what was admitted, then ends the threads.
impl Drop for Scheduler {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker that panicked has said so on standard error.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the scheduler's state")
    }
}

#[cfg(test)]
mod tests;
