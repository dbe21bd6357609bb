//! Runs `resnet18 classify` against a scripted server.

use std::{fs, net::SocketAddr, process::Output, sync::atomic::Ordering, time::Duration};

use serde_json::Value;
use tokio::process::Command;

use super::fake_server::{self, BROKEN, Script};

/// Runs the program and waits for its end.
pub async fn resnet18(server: SocketAddr, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_resnet18"));
    command
        .args(arguments)
        .env("RESNET18_SERVER", server.to_string());
    tokio::time::timeout(Duration::from_secs(60), command.output())
        .await
        .expect("it ends")
        .unwrap()
}

/// The JSON objects on standard output, one per line.
pub fn json_lines(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn answers_come_in_the_order_of_the_arguments() {
    let (server, _) = fake_server::start(Script::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    fs::write(path("good.jpg"), "an image").unwrap();
    fs::write(path("bad.jpg"), BROKEN).unwrap();
    let names = [
        path("good.jpg"),
        path("missing.jpg"),
        path("bad.jpg"),
        folder.path().to_string_lossy().into_owned(),
    ];
    let mut arguments = vec!["classify", "--json"];
    arguments.extend(names.iter().map(String::as_str));

    let output = resnet18(server, &arguments).await;

    let lines = json_lines(&output);
    assert_eq!(
        lines
            .iter()
            .map(|line| line["file"].as_str().unwrap())
            .collect::<Vec<_>>(),
        names
    );
    assert_eq!(lines[0]["model"], "fake");
    assert_eq!(lines[0]["classifications"][0]["label"], "golden retriever");
    assert!(lines[0]["timing_ms"]["round_trip"].as_f64().unwrap() > 0.0);
    assert_eq!(lines[1]["error"]["code"], "NOT_FOUND");
    assert_eq!(lines[2]["error"]["message"], "the image can't be decoded");
    assert!(
        lines[3]["error"]["message"]
            .as_str()
            .unwrap()
            .contains("directory")
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.is_empty());
}

#[tokio::test]
async fn a_full_server_is_asked_again_after_the_delay() {
    let script = Script {
        rejections: 3.into(),
        retry_delay: Duration::from_millis(60),
        ..Script::default()
    };
    let (server, script) = fake_server::start(script).await;
    let image = tempfile::NamedTempFile::new().unwrap();
    fs::write(image.path(), "an image").unwrap();

    let output = resnet18(server, &["classify", &image.path().to_string_lossy()]).await;

    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("golden retriever"));
    assert_eq!(script.requests.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn a_slow_server_meets_the_deadline() {
    let (server, _) = fake_server::start(Script {
        delay: Duration::from_secs(30),
        ..Script::default()
    })
    .await;
    let image = tempfile::NamedTempFile::new().unwrap();
    fs::write(image.path(), "an image").unwrap();

    let output = resnet18(
        server,
        &[
            "classify",
            "--json",
            "--timeout",
            "200ms",
            &image.path().to_string_lossy(),
        ],
    )
    .await;

    assert_eq!(json_lines(&output)[0]["error"]["code"], "DEADLINE_EXCEEDED");
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn failures_say_what_to_do() {
    let (server, _) = fake_server::start(Script::default()).await;
    let unused = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    for (server, arguments, code, advice) in [
        (unused, &["classify", "a.jpg"][..], 1, "resnet18 serve"),
        (
            server,
            &["classify", "a.jpg", "--model", "other"],
            1,
            "choose one of: fake",
        ),
        (server, &["classify", "-", "-"], 64, "only be read once"),
        (server, &["classify"], 64, "<IMAGE>"),
        (server, &["stream", "-", "--loop"], 64, "--loop"),
        (server, &["stream", "missing.mp4"], 1, "missing.mp4"),
        (server, &["load", "missing.jpg"], 1, "no such file"),
        (
            server,
            &["load", "a.jpg", "--retry", "--hammer"],
            64,
            "--hammer",
        ),
    ] {
        let output = resnet18(server, arguments).await;
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains(advice), "{arguments:?}: {message}");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(output.stdout.is_empty());
    }
}
