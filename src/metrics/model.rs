//! The series of one served model.

use std::{
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use tonic::Code;

use super::{
    exemplar::Exemplar,
    exposition::escaped,
    labels::{FrameOutcome, Method, Rejection},
    rate::RateMeter,
    removed,
    request::RequestMetrics,
    statistics::Statistics,
    table::{
        BATCH_SIZE, BUSY, DEVICE_BUSY, DEVICE_LANES, ENGINE_INFO, FPS, FRAME_DURATION, FRAMES,
        MODEL_LOAD, MODEL_LOADED, MODEL_LOADS, MODEL_READY, QUEUE_CAPACITY, QUEUE_DEPTH,
        QUEUE_REQUESTS, RECEIVED_BYTES, REGIONS, REJECTED, STAGE_DURATION, STREAMS_ACTIVE,
    },
};
use crate::{sync::lock, telemetry::context::TraceId};

/// The series of one served model, shared by all its versions.
pub struct ModelMetrics {
    model: Arc<str>,
    pub(super) requests: RequestMetrics,
    /// Registered with the first frame.
    frame: OnceLock<Histogram>,
    decode: Histogram,
    queue: Histogram,
    inference: Histogram,
    batch_size: Histogram,
    queue_depth: Gauge,
    queue_requests: Gauge,
    queue_capacity: Gauge,
    streams: Gauge,
    frames: [Counter; FrameOutcome::LABELS.len()],
    rejected: [Counter; Rejection::LABELS.len()],
    received: Counter,
    regions: Counter,
    decode_busy: Gauge,
    inference_busy: Gauge,
    /// Registered once the model runs on a device.
    device_busy: OnceLock<Gauge>,
    fps: Gauge,
    meter: RateMeter,
    /// Sums that the Open Inference Protocol's statistics read back.
    pub statistics: Statistics,
    loads_succeeded: Counter,
    loads_failed: Counter,
    ready: Gauge,
    /// The series of `ENGINE_INFO` that is 1 at present.
    engine: Mutex<Option<Gauge>>,
}

/// The labels of `ENGINE_INFO`.
pub struct EngineLabels {
    pub engine: String,
    pub precision: String,
    pub device: String,
    pub version: String,
}

impl ModelMetrics {
    /// Registers the series of `model`, so that they exist, at 0, before the first request; those of
    /// a method, and of frames, begin to exist with the first one.
    pub fn new(model: &str) -> Self {
        removed::restore(model);
        let model: Arc<str> = model.into();
        let name = || Arc::clone(&model);
        let stage =
            |stage: &'static str| histogram!(STAGE_DURATION, "model" => name(), "stage" => stage);
        let busy = |stage: &'static str| gauge!(BUSY, "model" => name(), "stage" => stage);
        let loads =
            |outcome: &'static str| counter!(MODEL_LOADS, "model" => name(), "outcome" => outcome);

        Self {
            requests: RequestMetrics::new(name()),
            frame: OnceLock::new(),
            decode: stage("decode"),
            queue: stage("queue"),
            inference: stage("inference"),
            batch_size: histogram!(BATCH_SIZE, "model" => name()),
            queue_depth: gauge!(QUEUE_DEPTH, "model" => name()),
            queue_requests: gauge!(QUEUE_REQUESTS, "model" => name()),
            queue_capacity: gauge!(QUEUE_CAPACITY, "model" => name()),
            streams: gauge!(STREAMS_ACTIVE, "model" => name()),
            frames: FrameOutcome::LABELS
                .map(|outcome| counter!(FRAMES, "model" => name(), "outcome" => outcome)),
            rejected: Rejection::LABELS
                .map(|reason| counter!(REJECTED, "model" => name(), "reason" => reason)),
            received: counter!(RECEIVED_BYTES, "model" => name()),
            regions: counter!(REGIONS, "model" => name()),
            decode_busy: busy("decode"),
            inference_busy: busy("inference"),
            device_busy: OnceLock::new(),
            fps: gauge!(FPS, "model" => name()),
            meter: RateMeter::new(Instant::now()),
            statistics: Statistics::default(),
            loads_succeeded: loads("loaded"),
            loads_failed: loads("failed"),
            ready: gauge!(MODEL_READY, "model" => name()),
            engine: Mutex::default(),
            model,
        }
    }

    /// Records that a version of the model is ready on this engine, after loading for `took`.
    pub fn loaded(&self, engine: EngineLabels, took: Duration) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        gauge!(MODEL_LOAD, "model" => Arc::clone(&self.model)).set(took.as_secs_f64());
        gauge!(MODEL_LOADED, "model" => Arc::clone(&self.model)).set(now.as_secs_f64());
        removed::restore(&self.model);
        self.loads_succeeded.increment(1);
        self.ready.set(1.0);
        self.set_engine(Some(gauge!(
            ENGINE_INFO,
            "model" => Arc::clone(&self.model),
            "engine" => engine.engine,
            "precision" => engine.precision,
            "device" => engine.device,
            "version" => engine.version,
        )));
    }

    /// Counts a version of the model that could not be loaded.
    pub fn load_failed(&self) {
        removed::restore(&self.model);
        self.loads_failed.increment(1);
    }

    /// Records that the model is no longer served; its series are not exported until it is loaded
    /// again.
    pub fn removed(&self) {
        self.ready.set(0.0);
        self.fps.set(0.0);
        self.set_engine(None);
        removed::remove(&self.model);
    }

    /// Sets the series of the previous engine to 0 and `info` to 1: a recorder forgets no series.
    fn set_engine(&self, info: Option<Gauge>) {
        let mut engine = lock(&self.engine);

        if let Some(old) = std::mem::replace(&mut *engine, info) {
            old.set(0.0);
        }
        if let Some(new) = &*engine {
            new.set(1.0);
        }
    }

    /// The exemplars of its requests' durations, by model and method.
    pub(super) fn exemplars(
        &self,
    ) -> impl Iterator<Item = ((String, &'static str), Vec<Option<Exemplar>>)> {
        let model = escaped(&self.model);
        self.requests
            .exemplars()
            .map(move |(method, buckets)| ((model.clone(), method), buckets))
    }

    /// Updates the gauges that change without an event.
    pub(super) fn refresh(&self) {
        self.fps.set(self.meter.rate());
    }

    /// Counts an image of this size that was received.
    pub fn received(&self, bytes: usize) {
        self.received.increment(bytes as u64);
    }

    /// Counts regions that were cut out of an image.
    pub fn regions(&self, count: usize) {
        self.regions.increment(count as u64);
    }

    /// Records that a worker decoded an image, successfully or not, and for how long others helped.
    pub fn decoded(&self, took: Duration, helped: Duration) {
        self.decode.record(took);
        self.decode_busy.increment(took + helped);
    }

    /// Records how long a classified image had waited.
    pub fn queued(&self, took: Duration) {
        self.queue.record(took);
    }

    /// Records one call of the engine.
    pub fn inferred(&self, images: usize, took: Duration) {
        self.batch_size.record(images as f64);
        self.inference.record(took);
    }

    /// Adds the time for which a call of the engine kept this many workers busy.
    pub fn workers_busy(&self, workers: f64, took: Duration) {
        self.inference_busy.increment(took.as_secs_f64() * workers);
    }

    /// Adds the time for which a call of the engine kept a lane of a device busy.
    pub fn device_busy(&self, took: Duration) {
        self.device().increment(took);
    }

    /// Sets how many calls of the engine can run on devices at once.
    pub fn device_lanes(&self, lanes: usize) {
        gauge!(DEVICE_LANES, "model" => Arc::clone(&self.model)).set(lanes as f64);
        self.device();
    }

    fn device(&self) -> &Gauge {
        self.device_busy
            .get_or_init(|| gauge!(DEVICE_BUSY, "model" => Arc::clone(&self.model)))
    }

    /// Counts classified images, for the current rate.
    pub fn classified(&self, images: usize) {
        self.meter.add(images as u64);
    }

    /// Sets how many images wait, and how many of them are single requests.
    pub fn queue_depth(&self, images: usize, requests: usize) {
        self.queue_depth.set(images as f64);
        self.queue_requests.set(requests as f64);
    }

    /// Sets how many single requests may wait.
    pub fn queue_capacity(&self, requests: usize) {
        self.queue_capacity.set(requests as f64);
    }

    /// Counts work that was not done.
    pub fn rejected(&self, reason: Rejection) {
        self.rejected[reason as usize].increment(1);
    }

    /// Counts a frame by its outcome.
    pub fn frame(&self, outcome: FrameOutcome) {
        self.frames[outcome as usize].increment(1);
    }

    /// Records how long after its arrival a frame was answered.
    pub fn frame_answered(&self, took: Duration) {
        self.frame
            .get_or_init(|| histogram!(FRAME_DURATION, "model" => Arc::clone(&self.model)))
            .record(took);
    }

    /// Counts an open stream until the guard is dropped.
    pub fn stream(self: &Arc<Self>) -> StreamGuard {
        self.streams.increment(1.0);
        StreamGuard(Arc::clone(self))
    }
}

/// Counts one open stream until it is dropped.
pub struct StreamGuard(Arc<ModelMetrics>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.decrement(1.0);
    }
}

/// A request that has been answered, or whose caller has gone.
pub struct EndedRequest<'a> {
    pub method: Method,
    /// `None` for a request that names no known model.
    pub model: Option<&'a ModelMetrics>,
    pub code: Code,
    pub duration: Duration,
    /// The request's trace, if it is sampled.
    pub trace: Option<TraceId>,
}

/// Counts and times a request.
pub fn request_ended(request: EndedRequest) {
    let EndedRequest {
        method,
        model,
        code,
        duration,
        trace,
    } = request;
    let unknown;
    let metrics = match model {
        Some(model) => &model.requests,
        None => {
            unknown = RequestMetrics::default();
            &unknown
        }
    };
    metrics.finished(method, code).increment(1);

    // Requests that are rejected at once would make an overloaded server look fast.
    let was_rejected = matches!(
        code,
        Code::ResourceExhausted | Code::Unavailable | Code::Unauthenticated
    );
    if method.is_timed() && !was_rejected {
        metrics.took(method, duration, trace);
    }
}
