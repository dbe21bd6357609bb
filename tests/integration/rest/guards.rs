//! Who may call the HTTP port: tokens, names, other sites.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use super::{classify, curl, json};
use crate::{
    common::{Server, data, resnet18},
    security::Authority,
    web::{read, send},
};

fn cat() -> Vec<u8> {
    std::fs::read(data("cat.jpg")).unwrap()
}

#[test]
fn rest_wants_the_token_of_grpc() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, "shop 0123456789abcdef-shop\n").unwrap();
    let server = Server::start(&["--engine", "embedded", "--tokens", tokens.to_str().unwrap()]);
    let with = |token| [("authorization", token)];
    for headers in [&[][..], &with("Bearer 0123456789abcdef-other")] {
        let answer = classify(&server, "", headers, &cat());
        assert_eq!(answer.status, 401);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert_eq!(json(&answer)["status"], "UNAUTHENTICATED");
    }
    assert_eq!(send(server.http, "GET /v1/models", &[], b"").status, 401);
    let known = with("Bearer 0123456789abcdef-shop");
    assert_eq!(classify(&server, "", &known, &cat()).status, 200);
    assert_eq!(send(server.http, "GET /v1/models", &known, b"").status, 200);
}

#[test]
fn rest_is_for_this_machine_unless_it_is_turned_on() {
    let server = Server::start(&["--engine", "embedded"]);
    for (headers, status) in [
        (&[("host", "127.0.0.1")][..], 200),
        (&[("host", "evil.example")], 421),
        (&[("origin", "http://evil.example")], 403),
        (&[("origin", "null")], 403),
        (&[("sec-fetch-site", "cross-site")], 403),
        (&[("origin", "http://localhost")], 200),
    ] {
        let answer = classify(&server, "", headers, &cat());
        assert_eq!(answer.status, status, "{headers:?}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
        if status != 200 {
            assert_eq!(json(&answer)["status"], "PERMISSION_DENIED");
        }
    }
    let on = Server::start(&["--engine", "embedded", "--rest"]);
    let named = [("host", "models.example.com")];
    assert_eq!(classify(&on, "", &named, &cat()).status, 200);
    // The page does not follow.
    assert_eq!(send(on.http, "GET /", &named, b"").status, 421);

    let off = Server::start(&["--engine", "embedded", "--rest", "off"]);
    for path in ["/v1/models", "/v2/health/live", "/v2", "/openapi.json"] {
        let answer = send(off.http, &format!("GET {path}"), &[], b"");
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.text().contains("--rest"), "{}", answer.text());
    }
}

#[test]
fn the_scripts_of_listed_sites_may_call() {
    let site = "https://app.example";
    let server = Server::start(&["--engine", "embedded", "--allow-origin", site]);
    let asks = |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type,x-grpc-web"),
        ];
        send(server.http, "OPTIONS /v1/classify", &headers, b"")
    };
    let allowed = asks(site);
    assert_eq!(allowed.status, 204);
    assert_eq!(allowed.header("access-control-allow-origin"), Some(site));
    let headers = allowed.header("access-control-allow-headers").unwrap();
    for name in [
        "content-type",
        "x-grpc-web",
        "authorization",
        "grpc-timeout",
    ] {
        assert!(headers.contains(name), "{headers}");
    }
    let refused = asks("https://evil.example");
    assert_eq!(refused.status, 403);
    assert_eq!(refused.header("access-control-allow-origin"), None);

    let of_site = [("origin", site), ("sec-fetch-site", "cross-site")];
    let answer = classify(&server, "", &of_site, &cat());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("access-control-allow-origin"), Some(site));
    assert_eq!(answer.header("vary"), Some("origin"));
    let exposed = answer.header("access-control-expose-headers").unwrap();
    assert!(exposed.contains("grpc-status") && exposed.contains("retry-after"));
    let of_other = [("origin", "https://app.example.evil.example")];
    assert_eq!(classify(&server, "", &of_other, &cat()).status, 403);

    // Errors of a listed site are readable too; metrics and the page stay the server's own.
    let bad = classify(&server, "", &of_site, b"");
    assert_eq!(bad.status, 400);
    assert_eq!(bad.header("access-control-allow-origin"), Some(site));
    for path in ["/metrics", "/"] {
        let answer = send(server.http, &format!("GET {path}"), &of_site, b"");
        assert_eq!(answer.header("access-control-allow-origin"), None, "{path}");
    }
}

#[test]
fn the_port_is_encrypted_with_the_certificate_of_grpc() {
    let authority = Authority::new();
    authority.issue_server();
    let [ca, certificate, key] =
        ["ca.pem", "server.pem", "server.key"].map(|name| authority.path(name));
    let flags = [
        "--engine",
        "embedded",
        "--tls-cert",
        &certificate,
        "--tls-key",
        &key,
    ];
    let server = Server::spawn(&[&flags[..], &["--http-tls"]].concat());
    let url = |path: &str| format!("https://localhost:{}{path}", server.http.port());
    let get = |path: &str, more: &[&str]| {
        let url = url(path);
        curl(&[&["--cacert", &ca, "--noproxy", "*", &url], more].concat())
    };
    let Some(health) = get("/healthz", &[]) else {
        return;
    };
    assert_eq!(health, "ok\n");
    let give_up = Instant::now() + Duration::from_secs(60);
    while get("/readyz", &[]).unwrap() != "ready\n" {
        assert!(Instant::now() < give_up, "{}", server.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let body = ["--data-binary", "@tests/data/cat.jpg"];
    let answer = get("/v1/classify?top_k=1", &body).unwrap();
    assert!(answer.contains("\"cat\""), "{answer}");
    assert!(
        get("/metrics", &[])
            .unwrap()
            .contains("classifier_build_info")
    );
    assert!(get("/", &[]).unwrap().contains("<html"));

    // Without TLS there is no answer, and a silent connection is closed.
    let mut plain = TcpStream::connect(server.http).unwrap();
    plain
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");

    // Probes never need a client's certificate.
    let mutual = ["--tls-client-ca", &ca, "--http-tls"];
    let server = Server::spawn(&[&flags[..], &mutual].concat());
    let url = format!("https://localhost:{}/healthz", server.http.port());
    assert_eq!(
        curl(&["--cacert", &ca, "--noproxy", "*", &url]).unwrap(),
        "ok\n"
    );

    let alone = resnet18().args(["serve", "--http-tls"]).output().unwrap();
    assert_eq!(alone.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&alone.stderr).contains("--tls-cert"));
}

#[test]
fn connections_stay_open_between_requests() {
    let server = Server::start(&["--engine", "embedded"]);
    let mut stream = TcpStream::connect(server.http).unwrap();
    let photo = cat();
    for last in [false, true] {
        let close = if last { "connection: close\r\n" } else { "" };
        let head = format!(
            "POST /v1/classify?top_k=1 HTTP/1.1\r\nhost: localhost\r\n{close}content-length: {}\r\n\r\n",
            photo.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&photo).unwrap();
        if !last {
            let mut buffer = [0; 4096];
            let length = stream.read(&mut buffer).unwrap();
            assert!(buffer[..length].starts_with(b"HTTP/1.1 200"));
        }
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let start = answer
        .windows(12)
        .rposition(|bytes| bytes == b"HTTP/1.1 200")
        .expect("a second answer");
    assert_eq!(read(&answer[start..]).status, 200);
}
