//! Floods of HTTP/2 frames, and very many connections.

use std::{
    iter,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinHandle;

use super::{
    assert_recovers, assert_serves, cat,
    common::{
        self, Server,
        http2::{self, CLASSIFY, Wire, frame, kind},
        resnet18_with_files,
    },
};

type Frames = Box<dyn Iterator<Item = Vec<u8>> + Send>;

/// Sends these frames on a new connection, as fast as the server takes them.
fn flood(server: &Server, frames: Frames) -> JoinHandle<Wire> {
    let address = server.grpc.clone();
    tokio::task::spawn_blocking(move || {
        let mut wire = Wire::connect(&address);
        wire.send_all(frames);
        wire
    })
}

/// 50 000 calls, each cancelled at once.
fn rapid_resets() -> Frames {
    let streams = (0..50_000).map(|n| 2 * n + 1);
    Box::new(streams.flat_map(|id| {
        let headers = http2::headers(CLASSIFY);
        [
            frame(kind::HEADERS, http2::END_HEADERS, id, &headers),
            frame(kind::RST_STREAM, 0, id, &8_u32.to_be_bytes()),
        ]
    }))
}

/// Headers of one call that never end.
fn continuations() -> Frames {
    let first = frame(kind::HEADERS, 0, 1, &http2::headers(CLASSIFY));
    let field = http2::field("x-endless", &"x".repeat(16_000));
    let next = frame(kind::CONTINUATION, 0, 1, &field);
    Box::new(iter::once(first).chain(iter::repeat_n(next, 5_000)))
}

#[tokio::test]
async fn floods_of_frames_are_cut_off_or_held_back() {
    let server = Server::start(&["--engine", "embedded"]);
    assert_serves(&server).await;
    let before = server.usage();

    let resets = flood(&server, rapid_resets());
    let continuations = flood(&server, continuations());
    let settings = frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]);
    let settings = flood(&server, Box::new(iter::repeat_n(settings, 500_000)));
    let ping = frame(kind::PING, 0, 0, b"12345678");
    let pings = flood(&server, Box::new(iter::repeat_n(ping, 500_000)));
    assert_serves(&server).await;

    for (name, flood) in [("rapid reset", resets), ("continuations", continuations)] {
        let mut wire = flood.await.unwrap();
        let reason = tokio::task::spawn_blocking(move || wire.ended())
            .await
            .unwrap()
            .unwrap_or_else(|_| panic!("{name}: the connection stays open"));
        // When the connection is reset, the reason may be lost.
        assert!(
            reason.is_none_or(|reason| reason == http2::ENHANCE_YOUR_CALM),
            "{name}: {reason:?}"
        );
    }

    // The server stops reading from clients that do not read its answers.
    let held = [settings.await.unwrap(), pings.await.unwrap()];
    assert_serves(&server).await;
    let after = server.usage();
    assert!(
        after.peak_mib < before.peak_mib + 32,
        "{before:?}, then {after:?}"
    );
    drop(held);
    assert_recovers(&server, before).await;
}

/// Opens `most` connections that send HTTP/2's preface and nothing more; the first `greeted` wait
/// for the server's settings.
async fn idle(address: &str, most: usize, greeted: usize) -> Vec<Wire> {
    let address = address.to_owned();
    let connect = move |number| {
        let mut wire = Wire::connect(&address);
        if number < greeted {
            wire.wait_for(kind::SETTINGS)
                .expect("the server sends its settings");
        }
        wire
    };
    // Connecting blocks, and this thread's other clients must go on meanwhile.
    tokio::task::spawn_blocking(move || (0..most).map(connect).collect())
        .await
        .unwrap()
}

#[tokio::test]
async fn idle_connections_up_to_the_limit_of_files_do_not_affect_connected_clients() {
    let server = Server::spawn_as(resnet18_with_files(600), &["--engine", "embedded"]);
    server.wait_until_ready();
    assert!(
        server
            .log()
            .contains("may open 600 files, so 344 connections"),
        "{}",
        server.log()
    );
    let mut connected = server.client().await;
    connected.classify(cat()).await.unwrap();
    let before = server.usage();

    let idlers = idle(&server.grpc, 400, 300).await;
    let give_up = Instant::now() + Duration::from_secs(20);
    while !server.log().contains("--max-connections 344") {
        assert!(Instant::now() < give_up, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    connected
        .classify(cat())
        .await
        .expect("connected clients are served");
    assert_serves(&server).await;
    assert_eq!(server.get("/readyz").0, 200);
    drop(idlers);
    assert_serves(&server).await;
    assert_recovers(&server, before).await;
}

#[tokio::test]
async fn ten_thousand_idle_connections_take_less_than_100_kib_each() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .unwrap();
    // Some files are for the other tests of this process, and for the server itself.
    let most = maximum.map_or(10_000, |files| files.saturating_sub(3000).min(10_000)) as usize;
    // All of them are of one address.
    let limits = ["--max-connections", "10010", "--max-per-client", "100"];
    let server = Server::start(&[&["--engine", "embedded"], &limits[..]].concat());
    let mut connected = server.client().await;
    connected.classify(cat()).await.unwrap();
    let before = server.usage();

    let idlers = idle(&server.grpc, most, most).await;
    if most < 10_000 {
        common::skipped(&format!(
            "only {most} of 10000 idle connections: more files may not be opened here"
        ));
    }
    connected
        .classify(cat())
        .await
        .expect("connected clients are served");
    assert_serves(&server).await;
    let after = server.usage();
    assert!(
        after.files >= before.files + most,
        "{before:?}, then {after:?}"
    );
    let each = (after.memory_mib.saturating_sub(before.memory_mib) << 10) as usize / most.max(1);
    assert!(
        each < 100,
        "each connection takes {each} KiB: {before:?}, then {after:?}"
    );
    drop(idlers);
    assert_recovers(&server, before).await;
}
