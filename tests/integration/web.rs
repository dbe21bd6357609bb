//! The HTTP port: its limits, the page at `/`, who may use it, and the page in a real browser.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::common::{
    Server, data, ffmpeg, image, passed, python, request, resnet18, script, skipped, succeed,
};
use prost::Message;
use resnet18_server::proto::{ClassifyRequest, ClassifyResponse, ListModelsRequest};
use tonic::Code;

const CLASSIFY: &str = "/resnet18.v1.Classifier/Classify";
const MAX_CONNECTIONS: usize = 256;

/// An answer over HTTP/1.1.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The result of a gRPC-Web call: the message, or the status, which is in the head or in the
    /// last frame.
    pub fn call(&self) -> Result<&[u8], (Code, String)> {
        assert_eq!(self.status, 200, "{}{}", self.head, self.text());
        let (mut message, mut trailers) = (None, self.head.clone());
        let mut rest = &self.body[..];
        while let [flags, a, b, c, d, more @ ..] = rest {
            let (frame, after) = more.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
            match flags & 0x80 {
                0 => message = Some(frame),
                _ => trailers = String::from_utf8(frame.to_vec()).unwrap(),
            }
            rest = after;
        }
        let value = |name: &str| {
            let lines = trailers.lines().filter_map(|line| line.split_once(':'));
            lines
                .filter(|(found, _)| *found == name)
                .map(|(_, value)| value.trim().to_owned())
                .next()
        };
        match value("grpc-status")
            .expect("every answer has a status")
            .parse::<i32>()
            .unwrap()
        {
            0 => Ok(message.expect("a call that went well has an answer")),
            code => Err((
                Code::from_i32(code),
                value("grpc-message").unwrap_or_default(),
            )),
        }
    }

    fn label(&self) -> Result<String, (Code, String)> {
        let answer = ClassifyResponse::decode(self.call()?).unwrap();
        Ok(answer.classifications[0].label.clone())
    }
}

/// Sends one request and reads the whole answer.
pub fn send(http: SocketAddr, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(http).unwrap();
    ask(
        &mut stream,
        line,
        &[headers, &[("connection", "close")]].concat(),
        body,
    );
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    read(&answer)
}

pub fn ask(stream: &mut TcpStream, line: &str, headers: &[(&str, &str)], body: &[u8]) {
    let mut head = format!("{line} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| *name == "host") {
        head += "host: localhost\r\n";
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(b"\r\n").unwrap();
    // The server may close the connection if it refuses the head.
    let _ = stream.write_all(body);
}

pub fn read(answer: &[u8]) -> Answer {
    let end = answer
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .expect("an answer has a head");
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut body = answer[end + 4..].to_vec();
    if head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        body = unchunked(&body);
    }
    Answer { status, head, body }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|bytes| bytes == b"\r\n").unwrap();
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return body;
        }
        body.extend(&rest[end + 2..end + 2 + length]);
        rest = &rest[end + 4 + length..];
    }
}

/// A message with gRPC-Web's prefix.
pub fn framed(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    [&[0][..], &(bytes.len() as u32).to_be_bytes(), &bytes].concat()
}

fn cat() -> Vec<u8> {
    framed(&request(image(data("cat.jpg"))))
}

const KIND: (&str, &str) = ("content-type", "application/grpc-web+proto");

/// Calls a method as the page does.
fn call(server: &Server, method: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    send(
        server.http,
        &format!("POST {method}"),
        &[&[KIND], headers].concat(),
        body,
    )
}

/// Reads one answer on a connection that stays open.
fn get_and_stay(stream: &mut TcpStream, path: &str) -> u16 {
    ask(stream, &format!("GET {path}"), &[], b"");
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "the connection is closed");
        answer.extend(&buffer[..length]);
        let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap();
        if answer.len() == end + 4 + length.parse::<usize>().unwrap() {
            return head.split(' ').nth(1).unwrap().parse().unwrap();
        }
    }
}

#[test]
fn a_slow_or_silent_sender_is_disconnected_and_delays_nobody() {
    let server = Server::spawn(&[]);
    let mut slow = TcpStream::connect(server.http).unwrap();
    let mut silent = TcpStream::connect(server.http).unwrap();
    let started = Instant::now();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n")
        .unwrap();
    let dribble = std::thread::spawn(move || {
        while started.elapsed() < Duration::from_secs(20) {
            if slow.write_all(b"a").is_err()
                || matches!(slow.set_nonblocking(true).and(slow.read(&mut [0])), Ok(0))
            {
                return started.elapsed();
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        panic!("a slow sender is not disconnected");
    });
    assert_eq!(server.get("/metrics").0, 200);
    silent
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    assert!(
        matches!(silent.read(&mut [0]), Ok(0)),
        "a silent connection is not closed"
    );
    assert!(dribble.join().unwrap() > Duration::from_secs(3));
}

#[test]
fn a_head_that_is_too_long_is_refused() {
    let server = Server::spawn(&[]);
    let long = "a".repeat(20_000);
    assert_eq!(
        send(server.http, "GET /metrics", &[("x-long", &long)], b"").status,
        431
    );
    assert_eq!(
        send(
            server.http,
            "GET /metrics",
            &[("x-long", &long[..10_000])],
            b""
        )
        .status,
        200
    );
}

#[test]
fn excess_connections_are_refused_while_open_ones_continue() {
    let server = Server::spawn(&[]);
    let mut scraper = TcpStream::connect(server.http).unwrap();
    assert_eq!(get_and_stay(&mut scraper, "/metrics"), 200);
    let others: Vec<_> = (1..MAX_CONNECTIONS)
        .map(|_| TcpStream::connect(server.http).unwrap())
        .collect();
    let refused = send(server.http, "GET /", &[], b"");
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (503, Some("1")),
        "{}",
        refused.head
    );
    assert!(
        refused.text().contains("too many connections"),
        "{}",
        refused.text()
    );
    assert_eq!(get_and_stay(&mut scraper, "/metrics"), 200);
    drop(others);
    let until = Instant::now() + Duration::from_secs(5);
    while send(server.http, "GET /", &[], b"").status != 200 {
        assert!(
            Instant::now() < until,
            "closed connections do not make room"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_page_has_a_strict_policy_and_is_cached_while_it_is_unchanged() {
    let server = Server::spawn(&[]);
    let page = send(server.http, "GET /", &[], b"");
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"),
        "{policy}"
    );
    assert!(
        !policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"),
        "{policy}"
    );
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    assert!(
        page.header("permissions-policy")
            .unwrap()
            .contains("camera=(self)")
    );
    assert_eq!(page.header("access-control-allow-origin"), None);

    let tag = page.header("etag").unwrap();
    let again = send(server.http, "GET /", &[("if-none-match", tag)], b"");
    assert_eq!((again.status, again.body.len()), (304, 0));
    assert_eq!(
        send(server.http, "GET /", &[("if-none-match", "\"other\"")], b"").status,
        200
    );

    // Every file that the page names exists, and none is on another host.
    let text = page.text();
    let names: Vec<_> = text
        .split('"')
        .filter(|part| part.starts_with("/web/") || part.contains("//"))
        .collect();
    assert!(names.len() >= 3, "{names:?}");
    for name in names {
        assert_eq!(
            send(server.http, &format!("GET {name}"), &[], b"").status,
            200,
            "{name}"
        );
    }
}

#[test]
fn a_page_that_is_off_says_how_to_turn_it_on() {
    let server = Server::start(&["--web", "off", "--rest", "off"]);
    let (status, text) = server.get("/");
    assert_eq!(status, 200);
    assert!(
        text.contains("/metrics") && text.contains("--web"),
        "{text}"
    );
    for path in ["/web/app.js", "/state"] {
        assert_eq!(server.get(path).0, 404, "{path}");
    }
    assert_eq!(call(&server, CLASSIFY, &[], &cat()).status, 404);
}

#[test]
fn the_page_must_not_bypass_client_certificates() {
    let file = data("README.md");
    let file = file.to_str().unwrap();
    let output = resnet18()
        .args([
            "serve",
            "--web",
            "--tls-cert",
            file,
            "--tls-key",
            file,
            "--tls-client-ca",
            file,
        ])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{error}");
    assert!(error.contains("--web and --tls-client-ca"), "{error}");
}

#[test]
fn the_page_calls_by_grpc_web_and_other_sites_do_not() {
    let server = Server::start(&["--max-message-mib", "1"]);
    let own = [
        ("sec-fetch-site", "same-origin"),
        ("origin", "http://localhost"),
    ];
    assert_eq!(
        call(&server, CLASSIFY, &own, &cat()).label(),
        Ok("cat".into())
    );
    let models = call(
        &server,
        "/resnet18.v1.Classifier/ListModels",
        &own,
        &framed(&ListModelsRequest {}),
    );
    assert!(models.call().is_ok());

    for (headers, status) in [
        (&[("origin", "http://evil.example")][..], 403),
        (&[("origin", "null")], 403),
        (&[("sec-fetch-site", "cross-site")], 403),
        (&[("host", "evil.example")], 421),
    ] {
        let answer = call(&server, CLASSIFY, headers, &cat());
        assert_eq!(answer.status, status, "{headers:?}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let send = |line: &str, kind| send(server.http, line, &[("content-type", kind)], &cat()).status;
    assert_eq!(send(&format!("POST {CLASSIFY}"), "text/plain"), 415);
    assert_eq!(send(&format!("GET {CLASSIFY}"), KIND.1), 405);
    assert_eq!(send(&format!("OPTIONS {CLASSIFY}"), KIND.1), 405);
    // The page needs no others.
    let page_only = Server::start(&["--rest", "off"]);
    assert_eq!(
        call(&page_only, CLASSIFY, &own, &cat()).label(),
        Ok("cat".into())
    );
    for other in [
        "/resnet18.v1.Classifier/StreamClassify",
        "/grpc.health.v1.Health/Check",
    ] {
        assert_eq!(call(&page_only, other, &own, &cat()).status, 404, "{other}");
    }

    let code = |headers: &[_], body: &[u8]| {
        call(&server, CLASSIFY, headers, body)
            .label()
            .unwrap_err()
            .0
    };
    assert_eq!(
        code(&[], &framed(&ClassifyRequest::default())),
        Code::InvalidArgument
    );
    let large = ClassifyRequest {
        model: "a".repeat(2 << 20),
        ..ClassifyRequest::default()
    };
    assert_eq!(code(&[], &framed(&large)), Code::OutOfRange);
    assert_eq!(
        code(&[("grpc-timeout", "1u")], &cat()),
        Code::DeadlineExceeded
    );
}

#[tokio::test]
async fn both_ports_ask_for_the_same_token_and_share_one_limit_of_calls() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, "page 0123456789abcdef-page\n").unwrap();
    let server = Server::start(&["--tokens", tokens.to_str().unwrap(), "--max-calls", "1"]);
    let with = |token: &'static str| [("authorization", token)];
    let (code, message) = call(&server, CLASSIFY, &[], &cat()).label().unwrap_err();
    assert_eq!(code, Code::Unauthenticated);
    assert!(message.contains("token"), "{message}");
    let wrong = call(
        &server,
        CLASSIFY,
        &with("Bearer 0123456789abcdef-other"),
        &cat(),
    )
    .label();
    assert_eq!(wrong.unwrap_err().0, Code::Unauthenticated);
    let known = with("Bearer 0123456789abcdef-page");
    assert_eq!(
        call(&server, CLASSIFY, &known, &cat()).label(),
        Ok("cat".into())
    );

    // Half a message occupies the only permitted call, for both ports.
    let mut half = TcpStream::connect(server.http).unwrap();
    let length = cat().len().to_string();
    let head = [
        KIND,
        known[0],
        ("host", "localhost"),
        ("content-length", &length),
    ];
    let head: String = head
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    write!(half, "POST {CLASSIFY} HTTP/1.1\r\n{head}\r\n").unwrap();
    half.write_all(&cat()[..1000]).unwrap();
    until_calls_are(&server, 1.0);
    let mut request = tonic::Request::new(request(image(data("cat.jpg"))));
    request
        .metadata_mut()
        .insert("authorization", known[0].1.parse().unwrap());
    let refused = server.client().await.classify(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let refused = call(&server, CLASSIFY, &known, &cat()).label().unwrap_err();
    assert_eq!(refused.0, Code::ResourceExhausted);
    drop(half);
    until_calls_are(&server, 0.0);
    assert_eq!(
        call(&server, CLASSIFY, &known, &cat()).label(),
        Ok("cat".into())
    );
}

#[test]
fn a_call_whose_image_arrives_too_slowly_is_answered_and_ends() {
    let server = Server::start(&["--max-calls", "1"]);
    let mut half = TcpStream::connect(server.http).unwrap();
    let head = "host: localhost\r\ncontent-type: application/grpc-web+proto\r\n\
                grpc-timeout: 500m\r\nconnection: close";
    write!(
        half,
        "POST {CLASSIFY} HTTP/1.1\r\n{head}\r\ncontent-length: 100000\r\n\r\n"
    )
    .unwrap();
    half.write_all(&cat()[..1000]).unwrap();
    let mut answer = Vec::new();
    half.read_to_end(&mut answer).unwrap();
    assert_eq!(read(&answer).label().unwrap_err().0, Code::DeadlineExceeded);
    assert_eq!(
        call(&server, CLASSIFY, &[], &cat()).label(),
        Ok("cat".into())
    );
}

#[test]
fn the_state_is_reported_and_calls_are_finished_during_shutdown() {
    // A batch of two waits for its second image.
    let flags = [
        "--engine",
        "embedded",
        "--max-batch",
        "2",
        "--max-queue-delay",
        "5s",
    ];
    let mut server = Server::start(&flags);
    let state = |server: &Server| {
        serde_json::from_str::<serde_json::Value>(&server.get("/state").1).unwrap()
    };
    assert_eq!(state(&server)["state"], "ready");
    assert_eq!(state(&server)["version"], env!("CARGO_PKG_VERSION"));
    let http = server.http;
    let asked = std::thread::spawn(move || {
        send(http, &format!("POST {CLASSIFY}"), &[KIND], &cat()).label()
    });
    until_calls_are(&server, 1.0);
    server.signal("TERM");
    until("it drains", || state(&server)["state"] == "draining");
    assert_eq!(
        call(&server, CLASSIFY, &[], &cat()).label().unwrap_err().0,
        Code::Unavailable
    );
    assert_eq!(asked.join().unwrap(), Ok("cat".into()));
    assert!(
        server
            .wait(Duration::from_secs(10))
            .is_some_and(|status| status.success())
    );
}

pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < give_up, "{what}: not within 10 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn until_calls_are(server: &Server, calls: f64) {
    until("calls in progress", || {
        server.metric("classifier_calls_active", &[]) == calls
    });
}

#[test]
fn the_page_works_in_a_browser() {
    let Some(python) = python() else { return };
    if ["/usr/bin/chromium", "/usr/bin/chromedriver"]
        .iter()
        .any(|path| !PathBuf::from(path).exists())
    {
        skipped("chromium and chromium-driver are not installed");
        return;
    }
    if !ffmpeg() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    const TOKEN: &str = "0123456789abcdef-page";
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, format!("page {TOKEN}\n")).unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/resnet18-demo.onnx");
    let (one, two) = (format!("one={model}"), format!("two={model}"));
    let server = Server::start(&[]);
    let flags = [
        "--tokens",
        tokens.to_str().unwrap(),
        "--max-calls",
        "1",
        // Slow enough that the calls of the camera overlap.
        "--engine",
        "embedded",
        "--model",
        &one,
        "--model",
        &two,
    ];
    let guarded = Server::start(&flags);
    let mut script = script(&python, "test_page.py");
    script
        .args([format!("http://{}", server.http), server.pid().to_string()])
        .args([&format!("http://{}", guarded.http), TOKEN])
        .arg(folder.path())
        .env("SE_OFFLINE", "true");
    let stdout = succeed(&mut script, &[&server, &guarded]);
    assert_eq!(passed(&stdout), 15, "{stdout}");
}
