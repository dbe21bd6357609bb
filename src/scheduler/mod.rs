//! Queue capacity, fair queuing, deadlines, batching, and the threads that decode and infer.
//!
//! Each CPU core has one worker thread, which takes the most advanced work there is: a decoded
//! image to infer, else a waiting one to decode. So the machine never runs more compute threads
//! than it has cores, and no image is decoded long before it can be inferred. An image that is
//! alone on the machine gets all cores at once: they help to decode it (`helping`), and infer it
//! together (see [`Lanes`]).
//!
//! Several models share these threads. Each has its own queue, and the queue with the least virtual
//! time, which is the machine time it has been charged, is served next. An engine on a device has a
//! thread for each of its lanes, which only waits for the device.

mod capacity;
mod fair_queue;
mod helping;
mod job;
mod model_queue;
mod pace;
mod priority;
mod queue;
mod reply_to;
mod running;
mod state;
mod sync;
mod turns;
mod watchdog;
mod worker;

use std::{
    io,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

pub use self::{
    capacity::Capacity,
    job::{
        ClientId, Failure, InputImage, Job, JobError, Outcome, Output, QueueFull, Reply, Timeline,
    },
    priority::Priority,
    queue::Queue,
};
use self::{
    capacity::{Arrival, QueueLoad},
    fair_queue::QueueLimits,
    model_queue::{ModelInfo, ModelQueue},
    running::Loss,
    state::{QueueId, SchedulerState},
    sync::{Builder, Condvar, JoinHandle, Mutex, MutexGuard},
    watchdog::{Limits, Pulse, Watchdog},
    worker::{DeviceWorker, Ended, run_core, run_device},
};
use crate::{
    engine::Lanes,
    image::{Geometry, PreprocessConfig},
    metrics::{self, ModelMetrics},
};

/// Images that are expected to take longer than this to decode, on one core, are heavy: at most half
/// of the cores decode such images at a time, so that the others stay free for ordinary ones. A
/// server that has only one core has none to keep free.
const HEAVY_DECODE: Duration = Duration::from_millis(50);

/// Work in the background is charged this multiple of the time that it uses.
const BACKGROUND_CHARGE: f64 = 8.0;

/// How many threads may hang for each worker thread that there should be. The next one is the end
/// of the process: each may keep a core busy, and hold an image and an engine.
const MAX_LOST_PER_THREAD: usize = 4;

/// How long dropping a scheduler waits for its threads.
const DROP_TIMEOUT: Duration = Duration::from_secs(10);

/// How work is queued, batched and executed.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// Worker threads: one for each core that may decode and infer.
    pub threads: NonZeroUsize,
    /// How many single requests may wait for one model.
    pub queue_capacity: Capacity,
    /// How long an incomplete batch may wait for more images.
    pub max_queue_delay: Duration,
    /// How images are decoded.
    pub preprocess: PreprocessConfig,
    /// How long a call of an engine may take before its thread counts as hanging, how much longer
    /// decoding an image may than [`PreprocessConfig::max_decode_time`], and for how long nothing
    /// may move while work waits.
    pub stall_timeout: Duration,
}

impl SchedulerConfig {
    /// The usual [`SchedulerConfig::stall_timeout`].
    pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);
}

/// A model that has been loaded and is to be served.
pub struct LoadedModel {
    /// The engines that run it.
    pub lanes: Lanes,
    /// The network's input.
    pub geometry: Geometry,
    /// The length of the network's output.
    pub classes: usize,
    pub metrics: Arc<ModelMetrics>,
}

/// A worker thread could not be started.
#[derive(Debug, thiserror::Error)]
#[error("the system could not start the thread {name}: {source}")]
pub struct SpawnError {
    name: String,
    source: io::Error,
}

/// The threads that decode and infer, and the models' queues that they serve.
pub struct Scheduler {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<SchedulerState>,
    /// Signalled whenever a core's worker may find something to do.
    work_available: Condvar,
    /// Signalled when a thread has ended.
    thread_ended: Condvar,
    /// Signalled when there is nothing to watch any more.
    stop_watching: Condvar,
    config: SchedulerConfig,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Why nothing can be done any more.
    failure: watch::Sender<Option<Failure>>,
    pulse: std::sync::Mutex<Pulse>,
}

impl Scheduler {
    /// Starts one worker thread for each core, and one that watches them.
    ///
    /// # Errors
    /// When the system refuses to start a thread.
    pub fn new(config: SchedulerConfig) -> Result<Self, SpawnError> {
        metrics::workers(config.threads);
        let threads = config.threads.get();
        let state = SchedulerState {
            max_heavy: (threads / 2).max(1),
            ..SchedulerState::default()
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work_available: Condvar::new(),
            thread_ended: Condvar::new(),
            stop_watching: Condvar::new(),
            config,
            threads: Mutex::new(Vec::new()),
            failure: watch::Sender::new(None),
            pulse: std::sync::Mutex::default(),
        });
        // If a thread fails to start, dropping `scheduler` stops those that are already running.
        let scheduler = Self {
            shared: Arc::clone(&shared),
        };
        for _ in 0..threads {
            shared.start_core()?;
        }
        // Shuttle has no clock.
        if !cfg!(shuttle) {
            let watchdog = Watchdog::new(Arc::clone(&shared));
            shared.spawn("watchdog".into(), move || watchdog.run())?;
        }
        Ok(scheduler)
    }

    /// Serves another model beside those that are served already.
    ///
    /// # Errors
    /// When the system refuses to start a thread for a lane of a device.
    pub fn add(&self, loaded: LoadedModel) -> Result<Queue, SpawnError> {
        self.add_charged(loaded, 1.0)
    }

    /// Like [`Scheduler::add`], for work that comes behind the requests for other models: while those
    /// wait, it gets a ninth of the machine, so that it is not starved.
    ///
    /// # Errors
    /// As for [`Scheduler::add`].
    pub fn add_background(&self, loaded: LoadedModel) -> Result<Queue, SpawnError> {
        self.add_charged(loaded, BACKGROUND_CHARGE)
    }

    fn add_charged(&self, loaded: LoadedModel, charge: f64) -> Result<Queue, SpawnError> {
        let Lanes {
            info, wide, narrow, ..
        } = loaded.lanes;
        let offloaded = info.offloaded;
        let cores = self.shared.config.threads.get();
        let parallelism = if offloaded {
            cores + narrow.len()
        } else {
            cores.min(narrow.len())
        };

        let model = Arc::new(ModelInfo {
            geometry: loaded.geometry,
            classes: loaded.classes,
            engine: info,
            metrics: loaded.metrics,
        });
        let mut queue = ModelQueue::new(Arc::clone(&model), narrow.len());
        queue.charge = charge;
        let capacity = self.shared.capacity(&queue, 1.0);
        model.metrics.queue_capacity(capacity);
        let image_ready = Arc::clone(&queue.image_ready);
        let mut device_lanes = Vec::new();
        if offloaded {
            model.metrics.device_lanes(narrow.len());
            device_lanes = narrow;
        } else {
            queue.wide = wide;
            queue.narrow = narrow;
        }

        let mut state = self.shared.lock();
        let id = QueueId(state.next_id);
        state.next_id += 1;
        state.queues.insert(id, queue);
        drop(state);
        // Dropping the handle retires the queue if one of its threads can't be started.
        let handle = Queue {
            shared: Arc::clone(&self.shared),
            id,
            parallelism,
            geometry: loaded.geometry,
        };

        for (i, lane) in device_lanes.into_iter().enumerate() {
            let worker = DeviceWorker {
                shared: Arc::clone(&self.shared),
                id,
                image_ready: Arc::clone(&image_ready),
                lane,
                current: None,
            };
            self.shared
                .start_thread(format!("device-{i}"), move || run_device(worker))?;
        }
        Ok(handle)
    }

    /// How images are decoded.
    pub fn preprocess(&self) -> PreprocessConfig {
        self.shared.config.preprocess
    }

    /// Completes when nothing can be classified any more: when an engine reports that it will never
    /// answer again, or too many threads hang.
    pub async fn failed(&self) -> Failure {
        let mut failure = self.shared.failure.subscribe();
        let failure = failure.wait_for(Option::is_some).await;
        let failure = failure.expect("the sender lives in `self`").clone();
        failure.expect("this was waited for")
    }

    /// For how long nothing has moved although work waits, if that is longer than it may be.
    pub fn stalled(&self) -> Option<Duration> {
        let pulse = crate::sync::lock(&self.shared.pulse);
        pulse.stalled(self.shared.limits(), Instant::now())
    }

    /// Finishes admitted jobs and ends the threads, for `limit` at most; jobs that have not ended
    /// then are abandoned. Returns how many threads are left behind, still busy.
    pub fn stop(&self, limit: Duration) -> usize {
        let give_up = Instant::now() + limit;
        let shared = &self.shared;
        let mut state = shared.lock();
        state.stopping = true;
        state.notify_devices();
        shared.work_available.notify_all();
        shared.stop_watching.notify_all();

        while state.threads > 0 {
            let left = give_up.saturating_duration_since(Instant::now());
            // Shuttle has no clock.
            let left = (!cfg!(shuttle)).then_some(left);
            if left == Some(Duration::ZERO) {
                break;
            }
            state = sync::wait(&shared.state, state, &shared.thread_ended, left);
        }
        let over_time = state.threads > 0;
        drop(state);
        if over_time {
            shared.abandon_all();
        }
        let left_behind = shared.lock().lost;

        let threads = std::mem::take(&mut *sync::lock(&shared.threads));
        for thread in threads {
            if left_behind == 0 || sync::is_finished(&thread) {
                // A worker that panicked has reported that on standard error.
                let _ = thread.join();
            }
        }
        left_behind
    }
}

/// Finishes admitted jobs, then ends the threads, as [`Scheduler::stop`] does.
impl Drop for Scheduler {
    fn drop(&mut self) {
        if self.shared.lock().stopping {
            return;
        }
        let left = self.stop(DROP_TIMEOUT);
        if left > 0 {
            tracing::warn!("{left} worker threads were still busy and left behind");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, SchedulerState> {
        sync::lock(&self.state)
    }

    /// A core worker's part of the machine, 0 to 1.
    fn core_share(&self) -> f64 {
        1.0 / self.config.threads.get() as f64
    }

    fn limits(&self) -> Limits {
        let SchedulerConfig {
            stall_timeout,
            max_queue_delay,
            preprocess,
            ..
        } = self.config;
        let decode = preprocess.max_decode_time;
        Limits {
            // Decoders end by themselves, after this time of a core that may have others to serve.
            decode: decode.saturating_add(stall_timeout),
            inference: stall_timeout,
            // All may be decoding, and an incomplete batch waits for others.
            stall: stall_timeout.max(decode).saturating_add(max_queue_delay),
        }
    }

    /// How many threads may be left behind because they hang.
    fn max_lost(&self) -> usize {
        self.config.threads.get() * MAX_LOST_PER_THREAD
    }

    /// Reports that nothing can be done any more. The first reason stays.
    fn fail(&self, failure: Failure) {
        self.failure.send_if_modified(|reported| {
            let is_first = reported.is_none();
            reported.get_or_insert(failure);
            is_first
        });
    }

    /// Gives up all work, so that nobody waits for it any longer.
    fn abandon_all(&self) {
        let mut state = self.lock();
        let runs = state.running.keys().chain(state.helping.keys());
        let runs: Vec<_> = runs.copied().collect();
        let mut waiting = Vec::new();
        let mut ready = Vec::new();
        for queue in state.queues.values_mut() {
            waiting.extend(queue.waiting.remove_all(|_| true));
            ready.extend(queue.ready.drain(..));
        }
        drop(state);
        for run in runs {
            self.give_up(run, Loss::Stopping);
        }
        // Callers whose jobs are dropped are told that they were abandoned.
        drop((waiting, ready));
        self.work_available.notify_all();
        self.lock().notify_devices();
    }

    /// Starts the worker thread of a core.
    fn start_core(self: &Arc<Self>) -> Result<(), SpawnError> {
        let mut state = self.lock();
        let name = format!("worker-{}", state.next_thread);
        state.next_thread += 1;
        drop(state);
        let shared = Arc::clone(self);
        self.start_thread(name, move || run_core(&shared))
    }

    /// Starts the threads that are missing because others hang.
    fn replace_missing(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            if state.missing == 0 || state.stopping {
                return;
            }
            state.missing -= 1;
            drop(state);
            if let Err(error) = self.start_core() {
                // The next step tries again.
                tracing::error!("{error}");
                self.lock().missing += 1;
                return;
            }
        }
    }

    /// Starts a worker thread, which counts until it ends or is given up.
    fn start_thread(
        self: &Arc<Self>,
        name: String,
        run: impl FnOnce() -> Ended + Send + 'static,
    ) -> Result<(), SpawnError> {
        self.lock().threads += 1;
        let shared = Arc::clone(self);
        let counted = move || {
            let ended = run();
            let mut state = shared.lock();
            match ended {
                Ended::Finished => state.threads -= 1,
                Ended::Lost => state.lost -= 1,
            }
            drop(state);
            shared.thread_ended.notify_all();
        };
        let spawned = self.spawn(name, counted);
        if spawned.is_err() {
            self.lock().threads -= 1;
        }
        spawned
    }

    fn spawn(&self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), SpawnError> {
        let thread = Builder::new()
            .name(name.clone())
            .spawn(run)
            .map_err(|source| SpawnError { name, source })?;
        let mut threads = sync::lock(&self.threads);
        threads.retain(|thread| !sync::is_finished(thread));
        threads.push(thread);
        Ok(())
    }

    /// The limits for a request that comes to a queue.
    fn queue_limits(&self, queue: &mut ModelQueue, share: f64, request: Arrival) -> QueueLimits {
        if queue.waiting.counted() == 0 && queue.ready.is_empty() {
            queue.emptied = request.now;
        }
        let load = QueueLoad {
            pace: &queue.pace,
            share,
            ahead: queue.ahead(),
        };
        let capacity = self.config.queue_capacity;
        capacity.limits(&load, request, queue.emptied)
    }

    /// How many single requests may wait in a standing queue that has this share of the machine.
    fn capacity(&self, queue: &ModelQueue, share: f64) -> usize {
        let capacity = self.config.queue_capacity;
        capacity.standing(&queue.pace, share, queue.ahead())
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
