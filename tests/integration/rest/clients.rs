//! Clients of others: Triton's over HTTP, requests, and schemathesis, which sends what the OpenAPI
//! document allows and what it does not.

use std::{path::Path, process::Command};

use crate::common::{Server, data, python, shared, skipped};

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

fn run(command: &mut Command, server: &Server) -> String {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "{out}{err}\nserver:\n{}",
        server.log()
    );
    out
}

#[test]
fn tritonclient_and_requests_get_the_answers_of_grpc() {
    let Some(python) = python_with("tritonclient.http, requests") else {
        return;
    };
    let server = Server::start(&["--engine", "embedded"]);
    let photos = shared("golden").map_or_else(|| data("photos"), |golden| golden.join("images"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/test_rest.py");
    let mut command = Command::new(python);
    command
        .arg(script)
        .args([&server.grpc, &server.http.to_string()])
        .arg(photos);
    let out = run(&mut command, &server);
    let passed = out.lines().filter(|line| line.ends_with(" ok")).count();
    assert_eq!(passed, 7, "{out}");
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
    let out = run(&mut command, &server);
    assert!(out.contains("Tested: 18"), "{out}");
}
