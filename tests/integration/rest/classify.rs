//! `/v1`: images in every form, and what goes wrong with them.

use std::time::Duration;

use resnet18_server::proto::{ClassifyRequest, ListModelsRequest};
use serde_json::{Value, json};

use super::{classes, classify, curl, grpc_web::base64, json};
use crate::{
    common::{Server, data, image, request, shared, tiny_model::tiny_model},
    web::{send, until, until_calls_are},
};

const CAT: &str = "tests/data/cat.jpg";
const CALLS: &str = "classifier_requests_total";

#[test]
fn curl_sends_an_image_in_every_form() {
    // One engine that rounds alike in every batch.
    let server = Server::start(&["--engine", "embedded"]);
    let url = format!("http://{}/v1/classify?top_k=3", server.http);
    let body = format!("@{CAT}");
    let Some(answer) = curl(&["--data-binary", &body, &url]) else {
        return;
    };
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let expected = classes(&answer);
    assert_eq!((expected.len(), &expected[0].0[..]), (3, "cat"), "{answer}");
    assert_eq!(answer["model"], "resnet18-demo");
    let total = answer["timing"]["total"].as_str().unwrap();
    let seconds: f64 = total.trim_end_matches('s').parse().unwrap();
    assert!(total.ends_with('s') && seconds > 0.0, "{answer}");

    let folder = tempfile::tempdir().unwrap();
    // Escaped as some writers of JSON do.
    let base64 = base64(&std::fs::read(data("cat.jpg")).unwrap()).replace('/', "\\/");
    let document = folder.path().join("request.json");
    let text = format!(r#"{{"image": {{"encoded": "{base64}"}}}}"#);
    std::fs::write(&document, text).unwrap();
    let document = format!("@{}", document.display());
    let compressed = folder.path().join("cat.jpg.gz");
    let gzip = format!("gzip -c {CAT} > {}", compressed.display());
    let status = std::process::Command::new("sh")
        .args(["-c", &gzip])
        .status();
    assert!(status.unwrap().success());
    let compressed = format!("@{}", compressed.display());
    let form = format!("image=@{CAT}");
    let plain = url.replace("?top_k=3", "");

    for arguments in [
        &[
            "-H",
            "content-type: image/jpeg",
            "--data-binary",
            &body,
            &url,
        ][..],
        // In chunks, whose sum is not announced.
        &[
            "-H",
            "transfer-encoding: chunked",
            "--data-binary",
            &body,
            &url,
        ],
        &["-F", &form, &url],
        &["-F", &form, "-F", "top_k=3", &plain],
        &["-H", "transfer-encoding: chunked", "-F", &form, &url],
        &[
            "-H",
            "content-type: application/json",
            "--data-binary",
            &document,
            &url,
        ],
        &[
            "-H",
            "content-encoding: gzip",
            "--data-binary",
            &compressed,
            &url,
        ],
    ] {
        let answer = curl(arguments).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(classes(&answer), expected, "{arguments:?}");
    }

    // Each call is counted once, under the method's name.
    let counted = server.metric(CALLS, &["method=\"Classify\"", "code=\"OK\""]);
    assert_eq!(counted, 8.0);
    assert_eq!(server.sum(CALLS, &["method=\"Classify\""]), 8.0);
}

#[tokio::test]
async fn golden_photos_have_the_same_answers_by_rest_and_by_grpc() {
    let Some(golden) = shared("golden") else {
        return;
    };
    let server = Server::start(&["--engine", "embedded"]);
    let mut client = server.client().await;
    let mut compared = 0;
    for entry in std::fs::read_dir(golden.join("images")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let by_rest = json(&classify(&server, "?top_k=1000", &[], &bytes));
        let by_grpc = client.classify(ClassifyRequest {
            top_k: 1000,
            ..request(image(&path))
        });
        let by_grpc = by_grpc.await.unwrap().into_inner();
        assert_eq!(by_rest["model_version"], by_grpc.model_version);
        let by_grpc: Vec<_> = by_grpc
            .classifications
            .into_iter()
            .map(|class| (class.label, class.probability.to_bits()))
            .collect();
        assert_eq!(classes(&by_rest), by_grpc, "{}", path.display());
        compared += 1;
    }
    assert!(compared > 10, "{compared}");
}

#[test]
fn regions_embeddings_and_lists_are_asked_for_by_query_or_by_form() {
    let server = Server::start(&["--engine", "embedded"]);
    let cat = std::fs::read(data("cat.jpg")).unwrap();
    let plain = json(&classify(&server, "?top_k=3", &[], &cat));
    assert_eq!(
        (&plain["embedding"], &plain["regions"]),
        (&Value::Null, &json!([]))
    );
    let region = "{%22width%22:1,%22height%22:1,%22unit%22:%22REGION_UNIT_FRACTIONS%22}";
    let query = format!("?top_k=3&want_embedding=true&regions={region}&regions={region}");
    let answer = json(&classify(&server, &query, &[], &cat));
    let regions = answer["regions"].as_array().unwrap();
    assert_eq!((regions.len(), &answer["classifications"]), (2, &json!([])));
    for region in regions {
        assert_eq!(classes(region), classes(&plain));
        assert_eq!(region["embedding"]["values"].as_array().unwrap().len(), 512);
    }

    let query = "?allow_labels=sunflower&allow_labels=0";
    let answer = json(&classify(&server, query, &[], &cat));
    assert_eq!(answer["classifications"].as_array().unwrap().len(), 2);
    let unknown = classify(&server, "?deny_labels=nothing", &[], &cat);
    assert_eq!(unknown.status, 400);
    assert!(unknown.text().contains("deny_labels"), "{}", unknown.text());

    let part = |head: &str, content: &[u8]| {
        let head = format!("--b\r\nContent-Disposition: form-data; {head}\r\n\r\n");
        [head.as_bytes(), content, b"\r\n"].concat()
    };
    let file = |content: &[u8]| part("name=\"images\"; filename=\"a\"", content);
    let form = [
        file(&cat),
        part("name=\"top_k\"", b"3"),
        file(b"no image"),
        file(&cat),
        b"--b--".to_vec(),
    ]
    .concat();
    let answer = send(
        server.http,
        "POST /v1/classify-batch",
        &[("content-type", "multipart/form-data; boundary=b")],
        &form,
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = json(&answer);
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    for good in [0, 2] {
        assert_eq!(classes(&results[good]["result"]), classes(&plain));
    }
    assert_eq!(results[1]["error"]["code"], 3);
    let counted = server.metric(CALLS, &["method=\"ClassifyBatch\"", "code=\"OK\""]);
    assert_eq!(counted, 1.0);
}

#[test]
fn the_open_inference_protocol_gives_regions_and_embeddings() {
    let server = Server::start(&["--engine", "embedded"]);
    let base64 = base64(&std::fs::read(data("cat.jpg")).unwrap());
    let infer = |regions: &str, parameters: &str, outputs: &str| {
        let images = format!(
            r#"{{"name": "images", "datatype": "BYTES", "shape": [1], "data": ["{base64}"]}}"#
        );
        let body = format!(
            r#"{{"inputs": [{images}{regions}], "parameters": {{{parameters}}},
                "outputs": [{outputs}]}}"#
        );
        let path = "POST /v2/models/resnet18-demo/infer";
        json(&send(server.http, path, &[], body.as_bytes()))
    };
    let regions = r#", {"name": "regions", "datatype": "FP32", "shape": [1, 2, 4],
        "data": [[[0, 0, 1, 1], [0.25, 0.25, 0.1, 0.5]]]}"#;
    let outputs = r#"{"name": "probabilities"},
        {"name": "embedding", "parameters": {"normalize": true}}"#;
    let whole = infer("", "", outputs);
    let parts = infer(regions, r#""region_unit": "fractions""#, outputs);
    let shapes = |answer: &Value| [0, 1].map(|at| answer["outputs"][at]["shape"].clone());
    assert_eq!(shapes(&whole), [json!([1, 106]), json!([1, 512])]);
    assert_eq!(shapes(&parts), [json!([1, 2, 106]), json!([1, 2, 512])]);
    for output in [0, 1] {
        let values = |answer: &Value| {
            answer["outputs"][output]["data"]
                .as_array()
                .unwrap()
                .clone()
        };
        let (whole, parts) = (values(&whole), values(&parts));
        assert_eq!(parts[..whole.len()], whole);
        assert_ne!(parts[whole.len()..], whole);
    }

    let outside = infer(
        regions,
        r#""region_unit": "pixels""#,
        r#"{"name": "logits"}"#,
    );
    let error = outside["error"].as_str().unwrap();
    assert!(
        error.contains("region 2 of 2") && error.contains("rounded"),
        "{error}"
    );

    let classes = r#"{"name": "probabilities", "parameters": {"classification": 3}}"#;
    let told = infer("", r#""allow_labels": "cat\nsunflower""#, classes);
    let told = told["outputs"][0]["data"].as_array().unwrap().clone();
    assert!(told[0].as_str().unwrap().ends_with(":cat"), "{told:?}");
    assert!(
        told[1].as_str().unwrap().ends_with(":sunflower"),
        "{told:?}"
    );
    assert_eq!(told[2], "");
    let useless = infer("", r#""min_probability": 0.5"#, r#"{"name": "logits"}"#);
    assert!(
        useless["error"]
            .as_str()
            .unwrap()
            .contains("`classification`")
    );

    // What tools are told has one output, and no regions.
    let metadata = json(&send(server.http, "GET /v2/models/resnet18-demo", &[], b""));
    assert_eq!(metadata["outputs"].as_array().unwrap().len(), 1);
    assert_eq!(metadata["inputs"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn models_are_listed_as_by_grpc() {
    let server = Server::start(&["--engine", "embedded"]);
    let listed = send(server.http, "GET /v1/models", &[], b"");
    assert_eq!(listed.header("content-type"), Some("application/json"));
    assert_eq!(listed.header("x-content-type-options"), Some("nosniff"));
    let listed = json(&listed);
    let mut client = server.client().await;
    let by_grpc = client.list_models(ListModelsRequest {}).await;
    let by_grpc = by_grpc.unwrap().into_inner();
    let model = &by_grpc.models[0];
    let first = &listed["models"][0];
    assert_eq!(first["name"], model.name);
    assert_eq!(first["version"], model.version);
    assert_eq!(first["labels"], json!(model.labels));
    assert_eq!(first["input_width"], 224);
    assert_eq!(first["state"], "MODEL_STATE_READY");
    assert_eq!(first["problem"], "");
    let counted = server.sum(CALLS, &["method=\"ListModels\"", "code=\"OK\""]);
    assert_eq!(counted, 2.0);
}

#[test]
fn errors_have_https_status_and_the_reason() {
    let server = Server::start(&["--engine", "embedded", "--max-message-mib", "1"]);
    let cat = std::fs::read(data("cat.jpg")).unwrap();
    let large = vec![0; 2 << 20];
    let kind = |kind| [("content-type", kind)];
    let form = "multipart/form-data; boundary=b";
    for (query, headers, body, status, code, text) in [
        (
            "",
            &[][..],
            &b"no image"[..],
            400,
            "INVALID_ARGUMENT",
            "JPEG",
        ),
        ("", &[], b"", 400, "INVALID_ARGUMENT", "empty"),
        ("?model=other", &[], &cat, 404, "NOT_FOUND", "resnet18-demo"),
        ("?top=1", &[], &cat, 400, "INVALID_ARGUMENT", "`top_k`"),
        (
            "?min_probability=2",
            &[],
            &cat,
            400,
            "INVALID_ARGUMENT",
            "0 to 1",
        ),
        ("", &[], &large, 413, "OUT_OF_RANGE", "--max-message-mib"),
        (
            "",
            &kind("text/html"),
            &cat,
            415,
            "INVALID_ARGUMENT",
            "image/*",
        ),
        ("", &kind(form), &cat, 400, "INVALID_ARGUMENT", "form"),
        (
            "",
            &kind("application/json"),
            b"{",
            400,
            "INVALID_ARGUMENT",
            "JSON",
        ),
        (
            "",
            &kind("application/json"),
            b"{}",
            400,
            "INVALID_ARGUMENT",
            "no image",
        ),
        (
            "",
            &[("content-encoding", "br")],
            &cat,
            415,
            "INVALID_ARGUMENT",
            "gzip",
        ),
        (
            "",
            &[("content-encoding", "gzip")],
            &cat,
            400,
            "INVALID_ARGUMENT",
            "decompressed",
        ),
        (
            "",
            &[("grpc-timeout", "1u")],
            &cat,
            504,
            "DEADLINE_EXCEEDED",
            "deadline",
        ),
        (
            "",
            &[("x-priority", "high")],
            &cat,
            400,
            "INVALID_ARGUMENT",
            "x-priority",
        ),
    ] {
        let answer = classify(&server, query, headers, body);
        let body = json(&answer);
        assert_eq!(answer.status, status, "{query} {headers:?}: {body}");
        assert_eq!(body["status"], code, "{body}");
        let message = body["message"].as_str().unwrap();
        assert!(message.contains(text), "{query} {headers:?}: {message}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    for (line, status) in [
        ("GET /v1/classify", 405),
        ("POST /v1/models", 405),
        ("GET /v1/nothing", 404),
        ("DELETE /v1/models", 405),
    ] {
        assert_eq!(send(server.http, line, &[], b"").status, status, "{line}");
    }
    let bad = "classifier_requests_total";
    assert_eq!(server.sum(bad, &["Classify", "OUT_OF_RANGE"]), 1.0);
    assert_eq!(server.sum(bad, &["Classify", "DEADLINE_EXCEEDED"]), 1.0);
    // A large body that is sent in spite of the answer doesn't lose it.
    let answer = curl(&[
        "--data-binary",
        "@Cargo.lock",
        "-H",
        "expect:",
        &format!("http://{}/v1/classify?model=other", server.http),
    ]);
    assert!(answer.is_none_or(|answer| answer.contains("NOT_FOUND")));
}

#[test]
fn a_full_server_says_when_to_retry_and_one_that_starts_or_drains_that_it_does() {
    let cat = std::fs::read(data("cat.jpg")).unwrap();
    let flags = [
        "--engine",
        "embedded",
        "--max-batch",
        "4",
        "--max-queue-delay",
        "3s",
    ];
    let server =
        Server::start(&[&flags[..], &["--max-calls", "2", "--max-per-client", "100"]].concat());
    let (http, photo) = (server.http, cat.clone());
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let photo = photo.clone();
            std::thread::spawn(move || send(http, "POST /v1/classify", &[], &photo).status)
        })
        .collect();
    until_calls_are(&server, 2.0);
    let refused = classify(&server, "", &[], &cat);
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(json(&refused)["retry_delay"], "1s");

    let mut server = server;
    server.signal("TERM");
    until("it drains", || {
        let answer = classify(&server, "", &[], &cat);
        answer.status == 503 && answer.header("retry-after") == Some("1")
    });
    for call in waiting {
        assert_eq!(call.join().unwrap(), 200);
    }
    assert!(server.wait(Duration::from_secs(10)).is_some());

    let starting = Server::spawn(&["--engine", "embedded"]);
    let answer = classify(&starting, "", &[], &cat);
    assert!([200, 503].contains(&answer.status), "{}", answer.text());
}

#[test]
fn the_model_is_chosen_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.onnx");
    std::fs::write(&path, tiny_model(1)).unwrap();
    let server = Server::start(&["--engine", "embedded", "--model", path.to_str().unwrap()]);
    let cat = std::fs::read(data("cat.jpg")).unwrap();
    let answer = json(&classify(&server, "?model=tiny&top_k=1", &[], &cat));
    assert_eq!(answer["model"], "tiny", "{answer}");
}
