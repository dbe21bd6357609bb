//! More calls than the server can handle: deadlines, full queues, limits and fairness.

use std::time::{Duration, Instant};

use resnet18_server::proto::{ClassifyRequest, ClassifyResponse, PixelFormat, StreamConfig};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::{frame, open, raw, request_cat};
use crate::common::{Server, config, data, exclusive, image, request, tiny_model::tiny_model};

#[tokio::test]
async fn deadlines_are_kept_and_expired_requests_are_not_inferred() {
    let _alone = exclusive();
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
            // tonic's client has its own timer too, which ends a call with CANCELLED.
            assert!(
                matches!(code, Code::DeadlineExceeded | Code::Cancelled),
                "{code:?}"
            );
            assert!(
                took < Duration::from_millis(1000),
                "a deadline of 150 ms took {took:?}"
            );
            late += 1;
        }
    }
    assert!(late > 5, "only {late} of 30 calls were late");

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
    // A call that expired before it reached the queue is in neither number.
    assert!(skipped > 0.0, "no expired request was skipped");
    assert!(
        skipped + inferred <= 31.0,
        "of 31 requests {skipped} were skipped and {inferred} inferred"
    );

    let counted = server.metric(
        "classifier_requests_total",
        &["method=\"Classify\"", "code=\"DEADLINE_EXCEEDED\""],
    ) + server.metric(
        "classifier_requests_total",
        &["method=\"Classify\"", "code=\"CANCELLED\""],
    );
    // A call may end in time for the server, and a moment too late for the client.
    assert!(
        counted > 0.0 && counted <= f64::from(late),
        "the server counted {counted} of {late} late calls"
    );
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_with_a_retry_delay() {
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
            let client = server.client();
            tokio::spawn(async move {
                let mut client = client.await;
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
            "a retry delay of {delay:?}"
        );

        let pushback = status
            .metadata()
            .get("grpc-retry-pushback-ms")
            .expect("the header for gRPC's own retries");
        assert_eq!(pushback.to_str().unwrap(), delay.as_millis().to_string());
    }
    assert_eq!(
        server.metric("classifier_rejected_total", &["reason=\"queue_full\""]),
        refused.len() as f64
    );
}

#[tokio::test]
async fn a_full_queue_refuses_a_call_before_its_image_has_arrived() {
    let server = Server::start(&[
        "--engine",
        "embedded",
        "--threads",
        "1",
        "--queue-capacity",
        "1",
    ]);
    let busy_clients: Vec<_> = (0..6)
        .map(|_| {
            let client = server.client();
            tokio::spawn(async move {
                let mut client = client.await;
                loop {
                    let _ = client.classify(request_cat()).await;
                }
            })
        })
        .collect();

    let channel = server.channel().await;
    let call_without_message = || async {
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
        if let Some(answer) = call_without_message().await {
            refused = Some(answer.map(|_| ()).expect_err("there was no message"));
            break;
        }
    }
    for client in &busy_clients {
        client.abort();
    }

    let refused = refused.expect("the queue is full most of the time");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_error_details().retry_info().is_some());
    let counted = ["method=\"Classify\"", "code=\"RESOURCE_EXHAUSTED\""];
    assert!(server.metric("classifier_requests_total", &counted) > 0.0);
}

#[tokio::test]
async fn a_connection_survives_hundreds_of_refused_calls() {
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
    assert!(
        refused > 300,
        "only {refused} of 640 calls met a full queue"
    );
}

#[tokio::test]
async fn many_streams_of_one_client_do_not_starve_another_clients_request() {
    let _alone = exclusive();
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
    let mut latencies = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        client.classify(request_cat()).await.unwrap();
        latencies.push(started.elapsed());
    }
    for stream in &streams {
        stream.abort();
    }

    // 16 streams × 3 frames are waiting; in order of arrival, a request would wait for all of them.
    latencies.sort();
    let inference = server.mean_inference();
    assert!(
        latencies[2].as_secs_f64() < inference * 12.0,
        "the requests took {latencies:?}, an inference {inference} s"
    );
}

#[tokio::test]
async fn calls_and_streams_beyond_their_limits_are_refused() {
    let server = Server::start(&[
        "--max-streams",
        "1",
        "--max-calls",
        "3",
        "--max-per-client",
        "100",
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

/// A burst is no overload: what comes at once to an idle server waits for its turn.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_calls_is_answered_within_its_deadlines() {
    const CALLS: usize = 500;
    let _alone = exclusive();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny.onnx");
    std::fs::write(&model, tiny_model(1)).unwrap();
    let server = Server::start(&[
        "--model",
        model.to_str().unwrap(),
        "--engine",
        "embedded",
        "--threads",
        "1",
    ]);

    for _ in 0..2 {
        let client = server.client().await;
        let calls: Vec<_> = (0..CALLS)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move {
                    // Small, so that all calls have begun within a fraction of a second.
                    let photo = image(data("tiny_33x47.png"));
                    let mut call = Request::new(request(photo));
                    call.set_timeout(Duration::from_secs(60));
                    client.classify(call).await
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap().expect("every call is answered");
        }
    }
    assert_eq!(server.sum("classifier_rejected_total", &[]), 0.0);
}
