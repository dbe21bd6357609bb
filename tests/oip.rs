//! The Open Inference Protocol, through Triton's own Python client.

mod common;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::{Server, data, python, shared, skipped};

/// Python with tritonclient, or `None` with a visible word.
fn tritonclient() -> Option<PathBuf> {
    let python = python()?;
    let import = Command::new(&python).args(["-c", "import tritonclient.grpc"]).output().unwrap();
    if !import.status.success() {
        skipped("there is no tritonclient in the Python of the tests; `make test-env` sets it up");
        return None;
    }
    Some(python)
}

/// Runs the script's tests with the photos of a folder.
fn run(python: &Path, server: &Server, photos: &Path) {
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/test_triton.py"))
        .arg(&server.grpc)
        .arg(photos)
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}\nserver:\n{}", server.log());
    assert_eq!(stdout.lines().filter(|line| line.ends_with(" ok")).count(), 15, "{stdout}");
    eprint!("{stdout}");
}

#[test]
fn tritonclient_gets_classifys_answers() {
    let Some(python) = tritonclient() else { return };
    let server = Server::start(&[]);
    let photos = shared("golden").map_or_else(|| data("photos"), |golden| golden.join("images"));
    run(&python, &server, &photos);
    for (method, least) in
        [("ModelInfer", 30.0), ("ModelStreamInfer", 3.0), ("ServerLive", 1.0), ("ModelStatistics", 4.0)]
    {
        let requests = server.metric(
            "classifier_requests_total",
            &[&format!("method=\"{method}\""), "code=\"OK\"", "model=\"resnet18-demo\""],
        );
        let without_a_model = ["ServerLive", "ModelStatistics"].contains(&method);
        assert!(requests >= least || without_a_model, "{requests} requests of {method}");
    }
    // Everything that was begun has ended.
    std::thread::sleep(Duration::from_millis(200));
    for gauge in ["classifier_streams_active", "classifier_queue_depth"] {
        assert_eq!(server.metric(gauge, &[]), 0.0, "{gauge}");
    }
}
