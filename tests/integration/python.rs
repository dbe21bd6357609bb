//! The server through grpcio, with stubs generated from the proto, and through the ready-made client.

use std::{path::Path, process::Command};

use crate::common::{Server, passed, python, script, succeed};

#[test]
fn grpcio_classifies_streams_checks_health_and_reflects() {
    let Some(python) = python() else { return };
    // A burst would be accepted as a whole.
    let server = Server::start(&["--queue-capacity", "16"]);
    let mut script = script(&python, "test_client.py");
    let stdout = succeed(script.arg(&server.grpc), &[&server]);
    let refused = server.metric("classifier_rejected_total", &["queue_full"]);
    assert!(refused > 0.0, "no call was refused and had to be retried");
    assert_eq!(passed(&stdout), 8, "{stdout}");
}

#[test]
fn the_ready_made_client_classifies_streams_and_retries() {
    let Some(python) = python() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
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
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps"])
        .args(["--no-build-isolation", "--target"])
        .args([&installed, &copy]);
    succeed(&mut pip, &[]);

    let server = Server::start(&[]);
    let small = Server::start(&["--queue-capacity", "1", "--threads", "1"]);
    let mut script = script(&python, "test_installed_client.py");
    script
        .args([&server.grpc, &small.grpc])
        .env("PYTHONPATH", &installed);
    succeed(&mut script, &[&server, &small]);
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
