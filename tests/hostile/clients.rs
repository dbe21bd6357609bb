//! Clients that send slowly, stop reading or vanish.

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

/// The series of calls that the caller reset, and of those that count as the server's failure.
fn cancelled_and_failed(server: &Server) -> (f64, f64) {
    let count = |code: &str| {
        let method = "method=\"Classify\"";
        server.sum("classifier_requests_total", &[method, code])
    };
    (count("code=\"CANCELLED\""), count("code=\"INTERNAL\""))
}

#[tokio::test]
async fn calls_that_are_reset_while_they_are_sent_count_as_cancelled() {
    let server = Server::start(&["--engine", "embedded"]);
    assert_serves(&server).await;
    let message = framed(&cat());
    for reason in [h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR] {
        for _ in 0..4 {
            let mut connection = http2::connect(&server.grpc).await;
            let (response, mut sender) = connection
                .send_request(http2::call(CLASSIFY).body(()).unwrap(), false)
                .unwrap();
            sender
                .send_data(message[..message.len() / 2].to_vec().into(), false)
                .unwrap();
            // A call that is reset before the server has seen it is none.
            until_active(&server, 1.0).await;
            sender.send_reset(reason);
            assert!(http2::status(response).await.is_err());
            until_active(&server, 0.0).await;
        }
    }
    let give_up = Instant::now() + Duration::from_secs(10);
    while cancelled_and_failed(&server) != (8.0, 0.0) {
        let counted = cancelled_and_failed(&server);
        assert!(Instant::now() < give_up, "{counted:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn streams_that_are_reset_count_as_cancelled() {
    let server = Server::start(&["--engine", "embedded"]);
    for reason in [h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR] {
        let mut connection = http2::connect(&server.grpc).await;
        let call = http2::call(STREAM_CLASSIFY).body(()).unwrap();
        let (response, mut sender) = connection.send_request(call, false).unwrap();
        sender
            .send_data(framed(&config(StreamConfig::default())).into(), false)
            .unwrap();
        let _answers = response.await.expect("the stream is open");
        sender.send_reset(reason);
        until_active(&server, 0.0).await;
    }
    let count = |code: &str| {
        let method = "method=\"StreamClassify\"";
        server.sum("classifier_requests_total", &[method, code])
    };
    let give_up = Instant::now() + Duration::from_secs(10);
    while count("\"CANCELLED\"") != 2.0 {
        assert!(Instant::now() < give_up, "{}", server.get("/metrics").1);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(count("\"INTERNAL\""), 0.0);
}

/// Waits until this many calls are in progress.
async fn until_active(server: &Server, calls: f64) {
    let give_up = Instant::now() + Duration::from_secs(10);
    while server.metric("classifier_calls_active", &[]) != calls {
        assert!(Instant::now() < give_up, "not within 10 s: {calls} calls");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// In which way a sender is slow.
#[derive(Clone, Copy, Debug)]
enum Slow {
    /// It sends headers and nothing else.
    Silent,
    /// It sends its message, or a frame of a stream, one byte at a time.
    ByteByByte,
    /// It sends its whole message, but never ends its side of the call.
    Endless,
}

/// Starts such a call on its own connection; the task returns the call's status.
async fn call_slowly(
    server: &Server,
    path: &'static str,
    how: Slow,
) -> tokio::task::JoinHandle<Status> {
    let mut connection = http2::connect(&server.grpc).await;
    let (response, mut sender) = connection
        .send_request(http2::call(path).body(()).unwrap(), false)
        .unwrap();
    let message = if path == STREAM_CLASSIFY {
        framed(&frame_of(1, tiny()))
    } else {
        framed(&cat())
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
            // This fails once the server has refused the call.
            if sender
                .send_data(Bytes::copy_from_slice(part), false)
                .is_err()
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Dropping the sender would cancel the call.
        std::future::pending::<()>().await;
    };
    tokio::spawn(async move {
        tokio::select! {
            status = http2::status(response) => status.expect("the server says how the call ended"),
            () = feed => unreachable!("the sender never ends"),
        }
    })
}

/// The call ended because its message took longer than the `--receive-timeout` of 3 s.
fn assert_too_slow(how: &str, status: &Status) {
    assert_eq!(status.code(), Code::DeadlineExceeded, "{how}: {status:?}");
    assert!(
        status.message().contains("did not arrive within 3s"),
        "{how}: {status:?}"
    );
    assert_discreet(how, status);
}

#[tokio::test]
async fn slow_senders_lose_their_places_to_others() {
    let server = Server::start(&[
        "--engine",
        "embedded",
        "--max-calls",
        "3",
        "--max-per-client",
        "100",
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

    // For a moment they take all places.
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
        "their calls ended after {:?}",
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
async fn a_frame_that_arrives_too_slowly_ends_its_stream() {
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

/// Opens a stream and closes or resets the connection in the middle of a frame, depending on
/// `number`.
fn connect_and_vanish(address: &str, number: usize) {
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

    // Every third client cuts the last HTTP/2 frame too.
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
async fn a_thousand_clients_that_vanish_in_mid_stream_leave_no_resources_behind() {
    let server = Server::start(&[]);
    assert_serves(&server).await;
    let before = server.usage();
    let workers: Vec<_> = (0..50)
        .map(|worker| {
            let address = server.grpc.clone();
            tokio::task::spawn_blocking(move || {
                for round in 0..20 {
                    connect_and_vanish(&address, round * 50 + worker);
                }
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
        "each stream is counted once"
    );
    assert_serves(&server).await;
}

#[tokio::test]
async fn half_closed_connections_and_unread_answers_end_with_their_clients() {
    let server = Server::start(&["--engine", "embedded"]);
    assert_serves(&server).await;
    let before = server.usage();
    let mut kept = Vec::new();
    for number in 0..20 {
        // The client closes its direction after the request, or in the middle of it.
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
        // With a flow-control window of 0 the server can't send its answers.
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
