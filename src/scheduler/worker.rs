//! The threads: one for each core, which takes the most advanced work that there is, and one for
//! each lane of a device.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Arrival, JobError, Network, QueueId, Reply, Shared, Stages, State, Timeline,
    model_queue::{ModelQueue, Ready, Waiting},
    threads::{Condvar, MutexGuard},
};
use crate::{
    engine::{Engine, EngineError},
    image::Preprocessor,
    telemetry::trace::{Batch, Period},
};

/// Decodes, and infers with the engines that run on the cores.
pub(super) struct CoreWorker {
    shared: Arc<Shared>,
    preprocessor: Preprocessor,
    /// This worker's part of the machine, 0 to 1.
    share: f64,
    buffers: Buffers,
}

/// A task of the queue `id`.
struct Task {
    id: QueueId,
    network: Arc<Network>,
    kind: TaskKind,
}

enum TaskKind {
    Decode {
        waiting: Waiting,
        crop: Vec<u8>,
    },
    Infer {
        batch: Vec<Ready>,
        lane: Box<dyn Engine>,
        wide: bool,
    },
}

impl TaskKind {
    fn images(&self) -> usize {
        match self {
            Self::Decode { .. } => 1,
            Self::Infer { batch, .. } => batch.len(),
        }
    }
}

enum Next {
    Task(Task),
    /// Drop a model that has been retired.
    Bury(Box<ModelQueue>),
}

/// What one call of an engine needs beside the batch.
#[derive(Default)]
struct Buffers {
    images: Vec<u8>,
    logits: Vec<f32>,
}

impl CoreWorker {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            preprocessor: Preprocessor::new(shared.config.preprocess),
            share: 1.0 / shared.config.threads.get() as f64,
            shared,
            buffers: Buffers::default(),
        }
    }

    pub fn run(mut self) {
        while let Some(next) = self.shared.next() {
            match next {
                Next::Task(Task { id, network, kind }) => match kind {
                    TaskKind::Decode { waiting, crop } => self.decode(id, &network, waiting, crop),
                    TaskKind::Infer { batch, lane, wide } => {
                        self.infer(id, &network, batch, (lane, wide))
                    }
                },
                Next::Bury(model) => drop(model),
            }
        }
    }

    fn decode(
        &mut self,
        id: QueueId,
        network: &Network,
        Waiting { job, reply }: Waiting,
        mut crop: Vec<u8>,
    ) {
        let started = Instant::now();
        let decoded = match (job.fetch)() {
            None => Err(JobError::Abandoned),
            Some(Arrival {
                image,
                at,
                mirrored,
            }) => {
                let result = self.preprocessor.crop(&image, &network.geometry, &mut crop);
                if mirrored {
                    network.geometry.mirror(&mut crop);
                }
                result
                    .map(|()| started.saturating_duration_since(at))
                    .map_err(JobError::Image)
            }
        };
        let since = Instant::now();
        let took = since - started;
        let mut state = self.shared.lock();
        state.active -= 1;
        let queue = state.in_work(id);
        if !matches!(decoded, Err(JobError::Abandoned)) {
            network.metrics.decoded(took);
            queue.pace.record_decode(took, self.share);
        }
        let failed = match decoded {
            Ok(queued) => {
                let stages = Stages {
                    decode: took,
                    queue: queued,
                    ..Default::default()
                };
                let (deadline, span) = (job.deadline, job.span);
                queue.ready.push_back(Ready {
                    crop,
                    deadline,
                    reply,
                    stages,
                    since,
                    span,
                });
                if network.engine.offloaded {
                    queue.arrived.notify_one();
                }
                None
            }
            Err(error) => {
                queue.recycle(crop);
                Some((reply, error))
            }
        };
        state.done(id, 1);
        drop(state);
        if let Some((reply, error)) = failed {
            let _ = reply.send(Err(error));
        }
    }

    fn infer(
        &mut self,
        id: QueueId,
        network: &Network,
        batch: Vec<Ready>,
        (mut lane, wide): (Box<dyn Engine>, bool),
    ) {
        let started = Instant::now();
        let result = self.buffers.run(&mut *lane, network, &batch);
        let took = started.elapsed();
        let mut state = self.shared.lock();
        state.active -= 1;
        let queue = state.in_work(id);
        if wide {
            queue.wide = Some(lane);
            state.exclusive = false;
            self.shared.work.notify_all();
        } else {
            queue.narrow.push(lane);
        }
        let share = if wide { 1.0 } else { self.share };
        let call = Inferred {
            id,
            network,
            batch,
            result,
            started,
            took,
            share,
        };
        self.shared.answer(state, call, &self.buffers.logits);
    }
}

/// Infers on one lane of a device.
pub(super) struct DeviceWorker {
    pub shared: Arc<Shared>,
    pub id: QueueId,
    /// Signalled when there is something to infer.
    pub arrived: Arc<Condvar>,
    pub lane: Box<dyn Engine>,
}

impl DeviceWorker {
    pub fn run(mut self) {
        let mut buffers = Buffers::default();
        while let Some((network, batch, lanes)) = self.next_batch() {
            // There is room to decode ahead again.
            self.shared.work.notify_one();
            let started = Instant::now();
            let result = buffers.run(&mut *self.lane, &network, &batch);
            let took = started.elapsed();
            let share = 1.0 / lanes as f64;
            let call = Inferred {
                id: self.id,
                network: &network,
                batch,
                result,
                started,
                took,
                share,
            };
            self.shared
                .answer(self.shared.lock(), call, &buffers.logits);
        }
    }

    /// Waits for a batch; `None` when the model has been retired and all is done.
    fn next_batch(&self) -> Option<(Arc<Network>, Vec<Ready>, usize)> {
        let mut state = self.shared.lock();
        loop {
            let stopping = state.stopping;
            let queue = state.queues.get_mut(&self.id)?;
            let delay = if stopping {
                Duration::ZERO
            } else {
                self.shared.config.max_queue_delay
            };
            let ready = queue.ready.len();
            let until = match queue.take_batch(delay) {
                Ok(batch) => {
                    queue.in_work += batch.len();
                    if !queue.ready.is_empty() {
                        self.arrived.notify_one();
                    }
                    return Some((Arc::clone(&queue.network), batch, queue.lanes));
                }
                Err(until) => until,
            };
            let (idle, discarded) = (queue.is_idle(), queue.ready.len() < ready);
            if discarded {
                // There is room to decode ahead again, or nothing left to do, and then the queue is
                // gone.
                state.bury(self.id);
                self.shared.work.notify_one();
                continue;
            }
            if stopping && idle {
                return None;
            }
            state = wait(&self.arrived, state, until);
        }
    }
}

impl Buffers {
    /// Leaves the logits of the batch in the buffer.
    fn run(
        &mut self,
        engine: &mut dyn Engine,
        network: &Network,
        batch: &[Ready],
    ) -> Result<(), EngineError> {
        let n = if network.engine.fixed_batch {
            network.engine.max_batch
        } else {
            batch.len()
        };
        self.logits.resize(n * network.classes, 0.0);
        let images = if n == 1 {
            &batch[0].crop
        } else {
            self.images.clear();
            batch
                .iter()
                .for_each(|ready| self.images.extend_from_slice(&ready.crop));
            self.images.resize(n * network.geometry.bytes(), 0);
            &self.images
        };
        let (kind, logits) = (network.engine.kind, &mut self.logits);
        catch_unwind(AssertUnwindSafe(|| engine.infer(images, n, logits)))
            .unwrap_or_else(|_| Err(kind.failed("it panicked")))?;
        if self.logits.iter().all(|logit| logit.is_finite()) {
            Ok(())
        } else {
            Err(kind.failed("its logits are not finite numbers"))
        }
    }
}

/// An engine's call that has ended.
struct Inferred<'a> {
    id: QueueId,
    network: &'a Network,
    batch: Vec<Ready>,
    result: Result<(), EngineError>,
    started: Instant,
    took: Duration,
    /// The part of the machine that the call kept busy.
    share: f64,
}

impl Shared {
    /// Ends a call of an engine: accounts for it, then sends each image's logits to whoever waits
    /// for them.
    fn answer(&self, mut state: MutexGuard<'_, State>, call: Inferred, logits: &[f32]) {
        let Inferred {
            id,
            network,
            mut batch,
            result,
            started,
            took,
            share,
        } = call;
        let n = batch.len();
        let queue = state.in_work(id);
        queue.pace.record_inference(n, took, share);
        batch
            .iter_mut()
            .for_each(|ready| queue.recycle(std::mem::take(&mut ready.crop)));
        state.done(id, n);
        drop(state);
        if network.engine.offloaded {
            // There may be a retired model to bury.
            self.work.notify_one();
        }

        network.metrics.inferred(n, took);
        match network.engine.offloaded {
            true => network.metrics.device_busy(took),
            false => network
                .metrics
                .workers_busy(share * self.config.threads.get() as f64, took),
        }
        let span = Batch {
            engine: network.engine.kind.to_string(),
            time: Period::lasting(started, took),
            images: n,
            failed: result.is_err(),
        }
        .end(batch.iter().filter_map(|ready| ready.span));
        match result {
            Ok(()) => {
                network.metrics.classified(n);
                for (ready, logits) in batch.into_iter().zip(logits.chunks_exact(network.classes)) {
                    let mut stages = ready.stages;
                    stages.queue += started - ready.since;
                    stages.inference = took;
                    network.metrics.queued(stages.queue);
                    let timeline = Timeline {
                        decoded: ready.since,
                        inferred: started,
                        batch: n,
                        span,
                    };
                    let _ = ready.reply.send(Ok(Reply {
                        logits: logits.to_vec(),
                        stages,
                        timeline,
                    }));
                }
            }
            Err(error) => {
                let traces: Vec<_> = batch
                    .iter()
                    .filter_map(|ready| Some(ready.span?.trace.to_string()))
                    .collect();
                let traces = (!traces.is_empty()).then(|| traces.join(","));
                tracing::error!(trace_ids = traces, "{error}");
                let error = Arc::new(error);
                if matches!(*error, EngineError::Lost { .. }) {
                    self.lost
                        .send_if_modified(|lost| lost.replace(Arc::clone(&error)).is_none());
                }
                for ready in batch {
                    let _ = ready.reply.send(Err(JobError::Engine(Arc::clone(&error))));
                }
            }
        }
    }

    /// Waits for something to do; `None` when the scheduler stops and all is done.
    fn next(&self) -> Option<Next> {
        let mut state = self.lock();
        loop {
            let mut until = None;
            if let Some(model) = state.finished.pop() {
                return Some(Next::Bury(Box::new(model)));
            }
            if !state.exclusive {
                match self.next_task(&mut state) {
                    Ok(task) => {
                        // A worker that takes work hands over the watch over what remains,
                        // including the time of an incomplete batch.
                        if state.queues.values().any(|queue| !queue.is_empty()) {
                            self.work.notify_one();
                        }
                        return Some(Next::Task(task));
                    }
                    Err(wait) => until = wait,
                }
            }
            if !state.finished.is_empty() {
                continue;
            }
            if state.stopping && state.queues.values().all(ModelQueue::is_idle) {
                state
                    .queues
                    .values()
                    .for_each(|queue| queue.arrived.notify_all());
                self.work.notify_all();
                return None;
            }
            state = wait(&self.work, state, until);
        }
    }

    /// The most advanced work of the queue that has had least of the machine; else when to look
    /// again.
    fn next_task(&self, state: &mut State) -> Result<Task, Option<Duration>> {
        let delay = if state.stopping {
            Duration::ZERO
        } else {
            self.config.max_queue_delay
        };
        let mut order: Vec<_> = state
            .queues
            .iter()
            .filter(|(_, queue)| !queue.is_empty())
            .collect();
        order.sort_by(|(_, a), (_, b)| a.used.total_cmp(&b.used));
        let order: Vec<QueueId> = order.into_iter().map(|(id, _)| *id).collect();
        let mut until: Option<Duration> = None;
        for id in order {
            let queue = state
                .queues
                .get_mut(&id)
                .expect("the ids were just taken from there");
            let before = queue.used;
            let mut some_waited = false;
            let kind = match self.infer(queue, delay) {
                Ok((batch, lane)) => {
                    queue.used += queue.pace.inference(batch.len());
                    Some(TaskKind::Infer {
                        batch,
                        lane,
                        wide: false,
                    })
                }
                Err(wait) => {
                    until = [until, wait].into_iter().flatten().min();
                    some_waited = !queue.waiting.is_empty();
                    queue.take_waiting().map(|waiting| {
                        queue.used += queue.pace.decode();
                        TaskKind::Decode {
                            waiting,
                            crop: queue.crop(),
                        }
                    })
                }
            };
            let Some(kind) = kind else {
                // Nothing alive was waiting, so the batch need not wait for it.
                if some_waited
                    && queue.waiting.is_empty()
                    && !queue.ready.is_empty()
                    && !queue.narrow.is_empty()
                {
                    until = Some(Duration::ZERO);
                }
                queue.arrived.notify_one();
                state.bury(id);
                continue;
            };
            queue.in_work += kind.images();
            let network = Arc::clone(&queue.network);
            state.active += 1;
            state.clock = state.clock.max(before);
            let kind = state.widen(id, kind);
            return Ok(Task { id, network, kind });
        }
        Err(until)
    }

    /// A batch that should run now on one of the cores, and what to run it with.
    #[allow(clippy::type_complexity)]
    fn infer(
        &self,
        queue: &mut ModelQueue,
        delay: Duration,
    ) -> Result<(Vec<Ready>, Box<dyn Engine>), Option<Duration>> {
        if queue.network.engine.offloaded || queue.narrow.is_empty() {
            return Err(None);
        }
        let batch = queue.take_batch(delay)?;
        Ok((
            batch,
            queue
                .narrow
                .pop()
                .expect("it was just seen not to be empty"),
        ))
    }
}

impl State {
    /// The queue of a task that is in work.
    fn in_work(&mut self, id: QueueId) -> &mut ModelQueue {
        self.queues.get_mut(&id).expect("a queue with work stays")
    }

    /// A task of the queue with so many images has ended.
    fn done(&mut self, id: QueueId, images: usize) {
        self.in_work(id).in_work -= images;
        self.bury(id);
    }

    /// Gives a batch that is alone on the machine the engine that uses all the cores.
    fn widen(&mut self, id: QueueId, kind: TaskKind) -> TaskKind {
        let idle = |queue: &ModelQueue| match queue.network.engine.offloaded {
            // What is ready for a device is no work for the cores.
            true => queue.waiting.is_empty(),
            false => queue.is_empty(),
        };
        let alone = self.active == 1 && self.queues.values().all(idle);
        let TaskKind::Infer { batch, lane, .. } = kind else {
            return kind;
        };
        let queue = self.in_work(id);
        match queue.wide.take_if(|_| alone) {
            None => TaskKind::Infer {
                batch,
                lane,
                wide: false,
            },
            Some(wide) => {
                queue.narrow.push(lane);
                self.exclusive = true;
                TaskKind::Infer {
                    batch,
                    lane: wide,
                    wide: true,
                }
            }
        }
    }
}

fn wait<'a>(
    signal: &Condvar,
    state: MutexGuard<'a, State>,
    time: Option<Duration>,
) -> MutexGuard<'a, State> {
    let calm = "nothing panics while it holds the scheduler's state";
    match time {
        None => signal.wait(state).expect(calm),
        Some(time) => signal.wait_timeout(state, time).expect(calm).0,
    }
}
