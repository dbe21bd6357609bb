//! The table of all metrics: what each is called, counts and means, and what to do when it is high.
//!
//! Everything else follows from it: what `/metrics` says, the histograms' buckets, and the table in
//! `docs/operations.md`.

use super::labels::{FrameOutcome, Method, Refusal, Rejection};

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// As Prometheus knows it.
    pub name: &'static str,
    /// How its values behave.
    pub kind: Kind,
    /// What is counted or measured.
    pub unit: &'static str,
    /// What tells its series apart.
    pub labels: &'static [Label],
    /// What it means, in a sentence.
    pub help: &'static str,
    /// What its reader does about a high value, if that is bad.
    pub when_high: &'static str,
    /// Where it is to be seen.
    pub presence: Presence,
}

/// How a metric's values behave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Whole numbers that only grow.
    Counter,
    /// A number that only grows but need not be whole, such as seconds.
    FractionalCounter,
    /// Goes up and down.
    Gauge,
    /// Counts values in buckets with these upper bounds.
    Histogram(&'static [f64]),
}

impl Kind {
    /// As Prometheus calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter | Self::FractionalCounter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// What tells the series of a metric apart.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// All values that it can have; empty where they are the server's own, such as the names of its
    /// models.
    pub values: &'static [&'static str],
}

/// When a metric is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// On every server, from the first model on.
    Always,
    /// With an engine on a GPU.
    Gpu,
}

pub(super) const REQUESTS: &str = "classifier_requests_total";
pub(super) const REQUEST_DURATION: &str = "classifier_request_duration_seconds";
pub(super) const FRAME_DURATION: &str = "classifier_frame_duration_seconds";
pub(super) const STAGE_DURATION: &str = "classifier_stage_duration_seconds";
pub(super) const BATCH_SIZE: &str = "classifier_batch_size";
pub(super) const QUEUE_DEPTH: &str = "classifier_queue_depth";
pub(super) const QUEUE_REQUESTS: &str = "classifier_queue_requests";
pub(super) const QUEUE_CAPACITY: &str = "classifier_queue_capacity";
pub(super) const REJECTED: &str = "classifier_rejected_total";
pub(super) const FRAMES: &str = "classifier_frames_total";
pub(super) const FPS: &str = "classifier_fps";
pub(super) const STREAMS_ACTIVE: &str = "classifier_streams_active";
pub(super) const RECEIVED_BYTES: &str = "classifier_received_bytes_total";
pub(super) const BUSY: &str = "classifier_busy_seconds_total";
pub(super) const WORKERS: &str = "classifier_workers";
pub(super) const DEVICE_BUSY: &str = "classifier_device_busy_seconds_total";
pub(super) const DEVICE_LANES: &str = "classifier_device_lanes";
pub(super) const CALLS_ACTIVE: &str = "classifier_calls_active";
pub(super) const CONNECTIONS_ACTIVE: &str = "classifier_connections_active";
pub(super) const CONNECTIONS_REFUSED: &str = "classifier_connections_refused_total";
pub(super) const READY: &str = "classifier_ready";
pub(super) const MODEL_READY: &str = "classifier_model_ready";
pub(super) const MODEL_LOADS: &str = "classifier_model_loads_total";
pub(super) const MODEL_LOAD: &str = "classifier_model_load_seconds";
pub(super) const MODEL_LOADED: &str = "classifier_model_loaded_timestamp_seconds";
pub(super) const ENGINE_INFO: &str = "classifier_engine_info";
pub(super) const BUILD_INFO: &str = "classifier_build_info";
pub(super) const ENGINE_BUILD: &str = "classifier_engine_build_seconds";
pub(super) const ENGINE_CACHE: &str = "classifier_engine_cache_total";
pub(super) const GPU_UTILIZATION: &str = "classifier_gpu_utilization_ratio";
pub(super) const GPU_MEMORY_USED: &str = "classifier_gpu_memory_used_bytes";
pub(super) const GPU_MEMORY: &str = "classifier_gpu_memory_bytes";
pub(super) const GPU_POWER: &str = "classifier_gpu_power_watts";
pub(super) const GPU_TEMPERATURE: &str = "classifier_gpu_temperature_celsius";

/// Bounds a quarter apart where answers usually lie, 1 ms to 1 s, so that a quantile is never far
/// off; coarser around.
#[rustfmt::skip]
const DURATIONS: [f64; 41] = [
    0.0001, 0.00016, 0.00025, 0.0004, 0.00063,
    0.001, 0.00125, 0.0016, 0.002, 0.0025, 0.00315, 0.004, 0.005, 0.0063, 0.008,
    0.01, 0.0125, 0.016, 0.02, 0.025, 0.0315, 0.04, 0.05, 0.063, 0.08,
    0.1, 0.125, 0.16, 0.2, 0.25, 0.315, 0.4, 0.5, 0.63, 0.8,
    1.0, 1.6, 2.5, 4.0, 6.3, 10.0,
];
const BATCHES: [f64; 10] = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0, 128.0];

const MODEL: Label = Label::open("model");
const METHOD: Label = Label {
    name: "method",
    values: &Method::LABELS,
};
const GPU: &[Label] = &[Label::open("gpu"), Label::open("name")];

/// Every metric but the process's own `process_…`.
#[rustfmt::skip]
pub const METRICS: [Metric; 34] = [
    Metric::new(REQUESTS, Kind::Counter, "requests",
        &[MODEL, METHOD, Label::open("code")],
        "Finished requests, by gRPC status code. A stream counts once, when it ends. Without a model: one that is not known, or the call ended before its message said which.",
        "See which code: RESOURCE_EXHAUSTED is overload, INVALID_ARGUMENT the callers' images, INTERNAL is in the log."),
    Metric::new(REQUEST_DURATION, Kind::Histogram(&DURATIONS), "seconds",
        &[MODEL, METHOD],
        "From a request's arrival to its answer, unless it was refused at once; a stream's whole life.",
        "Look at the stages: `queue` asks for more cores or servers, `decode` for smaller images, `inference` for a faster engine."),
    Metric::new(FRAME_DURATION, Kind::Histogram(&DURATIONS), "seconds",
        &[MODEL],
        "From the arrival of a stream's frame or request to its answer.",
        "As for requests. Live video sends with the policy LATEST, so that frames don't wait for older ones."),
    Metric::new(STAGE_DURATION, Kind::Histogram(&DURATIONS), "seconds",
        &[MODEL, Label { name: "stage", values: &["decode", "queue", "inference"] }],
        "Time of an image in a stage (for inference: of a batch).",
        "`queue`: more cores or servers, or `--latency-target`. `decode`: smaller images or `--jpeg-scaling auto`. `inference`: int8, or a GPU."),
    Metric::new(BATCH_SIZE, Kind::Histogram(&BATCHES), "images",
        &[MODEL],
        "Images in one call of the engine.",
        "Good on a GPU. On a CPU large batches cost latency: `--max-batch 1`."),
    Metric::new(QUEUE_DEPTH, Kind::Gauge, "images",
        &[MODEL],
        "Images that wait to be decoded: single requests and frames of streams.",
        "More arrives than can be done: more cores or servers, or fewer frames a second."),
    Metric::new(QUEUE_REQUESTS, Kind::Gauge, "requests",
        &[MODEL],
        "Single requests among those that wait; each takes one of the places of `queue_capacity`.",
        "Near `queue_capacity` requests are refused: more cores or servers, or fewer requests."),
    Metric::new(QUEUE_CAPACITY, Kind::Gauge, "requests",
        &[MODEL],
        "Single requests that may wait at present; it follows the pace that is measured, and with `--latency-target` what is in work, unless `--queue-capacity` fixes it.",
        "Nothing: the server is fast."),
    Metric::new(REJECTED, Kind::Counter, "requests",
        &[MODEL, Label { name: "reason", values: &Rejection::LABELS }],
        "Work that arrived and was not done. What no model was found for yet counts for the default one.",
        "`queue_full`: overload. `deadline`: callers wait too short, or overload. `cancelled`: callers give up. `…_limit`: raise `--max-calls` or `--max-streams`. `unauthenticated`: whose token is wrong is in the log."),
    Metric::new(FRAMES, Kind::Counter, "frames",
        &[MODEL, Label { name: "outcome", values: &FrameOutcome::LABELS }],
        "Frames of streams and requests of `ModelStreamInfer`: classified, dropped (a newer one took its place) or failed.",
        "`dropped`: cameras send more than the server can do; for live video that is as it should be. `failed`: frames that can't be decoded."),
    Metric::new(FPS, Kind::Gauge, "images/s",
        &[MODEL],
        "Images classified a second, requests and frames, over the last 5 s.",
        "Nothing. Low under load: see saturation and the stages."),
    Metric::new(STREAMS_ACTIVE, Kind::Gauge, "streams",
        &[MODEL],
        "Open streams.",
        "Near `--max-streams` new ones are refused: raise it or add servers."),
    Metric::new(RECEIVED_BYTES, Kind::Counter, "bytes",
        &[MODEL],
        "Images taken in, encoded or raw, as large as they came.",
        "Send smaller images: more than the model's input is resized away."),
    Metric::new(BUSY, Kind::FractionalCounter, "seconds",
        &[MODEL, Label { name: "stage", values: &["decode", "inference"] }],
        "Time that worker threads spent; an engine's call that uses all cores counts for each of them.",
        "Its rate over `workers` is saturation. Near 1 there is nothing left: more cores or servers, or a faster engine."),
    Metric::new(WORKERS, Kind::Gauge, "threads",
        &[],
        "Worker threads, one for each core (`--threads`).",
        "Nothing."),
    Metric::new(CALLS_ACTIVE, Kind::Gauge, "calls",
        &[],
        "Calls in progress, requests and streams.",
        "With a full queue: overload. Else streams that stay open."),
    Metric::new(CONNECTIONS_ACTIVE, Kind::Gauge, "connections",
        &[],
        "Open gRPC connections.",
        "At `--max-connections` further ones wait: do callers keep one connection each and use it again?"),
    Metric::new(CONNECTIONS_REFUSED, Kind::Counter, "connections",
        &[Label { name: "reason", values: &Refusal::LABELS }],
        "Connections that never came to a call.",
        "The log names the peer. `tls`: certificates, or plain text to a TLS port. `silent`: scanners or port checks. `accept`: too few file descriptors."),
    Metric::new(READY, Kind::Gauge, "0 or 1",
        &[],
        "1 while the server accepts requests, as `/readyz` says.",
        "Nothing; 0 for long: the log says why."),
    Metric::new(MODEL_READY, Kind::Gauge, "0 or 1",
        &[MODEL],
        "1 while a version of the model answers.",
        "Nothing; 0: `ListModels` and the log say why."),
    Metric::new(MODEL_LOADS, Kind::Counter, "loads",
        &[MODEL, Label { name: "outcome", values: &["loaded", "failed"] }],
        "Attempts to load the model or a new version of it.",
        "`failed`: the newest file is bad, and the version before it still answers. Put a good file there."),
    Metric::new(MODEL_LOAD, Kind::Gauge, "seconds",
        &[MODEL],
        "Time that the last load took, with self-check and warm-up.",
        "Keep caches (`--engine-cache`) over restarts."),
    Metric::new(MODEL_LOADED, Kind::Gauge, "seconds",
        &[MODEL],
        "When the version that answers was loaded, in seconds since 1970.",
        "Nothing."),
    Metric::new(ENGINE_INFO, Kind::Gauge, "1",
        &[MODEL, Label::open("engine"), Label::open("precision"), Label::open("device"), Label::open("version")],
        "1; its labels say which engine serves the model (0: did so before).",
        "Nothing. `embedded` is slow: `make openvino`."),
    Metric::new(BUILD_INFO, Kind::Gauge, "1",
        &[Label::open("version")],
        "1; its label is the server's version.",
        "Nothing."),
    Metric::new(DEVICE_BUSY, Kind::FractionalCounter, "seconds",
        &[MODEL],
        "Time that lanes of a device spent in calls of the engine.",
        "Its rate over `device_lanes` near 1: the GPU is what limits.").gpu(),
    Metric::new(DEVICE_LANES, Kind::Gauge, "lanes",
        &[MODEL],
        "Calls of the engine that can run on devices at once.",
        "Nothing.").gpu(),
    Metric::new(ENGINE_BUILD, Kind::Gauge, "seconds",
        &[],
        "Time of the last build of a TensorRT engine.",
        "Build ahead: `resnet18 build`.").gpu(),
    Metric::new(ENGINE_CACHE, Kind::Counter, "engines",
        &[Label { name: "result", values: &["hit", "miss"] }],
        "TensorRT engines that were looked for in the cache.",
        "`miss` at each start: `--engine-cache` is not kept, or the GPU or TensorRT changed; the log says which.").gpu(),
    Metric::new(GPU_UTILIZATION, Kind::Gauge, "0 to 1", GPU,
        "The part of the last moments in which the GPU computed.",
        "Near 1: more GPUs (`--device all`) or servers. Low under load: too few cores decode for it.").gpu(),
    Metric::new(GPU_MEMORY_USED, Kind::Gauge, "bytes", GPU,
        "The GPU's memory in use, by all processes.",
        "A smaller `--max-batch`, or fewer models on this GPU.").gpu(),
    Metric::new(GPU_MEMORY, Kind::Gauge, "bytes", GPU,
        "All of the GPU's memory.",
        "Nothing.").gpu(),
    Metric::new(GPU_POWER, Kind::Gauge, "watts", GPU,
        "What the GPU draws.",
        "At its limit the GPU slows down: `nvidia-smi -q -d POWER`.").gpu(),
    Metric::new(GPU_TEMPERATURE, Kind::Gauge, "°C", GPU,
        "The GPU's temperature.",
        "Above some 85 °C it slows down: look after its cooling.").gpu(),
];

impl Metric {
    const fn new(
        name: &'static str,
        kind: Kind,
        unit: &'static str,
        labels: &'static [Label],
        help: &'static str,
        when_high: &'static str,
    ) -> Self {
        Self {
            name,
            kind,
            unit,
            labels,
            help,
            when_high,
            presence: Presence::Always,
        }
    }

    const fn gpu(mut self) -> Self {
        self.presence = Presence::Gpu;
        self
    }

    /// Its row of the table for people.
    fn row(&self) -> String {
        let labels: Vec<String> = self.labels.iter().map(Label::describe).collect();
        let name = self.name.trim_start_matches("classifier_");
        let kind = self.kind.name();
        format!(
            "| `{name}` | {kind} | {} | {} | {} | {} |\n",
            self.unit,
            labels.join("; "),
            self.help,
            self.when_high
        )
    }
}

impl Label {
    const fn open(name: &'static str) -> Self {
        Self { name, values: &[] }
    }

    fn describe(&self) -> String {
        let values: Vec<String> = self
            .values
            .iter()
            .map(|value| format!("`{value}`"))
            .collect();
        match values.is_empty() {
            true => format!("`{}`", self.name),
            false => format!("`{}`: {}", self.name, values.join(", ")),
        }
    }
}

/// The table for people, in Markdown.
pub fn markdown() -> String {
    let head =
        "| name | type | unit | labels | meaning | when it is high |\n|---|---|---|---|---|---|\n";
    METRICS
        .iter()
        .fold(head.to_owned(), |table, metric| table + &metric.row())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_is_there_once_and_ends_as_prometheus_wants_it() {
        let names: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), METRICS.len());
        for metric in METRICS {
            assert_eq!(
                metric.name.ends_with("_total"),
                metric.kind.name() == "counter",
                "{}",
                metric.name
            );
            for unit in ["seconds", "bytes"] {
                let stem = metric.name.trim_end_matches("_total");
                assert_eq!(stem.ends_with(unit), metric.unit == unit, "{}", metric.name);
            }
        }
    }

    #[test]
    fn bounds_of_buckets_rise() {
        for metric in METRICS {
            if let Kind::Histogram(bounds) = metric.kind {
                assert!(bounds.is_sorted_by(|a, b| a < b), "{}", metric.name);
            }
        }
    }
}
