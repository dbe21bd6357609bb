//! A real server process for the tests, and what they share.
#![allow(dead_code, missing_docs)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use resnet18_server::proto::{
    ClassifyRequest, Image, StreamClassifyRequest, StreamConfig,
    classifier_client::ClassifierClient, image::Source, stream_classify_request::Message,
};
use tonic::transport::{Channel, Endpoint};

#[cfg(target_os = "linux")]
pub mod http2;
pub mod tiny_model;

/// The program under test.
pub fn resnet18() -> Command {
    untouched(Command::new(env!("CARGO_BIN_EXE_resnet18")))
}

/// The program under test, which may open so many files.
pub fn resnet18_with_files(files: u64) -> Command {
    let mut command = Command::new("sh");
    let limited = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
    command.args(["-c", &limited, env!("CARGO_BIN_EXE_resnet18")]);
    untouched(command)
}

fn untouched(mut command: Command) -> Command {
    // What the developer has set must not leak into the tests.
    for (name, _) in std::env::vars_os() {
        if ["RESNET18_", "OTEL_"]
            .iter()
            .any(|prefix| name.to_string_lossy().starts_with(prefix))
        {
            command.env_remove(name);
        }
    }
    // `make test-gpu` runs tests that were not written for an engine on one.
    if let Some(engine) = std::env::var_os("TEST_ENGINE") {
        command.env("RESNET18_ENGINE", engine);
    }
    command
}

/// `resnet18 serve` on ports of its own; killed when dropped.
pub struct Server {
    child: Child,
    /// An address, or `unix:` and a path.
    pub grpc: String,
    pub http: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts a server and waits until it is ready.
    pub fn start(flags: &[&str]) -> Self {
        let server = Self::spawn(flags);
        server.wait_until_ready();
        server
    }

    /// Starts a server and waits until its ports are open.
    pub fn spawn(flags: &[&str]) -> Self {
        Self::spawn_as(resnet18(), flags)
    }

    /// Likewise, of a `program` that was made ready.
    pub fn spawn_as(mut program: Command, flags: &[&str]) -> Self {
        let grpc = if flags.contains(&"--grpc") {
            &[][..]
        } else {
            &["--grpc", "127.0.0.1:0"]
        };
        let mut child = program
            .args(["serve", "--http", "127.0.0.1:0"])
            .args(grpc)
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let (addresses, announced) = std::sync::mpsc::channel();
        let sink = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if let Some(found) = addresses_in(&line) {
                    let _ = addresses.send(found);
                }
                let mut log = sink.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        match announced.recv_timeout(Duration::from_secs(30)) {
            Ok((grpc, http)) => Self {
                child,
                grpc,
                http,
                log,
            },
            Err(_) => panic!(
                "the server did not open its ports:\n{}",
                log.lock().unwrap()
            ),
        }
    }

    pub fn wait_until_ready(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.get("/readyz").0 != 200 {
            assert!(
                Instant::now() < until,
                "the server did not become ready:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn url(&self) -> String {
        match self.grpc.starts_with("unix:") {
            true => self.grpc.clone(),
            false => format!("http://{}", self.grpc),
        }
    }

    pub async fn client(&self) -> ClassifierClient<Channel> {
        let channel = Endpoint::from_shared(self.url())
            .unwrap()
            .connect()
            .await
            .expect("the server accepts");
        ClassifierClient::new(channel).max_encoding_message_size(64 << 20)
    }

    /// A plain HTTP/1.1 GET; status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        self.try_get(path)
            .expect("the HTTP port is open and answers with a status line")
    }

    /// As `get`, or `None` when the server has ended.
    pub fn try_get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.http).ok()?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).ok()?;
        let (head, body) = response.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok())?;
        Some((status, body.to_owned()))
    }

    /// The value of one series, such as `classifier_requests_total{model="resnet18-demo",…}`; 0
    /// when it is not there.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, text) = self.get("/metrics");
        let mut series = text.lines().filter(|line| {
            line.split(['{', ' ']).next() == Some(name)
                && labels.iter().all(|label| line.contains(label))
        });
        let value = series
            .next()
            .and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or(0.0);
        assert!(series.next().is_none(), "several series {name} {labels:?}");
        value
    }

    /// The sum of all series of a metric that have these labels.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, text) = self.get("/metrics");
        let series = text.lines().filter(|line| {
            line.split(['{', ' ']).next() == Some(name)
                && labels.iter().all(|label| line.contains(label))
        });
        series
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// What the process uses, as Linux tells it.
    pub fn usage(&self) -> Usage {
        let folder = PathBuf::from(format!("/proc/{}", self.pid()));
        let status = std::fs::read_to_string(folder.join("status")).expect("the server runs");
        let number = |field: &str| -> u64 {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(field))
                .expect("Linux tells it");
            line.trim_start_matches(':')
                .trim()
                .trim_end_matches(" kB")
                .parse()
                .unwrap()
        };
        Usage {
            files: std::fs::read_dir(folder.join("fd")).unwrap().count(),
            threads: number("Threads") as usize,
            memory_mib: number("VmRSS") >> 10,
            peak_mib: number("VmHWM") >> 10,
        }
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.child.id().to_string())
            .status();
        assert!(status.expect("kill runs").success());
    }

    pub fn wait(&mut self, at_most: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + at_most;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() > until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// What a process uses.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub files: usize,
    pub threads: usize,
    pub memory_mib: u64,
    pub peak_mib: u64,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `… gRPC on A and metrics on http://B/metrics …`
fn addresses_in(line: &str) -> Option<(String, SocketAddr)> {
    let (_, rest) = line.split_once("serving gRPC on ")?;
    let (grpc, rest) = rest.split_once(" and metrics on http://")?;
    let (http, _) = rest.split_once("/metrics")?;
    Some((grpc.to_owned(), http.parse().ok()?))
}

pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

pub fn image(path: impl AsRef<Path>) -> Image {
    let path = path.as_ref();
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Image {
        source: Some(Source::Encoded(bytes.into())),
    }
}

pub fn request(image: Image) -> ClassifyRequest {
    ClassifyRequest {
        image: Some(image),
        ..Default::default()
    }
}

pub fn config(config: StreamConfig) -> StreamClassifyRequest {
    StreamClassifyRequest {
        message: Some(Message::Config(config)),
    }
}

/// A folder of `../shared`, or `None` with a visible word where a clone stands alone.
pub fn shared(folder: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared")
        .join(folder);
    if path.exists() {
        return Some(path);
    }
    skipped(&format!(
        "there is no ../shared/{folder} beside the project"
    ));
    None
}

pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Python with grpcio, which `make test-env` sets up, or `None` with a visible word.
pub fn python() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    if path.exists() {
        return Some(path);
    }
    skipped("there is no Python with grpcio; `make test-env` sets it up");
    None
}

/// Python with tritonclient too, or `None` with a visible word.
pub fn tritonclient() -> Option<PathBuf> {
    let python = python()?;
    let import = Command::new(&python)
        .args(["-c", "import tritonclient.grpc"])
        .output()
        .expect("Python runs");
    if !import.status.success() {
        skipped("there is no tritonclient in the tests' Python; `make test-env` sets it up");
        return None;
    }
    Some(python)
}

/// Whether ffmpeg is there; a visible word if not.
pub fn ffmpeg() -> bool {
    let found = Command::new("ffmpeg")
        .arg("-version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !found {
        skipped("ffmpeg is not installed");
    }
    found
}

/// Says that a test is skipped, past the test harness, which keeps what a passing test prints to
/// itself.
pub fn skipped(reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
}

/// A checkpoint of a network with reproducible weights, as PyTorch would save it, and what PyTorch
/// makes of a crop.
pub struct Checkpoint {
    /// In safetensors.
    pub path: PathBuf,
    /// A line for each class.
    pub labels: PathBuf,
    /// PyTorch's, for `golden/crops/cat_jpg.png`.
    pub logits: Vec<f32>,
}

/// The checkpoint of one of the architectures in `models` (`../shared/models`), written into
/// `folder`.
pub fn checkpoint(python: &Path, models: &Path, architecture: &str, folder: &Path) -> Checkpoint {
    let path = folder.join(format!("{architecture}.safetensors"));
    let script = Command::new(python)
        .arg(models.join("make_checkpoint.py"))
        .arg(architecture)
        .arg(&path)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("Python runs");
    assert!(
        script.status.success(),
        "{}",
        String::from_utf8_lossy(&script.stderr)
    );
    let reference = json(&models.join("architectures.json"))[architecture]["logits"].clone();
    let logits: Vec<f32> = serde_json::from_value(reference).unwrap();
    let labels = folder.join("labels.txt");
    std::fs::write(
        &labels,
        (0..logits.len())
            .map(|class| format!("class {class}\n"))
            .collect::<String>(),
    )
    .unwrap();
    Checkpoint {
        path,
        labels,
        logits,
    }
}
