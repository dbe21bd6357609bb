//! REST on the HTTP port: the same answers as gRPC's, its errors, and who may call.

mod classify;
mod clients;
mod grpc_web;
mod guards;

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::{
    common::{Server, skipped},
    web::{Answer, send},
};

/// The JSON of an answer.
fn json(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body)
        .unwrap_or_else(|error| panic!("{error}: {}{}", answer.head, answer.text()))
}

/// Posts an image as the body.
fn classify(server: &Server, query: &str, headers: &[(&str, &str)], image: &[u8]) -> Answer {
    send(
        server.http,
        &format!("POST /v1/classify{query}"),
        headers,
        image,
    )
}

/// Labels and probabilities, to the last bit.
fn classes(answer: &Value) -> Vec<(String, u32)> {
    let classes = answer["classifications"].as_array();
    let classes = classes.unwrap_or_else(|| panic!("no classes: {answer}"));
    let class = |class: &Value| {
        let probability = class["probability"].as_f64().unwrap() as f32;
        let label = class["label"].as_str().unwrap();
        (label.to_owned(), probability.to_bits())
    };
    classes.iter().map(class).collect()
}

/// What curl prints; `None`, with a visible message, where it is not installed.
fn curl(arguments: &[&str]) -> Option<String> {
    let output = Command::new("curl")
        .args(["-sS"])
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .output();
    let Ok(output) = output else {
        skipped("curl is not installed");
        return None;
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(String::from_utf8(output.stdout).unwrap())
}
