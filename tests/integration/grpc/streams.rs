//! Streams of frames: policies, order, errors and smoothing.

use std::time::Duration;

use resnet18_server::proto::{
    FramePolicy, Image, PixelFormat, StreamClassifyRequest, StreamConfig, image::Source,
    stream_classify_response::Outcome,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request};

use super::{frame, open, raw, request_cat};
use crate::common::{Server, config, data, image};

#[tokio::test]
async fn the_policy_every_answers_all_frames_in_order_bad_ones_with_an_error() {
    let server = Server::start(&[]);
    let (sender, mut answers) = open(
        &server,
        config(StreamConfig {
            policy: FramePolicy::Every.into(),
            top_k: 1,
            ..Default::default()
        }),
    )
    .await;
    let feed = tokio::spawn(async move {
        for id in 0..30 {
            let picture = match id % 10 {
                3 => Image {
                    source: Some(Source::Encoded("not an image".into())),
                },
                7 => raw(PixelFormat::Nv12, 64, 48, 0, vec![1; 3]),
                _ => image(data(if id % 2 == 0 {
                    "cat.jpg"
                } else {
                    "sunflower_q30.jpg"
                })),
            };
            sender.send(frame(id, picture)).await.unwrap();
        }
    });

    for id in 0..30 {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.frame_id, id);
        assert_eq!(answer.dropped_frames, 0);
        match (id % 10, answer.outcome.unwrap()) {
            (3 | 7, Outcome::Error(error)) => {
                assert_eq!(error.code, Code::InvalidArgument as i32, "{error:?}");
            }
            (_, Outcome::Result(result)) => {
                let expected = if id % 2 == 0 { "cat" } else { "sunflower" };
                assert_eq!(result.classifications[0].label, expected);
            }
            (_, outcome) => panic!("frame {id}: {outcome:?}"),
        }
    }
    feed.await.unwrap();
    assert!(
        answers.message().await.unwrap().is_none(),
        "the stream ends when the caller's side has ended"
    );

    assert_eq!(
        server.metric("classifier_frames_total", &["outcome=\"classified\""]),
        24.0
    );
    assert_eq!(
        server.metric("classifier_frames_total", &["outcome=\"failed\""]),
        6.0
    );
    assert_eq!(server.metric("classifier_streams_active", &[]), 0.0);
}

#[tokio::test]
async fn the_policy_latest_answers_the_newest_frame_and_counts_dropped_ones() {
    let server = Server::start(&[]);
    let (sender, mut answers) = open(
        &server,
        config(StreamConfig {
            policy: FramePolicy::Latest.into(),
            ..Default::default()
        }),
    )
    .await;
    let total = 300;
    let cat = std::fs::read(data("cat.jpg")).unwrap();
    let feed = tokio::spawn(async move {
        for id in 1..=total {
            let picture = Image {
                source: Some(Source::Encoded(cat.clone().into())),
            };
            sender.send(frame(id, picture)).await.unwrap();
        }
    });

    let mut answered = 0;
    let mut last = 0;
    let mut dropped = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        assert!(
            answer.frame_id > last,
            "an older frame is answered after a newer one"
        );
        last = answer.frame_id;
        dropped = answer.dropped_frames;
        answered += 1;
    }
    feed.await.unwrap();

    assert_eq!(last, total, "the newest frame is always answered");
    assert_eq!(answered + dropped, total);
    assert!(dropped > 0, "300 frames at once can't all be classified");
    assert_eq!(
        server.metric("classifier_frames_total", &["outcome=\"dropped\""]),
        dropped as f64
    );
}

#[tokio::test]
async fn a_violation_of_the_stream_protocol_ends_the_stream() {
    let server = Server::start(&[]);
    let cat = || image(data("cat.jpg"));
    let good = || config(StreamConfig::default());
    let cases: Vec<(Vec<StreamClassifyRequest>, Code, &str)> = vec![
        (vec![frame(1, cat())], Code::InvalidArgument, "config"),
        (vec![good(), good()], Code::InvalidArgument, "once"),
        (
            vec![good(), StreamClassifyRequest { message: None }],
            Code::InvalidArgument,
            "neither",
        ),
        (
            vec![config(StreamConfig {
                model: "x".into(),
                ..Default::default()
            })],
            Code::NotFound,
            "resnet18-demo",
        ),
        (
            vec![config(StreamConfig {
                policy: 9,
                ..Default::default()
            })],
            Code::InvalidArgument,
            "LATEST",
        ),
        (vec![], Code::InvalidArgument, "config"),
    ];
    for (messages, code, hint) in cases {
        let mut answers = server
            .client()
            .await
            .stream_classify(tokio_stream::iter(messages))
            .await
            .unwrap()
            .into_inner();
        let status = loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without an error, not with {code:?}"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), code, "{status:?}");
        assert!(
            status.message().contains(hint),
            "{hint:?} is not in {:?}",
            status.message()
        );
    }
}

#[tokio::test]
async fn smoothing_keeps_the_label_over_a_different_frame() {
    let server = Server::start(&[]);
    let smoothing = Some(prost_types::Duration {
        seconds: 3600,
        nanos: 0,
    });
    let (sender, mut answers) = open(
        &server,
        config(StreamConfig {
            smoothing,
            ..Default::default()
        }),
    )
    .await;

    for (id, name) in [(1, "cat.jpg"), (2, "sunflower_q30.jpg")] {
        sender.send(frame(id, image(data(name)))).await.unwrap();

        let answer = answers.message().await.unwrap().unwrap();
        let Some(Outcome::Result(result)) = answer.outcome else {
            panic!("{answer:?}")
        };
        assert_eq!(
            result.classifications[0].label, "cat",
            "with a half-life of an hour, one other frame changes nothing"
        );
    }
}

#[tokio::test]
async fn unread_streams_do_not_block_other_calls_of_their_connection() {
    let server = Server::start(&[]);
    let client = server.client().await;
    let cat = image(data("cat.jpg"));
    let mut unread = Vec::new();
    for _ in 0..12 {
        let (sender, receiver) = mpsc::channel(4);
        sender.send(config(StreamConfig::default())).await.unwrap();
        unread.push(
            client
                .clone()
                .stream_classify(ReceiverStream::new(receiver))
                .await
                .unwrap(),
        );
        let cat = cat.clone();
        tokio::spawn(async move { while sender.send(frame(1, cat.clone())).await.is_ok() {} });
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;

    let mut request = Request::new(request_cat());
    request.set_timeout(Duration::from_secs(5));
    client
        .clone()
        .classify(request)
        .await
        .expect("the connection still works");
}
