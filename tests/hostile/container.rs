//! A server in a container of 1 GiB, which all of its memory and that of its children counts towards:
//! beside callers who take what they can, nothing is ended by the system and others are answered.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use resnet18_server::proto::{Image, image::Source};
use tonic::Code;

use super::{
    assert_recovers, assert_serves, bombs, cat,
    common::{
        Server,
        http2::{self, CompressedMessage, Encoding},
        request, resnet18_in_cgroup, skipped,
    },
    memory::begin,
};

/// The limit of the manifest for Kubernetes.
const LIMIT: u64 = 1 << 30;
/// For how long the callers attack.
const ATTACK: Duration = Duration::from_secs(6);

/// A cgroup with a limit of memory, removed when dropped.
struct Cgroup {
    folder: PathBuf,
    /// The file that counts how often the system has ended a process for want of memory.
    events: &'static str,
}

impl Cgroup {
    /// In version 1 or 2 of cgroups; `None` where this process may make none.
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Relaxed));
        let name = format!("resnet18-test-{process}-{number}");
        let versions = [
            (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.oom_control",
            ),
            ("/sys/fs/cgroup", "memory.max", "memory.events"),
        ];
        for (root, limit, events) in versions {
            let folder = Path::new(root).join(&name);
            if !Path::new(root).join("cgroup.procs").exists() || fs::create_dir(&folder).is_err() {
                continue;
            }
            let cgroup = Self { folder, events };
            if fs::write(cgroup.folder.join(limit), LIMIT.to_string()).is_ok() {
                return Some(cgroup);
            }
        }
        None
    }

    fn kills(&self) -> u64 {
        let events = fs::read_to_string(self.folder.join(self.events)).unwrap();
        let kills = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        kills
            .expect("the system counts them")
            .trim()
            .parse()
            .unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The server has just ended; its group is free a moment later.
        let give_up = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.folder).is_err() && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_a_container_keeps_within_its_memory() {
    let Some(cgroup) = Cgroup::new() else {
        skipped("memory in a container: this user may not make a cgroup");
        return;
    };
    let procs = cgroup.folder.join("cgroup.procs");
    let server = Server::start_as(
        resnet18_in_cgroup(&procs),
        &["--engine", "embedded", "--max-per-client", "100"],
    );

    // Half of the container's memory is for callers, and half of that for their messages.
    let limit = server.metric("classifier_message_memory_limit_bytes", &[]);
    assert_eq!(limit, (LIMIT / 4) as f64);
    assert_serves(&server).await;
    let before = server.usage();

    let mut attackers = Vec::new();
    let images = bombs::within_the_limit()
        .into_iter()
        .chain(bombs::flat())
        .map(|(_, bytes)| bytes);
    for (index, bytes) in images.enumerate() {
        let client = server.client();
        let bomb = Image {
            source: Some(Source::Encoded(bytes.into())),
        };
        attackers.push(tokio::spawn(async move {
            let mut client = client.await;
            loop {
                let _ = client.classify(request(bomb.clone())).await;
                tokio::time::sleep(Duration::from_millis(10 * index as u64)).await;
            }
        }));
    }
    let zeros = request(Image {
        source: Some(Source::Encoded(vec![0; 15 << 20].into())),
    });
    for host in 2..18 {
        let address = server.grpc.clone();
        let compressed = CompressedMessage::new(Encoding::Gzip, &zeros);
        attackers.push(tokio::spawn(async move {
            let mut connection = http2::connect_from([127, 0, 0, host], &address).await;
            let mut held = Vec::new();
            loop {
                held.extend((0..4).map(|_| begin(&mut connection, 15)));
                compressed.classify(&mut connection).await;
                held.truncate(8);
            }
        }));
    }

    let begun = Instant::now();
    let mut victim = server.client().await;
    let mut answered = 0;
    while begun.elapsed() < ATTACK || answered == 0 {
        // More addresses than the queue has places may keep it full.
        match victim.classify(cat()).await {
            Ok(_) => answered += 1,
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
        }
        assert!(begun.elapsed() < 10 * ATTACK, "nothing is answered");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for attacker in attackers {
        attacker.abort();
    }
    // Its connection is no open file of the server's either.
    drop(victim);

    let after = server.usage();
    assert_eq!(cgroup.kills(), 0, "{before:?}, then {after:?}");
    let budget_mib = (LIMIT / 2) >> 20;
    assert!(
        after.peak_mib < before.peak_mib + budget_mib * 11 / 10,
        "{before:?}, then {after:?}"
    );
    assert_recovers(&server, before).await;
    assert_serves(&server).await;
}

/// What tries a model may not take the memory that the server has.
#[test]
fn a_model_that_takes_the_containers_memory_is_refused_by_its_limit() {
    let Some(cgroup) = Cgroup::new() else {
        skipped("a model in a container: this user may not make a cgroup");
        return;
    };
    let procs = cgroup.folder.join("cgroup.procs");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.onnx");
    fs::write(&path, super::models::large()).unwrap();

    let output = resnet18_in_cgroup(&procs)
        .args(["check", "--engine", "embedded"])
        .arg(&path)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("more than 512 MiB of memory"), "{errors}");
    assert_eq!(cgroup.kills(), 0);
}
