//! Callers of the HTTP port that take its connections, stop sending or reading, or lie in `Host`.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use super::{assert_recovers, assert_serves, common::Server, connect};

const CLASSIFY: &str = "/resnet18.v1.Classifier/Classify";

/// Sends this head and reads until the server closes the connection; returns the status.
fn status(http: SocketAddr, head: &str) -> u16 {
    let mut stream = connect(http);
    write!(stream, "{head}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.unwrap_or_else(|| panic!("no status: {answer:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_held_open_leave_probes_answered() {
    let server = Server::start(&["--engine", "embedded"]);
    let before = server.usage();
    let mut held: Vec<TcpStream> = (0..256).map(|_| connect(server.http)).collect();
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(server.get(path).0, 200, "{path}");
    }
    assert_eq!(server.get("/").0, 503);

    // Those that hold the places for probes are closed for the next one.
    held.extend((0..80).map(|_| connect(server.http)));
    for _ in 0..10 {
        assert_eq!(server.get("/readyz").0, 200);
    }
    let lines = server.log().matches("HTTP connections are open").count();
    assert_eq!(lines, 1, "{}", server.log());
    assert_serves(&server).await;
    drop(held);
    assert_recovers(&server, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_arriving_ends_its_call() {
    let server = Server::start(&["--engine", "embedded"]);
    let started = Instant::now();
    let head = "host: localhost\r\ncontent-type: application/grpc-web+proto\r\n\
                content-length: 100000";
    let mut stalled = connect(server.http);
    write!(stalled, "POST {CLASSIFY} HTTP/1.1\r\n{head}\r\n\r\n").unwrap();
    stalled.write_all(&[0; 1000]).unwrap();
    let mut answer = Vec::new();
    stalled
        .read_to_end(&mut answer)
        .expect("the connection is closed");
    assert!(
        started.elapsed() < Duration::from_secs(9),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(server.metric("classifier_calls_active", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_reads_nothing_is_disconnected() {
    let server = Server::start(&["--engine", "embedded"]);
    let started = Instant::now();
    let mut unread = connect(server.http);
    unread
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let requests = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(100);
    loop {
        match unread.write(requests.as_bytes()) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "the connection stays open"
        );
    }
    assert_serves(&server).await;
}

#[tokio::test]
async fn metrics_are_not_read_through_another_sites_name() {
    let server = Server::start(&["--engine", "embedded"]);
    let get = |path: &str, hosts: &[&str]| {
        let hosts: String = hosts
            .iter()
            .map(|host| format!("\r\nhost: {host}"))
            .collect();
        status(server.http, &format!("GET {path} HTTP/1.1{hosts}"))
    };
    let port = server.http.port();
    for own in [
        "localhost".to_owned(),
        format!("127.0.0.1:{port}"),
        format!("10.0.0.1:{port}"),
    ] {
        assert_eq!(get("/metrics", &[&own]), 200, "{own}");
    }
    assert_eq!(get("/metrics", &["evil.example"]), 421);
    assert_eq!(get("/healthz", &["evil.example"]), 200);
    for path in ["/metrics", "/healthz", "/", "/nothing"] {
        assert_eq!(get(path, &["localhost", "localhost"]), 400, "{path}");
        assert_eq!(get(path, &["local host"]), 400, "{path}");
    }

    let exposed = Server::start(&["--engine", "embedded", "--web", "on"]);
    let head = "GET /metrics HTTP/1.1\r\nhost: models.example.com";
    assert_eq!(status(exposed.http, head), 200);
}
