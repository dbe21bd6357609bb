//! `resnet18 top` against a real server under load: as JSON, as a table, and live on a
//! pseudo-terminal.

use std::{
    io::{Read, Write},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use crate::common::{Server, data, resnet18, skipped};
use serde_json::Value;

/// `resnet18 load` in the background; ended when dropped.
struct Load(Child);

impl Load {
    fn start(server: &Server) -> Self {
        let command = resnet18()
            .args([
                "load",
                "--server",
                &server.url(),
                "--concurrency",
                "4",
                "--duration",
                "5m",
                "--warmup",
                "0",
            ])
            .arg(data("cat.jpg"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let load = Self(command.unwrap());
        let until = Instant::now() + Duration::from_secs(20);
        while server.metric(
            "classifier_requests_total",
            &["code=\"OK\"", "method=\"Classify\""],
        ) == 0.0
        {
            assert!(Instant::now() < until, "the load reaches the server");
            std::thread::sleep(Duration::from_millis(50));
        }
        load
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn top(arguments: &[&str]) -> Output {
    resnet18().arg("top").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A port that nobody listens on.
fn closed_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn a_server_under_load_is_measured_in_json_and_as_a_table() {
    let server = Server::start(&[]);
    let load = Load::start(&server);
    let address = server.http.to_string();
    let counted = || {
        server.metric(
            "classifier_requests_total",
            &["code=\"OK\"", "method=\"Classify\""],
        )
    };

    let (before, start) = (counted(), Instant::now());
    let output = top(&["--json", "--interval", "2s", &address]);
    let (grown, took) = (counted() - before, start.elapsed().as_secs_f64());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let report = &report["servers"][0];
    assert_eq!(
        (&report["url"], &report["error"]),
        (&format!("http://{address}").into(), &Value::Null)
    );
    let snapshot = &report["snapshot"];
    assert_eq!(
        (&snapshot["state"], &snapshot["version"]),
        (&"ready".into(), &env!("CARGO_PKG_VERSION").into())
    );
    assert!(
        snapshot["interval_s"].as_f64().unwrap() >= 1.9,
        "{snapshot}"
    );
    assert!(
        snapshot["resident_bytes"].as_f64().unwrap() > 1e7,
        "{snapshot}"
    );
    let model = &snapshot["models"][0];
    assert_eq!(model["name"], "resnet18-demo");
    // `top` measured a part of the period over which `grown` was counted.
    let requests = model["requests_per_second"]["OK"].as_f64().unwrap();
    assert!(
        requests > 0.0 && requests * snapshot["interval_s"].as_f64().unwrap() <= grown,
        "{requests} {grown} {took}"
    );
    assert!(
        model["images_per_second"].as_f64().unwrap() > 0.0,
        "{model}"
    );
    assert!(
        ["openvino", "embedded", "tensorrt"]
            .map(Value::from)
            .contains(&model["engine"]["engine"])
    );
    for stage in ["request", "decode", "queue", "inference"] {
        let latency = |name| {
            model["latency_ms"][stage][name]
                .as_f64()
                .unwrap_or_else(|| panic!("{stage}: {model}"))
        };
        let ascending = [latency("p50"), latency("p95"), latency("p99")];
        assert!(
            ascending.is_sorted() && latency("mean") > 0.0,
            "{stage}: {model}"
        );
    }
    let mean = |stage| model["latency_ms"][stage]["mean"].as_f64().unwrap();
    assert!(mean("inference") < mean("request"));

    let output = top(&["--once", "--interval", "500ms", &address]);
    let table = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!table.contains('\x1b'), "no colours in a pipe: {table}");
    let row = table
        .lines()
        .find(|line| line.starts_with("resnet18-demo"))
        .unwrap_or_else(|| panic!("{table}"));
    assert!(
        row.contains(" ms ") && table.contains("Images/s") && table.contains("ready"),
        "{table}"
    );
    drop(load);
}

#[test]
fn a_server_that_cannot_be_read_is_named_beside_one_that_can() {
    let server = Server::start(&[]);
    let (address, closed) = (server.http.to_string(), closed_port());
    let output = top(&["--interval", "100ms", &address, &closed]);
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        table.contains("ready")
            && table.contains(&format!("http://{closed}  nothing listens there")),
        "{table}"
    );

    let output = top(&["--json", "--interval", "100ms", &closed, &server.grpc]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["servers"][0]["error"], "nothing listens there");
    let grpc = report["servers"][1]["error"].as_str().unwrap();
    assert!(
        grpc.contains("--http"),
        "the gRPC port is no HTTP/1.1: {grpc}"
    );
}

/// `resnet18 top` on a pseudo-terminal of 100 × 30, from the program `script`.
struct Terminal {
    child: Child,
    screen: String,
    output: mpsc::Receiver<Vec<u8>>,
}

impl Terminal {
    fn top(address: &str) -> Option<Self> {
        let shell = format!(
            "stty rows 30 cols 100; exec {} top --interval 200ms {address}",
            env!("CARGO_BIN_EXE_resnet18")
        );
        let child = Command::new("script")
            .args(["-qec", &shell, "/dev/null"])
            .env("TERM", "xterm-256color")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            skipped("the program `script` is not installed");
            return None;
        };
        let (sender, output) = mpsc::channel();
        let mut stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                let _ = sender.send(buffer[..length].to_vec());
            }
        });
        Some(Self {
            child,
            screen: String::new(),
            output,
        })
    }

    /// Waits until the program has written `text` since the last call.
    fn wait_for(&mut self, text: &str) {
        let until = Instant::now() + Duration::from_secs(20);
        while !self.screen.contains(text) {
            let left = until.saturating_duration_since(Instant::now());
            let output = self.output.recv_timeout(left);
            self.screen += &String::from_utf8_lossy(
                &output.unwrap_or_else(|_| panic!("no {text} in {}", self.screen)),
            );
        }
        self.screen.clear();
    }

    fn press(&mut self, key: &str) {
        let mut stdin = self.child.stdin.as_ref().unwrap();
        stdin
            .write_all(key.as_bytes())
            .and_then(|()| stdin.flush())
            .unwrap();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ENTERS_OTHER_SCREEN: &str = "\x1b[?1049h";
const LEAVES_OTHER_SCREEN: &str = "\x1b[?1049l";

#[test]
fn the_live_view_follows_the_server_and_restores_the_terminal() {
    let mut server = Server::start(&[]);
    let load = Load::start(&server);
    let Some(mut terminal) = Terminal::top(&server.http.to_string()) else {
        return;
    };
    terminal.wait_for(ENTERS_OTHER_SCREEN);
    terminal.wait_for("queue");
    terminal.press("?");
    terminal.wait_for("quit");
    terminal.press("?");
    drop(load);
    server.signal("KILL");
    server
        .wait(Duration::from_secs(10))
        .expect("the server ends");
    terminal.wait_for("gone");
    terminal.press("q");
    terminal.wait_for(LEAVES_OTHER_SCREEN);
    assert!(terminal.child.wait().unwrap().success());
}

#[test]
fn ctrl_c_restores_the_terminal_too() {
    let Some(mut terminal) = Terminal::top(&closed_port()) else {
        return;
    };
    terminal.wait_for("nothing listens there");
    terminal.press("\x03");
    terminal.wait_for(LEAVES_OTHER_SCREEN);
    assert!(terminal.child.wait().unwrap().success());
}
