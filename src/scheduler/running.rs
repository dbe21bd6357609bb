//! Work that a thread has taken, and what becomes of it if the thread does not bring it back.
//!
//! What is needed to answer the callers stays here, behind the scheduler's lock. So they can be
//! answered by somebody else when the thread hangs or panics, and a thread that comes back too late
//! finds that its work has been given up.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Failure, JobError, Outcome, Shared,
    fair_queue::Turn,
    model_queue::{ModelInfo, ModelQueue, Ready},
    reply_to::ReplyTo,
    state::{QueueId, SchedulerState},
    turns::Cost,
};
use crate::{
    engine::EngineError,
    metrics::{
        self, Restart,
        statistics::{RequestKind, Stages},
    },
    telemetry::context::SpanContext,
};

/// The unique id of work in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RunId(pub u64);

/// Work in progress.
pub(super) struct Running {
    pub id: QueueId,
    pub model: Arc<ModelInfo>,
    pub stage: Stage,
    pub since: Instant,
    /// For how long it has been seen in progress. Time in which the whole process stood still does
    /// not count.
    pub watched: Duration,
}

pub(super) enum Stage {
    Decode(Decoding),
    Infer { batch: Vec<Ready>, lane: LaneKind },
}

/// The engine that a batch runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaneKind {
    /// One core.
    Narrow,
    /// All cores.
    Wide,
    /// A lane of a device.
    Device,
}

/// An image that is being decoded.
pub(super) struct Decoding {
    pub turn: Turn,
    pub deadline: Option<Instant>,
    pub reply: oneshot::Sender<Outcome>,
    pub span: Option<SpanContext>,
    pub kind: RequestKind,
    pub wants_embedding: bool,
    /// What its client has been charged for it.
    pub cost: Cost,
}

impl Decoding {
    /// Queues the crops of the image, which was decoded at `since`, for inference.
    pub fn queue_crops(
        self,
        queue: &mut ModelQueue,
        crops: Vec<Vec<u8>>,
        stages: Stages,
        since: Instant,
        inference_cost: f64,
    ) {
        let replies = ReplyTo::split(self.reply, crops.len());
        for (crop, reply) in crops.into_iter().zip(replies) {
            queue.ready.push_back(Ready {
                crop,
                deadline: self.deadline,
                reply,
                wants_embedding: self.wants_embedding,
                stages,
                since,
                span: self.span,
                kind: self.kind,
                turn: self.turn,
                inference_cost,
            });
        }
        if queue.model.engine.offloaded {
            queue.image_ready.notify_one();
        }
    }
}

/// Why a thread does not bring its work back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    Panicked,
    /// It has been at work for this long.
    Hangs(Duration),
    /// The scheduler stops and waits no longer.
    Stopping,
}

impl SchedulerState {
    /// Allocates the id of work that begins.
    pub fn next_run_id(&mut self) -> RunId {
        let run = RunId(self.next_run);
        self.next_run += 1;
        run
    }

    /// Notes that a thread begins with work of the queue `id`.
    pub fn begin(&mut self, id: QueueId, model: Arc<ModelInfo>, stage: Stage) -> RunId {
        let run = self.next_run_id();
        self.moves += 1;
        let images = match &stage {
            Stage::Decode(decoding) => {
                self.active += 1;
                self.heavy += usize::from(decoding.cost.heavy);
                1
            }
            Stage::Infer { batch, lane } => {
                self.active += usize::from(*lane != LaneKind::Device);
                batch.len()
            }
        };
        self.busy_queue(id).in_progress += images;
        self.running.insert(
            run,
            Running {
                id,
                model,
                stage,
                since: Instant::now(),
                watched: Duration::ZERO,
            },
        );
        run
    }

    /// Takes back an image that a thread has decoded; `None` if it has been given up meanwhile.
    pub fn end_decoding(&mut self, run: RunId) -> Option<Decoding> {
        match self.end(run)?.stage {
            Stage::Decode(decoding) => Some(decoding),
            Stage::Infer { .. } => None,
        }
    }

    /// Takes back a batch that a thread has inferred; `None` if it has been given up meanwhile.
    pub fn end_inference(&mut self, run: RunId) -> Option<(Vec<Ready>, LaneKind)> {
        match self.end(run)?.stage {
            Stage::Infer { batch, lane } => Some((batch, lane)),
            Stage::Decode(_) => None,
        }
    }

    /// Takes back what a thread has worked on; `None` if it has been given up meanwhile.
    pub fn end(&mut self, run: RunId) -> Option<Running> {
        let running = self.running.remove(&run)?;
        self.moves += 1;
        match &running.stage {
            Stage::Decode(decoding) => {
                self.active -= 1;
                self.heavy -= usize::from(decoding.cost.heavy);
            }
            Stage::Infer { lane, .. } => {
                self.active -= usize::from(*lane != LaneKind::Device);
                self.exclusive &= *lane != LaneKind::Wide;
            }
        }
        Some(running)
    }
}

impl Shared {
    /// Gives up work whose thread will not bring it back, and answers its callers. The engine that
    /// the thread had is gone. False if the work has ended.
    pub fn give_up(&self, run: RunId, loss: Loss) -> bool {
        let mut state = self.lock();
        let Some(Running {
            id,
            model,
            stage,
            watched,
            ..
        }) = state.end(run)
        else {
            drop(state);
            return self.give_up_helping(run, loss);
        };
        let was_core = !matches!(
            stage,
            Stage::Infer {
                lane: LaneKind::Device,
                ..
            }
        );
        if loss != Loss::Panicked {
            state.threads -= 1;
            state.lost += 1;
            state.missing += usize::from(was_core);
        }

        let share = 1.0 / self.config.threads.get() as f64;
        let queue = state.busy_queue(id);
        let images = match &stage {
            Stage::Decode(decoding) => {
                let spent = watched.as_secs_f64() * share;
                queue
                    .waiting
                    .correct(decoding.turn, spent - decoding.cost.time());
                1
            }
            Stage::Infer { batch, lane } => {
                // A device's thread keeps its lane when it panics beside the engine.
                let stays = *lane == LaneKind::Device && loss == Loss::Panicked;
                queue.lanes -= usize::from(*lane != LaneKind::Wide && !stays);
                batch.len()
            }
        };
        let lanes = queue.lanes;
        state.finish(id, images);
        let lost = state.lost;
        drop(state);

        self.work_available.notify_all();
        let after = match loss {
            Loss::Panicked => None,
            Loss::Hangs(after) => Some(after),
            // Callers whose jobs are dropped are told that they were abandoned.
            Loss::Stopping => return true,
        };
        metrics::worker_restarted(after.map_or(Restart::Panic, |_| Restart::Hang));
        match stage {
            Stage::Decode(decoding) => answer_image(decoding, after),
            Stage::Infer { batch, .. } => self.answer_batch(&model, batch, after, lanes),
        }
        let most = self.max_lost();
        if lost >= most {
            self.fail(Failure::Hanging { threads: lost });
        }
        true
    }

    /// Answers a batch whose engine is gone: it hung, `after` this time, or its thread panicked.
    /// `lanes` of its model are left.
    fn answer_batch(
        &self,
        model: &ModelInfo,
        batch: Vec<Ready>,
        after: Option<Duration>,
        lanes: usize,
    ) {
        let kind = model.engine.kind;
        let reason = match after {
            None => "its worker thread panicked".into(),
            Some(after) => {
                format!("a call had not ended after {after:.0?} (--stall-timeout) and was given up")
            }
        };
        let error = if lanes == 0 {
            EngineError::Lost { kind, reason }
        } else {
            EngineError::Inference {
                kind,
                reason: format!("{reason}; {lanes} of its lanes are left"),
            }
        };
        let error = self.engine_failed(error, &batch);
        for ready in batch {
            ready.reply.fail(JobError::Engine(Arc::clone(&error)));
        }
    }
}

/// Answers an image whose decoding hung, `after` this time, or panicked.
fn answer_image(decoding: Decoding, after: Option<Duration>) {
    let trace_id = decoding.span.map(|span| span.trace.to_string());
    let error = match after {
        None => {
            tracing::error!(
                trace_id,
                "a worker thread panicked; its image was answered with an error, and the thread \
                 goes on"
            );
            JobError::Panicked
        }
        Some(after) => {
            tracing::error!(
                trace_id,
                "decoding an image had not ended after {after:.0?}; its thread is left behind and \
                 replaced"
            );
            JobError::Stuck(after)
        }
    };
    // The caller may have gone.
    let _ = decoding.reply.send(Err(error));
}
