//! The threads: one for each core, which decodes and infers, and one for each lane of a device.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    InputImage, JobError, Reply, Shared, Timeline,
    model_queue::{ModelInfo, ModelQueue, Ready, Waiting},
    state::{QueueId, SchedulerState, Task, Work},
    sync::{self, Condvar, MutexGuard},
};
use crate::{
    engine::{Engine, EngineError},
    image::Preprocessor,
    metrics::statistics::Stages,
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

enum Next {
    Task(Task),
    /// Drop the engines of a model that has been retired.
    Drop(Box<ModelQueue>),
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
                Next::Task(task) => self.execute(task),
                Next::Drop(model) => drop(model),
            }
        }
    }

    fn execute(&mut self, task: Task) {
        let Task { id, model, work } = task;
        match work {
            Work::Decode { waiting, crop } => self.decode(id, &model, waiting, crop),
            Work::Infer { batch, lane, wide } => self.infer(id, &model, batch, lane, wide),
        }
    }

    fn decode(&mut self, id: QueueId, model: &ModelInfo, waiting: Waiting, mut crop: Vec<u8>) {
        let Waiting { job, reply } = waiting;
        let started = Instant::now();
        let decoded = match (job.fetch)() {
            None => Err(JobError::Abandoned),
            Some(image) => self.crop(&image, model, &mut crop).map(|()| image.arrived),
        };
        let ended = Instant::now();
        let took = ended - started;

        let mut state = self.shared.lock();
        state.active -= 1;
        let queue = state.busy_queue(id);
        if !matches!(decoded, Err(JobError::Abandoned)) {
            model.metrics.decoded(took);
            queue.pace.record_decode(took, self.share);
        }
        let failed = match decoded {
            Ok(arrived) => {
                queue.ready.push_back(Ready {
                    crop,
                    deadline: job.deadline,
                    reply,
                    stages: Stages {
                        decode: took,
                        queue: started.saturating_duration_since(arrived),
                        ..Stages::default()
                    },
                    since: ended,
                    span: job.span,
                });
                if model.engine.offloaded {
                    queue.image_ready.notify_one();
                }
                None
            }
            Err(error) => {
                queue.recycle(crop);
                Some((reply, error))
            }
        };
        state.finish(id, 1);
        drop(state);

        if let Some((reply, error)) = failed {
            // The caller may have gone.
            let _ = reply.send(Err(error));
        }
    }

    /// Fills `crop` with the image at the model's input size.
    fn crop(
        &mut self,
        image: &InputImage,
        model: &ModelInfo,
        crop: &mut [u8],
    ) -> Result<(), JobError> {
        self.preprocessor
            .crop(&image.source, &model.geometry, crop)?;
        if image.mirrored {
            model.geometry.mirror(crop);
        }
        Ok(())
    }

    fn infer(
        &mut self,
        id: QueueId,
        model: &ModelInfo,
        batch: Vec<Ready>,
        mut lane: Box<dyn Engine>,
        wide: bool,
    ) {
        let started = Instant::now();
        let result = self.buffers.run(&mut *lane, model, &batch);
        let took = started.elapsed();

        let mut state = self.shared.lock();
        state.active -= 1;
        let queue = state.busy_queue(id);
        if wide {
            queue.wide = Some(lane);
            state.exclusive = false;
            self.shared.work_available.notify_all();
        } else {
            queue.narrow.push(lane);
        }
        let call = EngineCall {
            id,
            model,
            batch,
            result,
            started,
            took,
            share: if wide { 1.0 } else { self.share },
        };
        self.shared.answer(state, call, &self.buffers.logits);
    }
}

/// Infers on one lane of a device.
pub(super) struct DeviceWorker {
    pub shared: Arc<Shared>,
    pub id: QueueId,
    /// Signalled when there is something to infer.
    pub image_ready: Arc<Condvar>,
    pub lane: Box<dyn Engine>,
}

impl DeviceWorker {
    pub fn run(mut self) {
        let mut buffers = Buffers::default();
        while let Some((model, batch, lanes)) = self.next_batch() {
            // There is room to decode ahead again.
            self.shared.work_available.notify_one();

            let started = Instant::now();
            let result = buffers.run(&mut *self.lane, &model, &batch);
            let call = EngineCall {
                id: self.id,
                model: &model,
                batch,
                result,
                started,
                took: started.elapsed(),
                share: 1.0 / lanes as f64,
            };
            self.shared
                .answer(self.shared.lock(), call, &buffers.logits);
        }
    }

    /// Waits for a batch, and returns it with the number of the device's lanes; `None` when the
    /// model has been retired and all of its work is done.
    fn next_batch(&self) -> Option<(Arc<ModelInfo>, Vec<Ready>, usize)> {
        let mut state = self.shared.lock();
        loop {
            let stopping = state.stopping;
            let delay = self.shared.batch_delay(&state);
            let queue = state.queues.get_mut(&self.id)?;
            let ready = queue.ready.len();
            let until = match queue.take_batch(delay) {
                Ok(batch) => {
                    queue.in_progress += batch.len();
                    if !queue.ready.is_empty() {
                        self.image_ready.notify_one();
                    }
                    return Some((Arc::clone(&queue.model), batch, queue.lanes));
                }
                Err(until) => until,
            };

            if queue.ready.len() < ready {
                // Expired images were discarded: there is room to decode ahead again, or nothing is
                // left to do for a retired model.
                state.remove_if_finished(self.id);
                self.shared.work_available.notify_one();
                continue;
            }
            if stopping && queue.is_idle() {
                return None;
            }
            state = sync::wait(&self.shared.state, state, &self.image_ready, until);
        }
    }
}

/// What one call of an engine needs beside the batch.
#[derive(Default)]
struct Buffers {
    images: Vec<u8>,
    logits: Vec<f32>,
}

impl Buffers {
    /// Leaves the logits of the batch, `float32 [n, classes]`, in the buffer.
    fn run(
        &mut self,
        engine: &mut dyn Engine,
        model: &ModelInfo,
        batch: &[Ready],
    ) -> Result<(), EngineError> {
        let n = if model.engine.fixed_batch {
            model.engine.max_batch
        } else {
            batch.len()
        };
        self.logits.resize(n * model.classes, 0.0);
        let images = if n == 1 {
            &batch[0].crop
        } else {
            self.images.clear();
            for ready in batch {
                self.images.extend_from_slice(&ready.crop);
            }
            self.images.resize(n * model.geometry.bytes(), 0);
            &self.images
        };

        let kind = model.engine.kind;
        let logits = &mut self.logits;
        catch_unwind(AssertUnwindSafe(|| engine.infer(images, n, logits)))
            .unwrap_or_else(|_| Err(kind.failed("it panicked")))?;
        if self.logits.iter().all(|logit| logit.is_finite()) {
            Ok(())
        } else {
            Err(kind.failed("its logits are not finite numbers"))
        }
    }
}

/// A completed call of an engine.
struct EngineCall<'a> {
    id: QueueId,
    model: &'a ModelInfo,
    batch: Vec<Ready>,
    result: Result<(), EngineError>,
    started: Instant,
    took: Duration,
    /// The part of the machine that the call kept busy, 0 to 1.
    share: f64,
}

impl Shared {
    /// Accounts for a call of an engine, then answers its images.
    fn answer(
        &self,
        mut state: MutexGuard<'_, SchedulerState>,
        mut call: EngineCall,
        logits: &[f32],
    ) {
        let n = call.batch.len();
        let queue = state.busy_queue(call.id);
        queue.pace.record_inference(n, call.took, call.share);
        for ready in &mut call.batch {
            queue.recycle(std::mem::take(&mut ready.crop));
        }
        state.finish(call.id, n);
        drop(state);

        let metrics = &call.model.metrics;
        metrics.inferred(n, call.took);
        if call.model.engine.offloaded {
            // There may be a retired model whose engines are to be dropped.
            self.work_available.notify_one();
            metrics.device_busy(call.took);
        } else {
            let threads = call.share * self.config.threads.get() as f64;
            metrics.workers_busy(threads, call.took);
        }
        self.reply(call, logits);
    }

    /// Sends each image's logits, or the engine's error, to its caller.
    fn reply(&self, call: EngineCall, logits: &[f32]) {
        let EngineCall {
            model,
            batch,
            result,
            started,
            took,
            ..
        } = call;
        let n = batch.len();
        let span = Batch {
            engine: model.engine.kind.name(),
            time: Period::lasting(started, took),
            images: n,
            failed: result.is_err(),
        }
        .end(batch.iter().filter_map(|ready| ready.span));

        if let Err(error) = result {
            let error = self.engine_failed(error, &batch);
            for ready in batch {
                let _ = ready.reply.send(Err(JobError::Engine(Arc::clone(&error))));
            }
            return;
        }

        model.metrics.classified(n);
        for (ready, logits) in batch.into_iter().zip(logits.chunks_exact(model.classes)) {
            let mut stages = ready.stages;
            stages.queue += started - ready.since;
            stages.inference = took;
            model.metrics.queued(stages.queue);
            let timeline = Timeline {
                decoded: ready.since,
                inferred: started,
                batch: n,
                span,
            };
            // The caller may have gone.
            let _ = ready.reply.send(Ok(Reply {
                logits: logits.to_vec(),
                stages,
                timeline,
            }));
        }
    }

    /// Logs an engine's error with the traces of its batch, and reports an engine that is lost.
    fn engine_failed(&self, error: EngineError, batch: &[Ready]) -> Arc<EngineError> {
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
        error
    }

    /// Waits for something to do; `None` when the scheduler stops and all work is done.
    fn next(&self) -> Option<Next> {
        let mut state = self.lock();
        loop {
            if let Some(model) = state.finished.pop() {
                return Some(Next::Drop(Box::new(model)));
            }

            let mut until = None;
            if !state.exclusive {
                let delay = self.batch_delay(&state);
                match state.next_task(delay) {
                    Ok(task) => {
                        // Wake another worker to watch the rest, including batch timeouts.
                        if state.queues.values().any(|queue| !queue.is_empty()) {
                            self.work_available.notify_one();
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
                state.notify_devices();
                self.work_available.notify_all();
                return None;
            }
            state = sync::wait(&self.state, state, &self.work_available, until);
        }
    }

    /// How long an incomplete batch may wait. Nothing new arrives at a scheduler that stops.
    fn batch_delay(&self, state: &SchedulerState) -> Duration {
        if state.stopping {
            Duration::ZERO
        } else {
            self.config.max_queue_delay
        }
    }
}
