//! Runs `resnet18 classify` against a scripted server.

use std::{fs, net::SocketAddr, process::Output, sync::atomic::Ordering, time::Duration};

use serde_json::Value;
use tokio::process::Command;

use super::fake_server::{self, BROKEN, Script};
use crate::common::text;

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
        "https://host/a.jpg".to_owned(),
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
            .contains("download it first, with `curl -O https://host/a.jpg`")
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.is_empty());
}

#[tokio::test]
async fn a_folder_is_a_line_for_each_photo_and_a_summary() {
    let (server, _) = fake_server::start(Script::default()).await;
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("deep")).unwrap();
    for (name, content) in [
        ("b.jpg", &b"an image"[..]),
        ("a.png", BROKEN),
        ("deep/c.webp", b"an image"),
        ("notes.xml", b"<annotation/>"),
        ("Thumbs.db", b"thumbs"),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let path = folder.path().to_string_lossy();

    let output = resnet18(server, &["classify", &path]).await;
    assert_eq!(output.status.code(), Some(1));
    let lines = text(&output.stdout);
    let lines: Vec<&str> = lines.lines().collect();
    assert!(
        lines[0].ends_with("b.jpg  golden retriever  75.0 %"),
        "{lines:?}"
    );
    assert!(
        lines[2].starts_with("3 images, 1 failed, ") && lines[2].ends_with(" images/s"),
        "{lines:?}"
    );
    assert_eq!(lines.len(), 3);
    let errors = text(&output.stderr);
    assert!(errors.contains("ignored 2 files"), "{errors}");
    assert!(
        errors.contains("a.png: the image can't be decoded"),
        "{errors}"
    );

    let output = resnet18(server, &["classify", "--json", &path]).await;
    let lines = json_lines(&output);
    assert_eq!(lines.len(), 3);
    assert!(lines[2]["file"].as_str().unwrap().ends_with("c.webp"));

    let output = resnet18(
        server,
        &[
            "load",
            &path,
            "--duration",
            "300ms",
            "--warmup",
            "0",
            "--json",
        ],
    )
    .await;
    let report = &json_lines(&output)[0]["statuses"];
    assert!(report["OK"].as_u64() > Some(0), "{report}");
    assert!(report["INVALID_ARGUMENT"].as_u64() > Some(0), "{report}");
}

#[cfg(unix)]
#[tokio::test]
async fn names_can_neither_break_the_json_nor_command_the_terminal() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    let (server, _) = fake_server::start(Script::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let evil = folder.path().join("a\n\u{1b}[2Jerror: b.jpg");
    let latin1 = folder.path().join(OsStr::from_bytes(b"gr\xfcn.jpg"));
    for path in [&evil, &latin1] {
        fs::write(path, "an image").unwrap();
    }
    let run = |json: bool| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_resnet18"));
        command
            .arg("classify")
            .args([&evil, &latin1])
            .env("RESNET18_SERVER", server.to_string())
            .env("RESNET18_CLASSIFY_JSON", json.to_string());
        async move { command.output().await.unwrap() }
    };

    let table = text(&run(false).await.stdout);
    assert!(table.contains(r"a\n\u{1b}[2Jerror: b.jpg"), "{table}");
    assert!(!table.contains('\u{1b}'), "{table:?}");

    let lines = json_lines(&run(true).await);
    assert_eq!(lines[0]["file"], evil.to_str().unwrap());
    assert!(lines[0].get("file_percent_encoded").is_none());
    let encoded = lines[1]["file_percent_encoded"].as_str().unwrap();
    assert!(encoded.ends_with("/gr%FCn.jpg"), "{encoded}");
}

#[tokio::test]
async fn an_image_that_is_too_large_is_explained_with_the_servers_flag() {
    let (server, _) = fake_server::start(Script::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("large.jpg");
    // The scripted server has tonic's limit, 4 MiB.
    fs::write(&image, vec![7; 5 << 20]).unwrap();
    let image = image.to_string_lossy();

    for arguments in [
        &["classify", &*image][..],
        &["load", &image, "--duration", "200ms", "--warmup", "0"],
        &["stream", &image],
    ] {
        let output = resnet18(server, arguments).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = text(&output.stdout) + &text(&output.stderr);
        for part in ["5.0 MiB", "4 MiB", "--max-message-mib 6"] {
            assert!(said.contains(part), "{arguments:?}: {said}");
        }
    }
}

#[tokio::test]
async fn the_servers_models_are_listed() {
    let (server, _) = fake_server::start(Script::default()).await;
    let output = resnet18(server, &["models"]).await;
    assert_eq!(output.status.code(), Some(0));
    let table = text(&output.stdout);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("Model  State") && lines[1].starts_with("fake   ready"),
        "{table}"
    );

    let output = resnet18(server, &["models", "--json"]).await;
    let model = &json_lines(&output)[0]["models"][0];
    assert_eq!(
        (&model["name"], &model["labels"]),
        (&"fake".into(), &0.into())
    );
    assert!(model["problem"].is_null());
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
