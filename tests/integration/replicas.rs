//! Two replicas behind a real HAProxy with the example configuration of `deploy/haproxy`: one of
//! them is killed or drained under load.

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

/// The example configuration.
fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/haproxy/haproxy.cfg")
}

/// The installed HAProxy; `None`, with a visible message, where there is none.
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

/// HAProxy in front of two servers, listening on a UNIX socket; killed when dropped.
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
            // Outside comments, it begins or ends a line.
            assert!(
                config.contains(&format!("    {example}"))
                    || config.contains(&format!(" {example}\n")),
                "the example does not contain {example:?}"
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

        let give_up = Instant::now() + Duration::from_secs(10);
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < give_up, "HAProxy did not open its socket");
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

/// Six clients that retry refused calls, each with its own connection.
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
                    let answer = classify_with_retries(&mut client, request.clone(), deadline)
                        .await
                        .unwrap_or_else(|status| {
                            panic!("a call failed in spite of retries: {status}")
                        });
                    assert_eq!(answer.response.classifications[0].label, "cat");
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

/// How many calls the server has answered.
fn answers(server: &Server) -> f64 {
    server.metric(
        "classifier_requests_total",
        &["method=\"Classify\"", "code=\"OK\""],
    )
}

#[test]
fn the_example_configuration_is_valid() {
    let Some(mut haproxy) = haproxy() else { return };
    let output = haproxy.arg("-c").arg("-f").arg(example()).output().unwrap();
    let messages = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(
        output.status.success() && !messages.contains("warning"),
        "{messages}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_retry_see_no_failure_when_a_replica_is_killed() {
    let Some(haproxy) = haproxy() else { return };
    // The killed replica's port must still be free for its successor.
    let _alone = exclusive();
    let [mut first, second] = [Server::spawn(&[]), Server::spawn(&[])];
    first.wait_until_ready();
    second.wait_until_ready();
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
    let Some(haproxy) = haproxy() else { return };
    let _alone = exclusive();
    let [mut first, second] = [Server::spawn(&["--drain-delay", "5s"]), Server::spawn(&[])];
    first.wait_until_ready();
    second.wait_until_ready();
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
