//! The server through grpcio, with stubs generated from the proto, and through the ready-made client.

use std::{path::Path, process::Command};

use crate::common::{Server, python};

#[test]
fn grpcio_classifies_streams_checks_health_and_reflects() {
    let Some(python) = python() else { return };
    // A burst would be accepted as a whole.
    let server = Server::start(&["--queue-capacity", "16"]);
    let output = Command::new(python)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/python/test_client.py"
        ))
        .arg(&server.grpc)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);

    assert!(
        output.status.success(),
        "{stdout}{stderr}\nserver:\n{}",
        server.log()
    );
    let refused = server.metric("classifier_rejected_total", &["queue_full"]);
    assert!(refused > 0.0, "no call was refused and had to be retried");
    assert_eq!(
        stdout.lines().filter(|line| line.ends_with(" ok")).count(),
        8,
        "{stdout}"
    );
}

#[test]
fn the_ready_made_client_classifies_streams_and_retries() {
    let Some(python) = python() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
    };
    // The build leaves files beside the sources.
    let copy = folder.path().join("clients/python");
    copy_folder(
        &root.join("clients/python/resnet18"),
        &copy.join("resnet18"),
    );
    for file in ["pyproject.toml", "setup.py", "README.md"] {
        std::fs::copy(root.join("clients/python").join(file), copy.join(file)).unwrap();
    }
    copy_folder(
        &root.join("proto/resnet18/v1"),
        &folder.path().join("proto/resnet18/v1"),
    );
    let installed = folder.path().join("installed");
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--no-deps"])
        .args(["--no-build-isolation", "--target"])
        .args([&installed, &copy]));

    let server = Server::start(&[]);
    let small = Server::start(&["--queue-capacity", "1", "--threads", "1"]);
    run(Command::new(&python)
        .arg(root.join("tests/python/test_installed_client.py"))
        .args([&server.grpc, &small.grpc])
        .env("PYTHONPATH", &installed));
    let rejected = small.metric("classifier_rejected_total", &["queue_full"]);
    assert!(rejected > 0.0, "no call was rejected and had to be retried");
}

/// Copies the files of a folder.
fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}
