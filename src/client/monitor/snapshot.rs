//! The state of a server, derived from two scrapes: a [`Snapshot`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use super::{
    change::{Change, Histogram},
    exposition::Series,
    scrape::Scrape,
};

const REQUESTS: &str = "classifier_requests_total";
const REQUEST_DURATION: &str = "classifier_request_duration_seconds";
const FRAME_DURATION: &str = "classifier_frame_duration_seconds";
const STAGE_DURATION: &str = "classifier_stage_duration_seconds";
const FRAMES: &str = "classifier_frames_total";
const REJECTED: &str = "classifier_rejected_total";
const BUSY: &str = "classifier_busy_seconds_total";

/// The shortest interval for which CPU use is reported, in seconds: its counter has whole seconds.
const SHORTEST_FOR_CPU: f64 = 4.5;

/// The methods whose requests normally carry one image. The duration of a stream is no latency, and
/// that of a batch depends on how many images it has.
const SINGLE_METHODS: [&str; 2] = ["Classify", "ModelInfer"];

/// The state of a server. Rates are per second, averaged over `interval_s`. A value that the server
/// does not report is `None` (`null` in JSON).
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// `ready`, or why the server accepts no requests.
    pub state: String,
    /// Whether the server accepts requests.
    pub ready: bool,
    /// The program's version.
    pub version: Option<String>,
    /// How long the server has been running, in seconds.
    pub uptime_s: Option<f64>,
    /// The time between the two scrapes, in seconds.
    pub interval_s: f64,
    /// The share of the worker threads' time that was spent working, 0 to 1.
    pub saturation: Option<f64>,
    /// The number of worker threads, which decode and infer.
    pub workers: Option<f64>,
    /// How many CPU cores the process used on average; `None` over less than 5 s, because servers
    /// count whole seconds.
    pub cpu_cores: Option<f64>,
    /// The resident memory of the process, in bytes.
    pub resident_bytes: Option<f64>,
    /// The number of calls in progress.
    pub calls_active: Option<f64>,
    /// The number of open connections.
    pub connections_active: Option<f64>,
    /// The server's models, by name.
    pub models: Vec<ModelSnapshot>,
    /// The server's GPUs, by number.
    pub gpus: Vec<GpuSnapshot>,
}

/// The state of one model.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ModelSnapshot {
    /// The model's name.
    pub name: String,
    /// Whether the model answers requests.
    pub ready: bool,
    /// The engine that runs it.
    pub engine: Option<EngineSnapshot>,
    /// Images classified per second, over the server's last 5 s.
    pub images_per_second: f64,
    /// Requests per second by gRPC status code; a stream counts when it ends.
    pub requests_per_second: BTreeMap<String, f64>,
    /// Latencies by stage, in milliseconds.
    pub latency_ms: StageLatencies,
    /// The number of images that wait in the queue.
    pub queue_depth: Option<f64>,
    /// The number of single requests among them.
    pub queue_requests: Option<f64>,
    /// The most single requests that may wait.
    pub queue_capacity: Option<f64>,
    /// The mean number of images in one call of the engine.
    pub batch_size: Option<f64>,
    /// The number of open streams.
    pub streams: f64,
    /// Frames of streams per second by outcome.
    pub frames_per_second: BTreeMap<String, f64>,
    /// Rejected requests and frames per second by reason.
    pub rejected_per_second: BTreeMap<String, f64>,
    /// Bytes of images received per second.
    pub received_bytes_per_second: Option<f64>,
    /// The share of the time in which the model's lanes on its GPUs were busy, 0 to 1.
    pub device_saturation: Option<f64>,
}

/// The engine that runs a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EngineSnapshot {
    /// The engine's name, such as `openvino` or `tensorrt`.
    pub engine: String,
    /// The numbers it computes with, such as `fp32`.
    pub precision: String,
    /// The device, as the engine describes it.
    pub device: String,
    /// The engine's version.
    pub version: String,
}

/// Latencies in milliseconds, by stage; `None` (`null` in JSON) for a stage that nothing passed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StageLatencies {
    /// From the arrival of a single request to its answer.
    pub request: Option<Quantiles>,
    /// From the arrival of a stream's frame to its answer.
    pub frame: Option<Quantiles>,
    /// Decoding, resizing and cropping.
    pub decode: Option<Quantiles>,
    /// Waiting in queues.
    pub queue: Option<Quantiles>,
    /// The neural network.
    pub inference: Option<Quantiles>,
}

impl StageLatencies {
    /// The stages in the order in which an image passes them, with their names.
    pub fn stages(&self) -> [(&'static str, Option<Quantiles>); 3] {
        [
            ("decode", self.decode),
            ("queue", self.queue),
            ("inference", self.inference),
        ]
    }
}

/// Mean and quantiles in milliseconds. The quantiles are estimated from a histogram's buckets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    /// The arithmetic mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
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

/// The state of one GPU. A value that its driver does not report is `None` (`null` in JSON).
#[derive(Clone, Debug, Serialize)]
pub struct GpuSnapshot {
    /// The GPU's number.
    pub gpu: String,
    /// The product's name.
    pub name: String,
    /// The share of the time in which the GPU computed, 0 to 1.
    pub utilization: Option<f64>,
    /// Memory in use, by any process, in bytes.
    pub memory_used_bytes: Option<f64>,
    /// All of the GPU's memory, in bytes.
    pub memory_bytes: Option<f64>,
    /// Power draw in watts.
    pub power_watts: Option<f64>,
    /// Temperature in degrees Celsius.
    pub temperature_celsius: Option<f64>,
}

impl Snapshot {
    /// Rates and latencies between two scrapes, and gauges as of the later one.
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
            uptime_s: after
                .value("process_start_time_seconds", &[])
                .map(seconds_since),
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

/// The names of all models that were served since the server started, sorted.
fn model_names(scrape: &Scrape) -> impl Iterator<Item = &str> {
    let names = scrape
        .series("classifier_model_ready")
        .iter()
        .map(|series| series.label("model"));
    names.collect::<BTreeSet<_>>().into_iter()
}

impl ModelSnapshot {
    fn new(name: &str, change: &Change, now: &Scrape) -> Self {
        let model = [("model", name)];
        let latency =
            |metric, label, value| change.histogram(metric, &[("model", name), (label, value)]);
        let stage = |stage| Quantiles::of(&latency(STAGE_DURATION, "stage", stage));
        let mut requests = Histogram::default();
        for method in SINGLE_METHODS {
            requests.merge(&latency(REQUEST_DURATION, "method", method));
        }

        let engine = |info: &&Series| info.has(&model) && info.value == 1.0;
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
            latency_ms: StageLatencies {
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

    /// All requests per second, whatever their status.
    pub fn requests(&self) -> f64 {
        self.requests_per_second
            .values()
            .fold(0.0, |sum, rate| sum + rate)
    }

    /// All rejected requests and frames per second.
    pub fn rejected(&self) -> f64 {
        self.rejected_per_second
            .values()
            .fold(0.0, |sum, rate| sum + rate)
    }

    /// The share of the queue's capacity for single requests that is taken, 0 to 1.
    pub fn queue_fill(&self) -> Option<f64> {
        share(self.queue_requests, self.queue_capacity)
    }
}

/// The rates of a model's counters of one metric, by the values of one label.
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

/// `part / whole`; `None` if either is unknown or `whole` is 0.
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

/// Seconds since `start`, which is in seconds of the Unix clock.
fn seconds_since(start: f64) -> f64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (now.as_secs_f64() - start).max(0.0)
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::{super::testing::busy, *};

    #[test]
    fn a_snapshot_has_the_rates_and_gauges_of_the_server() {
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
            "the engine that served before is not shown"
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
    fn an_idle_model_has_no_latencies() {
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
    fn gpus_have_the_values_that_their_driver_reports() {
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
