//! A server among random clients for a while, and servers that drain under full load. `make chaos`
//! runs both for longer.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod drain;
mod operator;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use common::{Server, Usage, tiny_model::tiny_model};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use self::clients::{Client, Tally};

/// As many clients as do random things at once.
const CLIENTS: u64 = 12;
/// So much more memory may be in use afterwards, in MiB: allocators keep some of what was freed.
const MEMORY: u64 = 96;
/// So many more files may be open afterwards: the metrics' own connection, and one that is being
/// closed.
const FILES: usize = 2;
/// So many more threads may be there: those for work on files take turns while the models' folder
/// is looked at, so that none of them is idle for long enough to end.
const THREADS: usize = 2;

/// A number from the environment, for longer runs.
fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().map_or(usual, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text}, no number"))
    })
}

/// Says something past the test harness, which keeps what a passing test prints to itself.
fn say(line: &str) {
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{line}\n"));
}

/// The same numbers in every run with the same seed.
pub struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64, stream: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream);
        Self(random)
    }

    /// From 0 to `end` - 1.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    pub fn milliseconds(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_among_random_clients_is_as_it_was_afterwards() {
    let seconds = setting("CHAOS_SECONDS", 5);
    // The ordinary tests are the same each time; whoever asks for chaos gets another one each time.
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let seed = setting(
        "CHAOS_SEED",
        if std::env::var_os("CHAOS_SECONDS").is_some() {
            now
        } else {
            1
        },
    );
    say(&format!(
        "chaos for {seconds} s; CHAOS_SEED={seed} brings the same clients"
    ));

    let folder = tempfile::tempdir().unwrap();
    let bundled =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/resnet18-demo.onnx");
    std::fs::copy(bundled, folder.path().join("animals.onnx")).unwrap();
    std::fs::write(folder.path().join("colours.onnx"), tiny_model(0)).unwrap();
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

    // What is made at the first need is made.
    let warm = round(
        &server,
        folder.path(),
        seed,
        Duration::from_secs(2.min(seconds)),
    )
    .await;
    let before = calm(&server, None).await;
    let tally = round(
        &server,
        folder.path(),
        seed + 1,
        Duration::from_secs(seconds),
    )
    .await;
    let after = calm(&server, Some(before)).await;
    say(&format!("{tally}; {before:?}, then {after:?}"));
    assert!(warm.calls > 0 && tally.answered > 0, "{warm}; {tally}");
    clients::assert_serves(&server).await;
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

/// Random clients, and an operator who changes models, for a while.
async fn round(server: &Server, folder: &std::path::Path, seed: u64, time: Duration) -> Tally {
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
        all.add(client.await.unwrap_or_else(|wrong| {
            panic!("what a client saw was wrong: {wrong}\n{}", server.log())
        }));
    }
    all
}

/// Waits until nothing is in progress, and what is in use is what was `before`.
async fn calm(server: &Server, before: Option<Usage>) -> Usage {
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
                && now.memory_mib <= before.memory_mib + MEMORY
        };
        if busy.is_empty() && before.is_none_or(fits) {
            return now;
        }
        assert!(
            Instant::now() < give_up,
            "not zero: {busy:?}; {now:?}, before {before:?}\n{}",
            server.log()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
