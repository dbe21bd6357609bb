//! The program as a person runs it: flags, exit statuses, photos and a real video against a real
//! server.

use std::{
    process::{Command, Output},
    time::Duration,
};

use crate::common::{Server, data, ffmpeg, resnet18};
use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    resnet18().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn wrong_flags_end_the_program_before_it_binds_with_status_64() {
    for (arguments, hint) in [
        (&["serve", "--engine", "magic"][..], "openvino"),
        (&["serve", "--grpc", "nowhere"], "--grpc"),
        (&["serve", "--mean", "1,2"], "0.485,0.456,0.406"),
        (&["serve", "--mean", "124,116,104"], "255"),
        (&["serve", "--max-batch", "0"], "--max-batch"),
        (&["serve", "--device", "one"], "0,1"),
        (&["build", "--sm", "8.6"], "such as 86"),
        (&["build"], "--sm"),
        (&["serve", "--log", "loud=very"], "--log"),
        (
            &["serve", "--log", "verbose"],
            "off, error, warn, info, debug or trace",
        ),
        (
            &["serve", "--trace-sampling", "1%"],
            "from 0 (none) to 1 (all)",
        ),
        (
            &["serve", "--otlp-endpoint", "udp://host:1"],
            "http://HOST:PORT",
        ),
        (&["serve", "--no-such-flag"], "--no-such-flag"),
        (&["dance"], "dance"),
        (&[], "Usage"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(
            text(&output.stderr).contains(hint),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
    }
    let output = resnet18()
        .args(["serve"])
        .env("RESNET18_MAX_BATCH", "many")
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(64),
        "a wrong environment variable is a wrong flag"
    );
}

#[test]
fn the_program_is_one_file_that_needs_nothing_but_the_c_library() {
    let program = env!("CARGO_BIN_EXE_resnet18");
    let megabytes = std::fs::metadata(program).unwrap().len() / 1_000_000;
    assert!(cfg!(debug_assertions) || megabytes < 60, "{megabytes} MB");
    let Ok(output) = Command::new("ldd").arg(program).output() else {
        return;
    };
    for line in text(&output.stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let known = [
            "linux-vdso",
            "libc.so",
            "libm.so",
            "libgcc_s.so",
            "ld-linux",
            "/lib",
        ];
        // The glue to TensorRT is C++.
        let cpp = cfg!(feature = "tensorrt").then_some("libstdc++.so");
        assert!(
            known
                .iter()
                .chain(&cpp)
                .any(|known| name.starts_with(known)),
            "linked to {line}"
        );
    }
}

#[test]
fn what_cannot_be_served_is_refused_with_the_reason() {
    let photo = data("cat.jpg");
    let labels = data("../../models/imagenet_classes.txt");
    for (arguments, hint) in [
        (vec!["serve", "--model", "/no/such.onnx"], "/no/such.onnx"),
        (vec!["serve", "--model", photo.to_str().unwrap()], "ONNX"),
        (vec!["serve", "--labels", labels.to_str().unwrap()], "106"),
        (vec!["serve", "--std", "0,1,1"], "deviation"),
        (vec!["serve", "--resize", "100"], "224"),
    ] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(
            text(&output.stderr).contains(hint),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn a_taken_port_is_named() {
    let server = Server::spawn(&[]);
    let output = run(&["serve", "--grpc", &server.grpc, "--http", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("--grpc"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_forced_engine_that_cannot_start_ends_the_server_with_advice() {
    let flags = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let tensorrt = if cfg!(feature = "tensorrt") {
        "--tensorrt-lib"
    } else {
        "cargo build --release --features tensorrt"
    };
    for (engine, hint) in [
        (
            &["--engine", "openvino", "--openvino-lib", "/nowhere"][..],
            "libopenvino_c",
        ),
        (
            &["--engine", "tensorrt", "--tensorrt-lib", "/nowhere"],
            tensorrt,
        ),
        (&["--engine", "embedded", "--precision", "bf16"], "fp32"),
    ] {
        let output = run(&[&["serve"], engine, &flags].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text(&output.stderr).contains(hint),
            "{}",
            text(&output.stderr)
        );
    }
}

#[cfg(not(feature = "tensorrt"))]
#[test]
fn a_program_without_tensorrt_says_how_to_build_it_in() {
    let output = run(&["build", "--sm", "86"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("--features tensorrt"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn auto_goes_on_with_the_embedded_engine_and_says_why() {
    let server = Server::start(&["--openvino-lib", "/nowhere"]);
    assert!(
        server.log().contains("trying the embedded engine"),
        "{}",
        server.log()
    );
    assert_eq!(
        server.metric("classifier_engine_info", &["engine=\"embedded\""]),
        1.0
    );
}

#[test]
fn classify_prints_a_table_or_json_and_reports_what_failed() {
    let server = Server::start(&[]);
    let (cat, readme) = (data("cat.jpg"), data("README.md"));
    let files = [
        cat.to_str().unwrap(),
        "/no/such.jpg",
        readme.to_str().unwrap(),
    ];
    let url = server.url();

    let output = run(&[&["classify", "--server", &url], &files[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stdout).contains("cat "),
        "{}",
        text(&output.stdout)
    );
    assert!(
        text(&output.stderr).contains("/no/such.jpg") && text(&output.stderr).contains("README.md")
    );

    let output = run(&[&["classify", "--json", "--server", &url], &files[..]].concat());
    let lines: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["classifications"][0]["label"], "cat");
    assert!(lines[0]["timing_ms"]["inference"].as_f64().unwrap() > 0.0);
    assert_eq!(lines[2]["error"]["code"], "INVALID_ARGUMENT");

    let output = run(&["classify", files[0], "--server", "http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("resnet18 serve"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn load_measures_and_counts() {
    let server = Server::start(&[]);
    let output = run(&[
        "load",
        "--server",
        &server.url(),
        "--concurrency",
        "4",
        "--duration",
        "2s",
        "--warmup",
        "200ms",
        "--json",
        data("cat.jpg").to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["goodput"].as_f64().unwrap() > 1.0, "{report}");
    assert!(report["latency_ms"]["p99"].as_f64() >= report["latency_ms"]["p50"].as_f64());
    let counted = report["statuses"]["OK"].as_f64().unwrap();
    assert!(counted > 0.0);
    let served = server.metric(
        "classifier_requests_total",
        &["code=\"OK\"", "method=\"Classify\""],
    );
    assert!(served >= counted, "{served} < {counted}");
}

/// A 1280×720 video of a photo that slowly moves, at `fps`.
fn video(folder: &std::path::Path, fps: u32, seconds: u32) -> std::path::PathBuf {
    let path = folder.join(format!("cat-{fps}.mp4"));
    let status = Command::new("ffmpeg")
        .args([
            "-v",
            "error",
            "-y",
            "-loop",
            "1",
            "-framerate",
            &fps.to_string(),
            "-i",
        ])
        .arg(data("cat.jpg"))
        .args([
            "-vf",
            "scale=1408:-2,crop=1280:720:x='min(n,128)':y=100",
            "-t",
            &seconds.to_string(),
        ])
        .args(["-c:v", "mpeg4", "-q:v", "3"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(status.success());
    path
}

#[test]
fn a_live_video_is_never_answered_late() {
    if !ffmpeg() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&[]);
    for fps in [25, 120] {
        let path = video(folder.path(), fps, 4);
        let url = server.url();
        let output = run(&[
            "stream",
            path.to_str().unwrap(),
            "--policy",
            "latest",
            "--json",
            "--server",
            &url,
        ]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let lines: Vec<Value> = text(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let summary = &lines.last().unwrap()["summary"];
        eprintln!("{fps} fps: {summary}");
        let answered = summary["answered"].as_u64().unwrap();
        assert!(answered > 20, "{summary}");
        assert_eq!(summary["failed"].as_u64(), Some(0));
        let label = &lines[answered as usize / 2]["classifications"][0]["label"];
        assert_eq!(label, "cat", "{}", lines[answered as usize / 2]);
        // One frame, one inference, and what this busy machine adds.
        let inference = server.metric(
            "classifier_stage_duration_seconds_sum",
            &["stage=\"inference\""],
        ) / server.metric(
            "classifier_stage_duration_seconds_count",
            &["stage=\"inference\""],
        );
        let bound = 1e3 * (1.0 / f64::from(fps) + 2.0 * inference) + 50.0;
        let p50 = summary["latency_ms"]["p50"].as_f64().unwrap();
        assert!(p50 < bound, "p50 {p50} ms, bound {bound} ms: {summary}");
    }
}

#[test]
fn every_frame_of_a_video_is_answered() {
    if !ffmpeg() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = video(folder.path(), 25, 3);
    let server = Server::start(&[]);
    let output = run(&[
        "stream",
        path.to_str().unwrap(),
        "--policy",
        "every",
        "--json",
        "--server",
        &server.url(),
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let summary: Value =
        serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
    assert_eq!(summary["summary"]["answered"], 75, "{summary}");
    assert_eq!(
        server.metric("classifier_frames_total", &["outcome=\"classified\""]),
        75.0
    );
}

#[test]
fn readiness_and_liveness_are_told_apart() {
    let mut server = Server::spawn(&["--engine", "embedded"]);
    assert_eq!(server.get("/healthz"), (200, "ok\n".into()));
    server.wait_until_ready();
    assert_eq!(server.get("/nowhere").0, 404);
    server.signal("INT");
    assert!(
        server
            .wait(Duration::from_secs(10))
            .is_some_and(|status| status.success())
    );
}
