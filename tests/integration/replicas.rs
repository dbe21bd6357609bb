//! Two replicas behind a real HAProxy, by the example in `deploy/haproxy`: one of them is killed
//! under load.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::common::{Server, data, image, request, skipped};
use resnet18_server::client::{self, classify_with_retries};
use tokio::task::JoinSet;

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/haproxy/haproxy.cfg")
}

fn haproxy() -> Option<Command> {
    for program in ["haproxy", "/usr/sbin/haproxy"] {
        if Command::new(program)
            .arg("-v")
            .stdout(Stdio::null())
            .status()
            .is_ok()
        {
            return Some(Command::new(program));
        }
    }
    skipped("haproxy is not installed");
    None
}

/// HAProxy in front of two servers, on a socket of its own; ended when dropped.
struct Balancer(Child);

impl Balancer {
    fn start(mut haproxy: Command, folder: &Path, servers: [&str; 2]) -> (Self, client::Server) {
        let socket = folder.join("balancer.sock").display().to_string();
        let mut config = std::fs::read_to_string(example()).unwrap();
        for (example, here) in [
            ("bind *:8000", format!("bind unix@{socket}")),
            ("10.0.0.1:8001", servers[0].to_owned()),
            ("10.0.0.2:8001", servers[1].to_owned()),
        ] {
            // Comments apart.
            assert!(
                config.contains(&format!("    {example}"))
                    || config.contains(&format!(" {example}\n")),
                "{example}"
            );
            config = config.replace(&format!(" {example}"), &format!(" {here}"));
        }
        let file = folder.join("haproxy.cfg");
        std::fs::write(&file, config).unwrap();
        let child = haproxy
            .arg("-db")
            .arg("-f")
            .arg(file)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < until, "HAProxy opens its socket");
            std::thread::sleep(Duration::from_millis(20));
        }
        (Self(child), format!("unix:{socket}").parse().unwrap())
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Clients that retry, each with a connection of its own.
struct Load {
    clients: JoinSet<()>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
}

impl Load {
    async fn start(server: &client::Server) -> Self {
        let mut load = Self {
            clients: JoinSet::new(),
            stop: Arc::default(),
            answered: Arc::default(),
        };
        for _ in 0..6 {
            let mut client = client::connect(server).await.expect("HAProxy accepts");
            let (stop, answered) = (Arc::clone(&load.stop), Arc::clone(&load.answered));
            load.clients.spawn(async move {
                let request = request(image(data("cat.jpg")));
                while !stop.load(Relaxed) {
                    let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
                    let (answer, _) = classify_with_retries(&mut client, request.clone(), deadline)
                        .await
                        .unwrap_or_else(|status| {
                            panic!("a client that retries sees a failure: {status}")
                        });
                    assert_eq!(answer.classifications[0].label, "cat");
                    answered.fetch_add(1, Relaxed);
                }
            });
        }
        load
    }

    /// Waits until all of these are true; a client that fails ends the test.
    async fn until(&mut self, what: &str, mut done: impl FnMut(u64) -> bool) {
        let until = Instant::now() + Duration::from_secs(90);
        while !done(self.answered.load(Relaxed)) {
            assert!(Instant::now() < until, "{what}");
            let tick = tokio::time::sleep(Duration::from_millis(50));
            tokio::select! {
                Some(ended) = self.clients.join_next() => ended.expect(what),
                () = tick => {}
            }
        }
    }

    async fn end(mut self) {
        self.stop.store(true, Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("no client fails");
        }
    }
}

fn answers(server: &Server) -> f64 {
    server.metric(
        "classifier_requests_total",
        &["method=\"Classify\"", "code=\"OK\""],
    )
}

#[test]
fn the_example_is_a_valid_configuration() {
    let Some(mut haproxy) = haproxy() else { return };
    let output = haproxy.arg("-c").arg("-f").arg(example()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(
        output.status.success() && !said.contains("warning"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_retry_see_no_failure_when_a_replica_is_killed() {
    let Some(haproxy) = haproxy() else { return };
    let [mut first, second] = [Server::spawn(&[]), Server::spawn(&[])];
    [&first, &second]
        .into_iter()
        .for_each(Server::wait_until_ready);
    let folder = tempfile::tempdir().unwrap();
    let (_balancer, address) = Balancer::start(haproxy, folder.path(), [&first.grpc, &second.grpc]);

    let mut load = Load::start(&address).await;
    load.until("both replicas answer", |_| {
        answers(&first) > 0.0 && answers(&second) > 0.0
    })
    .await;

    first.signal("KILL");
    first
        .wait(Duration::from_secs(10))
        .expect("SIGKILL ends it");
    let before = load.answered.load(Relaxed);
    load.until("the other replica goes on", |answered| {
        answered >= before + 20
    })
    .await;

    let first = Server::spawn(&["--grpc", &first.grpc]);
    load.until("the new replica takes load", |_| answers(&first) > 0.0)
        .await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_drains_gets_no_more_calls() {
    let Some(haproxy) = haproxy() else { return };
    let [mut first, second] = [Server::spawn(&["--drain-delay", "5s"]), Server::spawn(&[])];
    [&first, &second]
        .into_iter()
        .for_each(Server::wait_until_ready);
    let folder = tempfile::tempdir().unwrap();
    let (_balancer, address) = Balancer::start(haproxy, folder.path(), [&first.grpc, &second.grpc]);

    let mut load = Load::start(&address).await;
    load.until("both replicas answer", |_| {
        answers(&first) > 0.0 && answers(&second) > 0.0
    })
    .await;
    first.signal("TERM");
    let refused =
        |server: &Server| server.metric("classifier_rejected_total", &["reason=\"not_ready\""]);
    let mut turned_away = 0.0;
    let until = Instant::now() + Duration::from_secs(15);
    while let Some((200, _)) = first.try_get("/metrics") {
        assert!(Instant::now() < until, "it ends");
        turned_away = refused(&first);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(
        turned_away, 0.0,
        "the balancer had noticed before it drained"
    );
    load.end().await;
    assert!(
        first
            .wait(Duration::from_secs(10))
            .expect("it ends")
            .success()
    );
}
