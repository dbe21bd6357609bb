//! Callers of REST that send too slowly, too much, or what takes long or much memory to read.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use super::{assert_recovers, assert_serves, common::Server, connect};

const FLAGS: [&str; 2] = ["--engine", "embedded"];

/// A request's head, which asks for the connection to be closed afterwards.
fn head(path: &str, headers: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n\r\n")
}

/// Reads until the server closes the connection: the status, and all of the answer.
fn answer(mut stream: TcpStream) -> (u16, String) {
    let mut answer = Vec::new();
    // A reset may follow the answer where the body was not read.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code.unwrap_or_else(|| panic!("no status: {answer:?}"));
    (code, answer)
}

/// Sends a whole request.
fn post(server: &Server, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
    let mut stream = connect(server.http);
    let headers = format!("{headers}content-length: {}", body.len());
    stream.write_all(head(path, &headers).as_bytes()).unwrap();
    // The server may answer before it has read everything.
    let _ = stream.write_all(body);
    answer(stream)
}

fn calls(server: &Server) -> f64 {
    server.metric("classifier_calls_active", &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_stop_or_never_end_are_given_up() {
    let server = Server::start(&[&FLAGS[..], &["--receive-timeout", "3s"]].concat());
    let before = server.usage();
    let stalls = [
        ("content-length: 100000", "image"),
        ("transfer-encoding: chunked", "5\r\nimage\r\n"),
        (
            "content-type: application/json\r\ncontent-length: 100000",
            "{",
        ),
    ];
    let started = Instant::now();
    let mut stalled = Vec::new();
    for path in ["/v1/classify", "/v2/models/resnet18-demo/infer"] {
        for (headers, part) in stalls {
            let mut stream = connect(server.http);
            stream.write_all(head(path, headers).as_bytes()).unwrap();
            stream.write_all(part.as_bytes()).unwrap();
            stalled.push((path, headers, stream));
        }
    }
    for (path, headers, stream) in stalled {
        let (code, text) = answer(stream);
        assert_eq!(code, 504, "{path} {headers}: {text}");
        assert!(started.elapsed() < Duration::from_secs(8), "{headers}");
    }

    // One byte now and then keeps a connection open, but not a call.
    let started = Instant::now();
    let mut drip = connect(server.http);
    let headers = "transfer-encoding: chunked";
    drip.write_all(head("/v1/classify", headers).as_bytes())
        .unwrap();
    while drip.write_all(b"1\r\na\r\n").is_ok() && calls(&server) > 0.0 {
        assert!(
            started.elapsed() < Duration::from_secs(8),
            "the call goes on"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(answer(drip).0, 504);

    // Callers that go away.
    for headers in ["content-length: 100000", "transfer-encoding: chunked"] {
        let mut gone = connect(server.http);
        gone.write_all(head("/v1/classify", headers).as_bytes())
            .unwrap();
        gone.write_all(b"5\r\nimage").unwrap();
    }
    assert_recovers(&server, before).await;
    assert_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_without_end_take_no_more_than_a_message() {
    let server = Server::start(&[&FLAGS[..], &["--max-message-mib", "2"]].concat());
    assert_serves(&server).await;
    let before = server.usage();
    for (path, kind) in [
        ("/v1/classify", "image/jpeg"),
        ("/v1/classify", "application/json"),
        ("/v1/classify", "multipart/form-data; boundary=b"),
        ("/v2/models/resnet18-demo/infer", "application/json"),
    ] {
        let mut stream = connect(server.http);
        let headers = format!("content-type: {kind}\r\ntransfer-encoding: chunked");
        stream.write_all(head(path, &headers).as_bytes()).unwrap();
        let chunk = [&b"10000\r\n"[..], &[b' '; 0x10000], b"\r\n"].concat();
        let sent = (0..4096)
            .take_while(|_| stream.write_all(&chunk).is_ok())
            .count();
        assert!(sent < 4096, "256 MiB were taken");
        let (code, text) = answer(stream);
        assert_eq!(code, 413, "{path} {kind}: {text}");
    }
    let used = server.usage().peak_mib - before.peak_mib.min(server.usage().peak_mib);
    assert!(used < 40, "{used} MiB");
    assert_recovers(&server, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_hard_to_read_are_refused_quickly() {
    let server = Server::start(&[&FLAGS[..], &["--max-memory", "128"]].concat());
    assert_serves(&server).await;
    let before = server.usage();
    let mib = 15 << 20;
    let deep = "[".repeat(mib);
    let json = "content-type: application/json\r\n";
    let form = "content-type: multipart/form-data; boundary=b\r\n";
    let tensor = |data: &str| {
        format!(
            r#"{{"inputs": [{{"name": "images", "datatype": "FP32", "shape": [1], "data": {data}}}]}}"#
        )
    };
    let infer = "/v2/models/resnet18-demo_tensor/infer";
    let part = "\r\n--b\r\nContent-Disposition: form-data; name=a\r\n\r\n";
    for (path, headers, body) in [
        ("/v1/classify", json, format!(r#"{{"image": {deep}"#)),
        (
            "/v1/classify",
            json,
            format!(r#"{{"model": "{}"}}"#, "\\u0041".repeat(mib / 6)),
        ),
        (
            "/v1/classify",
            json,
            format!(r#"{{"image": {{"encoded": "{}"}}}}"#, "A".repeat(mib)),
        ),
        (
            "/v1/classify",
            json,
            format!("{{{}}}", "\"a\":1,".repeat(mib / 6)),
        ),
        ("/v1/classify", form, part.repeat(mib / part.len())),
        ("/v1/classify", form, "\r\n--".repeat(mib / 4)),
        ("/v1/classify", form, "a".repeat(mib)),
        (infer, json, tensor(&deep)),
        (infer, json, tensor(&format!("[{}0]", "0,".repeat(mib / 2)))),
        (
            infer,
            json,
            format!(r#"{{"inputs": [{}"#, "{},".repeat(mib / 3)),
        ),
        (
            infer,
            json,
            format!(r#"{{"parameters": {{{}"#, "\"a\":1,".repeat(mib / 6)),
        ),
        (
            infer,
            "inference-header-content-length: 99999999\r\n",
            "{}".into(),
        ),
        (
            infer,
            "inference-header-content-length: -1\r\n",
            "{}".into(),
        ),
    ] {
        let started = Instant::now();
        let (code, text) = post(&server, path, headers, body.as_bytes());
        let what = format!("{path} {body:.60}");
        assert!([400, 404, 413, 429].contains(&code), "{what}: {text}");
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "{what}: {:?}",
            started.elapsed()
        );
        let message = text.split("\r\n\r\n").nth(1).unwrap();
        assert!(
            message.len() < 2500 && !message.contains("panic"),
            "{what}: {message}"
        );
    }
    // An unoptimized program takes its time, and its allocator keeps some of the memory.
    let grown = server.usage().peak_mib.saturating_sub(before.peak_mib);
    assert!(grown < 150, "{grown} MiB");
    assert_eq!(server.metric("classifier_message_memory_bytes", &[]), 0.0);
    assert_recovers(&server, before).await;
    assert_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_lie_about_their_length_are_refused() {
    let server = Server::start(&FLAGS);
    let cat = std::fs::read(super::data("cat.jpg")).unwrap();
    for headers in [
        "content-length: 10\r\ncontent-length: 20",
        "content-length: ten",
        "content-length: -1",
        "content-length: 99999999999999999999999",
    ] {
        let mut stream = connect(server.http);
        stream
            .write_all(head("/v1/classify", headers).as_bytes())
            .unwrap();
        assert_eq!(answer(stream).0, 400, "{headers}");
    }
    let mut long = connect(server.http);
    let headers = "content-length: 9999999999999";
    long.write_all(head("/v1/classify", headers).as_bytes())
        .unwrap();
    assert_eq!(answer(long).0, 413);

    // What follows a body is not part of it.
    let mut more = connect(server.http);
    let headers = format!("content-length: {}", cat.len());
    more.write_all(head("/v1/classify", &headers).as_bytes())
        .unwrap();
    more.write_all(&cat).unwrap();
    let _ = more.write_all(b"more");
    let (code, text) = answer(more);
    assert!(code == 200 && text.contains("\"cat\""), "{text}");
    assert_serves(&server).await;
}
