//! Admission, fairness, deadlines, batching, and the threads that decode and infer.
//!
//! Each CPU core has one worker thread, which takes whatever is most advanced: a decoded image to
//! infer, else a waiting one to decode. So the machine never runs more compute threads than it has
//! cores, and nothing is decoded long before it can be inferred. An image that is alone gets all
//! the cores at once (see [`Lanes`]).
//!
//! Several models share these threads: each has a queue of its own, and the one that has had least
//! of the machine is served next. An engine with a device of its own has a thread for each of its
//! lanes, which only waits for the device.

mod fair_queue;
mod model_queue;
mod pace;
mod priority;
mod threads;
mod worker;

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};

pub use self::priority::Priority;
use self::{
    fair_queue::Pushed,
    model_queue::{ModelQueue, Waiting},
    pace::Pace,
    threads::{Builder, Condvar, JoinHandle, Mutex, MutexGuard},
    worker::{CoreWorker, DeviceWorker},
};
pub use crate::metrics::statistics::Stages;
use crate::{
    engine::{EngineError, EngineInfo, Lanes},
    image::{Geometry, ImageError, PreprocessConfig, Source},
    metrics::{self, ModelMetrics, Rejection},
    telemetry::context::SpanContext,
};

/// How the scheduler treats what waits.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// Worker threads: one for each core that may decode and infer.
    pub threads: NonZeroUsize,
    /// The most single requests that may wait for one model.
    pub queue_capacity: Capacity,
    /// How long an incomplete batch may wait for more images.
    pub max_queue_delay: Duration,
    /// How images are decoded.
    pub preprocess: PreprocessConfig,
}

/// How many single requests may wait for one model.
#[derive(Clone, Copy, Debug, Default)]
pub enum Capacity {
    /// As many as take about 0.2 s, but at least 16; where other models are busy, their part of
    /// that.
    #[default]
    Usual,
    /// As many as are answered within this time, by the pace that is measured; where other models
    /// are busy, their part.
    Within(Duration),
    /// This many.
    Exactly(NonZeroUsize),
}

impl Capacity {
    const USUAL: (Duration, usize) = (Duration::from_millis(200), 16);

    /// For a model that works off images at `pace`, with its `share` of the machine, and has
    /// `ahead` images in work.
    fn images(self, pace: &Pace, share: f64, ahead: usize) -> usize {
        let ((time, at_least), reserve) = match self {
            Self::Exactly(images) => return images.get(),
            Self::Usual => (Self::USUAL, 0),
            // Those in work are answered before those that wait.
            Self::Within(target) => ((target, 0), ahead),
        };
        let images = pace.images_in(time).saturating_sub(reserve).max(at_least);
        ((images as f64 * share) as usize).max(1)
    }
}

/// Whoever shares one place in the round of fairness: a caller with a name, else a connection.
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
    /// Whether it goes before or after others.
    pub priority: Priority,
    /// After this the answer is worthless; the work is then never done.
    pub deadline: Option<Instant>,
    /// Whether it counts against the queue's capacity. Streams don't: they limit themselves to a
    /// few frames.
    pub counts: bool,
    /// Gives the image at the moment when a worker is free for it, so that a live stream can give
    /// its newest.
    pub fetch: Box<dyn FnOnce() -> Option<Arrival> + Send>,
    /// The span that the work is for, if it is for one.
    pub span: Option<SpanContext>,
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
    /// When that was.
    pub timeline: Timeline,
}

/// When an image was worked on, and in which company.
#[derive(Clone, Copy, Debug)]
pub struct Timeline {
    /// When it had been decoded.
    pub decoded: Instant,
    /// When the engine's call began.
    pub inferred: Instant,
    /// How many images were in that call.
    pub batch: usize,
    /// The call's own span, if any of its images is traced.
    pub span: Option<SpanContext>,
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
    /// Another client with less in the queue, or a more urgent job of the same, got the place.
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

/// The threads that decode and infer, and the models' queues that they serve.
pub struct Scheduler {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The queue of one model. Dropping it retires the model: what was admitted is finished, then the
/// engine goes.
pub struct Queue {
    shared: Arc<Shared>,
    id: QueueId,
    parallelism: usize,
}

/// A loaded network to be served.
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

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct QueueId(u64);

/// What the workers need to know of a queue's network.
struct Network {
    geometry: Geometry,
    classes: usize,
    engine: EngineInfo,
    metrics: Arc<ModelMetrics>,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled whenever a core's worker may find something to do.
    work: Condvar,
    config: SchedulerConfig,
    /// The engine that was lost, once one was.
    lost: watch::Sender<Option<Arc<EngineError>>>,
}

#[derive(Default)]
struct State {
    queues: BTreeMap<QueueId, ModelQueue>,
    next_id: u64,
    /// How much of the machine the queue that was served last had had before.
    clock: f64,
    /// A wide engine runs; nothing else may.
    exclusive: bool,
    /// Core workers that decode or infer.
    active: usize,
    /// Retired queues whose engines are to be dropped by whoever has time for it.
    finished: Vec<ModelQueue>,
    stopping: bool,
}

impl Scheduler {
    /// Starts one worker thread a core.
    pub fn new(config: SchedulerConfig) -> Self {
        metrics::workers(config.threads);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            config,
            lost: watch::Sender::new(None),
        });
        let workers = (0..config.threads.get()).map(|i| {
            let worker = CoreWorker::new(Arc::clone(&shared));
            spawn(format!("worker-{i}"), move || worker.run())
        });
        let threads = Mutex::new(workers.collect());
        Self { shared, threads }
    }

    /// Serves another network beside those that are served already.
    pub fn add(&self, start: Start) -> Queue {
        let Start {
            lanes: Lanes { info, wide, narrow },
            geometry,
            classes,
            metrics,
        } = start;
        let (offloaded, cores) = (info.offloaded, self.shared.config.threads.get());
        let parallelism = if offloaded {
            cores + narrow.len()
        } else {
            cores.min(narrow.len())
        };
        let network = Arc::new(Network {
            geometry,
            classes,
            engine: info,
            metrics,
        });
        let mut queue = ModelQueue::new(Arc::clone(&network), narrow.len());
        network
            .metrics
            .queue_capacity(self.shared.config.queue_capacity.images(
                &queue.pace,
                1.0,
                queue.ahead(),
            ));
        let arrived = Arc::clone(&queue.arrived);
        let on_device = match offloaded {
            true => {
                network.metrics.device_lanes(narrow.len());
                narrow
            }
            false => {
                (queue.wide, queue.narrow) = (wide, narrow);
                Vec::new()
            }
        };
        let mut state = self.shared.lock();
        let id = QueueId(state.next_id);
        state.next_id += 1;
        state.queues.insert(id, queue);
        drop(state);

        let mut threads = self
            .threads
            .lock()
            .expect("nothing panics while it holds the list of threads");
        threads.retain(|thread| !thread.is_finished());
        for (i, lane) in on_device.into_iter().enumerate() {
            let worker = DeviceWorker {
                shared: Arc::clone(&self.shared),
                id,
                arrived: Arc::clone(&arrived),
                lane,
            };
            threads.push(spawn(format!("device-{i}"), move || worker.run()));
        }
        Queue {
            shared: Arc::clone(&self.shared),
            id,
            parallelism,
        }
    }

    /// Completes when an engine says that it will never answer again.
    pub async fn lost(&self) -> Arc<EngineError> {
        let mut lost = self.shared.lost.subscribe();
        let error = lost
            .wait_for(Option::is_some)
            .await
            .expect("the sender lives in `self`");
        Arc::clone(error.as_ref().expect("this was waited for"))
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    Builder::new()
        .name(name)
        .spawn(run)
        .expect("the system can start a thread for each core and lane")
}

/// Finishes what was admitted, then ends the threads.
impl Drop for Scheduler {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        state
            .queues
            .values()
            .for_each(|queue| queue.arrived.notify_all());
        drop(state);
        self.shared.work.notify_all();
        let threads = self
            .threads
            .get_mut()
            .expect("nothing panics while it holds the list of threads");
        for thread in threads.drain(..) {
            // A worker that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

impl Queue {
    /// Queues a job. Its outcome comes through the receiver; dropping that withdraws the job.
    ///
    /// # Errors
    /// [`QueueFull`], at once, when as many jobs wait as may. A job of the client that has most of
    /// them waiting gives way to one of a client that has fewer.
    pub fn submit(&self, job: Job) -> Result<oneshot::Receiver<Outcome>, QueueFull> {
        self.push(job, false)
    }

    /// Queues the images of one request, which takes one place as a whole: that of its first image.
    ///
    /// # Errors
    /// [`QueueFull`], as for [`Queue::submit`].
    pub fn submit_all(
        &self,
        jobs: impl IntoIterator<Item = Job>,
    ) -> Result<Vec<oneshot::Receiver<Outcome>>, QueueFull> {
        jobs.into_iter()
            .enumerate()
            .map(|(i, job)| self.push(job, i > 0))
            .collect()
    }

    /// A job that `follows` another one needs no place of its own.
    fn push(&self, job: Job, follows: bool) -> Result<oneshot::Receiver<Outcome>, QueueFull> {
        let (reply, outcome) = oneshot::channel();
        let (turn, counts) = ((job.client, job.priority), job.counts && !follows);
        let mut state = self.shared.lock();
        let (clock, share) = (state.clock, state.share(self.id));
        let queue = state
            .queues
            .get_mut(&self.id)
            .expect("a queue lives at least as long as its handle");
        if queue.is_idle() {
            // What it did not use while it had nothing to do is not saved up.
            queue.used = queue.used.max(clock);
        }
        let capacity = self
            .shared
            .config
            .queue_capacity
            .images(&queue.pace, share, queue.ahead());
        let mut dead = Vec::new();
        if counts && queue.waiting.counted() >= capacity {
            let now = Instant::now();
            dead = queue
                .waiting
                .remove_dead(|waiting| waiting.expired(now).is_some());
        }
        let pushed = queue
            .waiting
            .push(turn, counts.then_some(capacity), Waiting { job, reply });
        let (refused, queued) = match pushed {
            Pushed::Queued => (None, true),
            Pushed::Displaced(other) => (Some(other), true),
            Pushed::Full(own) => (Some(own), false),
        };
        let full = refused.as_ref().map(|_| {
            let waiting = queue.waiting.counted();
            QueueFull {
                waiting,
                retry_after: queue.pace.next_place(waiting, share),
            }
        });
        let metrics = &queue.network.metrics;
        metrics.queue_depth(queue.waiting.len(), queue.waiting.counted());
        metrics.queue_capacity(capacity);
        if full.is_some() {
            metrics.rejected(Rejection::QueueFull);
        }
        dead.iter()
            .filter_map(|waiting| waiting.expired(Instant::now()))
            .for_each(|reason| metrics.rejected(reason));
        // Images can be large: they are freed when nobody waits for the lock.
        drop(state);
        dead.into_iter().for_each(Waiting::give_up);
        if queued {
            self.shared.work.notify_one();
        }
        if let (Some(refused), Some(full)) = (refused, full) {
            if !queued {
                return Err(full);
            }
            // The receiver may have gone; then nobody is left to tell.
            let _ = refused.reply.send(Err(full.into()));
        }
        Ok(outcome)
    }

    /// Refuses a job of this client and priority before there is one, so that its image need not
    /// even be read; `None` = [`Self::submit`] is to decide.
    pub fn refuse(&self, turn: (ClientId, Priority)) -> Option<QueueFull> {
        let mut state = self.shared.lock();
        let share = state.share(self.id);
        let queue = state.queues.get_mut(&self.id)?;
        let capacity = self
            .shared
            .config
            .queue_capacity
            .images(&queue.pace, share, queue.ahead());
        let now = Instant::now();
        let leaves = |waiting: &Waiting| waiting.expired(now).is_some();
        if queue.waiting.has_place(turn, capacity) || queue.waiting.any(leaves) {
            return None;
        }
        queue.network.metrics.rejected(Rejection::QueueFull);
        let waiting = queue.waiting.counted();
        Some(QueueFull {
            waiting,
            retry_after: queue.pace.next_place(waiting, share),
        })
    }

    /// How many images can be worked on at once.
    pub fn parallelism(&self) -> usize {
        self.parallelism
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(queue) = state.queues.get_mut(&self.id) {
            queue.retired = true;
            // A batch that waits for more images waits in vain.
            queue.arrived.notify_all();
        }
        state.bury(self.id);
        drop(state);
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds the scheduler's state")
    }
}

impl State {
    /// The part of the machine that a queue gets while the others go on as they do, 0 to 1.
    fn share(&self, id: QueueId) -> f64 {
        let others = self
            .queues
            .iter()
            .filter(|(other, queue)| **other != id && !queue.is_idle())
            .count();
        1.0 / (1 + others) as f64
    }

    /// Takes a queue out that is retired and has nothing left to do.
    fn bury(&mut self, id: QueueId) {
        if self
            .queues
            .get(&id)
            .is_some_and(|queue| queue.retired && queue.is_idle())
        {
            let queue = self.queues.remove(&id).expect("it was just looked at");
            queue.arrived.notify_all();
            self.finished.push(queue);
        }
    }
}

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
