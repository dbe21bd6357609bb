//! What a server does, as numbers for people and programs: two scrapes → a [`Snapshot`].

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    change::{Change, Histogram},
    scrape::Scrape,
};

const REQUESTS: &str = "classifier_requests_total";
const REQUEST_DURATION: &str = "classifier_request_duration_seconds";
const FRAME_DURATION: &str = "classifier_frame_duration_seconds";
const STAGE_DURATION: &str = "classifier_stage_duration_seconds";
const FRAMES: &str = "classifier_frames_total";
const REJECTED: &str = "classifier_rejected_total";
const BUSY: &str = "classifier_busy_seconds_total";

/// A counter of whole seconds says nothing about less, in seconds.
const SHORTEST_FOR_CPU: f64 = 4.5;

/// The methods that answer one request with one image or batch; a stream's duration says nothing
/// about speed.
const SINGLE_METHODS: [&str; 2] = ["Classify", "ModelInfer"];

/// A server. Rates are a second, over `interval_s`. What a server does not tell is `null`.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// `ready`, or why it takes no requests.
    pub state: String,
    /// Whether it takes requests.
    pub ready: bool,
    /// The version of the program.
    pub version: Option<String>,
    /// How long it has been running, in seconds.
    pub uptime_s: Option<f64>,
    /// The time between the two scrapes, in seconds.
    pub interval_s: f64,
    /// The part of its threads' time that was spent on work, from 0 to 1.
    pub saturation: Option<f64>,
    /// Threads that decode and infer.
    pub workers: Option<f64>,
    /// Cores that the process used, on average; `null` over less than 5 s, since servers count
    /// whole seconds.
    pub cpu_cores: Option<f64>,
    /// Memory of the process.
    pub resident_bytes: Option<f64>,
    /// Calls in progress.
    pub calls_active: Option<f64>,
    /// Open connections.
    pub connections_active: Option<f64>,
    /// Its models, by name.
    pub models: Vec<ModelSnapshot>,
    /// Its GPUs, by number.
    pub gpus: Vec<GpuSnapshot>,
}

/// A model of a server.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ModelSnapshot {
    /// Its name.
    pub name: String,
    /// Whether it answers.
    pub ready: bool,
    /// What runs it.
    pub engine: Option<EngineSnapshot>,
    /// Images classified a second, over the server's last 5 s.
    pub images_per_second: f64,
    /// Requests a second by gRPC code; a stream counts when it ends.
    pub requests_per_second: BTreeMap<String, f64>,
    /// Where the time of requests and images went.
    pub latency_ms: Latencies,
    /// Images that wait.
    pub queue_depth: Option<f64>,
    /// Single requests among them.
    pub queue_requests: Option<f64>,
    /// Single requests that may wait.
    pub queue_capacity: Option<f64>,
    /// Images in a call of the engine, on average.
    pub batch_size: Option<f64>,
    /// Open streams.
    pub streams: f64,
    /// Frames of streams a second by outcome.
    pub frames_per_second: BTreeMap<String, f64>,
    /// Work that was not done, a second, by reason.
    pub rejected_per_second: BTreeMap<String, f64>,
    /// Bytes of images a second.
    pub received_bytes_per_second: Option<f64>,
    /// The part of the time in which the lanes of its GPUs were in use, from 0 to 1.
    pub device_saturation: Option<f64>,
}

/// What runs a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct EngineSnapshot {
    pub engine: String,
    pub precision: String,
    pub device: String,
    pub version: String,
}

/// Latencies in milliseconds, by stage; `null` where nothing happened.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Latencies {
    /// From the arrival of a single request to its answer.
    pub request: Option<Quantiles>,
    /// From the arrival of a stream's frame to its answer.
    pub frame: Option<Quantiles>,
    /// Decoding, resizing and cropping.
    pub decode: Option<Quantiles>,
    /// Waiting.
    pub queue: Option<Quantiles>,
    /// The network.
    pub inference: Option<Quantiles>,
}

impl Latencies {
    /// The stages by name, in the order in which an image passes them.
    pub fn stages(&self) -> [(&'static str, Option<Quantiles>); 3] {
        [
            ("decode", self.decode),
            ("queue", self.queue),
            ("inference", self.inference),
        ]
    }
}

/// In milliseconds, estimated from a histogram's buckets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Quantiles {
    pub mean: f64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

impl Quantiles {
    fn of(histogram: &Histogram) -> Option<Self> {
        let ms = |seconds: f64| (seconds * 1e6).round() / 1e3;
        let quantile = |share| histogram.quantile(share).map(ms);
        Some(Self {
            mean: ms(histogram.mean()?),
            p50: quantile(0.5)?,
            p95: quantile(0.95)?,
            p99: quantile(0.99)?,
        })
    }
}

/// A GPU; what its driver does not tell is `null`.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct GpuSnapshot {
    pub gpu: String,
    pub name: String,
    pub utilization: Option<f64>,
    pub memory_used_bytes: Option<f64>,
    pub memory_bytes: Option<f64>,
    pub power_watts: Option<f64>,
    pub temperature_celsius: Option<f64>,
}

impl Snapshot {
    /// What happened between two scrapes, and how things stand at the later one.
    pub fn between(before: &Scrape, after: &Scrape) -> Self {
        let change = Change::between(before, after);
        let workers = after.value("classifier_workers", &[]);
        Self {
            state: after.not_ready.clone().unwrap_or_else(|| "ready".into()),
            ready: after.not_ready.is_none(),
            version: after
                .series("classifier_build_info")
                .first()
                .map(|info| info.label("version").to_owned()),
            uptime_s: after.value("process_start_time_seconds", &[]).map(since),
            interval_s: change.seconds(),
            saturation: share(change.rate(BUSY, &[]), workers),
            workers,
            cpu_cores: change
                .rate("process_cpu_seconds_total", &[])
                .filter(|_| change.seconds() >= SHORTEST_FOR_CPU),
            resident_bytes: after.value("process_resident_memory_bytes", &[]),
            calls_active: after.value("classifier_calls_active", &[]),
            connections_active: after.value("classifier_connections_active", &[]),
            models: model_names(after)
                .map(|name| ModelSnapshot::new(name, &change, after))
                .collect(),
            gpus: gpus(after),
        }
    }
}

/// All models that were ever served, by name.
fn model_names(scrape: &Scrape) -> impl Iterator<Item = &str> {
    let names = scrape
        .series("classifier_model_ready")
        .iter()
        .map(|series| series.label("model"));
    names.collect::<std::collections::BTreeSet<_>>().into_iter()
}

impl ModelSnapshot {
    fn new(name: &str, change: &Change, now: &Scrape) -> Self {
        let model = [("model", name)];
        let latency =
            |metric, label, value| change.histogram(metric, &[("model", name), (label, value)]);
        let stage = |stage| Quantiles::of(&latency(STAGE_DURATION, "stage", stage));
        let mut requests = Histogram::default();
        SINGLE_METHODS
            .iter()
            .for_each(|method| requests.merge(&latency(REQUEST_DURATION, "method", method)));
        let engine = |info: &&super::exposition::Series| info.has(&model) && info.value == 1.0;
        Self {
            name: name.to_owned(),
            ready: now.value("classifier_model_ready", &model) == Some(1.0),
            engine: now
                .series("classifier_engine_info")
                .iter()
                .find(engine)
                .map(|info| EngineSnapshot {
                    engine: info.label("engine").to_owned(),
                    precision: info.label("precision").to_owned(),
                    device: info.label("device").to_owned(),
                    version: info.label("version").to_owned(),
                }),
            images_per_second: now.value("classifier_fps", &model).unwrap_or(0.0),
            requests_per_second: rates(change, now, REQUESTS, name, "code"),
            latency_ms: Latencies {
                request: Quantiles::of(&requests),
                frame: Quantiles::of(&change.histogram(FRAME_DURATION, &model)),
                decode: stage("decode"),
                queue: stage("queue"),
                inference: stage("inference"),
            },
            queue_depth: now.value("classifier_queue_depth", &model),
            queue_requests: now.value("classifier_queue_requests", &model),
            queue_capacity: now.value("classifier_queue_capacity", &model),
            batch_size: change.histogram("classifier_batch_size", &model).mean(),
            streams: now
                .value("classifier_streams_active", &model)
                .unwrap_or(0.0),
            frames_per_second: rates(change, now, FRAMES, name, "outcome"),
            rejected_per_second: rates(change, now, REJECTED, name, "reason"),
            received_bytes_per_second: change.rate("classifier_received_bytes_total", &model),
            device_saturation: share(
                change.rate("classifier_device_busy_seconds_total", &model),
                now.value("classifier_device_lanes", &model),
            ),
        }
    }

    /// All requests a second, whatever became of them.
    pub fn requests(&self) -> f64 {
        self.requests_per_second
            .values()
            .fold(0.0, |sum, rate| sum + rate)
    }

    /// All work a second that was not done.
    pub fn rejected(&self) -> f64 {
        self.rejected_per_second
            .values()
            .fold(0.0, |sum, rate| sum + rate)
    }

    /// Which part of the places for single requests is taken, from 0 to 1.
    pub fn queue_fill(&self) -> Option<f64> {
        share(self.queue_requests, self.queue_capacity)
    }
}

/// A model's counters of one metric, a second, by one label.
fn rates(
    change: &Change,
    now: &Scrape,
    metric: &str,
    model: &str,
    label: &str,
) -> BTreeMap<String, f64> {
    let mut rates = BTreeMap::new();
    for series in now
        .series(metric)
        .iter()
        .filter(|series| series.label("model") == model)
    {
        let value = series.label(label);
        if let Some(rate) = change.rate(metric, &[("model", model), (label, value)]) {
            rates.insert(value.to_owned(), rate);
        }
    }
    rates
}

fn share(part: Option<f64>, whole: Option<f64>) -> Option<f64> {
    Some(part? / whole.filter(|whole| *whole > 0.0)?)
}

fn gpus(scrape: &Scrape) -> Vec<GpuSnapshot> {
    let mut gpus = Vec::new();
    for memory in scrape.series("classifier_gpu_memory_bytes") {
        let gpu = memory.label("gpu");
        let value = |name: &str| scrape.value(&format!("classifier_gpu_{name}"), &[("gpu", gpu)]);
        gpus.push(GpuSnapshot {
            gpu: gpu.to_owned(),
            name: memory.label("name").to_owned(),
            utilization: value("utilization_ratio"),
            memory_used_bytes: value("memory_used_bytes"),
            memory_bytes: value("memory_bytes"),
            power_watts: value("power_watts"),
            temperature_celsius: value("temperature_celsius"),
        });
    }
    gpus.sort_by(|a, b| a.gpu.cmp(&b.gpu));
    gpus
}

/// Seconds since a moment of the Unix clock.
fn since(start: f64) -> f64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    (now.as_secs_f64() - start).max(0.0)
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::{super::testing::busy, *};

    #[test]
    fn a_snapshot_tells_what_the_server_does() {
        let (before, after) = busy();
        let snapshot = Snapshot::between(&before, &after);
        assert_eq!((snapshot.state.as_str(), snapshot.ready), ("ready", true));
        assert_eq!(
            (snapshot.version.as_deref(), snapshot.interval_s),
            (Some("0.1.0"), 10.0)
        );
        assert!(
            (snapshot.saturation.unwrap() - 0.9595).abs() < 1e-9,
            "{:?}",
            snapshot.saturation
        );
        assert_eq!(
            (snapshot.cpu_cores, snapshot.resident_bytes),
            (Some(1.9), Some(189e6))
        );
        assert!(snapshot.gpus.is_empty());

        let names: Vec<_> = snapshot
            .models
            .iter()
            .map(|model| model.name.as_str())
            .collect();
        assert_eq!(names, ["pets", "resnet18-demo"]);
        let model = &snapshot.models[1];
        assert_eq!(
            model.engine.as_ref().unwrap().engine,
            "openvino",
            "what served before is not shown"
        );
        assert_eq!((model.images_per_second, model.requests()), (129.8, 110.0));
        assert_eq!(model.requests_per_second["RESOURCE_EXHAUSTED"], 10.0);
        assert_eq!(
            (
                model.rejected_per_second["queue_full"],
                model.rejected_per_second["deadline"]
            ),
            (10.0, 0.0)
        );
        assert_eq!(
            (
                model.frames_per_second["classified"],
                model.frames_per_second["dropped"]
            ),
            (30.0, 2.0)
        );
        assert_eq!(
            (model.queue_depth, model.queue_requests, model.batch_size),
            (Some(23.0), Some(20.0), Some(1.0))
        );
        assert_eq!(model.received_bytes_per_second, Some(1e7));
        let latency = model.latency_ms.request.unwrap();
        assert_eq!(
            (latency.mean, latency.p50, latency.p95),
            (100.0, 100.0, 175.0)
        );
        assert_eq!(model.latency_ms.decode.unwrap().p99, 1.95);
        assert_eq!(
            (
                model.latency_ms.frame.unwrap().mean,
                model.device_saturation
            ),
            (20.0, Some(0.475))
        );
    }

    #[test]
    fn a_model_that_nobody_uses_has_no_latencies() {
        let (before, after) = busy();
        let snapshot = Snapshot::between(&before, &after);
        let idle = &snapshot.models[0];
        assert!(
            idle.ready
                && idle
                    .latency_ms
                    .stages()
                    .iter()
                    .all(|(_, latency)| latency.is_none())
        );
        assert!(idle.latency_ms.request.is_none() && idle.latency_ms.frame.is_none());
        assert_eq!(
            (idle.requests(), idle.queue_fill(), idle.batch_size),
            (0.0, None, None)
        );
    }

    #[test]
    fn gpus_are_shown_by_what_they_tell() {
        let text = "classifier_gpu_memory_bytes{gpu=\"0\",name=\"H100\"} 8e10\n\
                    classifier_gpu_utilization_ratio{gpu=\"0\",name=\"H100\"} 0.5\n";
        let scrape = Scrape::of(text, Instant::now());
        let [gpu] = &Snapshot::between(&scrape, &scrape).gpus[..] else {
            panic!("one GPU")
        };
        assert_eq!(
            (gpu.name.as_str(), gpu.utilization, gpu.power_watts),
            ("H100", Some(0.5), None)
        );
    }
}
