//! The program under test, and `resnet18 serve` as a child process.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use resnet18_server::proto::classifier_client::ClassifierClient;
use tonic::transport::{Channel, Endpoint};

use super::turns::{Turn, shared_turn};

/// The program under test.
pub fn resnet18() -> Command {
    with_clean_environment(Command::new(env!("CARGO_BIN_EXE_resnet18")))
}

/// The program under test, limited to `files` open files.
pub fn resnet18_with_files(files: u64) -> Command {
    let mut command = Command::new("sh");
    let limited = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
    command.args(["-c", &limited, env!("CARGO_BIN_EXE_resnet18")]);
    with_clean_environment(command)
}

/// The program under test, in the cgroup with this list of processes.
pub fn resnet18_in_cgroup(procs: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]);
    command.arg(procs).arg(env!("CARGO_BIN_EXE_resnet18"));
    with_clean_environment(command)
}

/// Removes the settings of the developer's own environment.
fn with_clean_environment(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("RESNET18_") || text.starts_with("OTEL_") {
            command.env_remove(&name);
        }
    }

    // Measuring takes a moment, and on a busy machine its outcome differs from test to test.
    command.env("RESNET18_TUNE", "off");

    // `make test-gpu` runs ordinary tests with the engine for GPUs.
    if let Some(engine) = std::env::var_os("TEST_ENGINE") {
        command.env("RESNET18_ENGINE", engine);
    }
    command
}

/// `resnet18 serve` on ports that the system chooses; killed when dropped.
pub struct Server {
    child: Child,
    /// The address of its gRPC port, or `unix:` and the path of its socket.
    pub grpc: String,
    /// The address of its HTTP port.
    pub http: SocketAddr,
    /// What it has written to standard error so far.
    log: Arc<Mutex<String>>,
    _turn: Turn,
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

    /// Like [`start`](Self::start), but with a prepared command for the program.
    pub fn start_as(program: Command, flags: &[&str]) -> Self {
        let server = Self::spawn_as(program, flags);
        server.wait_until_ready();
        server
    }

    /// Starts a server whose log is treated in this way once its ports are open, and waits until
    /// it is ready.
    pub fn start_with_log(reader: LogReader, flags: &[&str]) -> Self {
        let server = Self::spawn_with(resnet18(), flags, reader);
        server.wait_until_ready();
        server
    }

    /// Like [`spawn`](Self::spawn), but with a prepared command for the program.
    pub fn spawn_as(program: Command, flags: &[&str]) -> Self {
        Self::spawn_with(program, flags, LogReader::Reads)
    }

    fn spawn_with(mut program: Command, flags: &[&str], reader: LogReader) -> Self {
        let turn = shared_turn();

        program.args(["serve", "--http", "127.0.0.1:0"]);
        if !flags.contains(&"--grpc") {
            program.args(["--grpc", "127.0.0.1:0"]);
        }
        let mut child = program
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");

        let log = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().expect("stderr is piped");
        let addresses = collect_log(stderr, reader, Arc::clone(&log));

        match addresses.recv_timeout(Duration::from_secs(30)) {
            Ok((grpc, http)) => Self {
                child,
                grpc,
                http,
                log,
                _turn: turn,
            },
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                let log = log.lock().unwrap();
                panic!("the server did not open its ports:\n{log}");
            }
        }
    }

    pub fn wait_until_ready(&self) {
        let give_up = Instant::now() + Duration::from_secs(60);
        while self.get("/readyz").0 != 200 {
            assert!(
                Instant::now() < give_up,
                "the server did not become ready:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The URL of the gRPC port, for plain text.
    pub fn url(&self) -> String {
        if self.grpc.starts_with("unix:") {
            self.grpc.clone()
        } else {
            format!("http://{}", self.grpc)
        }
    }

    /// A new connection. The future doesn't borrow the server, so that a task can own it.
    pub fn channel(&self) -> impl Future<Output = Channel> + use<> {
        let endpoint = Endpoint::from_shared(self.url()).unwrap();
        async move {
            let channel = endpoint.connect().await;
            channel.expect("the server accepts connections")
        }
    }

    /// A classifier client with its own connection.
    pub fn client(&self) -> impl Future<Output = ClassifierClient<Channel>> + use<> {
        let channel = self.channel();
        async move { ClassifierClient::new(channel.await).max_encoding_message_size(64 << 20) }
    }

    /// The status and the body of the answer to an HTTP/1.1 GET.
    pub fn get(&self, path: &str) -> (u16, String) {
        self.try_get(path)
            .expect("the HTTP port is open and answers with a status line")
    }

    /// Like [`get`](Self::get), or `None` when the server has ended.
    pub fn try_get(&self, path: &str) -> Option<(u16, String)> {
        self.try_get_as(path, "*/*")
    }

    /// Like [`try_get`](Self::try_get), with this `Accept` header.
    pub fn try_get_as(&self, path: &str, accept: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.http).ok()?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        )
        .ok()?;

        let mut response = String::new();
        stream.read_to_string(&mut response).ok()?;
        let (head, body) = response.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok())?;
        Some((status, body.to_owned()))
    }

    /// The value of the one series of a metric whose labels contain all of `labels`, such as
    /// `method="Classify"`; 0 when there is none.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let values = self.series(name, labels);
        assert!(values.len() <= 1, "several series of {name} {labels:?}");
        values.first().copied().unwrap_or(0.0)
    }

    /// The sum of all series of a metric whose labels contain all of `labels`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.series(name, labels).iter().sum()
    }

    fn series(&self, name: &str, labels: &[&str]) -> Vec<f64> {
        let (_, text) = self.get("/metrics");
        text.lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect()
    }

    /// The mean time of one inference so far, in seconds.
    pub fn mean_inference(&self) -> f64 {
        let inference = &["stage=\"inference\""];
        let total = self.metric("classifier_stage_duration_seconds_sum", inference);
        total / self.metric("classifier_stage_duration_seconds_count", inference)
    }

    /// The resources that the process uses, from Linux's `/proc`.
    pub fn usage(&self) -> Usage {
        let folder = PathBuf::from(format!("/proc/{}", self.pid()));
        let status = std::fs::read_to_string(folder.join("status")).expect("the server runs");
        let number = |field: &str| -> u64 {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(field))
                .unwrap_or_else(|| panic!("/proc/PID/status has no {field}"));
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

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.child.id().to_string())
            .status();
        assert!(status.expect("kill runs").success(), "kill -{name} failed");
    }

    /// Waits until the process has ended; `None` when it still runs after `at_most`.
    pub fn wait(&mut self, at_most: Duration) -> Option<ExitStatus> {
        let give_up = Instant::now() + at_most;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() > give_up {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The resources that a process uses.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Open file descriptors.
    pub files: usize,
    pub threads: usize,
    /// Resident memory.
    pub memory_mib: u64,
    /// The highest value of the resident memory so far.
    pub peak_mib: u64,
}

/// What happens to the server's standard error once it has named its addresses.
#[derive(Clone, Copy, Debug)]
pub enum LogReader {
    /// Everything is read.
    Reads,
    /// The pipe stays open, but nothing more is read.
    Stops,
    /// The reader closes the pipe.
    Closes,
}

/// Appends the server's log to `log`, on a separate thread; the gRPC and HTTP addresses are
/// sent once the log names them.
fn collect_log(
    stderr: ChildStderr,
    reader: LogReader,
    log: Arc<Mutex<String>>,
) -> mpsc::Receiver<(String, SocketAddr)> {
    let (sender, addresses) = mpsc::channel();
    std::thread::spawn(move || {
        let mut stderr = BufReader::new(stderr);
        let mut line = String::new();
        while stderr.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            log.lock().unwrap().push_str(&line);
            let found = addresses_in(&line);
            line.clear();

            if let Some(found) = found {
                let _ = sender.send(found);
                match reader {
                    LogReader::Reads => {}
                    LogReader::Closes => return,
                    // Keeps the pipe open for as long as the test program runs.
                    LogReader::Stops => return std::mem::forget(stderr),
                }
            }
        }
    });
    addresses
}

/// Reads `… serving gRPC on A and metrics on http://B/metrics …`, or with https.
fn addresses_in(line: &str) -> Option<(String, SocketAddr)> {
    let (_, rest) = line.split_once("serving gRPC on ")?;
    let (grpc, rest) = rest.split_once(" and metrics on ")?;
    let (_, rest) = rest.split_once("://")?;
    let (http, _) = rest.split_once("/metrics")?;
    Some((grpc.to_owned(), http.parse().ok()?))
}
