//! Clients of others: Triton's over HTTP, requests, and schemathesis, which sends what the OpenAPI
//! document allows and what it does not.

use std::process::Command;

use crate::common::{Server, data, passed, python, script, shared, skipped, succeed};

/// The test's Python, if it has a module.
fn python_with(module: &str) -> Option<std::path::PathBuf> {
    let python = python()?;
    let import = Command::new(&python)
        .args(["-c", &format!("import {module}")])
        .output();
    if import.expect("Python runs").status.success() {
        return Some(python);
    }
    skipped(&format!(
        "there is no {module} in the tests' Python; `make test-env` sets it up"
    ));
    None
}

#[test]
fn tritonclient_and_requests_get_the_answers_of_grpc() {
    let Some(python) = python_with("tritonclient.http, requests") else {
        return;
    };
    let server = Server::start(&["--engine", "embedded"]);
    let photos = shared("golden").map_or_else(|| data("photos"), |golden| golden.join("images"));
    let mut script = script(&python, "test_rest.py");
    script
        .args([&server.grpc, &server.http.to_string()])
        .arg(photos);
    let out = succeed(&mut script, &[&server]);
    assert_eq!(passed(&out), 7, "{out}");
}

#[test]
fn schemathesis_finds_nothing_that_the_document_does_not_say() {
    let Some(python) = python_with("schemathesis") else {
        return;
    };
    let server = Server::start(&["--engine", "embedded"]);
    let url = format!("http://{}/openapi.json", server.http);
    let mut command = Command::new(python);
    // It keeps what it finds in the folder that it runs in.
    let folder = tempfile::tempdir().unwrap();
    command.current_dir(folder.path());
    command.args(["-m", "schemathesis.cli", "run", &url]);
    command.args(["--max-examples", "20", "--seed", "1", "--no-color"]);
    // It takes any bytes for an image, and wants them to be classified.
    command.args(["--exclude-checks", "positive_data_acceptance"]);
    // Where callers may not load models, the answer is 501, which it takes for a failure.
    command.args(["--exclude-path-regex", "^/v2/repository/models"]);
    let out = succeed(&mut command, &[&server]);
    assert!(out.contains("Tested: 18"), "{out}");
}
