//! Log lines: what they contain, and what they never contain.

use std::fs;

use resnet18_server::proto::{
    ClassifyRequest, FramePolicy, Image, ListModelsRequest, image::Source,
};
use serde_json::Value;
use tonic::Code;

use super::calls::{TRACE, call, photo, pixels, stop, stream, tokens, traceparent};
use crate::common::{Server, data, request};

/// The lines of a JSON log that have this message.
fn lines(log: &str, message: &str) -> Vec<Value> {
    let all = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    all.filter(|line: &Value| line["message"] == message)
        .collect()
}

#[tokio::test]
async fn each_request_is_one_line_that_names_its_trace_and_neither_token_nor_image() {
    let tokens = tokens();
    let file = tokens.path().display().to_string();
    let mut server = Server::start(&["--tokens", &file, "--log", "trace", "--log-format", "json"]);
    let mut client = server.client().await;

    client
        .classify(call(photo(), &[("traceparent", &traceparent("00"))]))
        .await
        .unwrap();
    client.classify(call(request(pixels()), &[])).await.unwrap();
    let broken = Image {
        source: Some(Source::Encoded(
            b"P6 PIXELS 8 255 PIXELSPIXELS".to_vec().into(),
        )),
    };
    let refused = client
        .classify(call(request(broken.clone()), &[]))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        client
            .list_models(ListModelsRequest {})
            .await
            .unwrap_err()
            .code(),
        Code::Unauthenticated
    );
    let answers = stream(
        &mut client,
        FramePolicy::Every,
        vec![pixels(), broken, pixels()],
        &[],
    )
    .await;
    assert_eq!(answers.len(), 3);
    drop(client);
    stop(&mut server);

    let log = server.log();
    assert!(
        !log.contains("0123456789") && !log.contains("PIXELS"),
        "{log}"
    );
    let calls = lines(&log, "call");
    let found: Vec<_> = calls
        .iter()
        .map(|line| ["method", "code"].map(|name| line[name].as_str().unwrap()))
        .collect();
    let expected = [
        ["Classify", "OK"],
        ["Classify", "OK"],
        ["Classify", "INVALID_ARGUMENT"],
        ["ListModels", "UNAUTHENTICATED"],
        ["StreamClassify", "OK"],
    ];
    assert_eq!(found, expected);
    let first = &calls[0];
    assert_eq!(
        (&first["level"], &first["trace_id"]),
        (&"DEBUG".into(), &TRACE.into())
    );
    assert_eq!(
        (&first["model"], &first["caller"], &first["batch"]),
        (&"resnet18-demo".into(), &"shop".into(), &1.into())
    );
    assert_eq!(first["bytes"], fs::metadata(data("cat.jpg")).unwrap().len());
    assert!(calls.iter().all(|line| {
        let peer = line["peer"].as_str().unwrap();
        peer.starts_with("127.0.0.1:")
    }));
    assert_eq!(calls[2]["error"], "damaged or unsupported PNM");
    assert!(first.get("error").is_none(), "{first}");
    let stages =
        ["decode_ms", "queue_ms", "inference_ms"].map(|stage| first[stage].as_f64().unwrap());
    let total = first["total_ms"].as_f64().unwrap();
    assert!(
        stages[0] > 0.0 && stages[2] > 0.0 && stages.iter().sum::<f64>() <= total,
        "{first}"
    );
    assert_eq!(
        (&calls[4]["frames"], &calls[4]["bytes"]),
        (&3.into(), &(2 * 8 * 8 * 3 + 28).into())
    );
    assert_eq!(lines(&log, "frame").len(), 3);
    let mut traces: Vec<_> = calls
        .iter()
        .map(|line| line["trace_id"].as_str().unwrap())
        .collect();
    assert!(traces.iter().all(|trace| trace.len() == 32));
    traces.sort_unstable();
    traces.dedup();
    assert_eq!(traces.len(), 5, "each call has a trace of its own");
    let rejection = log
        .lines()
        .find(|line| line.contains("rejected: "))
        .unwrap();
    assert!(
        rejection.contains(calls[3]["trace_id"].as_str().unwrap()),
        "{rejection}"
    );
}

#[tokio::test]
async fn at_info_requests_are_not_logged_and_a_filter_for_a_library_leaves_the_server_as_it_is() {
    let mut server = Server::start(&["--log", "h2=warn"]);
    server.client().await.classify(photo()).await.unwrap();
    stop(&mut server);
    let log = server.log();
    assert!(
        log.contains("INFO serving gRPC") && !log.contains("trace_id") && !log.contains('\u{1b}'),
        "{log}"
    );
}

#[tokio::test]
async fn names_that_callers_choose_cannot_forge_lines_or_reach_the_terminal() {
    let mut server = Server::start(&["--engine", "embedded", "--log", "debug"]);
    let mut client = server.client().await;
    let unknown = ClassifyRequest {
        model: "x\nERROR forged \u{1b}[2J".into(),
        ..request(pixels())
    };
    let refused = client.classify(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let damaged = Image {
        source: Some(Source::Encoded(b"\xff\xd8\xff\xe0 no".to_vec().into())),
    };
    client.classify(request(damaged)).await.unwrap_err();
    drop(client);
    stop(&mut server);

    let log = server.log();
    assert!(!log.contains('\u{1b}'), "{log}");
    let forged = log.lines().find(|line| line.contains("forged")).unwrap();
    assert!(
        forged.contains(r"x\nERROR forged \u{1b}[2J") && forged.contains("code=\"NOT_FOUND\""),
        "{log}"
    );
    let damaged = log
        .lines()
        .find(|line| line.contains("code=\"INVALID_ARGUMENT\""))
        .unwrap();
    assert!(
        damaged.contains("error=\"truncated JPEG") && damaged.contains("peer=\"127.0.0.1:"),
        "{damaged}"
    );
}

#[cfg(not(feature = "otlp"))]
#[test]
fn a_program_that_cannot_send_traces_says_how_to_build_one_that_can() {
    let output = crate::common::resnet18()
        .args(["serve", "--otlp-endpoint", "http://127.0.0.1:4317"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("--otlp-endpoint") && told.contains("--features otlp"),
        "{told}"
    );
}
