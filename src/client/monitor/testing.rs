//! Scrapes of a server under load, for tests.

use std::time::Duration;

use tokio::time::Instant;

use super::scrape::Scrape;

/// Two scrapes of the server, 10 s apart.
pub fn busy() -> (Scrape, Scrape) {
    let start = Instant::now();
    let at = |counts: [u32; 3], after: u64| {
        let [requests, rejected, busy] = counts;
        Scrape::of(
            &text(requests, rejected, busy),
            start + Duration::from_secs(after),
        )
    };
    (at([1000, 50, 100], 0), at([2000, 150, 119], 10))
}

fn text(requests: u32, rejected: u32, busy: u32) -> String {
    let mut text = format!(
        r#"
classifier_build_info{{version="0.1.0"}} 1
classifier_model_ready{{model="pets"}} 1
classifier_model_ready{{model="resnet18-demo"}} 1
classifier_engine_info{{model="resnet18-demo",engine="embedded",precision="fp32",device="CPU",version="0.27"}} 0
classifier_engine_info{{model="resnet18-demo",engine="openvino",precision="bf16",device="CPU (Zen 4, 2 threads)",version="2026.4.1"}} 1
classifier_fps{{model="resnet18-demo"}} 129.8
classifier_requests_total{{model="resnet18-demo",method="Classify",code="OK"}} {requests}
classifier_requests_total{{model="resnet18-demo",method="Classify",code="RESOURCE_EXHAUSTED"}} {rejected}
classifier_requests_total{{model="",method="ListModels",code="OK"}} 9
classifier_rejected_total{{model="resnet18-demo",reason="queue_full"}} {rejected}
classifier_rejected_total{{model="resnet18-demo",reason="deadline"}} 3
classifier_frames_total{{model="resnet18-demo",outcome="classified"}} {frames}
classifier_frames_total{{model="resnet18-demo",outcome="dropped"}} {dropped}
classifier_queue_depth{{model="resnet18-demo"}} 23
classifier_queue_requests{{model="resnet18-demo"}} 20
classifier_queue_capacity{{model="resnet18-demo"}} 24
classifier_streams_active{{model="resnet18-demo"}} 3
classifier_batch_size_sum{{model="resnet18-demo"}} {requests}
classifier_batch_size_count{{model="resnet18-demo"}} {requests}
classifier_received_bytes_total{{model="resnet18-demo"}} {requests}00000
classifier_workers 2
classifier_busy_seconds_total{{model="resnet18-demo",stage="decode"}} {decode}
classifier_busy_seconds_total{{model="resnet18-demo",stage="inference"}} {busy}
classifier_device_busy_seconds_total{{model="resnet18-demo"}} {device}
classifier_device_lanes{{model="resnet18-demo"}} 2
classifier_calls_active 22
classifier_connections_active 16
process_cpu_seconds_total {busy}
process_resident_memory_bytes 189000000
process_start_time_seconds 1700000000
"#,
        frames = requests * 3 / 10,
        dropped = requests / 50,
        decode = f64::from(busy) / 100.0,
        device = f64::from(busy) / 2.0,
    );
    for (name, label, scale) in [
        ("request", ",method=\"Classify\"", 100.0),
        ("frame", "", 20.0),
        ("stage", ",stage=\"decode\"", 1.0),
        ("stage", ",stage=\"queue\"", 90.0),
        ("stage", ",stage=\"inference\"", 9.0),
    ] {
        let series = |part: &str, le: &str, value: f64| {
            format!(
                "classifier_{name}_duration_seconds_{part}\
                 {{model=\"resnet18-demo\"{label}{le}}} {value}\n"
            )
        };
        let count = f64::from(requests);
        for (bound, share) in [(0.001, 0.5), (0.0015, 0.9), (0.002, 1.0)] {
            text += &series(
                "bucket",
                &format!(",le=\"{}\"", bound * scale),
                count * share,
            );
        }
        text += &series("bucket", ",le=\"+Inf\"", count);
        text += &series("sum", "", count * 0.001 * scale);
        text += &series("count", "", count);
    }
    text
}
