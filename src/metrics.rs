//! Every metric: its name, unit, labels and meaning, as functions that say what happened.
//!
//! Labels are closed sets (served models, methods, gRPC codes, reasons), so that no client can create series.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use metrics::{Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use tonic::Code;

use crate::{code::code_name, engine::EngineInfo, statistics::Statistics};

const REQUESTS: &str = "classifier_requests_total";
const REQUEST_DURATION: &str = "classifier_request_duration_seconds";
const STAGE_DURATION: &str = "classifier_stage_duration_seconds";
const BATCH_SIZE: &str = "classifier_batch_size";
const QUEUE_DEPTH: &str = "classifier_queue_depth";
const FRAMES: &str = "classifier_frames_total";
const FPS: &str = "classifier_fps";
const STREAMS_ACTIVE: &str = "classifier_streams_active";
const REJECTED: &str = "classifier_rejected_total";
const ENGINE_INFO: &str = "classifier_engine_info";
const MODEL_LOAD: &str = "classifier_model_load_seconds";
const MODEL_LOADS: &str = "classifier_model_loads_total";
const MODEL_READY: &str = "classifier_model_ready";
const ENGINE_BUILD: &str = "classifier_engine_build_seconds";
const ENGINE_CACHE: &str = "classifier_engine_cache_total";
const GPU_UTILIZATION: &str = "classifier_gpu_utilization_ratio";
const GPU_MEMORY_USED: &str = "classifier_gpu_memory_used_bytes";
const GPU_MEMORY: &str = "classifier_gpu_memory_bytes";
const GPU_POWER: &str = "classifier_gpu_power_watts";
const GPU_TEMPERATURE: &str = "classifier_gpu_temperature_celsius";
const BUILD_INFO: &str = "classifier_build_info";

/// From 0.1 ms to 10 s, finest where a request usually lies.
const DURATIONS: [f64; 20] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5,
    1.0, 2.5, 10.0,
];
const BATCHES: [f64; 10] = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// Images a second are counted over this time.
const FPS_WINDOW: Duration = Duration::from_secs(5);

/// Why work that arrived was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// No place in the queue.
    QueueFull,
    /// Its deadline passed while it waited.
    Deadline,
    /// Its caller went away while it waited.
    Cancelled,
    /// The server was starting or draining.
    NotReady,
    /// Too many streams were open.
    StreamLimit,
    /// Too many calls were in progress.
    CallLimit,
}

impl Rejection {
    const ALL: [Self; 6] =
        [Self::QueueFull, Self::Deadline, Self::Cancelled, Self::NotReady, Self::StreamLimit, Self::CallLimit];

    fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
            Self::NotReady => "not_ready",
            Self::StreamLimit => "stream_limit",
            Self::CallLimit => "call_limit",
        }
    }
}

/// What became of a frame of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameOutcome {
    /// It was answered with classes.
    Classified,
    /// A newer frame took its place.
    Dropped,
    /// It was answered with an error.
    Failed,
}

/// The methods whose requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Method {
    Classify,
    StreamClassify,
    ListModels,
    ServerLive,
    ServerReady,
    ServerMetadata,
    ModelReady,
    ModelMetadata,
    ModelConfig,
    ModelInfer,
    ModelStreamInfer,
    ModelStatistics,
    RepositoryIndex,
}

impl Method {
    fn label(self) -> &'static str {
        match self {
            Self::Classify => "Classify",
            Self::StreamClassify => "StreamClassify",
            Self::ListModels => "ListModels",
            Self::ServerLive => "ServerLive",
            Self::ServerReady => "ServerReady",
            Self::ServerMetadata => "ServerMetadata",
            Self::ModelReady => "ModelReady",
            Self::ModelMetadata => "ModelMetadata",
            Self::ModelConfig => "ModelConfig",
            Self::ModelInfer => "ModelInfer",
            Self::ModelStreamInfer => "ModelStreamInfer",
            Self::ModelStatistics => "ModelStatistics",
            Self::RepositoryIndex => "RepositoryIndex",
        }
    }
}

/// Collects everything for `/metrics`.
#[derive(Clone)]
pub struct Exporter {
    prometheus: PrometheusHandle,
    process: Collector,
    #[cfg(feature = "tensorrt")]
    gpus: Arc<crate::gpu::Gpus>,
}

impl Exporter {
    /// The process's exporter; installed at the first call.
    pub fn install() -> Self {
        static EXPORTER: OnceLock<Exporter> = OnceLock::new();
        EXPORTER.get_or_init(Self::build).clone()
    }

    fn build() -> Self {
        let prometheus = PrometheusBuilder::new()
            .set_buckets(&DURATIONS)
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full(BATCH_SIZE.into()), &BATCHES))
            .expect("the buckets are not empty")
            .install_recorder()
            .expect("nothing else installs a recorder");
        describe();
        gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        let process = Collector::default();
        process.describe();
        Self {
            prometheus,
            process,
            #[cfg(feature = "tensorrt")]
            gpus: Arc::new(crate::gpu::Gpus::find()),
        }
    }

    /// The text that Prometheus scrapes, with `models`' rates brought up to date.
    pub fn render<'a>(&self, models: impl IntoIterator<Item = &'a ModelMetrics>) -> String {
        models.into_iter().for_each(|model| model.fps.set(model.meter.rate()));
        self.process.collect();
        #[cfg(feature = "tensorrt")]
        self.gpus.read().iter().for_each(gpu);
        self.prometheus.render()
    }

    /// Folds what histograms collected since the last scrape, so that it does not pile up. To be called now and then.
    pub fn upkeep(&self) {
        self.prometheus.run_upkeep();
    }
}

fn describe() {
    describe_counter!(REQUESTS, "Finished requests by model, method and gRPC code.");
    describe_histogram!(REQUEST_DURATION, Unit::Seconds, "From a request's arrival to its answer.");
    describe_histogram!(STAGE_DURATION, Unit::Seconds, "Time of an image in a stage: decode, queue or inference.");
    describe_histogram!(BATCH_SIZE, "Images in one call of the engine.");
    describe_gauge!(QUEUE_DEPTH, "Images that wait to be decoded.");
    describe_counter!(FRAMES, "Frames of streams by outcome: classified, dropped (replaced by a newer one) or failed.");
    describe_gauge!(FPS, "Images classified a second, single requests and frames, over the last 5 s.");
    describe_gauge!(STREAMS_ACTIVE, "Open streams.");
    describe_counter!(REJECTED, "Work that was not done, by reason.");
    describe_gauge!(ENGINE_INFO, "1; its labels say which engine serves the model.");
    describe_gauge!(MODEL_LOAD, Unit::Seconds, "Time to load, check and warm up the model.");
    describe_counter!(MODEL_LOADS, "Attempts to load the model or a new version of it, by outcome: loaded or failed.");
    describe_gauge!(MODEL_READY, "1 while a version of the model answers.");
    describe_gauge!(ENGINE_BUILD, Unit::Seconds, "Time of the last build of a TensorRT engine.");
    describe_counter!(ENGINE_CACHE, "TensorRT engines that were looked for in the cache, by result: hit or miss.");
    describe_gauge!(GPU_UTILIZATION, "The part of the last moments in which the GPU computed, 0 to 1.");
    describe_gauge!(GPU_MEMORY_USED, Unit::Bytes, "The GPU's memory in use, by all processes.");
    describe_gauge!(GPU_MEMORY, Unit::Bytes, "All of the GPU's memory.");
    describe_gauge!(GPU_POWER, "What the GPU draws, in watts.");
    describe_gauge!(GPU_TEMPERATURE, "The GPU's temperature, in degrees Celsius.");
    describe_gauge!(BUILD_INFO, "1; its label is the server's version.");
}

/// What a GPU is doing.
#[cfg(feature = "tensorrt")]
fn gpu(reading: &crate::gpu::Reading) {
    let values = [
        (GPU_UTILIZATION, reading.utilization),
        (GPU_MEMORY_USED, reading.memory_used.map(|bytes| bytes as f64)),
        (GPU_MEMORY, reading.memory.map(|bytes| bytes as f64)),
        (GPU_POWER, reading.power),
        (GPU_TEMPERATURE, reading.temperature),
    ];
    for (name, value) in values {
        if let Some(value) = value {
            gauge!(name, "gpu" => reading.index.to_string(), "name" => reading.name.clone()).set(value);
        }
    }
}

/// An engine was built for a GPU.
#[cfg(feature = "tensorrt")]
pub(crate) fn engine_built(took: Duration) {
    gauge!(ENGINE_BUILD).set(took.as_secs_f64());
}

/// An engine was found in the cache, or not.
#[cfg(feature = "tensorrt")]
pub(crate) fn engine_cache(hit: bool) {
    counter!(ENGINE_CACHE, "result" => if hit { "hit" } else { "miss" }).increment(1);
}

/// The metrics of one served model.
pub struct ModelMetrics {
    model: Arc<str>,
    decode: Histogram,
    queue: Histogram,
    inference: Histogram,
    batch_size: Histogram,
    queue_depth: Gauge,
    streams: Gauge,
    frames: [Counter; 3],
    rejected: [Counter; Rejection::ALL.len()],
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
        let stage =
            |stage: &'static str| metrics::histogram!(STAGE_DURATION, "model" => Arc::clone(&model), "stage" => stage);
        let frames = |outcome: &'static str| counter!(FRAMES, "model" => Arc::clone(&model), "outcome" => outcome);
        Self {
            decode: stage("decode"),
            queue: stage("queue"),
            inference: stage("inference"),
            batch_size: metrics::histogram!(BATCH_SIZE, "model" => Arc::clone(&model)),
            queue_depth: gauge!(QUEUE_DEPTH, "model" => Arc::clone(&model)),
            streams: gauge!(STREAMS_ACTIVE, "model" => Arc::clone(&model)),
            frames: [frames("classified"), frames("dropped"), frames("failed")],
            rejected: Rejection::ALL
                .map(|reason| counter!(REJECTED, "model" => Arc::clone(&model), "reason" => reason.label())),
            fps: gauge!(FPS, "model" => Arc::clone(&model)),
            meter: RateMeter::new(Instant::now()),
            statistics: Statistics::default(),
            loads: ["loaded", "failed"]
                .map(|outcome| counter!(MODEL_LOADS, "model" => Arc::clone(&model), "outcome" => outcome)),
            ready: gauge!(MODEL_READY, "model" => Arc::clone(&model)),
            engine: Mutex::default(),
            model,
        }
    }

    /// A version of the model is ready, after `took`, on this engine.
    pub fn loaded(&self, engine: &EngineInfo, took: Duration) {
        gauge!(MODEL_LOAD, "model" => Arc::clone(&self.model)).set(took.as_secs_f64());
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
        let mut engine = self.engine.lock().expect("nothing panics while it holds the gauge");
        if let Some(old) = std::mem::replace(&mut *engine, info) {
            old.set(0.0);
        }
        if let Some(new) = &*engine {
            new.set(1.0);
        }
    }

    /// An image was decoded, well or badly.
    pub fn decoded(&self, took: Duration) {
        self.decode.record(took);
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

    /// Images have their classes.
    pub fn classified(&self, images: usize) {
        self.meter.add(images as u64);
    }

    /// This many images wait.
    pub fn queue_depth(&self, images: usize) {
        self.queue_depth.set(images as f64);
    }

    /// Work was not done.
    pub fn rejected(&self, reason: Rejection) {
        self.rejected[reason as usize].increment(1);
    }

    /// A frame has its outcome.
    pub fn frame(&self, outcome: FrameOutcome) {
        self.frames[outcome as usize].increment(1);
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

/// A request in progress; counts and times it when it ends, also when its caller goes away.
pub struct RequestGuard {
    method: Method,
    model: Arc<str>,
    arrived: Instant,
    deadline: Option<Instant>,
    code: Option<Code>,
}

impl RequestGuard {
    /// A request that arrived at `arrived` and has to be answered until `deadline`.
    pub fn new(method: Method, arrived: Instant, deadline: Option<Instant>) -> Self {
        Self { method, model: "".into(), arrived, deadline, code: None }
    }

    /// The served model that it is for.
    pub fn model(&mut self, metrics: &ModelMetrics) {
        self.model = Arc::clone(&metrics.model);
    }

    /// It is answered with `code`.
    pub fn finish(mut self, code: Code) {
        self.code = Some(code);
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let now = Instant::now();
        let gone = match self.deadline {
            Some(deadline) if deadline <= now => Code::DeadlineExceeded,
            _ => Code::Cancelled,
        };
        let code = code_name(self.code.unwrap_or(gone));
        let (model, method) = (Arc::clone(&self.model), self.method.label());
        counter!(REQUESTS, "model" => Arc::clone(&model), "method" => method, "code" => code).increment(1);
        metrics::histogram!(REQUEST_DURATION, "model" => model, "method" => method).record(now - self.arrived);
    }
}

/// Events a second over the last few seconds, without a thread that ticks.
#[derive(Debug)]
pub struct RateMeter {
    start: Instant,
    slots: [Slot; SLOTS],
}

/// What happened in one [`SLOT`] of time.
#[derive(Debug, Default)]
struct Slot {
    /// Which slot of time, counted from the start; 0 = never used.
    tick: AtomicU64,
    count: AtomicU64,
}

const SLOT: Duration = Duration::from_millis(100);
const SLOTS: usize = 64;

impl RateMeter {
    /// A meter that starts now.
    pub fn new(now: Instant) -> Self {
        Self { start: now, slots: std::array::from_fn(|_| Slot::default()) }
    }

    /// Takes in that `events` things happened.
    pub fn add(&self, events: u64) {
        self.add_at(events, Instant::now());
    }

    /// Events a second.
    pub fn rate(&self) -> f64 {
        self.rate_at(Instant::now())
    }

    fn tick(&self, now: Instant) -> u64 {
        1 + (now.saturating_duration_since(self.start).as_millis() / SLOT.as_millis()) as u64
    }

    fn add_at(&self, events: u64, now: Instant) {
        let tick = self.tick(now);
        let slot = &self.slots[tick as usize % SLOTS];
        if slot.tick.swap(tick, Relaxed) != tick {
            slot.count.store(0, Relaxed);
        }
        slot.count.fetch_add(events, Relaxed);
    }

    /// The whole slots of the window before now; the slot that is still filling is left out.
    fn rate_at(&self, now: Instant) -> f64 {
        let tick = self.tick(now);
        let window = (FPS_WINDOW.as_millis() / SLOT.as_millis()) as u64;
        let window = window.min(tick - 1);
        if window == 0 {
            return 0.0;
        }
        let inside = |slot: &&Slot| (tick - window..tick).contains(&slot.tick.load(Relaxed));
        let events: u64 = self.slots.iter().filter(inside).map(|slot| slot.count.load(Relaxed)).sum();
        events as f64 / (SLOT * window as u32).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_taken_over_the_last_seconds_and_falls_to_zero() {
        let start = Instant::now();
        let meter = RateMeter::new(start);
        for ms in (0..20_000).step_by(40) {
            meter.add_at(1, start + Duration::from_millis(ms));
        }
        let rate = |ms| meter.rate_at(start + Duration::from_millis(ms));
        assert!((rate(20_000) - 25.0).abs() < 0.5, "{}", rate(20_000));
        assert!((rate(22_500) - 12.5).abs() < 0.5, "{}", rate(22_500));
        assert_eq!(rate(26_000), 0.0);
    }

    #[test]
    fn a_young_meter_does_not_underrate() {
        let start = Instant::now();
        let meter = RateMeter::new(start);
        for ms in (0..1000).step_by(20) {
            meter.add_at(1, start + Duration::from_millis(ms));
        }
        assert!((meter.rate_at(start + Duration::from_secs(1)) - 50.0).abs() < 1.0);
        assert_eq!(RateMeter::new(start).rate_at(start), 0.0);
    }

    #[cfg(feature = "tensorrt")]
    #[test]
    fn a_gpu_is_shown_by_what_it_tells() {
        let exporter = Exporter::install();
        gpu(&crate::gpu::Reading {
            index: 7,
            name: "a test card".into(),
            utilization: Some(0.5),
            memory_used: Some(3 << 30),
            ..Default::default()
        });
        let text = exporter.render([]);
        for line in [
            "classifier_gpu_utilization_ratio{gpu=\"7\",name=\"a test card\"} 0.5",
            "classifier_gpu_memory_used_bytes{gpu=\"7\",name=\"a test card\"} 3221225472",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(!text.contains("classifier_gpu_power_watts{gpu=\"7\""), "{text}");
    }

    #[test]
    fn every_rejection_has_its_own_counter() {
        for (i, reason) in Rejection::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
        }
    }
}
