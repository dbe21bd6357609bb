//! Callers whose messages take memory: arriving, decompressed and waiting messages are charged to a
//! budget, of which one caller has a part.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use h2::client::{ResponseFuture, SendRequest};
use resnet18_server::proto::{
    FramePolicy, Image, PixelFormat, RawFrame, StreamConfig, image::Source,
    stream_classify_response::Outcome,
};
use tonic::Code;

use super::{
    assert_discreet, assert_serves, cat,
    common::{
        Server, config,
        http2::{self, CLASSIFY, CompressedMessage, Encoding, framed},
        request,
    },
    frame_of,
};

const MEMORY: &str = "classifier_message_memory_bytes";
const LIMIT: &str = "classifier_message_memory_limit_bytes";

/// The least memory that the flag accepts: 64 MiB for messages, 32 for those of one caller.
const FLAGS: [&str; 4] = ["--engine", "embedded", "--max-memory", "128"];

/// A call that announces a message of this many bytes and sends only the first of them.
pub fn begin(
    connection: &mut SendRequest<Bytes>,
    mib: u32,
) -> (ResponseFuture, h2::SendStream<Bytes>) {
    let call = http2::call(CLASSIFY).body(()).unwrap();
    let (response, mut sender) = connection.send_request(call, false).unwrap();
    let prefix = [&[0], &(mib << 20).to_be_bytes()[..], &[0; 100]].concat();
    sender.send_data(prefix.into(), false).unwrap();
    (response, sender)
}

async fn until(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn one_address_can_not_take_the_memory_of_the_others() {
    let server = Server::start(&FLAGS);
    assert_eq!(server.metric(LIMIT, &[]), f64::from(64 << 20));

    let mut greedy = http2::connect_from([127, 0, 0, 2], &server.grpc).await;
    let held: Vec<_> = (0..2).map(|_| begin(&mut greedy, 16)).collect();
    until(|| server.metric(MEMORY, &[]) == f64::from(32 << 20)).await;
    for _ in 0..20 {
        let (response, _sender) = begin(&mut greedy, 1);
        let status = http2::status(response).await.unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let message = status.message();
        assert!(
            message.contains("of 32") && message.contains("--max-memory"),
            "{message}"
        );
        assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
        assert_discreet("too much memory", &status);
    }
    assert_eq!(
        server.metric("classifier_rejected_total", &["memory"]),
        20.0
    );
    assert_serves(&server).await;

    // Others have the rest, and no more.
    let mut other = http2::connect_from([127, 0, 0, 3], &server.grpc).await;
    let others: Vec<_> = (0..2).map(|_| begin(&mut other, 16)).collect();
    until(|| server.metric(MEMORY, &[]) == f64::from(64 << 20)).await;
    let mut third = http2::connect_from([127, 0, 0, 4], &server.grpc).await;
    let (response, _sender) = begin(&mut third, 1);
    let status = http2::status(response).await.unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("of 64"), "{status:?}");

    drop((held, others, greedy, other));
    until(|| server.metric(MEMORY, &[]) == 0.0).await;
    assert_serves(&server).await;
}

/// A stream does not fail when there is no memory for its next frame: flow control holds it back.
#[tokio::test(flavor = "multi_thread")]
async fn streams_of_large_frames_wait_for_memory() {
    const STREAMS: u64 = 8;
    const FRAMES: u64 = 6;
    let server = Server::start(&FLAGS);
    assert_serves(&server).await;
    let before = server.usage();

    let (width, height) = (1600, 1200);
    let pixels = Bytes::from(vec![90; width as usize * height as usize * 3]);
    let frame = |id| {
        let raw = RawFrame {
            format: PixelFormat::Rgb8.into(),
            width,
            height,
            stride: 0,
            data: pixels.clone(),
        };
        let image = Image {
            source: Some(Source::Raw(raw)),
        };
        frame_of(id, image)
    };
    let streams = (0..STREAMS).map(|_| async {
        let mut client = server.client().await;
        let settings = config(StreamConfig {
            policy: FramePolicy::Every.into(),
            ..Default::default()
        });
        let messages: Vec<_> = std::iter::once(settings)
            .chain((0..FRAMES).map(frame))
            .collect();
        let answers = client.stream_classify(tokio_stream::iter(messages)).await;
        let mut answers = answers.unwrap().into_inner();
        for id in 0..FRAMES {
            let answer = answers
                .message()
                .await
                .unwrap()
                .expect("every frame is answered");
            assert_eq!(answer.frame_id, id);
            assert!(matches!(answer.outcome, Some(Outcome::Result(_))));
        }
        assert!(answers.message().await.unwrap().is_none());
    });
    join_all(streams).await;

    // With three frames of 5.5 MiB in work and one that arrives, eight streams would take 176 MiB.
    let after = server.usage();
    assert!(
        after.peak_mib < before.peak_mib + 120,
        "{before:?}, then {after:?}"
    );
    until(|| server.metric(MEMORY, &[]) == 0.0).await;
}

/// Decompressing costs far more than sending; it must not hold up the connections of others.
#[tokio::test(flavor = "multi_thread")]
async fn callers_are_answered_beside_one_whose_messages_are_compressed() {
    let server = Server::start(&["--engine", "embedded"]);
    let beside_nobody = median_latency(&server).await;

    let zeros = request(Image {
        source: Some(Source::Encoded(vec![0; 15 << 20].into())),
    });
    let bomb = Arc::new(CompressedMessage::new(Encoding::Gzip, &zeros));
    let attackers: Vec<_> = (0..16)
        .map(|_| {
            let (address, bomb) = (server.grpc.clone(), Arc::clone(&bomb));
            tokio::spawn(async move {
                let mut connection = http2::connect(&address).await;
                loop {
                    bomb.classify(&mut connection).await;
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let beside_attackers = median_latency(&server).await;
    for attacker in attackers {
        attacker.abort();
    }
    // Decompressing may take half of the cores, and the decoders refuse the images on the others.
    assert!(
        beside_attackers < 3 * beside_nobody + Duration::from_millis(100),
        "{beside_nobody:?}, beside attackers {beside_attackers:?}"
    );
    assert_serves(&server).await;
}

async fn median_latency(server: &Server) -> Duration {
    let mut client = server.client().await;
    let mut latencies = Vec::new();
    for _ in 0..9 {
        let started = Instant::now();
        client.classify(cat()).await.unwrap();
        latencies.push(started.elapsed());
    }
    latencies.sort();
    latencies[4]
}

#[tokio::test]
async fn damaged_compressed_messages_are_named() {
    let server = Server::start(&["--engine", "embedded"]);
    let mut connection = http2::connect(&server.grpc).await;
    let mut status_of = async |encoding: &str, body: Vec<u8>| {
        let call = http2::call(CLASSIFY).header("grpc-encoding", encoding);
        let (response, mut sender) = connection
            .send_request(call.body(()).unwrap(), false)
            .unwrap();
        sender.send_data(body.into(), true).unwrap();
        http2::status(response).await.unwrap()
    };
    let good = framed(&cat());
    let not_compressed = [&[1], &good[1..]].concat();
    for encoding in ["deflate", "gzip", "zstd"] {
        // Messages that are not compressed are accepted beside ones that are.
        assert_eq!(status_of(encoding, good.clone()).await.code(), Code::Ok);
        let damaged = status_of(encoding, not_compressed.clone()).await;
        assert_eq!(damaged.code(), Code::InvalidArgument, "{damaged:?}");
        assert!(damaged.message().contains("decompressed"), "{damaged:?}");
        let cut = status_of(encoding, not_compressed[..200].to_vec()).await;
        assert_eq!(cut.code(), Code::InvalidArgument, "{cut:?}");
    }

    let unknown = status_of("snappy", not_compressed).await;
    assert_eq!(unknown.code(), Code::Unimplemented);
    let accepted = unknown.metadata().get("grpc-accept-encoding");
    assert_eq!(accepted.unwrap(), "gzip,deflate,zstd,identity");
}
