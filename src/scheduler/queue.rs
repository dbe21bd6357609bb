//! The handle of one model's queue: submitting jobs, and rejecting them when it is full.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    HEAVY_DECODE, Job, Outcome, QueueFull, Shared,
    capacity::Arrival,
    fair_queue::{Pushed, Turn},
    model_queue::Waiting,
    state::QueueId,
};
use crate::{
    image::{Geometry, Region, Source, estimate},
    metrics::Rejection,
};

/// The queue of one model. Dropping it retires the model: admitted jobs are finished, then the
/// engine is dropped.
pub struct Queue {
    pub(super) shared: Arc<Shared>,
    pub(super) id: QueueId,
    pub(super) parallelism: usize,
    pub(super) geometry: Geometry,
}

impl Queue {
    /// Queues a job. Its outcome comes through the receiver; dropping the receiver withdraws the
    /// job.
    ///
    /// # Errors
    /// [`QueueFull`], at once, when the queue is at its capacity, unless another job gives way: one
    /// of the client with the most jobs to one of a client with fewer, or a less urgent job of the
    /// same client.
    pub fn submit(&self, job: Job) -> Result<oneshot::Receiver<Outcome>, QueueFull> {
        let counted = job.counted;
        self.push(job, counted)
    }

    /// Queues the images of one request. The request as a whole counts once against the capacity.
    ///
    /// # Errors
    /// [`QueueFull`], as for [`Queue::submit`].
    pub fn submit_all(
        &self,
        jobs: impl IntoIterator<Item = Job>,
    ) -> Result<Vec<oneshot::Receiver<Outcome>>, QueueFull> {
        jobs.into_iter()
            .enumerate()
            .map(|(i, job)| {
                let counted = job.counted && i == 0;
                self.push(job, counted)
            })
            .collect()
    }

    fn push(&self, job: Job, counted: bool) -> Result<oneshot::Receiver<Outcome>, QueueFull> {
        let turn = (job.client, job.priority);
        let (reply, outcome) = oneshot::channel();
        let mut state = self.shared.lock();
        let virtual_time = state.virtual_time;
        let share = state.share(self.id);
        let queue = state
            .queues
            .get_mut(&self.id)
            .expect("a queue lives at least as long as its handle");

        // An idle queue does not save up credit.
        if queue.is_idle() {
            queue.virtual_time = queue.virtual_time.max(virtual_time);
        }

        // Make room by removing jobs that nobody waits for any more.
        let now = Instant::now();
        let limits = self.shared.queue_limits(
            queue,
            share,
            Arrival {
                called: job.called,
                deadline: job.deadline,
                now,
            },
        );
        let capacity = limits.standing;
        let mut expired = Vec::new();
        if counted && queue.waiting.counted() >= capacity {
            expired = queue
                .waiting
                .remove_all(|waiting| waiting.expired(now).is_some());
        }

        let limits = counted.then_some(limits);
        let decode = job.decode_estimate;
        let heavy = decode.is_some_and(|time| time > HEAVY_DECODE);
        let decode = decode.map(|time| time.as_secs_f64() * self.shared.core_share());
        let cost = queue.cost(decode, heavy, job.crops);
        let waiting = Waiting { job, reply, cost };
        let pushed = queue.waiting.push(turn, limits, cost, waiting);
        let full = match pushed {
            Pushed::Queued => None,
            Pushed::Displaced(_) | Pushed::Full(_) => Some(queue.rejection(share)),
        };

        let metrics = &queue.model.metrics;
        metrics.queue_depth(queue.waiting.len(), queue.waiting.counted());
        metrics.queue_capacity(capacity);
        if full.is_some() {
            metrics.rejected(Rejection::QueueFull);
        }
        for waiting in &expired {
            if let Some(reason) = waiting.expired(Instant::now()) {
                metrics.rejected(reason);
            }
        }

        // Images can be large: free them after the lock has been released.
        drop(state);
        expired.into_iter().for_each(Waiting::give_up);

        match (pushed, full) {
            (Pushed::Full(_), Some(full)) => return Err(full),
            (Pushed::Displaced(other), Some(full)) => {
                let _ = other.reply.send(Err(full.into()));
            }
            _ => {}
        }
        self.shared.work_available.notify_one();
        Ok(outcome)
    }

    /// Rejects a job of this client and priority before it exists, so that its image need not even
    /// be received. `None` means that [`Self::submit`] is to decide.
    pub fn reject_early(&self, turn: Turn, deadline: Option<Instant>) -> Option<QueueFull> {
        let mut state = self.shared.lock();
        let share = state.share(self.id);
        let queue = state.queues.get_mut(&self.id)?;
        let now = Instant::now();
        let limits = self.shared.queue_limits(
            queue,
            share,
            Arrival {
                called: now,
                deadline,
                now,
            },
        );
        let has_expired = |waiting: &Waiting| waiting.expired(now).is_some();
        if queue.waiting.has_room(turn, limits) || queue.waiting.any(has_expired) {
            return None;
        }
        queue.model.metrics.rejected(Rejection::QueueFull);
        Some(queue.rejection(share))
    }

    /// How long decoding an image is expected to keep a core busy, by its headers. For
    /// [`Job::decode_estimate`].
    pub fn estimate(&self, source: &Source, regions: &[Region]) -> Duration {
        estimate(
            source,
            regions,
            self.shared.config.preprocess,
            &self.geometry,
        )
        .time
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
            // No more images will join an incomplete batch.
            queue.image_ready.notify_all();
        }
        state.remove_if_finished(self.id);
        drop(state);
        self.shared.work_available.notify_all();
    }
}
