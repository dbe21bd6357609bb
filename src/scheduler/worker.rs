//! The threads: one for each core, which decodes and infers, and one for each lane of a device.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{
    Failure, HEAVY_DECODE, InputImage, Job, JobError, Output, Reply, Shared, Timeline,
    helping::IdleCores,
    job::Fetch,
    model_queue::{ModelInfo, ModelQueue, Ready, Waiting},
    running::{Decoding, LaneKind, Loss, RunId, Running, Stage},
    state::{QueueId, SchedulerState, Task, Work},
    sync::{self, Condvar, MutexGuard},
};
use crate::{
    engine::{Engine, EngineError, Results},
    image::{Assist, Preprocessor, estimate},
    metrics::{self, Restart, statistics::Stages},
    telemetry::trace::{Batch, Period},
};

/// How long a worker that panicked outside of its work waits before it goes on.
const PAUSE_AFTER_PANIC: Duration = Duration::from_millis(100);

/// Why a thread ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The scheduler stops, or the model of the thread's lane is retired.
    Finished,
    /// Its work was given up while it hung: another thread has taken its place.
    Lost,
}

/// The work was given up meanwhile, so its result is ignored.
struct GivenUp;

/// Runs the worker of a core, again from the start after each panic.
pub(super) fn run_core(shared: &Arc<Shared>) -> Ended {
    loop {
        let mut worker = CoreWorker::new(Arc::clone(shared));
        let ended = unless_panicking(|| worker.run());
        match ended {
            Some(ended) => return ended,
            None => shared.panicked(worker.current),
        }
    }
}

/// Runs the worker of a lane of a device. Engines' own panics are caught where they are called, so
/// that the lane can still be used after one.
pub(super) fn run_device(mut worker: DeviceWorker) -> Ended {
    loop {
        let ended = unless_panicking(|| worker.run());
        match ended {
            Some(ended) => return ended,
            None => worker.shared.panicked(worker.current),
        }
    }
}

/// What `work` returns; `None` if it panicked. Shuttle has to see panics.
fn unless_panicking<T>(work: impl FnOnce() -> T) -> Option<T> {
    if cfg!(shuttle) {
        return Some(work());
    }
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// Decodes, and infers with the engines that run on the cores.
struct CoreWorker {
    shared: Arc<Shared>,
    preprocessor: Preprocessor,
    /// This worker's part of the machine, 0 to 1.
    share: f64,
    buffers: Buffers,
    /// What it works on.
    current: Option<RunId>,
}

enum Next {
    Task(Task),
    /// Help another worker.
    Help(RunId, Arc<dyn Assist>),
    /// Drop the engines of a model that has been retired.
    Drop(Box<ModelQueue>),
}

/// An image that has been decoded, or why it was not.
struct Decoded {
    result: Result<InputImage, JobError>,
    /// The crops, or buffers for them.
    crops: Vec<Vec<u8>>,
    started: Instant,
    ended: Instant,
    /// The time that other workers have helped.
    helped: Duration,
}

/// An image that a worker is to decode.
struct Image {
    fetch: Fetch,
    /// A buffer for its first crop.
    crop: Vec<u8>,
    is_estimated: bool,
}

impl CoreWorker {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            preprocessor: Preprocessor::new(shared.config.preprocess)
                .with_helpers(Arc::new(IdleCores(Arc::clone(&shared)))),
            share: shared.core_share(),
            shared,
            buffers: Buffers::default(),
            current: None,
        }
    }

    fn run(&mut self) -> Ended {
        while let Some(next) = self.shared.next() {
            match next {
                Next::Drop(model) => drop(model),
                Next::Task(task) => {
                    self.current = Some(task.run);
                    if self.execute(task).is_err() {
                        return Ended::Lost;
                    }
                    self.current = None;
                }
                Next::Help(run, work) => {
                    self.current = Some(run);
                    work.assist();
                    drop(work);
                    if !self.shared.lock().end_helping(run) {
                        return Ended::Lost;
                    }
                    self.current = None;
                }
            }
        }
        Ended::Finished
    }

    fn execute(&mut self, task: Task) -> Result<(), GivenUp> {
        let Task {
            id,
            run,
            model,
            work,
        } = task;
        match work {
            Work::Decode {
                fetch,
                crop,
                is_estimated,
            } => {
                let image = Image {
                    fetch,
                    crop,
                    is_estimated,
                };
                self.decode(id, run, &model, image)
            }
            Work::Infer {
                crops,
                embeddings,
                engine,
            } => {
                let input = Input { crops, embeddings };
                self.infer(id, run, &model, input, engine)
            }
        }
    }

    fn decode(
        &mut self,
        id: QueueId,
        run: RunId,
        model: &ModelInfo,
        image: Image,
    ) -> Result<(), GivenUp> {
        let Image {
            fetch,
            crop,
            is_estimated,
        } = image;
        let started = Instant::now();
        let fetched = match fetch() {
            Some(image) if !is_estimated => {
                let config = self.shared.config.preprocess;
                let time = estimate(&image.source, &image.regions, config, &model.geometry).time;
                if time > HEAVY_DECODE && !self.shared.may_decode_heavy(run) {
                    return self.shared.queue_again(id, run, crop, image, time);
                }
                Some(image)
            }
            fetched => fetched,
        };

        let mut crops = vec![crop];
        let mut helped = Duration::ZERO;
        let result = match fetched {
            None => Err(JobError::Abandoned),
            Some(image) => {
                let cropped = self.crop(&image, model, &mut crops);
                helped = self.preprocessor.helped();
                cropped.map(|()| image)
            }
        };

        let decoded = Decoded {
            result,
            crops,
            started,
            ended: Instant::now(),
            helped,
        };
        self.finish_decoding(id, run, model, decoded)
    }

    /// Charges the client for what decoding has cost, and queues the crops for inference or answers
    /// with the error.
    fn finish_decoding(
        &self,
        id: QueueId,
        run: RunId,
        model: &ModelInfo,
        decoded: Decoded,
    ) -> Result<(), GivenUp> {
        let Decoded {
            result,
            crops,
            started,
            ended,
            helped,
        } = decoded;
        let took = ended - started;

        let mut state = self.shared.lock();
        let decoding = state.end_decoding(run).ok_or(GivenUp)?;
        let cost = decoding.cost;
        let queue = state.busy_queue(id);
        let spent = (took + helped).as_secs_f64() * self.share;
        queue.virtual_time += queue.charge * (spent - cost.decode);
        if !matches!(result, Err(JobError::Abandoned)) {
            model.metrics.decoded(took, helped);
            queue.pace.record_decode(took + helped, self.share);
        }

        let failed = match result {
            // By reference, so that the image is freed after the lock has been released.
            Ok(ref image) => {
                // A live stream shows only now how many crops its frame gives.
                let inference_cost = queue.cost(None, false, 1).inference;
                let charged = inference_cost * crops.len() as f64;
                let difference = spent - cost.decode + charged - cost.inference;
                queue.waiting.correct(decoding.turn, difference);
                model.metrics.regions(image.regions.len());

                let stages = Stages {
                    decode: took,
                    queue: started.saturating_duration_since(image.arrived),
                    ..Stages::default()
                };
                decoding.queue_crops(queue, crops, stages, ended, inference_cost);
                None
            }
            Err(error) => {
                queue.waiting.correct(decoding.turn, spent - cost.time());
                crops.into_iter().for_each(|crop| queue.recycle(crop));
                Some((decoding.reply, error))
            }
        };
        state.finish(id, 1);
        drop(state);

        if let Some((reply, error)) = failed {
            // The caller may have gone.
            let _ = reply.send(Err(error));
        }
        Ok(())
    }

    /// Fills `crops`, which has one buffer, with the image at the model's input size, or with each
    /// of its regions.
    fn crop(
        &mut self,
        image: &InputImage,
        model: &ModelInfo,
        crops: &mut Vec<Vec<u8>>,
    ) -> Result<(), JobError> {
        let geometry = &model.geometry;
        if image.regions.is_empty() {
            self.preprocessor
                .crop(&image.source, geometry, &mut crops[0])?;
        } else {
            crops.resize_with(image.regions.len(), || vec![0; geometry.bytes()]);
            self.preprocessor
                .crop_regions(&image.source, &image.regions, geometry, crops)?;
        }
        if image.mirrored {
            crops.iter_mut().for_each(|crop| geometry.mirror(crop));
        }
        Ok(())
    }

    fn infer(
        &mut self,
        id: QueueId,
        run: RunId,
        model: &ModelInfo,
        input: Input,
        mut engine: Box<dyn Engine>,
    ) -> Result<(), GivenUp> {
        let started = Instant::now();
        let result = self.buffers.run(&mut *engine, model, &input);
        let took = started.elapsed();

        let mut state = self.shared.lock();
        let Some((batch, lane)) = state.end_inference(run) else {
            // The engine is dropped after the lock has been released.
            drop(state);
            return Err(GivenUp);
        };
        let queue = state.busy_queue(id);
        let wide = lane == LaneKind::Wide;
        if wide {
            queue.wide = Some(engine);
            self.shared.work_available.notify_all();
        } else {
            queue.narrow.push(engine);
        }
        let call = EngineCall {
            id,
            model,
            crops: input.crops,
            batch,
            result,
            started,
            took,
            share: if wide { 1.0 } else { self.share },
        };
        self.shared.answer(state, call, &self.buffers);
        Ok(())
    }
}

/// Infers on one lane of a device.
pub(super) struct DeviceWorker {
    pub shared: Arc<Shared>,
    pub id: QueueId,
    /// Signalled when there is something to infer.
    pub image_ready: Arc<Condvar>,
    pub lane: Box<dyn Engine>,
    /// What it works on.
    pub current: Option<RunId>,
}

/// A batch for a lane of a device.
struct DeviceBatch {
    run: RunId,
    model: Arc<ModelInfo>,
    input: Input,
    /// How many lanes the device has.
    lanes: usize,
}

impl DeviceWorker {
    fn run(&mut self) -> Ended {
        let mut buffers = Buffers::default();
        while let Some(next) = self.next_batch() {
            let DeviceBatch {
                run,
                model,
                input,
                lanes,
            } = next;
            self.current = Some(run);
            // There is room to decode ahead again.
            self.shared.work_available.notify_one();

            let started = Instant::now();
            let result = buffers.run(&mut *self.lane, &model, &input);
            let took = started.elapsed();

            let mut state = self.shared.lock();
            let Some((batch, _)) = state.end_inference(run) else {
                return Ended::Lost;
            };
            let call = EngineCall {
                id: self.id,
                model: &model,
                crops: input.crops,
                batch,
                result,
                started,
                took,
                share: 1.0 / lanes as f64,
            };
            self.shared.answer(state, call, &buffers);
            self.current = None;
        }
        Ended::Finished
    }

    /// Waits for a batch; `None` when the model has been retired and all of its work is done.
    fn next_batch(&self) -> Option<DeviceBatch> {
        let mut state = self.shared.lock();
        loop {
            let stopping = state.stopping;
            let delay = self.shared.batch_delay(&state);
            let queue = state.queues.get_mut(&self.id)?;
            let ready = queue.ready.len();
            let until = match queue.take_batch(delay) {
                Ok((crops, batch)) => {
                    if !queue.ready.is_empty() {
                        self.image_ready.notify_one();
                    }
                    let lanes = queue.lanes;
                    let model = Arc::clone(&queue.model);
                    let embeddings = wants_embeddings(&batch);
                    let lane = LaneKind::Device;
                    let stage = Stage::Infer { batch, lane };
                    let run = state.begin(self.id, Arc::clone(&model), stage);
                    return Some(DeviceBatch {
                        run,
                        model,
                        input: Input { crops, embeddings },
                        lanes,
                    });
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

/// What an engine is to compute.
struct Input {
    crops: Vec<Vec<u8>>,
    /// Whether the embeddings are wanted too.
    embeddings: bool,
}

/// Whether the embedding of any of these crops is wanted.
pub(super) fn wants_embeddings(batch: &[Ready]) -> bool {
    batch.iter().any(|ready| ready.wants_embedding)
}

/// What one call of an engine needs beside the batch.
#[derive(Default)]
struct Buffers {
    images: Vec<u8>,
    logits: Vec<f32>,
    embeddings: Vec<f32>,
}

impl Buffers {
    /// Leaves the logits of the batch, `float32 [n, classes]`, in the buffer, and the embeddings,
    /// `float32 [n, features]`, if they are wanted.
    fn run(
        &mut self,
        engine: &mut dyn Engine,
        model: &ModelInfo,
        input: &Input,
    ) -> Result<(), EngineError> {
        let crops = &input.crops;
        let n = if model.engine.fixed_batch {
            model.engine.max_batch
        } else {
            crops.len()
        };
        self.logits.resize(n * model.classes, 0.0);
        let kind = model.engine.kind;
        let logits = &mut self.logits;
        let embedding = model.engine.embedding.filter(|_| input.embeddings);
        self.embeddings.resize(n * embedding.unwrap_or(0), 0.0);
        let embeddings = &mut self.embeddings;
        let images = &mut self.images;
        let len = n * model.geometry.bytes();
        catch_unwind(AssertUnwindSafe(|| match embedding {
            None if n == crops.len() => engine.infer_apart(crops, images, logits),
            None => engine.infer(together(crops, images, len), n, logits),
            Some(_) => {
                let results = Results { logits, embeddings };
                engine.infer_with_embeddings(together(crops, images, len), n, results)
            }
        }))
        .unwrap_or_else(|_| Err(kind.failed("it panicked")))?;
        let is_finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        if !is_finite(&self.logits) {
            return Err(kind.failed("its logits are not finite numbers"));
        }
        if !is_finite(&self.embeddings) {
            return Err(kind.failed("its embeddings are not finite numbers"));
        }
        Ok(())
    }
}

/// The crops one after another, in `len` bytes: those that are missing in a fixed batch are black.
fn together<'a>(crops: &'a [Vec<u8>], buffer: &'a mut Vec<u8>, len: usize) -> &'a [u8] {
    if let [crop] = crops
        && crop.len() == len
    {
        return crop;
    }
    buffer.clear();
    for crop in crops {
        buffer.extend_from_slice(crop);
    }
    buffer.resize(len, 0);
    buffer
}

/// A completed call of an engine.
struct EngineCall<'a> {
    id: QueueId,
    model: &'a ModelInfo,
    crops: Vec<Vec<u8>>,
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
        results: &Buffers,
    ) {
        let n = call.batch.len();
        let queue = state.busy_queue(call.id);
        queue.pace.record_inference(n, call.took, call.share);
        let spent = call.took.as_secs_f64() * call.share / n as f64;
        for ready in &call.batch {
            queue
                .waiting
                .correct(ready.turn, spent - ready.inference_cost);
        }
        for crop in std::mem::take(&mut call.crops) {
            queue.recycle(crop);
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
        self.reply(call, results);
    }

    /// Sends each crop's logits, or the engine's error, to its caller.
    fn reply(&self, call: EngineCall, results: &Buffers) {
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
                ready.reply.fail(JobError::Engine(Arc::clone(&error)));
            }
            return;
        }

        model.metrics.classified(n);
        let kinds = batch.iter().map(|ready| ready.kind);
        model.metrics.statistics.called(kinds, took);
        let logits = results.logits.chunks_exact(model.classes);
        let size = model.engine.embedding.unwrap_or(0);
        for (index, (ready, logits)) in batch.into_iter().zip(logits).enumerate() {
            let embedding = ready
                .wants_embedding
                .then(|| results.embeddings.get(index * size..(index + 1) * size))
                .flatten();
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
            let output = Output {
                logits: logits.to_vec(),
                embedding: embedding.map(<[f32]>::to_vec),
            };
            ready.reply.send(Ok(Reply {
                outputs: vec![output],
                stages,
                timeline,
            }));
        }
    }

    /// Logs an engine's error with the traces of its batch, and reports an engine that is lost.
    pub fn engine_failed(&self, error: EngineError, batch: &[Ready]) -> Arc<EngineError> {
        let traces: Vec<_> = batch
            .iter()
            .filter_map(|ready| Some(ready.span?.trace.to_string()))
            .collect();
        let traces = (!traces.is_empty()).then(|| traces.join(","));
        tracing::error!(trace_ids = traces, "{error}");

        let error = Arc::new(error);
        if matches!(*error, EngineError::Lost { .. }) {
            self.fail(Failure::Engine(Arc::clone(&error)));
        }
        error
    }

    /// A thread panicked, perhaps while it worked on this; it goes on with the next.
    fn panicked(&self, run: Option<RunId>) {
        if run.is_some_and(|run| self.give_up(run, Loss::Panicked)) {
            return;
        }
        metrics::worker_restarted(Restart::Panic);
        tracing::error!("a worker thread panicked outside of its work, and goes on");
        sleep(PAUSE_AFTER_PANIC);
    }

    /// Whether an image whose cost was not known before it was fetched may be decoded now although
    /// it is heavy. It then counts as such.
    fn may_decode_heavy(&self, run: RunId) -> bool {
        let mut state = self.lock();
        if state.heavy >= state.max_heavy {
            return false;
        }
        // If it has been given up meanwhile, the worker notices that after decoding.
        if let Some(Running {
            stage: Stage::Decode(decoding),
            ..
        }) = state.running.get_mut(&run)
        {
            decoding.cost.heavy = true;
            state.heavy += 1;
        }
        true
    }

    /// Puts an image back into the queue that has turned out to be heavy, while no more of those may
    /// be decoded.
    fn queue_again(
        &self,
        id: QueueId,
        run: RunId,
        crop: Vec<u8>,
        image: InputImage,
        time: Duration,
    ) -> Result<(), GivenUp> {
        let mut state = self.lock();
        let decoding = state.end_decoding(run).ok_or(GivenUp)?;
        let Decoding {
            turn,
            deadline,
            reply,
            span,
            kind,
            wants_embedding,
            cost,
        } = decoding;
        let queue = state.busy_queue(id);
        queue.virtual_time -= queue.charge * cost.decode;
        queue.waiting.correct(turn, -cost.time());
        queue.recycle(crop);

        let crops = image.regions.len().max(1);
        let job = Job {
            client: turn.0,
            priority: turn.1,
            called: image.arrived,
            deadline,
            // Frames of streams are not counted, and no other images come without an estimate.
            counted: false,
            decode_estimate: Some(time),
            crops,
            wants_embedding,
            fetch: Box::new(move || Some(image)),
            span,
            kind,
        };
        let decode = time.as_secs_f64() * self.core_share();
        let cost = queue.cost(Some(decode), true, crops);
        let waiting = Waiting { job, reply, cost };
        queue.waiting.push(turn, None, cost, waiting);
        state.finish(id, 1);
        Ok(())
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
                let next = state.next_task(delay);
                let expired = state.take_expired();
                match next {
                    Ok(task) => {
                        // Wake another worker to watch the rest, including batch timeouts.
                        if state.queues.values().any(|queue| !queue.is_empty()) {
                            self.work_available.notify_one();
                        }
                        drop(state);
                        drop(expired);
                        return Some(Next::Task(task));
                    }
                    Err(wait) => until = wait,
                }
                if !expired.is_empty() {
                    drop(state);
                    drop(expired);
                    state = self.lock();
                    continue;
                }
            }

            if !state.finished.is_empty() {
                continue;
            }
            // While a batch waits for others, its time is watched.
            if !state.exclusive
                && until.is_none()
                && let Some((run, work)) = state.answer_call()
            {
                return Some(Next::Help(run, work));
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
