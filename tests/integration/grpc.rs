//! The contract, through a real server process and tonic's own client.

use std::time::{Duration, Instant};

use crate::common::{Server, config, data, image, request};
use resnet18_server::proto::{
    ClassifyRequest, ClassifyResponse, Frame, FramePolicy, Image, ListModelsRequest, PixelFormat,
    RawFrame, StreamClassifyRequest, StreamClassifyResponse, StreamConfig, image::Source,
    stream_classify_request::Message, stream_classify_response::Outcome,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;

fn frame(id: u64, image: Image) -> StreamClassifyRequest {
    StreamClassifyRequest {
        message: Some(Message::Frame(Frame {
            id,
            captured_at: None,
            image: Some(image),
        })),
    }
}

fn raw(format: PixelFormat, width: u32, height: u32, stride: u32, data: Vec<u8>) -> Image {
    let frame = RawFrame {
        format: format.into(),
        width,
        height,
        stride,
        data: data.into(),
    };
    Image {
        source: Some(Source::Raw(frame)),
    }
}

/// Opens a stream; the sender feeds it.
async fn open(
    server: &Server,
    first: StreamClassifyRequest,
) -> (
    mpsc::Sender<StreamClassifyRequest>,
    tonic::Streaming<StreamClassifyResponse>,
) {
    let (sender, receiver) = mpsc::channel(4);
    sender.send(first).await.unwrap();
    let answers = server
        .client()
        .await
        .stream_classify(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    (sender, answers)
}

#[tokio::test]
async fn classify_answers_with_label_version_and_timing() {
    let server = Server::start(&[]);
    let answer = server
        .client()
        .await
        .classify(request(image(data("cat.jpg"))))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.model, "resnet18-demo");
    assert_eq!(answer.model_version.len(), 12);
    assert_eq!(answer.classifications.len(), 5);
    let first = &answer.classifications[0];
    assert_eq!(first.label, "cat");
    assert!(
        (first.probability - 0.70).abs() < 0.02,
        "{}",
        first.probability
    );
    assert!(
        answer
            .classifications
            .is_sorted_by(|a, b| a.probability >= b.probability)
    );
    let timing = answer.timing.unwrap();
    let seconds =
        |d: Option<prost_types::Duration>| Duration::try_from(d.unwrap()).unwrap().as_secs_f64();
    let parts = seconds(timing.decode) + seconds(timing.queue) + seconds(timing.inference);
    assert!(seconds(timing.decode) > 0.0 && seconds(timing.inference) > 0.0);
    assert!(
        parts <= seconds(timing.total),
        "{parts} > {}",
        seconds(timing.total)
    );
}

#[tokio::test]
async fn top_k_and_min_probability_limit_the_answer() {
    let server = Server::start(&[]);
    let mut client = server.client().await;
    let ask = |top_k, min_probability| ClassifyRequest {
        top_k,
        min_probability,
        ..request(image(data("cat.jpg")))
    };
    let count = |answer: tonic::Response<resnet18_server::proto::ClassifyResponse>| {
        answer.into_inner().classifications.len()
    };
    assert_eq!(count(client.classify(ask(1, 0.0)).await.unwrap()), 1);
    assert_eq!(
        count(client.classify(ask(1_000_000, 0.0)).await.unwrap()),
        106
    );
    assert_eq!(count(client.classify(ask(0, 0.5)).await.unwrap()), 1);
    for wrong in [-0.1, 1.5, f32::NAN] {
        let status = client.classify(ask(5, wrong)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(
            status.message().contains("min_probability"),
            "{}",
            status.message()
        );
    }
}

#[tokio::test]
async fn bad_requests_say_what_would_be_right_and_harm_nobody() {
    let server = Server::start(&["--max-message-mib", "1"]);
    let mut client = server.client().await;
    let encoded = |bytes: &[u8]| Image {
        source: Some(Source::Encoded(bytes.to_vec().into())),
    };
    let cat = std::fs::read(data("cat.jpg")).unwrap();
    let cases: Vec<(ClassifyRequest, Code, &str)> = vec![
        (
            ClassifyRequest::default(),
            Code::InvalidArgument,
            "image.encoded",
        ),
        (
            request(Image { source: None }),
            Code::InvalidArgument,
            "image.encoded",
        ),
        (request(encoded(b"")), Code::InvalidArgument, "empty"),
        (
            request(encoded(b"<html>not found</html>")),
            Code::InvalidArgument,
            "JPEG",
        ),
        (
            request(encoded(&cat[..cat.len() / 2])),
            Code::InvalidArgument,
            "JPEG",
        ),
        (
            request(raw(PixelFormat::Unspecified, 2, 2, 0, vec![0; 12])),
            Code::InvalidArgument,
            "RGB8",
        ),
        (
            request(raw(PixelFormat::Rgb8, 2, 2, 5, vec![0; 12])),
            Code::InvalidArgument,
            "stride",
        ),
        (
            request(raw(PixelFormat::Rgb8, 2, 2, 0, vec![0; 11])),
            Code::InvalidArgument,
            "12",
        ),
        (
            ClassifyRequest {
                model: "vgg".into(),
                ..request(encoded(&cat))
            },
            Code::NotFound,
            "resnet18-demo",
        ),
        (request(encoded(&vec![0; 2 << 20])), Code::OutOfRange, ""),
    ];
    for (request, code, hint) in cases {
        let status = client.classify(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(
            status.message().contains(hint),
            "{hint:?} is not in {:?}",
            status.message()
        );
        client
            .classify(request_cat())
            .await
            .expect("the next request is served");
    }
    let unknown_format = RawFrame {
        format: 99,
        width: 1,
        height: 1,
        stride: 0,
        data: vec![0; 3].into(),
    };
    let status = client
        .classify(request(Image {
            source: Some(Source::Raw(unknown_format)),
        }))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("99"), "{}", status.message());
}

fn request_cat() -> ClassifyRequest {
    request(image(data("cat.jpg")))
}

#[tokio::test]
async fn raw_frames_are_classified_like_the_photo() {
    let server = Server::start(&[]);
    let crop = image::open(data("crops/cat_jpg.png")).unwrap().to_rgb8();
    let (width, height) = crop.dimensions();
    let stride = width * 3 + 13;
    let mut padded = Vec::new();
    for row in crop.as_raw().chunks_exact(width as usize * 3) {
        padded.extend(row.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]]));
        padded.extend([0xAA; 13]);
    }
    let mut client = server.client().await;
    let frame = raw(PixelFormat::Bgr8, width, height, stride, padded);
    let answer = client.classify(request(frame)).await.unwrap().into_inner();
    assert_eq!(answer.classifications[0].label, "cat");
}

#[tokio::test]
async fn the_models_are_listed() {
    let server = Server::start(&["--engine", "embedded"]);
    let models = server
        .client()
        .await
        .list_models(ListModelsRequest {})
        .await
        .unwrap()
        .into_inner()
        .models;
    assert_eq!(models.len(), 1);
    let model = &models[0];
    assert_eq!(
        (
            model.input_width,
            model.input_height,
            model.resize_shorter_side
        ),
        (224, 224, 256)
    );
    assert_eq!(
        (model.labels.len(), model.labels[16].as_str()),
        (106, "cat")
    );
    assert_eq!(
        (model.engine.as_str(), model.precision.as_str()),
        ("embedded", "fp32")
    );
}

#[tokio::test]
async fn health_follows_the_state() {
    let server = Server::spawn(&[]);
    let channel = tonic::transport::Endpoint::from_shared(server.url())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut health = HealthClient::new(channel);
    for service in ["", "resnet18.v1.Classifier"] {
        let mut watch = health
            .watch(HealthCheckRequest {
                service: service.into(),
            })
            .await
            .unwrap()
            .into_inner();
        let mut status = watch.message().await.unwrap().unwrap().status();
        while status != ServingStatus::Serving {
            assert_eq!(status, ServingStatus::NotServing);
            status = watch.message().await.unwrap().unwrap().status();
        }
    }
    let unknown = health
        .check(HealthCheckRequest {
            service: "other".into(),
        })
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let mut watch = health
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );
    server.signal("TERM");
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::NotServing
    );
}

#[tokio::test]
async fn every_frame_is_answered_in_order_and_a_bad_one_keeps_its_place() {
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
                assert_eq!(error.code, Code::InvalidArgument as i32, "{error:?}")
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
async fn latest_answers_the_newest_frame_and_counts_the_dropped() {
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
    let (mut answered, mut last, mut dropped) = (0, 0, 0);
    while let Some(answer) = answers.message().await.unwrap() {
        assert!(answer.frame_id > last, "an older frame after a newer one");
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
async fn a_broken_protocol_ends_the_stream() {
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
                Ok(None) => panic!("the stream ended well"),
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
async fn smoothing_steadies_the_probabilities() {
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
    sender.send(frame(1, image(data("cat.jpg")))).await.unwrap();
    sender
        .send(frame(2, image(data("sunflower_q30.jpg"))))
        .await
        .unwrap();
    for _ in 0..2 {
        let Some(Outcome::Result(result)) = answers.message().await.unwrap().unwrap().outcome
        else {
            panic!()
        };
        assert_eq!(
            result.classifications[0].label, "cat",
            "an hour's half-life hides one other frame"
        );
    }
}

#[tokio::test]
async fn the_deadline_is_kept_and_expired_work_is_never_done() {
    // One thread and the slow engine, so that a queue forms.
    let server = Server::start(&[
        "--engine",
        "embedded",
        "--threads",
        "1",
        "--queue-capacity",
        "100",
    ]);
    let client = server.client().await;
    let calls = (0..30).map(|_| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let mut request = Request::new(request_cat());
            request.set_timeout(Duration::from_millis(150));
            let started = Instant::now();
            let result = client.classify(request).await;
            (
                result.map(drop).map_err(|status| status.code()),
                started.elapsed(),
            )
        })
    });
    let mut late = 0;
    for call in calls.collect::<Vec<_>>() {
        let (result, took) = call.await.unwrap();
        if let Err(code) = result {
            // tonic's client has a timer of its own, which answers CANCELLED when it is first.
            assert!(
                matches!(code, Code::DeadlineExceeded | Code::Cancelled),
                "{code:?}"
            );
            assert!(took < Duration::from_millis(1000), "{took:?}");
            late += 1;
        }
    }
    assert!(late > 5, "{late}");
    server
        .client()
        .await
        .classify(request_cat())
        .await
        .expect("the queue is free again");
    let skipped = server.metric("classifier_rejected_total", &["reason=\"deadline\""])
        + server.metric("classifier_rejected_total", &["reason=\"cancelled\""]);
    let inferred = server.metric(
        "classifier_stage_duration_seconds_count",
        &["stage=\"inference\""],
    );
    // A call that expired on its way to the queue is in neither figure.
    assert!(skipped > 0.0);
    assert!(
        skipped + inferred <= 31.0,
        "nothing is both skipped and done: {skipped} + {inferred}"
    );
    let counted = server.metric(
        "classifier_requests_total",
        &["method=\"Classify\"", "code=\"DEADLINE_EXCEEDED\""],
    ) + server.metric(
        "classifier_requests_total",
        &["method=\"Classify\"", "code=\"CANCELLED\""],
    );
    // The client's clock may have run out a moment before the answer arrived.
    assert!(
        counted > 0.0 && counted <= f64::from(late),
        "{counted} of {late}"
    );
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
    let server = Server::start(&[
        "--engine",
        "embedded",
        "--threads",
        "1",
        "--queue-capacity",
        "2",
    ]);
    let calls: Vec<_> = (0..12)
        .map(|_| {
            let url = server.url();
            tokio::spawn(async move {
                let channel = tonic::transport::Endpoint::from_shared(url)
                    .unwrap()
                    .connect()
                    .await
                    .unwrap();
                let mut client =
                    resnet18_server::proto::classifier_client::ClassifierClient::new(channel);
                client.classify(request_cat()).await
            })
        })
        .collect();
    let mut refused = Vec::<Status>::new();
    let mut served = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => served += 1,
            Err(status) => refused.push(status),
        }
    }
    assert!(
        served >= 2 && refused.len() >= 5,
        "{served} served, {} refused",
        refused.len()
    );
    for status in &refused {
        assert_eq!(status.code(), Code::ResourceExhausted);
        let delay = status
            .get_error_details()
            .retry_info()
            .and_then(|info| info.retry_delay)
            .expect("a RetryInfo");
        assert!(
            delay > Duration::ZERO && delay < Duration::from_secs(10),
            "{delay:?}"
        );
        let pushback = status
            .metadata()
            .get("grpc-retry-pushback-ms")
            .expect("for gRPC's own retries");
        assert_eq!(pushback.to_str().unwrap(), delay.as_millis().to_string());
    }
    assert_eq!(
        server.metric("classifier_rejected_total", &["reason=\"queue_full\""]),
        refused.len() as f64
    );
}

#[tokio::test]
async fn a_full_queue_refuses_an_image_that_is_still_on_its_way() {
    let server = Server::start(&[
        "--engine",
        "embedded",
        "--threads",
        "1",
        "--queue-capacity",
        "1",
    ]);
    let crowd: Vec<_> = (0..6)
        .map(|_| {
            let url = server.url();
            tokio::spawn(async move {
                let channel = tonic::transport::Endpoint::from_shared(url)
                    .unwrap()
                    .connect()
                    .await
                    .unwrap();
                let mut client =
                    resnet18_server::proto::classifier_client::ClassifierClient::new(channel);
                loop {
                    let _ = client.classify(request_cat()).await;
                }
            })
        })
        .collect();
    let channel = tonic::transport::Endpoint::from_shared(server.url())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let without_message = || async {
        let mut call = tonic::client::Grpc::new(channel.clone());
        call.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<ClassifyRequest, ClassifyResponse>::default();
        let path = "/resnet18.v1.Classifier/Classify".parse().unwrap();
        let nothing = Request::new(tokio_stream::pending::<ClassifyRequest>());
        let answer = call.client_streaming(nothing, path, codec);
        tokio::time::timeout(Duration::from_millis(500), answer)
            .await
            .ok()
    };
    let mut refused = None;
    for _ in 0..50 {
        if let Some(answer) = without_message().await {
            refused = Some(answer.map(|_| ()).expect_err("there was no message"));
            break;
        }
    }
    crowd.iter().for_each(tokio::task::JoinHandle::abort);
    let refused = refused.expect("the queue is full most of the time");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_error_details().retry_info().is_some());
    let counted = ["method=\"Classify\"", "code=\"RESOURCE_EXHAUSTED\""];
    assert!(server.metric("classifier_requests_total", &counted) > 0.0);
}

#[tokio::test]
async fn refusals_leave_the_connection_as_it_is() {
    let server = Server::start(&[
        "--engine",
        "embedded",
        "--threads",
        "1",
        "--queue-capacity",
        "1",
    ]);
    let client = server.client().await;
    let mut refused = 0;
    for _ in 0..20 {
        let calls = (0..32).map(|_| {
            let mut client = client.clone();
            let frame = raw(PixelFormat::Rgb8, 300, 300, 0, vec![100; 300 * 300 * 3]);
            tokio::spawn(async move { client.classify(request(frame)).await })
        });
        for call in calls.collect::<Vec<_>>() {
            match call.await.unwrap().map_err(|status| status.code()) {
                Ok(_) => {}
                Err(Code::ResourceExhausted) => refused += 1,
                Err(code) => panic!("{code:?}"),
            }
        }
    }
    assert!(refused > 300, "{refused}");
}

#[tokio::test]
async fn many_streams_do_not_starve_another_clients_request() {
    let server = Server::start(&[]);
    let hog = server.client().await;
    let mut streams = Vec::new();
    for _ in 0..16 {
        let (sender, receiver) = mpsc::channel(4);
        sender
            .send(config(StreamConfig {
                top_k: 1,
                ..Default::default()
            }))
            .await
            .unwrap();
        let mut answers = hog
            .clone()
            .stream_classify(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        streams.push(tokio::spawn(async move {
            let cat = image(data("cat.jpg"));
            let feed = async {
                for id in 0.. {
                    if sender.send(frame(id, cat.clone())).await.is_err() {
                        break;
                    }
                }
            };
            let read = async { while let Ok(Some(_)) = answers.message().await {} };
            tokio::join!(feed, read);
        }));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut client = server.client().await;
    let mut alone = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        client.classify(request_cat()).await.unwrap();
        alone.push(started.elapsed());
    }
    streams.iter().for_each(tokio::task::JoinHandle::abort);
    alone.sort();
    // 16 streams × 3 frames are waiting; served in order of arrival, a request would wait for all
    // of them.
    let inference = server.metric(
        "classifier_stage_duration_seconds_sum",
        &["stage=\"inference\""],
    ) / server.metric(
        "classifier_stage_duration_seconds_count",
        &["stage=\"inference\""],
    );
    assert!(
        alone[2].as_secs_f64() < inference * 12.0,
        "{alone:?} against {inference} s an inference"
    );
}

#[tokio::test]
async fn shutdown_finishes_what_was_accepted_and_ends_streams_clearly() {
    let mut server = Server::start(&[
        "--engine",
        "embedded",
        "--threads",
        "1",
        "--queue-capacity",
        "50",
    ]);
    let (sender, mut answers) = open(&server, config(StreamConfig::default())).await;
    sender.send(frame(1, image(data("cat.jpg")))).await.unwrap();
    answers.message().await.unwrap().unwrap();
    let client = server.client().await;
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.classify(request_cat()).await })
        })
        .collect();
    let waiting = Instant::now() + Duration::from_secs(5);
    while server.metric("classifier_queue_depth", &[]) < 5.0 && Instant::now() < waiting {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.signal("TERM");
    let ended = answers.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    for call in calls {
        call.await
            .unwrap()
            .expect("an accepted request is answered");
    }
    let status = server
        .wait(Duration::from_secs(10))
        .expect("the server ends");
    assert!(status.success(), "{status:?}\n{}", server.log());
}

#[tokio::test]
async fn connections_without_work_do_not_hold_up_the_shutdown() {
    let mut server = Server::start(&["--drain-timeout", "20s"]);
    let channel = tonic::transport::Endpoint::from_shared(server.url())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut health = HealthClient::new(channel);
    let _watch = health.watch(HealthCheckRequest::default()).await.unwrap();
    let _silent = std::net::TcpStream::connect(&server.grpc).unwrap();
    server.signal("TERM");
    let status = server
        .wait(Duration::from_secs(5))
        .expect("the server ends long before the drain's time limit");
    assert!(status.success());
}

#[tokio::test]
async fn streams_that_are_not_read_do_not_stop_other_calls_of_their_connection() {
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

#[tokio::test]
async fn calls_and_streams_beyond_their_limits_are_refused() {
    let server = Server::start(&[
        "--max-streams",
        "1",
        "--max-calls",
        "3",
        "--engine",
        "embedded",
    ]);
    let (sender, mut answers) = open(&server, config(StreamConfig::default())).await;
    sender.send(frame(1, image(data("cat.jpg")))).await.unwrap();
    answers.message().await.unwrap().unwrap();
    let (_second, mut refused) = open(&server, config(StreamConfig::default())).await;
    let status = refused.message().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("streams"), "{}", status.message());

    let client = server.client().await;
    let calls: Vec<_> = (0..12)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.classify(request_cat()).await })
        })
        .collect();
    let mut refused = 0;
    for call in calls {
        if let Err(status) = call.await.unwrap() {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            assert!(status.get_error_details().retry_info().is_some());
            refused += 1;
        }
    }
    assert!(refused > 0);
    assert_eq!(
        server.metric("classifier_rejected_total", &["call_limit"]),
        f64::from(refused)
    );
    let counted = server.metric(
        "classifier_requests_total",
        &["model=\"\"", "\"Classify\"", "\"RESOURCE_EXHAUSTED\""],
    );
    assert_eq!(counted, f64::from(refused));
    assert_eq!(
        server.metric("classifier_rejected_total", &["stream_limit"]),
        1.0
    );
}

#[tokio::test]
async fn batches_give_the_answers_of_single_images() {
    let server = Server::start(&["--max-batch", "4", "--max-queue-delay", "20ms"]);
    let client = server.client().await;
    let calls: Vec<_> = (0..24)
        .map(|i| {
            let mut client = client.clone();
            let (name, label) = if i % 2 == 0 {
                ("cat.jpg", "cat")
            } else {
                ("sunflower_q30.jpg", "sunflower")
            };
            tokio::spawn(async move {
                loop {
                    match client.classify(request(image(data(name)))).await {
                        Ok(answer) => {
                            return assert_eq!(answer.into_inner().classifications[0].label, label);
                        }
                        Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    let images = server.metric("classifier_batch_size_sum", &[]);
    let batches = server.metric("classifier_batch_size_count", &[]);
    assert_eq!(images, 24.0);
    assert!(batches < images, "{images} images in {batches} batches");
}

#[tokio::test]
async fn a_long_complaint_is_cut_short() {
    let server = Server::start(&[]);
    let mut bytes = b"P7\n".to_vec();
    bytes.resize(1 << 20, b'A');
    let picture = Image {
        source: Some(Source::Encoded(bytes.into())),
    };
    let status = server
        .client()
        .await
        .classify(request(picture))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().chars().count() <= 501);
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut server = Server::start(&[]);
    // An open stream whose caller goes on waiting keeps the server from ending by itself for a
    // moment.
    let (_sender, _answers) = open(&server, config(StreamConfig::default())).await;
    server.signal("TERM");
    server.signal("INT");
    assert!(server.wait(Duration::from_secs(3)).is_some());
}
