//! The state of one model's queue: waiting images, decoded images and idle engines, and how batches
//! form.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Job, JobError, Outcome, QueueFull,
    fair_queue::{FairQueue, Turn},
    pace::Pace,
    reply_to::ReplyTo,
    sync::Condvar,
    turns::Cost,
};
use crate::{
    engine::{Engine, EngineInfo},
    image::Geometry,
    metrics::{
        ModelMetrics, Rejection,
        statistics::{RequestKind, Stages},
    },
    telemetry::context::SpanContext,
};

/// The longest that a decoded image waits for others to be decoded into its batch.
const MAX_WAIT_FOR_DECODING: Duration = Duration::from_millis(20);

/// What the workers need to know of a model.
pub(super) struct ModelInfo {
    pub geometry: Geometry,
    pub classes: usize,
    pub engine: EngineInfo,
    pub metrics: Arc<ModelMetrics>,
}

pub(super) struct ModelQueue {
    pub model: Arc<ModelInfo>,
    /// Images that wait to be decoded.
    pub waiting: FairQueue<Waiting>,
    /// Decoded images that wait for an engine.
    pub ready: VecDeque<Ready>,
    /// How many engines run side by side.
    pub lanes: usize,
    /// The engine that uses all cores, while it is idle.
    pub wide: Option<Box<dyn Engine>>,
    /// The engines that use one core each, while they are idle. Empty for a device, whose engines
    /// belong to its threads.
    pub narrow: Vec<Box<dyn Engine>>,
    /// Signalled when a decoded image is ready for the device.
    pub image_ready: Arc<Condvar>,
    /// Buffers of crops that have been inferred. Reusing them saves a page fault for every 4 KiB.
    spare: Vec<Vec<u8>>,
    /// Jobs that have expired, which own images: freed once the scheduler's lock is released.
    expired: Vec<Job>,
    /// How many images are being decoded or inferred.
    pub in_progress: usize,
    pub pace: Pace,
    /// When the queue was last seen without a waiting request, decoded or not; updated when a
    /// request arrives.
    pub emptied: Instant,
    /// Seconds of the whole machine that this queue has been charged. The queue with the least is
    /// served next; an idle queue is raised to the current value, so that idleness earns no
    /// priority.
    pub virtual_time: f64,
    /// The multiple of the time that it uses which the queue is charged: more than 1 for work in the
    /// background.
    pub charge: f64,
    /// The handle was dropped: no more jobs will come.
    pub retired: bool,
}

impl ModelQueue {
    pub fn new(model: Arc<ModelInfo>, lanes: usize) -> Self {
        Self {
            model,
            lanes,
            waiting: FairQueue::default(),
            ready: VecDeque::new(),
            wide: None,
            narrow: Vec::new(),
            image_ready: Arc::new(Condvar::new()),
            spare: Vec::new(),
            expired: Vec::new(),
            in_progress: 0,
            pace: Pace::default(),
            emptied: Instant::now(),
            virtual_time: 0.0,
            charge: 1.0,
            retired: false,
        }
    }

    /// What an image is expected to cost that gives so many crops; `decode` is the estimated time of
    /// decoding it, in seconds of the whole machine, if that is known.
    pub fn cost(&self, decode: Option<f64>, heavy: bool, crops: usize) -> Cost {
        Cost {
            decode: decode.unwrap_or_else(|| self.pace.decode_cost()),
            inference: self.pace.inference_cost(1) * crops as f64,
            heavy,
        }
    }

    /// Whether its work comes behind requests.
    pub fn is_background(&self) -> bool {
        self.charge > 1.0
    }

    /// Whether nothing waits and nothing is being worked on.
    pub fn is_idle(&self) -> bool {
        self.is_empty() && self.in_progress == 0
    }

    /// Whether nothing waits to be decoded or inferred.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.ready.is_empty()
    }

    /// Whether nothing waits for a core.
    pub fn leaves_cores_idle(&self) -> bool {
        // Images that are ready for a device are no work for the cores.
        self.waiting.is_empty() && (self.model.engine.offloaded || self.ready.is_empty())
    }

    /// How many images are answered before those that still wait to be decoded.
    pub fn ahead(&self) -> usize {
        self.ready.len() + self.in_progress
    }

    /// The rejection of a job, with the delay after which its client should retry. The next
    /// client's delay will be longer.
    pub fn rejection(&mut self, share: f64) -> QueueFull {
        let waiting = self.waiting.counted();
        QueueFull {
            waiting,
            retry_after: self.pace.retry_delay(waiting, share),
        }
    }

    /// A batch that should run now, or how long to wait for a fuller one (`None` means until there
    /// is anything at all).
    ///
    /// `delay` is how long an incomplete batch may wait for images that have not arrived yet.
    pub fn take_batch(&mut self, delay: Duration) -> Result<Batch, Option<Duration>> {
        let now = Instant::now();
        self.discard_expired(now);

        let full = self.full_batch(delay);
        if self.ready.len() < full {
            let Some(oldest) = self.ready.front() else {
                return Err(None);
            };
            let waited = now - oldest.since;
            let wait = self.batch_wait(delay);
            if waited < wait {
                return Err(Some(wait - waited));
            }
        }

        let n = self.ready.len().min(full);
        let batch = self.ready.drain(..n).map(|mut ready| {
            let crop = std::mem::take(&mut ready.crop);
            (crop, ready)
        });
        Ok(batch.unzip())
    }

    /// How many images make a batch that waits for no others.
    ///
    /// On CPUs the images are divided among the lanes, so that none is idle. A device takes up to
    /// `max_batch`. With a configured delay batches are filled.
    fn full_batch(&self, delay: Duration) -> usize {
        let engine = &self.model.engine;
        if engine.offloaded || engine.fixed_batch || !delay.is_zero() {
            return engine.max_batch;
        }
        let images = self.ready.len() + self.waiting.len();
        (images / self.lanes.max(1)).clamp(1, engine.max_batch)
    }

    /// How long the oldest image of an incomplete batch waits.
    fn batch_wait(&self, delay: Duration) -> Duration {
        if self.waiting.is_empty() {
            return if self.retired { Duration::ZERO } else { delay };
        }
        // An idle device starts at once; a core can decode in the meantime.
        if self.model.engine.offloaded {
            delay
        } else {
            delay.max(MAX_WAIT_FOR_DECODING)
        }
    }

    /// Removes decoded images whose callers no longer wait.
    fn discard_expired(&mut self, now: Instant) {
        let mut i = 0;
        while let Some(item) = self.ready.get(i) {
            match expired(item.deadline, item.reply.is_closed(), now) {
                None => i += 1,
                Some(reason) => {
                    let mut item = self.ready.remove(i).expect("the index was just used");
                    self.recycle(std::mem::take(&mut item.crop));
                    self.waiting.correct(item.turn, -item.inference_cost);
                    if item.reply.is_first() {
                        self.model.metrics.rejected(reason);
                    }
                    item.reply.fail(rejected(reason));
                }
            }
        }
    }

    /// The next image to decode; `None` if there is none or enough are decoded already. With
    /// `hold_heavy` images that are heavy to decode are passed over.
    pub fn take_waiting(&mut self, hold_heavy: bool) -> Option<Waiting> {
        if self.ready.len() >= self.max_ready() {
            return None;
        }
        loop {
            let waiting = self.waiting.pop(hold_heavy)?;
            let metrics = &self.model.metrics;
            metrics.queue_depth(self.waiting.len(), self.waiting.counted());
            match waiting.expired(Instant::now()) {
                None => return Some(waiting),
                Some(reason) => {
                    metrics.rejected(reason);
                    self.waiting.correct(waiting.turn(), -waiting.cost.time());
                    reject(waiting.reply, reason);
                    self.expired.push(waiting.job);
                }
            }
        }
    }

    /// The expired jobs, which the caller drops without the scheduler's lock.
    pub fn take_expired(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.expired)
    }

    /// A buffer for a crop, `uint8 [height, width, 3]`.
    pub fn crop_buffer(&mut self) -> Vec<u8> {
        self.spare
            .pop()
            .unwrap_or_else(|| vec![0; self.model.geometry.bytes()])
    }

    /// Takes back the buffer of a crop that is no longer needed.
    pub fn recycle(&mut self, crop: Vec<u8>) {
        if self.spare.len() < self.max_ready() {
            self.spare.push(crop);
        }
    }

    /// How many images may be decoded ahead of the engines: a batch for each, and one more.
    fn max_ready(&self) -> usize {
        self.model.engine.max_batch * (self.lanes + 1)
    }
}

/// An image that waits to be decoded.
pub(super) struct Waiting {
    pub job: Job,
    pub reply: oneshot::Sender<Outcome>,
    /// What its client is charged when it is taken.
    pub cost: Cost,
}

impl Waiting {
    pub fn turn(&self) -> Turn {
        (self.job.client, self.job.priority)
    }

    /// The reason to drop the job; `None` if it is still wanted.
    pub fn expired(&self, now: Instant) -> Option<Rejection> {
        expired(self.job.deadline, self.reply.is_closed(), now)
    }

    /// Answers a job that has expired.
    pub fn give_up(self) {
        let reason = self.expired(Instant::now()).unwrap_or(Rejection::Cancelled);
        reject(self.reply, reason);
    }
}

/// A crop of a decoded image.
pub(super) struct Ready {
    pub crop: Vec<u8>,
    pub deadline: Option<Instant>,
    pub reply: ReplyTo,
    pub wants_embedding: bool,
    pub stages: Stages,
    /// When it had been decoded.
    pub since: Instant,
    pub span: Option<SpanContext>,
    pub kind: RequestKind,
    /// Who has been charged for it.
    pub turn: Turn,
    /// What that client has been charged for inference.
    pub inference_cost: f64,
}

/// The crops of a batch, and the rest of its images.
pub(super) type Batch = (Vec<Vec<u8>>, Vec<Ready>);

/// The reason to drop work; `None` if it is still wanted.
fn expired(deadline: Option<Instant>, is_closed: bool, now: Instant) -> Option<Rejection> {
    match deadline {
        Some(deadline) if deadline <= now => Some(Rejection::Deadline),
        _ if is_closed => Some(Rejection::Cancelled),
        _ => None,
    }
}

fn reject(reply: oneshot::Sender<Outcome>, reason: Rejection) {
    // The caller may have gone.
    let _ = reply.send(Err(rejected(reason)));
}

fn rejected(reason: Rejection) -> JobError {
    if reason == Rejection::Deadline {
        JobError::DeadlineExceeded
    } else {
        JobError::Abandoned
    }
}
