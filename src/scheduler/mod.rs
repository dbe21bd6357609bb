//! Queue capacity, fair queuing, deadlines, batching, and the threads that decode and infer.
//!
//! Each CPU core has one worker thread, which takes the most advanced work there is: a decoded
//! image to infer, else a waiting one to decode. So the machine never runs more compute threads
//! than it has cores, and no image is decoded long before it can be inferred. An image that is
//! alone on the machine gets all cores at once (see [`Lanes`]).
//!
//! Several models share these threads. Each has its own queue, and the queue with the least virtual
//! time, which is the machine time it has been charged, is served next. An engine on a device has a
//! thread for each of its lanes, which only waits for the device.

mod fair_queue;
mod job;
mod model_queue;
mod pace;
mod priority;
mod queue;
mod state;
mod sync;
mod worker;

use std::{io, num::NonZeroUsize, sync::Arc, time::Duration};

use tokio::sync::watch;

pub use self::{
    job::{ClientId, InputImage, Job, JobError, Outcome, QueueFull, Reply, Timeline},
    priority::Priority,
    queue::Queue,
};
use self::{
    model_queue::{ModelInfo, ModelQueue},
    pace::Pace,
    state::{QueueId, SchedulerState},
    sync::{Builder, Condvar, JoinHandle, Mutex, MutexGuard},
    worker::{CoreWorker, DeviceWorker},
};
use crate::{
    engine::{EngineError, Lanes},
    image::{Geometry, PreprocessConfig},
    metrics::{self, ModelMetrics},
};

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
}

/// How many single requests may wait for one model.
#[derive(Clone, Copy, Debug, Default)]
pub enum Capacity {
    /// As many as take about 0.2 s, but at least 16; while other models are busy, this model's
    /// share of that.
    #[default]
    Usual,
    /// As many as are answered within this time at the measured pace; while other models are busy,
    /// this model's share of that.
    Within(Duration),
    /// A fixed number of requests.
    Exactly(NonZeroUsize),
}

impl Capacity {
    const USUAL_TIME: Duration = Duration::from_millis(200);
    const USUAL_MINIMUM: usize = 16;

    /// How many requests may wait for a model that works at `pace` with its `share` of the machine,
    /// and that has `ahead` images in progress.
    fn requests(self, pace: &Pace, share: f64, ahead: usize) -> usize {
        let requests = match self {
            Self::Exactly(requests) => return requests.get(),
            Self::Usual => pace.images_in(Self::USUAL_TIME).max(Self::USUAL_MINIMUM),
            // The images in progress are answered before those that wait.
            Self::Within(target) => pace.images_in(target).saturating_sub(ahead),
        };
        ((requests as f64 * share) as usize).max(1)
    }
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
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<SchedulerState>,
    /// Signalled whenever a core's worker may find something to do.
    work_available: Condvar,
    config: SchedulerConfig,
    /// The error of the first engine that will never answer again.
    lost: watch::Sender<Option<Arc<EngineError>>>,
}

impl Scheduler {
    /// Starts one worker thread for each core.
    ///
    /// # Errors
    /// When the system refuses to start a thread.
    pub fn new(config: SchedulerConfig) -> Result<Self, SpawnError> {
        metrics::workers(config.threads);
        let shared = Arc::new(Shared {
            state: Mutex::new(SchedulerState::default()),
            work_available: Condvar::new(),
            config,
            lost: watch::Sender::new(None),
        });
        // If a thread fails to start, dropping `scheduler` stops those that are already running.
        let scheduler = Self {
            shared: Arc::clone(&shared),
            threads: Mutex::new(Vec::new()),
        };
        for i in 0..config.threads.get() {
            let worker = CoreWorker::new(Arc::clone(&shared));
            scheduler.spawn(format!("worker-{i}"), move || worker.run())?;
        }
        Ok(scheduler)
    }

    /// Serves another model beside those that are served already.
    ///
    /// # Errors
    /// When the system refuses to start a thread for a lane of a device.
    pub fn add(&self, loaded: LoadedModel) -> Result<Queue, SpawnError> {
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
        };

        for (i, lane) in device_lanes.into_iter().enumerate() {
            let worker = DeviceWorker {
                shared: Arc::clone(&self.shared),
                id,
                image_ready: Arc::clone(&image_ready),
                lane,
            };
            self.spawn(format!("device-{i}"), move || worker.run())?;
        }
        Ok(handle)
    }

    /// Completes when an engine reports that it will never answer again.
    pub async fn lost(&self) -> Arc<EngineError> {
        let mut lost = self.shared.lost.subscribe();
        let error = lost
            .wait_for(Option::is_some)
            .await
            .expect("the sender lives in `self`");
        Arc::clone(error.as_ref().expect("this was waited for"))
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
}

/// Finishes admitted jobs, then ends the threads.
impl Drop for Scheduler {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        state.notify_devices();
        drop(state);
        self.shared.work_available.notify_all();

        let threads = std::mem::take(&mut *sync::lock(&self.threads));
        for thread in threads {
            // A worker that panicked has reported that on standard error.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, SchedulerState> {
        sync::lock(&self.state)
    }

    /// How many single requests may wait in a queue that has this share of the machine.
    fn capacity(&self, queue: &ModelQueue, share: f64) -> usize {
        let capacity = self.config.queue_capacity;
        capacity.requests(&queue.pace, share, queue.ahead())
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
