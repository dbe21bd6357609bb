//! Floods of frames, and more connections than anybody needs.

use std::time::{Duration, Instant};

use super::{
    assert_recovers, assert_serves, cat,
    common::{
        self, Server,
        http2::{self, CLASSIFY, Wire, frame, kind},
        resnet18_with_files,
    },
};

#[tokio::test]
async fn floods_of_frames_are_cut_off_or_held_back() {
    let server = Server::start(&["--engine", "embedded"]);
    assert_serves(&server).await;
    let before = server.usage();
    let flood = |frames: Box<dyn Iterator<Item = Vec<u8>> + Send>| {
        let address = server.grpc.clone();
        tokio::task::spawn_blocking(move || {
            let mut wire = Wire::connect(&address);
            let all = wire.send_all(frames);
            (wire, all)
        })
    };
    let open = |id| {
        frame(
            kind::HEADERS,
            http2::END_HEADERS,
            id,
            &http2::headers(CLASSIFY),
        )
    };
    let resets = flood(Box::new((0..50_000).map(|n| 2 * n + 1).flat_map(
        move |id| {
            [
                open(id),
                frame(kind::RST_STREAM, 0, id, &8_u32.to_be_bytes()),
            ]
        },
    )));
    let endless = [
        [frame(kind::HEADERS, 0, 1, &http2::headers(CLASSIFY))]
            .to_vec()
            .concat(),
        frame(
            kind::CONTINUATION,
            0,
            1,
            &http2::field("x-endless", &"x".repeat(16_000)),
        ),
    ];
    let [first, next] = endless;
    let continuations = flood(Box::new(
        std::iter::once(first).chain(std::iter::repeat_n(next, 5_000)),
    ));
    let settings = flood(Box::new(std::iter::repeat_n(
        frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]),
        500_000,
    )));
    let pings = flood(Box::new(std::iter::repeat_n(
        frame(kind::PING, 0, 0, b"12345678"),
        500_000,
    )));
    assert_serves(&server).await;

    for (name, flood) in [("rapid reset", resets), ("continuations", continuations)] {
        let (mut wire, _) = flood.await.unwrap();
        let reason = tokio::task::spawn_blocking(move || wire.ended())
            .await
            .unwrap();
        let reason = reason.unwrap_or_else(|_| panic!("{name}: the connection stays open"));
        // A reset connection may lose the reason on its way.
        assert!(
            reason.is_none_or(|reason| reason == http2::ENHANCE_YOUR_CALM),
            "{name}: {reason:?}"
        );
    }
    // Answers that are not read stop the reading of questions.
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

/// Connections that greet and then say nothing; the first `greeted` wait until the server has
/// greeted too.
async fn idle(address: &str, most: usize, greeted: usize) -> Vec<Wire> {
    let address = address.to_owned();
    let connect = move |number| {
        let mut wire = Wire::connect(&address);
        if number < greeted {
            wire.wait_for(kind::SETTINGS).expect("the server greets");
        }
        wire
    };
    // The connections of this thread's clients have to be kept alive meanwhile.
    tokio::task::spawn_blocking(move || (0..most).map(connect).collect())
        .await
        .unwrap()
}

#[tokio::test]
async fn idle_connections_up_to_the_limit_of_files_shut_nobody_out_who_is_inside() {
    let server = Server::spawn_as(resnet18_with_files(600), &["--engine", "embedded"]);
    server.wait_until_ready();
    assert!(
        server
            .log()
            .contains("may open 600 files, so 344 connections"),
        "{}",
        server.log()
    );
    let mut inside = server.client().await;
    inside.classify(cat()).await.unwrap();
    let before = server.usage();
    let idlers = idle(&server.grpc, 400, 300).await;
    let give_up = Instant::now() + Duration::from_secs(20);
    while !server
        .log()
        .contains("344 connections are open; further ones wait")
    {
        assert!(Instant::now() < give_up, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    inside
        .classify(cat())
        .await
        .expect("those inside are served");
    assert_eq!(server.get("/readyz").0, 200);
    drop(idlers);
    assert_serves(&server).await;
    assert_recovers(&server, before).await;
}

#[tokio::test]
async fn ten_thousand_idle_connections_cost_little() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .unwrap();
    // Some are for the other tests of this process, and for the server's own files.
    let most = maximum.map_or(10_000, |files| files.saturating_sub(3000).min(10_000)) as usize;
    let server = Server::start(&["--engine", "embedded", "--max-connections", "10010"]);
    let mut inside = server.client().await;
    inside.classify(cat()).await.unwrap();
    let before = server.usage();
    let idlers = idle(&server.grpc, most, most).await;
    if most < 10_000 {
        common::skipped(&format!(
            "only {most} of 10000 idle connections: more files may not be opened here"
        ));
    }
    inside
        .classify(cat())
        .await
        .expect("those inside are served");
    assert_serves(&server).await;
    let after = server.usage();
    assert!(
        after.files >= before.files + most,
        "{before:?}, then {after:?}"
    );
    let each = (after.memory_mib.saturating_sub(before.memory_mib) << 10) as usize / most.max(1);
    assert!(
        each < 100,
        "{each} KiB a connection: {before:?}, then {after:?}"
    );
    drop(idlers);
    assert_recovers(&server, before).await;
}
