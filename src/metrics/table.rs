//! Defines every metric: name, type, unit, labels, meaning, and what to do when it is high.
//!
//! The `HELP` and `TYPE` lines of `/metrics`, the histograms' buckets and the table in
//! `docs/operations.md` are all generated from [`METRICS`].

use super::labels::{Closure, FrameOutcome, Method, Refusal, Rejection, Restart};

/// The definition of one metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: MetricKind,
    /// What a value counts or measures, such as `seconds`.
    pub unit: &'static str,
    pub labels: &'static [Label],
    /// The meaning, for `HELP` and the documentation.
    pub help: &'static str,
    /// What an operator does about a high value.
    pub when_high: &'static str,
    pub presence: Presence,
}

/// How a metric's values behave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricKind {
    /// A whole number that only grows.
    Counter,
    /// A fractional number that only grows, such as seconds.
    FractionalCounter,
    /// A number that rises and falls.
    Gauge,
    /// A distribution, counted in buckets with these upper bounds.
    Histogram(&'static [f64]),
}

impl MetricKind {
    /// The type's name in Prometheus.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter | Self::FractionalCounter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// A label of a metric.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    pub name: &'static str,
    /// All possible values; empty if they depend on the server, such as the names of its models.
    pub values: &'static [&'static str],
}

/// When a metric is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// On every server, after the first call to a known model.
    Always,
    /// With an engine on a GPU only.
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
pub(super) const REGIONS: &str = "classifier_regions_total";
pub(super) const FRAMES: &str = "classifier_frames_total";
pub(super) const FPS: &str = "classifier_fps";
pub(super) const STREAMS_ACTIVE: &str = "classifier_streams_active";
pub(super) const RECEIVED_BYTES: &str = "classifier_received_bytes_total";
pub(super) const BUSY: &str = "classifier_busy_seconds_total";
pub(super) const WORKERS: &str = "classifier_workers";
pub(super) const DEVICE_BUSY: &str = "classifier_device_busy_seconds_total";
pub(super) const DEVICE_LANES: &str = "classifier_device_lanes";
pub(super) const CALLS_ACTIVE: &str = "classifier_calls_active";
pub(super) const MESSAGE_MEMORY: &str = "classifier_message_memory_bytes";
pub(super) const MESSAGE_MEMORY_LIMIT: &str = "classifier_message_memory_limit_bytes";
pub(super) const CONNECTIONS_ACTIVE: &str = "classifier_connections_active";
pub(super) const CONNECTIONS_REFUSED: &str = "classifier_connections_refused_total";
pub(super) const CONNECTIONS_CLOSED: &str = "classifier_connections_closed_total";
pub(super) const LOG_LINES_DROPPED: &str = "classifier_log_lines_dropped_total";
pub(super) const DECODER_PANICS: &str = "classifier_decoder_panics_total";
pub(super) const WORKER_RESTARTS: &str = "classifier_worker_restarts_total";
pub(super) const DECODE_TIMEOUTS: &str = "classifier_decode_timeouts_total";
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

/// Bucket bounds of durations, in seconds: about 25 % apart from 1 ms to 1 s, where answers usually
/// lie, so that quantiles are accurate to about that; coarser outside.
#[rustfmt::skip]
pub(super) const DURATIONS: [f64; 41] = [
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
const TIMED_METHOD: Label = Label {
    name: "method",
    values: &Method::TIMED,
};
const STAGE: Label = Label {
    name: "stage",
    values: &["decode", "queue", "inference"],
};
const GPU: &[Label] = &[Label::open("gpu"), Label::open("name")];

/// Every metric except the process's own, `process_…`.
pub const METRICS: [Metric; 42] = [
    Metric {
        name: REQUESTS,
        kind: MetricKind::Counter,
        unit: "requests",
        labels: &[MODEL, METHOD, Label::open("code")],
        help: "Finished requests, by gRPC status code. A stream counts once, when it ends. The \
               model is empty if it is unknown or if the call ended before naming it.",
        when_high: "Look at the code: RESOURCE_EXHAUSTED means overload, INVALID_ARGUMENT \
                    unreadable images; for INTERNAL see the log.",
        presence: Presence::Always,
    },
    Metric {
        name: REQUEST_DURATION,
        kind: MetricKind::Histogram(&DURATIONS),
        unit: "seconds",
        labels: &[MODEL, TIMED_METHOD],
        help: "Time from a request's arrival to its answer, without requests that were rejected \
               at once. For a stream, its whole life. Only methods that bring images are timed.",
        when_high: "Look at the stages: `queue` calls for more cores or servers, `decode` for \
                    smaller images, `inference` for a faster engine.",
        presence: Presence::Always,
    },
    Metric {
        name: FRAME_DURATION,
        kind: MetricKind::Histogram(&DURATIONS),
        unit: "seconds",
        labels: &[MODEL],
        help: "Time from the arrival of a frame, or of a request on a stream, to its answer.",
        when_high: "As for requests. Send live video with the policy LATEST, so that frames \
                    don't wait for older ones.",
        presence: Presence::Always,
    },
    Metric {
        name: STAGE_DURATION,
        kind: MetricKind::Histogram(&DURATIONS),
        unit: "seconds",
        labels: &[MODEL, STAGE],
        help: "Time that an image spends in a stage; for inference, the time of its batch.",
        when_high: "`queue`: more cores or servers, or `--latency-target`. `decode`: smaller \
                    images or `--jpeg-scaling auto`. `inference`: int8, or a GPU.",
        presence: Presence::Always,
    },
    Metric {
        name: BATCH_SIZE,
        kind: MetricKind::Histogram(&BATCHES),
        unit: "images",
        labels: &[MODEL],
        help: "Images in one call of the engine.",
        when_high: "Good on a GPU. On a CPU large batches cost latency: use `--max-batch 1`.",
        presence: Presence::Always,
    },
    Metric {
        name: QUEUE_DEPTH,
        kind: MetricKind::Gauge,
        unit: "images",
        labels: &[MODEL],
        help: "Images waiting to be decoded: single requests and frames of streams.",
        when_high: "More work arrives than can be done: more cores or servers, or fewer frames \
                    per second.",
        presence: Presence::Always,
    },
    Metric {
        name: QUEUE_REQUESTS,
        kind: MetricKind::Gauge,
        unit: "requests",
        labels: &[MODEL],
        help: "Waiting single requests; `queue_capacity` limits them.",
        when_high: "Near `queue_capacity` requests are rejected: more cores or servers, or fewer \
                    requests.",
        presence: Presence::Always,
    },
    Metric {
        name: QUEUE_CAPACITY,
        kind: MetricKind::Gauge,
        unit: "requests",
        labels: &[MODEL],
        help: "Single requests that may wait at present, but for those of a burst. Follows the \
               measured throughput, and with `--latency-target` also the work in progress, unless \
               `--queue-capacity` fixes it.",
        when_high: "Nothing: the server is fast.",
        presence: Presence::Always,
    },
    Metric {
        name: REJECTED,
        kind: MetricKind::Counter,
        unit: "requests",
        labels: &[
            MODEL,
            Label {
                name: "reason",
                values: &Rejection::LABELS,
            },
        ],
        help: "Work that arrived and was not done. Counts for the default model if none was \
               determined yet.",
        when_high: "`queue_full`: overload. `deadline`: overload, or deadlines too short. \
                    `cancelled`: callers give up. `call_limit`, `stream_limit`: raise \
                    `--max-calls` or `--max-streams`. `client_limit`: one caller has its share \
                    (`--max-per-client`). `memory`: raise `--max-memory`. `unauthenticated`: the \
                    log names the callers.",
        presence: Presence::Always,
    },
    Metric {
        name: REGIONS,
        kind: MetricKind::Counter,
        unit: "regions",
        labels: &[MODEL],
        help: "Regions that were cut out of decoded images, each to be classified.",
        when_high: "Each is inferred like an image of its own, but all of an image are decoded once.",
        presence: Presence::Always,
    },
    Metric {
        name: FRAMES,
        kind: MetricKind::Counter,
        unit: "frames",
        labels: &[
            MODEL,
            Label {
                name: "outcome",
                values: &FrameOutcome::LABELS,
            },
        ],
        help: "Frames of streams and requests of `ModelStreamInfer`, by outcome: classified, \
               dropped (replaced by a newer frame) or failed.",
        when_high: "`dropped`: cameras send more than the server can classify, which is normal \
                    for live video. `failed`: frames can't be decoded.",
        presence: Presence::Always,
    },
    Metric {
        name: FPS,
        kind: MetricKind::Gauge,
        unit: "images/s",
        labels: &[MODEL],
        help: "Classified images per second, of requests and streams, over the last 5 s.",
        when_high: "Nothing. If it is low under load, look at saturation and the stages.",
        presence: Presence::Always,
    },
    Metric {
        name: STREAMS_ACTIVE,
        kind: MetricKind::Gauge,
        unit: "streams",
        labels: &[MODEL],
        help: "Open streams.",
        when_high: "Near `--max-streams` new streams are rejected: raise it or add servers.",
        presence: Presence::Always,
    },
    Metric {
        name: RECEIVED_BYTES,
        kind: MetricKind::Counter,
        unit: "bytes",
        labels: &[MODEL],
        help: "Size of the received images, encoded or raw.",
        when_high: "Send smaller images: pixels beyond the model's input size are scaled away.",
        presence: Presence::Always,
    },
    Metric {
        name: BUSY,
        kind: MetricKind::FractionalCounter,
        unit: "seconds",
        labels: &[
            MODEL,
            Label {
                name: "stage",
                values: &["decode", "inference"],
            },
        ],
        help: "Time that worker threads spent; a call of the engine that uses all cores counts \
               for each of them.",
        when_high: "Its rate divided by `workers` is the saturation. Near 1: more cores or \
                    servers, or a faster engine.",
        presence: Presence::Always,
    },
    Metric {
        name: WORKERS,
        kind: MetricKind::Gauge,
        unit: "threads",
        labels: &[],
        help: "Worker threads, one per core (`--threads`).",
        when_high: "Nothing.",
        presence: Presence::Always,
    },
    Metric {
        name: CALLS_ACTIVE,
        kind: MetricKind::Gauge,
        unit: "calls",
        labels: &[],
        help: "Calls in progress, requests and streams.",
        when_high: "With a full queue: overload. Otherwise streams that stay open.",
        presence: Presence::Always,
    },
    Metric {
        name: MESSAGE_MEMORY,
        kind: MetricKind::Gauge,
        unit: "bytes",
        labels: &[],
        help: "Memory of the messages that have arrived, are arriving or are decompressed, and \
               are not answered yet.",
        when_high: "Near `message_memory_limit_bytes` requests are rejected and streams are \
                    slowed down: raise `--max-memory`, or send smaller images.",
        presence: Presence::Always,
    },
    Metric {
        name: MESSAGE_MEMORY_LIMIT,
        kind: MetricKind::Gauge,
        unit: "bytes",
        labels: &[],
        help: "The most memory that messages may take: half of `--max-memory`.",
        when_high: "Nothing.",
        presence: Presence::Always,
    },
    Metric {
        name: CONNECTIONS_ACTIVE,
        kind: MetricKind::Gauge,
        unit: "connections",
        labels: &[],
        help: "Open gRPC connections.",
        when_high: "At `--max-connections` a new one replaces the one that is idle longest. \
                    Callers should keep one connection each and reuse it.",
        presence: Presence::Always,
    },
    Metric {
        name: CONNECTIONS_CLOSED,
        kind: MetricKind::Counter,
        unit: "connections",
        labels: &[Label {
            name: "reason",
            values: &Closure::LABELS,
        }],
        help: "Connections without a call in progress that the server closed: idle for \
               `--idle-timeout`, or displaced by a new one.",
        when_high: "`displaced`: somebody opens more connections than it uses; the log names the \
                    address. Or raise `--max-connections`.",
        presence: Presence::Always,
    },
    Metric {
        name: CONNECTIONS_REFUSED,
        kind: MetricKind::Counter,
        unit: "connections",
        labels: &[Label {
            name: "reason",
            values: &Refusal::LABELS,
        }],
        help: "Connections that were closed before their first call.",
        when_high: "The log names the peer. `tls`: a certificate, or plain text to a TLS port. \
                    `silent`: scanners or port checks. `accept`: too few file descriptors. \
                    `client_limit`: one address has its share (`--max-per-client`), all in use.",
        presence: Presence::Always,
    },
    Metric {
        name: LOG_LINES_DROPPED,
        kind: MetricKind::Counter,
        unit: "lines",
        labels: &[],
        help: "Log lines that standard error did not take in time.",
        when_high: "Whatever reads the log is too slow or has stopped, or its disk is full.",
        presence: Presence::Always,
    },
    Metric {
        name: DECODER_PANICS,
        kind: MetricKind::Counter,
        unit: "images",
        labels: &[],
        help: "Images whose decoder panicked. The caller got INVALID_ARGUMENT, and nothing else \
               was affected.",
        when_high: "Report it: the log names the format and the place, once for each. Somebody \
                    may be sending crafted files.",
        presence: Presence::Always,
    },
    Metric {
        name: WORKER_RESTARTS,
        kind: MetricKind::Counter,
        unit: "threads",
        labels: &[Label {
            name: "reason",
            values: &Restart::LABELS,
        }],
        help: "Worker threads that panicked, or that hung and were replaced. The work that each had \
               was answered with an error.",
        when_high: "`hang`: images or a model that take longer than `--stall-timeout`; the log \
                    says which. `panic`: report it, with the log.",
        presence: Presence::Always,
    },
    Metric {
        name: DECODE_TIMEOUTS,
        kind: MetricKind::Counter,
        unit: "images",
        labels: &[],
        help: "Images whose decoding took longer than `--max-decode-time` and was abandoned. The \
               caller got INVALID_ARGUMENT.",
        when_high: "Somebody may be sending crafted files: the log has the calls.",
        presence: Presence::Always,
    },
    Metric {
        name: READY,
        kind: MetricKind::Gauge,
        unit: "0 or 1",
        labels: &[],
        help: "1 while the server accepts requests, as `/readyz` reports.",
        when_high: "Nothing. If it stays 0, the log says why.",
        presence: Presence::Always,
    },
    Metric {
        name: MODEL_READY,
        kind: MetricKind::Gauge,
        unit: "0 or 1",
        labels: &[MODEL],
        help: "1 while a version of the model is served.",
        when_high: "Nothing. If it is 0, `ListModels` and the log say why.",
        presence: Presence::Always,
    },
    Metric {
        name: MODEL_LOADS,
        kind: MetricKind::Counter,
        unit: "loads",
        labels: &[
            MODEL,
            Label {
                name: "outcome",
                values: &["loaded", "failed"],
            },
        ],
        help: "Attempts to load the model or a new version of it.",
        when_high: "`failed`: the newest file is invalid, and the previous version is still \
                    served. Replace the file.",
        presence: Presence::Always,
    },
    Metric {
        name: MODEL_LOAD,
        kind: MetricKind::Gauge,
        unit: "seconds",
        labels: &[MODEL],
        help: "Duration of the last load, including self-check and warm-up.",
        when_high: "Keep the engine cache (`--engine-cache`) across restarts.",
        presence: Presence::Always,
    },
    Metric {
        name: MODEL_LOADED,
        kind: MetricKind::Gauge,
        unit: "seconds",
        labels: &[MODEL],
        help: "When the served version was loaded, in seconds since 1970.",
        when_high: "Nothing.",
        presence: Presence::Always,
    },
    Metric {
        name: ENGINE_INFO,
        kind: MetricKind::Gauge,
        unit: "1",
        labels: &[
            MODEL,
            Label::open("engine"),
            Label::open("precision"),
            Label::open("device"),
            Label::open("version"),
        ],
        help: "1 for the engine that serves the model, described by the labels; 0 for an \
               earlier one.",
        when_high: "Nothing. `embedded` is slow: run `make openvino`.",
        presence: Presence::Always,
    },
    Metric {
        name: BUILD_INFO,
        kind: MetricKind::Gauge,
        unit: "1",
        labels: &[Label::open("version")],
        help: "1; the label is the server's version.",
        when_high: "Nothing.",
        presence: Presence::Always,
    },
    Metric {
        name: DEVICE_BUSY,
        kind: MetricKind::FractionalCounter,
        unit: "seconds",
        labels: &[MODEL],
        help: "Time that the lanes of a device spent in calls of the engine.",
        when_high: "Its rate divided by `device_lanes` near 1: the GPU is the bottleneck.",
        presence: Presence::Gpu,
    },
    Metric {
        name: DEVICE_LANES,
        kind: MetricKind::Gauge,
        unit: "lanes",
        labels: &[MODEL],
        help: "Calls of the engine that can run on devices at once.",
        when_high: "Nothing.",
        presence: Presence::Gpu,
    },
    Metric {
        name: ENGINE_BUILD,
        kind: MetricKind::Gauge,
        unit: "seconds",
        labels: &[],
        help: "Duration of the last build of a TensorRT engine.",
        when_high: "Build ahead of time with `resnet18 build`.",
        presence: Presence::Gpu,
    },
    Metric {
        name: ENGINE_CACHE,
        kind: MetricKind::Counter,
        unit: "engines",
        labels: &[Label {
            name: "result",
            values: &["hit", "miss"],
        }],
        help: "Look-ups in the cache of TensorRT engines.",
        when_high: "`miss` at each start: `--engine-cache` is not kept, or the GPU or TensorRT \
                    has changed; the log says which.",
        presence: Presence::Gpu,
    },
    Metric {
        name: GPU_UTILIZATION,
        kind: MetricKind::Gauge,
        unit: "0 to 1",
        labels: GPU,
        help: "Fraction of the last moments in which the GPU was computing.",
        when_high: "Near 1: more GPUs (`--device all`) or servers. Low under load: too few \
                    cores decode for it.",
        presence: Presence::Gpu,
    },
    Metric {
        name: GPU_MEMORY_USED,
        kind: MetricKind::Gauge,
        unit: "bytes",
        labels: GPU,
        help: "GPU memory in use, by all processes.",
        when_high: "A smaller `--max-batch`, or fewer models on this GPU.",
        presence: Presence::Gpu,
    },
    Metric {
        name: GPU_MEMORY,
        kind: MetricKind::Gauge,
        unit: "bytes",
        labels: GPU,
        help: "Total GPU memory.",
        when_high: "Nothing.",
        presence: Presence::Gpu,
    },
    Metric {
        name: GPU_POWER,
        kind: MetricKind::Gauge,
        unit: "watts",
        labels: GPU,
        help: "Power draw of the GPU.",
        when_high: "At its limit the GPU slows down: `nvidia-smi -q -d POWER`.",
        presence: Presence::Gpu,
    },
    Metric {
        name: GPU_TEMPERATURE,
        kind: MetricKind::Gauge,
        unit: "°C",
        labels: GPU,
        help: "Temperature of the GPU.",
        when_high: "Above about 85 °C it slows down: check its cooling.",
        presence: Presence::Gpu,
    },
];

impl Metric {
    /// The metric's row of the Markdown table.
    fn row(&self) -> String {
        let labels: Vec<String> = self.labels.iter().map(Label::describe).collect();
        format!(
            "| `{}` | {} | {} | {} | {} | {} |\n",
            self.name.trim_start_matches("classifier_"),
            self.kind.name(),
            self.unit,
            labels.join("; "),
            self.help,
            self.when_high
        )
    }
}

impl Label {
    /// A label whose values depend on the server.
    const fn open(name: &'static str) -> Self {
        Self { name, values: &[] }
    }

    fn describe(&self) -> String {
        if self.values.is_empty() {
            return format!("`{}`", self.name);
        }

        let values: Vec<String> = self
            .values
            .iter()
            .map(|value| format!("`{value}`"))
            .collect();
        format!("`{}`: {}", self.name, values.join(", "))
    }
}

/// The table of all metrics in Markdown, for the documentation.
pub fn markdown() -> String {
    let mut table = String::from(
        "| name | type | unit | labels | meaning | when it is high |\n\
         |---|---|---|---|---|---|\n",
    );
    for metric in METRICS {
        table += &metric.row();
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_follow_prometheus_conventions() {
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
    fn bucket_bounds_ascend() {
        for metric in METRICS {
            if let MetricKind::Histogram(bounds) = metric.kind {
                assert!(bounds.is_sorted_by(|a, b| a < b), "{}", metric.name);
            }
        }
    }
}
