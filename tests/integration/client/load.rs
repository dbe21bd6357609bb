//! The load generator against a scripted server.

use std::{fs, net::SocketAddr, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use resnet18_server::client::load::{LoadConfig, LoadMode, OnRejection, run_load};
use serde_json::Value;
use tonic::Code;

use super::{
    classify::{json_lines, resnet18},
    fake_server::{self, Script},
};
use crate::common::{self, Server, data, text};

fn config(server: SocketAddr) -> LoadConfig {
    LoadConfig {
        mode: LoadMode::Closed { clients: 4 },
        duration: Duration::from_millis(500),
        warmup: Duration::ZERO,
        ..LoadConfig::new(
            server.to_string().parse().unwrap(),
            vec![Bytes::from_static(b"an image")],
        )
    }
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[tokio::test]
async fn a_closed_loop_is_as_fast_as_the_answers() {
    let (server, script) = fake_server::start(Script {
        delay: ms(20),
        ..Script::default()
    })
    .await;
    let report = run_load(config(server)).await.unwrap();
    // Four clients with 20 ms each make 200 a second at most.
    assert!(
        report.goodput > 40.0 && report.goodput <= 202.0,
        "{report:?}"
    );
    assert_eq!(
        report.count(Code::Ok),
        script.requests.load(Ordering::Relaxed)
    );
    assert!(report.latency_ms.unwrap().p50 >= 20.0);
    assert_eq!(report.server_mean_ms.unwrap().inference, 20.0);
    assert_eq!((report.connections, report.missed), (4, 0));
}

#[tokio::test]
async fn latency_at_a_fixed_rate_counts_from_when_a_request_was_due() {
    let (server, _) = fake_server::start(Script {
        delay: ms(100),
        ..Script::default()
    })
    .await;
    let mode = LoadMode::Open {
        rate: 100.0,
        max_in_flight: 5,
    };
    let report = run_load(LoadConfig {
        mode,
        ..config(server)
    })
    .await
    .unwrap();
    // 50 requests are due, but only 5 in 100 ms can be in flight.
    assert_eq!(report.count(Code::Ok) + report.missed, 50, "{report:?}");
    assert!(report.missed >= 20, "{report:?}");
    assert!(report.latency_ms.unwrap().p50 >= 100.0);
}

#[tokio::test]
async fn refused_clients_wait_as_asked() {
    let script = || Script {
        rejections: 8.into(),
        retry_delay: ms(100),
        delay: ms(5),
        ..Script::default()
    };

    let (server, _) = fake_server::start(script()).await;
    let report = run_load(config(server)).await.unwrap();
    // Each of the four clients is refused twice and waits 0.2 s of its 0.5 s.
    assert_eq!(report.count(Code::ResourceExhausted), 8);
    assert!(report.goodput <= 4.0 * 0.3 / 0.005 / 0.5, "{report:?}");
    assert!(report.rejection_latency_ms.unwrap().p50 < 100.0);

    let (server, _) = fake_server::start(script()).await;
    let report = run_load(LoadConfig {
        on_rejection: OnRejection::Retry,
        ..config(server)
    })
    .await
    .unwrap();
    assert_eq!(report.count(Code::ResourceExhausted), 8);
    let (attempt, with_waits) = (
        report.latency_ms.unwrap(),
        report.latency_with_waits_ms.unwrap(),
    );
    assert!(with_waits.max >= 200.0 && attempt.max < 200.0, "{report:?}");
    assert_eq!(report.gave_up, 0);
}

#[tokio::test]
async fn retries_end_at_the_timeout() {
    let script = Script {
        rejections: u64::MAX.into(),
        retry_delay: ms(30),
        ..Script::default()
    };
    let (server, _) = fake_server::start(script).await;
    let config = LoadConfig {
        on_rejection: OnRejection::Retry,
        timeout: ms(100),
        ..config(server)
    };
    let report = run_load(config).await.unwrap();
    assert!(
        report.gave_up > 0 && report.latency_ms.is_none() && report.goodput == 0.0,
        "{report:?}"
    );
}

#[tokio::test]
async fn the_program_prints_the_report() {
    let (server, _) = fake_server::start(Script::default()).await;
    let image = tempfile::NamedTempFile::new().unwrap();
    fs::write(image.path(), "an image").unwrap();
    let image = image.path().to_string_lossy();
    let arguments = [
        "load",
        &image,
        "--duration",
        "200ms",
        "--warmup",
        "0",
        "--concurrency",
        "2",
    ];

    let output = resnet18(server, &[&arguments[..], &["--json"]].concat()).await;
    let report = &json_lines(&output)[0];
    assert!(
        report["goodput"].as_f64().unwrap() > 0.0 && report["latency_ms"]["p99.9"].is_number(),
        "{report}"
    );

    let output = resnet18(server, &arguments).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("Goodput") && text.contains("OK") && !text.contains('\u{1b}'),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn raw_frames_are_sent_in_place_of_files() {
    let server = Server::start(&[]);
    let output = common::resnet18()
        .args([
            "load",
            "--raw",
            "--json",
            "--duration",
            "300ms",
            "--warmup",
            "0",
        ])
        .args(["--server", &server.url()])
        .arg(data("cat.jpg"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let statuses = report["statuses"].as_object().unwrap();
    assert!(
        statuses.len() == 1 && statuses["OK"].as_u64().unwrap() > 0,
        "{report}"
    );
}
