//! The Open Inference Protocol, through Triton's Python client.

use std::{
    io::{BufRead, BufReader, Lines},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use crate::common::{Server, data, passed, script, shared, succeed, tritonclient};

/// Starts a client that streams; returns it and its further output once it has three answers.
fn streaming(python: &Path, server: &Server) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut client = script(python, "triton_stream.py")
        .arg(&server.grpc)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    for answered in 1..=3 {
        assert_eq!(
            lines.next().unwrap().unwrap(),
            format!("answered {answered}")
        );
    }
    (client, lines)
}

/// Waits until a gauge of the server is 0.
fn wait_for_zero(server: &Server, gauge: &str) {
    let until = Instant::now() + Duration::from_secs(5);
    while server.metric(gauge, &[]) != 0.0 {
        assert!(
            Instant::now() < until,
            "{gauge} stays at {}",
            server.metric(gauge, &[])
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn tritonclient_gets_the_same_answers_as_classify() {
    let Some(python) = tritonclient() else { return };
    let server = Server::start(&[]);
    let photos = shared("golden").map_or_else(|| data("photos"), |golden| golden.join("images"));
    let mut script = script(&python, "test_triton.py");
    let stdout = succeed(script.arg(&server.grpc).arg(photos), &[&server]);
    assert_eq!(passed(&stdout), 19, "{stdout}");
    eprint!("{stdout}");

    // What Triton's image clients ask before they send a photo.
    if let Some(asks) = shared("cases/clients/triton_image_client.py") {
        for model in ["resnet18-demo_tensor", "resnet18-demo"] {
            let mut asks_of = Command::new(&python);
            asks_of.arg(&asks).args([&server.grpc, model]);
            succeed(&mut asks_of, &[&server]);
        }
    }

    let requests = |method: &str, model: &str| {
        let labels = [
            format!("method=\"{method}\""),
            format!("model=\"{model}\""),
            "code=\"OK\"".into(),
        ];
        server.metric(
            "classifier_requests_total",
            &labels.each_ref().map(String::as_str),
        )
    };
    assert!(requests("ModelInfer", "resnet18-demo") >= 30.0);
    assert_eq!(requests("ModelStreamInfer", "resnet18-demo"), 3.0);
    assert_eq!(requests("ServerLive", ""), 1.0);

    wait_for_zero(&server, "classifier_streams_active");
    wait_for_zero(&server, "classifier_queue_depth");
}

#[test]
fn a_drain_answers_accepted_frames_and_then_ends_streams() {
    let Some(python) = tritonclient() else { return };
    let mut server = Server::start(&[]);
    let (mut client, lines) = streaming(&python, &server);

    server.signal("TERM");
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(client.wait().unwrap().success(), "{rest:?}");
    let [.., ended, then] = &rest[..] else {
        panic!("{rest:?}")
    };
    assert!(
        ended.starts_with("ended StatusCode.UNAVAILABLE the server is shutting down"),
        "{ended}"
    );
    assert_eq!(then, "then StatusCode.UNAVAILABLE");

    let status = server
        .wait(Duration::from_secs(10))
        .expect("a drained server ends");
    assert!(status.success(), "{}", server.log());
}

#[test]
fn a_killed_client_leaves_no_stream_and_no_queued_work() {
    let Some(python) = tritonclient() else { return };
    let server = Server::start(&[]);
    let (mut client, _lines) = streaming(&python, &server);
    assert_eq!(server.metric("classifier_streams_active", &[]), 1.0);

    client.kill().unwrap();
    client.wait().unwrap();
    wait_for_zero(&server, "classifier_streams_active");
    wait_for_zero(&server, "classifier_queue_depth");
}

#[test]
fn callers_load_and_unload_the_models_of_a_folder() {
    let Some(python) = tritonclient() else { return };
    let folder = tempfile::tempdir().unwrap();
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/resnet18-demo.onnx");
    std::fs::copy(&bundled, folder.path().join("cats.onnx")).unwrap();
    let server = Server::start(&[
        "--engine",
        "embedded",
        "--model-control",
        "explicit",
        "--watch-interval",
        "50ms",
        "--model-dir",
        folder.path().to_str().unwrap(),
    ]);
    std::fs::copy(&bundled, folder.path().join("birds.onnx")).unwrap();
    server.signal("HUP");
    std::thread::sleep(Duration::from_millis(300));

    let mut control = script(&python, "triton_control.py");
    let stdout = succeed(control.arg(&server.grpc).arg(folder.path()), &[&server]);
    assert_eq!(stdout, "ok\n");
    let log = server.log();
    assert!(log.contains("the models' files are left alone"), "{log}");
    assert!(log.contains("unloaded by a caller"), "{log}");
    assert_eq!(server.metric("classifier_model_ready", &["cats"]), 1.0);
    let (_, metrics) = server.get("/metrics");
    assert!(
        !metrics.contains("birds"),
        "an unloaded model has no series"
    );
}

#[test]
fn it_requires_tokens_as_every_service_does() {
    let Some(python) = tritonclient() else { return };
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.txt");
    std::fs::write(&tokens, "shop 0123456789abcdef-shop\n").unwrap();
    let server = Server::start(&["--tokens", tokens.to_str().unwrap()]);

    let code = "import sys, tritonclient.grpc as triton
client = triton.InferenceServerClient(sys.argv[1])
print(client.get_server_metadata(headers={'authorization': 'Bearer 0123456789abcdef-shop'}).name)
try:
    client.get_server_metadata()
except triton.InferenceServerException as error:
    print(error.status())
client.close()";
    let output = Command::new(python)
        .args(["-c", code, &server.grpc])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "resnet18\nStatusCode.UNAUTHENTICATED\n",
        "{output:?}"
    );
}
