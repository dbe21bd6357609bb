//! Startup and shutdown: health, the drain, and signals.

use std::time::{Duration, Instant};

use resnet18_server::proto::StreamConfig;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{frame, open, request_cat};
use crate::common::{Server, config, data, image};

#[tokio::test]
async fn health_turns_to_serving_at_readiness_and_back_at_shutdown() {
    let server = Server::spawn(&[]);
    let mut health = HealthClient::new(server.channel().await);

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
async fn shutdown_answers_accepted_requests_and_ends_streams_with_unavailable() {
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
    let give_up = Instant::now() + Duration::from_secs(5);
    while server.metric("classifier_queue_depth", &[]) < 5.0 && Instant::now() < give_up {
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
async fn idle_connections_do_not_delay_the_shutdown() {
    let mut server = Server::start(&["--drain-timeout", "20s"]);
    let mut health = HealthClient::new(server.channel().await);
    let _watch = health.watch(HealthCheckRequest::default()).await.unwrap();
    let _silent = std::net::TcpStream::connect(&server.grpc).unwrap();

    server.signal("TERM");
    let status = server
        .wait(Duration::from_secs(5))
        .expect("the server ends long before the drain's time limit");
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_second_signal_ends_the_server_at_once() {
    let mut server = Server::start(&[]);
    // Because of the open stream the server would drain for a moment.
    let (_sender, _answers) = open(&server, config(StreamConfig::default())).await;
    server.signal("TERM");
    server.signal("INT");
    assert!(
        server.wait(Duration::from_secs(3)).is_some(),
        "the server still runs"
    );
}
