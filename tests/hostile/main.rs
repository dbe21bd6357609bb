//! Hostile clients: decompression bombs, false sizes, floods, slow senders, vanishing clients. They
//! get a clear refusal and no more, and the server answers others meanwhile.
#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod bombs;
mod clients;
mod connections;
mod container;
mod fairness;
mod hammering;
mod http;
mod images;
mod input;
mod log;
mod memory;
mod models;
mod places;
mod rest;

use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use common::{Server, Usage, data, image, request};
use resnet18_server::proto::{
    ClassifyRequest, Frame, Image, StreamClassifyRequest, stream_classify_request::Message,
};
use tonic::Status;

/// A request with a good photo.
fn cat() -> ClassifyRequest {
    request(image(data("cat.jpg")))
}

/// An image of a few kilobytes.
fn tiny() -> Image {
    image(data("tiny_33x47.png"))
}

/// A message of a stream with one frame.
fn frame_of(id: u64, image: Image) -> StreamClassifyRequest {
    StreamClassifyRequest {
        message: Some(Message::Frame(Frame {
            id,
            captured_at: None,
            image: Some(image),
            regions: Vec::new(),
        })),
    }
}

/// A connection to the HTTP port that gives up reading and writing after 20 s.
fn connect(http: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(http).unwrap();
    let patience = Some(Duration::from_secs(20));
    stream.set_read_timeout(patience).unwrap();
    stream.set_write_timeout(patience).unwrap();
    stream
}

/// Error messages reveal nothing of the server's internals, and are short.
fn assert_discreet(what: &str, status: &Status) {
    let message = status.message();
    for word in ["/", "\\", ".rs", "panic", "unwrap"] {
        assert!(
            !message.contains(word),
            "{what}: the message {message:?} contains {word:?}"
        );
    }
    assert!(message.chars().count() <= 501, "{what}: {message}");
}

/// An ordinary client is answered.
async fn assert_serves(server: &Server) {
    let mut client = server.client().await;
    let answer = tokio::time::timeout(Duration::from_secs(20), client.classify(cat())).await;
    let answer = answer
        .expect("the server answers in time")
        .expect("the server answers")
        .into_inner();
    assert_eq!(answer.classifications[0].label, "cat");
}

/// Waits until nothing is in progress, and files and threads are as few as before, within
/// tolerances.
async fn assert_recovers(server: &Server, before: Usage) {
    let give_up = Instant::now() + Duration::from_secs(20);
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
        // One file for the connection that reads the metrics, which also keeps a few of tokio's
        // threads for blocking work alive.
        if busy.is_empty() && now.files <= before.files + 1 && now.threads <= before.threads + 3 {
            return;
        }
        assert!(
            Instant::now() < give_up,
            "not zero: {busy:?}; before {before:?}, now {now:?}\n{}",
            server.log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
