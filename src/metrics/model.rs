//! The metrics of one served model.

use std::{
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::{
    labels::{FrameOutcome, Rejection},
    rate::RateMeter,
    request::RequestMetrics,
    table::{
        BATCH_SIZE, BUSY, DEVICE_BUSY, DEVICE_LANES, ENGINE_INFO, FPS, FRAME_DURATION, FRAMES,
        MODEL_LOAD, MODEL_LOADED, MODEL_LOADS, MODEL_READY, QUEUE_CAPACITY, QUEUE_DEPTH,
        QUEUE_REQUESTS, RECEIVED_BYTES, REJECTED, STAGE_DURATION, STREAMS_ACTIVE,
    },
};
use crate::{engine::EngineInfo, metrics::statistics::Statistics};

/// The metrics of one served model.
pub struct ModelMetrics {
    model: Arc<str>,
    pub(super) requests: Arc<RequestMetrics>,
    frame: Histogram,
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
    decode_busy: Gauge,
    inference_busy: Gauge,
    /// Only there once the model has run on a device.
    device_busy: OnceLock<Gauge>,
    fps: Gauge,
    meter: RateMeter,
    /// Sums that can be read back.
    pub statistics: Statistics,
    /// Loaded, failed.
    loads: [Counter; 2],
    ready: Gauge,
    /// What [`ENGINE_INFO`] says at present.
    engine: Mutex<Option<Gauge>>,
}

impl ModelMetrics {
    /// Registers the series of `model`, so that they are there before anything happens.
    pub fn new(model: &str) -> Self {
        let model: Arc<str> = model.into();
        let of = || Arc::clone(&model);
        let stage =
            |stage: &'static str| histogram!(STAGE_DURATION, "model" => of(), "stage" => stage);
        let busy = |stage: &'static str| gauge!(BUSY, "model" => of(), "stage" => stage);
        Self {
            requests: Arc::new(RequestMetrics::new(of())),
            frame: histogram!(FRAME_DURATION, "model" => of()),
            decode: stage("decode"),
            queue: stage("queue"),
            inference: stage("inference"),
            batch_size: histogram!(BATCH_SIZE, "model" => of()),
            queue_depth: gauge!(QUEUE_DEPTH, "model" => of()),
            queue_requests: gauge!(QUEUE_REQUESTS, "model" => of()),
            queue_capacity: gauge!(QUEUE_CAPACITY, "model" => of()),
            streams: gauge!(STREAMS_ACTIVE, "model" => of()),
            frames: FrameOutcome::LABELS
                .map(|outcome| counter!(FRAMES, "model" => of(), "outcome" => outcome)),
            rejected: Rejection::LABELS
                .map(|reason| counter!(REJECTED, "model" => of(), "reason" => reason)),
            received: counter!(RECEIVED_BYTES, "model" => of()),
            decode_busy: busy("decode"),
            inference_busy: busy("inference"),
            device_busy: OnceLock::new(),
            fps: gauge!(FPS, "model" => of()),
            meter: RateMeter::new(Instant::now()),
            statistics: Statistics::default(),
            loads: ["loaded", "failed"]
                .map(|outcome| counter!(MODEL_LOADS, "model" => of(), "outcome" => outcome)),
            ready: gauge!(MODEL_READY, "model" => of()),
            engine: Mutex::default(),
            model,
        }
    }

    /// A version of the model is ready, after `took`, on this engine.
    pub fn loaded(&self, engine: &EngineInfo, took: Duration) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        gauge!(MODEL_LOAD, "model" => Arc::clone(&self.model)).set(took.as_secs_f64());
        gauge!(MODEL_LOADED, "model" => Arc::clone(&self.model)).set(now.as_secs_f64());
        self.loads[0].increment(1);
        self.ready.set(1.0);
        self.tell_engine(Some(gauge!(
            ENGINE_INFO,
            "model" => Arc::clone(&self.model),
            "engine" => engine.kind.to_string(),
            "precision" => engine.precision.to_string(),
            "device" => engine.device.clone(),
            "version" => engine.version.clone(),
        )));
    }

    /// A version of the model could not be loaded.
    pub fn load_failed(&self) {
        self.loads[1].increment(1);
    }

    /// The model is no longer served.
    pub fn removed(&self) {
        self.ready.set(0.0);
        self.fps.set(0.0);
        self.tell_engine(None);
    }

    fn tell_engine(&self, info: Option<Gauge>) {
        let mut engine = self
            .engine
            .lock()
            .expect("nothing panics while it holds the gauge");
        if let Some(old) = std::mem::replace(&mut *engine, info) {
            old.set(0.0);
        }
        if let Some(new) = &*engine {
            new.set(1.0);
        }
    }

    /// Brings what changes by itself up to date.
    pub(super) fn refresh(&self) {
        self.fps.set(self.meter.rate());
    }

    /// An image of this size came in.
    pub fn received(&self, bytes: usize) {
        self.received.increment(bytes as u64);
    }

    /// A worker decoded an image, well or badly.
    pub fn decoded(&self, took: Duration) {
        self.decode.record(took);
        self.decode_busy.increment(took);
    }

    /// An image that was classified had waited this long.
    pub fn queued(&self, took: Duration) {
        self.queue.record(took);
    }

    /// The engine ran once.
    pub fn inferred(&self, images: usize, took: Duration) {
        self.batch_size.record(images as f64);
        self.inference.record(took);
        self.statistics.called(images, took);
    }

    /// A call of the engine kept so many workers busy.
    pub fn workers_busy(&self, workers: f64, took: Duration) {
        self.inference_busy.increment(took.as_secs_f64() * workers);
    }

    /// A call of the engine kept a lane of a device busy.
    pub fn device_busy(&self, took: Duration) {
        self.device().increment(took);
    }

    /// So many calls of the engine can run on devices at once.
    pub fn device_lanes(&self, lanes: usize) {
        gauge!(DEVICE_LANES, "model" => Arc::clone(&self.model)).set(lanes as f64);
        self.device();
    }

    fn device(&self) -> &Gauge {
        self.device_busy
            .get_or_init(|| gauge!(DEVICE_BUSY, "model" => Arc::clone(&self.model)))
    }

    /// Images have their classes.
    pub fn classified(&self, images: usize) {
        self.meter.add(images as u64);
    }

    /// This many images wait, and this many single requests among them.
    pub fn queue_depth(&self, images: usize, requests: usize) {
        self.queue_depth.set(images as f64);
        self.queue_requests.set(requests as f64);
    }

    /// This many single requests may wait.
    pub fn queue_capacity(&self, requests: usize) {
        self.queue_capacity.set(requests as f64);
    }

    /// Work was not done.
    pub fn rejected(&self, reason: Rejection) {
        self.rejected[reason as usize].increment(1);
    }

    /// A frame has its outcome.
    pub fn frame(&self, outcome: FrameOutcome) {
        self.frames[outcome as usize].increment(1);
    }

    /// A frame is answered, so long after it arrived.
    pub fn frame_answered(&self, took: Duration) {
        self.frame.record(took);
    }

    /// A stream opened; it is counted until the guard is dropped.
    pub fn stream(self: &Arc<Self>) -> StreamGuard {
        self.streams.increment(1.0);
        StreamGuard(Arc::clone(self))
    }
}

/// An open stream.
pub struct StreamGuard(Arc<ModelMetrics>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.decrement(1.0);
    }
}
