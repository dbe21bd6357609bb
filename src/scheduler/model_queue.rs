//! What waits for one model, and the model's engines that are idle.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Job, JobError, Network, Outcome, Stages, fair_queue::FairQueue, pace::Pace, threads::Condvar,
};
use crate::{engine::Engine, metrics::Rejection, telemetry::context::SpanContext};

/// A decoded image waits no longer than this for others to be decoded into its batch.
const LONGEST_DECODING_FIRST: Duration = Duration::from_millis(20);

pub(super) struct ModelQueue {
    pub network: Arc<Network>,
    pub waiting: FairQueue<Waiting>,
    pub ready: VecDeque<Ready>,
    /// Engines that run side by side.
    pub lanes: usize,
    /// The engine that uses all cores, while it is idle.
    pub wide: Option<Box<dyn Engine>>,
    /// The engines that use one core each, while they are idle; none of a device's.
    pub narrow: Vec<Box<dyn Engine>>,
    /// Signalled when a decoded image is ready for the device.
    pub arrived: Arc<Condvar>,
    /// Crops that have been inferred, to be filled again: fresh memory costs a page fault every 4
    /// KiB.
    pub spare: Vec<Vec<u8>>,
    /// Images that are being decoded or inferred.
    pub in_work: usize,
    pub pace: Pace,
    /// Seconds of the whole machine that this queue has had, beside its idle times.
    pub used: f64,
    /// Nothing more will come.
    pub retired: bool,
}

impl ModelQueue {
    pub fn new(network: Arc<Network>, lanes: usize) -> Self {
        Self {
            network,
            lanes,
            waiting: FairQueue::default(),
            ready: VecDeque::new(),
            wide: None,
            narrow: Vec::new(),
            arrived: Arc::default(),
            spare: Vec::new(),
            in_work: 0,
            pace: Pace::default(),
            used: 0.0,
            retired: false,
        }
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.is_empty() && self.in_work == 0
    }

    /// Images that are answered before those that wait.
    pub fn ahead(&self) -> usize {
        self.ready.len() + self.in_work
    }

    /// Whether nothing waits to be decoded or inferred.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.ready.is_empty()
    }

    /// A batch that should run now, or how long to wait for a fuller one (`None` = until there is
    /// anything).
    ///
    /// `delay` is how long an incomplete batch may wait for images that have not come yet.
    pub fn take_batch(&mut self, delay: Duration) -> Result<Vec<Ready>, Option<Duration>> {
        let now = Instant::now();
        self.discard(now);
        let full = self.full_batch(delay);
        if self.ready.len() < full {
            let Some(oldest) = self.ready.front() else {
                return Err(None);
            };
            let waited = now - oldest.since;
            // A device that is free has nothing better to do; a core can decode meanwhile.
            let decode_first = if self.network.engine.offloaded {
                Duration::ZERO
            } else {
                LONGEST_DECODING_FIRST
            };
            let wait = match self.waiting.is_empty() {
                true if self.retired => Duration::ZERO,
                true => delay,
                false => delay.max(decode_first),
            };
            if waited < wait {
                return Err(Some(wait - waited));
            }
        }
        let n = self.ready.len().min(full);
        Ok(self.ready.drain(..n).collect())
    }

    /// How many images make a batch for which no others are waited for. Cores share out what there
    /// is, so that none is idle while another has it all; a device takes what it gets, and who
    /// allows a delay asks for full batches.
    fn full_batch(&self, delay: Duration) -> usize {
        let engine = &self.network.engine;
        if engine.offloaded || engine.fixed_batch || !delay.is_zero() {
            return engine.max_batch;
        }
        ((self.ready.len() + self.waiting.len()) / self.lanes.max(1)).clamp(1, engine.max_batch)
    }

    /// Drops decoded images that nobody waits for any more.
    fn discard(&mut self, now: Instant) {
        let mut i = 0;
        while let Some(item) = self.ready.get(i) {
            match expired(item.deadline, &item.reply, now) {
                None => i += 1,
                Some(reason) => {
                    let item = self.ready.remove(i).expect("the index was just used");
                    self.network.metrics.rejected(reason);
                    tell(item.reply, reason);
                }
            }
        }
    }

    /// The next image to decode, if it may be.
    pub fn take_waiting(&mut self) -> Option<Waiting> {
        if self.ready.len() >= self.most_ready() {
            return None;
        }
        loop {
            let waiting = self.waiting.pop()?;
            self.network
                .metrics
                .queue_depth(self.waiting.len(), self.waiting.counted());
            match waiting.expired(Instant::now()) {
                None => return Some(waiting),
                Some(reason) => {
                    self.network.metrics.rejected(reason);
                    tell(waiting.reply, reason);
                }
            }
        }
    }

    /// A buffer for a crop.
    pub fn crop(&mut self) -> Vec<u8> {
        self.spare
            .pop()
            .unwrap_or_else(|| vec![0; self.network.geometry.bytes()])
    }

    /// Takes a crop's buffer back.
    pub fn recycle(&mut self, crop: Vec<u8>) {
        if self.spare.len() < self.most_ready() {
            self.spare.push(crop);
        }
    }

    /// So many images are decoded ahead of the engines, at most: one batch for each, and one more.
    fn most_ready(&self) -> usize {
        self.network.engine.max_batch * (self.lanes + 1)
    }
}

/// An image that waits to be decoded.
pub(super) struct Waiting {
    pub job: Job,
    pub reply: oneshot::Sender<Outcome>,
}

impl Waiting {
    pub fn expired(&self, now: Instant) -> Option<Rejection> {
        expired(self.job.deadline, &self.reply, now)
    }

    /// Ends work that has expired.
    pub fn give_up(self) {
        let reason = self.expired(Instant::now()).unwrap_or(Rejection::Cancelled);
        tell(self.reply, reason);
    }
}

/// A decoded image.
pub(super) struct Ready {
    pub crop: Vec<u8>,
    pub deadline: Option<Instant>,
    pub reply: oneshot::Sender<Outcome>,
    pub stages: Stages,
    pub since: Instant,
    pub span: Option<SpanContext>,
}

/// Why work is not worth doing any more.
fn expired(
    deadline: Option<Instant>,
    reply: &oneshot::Sender<Outcome>,
    now: Instant,
) -> Option<Rejection> {
    match deadline {
        Some(deadline) if deadline <= now => Some(Rejection::Deadline),
        _ => reply.is_closed().then_some(Rejection::Cancelled),
    }
}

fn tell(reply: oneshot::Sender<Outcome>, reason: Rejection) {
    let error = if reason == Rejection::Deadline {
        JobError::DeadlineExceeded
    } else {
        JobError::Abandoned
    };
    // The receiver may have gone; then nobody is left to tell.
    let _ = reply.send(Err(error));
}
