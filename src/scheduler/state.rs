//! The scheduling policy: which model's work is next, whether it is decoding or inference, and on
//! which engine it runs.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    helping::Helping,
    job::{Fetch, Job},
    model_queue::{ModelInfo, ModelQueue, Waiting},
    running::{Decoding, LaneKind, RunId, Running, Stage},
    worker::wants_embeddings,
};
use crate::{engine::Engine, image::Assist};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueueId(pub u64);

/// All that the workers share, behind one lock.
#[derive(Default)]
pub(super) struct SchedulerState {
    pub queues: BTreeMap<QueueId, ModelQueue>,
    pub next_id: u64,
    /// The virtual time of the queue that was served last, before it was charged. An idle queue
    /// resumes from this value.
    pub virtual_time: f64,
    /// A wide engine runs; no core may do anything else meanwhile.
    pub exclusive: bool,
    /// How many core workers decode or infer.
    pub active: usize,
    /// How many of them decode an image that is heavy, and how many may.
    pub heavy: usize,
    pub max_heavy: usize,
    /// What the threads work on.
    pub running: BTreeMap<RunId, Running>,
    pub next_run: u64,
    /// Calls for help with decoding that no worker has answered yet.
    pub calls: VecDeque<Arc<dyn Assist>>,
    /// The workers that help.
    pub helping: BTreeMap<RunId, Helping>,
    /// Counts work that was begun, ended or given up.
    pub moves: u64,
    /// Threads that work or wait for work.
    pub threads: usize,
    /// Threads that hang with work that has been given up.
    pub lost: usize,
    /// Threads of cores that are to be started in the place of those.
    pub missing: usize,
    pub next_thread: u64,
    /// Retired queues whose engines the next free worker drops.
    pub finished: Vec<ModelQueue>,
    pub stopping: bool,
}

/// Work of the queue `id` for one core worker.
pub(super) struct Task {
    pub id: QueueId,
    pub run: RunId,
    pub model: Arc<ModelInfo>,
    pub work: Work,
}

/// What a worker itself needs for its work; [`Running`] has the rest.
pub(super) enum Work {
    Decode {
        fetch: Fetch,
        crop: Vec<u8>,
        /// Whether it is known how long the image takes.
        is_estimated: bool,
    },
    Infer {
        crops: Vec<Vec<u8>>,
        /// Whether the embeddings are wanted too.
        embeddings: bool,
        engine: Box<dyn Engine>,
    },
}

impl SchedulerState {
    /// A queue's share of the machine, 0 to 1, given the other queues that are busy.
    pub fn share(&self, id: QueueId) -> f64 {
        let others = self
            .queues
            .iter()
            .filter(|(other, queue)| **other != id && !queue.is_idle() && !queue.is_background())
            .count();
        1.0 / (1 + others) as f64
    }

    /// The most advanced work of the queue with the least virtual time; else how long to wait
    /// before looking again (`None` means until there is new work).
    ///
    /// `delay` is how long an incomplete batch may wait for more images.
    pub fn next_task(&mut self, delay: Duration) -> Result<Task, Option<Duration>> {
        let mut order: Vec<_> = self
            .queues
            .iter()
            .filter(|(_, queue)| !queue.is_empty())
            .map(|(id, queue)| (queue.virtual_time, *id))
            .collect();
        order.sort_by(|(a, _), (b, _)| a.total_cmp(b));

        let mut until: Option<Duration> = None;
        for (virtual_time, id) in order {
            let queue = self
                .queues
                .get_mut(&id)
                .expect("the ids were just taken from there");

            let taken = match queue.take_inference(delay) {
                Ok(taken) => Some(taken),
                Err(wait) => {
                    until = [until, wait].into_iter().flatten().min();
                    let some_waited = !queue.waiting.is_empty();
                    let hold_heavy = self.heavy >= self.max_heavy;
                    let decode = queue.take_decode(hold_heavy);
                    // All that waited had expired: the batch need not wait for it any longer.
                    if decode.is_none()
                        && some_waited
                        && queue.waiting.is_empty()
                        && !queue.ready.is_empty()
                        && !queue.narrow.is_empty()
                    {
                        until = Some(Duration::ZERO);
                    }
                    decode
                }
            };
            let Some(taken) = taken else {
                queue.image_ready.notify_one();
                self.remove_if_finished(id);
                continue;
            };

            let model = Arc::clone(&queue.model);
            self.virtual_time = self.virtual_time.max(virtual_time);
            let (work, stage) = self.widen(id, taken);
            let run = self.begin(id, Arc::clone(&model), stage);
            return Ok(Task {
                id,
                run,
                model,
                work,
            });
        }
        Err(until)
    }

    /// Gives a batch that is alone on the machine the engine that uses all cores.
    fn widen(&mut self, id: QueueId, taken: Taken) -> Taken {
        let (
            Work::Infer {
                crops,
                embeddings,
                engine,
            },
            Stage::Infer { batch, .. },
        ) = taken
        else {
            return taken;
        };

        let alone = self.active == 0 && self.queues.values().all(ModelQueue::leaves_cores_idle);
        let queue = self.busy_queue(id);
        let (engine, lane) = match queue.wide.take_if(|_| alone) {
            None => (engine, LaneKind::Narrow),
            Some(wide) => {
                queue.narrow.push(engine);
                self.exclusive = true;
                (wide, LaneKind::Wide)
            }
        };
        let work = Work::Infer {
            crops,
            embeddings,
            engine,
        };
        (work, Stage::Infer { batch, lane })
    }

    /// The queue that work in progress belongs to.
    pub fn busy_queue(&mut self, id: QueueId) -> &mut ModelQueue {
        self.queues
            .get_mut(&id)
            .expect("a queue with work in progress is not removed")
    }

    /// Work of the queue with this many images has ended.
    pub fn finish(&mut self, id: QueueId, images: usize) {
        let queue = self.busy_queue(id);
        queue.in_progress -= images;
        if queue.is_idle() {
            queue.waiting.settle();
        }
        self.remove_if_finished(id);
    }

    /// Removes a queue that is retired and has nothing left to do.
    pub fn remove_if_finished(&mut self, id: QueueId) {
        let over = |queue: &ModelQueue| queue.retired && queue.is_idle();
        if self.queues.get(&id).is_some_and(over)
            && let Some(queue) = self.queues.remove(&id)
        {
            queue.image_ready.notify_all();
            self.finished.push(queue);
        }
    }

    /// The expired jobs of all queues, which the caller drops without the scheduler's lock.
    pub fn take_expired(&mut self) -> Vec<Job> {
        self.queues
            .values_mut()
            .flat_map(ModelQueue::take_expired)
            .collect()
    }

    /// Wakes the threads of all devices.
    pub fn notify_devices(&self) {
        for queue in self.queues.values() {
            queue.image_ready.notify_all();
        }
    }
}

/// Work for a thread, and what stays here of it.
type Taken = (Work, Stage);

impl ModelQueue {
    /// A batch that should run now on one of the cores, with the engine that runs it.
    fn take_inference(&mut self, delay: Duration) -> Result<Taken, Option<Duration>> {
        if self.model.engine.offloaded || self.narrow.is_empty() {
            return Err(None);
        }
        let (crops, batch) = self.take_batch(delay)?;
        let engine = self.narrow.pop().expect("it was just seen not to be empty");
        self.virtual_time += self.charge * self.pace.inference_cost(batch.len());
        let lane = LaneKind::Narrow;
        let work = Work::Infer {
            crops,
            embeddings: wants_embeddings(&batch),
            engine,
        };
        Ok((work, Stage::Infer { batch, lane }))
    }

    /// The next image to decode, unless enough are decoded already.
    fn take_decode(&mut self, hold_heavy: bool) -> Option<Taken> {
        let waiting = self.take_waiting(hold_heavy)?;
        let turn = waiting.turn();
        let Waiting { job, reply, cost } = waiting;
        self.virtual_time += self.charge * cost.decode;
        let work = Work::Decode {
            fetch: job.fetch,
            crop: self.crop_buffer(),
            is_estimated: job.decode_estimate.is_some(),
        };
        let wants_embedding = job.wants_embedding;
        let stage = Stage::Decode(Decoding {
            turn,
            deadline: job.deadline,
            reply,
            span: job.span,
            kind: job.kind,
            wants_embedding,
            cost,
        });
        Some((work, stage))
    }
}
