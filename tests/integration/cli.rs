//! The command line: flags, exit statuses, and photos and a real video against a real server.

use std::{
    process::{Command, Output},
    time::Duration,
};

use serde_json::Value;

use crate::common::{Server, data, exclusive, ffmpeg, resnet18, text};

fn run(arguments: &[&str]) -> Output {
    resnet18().args(arguments).output().unwrap()
}

fn assert_error_contains(output: &Output, hint: &str) {
    let error = text(&output.stderr);
    assert!(error.contains(hint), "{hint:?} is not in {error:?}");
}

#[test]
fn wrong_flags_end_the_program_with_status_64_before_it_binds() {
    for (arguments, hint) in [
        (&["serve", "--engine", "magic"][..], "openvino"),
        (&["serve", "--grpc", "nowhere"], "--grpc"),
        (&["serve", "--mean", "1,2"], "0.485,0.456,0.406"),
        (&["serve", "--mean", "124,116,300"], "--scale 255"),
        (&["serve", "--fit", "stretch"], "letterbox:RRGGBB"),
        (&["serve", "--input-size", "224x"], "224x224"),
        (&["serve", "--preset", "banana"], "keras-caffe"),
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
        assert_error_contains(&output, hint);
    }

    let output = resnet18()
        .arg("serve")
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
fn classify_prints_regions_embeddings_and_the_labels_that_are_allowed() {
    let server = Server::start(&["--engine", "embedded"]);
    let cat = data("cat.jpg");
    let classify = |flags: &[&str]| {
        let address = server.grpc.to_string();
        let arguments = [
            &["classify", cat.to_str().unwrap(), "--server", &address],
            flags,
        ];
        run(&arguments.concat())
    };
    let json = |flags: &[&str]| -> Value {
        let output = classify(&[&["--json"], flags].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let plain = json(&[]);
    assert!(plain.get("embedding").is_none() && plain.get("regions").is_none());
    let regions = json(&["--regions", "0%,0%,100%,100%; 10,20,50,60", "--embedding"]);
    let parts = regions["regions"].as_array().unwrap();
    assert_eq!(
        (parts.len(), &regions["classifications"]),
        (2, &Value::Array(Vec::new()))
    );
    assert_eq!(parts[0]["classifications"], plain["classifications"]);
    assert_eq!(parts[1]["embedding"].as_array().unwrap().len(), 512);
    let allowed = json(&["--allow", "cat", "--allow", "sunflower", "--deny", "cat"]);
    let allowed = allowed["classifications"].as_array().unwrap().clone();
    assert_eq!(allowed.len(), 1);
    assert_eq!(allowed[0]["label"], "sunflower");

    let output = classify(&["--regions", "0%,0%,100%,100%;10,20,50,60", "--embedding"]);
    let shown = text(&output.stdout);
    for expected in ["region 1", "region 2", "cat", "an embedding of 512 values"] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert_error_contains(&classify(&["--regions", "1,2,3"]), "LEFT,TOP,WIDTH,HEIGHT");
    assert_error_contains(&classify(&["--normalize"]), "--embedding");
    assert_error_contains(&classify(&["--regions", "0,0,9999,9"]), "region 1 of 1");
}

#[test]
fn the_program_is_one_file_that_needs_only_the_c_library() {
    let program = env!("CARGO_BIN_EXE_resnet18");
    let megabytes = std::fs::metadata(program).unwrap().len() / 1_000_000;
    assert!(
        cfg!(debug_assertions) || megabytes < 60,
        "the program has {megabytes} MB"
    );

    let Ok(output) = Command::new("ldd").arg(program).output() else {
        return;
    };
    let mut known = vec![
        "linux-vdso",
        "libc.so",
        "libm.so",
        "libgcc_s.so",
        "ld-linux",
        "/lib",
    ];
    if cfg!(feature = "tensorrt") {
        // The bindings to TensorRT are C++.
        known.push("libstdc++.so");
    }
    for line in text(&output.stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        assert!(
            known.iter().any(|known| name.starts_with(known)),
            "the program is linked to {line}"
        );
    }
}

#[test]
fn a_model_that_cannot_be_served_ends_the_program_with_the_reason() {
    let photo = data("cat.jpg");
    let labels = data("../../models/imagenet_classes.txt");
    for (arguments, hint) in [
        (vec!["serve", "--model", "/no/such.onnx"], "/no/such.onnx"),
        (vec!["serve", "--model", photo.to_str().unwrap()], "ONNX"),
        (vec!["serve", "--labels", labels.to_str().unwrap()], "106"),
        (vec!["serve", "--std", "0,1,1"], "deviation"),
        (vec!["serve", "--mean", "124,116,104"], "--scale 255"),
        (vec!["serve", "--channels", "gray"], "3 channels"),
        (vec!["serve", "--input-size", "256x224"], "--input-size"),
        (vec!["serve", "--resize", "100"], "224"),
    ] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert_error_contains(&output, hint);
    }
}

#[test]
fn a_port_in_use_is_reported_with_its_flag() {
    let server = Server::spawn(&[]);
    let output = run(&["serve", "--grpc", &server.grpc, "--http", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    assert_error_contains(&output, "--grpc");
}

#[test]
fn a_forced_engine_that_cannot_start_ends_the_server_with_advice() {
    let ports = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"];
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
            &["--engine", "onnxruntime", "--onnxruntime-lib", "/nowhere"],
            "libonnxruntime",
        ),
        (
            &["--engine", "cuda", "--onnxruntime-lib", "/nowhere"],
            "libonnxruntime",
        ),
        (
            &["--engine", "tensorrt", "--tensorrt-lib", "/nowhere"],
            tensorrt,
        ),
        (&["--engine", "embedded", "--precision", "bf16"], "fp32"),
    ] {
        let output = run(&[&["serve"], engine, &ports].concat());
        assert_eq!(output.status.code(), Some(1), "{engine:?}");
        assert_error_contains(&output, hint);
    }
}

#[cfg(not(feature = "tensorrt"))]
#[test]
fn a_program_without_tensorrt_says_how_to_build_it_in() {
    let output = run(&["build", "--sm", "86"]);
    assert_eq!(output.status.code(), Some(1));
    assert_error_contains(&output, "--features tensorrt");
}

#[test]
fn auto_falls_back_to_the_embedded_engine_and_logs_why() {
    let nowhere = [
        "--openvino-lib",
        "/nowhere",
        "--onnxruntime-lib",
        "/nowhere",
    ];
    let server = Server::start(&nowhere);
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
fn classify_prints_a_table_or_json_and_reports_failures() {
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
    assert_error_contains(&output, "/no/such.jpg");
    assert_error_contains(&output, "README.md");

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
    assert_error_contains(&output, "resnet18 serve");
}

#[test]
fn load_reports_what_the_server_counted() {
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
    assert!(
        served >= counted,
        "the server answered {served} requests, the client counted {counted}"
    );
}

/// Makes a 1280×720 video of a slowly moving photo, at `fps` frames per second.
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
fn answers_to_a_live_video_are_not_late() {
    if !ffmpeg() {
        return;
    }
    let _alone = exclusive();
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
        let middle = &lines[answered as usize / 2];
        assert_eq!(middle["classifications"][0]["label"], "cat", "{middle}");

        // The time of one frame and two inferences, and 50 ms for the other processes.
        let bound = 1e3 * (1.0 / f64::from(fps) + 2.0 * server.mean_inference()) + 50.0;
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
fn a_server_is_alive_before_it_is_ready_and_ends_on_sigint() {
    let mut server = Server::spawn(&["--engine", "embedded"]);
    assert_eq!(server.get("/healthz"), (200, "ok\n".into()));

    server.wait_until_ready();
    assert_eq!(server.get("/nowhere").0, 404);

    server.signal("INT");
    let status = server.wait(Duration::from_secs(10));
    assert!(
        status.is_some_and(|status| status.success()),
        "SIGINT ends the server well: {status:?}"
    );
}
