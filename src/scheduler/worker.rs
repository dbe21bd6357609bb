//! One core's thread: takes the most advanced work that there is, and does it.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{Arrival, JobError, Outcome, Ready, Reply, Shared, State, Waiting, expired};
use crate::{
    engine::{Engine, EngineError},
    image::Preprocessor,
    metrics::Rejection,
};

pub(super) struct Worker {
    shared: Arc<Shared>,
    lane: Box<dyn Engine>,
    preprocessor: Preprocessor,
    /// This worker's part of the machine, 0 to 1.
    share: f64,
    images: Vec<u8>,
    logits: Vec<f32>,
    /// Crops that have been inferred, to be filled again: fresh memory costs a page fault every 4 KiB.
    spare: Vec<Vec<u8>>,
}

/// A decoded image waits no longer than this for others to be decoded into its batch.
const LONGEST_DECODING_FIRST: Duration = Duration::from_millis(20);

enum Task {
    Decode(Waiting),
    Infer { batch: Vec<Ready>, wide: Option<Box<dyn Engine>> },
}

impl Worker {
    pub fn new(shared: Arc<Shared>, lane: Box<dyn Engine>, workers: usize) -> Self {
        Self {
            preprocessor: Preprocessor::new(shared.config.preprocess),
            shared,
            lane,
            share: 1.0 / workers as f64,
            images: Vec::new(),
            logits: Vec::new(),
            spare: Vec::new(),
        }
    }

    pub fn run(mut self) {
        while let Some(task) = self.shared.next_task() {
            match task {
                Task::Decode(waiting) => self.decode(waiting),
                Task::Infer { batch, wide } => self.infer(batch, wide),
            }
        }
    }

    fn decode(&mut self, Waiting { job, reply }: Waiting) {
        let started = Instant::now();
        let decoded = match (job.fetch)() {
            None => Err(JobError::Abandoned),
            Some(Arrival { image, at, mirrored }) => {
                let mut crop = self.spare.pop().unwrap_or_else(|| vec![0; self.shared.geometry.bytes()]);
                let result = self.preprocessor.crop(&image, &self.shared.geometry, &mut crop);
                if mirrored {
                    self.shared.geometry.mirror(&mut crop);
                }
                result.map(|()| (crop, started.saturating_duration_since(at))).map_err(JobError::Image)
            }
        };
        let since = Instant::now();
        let took = since - started;
        let mut state = self.shared.lock();
        state.active -= 1;
        if !matches!(decoded, Err(JobError::Abandoned)) {
            self.shared.metrics.decoded(took);
            state.pace.record_decode(took, self.share);
        }
        match decoded {
            Ok((crop, queued)) => {
                let stages = super::Stages { decode: took, queue: queued, ..Default::default() };
                state.ready.push_back(Ready { crop, deadline: job.deadline, reply, stages, since });
            }
            Err(error) => {
                drop(state);
                let _ = reply.send(Err(error));
            }
        }
    }

    fn infer(&mut self, batch: Vec<Ready>, mut wide: Option<Box<dyn Engine>>) {
        let started = Instant::now();
        let n = batch.len();
        let result = self.run_engine(&batch, wide.as_mut());
        let took = started.elapsed();
        let share = if wide.is_some() { 1.0 } else { self.share };

        let mut state = self.shared.lock();
        state.active -= 1;
        state.pace.record_inference(n, took, share);
        if wide.is_some() {
            state.wide = wide;
            state.exclusive = false;
            drop(state);
            self.shared.work.notify_all();
        } else {
            drop(state);
        }

        self.shared.metrics.inferred(n, took);
        match result {
            Ok(()) => {
                self.shared.metrics.classified(n);
                for (mut ready, logits) in batch.into_iter().zip(self.logits.chunks_exact(self.shared.classes)) {
                    let mut stages = ready.stages;
                    stages.queue += started - ready.since;
                    stages.inference = took;
                    self.shared.metrics.queued(stages.queue);
                    if self.spare.len() < self.shared.engine.max_batch {
                        self.spare.push(std::mem::take(&mut ready.crop));
                    }
                    let _ = ready.reply.send(Ok(Reply { logits: logits.to_vec(), stages }));
                }
            }
            Err(error) => {
                tracing::error!("{error}");
                let error = Arc::new(error);
                for ready in batch {
                    let _ = ready.reply.send(Err(JobError::Engine(Arc::clone(&error))));
                }
            }
        }
    }

    fn run_engine(&mut self, batch: &[Ready], wide: Option<&mut Box<dyn Engine>>) -> Result<(), EngineError> {
        let engine = wide.unwrap_or(&mut self.lane);
        let n = if self.shared.engine.fixed_batch { self.shared.engine.max_batch } else { batch.len() };
        self.logits.resize(n * self.shared.classes, 0.0);
        let images = if n == 1 {
            &batch[0].crop
        } else {
            self.images.clear();
            batch.iter().for_each(|ready| self.images.extend_from_slice(&ready.crop));
            self.images.resize(n * self.shared.geometry.bytes(), 0);
            &self.images
        };
        let (kind, logits) = (self.shared.engine.kind, &mut self.logits);
        catch_unwind(AssertUnwindSafe(|| engine.infer(images, n, logits)))
            .unwrap_or_else(|_| Err(kind.failed("it panicked")))?;
        if self.logits.iter().all(|logit| logit.is_finite()) {
            Ok(())
        } else {
            Err(kind.failed("its logits are not finite numbers"))
        }
    }
}

impl Shared {
    /// Waits for something to do; `None` when the scheduler stops and all is done.
    fn next_task(&self) -> Option<Task> {
        let mut state = self.lock();
        loop {
            let mut until_batch = None;
            if !state.exclusive {
                match self.take_batch(&mut state) {
                    Ok(batch) => {
                        state.active += 1;
                        let alone = state.active == 1 && state.waiting.is_empty() && state.ready.is_empty();
                        let wide = if alone { state.wide.take() } else { None };
                        state.exclusive = wide.is_some();
                        self.wake_another(&state);
                        return Some(Task::Infer { batch, wide });
                    }
                    Err(wait) => until_batch = wait,
                }
                if !state.waiting.is_empty() {
                    match self.take_waiting(&mut state) {
                        Some(waiting) => {
                            state.active += 1;
                            self.wake_another(&state);
                            return Some(Task::Decode(waiting));
                        }
                        // Nothing alive was waiting, so the batch need not wait for it.
                        None => continue,
                    }
                }
            }
            if state.stopping && state.waiting.is_empty() && state.ready.is_empty() && state.active == 0 {
                self.work.notify_all();
                return None;
            }
            state = match until_batch {
                None => self.work.wait(state).expect("nothing panics while it holds the scheduler's state"),
                Some(time) => {
                    let waited = self.work.wait_timeout(state, time);
                    waited.expect("nothing panics while it holds the scheduler's state").0
                }
            };
        }
    }

    /// A worker that takes work hands over the watch over what remains, including the time of an incomplete batch.
    fn wake_another(&self, state: &State) {
        if !state.ready.is_empty() || !state.waiting.is_empty() {
            self.work.notify_one();
        }
    }

    /// A batch that should run now, or how long to wait for a fuller one (`None` = until there is anything).
    fn take_batch(&self, state: &mut State) -> Result<Vec<Ready>, Option<Duration>> {
        let now = Instant::now();
        self.discard(&mut state.ready, now);
        if state.ready.len() < self.engine.max_batch {
            let Some(oldest) = state.ready.front() else { return Err(None) };
            let waited = now - oldest.since;
            let delay = self.config.max_queue_delay;
            if !state.waiting.is_empty() && waited < delay.max(LONGEST_DECODING_FIRST) {
                return Err(None);
            }
            if state.waiting.is_empty() && waited < delay && !state.stopping {
                return Err(Some(delay - waited));
            }
        }
        let n = state.ready.len().min(self.engine.max_batch);
        Ok(state.ready.drain(..n).collect())
    }

    /// Drops what nobody waits for any more.
    fn discard(&self, ready: &mut VecDeque<Ready>, now: Instant) {
        let mut i = 0;
        while let Some(item) = ready.get(i) {
            match expired(item.deadline, &item.reply, now) {
                None => i += 1,
                Some(reason) => {
                    let item = ready.remove(i).expect("the index was just used");
                    self.tell(item.reply, reason);
                }
            }
        }
    }

    fn take_waiting(&self, state: &mut State) -> Option<Waiting> {
        loop {
            let waiting = state.waiting.pop()?;
            self.metrics.queue_depth(state.waiting.len());
            if waiting.expired(Instant::now()).is_none() {
                return Some(waiting);
            }
            self.give_up(waiting);
        }
    }

    /// Ends work that has expired.
    pub(super) fn give_up(&self, waiting: Waiting) {
        let reason = waiting.expired(Instant::now()).unwrap_or(Rejection::Cancelled);
        self.tell(waiting.reply, reason);
    }

    fn tell(&self, reply: oneshot::Sender<Outcome>, reason: Rejection) {
        self.metrics.rejected(reason);
        let error = if reason == Rejection::Deadline { JobError::DeadlineExceeded } else { JobError::Abandoned };
        // The receiver may have gone; then nobody is left to tell.
        let _ = reply.send(Err(error));
    }
}
