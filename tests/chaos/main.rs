//! Chaos tests: random clients and model reloads against one server, and servers that drain under
//! full load. `make chaos` runs them for longer.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod drain;
mod operator;

use std::{
    fs,
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};

use common::{Server, Usage, tiny_model::tiny_model};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use self::clients::{Client, Tally};

/// The number of concurrent random clients.
const CLIENTS: u64 = 12;
/// How much more memory may be in use afterwards, in MiB: allocators keep some of the freed memory.
const MEMORY_MIB: u64 = 96;
/// How many more files may be open afterwards: the connection that reads the metrics, and one that
/// is being closed.
const FILES: usize = 2;
/// How many more threads may run afterwards: tokio's threads for blocking work take turns at
/// watching the models' folder, so that none of them is idle long enough to end.
const THREADS: usize = 2;

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else {
        return default;
    };
    text.parse()
        .unwrap_or_else(|_| panic!("{name} is {text}, which is no number"))
}

/// Prints a line directly to standard error: the test harness captures what `eprintln!` prints in a
/// passing test.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A random number generator: the same seed and stream give the same numbers.
pub struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64, stream: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream);
        Self(random)
    }

    /// A number from 0 to `end` - 1.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    /// A duration of less than `end` milliseconds.
    pub fn milliseconds(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_random_clients_a_server_uses_no_more_than_before() {
    let seconds = setting("CHAOS_SECONDS", 5);
    // Ordinary test runs repeat the same clients; `make chaos` has others each time.
    let default_seed = if std::env::var_os("CHAOS_SECONDS").is_some() {
        UNIX_EPOCH.elapsed().unwrap().as_secs()
    } else {
        1
    };
    let seed = setting("CHAOS_SEED", default_seed);
    say(&format!(
        "chaos for {seconds} s; CHAOS_SEED={seed} repeats it"
    ));

    let folder = tempfile::tempdir().unwrap();
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/resnet18-demo.onnx");
    fs::copy(bundled, folder.path().join("animals.onnx")).unwrap();
    fs::write(folder.path().join("colours.onnx"), tiny_model(0)).unwrap();
    let flags = [
        "--watch-interval",
        "100ms",
        "--queue-capacity",
        "8",
        "--max-streams",
        "8",
        "--receive-timeout",
        "5s",
    ];
    let server = Server::start(
        &[
            &["--model-dir", &folder.path().display().to_string()],
            &flags[..],
        ]
        .concat(),
    );

    // The first round makes the server create everything that it creates lazily.
    let warm = round(
        &server,
        folder.path(),
        seed,
        Duration::from_secs(2.min(seconds)),
    )
    .await;
    let before = wait_until_idle(&server, None).await;

    let tally = round(
        &server,
        folder.path(),
        seed + 1,
        Duration::from_secs(seconds),
    )
    .await;
    let after = wait_until_idle(&server, Some(before)).await;
    say(&format!("{tally}; {before:?}, then {after:?}"));

    assert!(warm.calls > 0 && tally.answered > 0, "{warm}; {tally}");
    clients::assert_serves(&server).await;
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

/// Runs random clients, and an operator who changes models, for `time`.
async fn round(server: &Server, folder: &Path, seed: u64, time: Duration) -> Tally {
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (mut client, over) = (
                Client::new(server, Random::new(seed, number)),
                Arc::clone(&over),
            );
            tokio::spawn(async move {
                while !over.load(Relaxed) {
                    client.act().await;
                }
                client.tally
            })
        })
        .collect();
    operator::run(
        server,
        folder,
        Random::new(seed, CLIENTS),
        Instant::now() + time,
    )
    .await;
    over.store(true, Relaxed);

    let mut all = Tally::default();
    for client in clients {
        all.add(
            client
                .await
                .unwrap_or_else(|wrong| panic!("a client failed: {wrong}\n{}", server.log())),
        );
    }
    all
}

/// Waits until nothing is in progress and, within tolerances, no more resources are used than
/// `before`.
async fn wait_until_idle(server: &Server, before: Option<Usage>) -> Usage {
    let give_up = Instant::now() + Duration::from_secs(60);
    tokio::time::sleep(Duration::from_millis(500)).await;
    loop {
        let gauges = [
            "classifier_streams_active",
            "classifier_queue_depth",
            "classifier_calls_active",
        ];
        let busy: Vec<_> = gauges
            .into_iter()
            .filter(|gauge| server.sum(gauge, &[]) != 0.0)
            .collect();
        let now = server.usage();
        let fits = |before: Usage| {
            now.files <= before.files + FILES
                && now.threads <= before.threads + THREADS
                && now.memory_mib <= before.memory_mib + MEMORY_MIB
        };
        if busy.is_empty() && before.is_none_or(fits) {
            return now;
        }
        assert!(
            Instant::now() < give_up,
            "not zero: {busy:?}; before {before:?}, now {now:?}\n{}",
            server.log()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
