//! Clients that are slow, stop listening or vanish.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use bytes::Bytes;
use resnet18_server::proto::{ListModelsRequest, StreamConfig};
use tonic::{Code, Status};

use super::{
    assert_discreet, assert_recovers, assert_serves, cat,
    common::{
        Server, config,
        http2::{self, CLASSIFY, STREAM_CLASSIFY, Wire, frame, framed, kind},
    },
    frame_of, tiny,
};

/// How a sender is slow.
#[derive(Clone, Copy, Debug)]
enum Slow {
    /// It sends headers and nothing else.
    Silent,
    /// It sends its message, or a frame of a stream, a byte at a time.
    ByteByByte,
    /// It sends its whole message, but never says that this was all.
    Endless,
}

/// Starts a call of that kind; how it ended.
async fn call_slowly(
    server: &Server,
    path: &'static str,
    how: Slow,
) -> tokio::task::JoinHandle<Status> {
    let mut connection = http2::connect(&server.grpc).await;
    let (response, mut sender) = connection
        .send_request(http2::call(path).body(()).unwrap(), false)
        .unwrap();
    let message = match path {
        STREAM_CLASSIFY => framed(&frame_of(1, tiny())),
        _ => framed(&cat()),
    };
    let feed = async move {
        if path == STREAM_CLASSIFY {
            sender
                .send_data(framed(&config(StreamConfig::default())).into(), false)
                .unwrap();
        }
        let parts: Vec<&[u8]> = match how {
            Slow::Silent => Vec::new(),
            Slow::ByteByByte => message.chunks(1).collect(),
            Slow::Endless => vec![&message],
        };
        for part in parts {
            // Refused in the end.
            if sender
                .send_data(Bytes::copy_from_slice(part), false)
                .is_err()
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The call would be cancelled if the sender went.
        std::future::pending::<()>().await;
    };
    tokio::spawn(async move {
        tokio::select! {
            status = http2::status(response) => status.expect("the server says how the call ended"),
            () = feed => unreachable!("it goes on for ever"),
        }
    })
}

fn assert_too_slow(how: &str, status: &Status) {
    assert_eq!(status.code(), Code::DeadlineExceeded, "{how}: {status:?}");
    assert!(
        status.message().contains("did not arrive within 3s"),
        "{how}: {status:?}"
    );
    assert_discreet(how, status);
}

#[tokio::test]
async fn senders_that_are_too_slow_do_not_keep_their_places() {
    let server = Server::start(&[
        "--engine",
        "embedded",
        "--max-calls",
        "3",
        "--receive-timeout",
        "3s",
    ]);
    assert_serves(&server).await;
    let before = server.usage();
    let started = Instant::now();
    let mut calls = Vec::new();
    for how in [Slow::Silent, Slow::ByteByByte, Slow::Endless] {
        calls.push((how, call_slowly(&server, CLASSIFY, how).await));
    }
    // They have all the places for a moment.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let refused = server
        .client()
        .await
        .list_models(ListModelsRequest {})
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    for (how, call) in calls {
        assert_too_slow(&format!("{how:?}"), &call.await.unwrap());
    }
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    let late = server.metric(
        "classifier_requests_total",
        &["model=\"\"", "\"Classify\"", "\"DEADLINE_EXCEEDED\""],
    );
    assert_eq!(late, 3.0, "{}", server.get("/metrics").1);
    assert_serves(&server).await;
    assert_recovers(&server, before).await;
}

#[tokio::test]
async fn a_frame_that_comes_too_slowly_ends_its_stream() {
    let server = Server::start(&["--engine", "embedded", "--receive-timeout", "3s"]);
    let stream = call_slowly(&server, STREAM_CLASSIFY, Slow::ByteByByte).await;
    assert_too_slow("a frame byte by byte", &stream.await.unwrap());
    assert_serves(&server).await;
}

#[tokio::test]
async fn a_stream_may_be_silent_between_its_frames() {
    let server = Server::start(&["--engine", "embedded", "--receive-timeout", "300ms"]);
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    sender.send(config(StreamConfig::default())).await.unwrap();
    let inbound = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut answers = server
        .client()
        .await
        .stream_classify(inbound)
        .await
        .unwrap()
        .into_inner();
    for id in 1..=2 {
        tokio::time::sleep(Duration::from_millis(900)).await;
        sender.send(frame_of(id, tiny())).await.unwrap();
        assert_eq!(answers.message().await.unwrap().unwrap().frame_id, id);
    }
}

/// Opens a stream, and leaves in the middle of a frame: politely, or as if the cable were cut.
fn come_and_vanish(address: &str, number: usize) {
    let mut wire = Wire::connect(address);
    let policy = (number / 2 % 2 + 1) as i32;
    let first = framed(&config(StreamConfig {
        policy,
        ..Default::default()
    }));
    let whole = framed(&frame_of(1, tiny()));
    let frames = [&whole[..], &whole, &whole[..number * 7 % whole.len()]].concat();
    let bytes = [
        frame(
            kind::HEADERS,
            http2::END_HEADERS,
            1,
            &http2::headers(STREAM_CLASSIFY),
        ),
        frame(kind::DATA, 0, 1, &first),
        frame(kind::DATA, 0, 1, &frames),
    ]
    .concat();
    // The last HTTP/2 frame is cut too, in every third.
    let sent = if number.is_multiple_of(3) {
        bytes.len() - 3
    } else {
        bytes.len()
    };
    wire.0.write_all(&bytes[..sent]).expect("the server reads");
    wire.wait_for(kind::HEADERS).expect("the stream is open");
    if number % 2 == 1 {
        wire.reset();
    }
}

#[tokio::test]
async fn a_thousand_clients_that_vanish_in_mid_stream_leave_nothing_behind() {
    let server = Server::start(&[]);
    assert_serves(&server).await;
    let before = server.usage();
    let workers: Vec<_> = (0..50)
        .map(|worker| {
            let address = server.grpc.clone();
            tokio::task::spawn_blocking(move || {
                (0..20).for_each(|round| come_and_vanish(&address, round * 50 + worker))
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    assert_recovers(&server, before).await;
    assert_eq!(
        server.sum("classifier_requests_total", &["\"StreamClassify\""]),
        1000.0,
        "each ended once"
    );
    assert_serves(&server).await;
}

#[tokio::test]
async fn half_closed_connections_and_answers_that_nobody_takes_end_with_their_clients() {
    let server = Server::start(&["--engine", "embedded"]);
    assert_serves(&server).await;
    let before = server.usage();
    let mut kept = Vec::new();
    for number in 0..20 {
        // Its own direction is closed after the request, or in the middle of it.
        let body = framed(&cat());
        let mut wire = Wire::connect(&server.grpc);
        wire.0
            .write_all(&frame(
                kind::HEADERS,
                http2::END_HEADERS,
                1,
                &http2::headers(CLASSIFY),
            ))
            .unwrap();
        let length = if number % 2 == 0 {
            body.len()
        } else {
            body.len() / 2
        };
        for part in body[..length].chunks(16 << 10) {
            wire.0.write_all(&frame(kind::DATA, 0, 1, part)).unwrap();
        }
        wire.0.shutdown(std::net::Shutdown::Write).unwrap();
        kept.push(wire);
    }
    let mut unread = Vec::new();
    for _ in 0..4 {
        // A window of nothing: the answers can't be sent.
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(0);
        let mut connection = http2::connect_with(builder, &server.grpc).await;
        let call = http2::call(STREAM_CLASSIFY).body(()).unwrap();
        let (response, mut sender) = connection.send_request(call, false).unwrap();
        sender
            .send_data(framed(&config(StreamConfig::default())).into(), false)
            .unwrap();
        for id in 1..=50 {
            sender
                .send_data(framed(&frame_of(id, tiny())).into(), false)
                .unwrap();
        }
        unread.push((connection, response, sender));
    }
    assert_serves(&server).await;
    drop((kept, unread));
    assert_recovers(&server, before).await;
}
