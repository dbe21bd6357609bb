//! Clients that mean harm: bombs, lies, floods, slowness, vanishing. They get nothing but a clear
//! refusal, and the others are answered meanwhile.
#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod bombs;
mod clients;
mod connections;
mod input;

use std::time::{Duration, Instant};

use common::{Server, Usage, data, image, request};
use resnet18_server::proto::{
    ClassifyRequest, Frame, Image, StreamClassifyRequest, stream_classify_request::Message,
};
use tonic::Status;

fn cat() -> ClassifyRequest {
    request(image(data("cat.jpg")))
}

fn tiny() -> Image {
    image(data("tiny_33x47.png"))
}

fn frame_of(id: u64, image: Image) -> StreamClassifyRequest {
    StreamClassifyRequest {
        message: Some(Message::Frame(Frame {
            id,
            captured_at: None,
            image: Some(image),
        })),
    }
}

/// What a caller reads tells nothing of the server's inside.
fn assert_discreet(what: &str, status: &Status) {
    let message = status.message();
    for word in ["/", "\\", ".rs", "panic", "unwrap"] {
        assert!(
            !message.contains(word),
            "{what}: {word:?} is in {message:?}"
        );
    }
    assert!(message.chars().count() <= 501, "{what}: {message}");
}

/// Somebody who means no harm is answered.
async fn assert_serves(server: &Server) {
    let mut client = server.client().await;
    let answer = tokio::time::timeout(Duration::from_secs(20), client.classify(cat())).await;
    let answer = answer
        .expect("the server answers in time")
        .expect("the server answers")
        .into_inner();
    assert_eq!(answer.classifications[0].label, "cat");
}

/// Waits until nothing is in progress and hardly more files are open and threads run than before.
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
        // One file for the metrics' own connection; and looking at them keeps a few threads for
        // blocking work alive.
        if busy.is_empty() && now.files <= before.files + 1 && now.threads <= before.threads + 3 {
            return;
        }
        assert!(
            Instant::now() < give_up,
            "not zero: {busy:?}; {now:?} instead of {before:?}\n{}",
            server.log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
