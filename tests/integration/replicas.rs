//! Two replicas behind a real HAProxy, Envoy or nginx with the example configuration of `deploy`: one
//! of them is killed or drained under load.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use resnet18_server::client::{self, classify_with_retries};
use tokio::task::JoinSet;

use crate::common::{Server, data, exclusive, image, request, skipped};

/// A program in front of the servers, with its example configuration.
#[derive(Clone, Copy)]
enum Balancer {
    HaProxy,
    Envoy,
    Nginx,
}

impl Balancer {
    /// The example configuration.
    fn example(self) -> PathBuf {
        let path = match self {
            Self::HaProxy => "deploy/haproxy/haproxy.cfg",
            Self::Envoy => "deploy/envoy/envoy.yaml",
            Self::Nginx => "deploy/nginx/nginx.conf",
        };
        Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
    }

    /// The installed program; `None`, with a visible message, where there is none.
    fn program(self) -> Option<PathBuf> {
        let envoy = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/envoy");
        let (name, places) = match self {
            Self::HaProxy => ("haproxy", ["haproxy".into(), "/usr/sbin/haproxy".into()]),
            Self::Envoy => ("envoy", ["envoy".into(), envoy]),
            Self::Nginx => ("nginx", ["nginx".into(), "/usr/sbin/nginx".into()]),
        };
        let found = places.into_iter().find(|place| {
            let version = if matches!(self, Self::Envoy) {
                "--version"
            } else {
                "-v"
            };
            let mut command = Command::new(place);
            command.arg(version);
            command.output().is_ok()
        });
        if found.is_none() {
            skipped(&format!("{name} is not installed"));
        }
        found
    }

    /// A command that checks a configuration.
    fn check(self, program: &Path, config: &Path) -> Command {
        let mut command = Command::new(program);
        match self {
            Self::HaProxy => command.arg("-c").arg("-f"),
            Self::Envoy => command.args(["--mode", "validate", "-c"]),
            Self::Nginx => command.args(["-t", "-g", "pid /dev/null;", "-c"]),
        };
        command.arg(config);
        command
    }

    /// A command that runs a configuration of this folder in the foreground.
    fn run(self, program: &Path, folder: &Path, config: &Path) -> Command {
        let mut command = Command::new(program);
        match self {
            Self::HaProxy => command.arg("-db").arg("-f"),
            // Several may run beside each other.
            Self::Envoy => command.args(["--use-dynamic-base-id", "--log-level", "error", "-c"]),
            Self::Nginx => {
                let pid = folder.join("nginx.pid");
                let globals = format!("daemon off; pid {};", pid.display());
                command.arg("-p").arg(folder).arg("-g").arg(globals);
                command.args(["-e", "stderr", "-c"])
            }
        };
        command.arg(config);
        command
    }

    /// What the example says, and what stands in its place here.
    fn changes(self, socket: &str, servers: [&str; 2]) -> Vec<(String, String)> {
        let [first, second] = servers.map(str::to_owned);
        let (ten_one, ten_two) = ("10.0.0.1:8001".to_owned(), "10.0.0.2:8001".to_owned());
        match self {
            Self::HaProxy => vec![
                ("bind *:8000".into(), format!("bind unix@{socket}")),
                (ten_one, first),
                (ten_two, second),
            ],
            Self::Nginx => vec![
                ("listen 8000".into(), format!("listen unix:{socket}")),
                (ten_one, first),
                (ten_two, second),
            ],
            Self::Envoy => {
                let envoy = |address: &str| {
                    let (host, port) = address.rsplit_once(':').unwrap();
                    format!("address: {host}, port_value: {port} ")
                };
                vec![
                    (
                        "{ socket_address: { address: 0.0.0.0, port_value: 8000 } }".into(),
                        format!("{{ pipe: {{ path: {socket} }} }}"),
                    ),
                    (envoy(&ten_one), envoy(&first)),
                    (envoy(&ten_two), envoy(&second)),
                ]
            }
        }
    }

    /// Starts it in front of two servers, listening on a UNIX socket.
    fn start(
        self,
        program: &Path,
        folder: &Path,
        servers: [&str; 2],
    ) -> (RunningBalancer, client::Server) {
        let socket = folder.join("balancer.sock").display().to_string();
        let mut config = std::fs::read_to_string(self.example()).unwrap();
        for (example, here) in self.changes(&socket, servers) {
            // Comments may name another variant of it.
            let outside_comments = config
                .lines()
                .any(|line| line.contains(&example) && !line.trim_start().starts_with('#'));
            assert!(outside_comments, "the example does not contain {example:?}");
            config = config.replace(&example, &here);
        }

        let file = folder.join(self.example().file_name().unwrap());
        std::fs::write(&file, config).unwrap();
        let child = self
            .run(program, folder, &file)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let running = RunningBalancer(child);

        let give_up = Instant::now() + Duration::from_secs(30);
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < give_up, "{socket} was not opened");
            std::thread::sleep(Duration::from_millis(20));
        }
        (running, format!("unix:{socket}").parse().unwrap())
    }
}

/// Ended when dropped.
struct RunningBalancer(Child);

impl Drop for RunningBalancer {
    fn drop(&mut self) {
        // Killed at once, nginx would leave its workers behind.
        let id = self.0.id().to_string();
        let _ = Command::new("kill").arg(id).status();
        let give_up = Instant::now() + Duration::from_secs(3);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Six clients, each with its own connection.
struct Load {
    clients: JoinSet<()>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
}

impl Load {
    async fn start(server: &client::Server, retries: Retries) -> Self {
        let mut load = Self {
            clients: JoinSet::new(),
            stop: Arc::default(),
            answered: Arc::default(),
        };
        for _ in 0..6 {
            let mut client = client::connect(server).await.expect("it accepts");
            let (stop, answered) = (Arc::clone(&load.stop), Arc::clone(&load.answered));
            load.clients.spawn(async move {
                let request = request(image(data("cat.jpg")));
                while !stop.load(Relaxed) {
                    // nginx gives calls to a server that is still starting.
                    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
                    let answer = match retries {
                        Retries::Client => {
                            classify_with_retries(&mut client, request.clone(), deadline)
                                .await
                                .map(|answer| answer.response)
                        }
                        Retries::Balancer => client
                            .classify(request.clone())
                            .await
                            .map(tonic::Response::into_inner),
                    };
                    let answer = answer.unwrap_or_else(|status| {
                        panic!("a call failed in spite of retries: {status}")
                    });
                    assert_eq!(answer.classifications[0].label, "cat");
                    answered.fetch_add(1, Relaxed);
                }
            });
        }
        load
    }

    /// Waits until `done` holds for the number of answers so far; a client that fails ends the
    /// test.
    async fn until(&mut self, what: &str, mut done: impl FnMut(u64) -> bool) {
        let give_up = Instant::now() + Duration::from_secs(90);
        while !done(self.answered.load(Relaxed)) {
            assert!(Instant::now() < give_up, "not within 90 s: {what}");
            let tick = tokio::time::sleep(Duration::from_millis(50));
            tokio::select! {
                Some(ended) = self.clients.join_next() => ended.expect(what),
                () = tick => {}
            }
        }
    }

    /// Stops the clients.
    async fn end(mut self) {
        self.stop.store(true, Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("no client fails");
        }
    }
}

/// Who sends a call again whose server has gone.
#[derive(Clone, Copy)]
enum Retries {
    Client,
    Balancer,
}

/// How many calls the server has answered.
fn answers(server: &Server) -> f64 {
    server.metric(
        "classifier_requests_total",
        &["method=\"Classify\"", "code=\"OK\""],
    )
}

#[test]
fn the_example_configurations_are_valid() {
    for balancer in [Balancer::HaProxy, Balancer::Envoy, Balancer::Nginx] {
        let Some(program) = balancer.program() else {
            continue;
        };
        let mut check = balancer.check(&program, &balancer.example());
        let output = check.output().unwrap();
        let messages = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert!(
            output.status.success() && !messages.contains("warning"),
            "{check:?}: {messages}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_retry_see_no_failure_when_a_replica_behind_haproxy_is_killed() {
    a_replica_is_killed(Balancer::HaProxy, Retries::Client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_retry_see_no_failure_when_a_replica_behind_nginx_is_killed() {
    a_replica_is_killed(Balancer::Nginx, Retries::Client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_see_no_failure_when_a_replica_behind_envoy_is_killed() {
    a_replica_is_killed(Balancer::Envoy, Retries::Balancer).await;
}

async fn a_replica_is_killed(balancer: Balancer, retries: Retries) {
    let Some(program) = balancer.program() else {
        return;
    };
    // The killed replica's port must still be free for its successor.
    let _alone = exclusive();
    let [mut first, second] = [Server::spawn(&[]), Server::spawn(&[])];
    first.wait_until_ready();
    second.wait_until_ready();
    let folder = tempfile::tempdir().unwrap();
    let servers = [&*first.grpc, &*second.grpc];
    let (_balancer, address) = balancer.start(&program, folder.path(), servers);

    let mut load = Load::start(&address, retries).await;
    load.until("both replicas answer", |_| {
        answers(&first) > 0.0 && answers(&second) > 0.0
    })
    .await;

    first.signal("KILL");
    first
        .wait(Duration::from_secs(10))
        .expect("SIGKILL ends the first replica");
    let before = load.answered.load(Relaxed);
    load.until("the other replica answers", |answered| {
        answered >= before + 20
    })
    .await;

    let first = Server::spawn(&["--grpc", &first.grpc]);
    load.until("the new replica takes load", |_| answers(&first) > 0.0)
        .await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_replica_gets_no_more_calls() {
    let Some(program) = Balancer::HaProxy.program() else {
        return;
    };
    let _alone = exclusive();
    let [mut first, second] = [Server::spawn(&["--drain-delay", "5s"]), Server::spawn(&[])];
    first.wait_until_ready();
    second.wait_until_ready();
    let folder = tempfile::tempdir().unwrap();
    let servers = [&*first.grpc, &*second.grpc];
    let (_balancer, address) = Balancer::HaProxy.start(&program, folder.path(), servers);

    let mut load = Load::start(&address, Retries::Client).await;
    load.until("both replicas answer", |_| {
        answers(&first) > 0.0 && answers(&second) > 0.0
    })
    .await;

    first.signal("TERM");
    let refused =
        |server: &Server| server.metric("classifier_rejected_total", &["reason=\"not_ready\""]);
    let mut turned_away = 0.0;
    let give_up = Instant::now() + Duration::from_secs(15);
    while let Some((200, _)) = first.try_get("/metrics") {
        assert!(Instant::now() < give_up, "the first replica does not end");
        turned_away = refused(&first);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(
        turned_away, 0.0,
        "HAProxy notices the drain before calls are refused"
    );

    load.end().await;
    let status = first
        .wait(Duration::from_secs(10))
        .expect("the first replica ends");
    assert!(status.success(), "{status}");
}
