//! Servers that are told to shut down while they are overloaded: every accepted request is
//! answered.
//!
//! A request counts as accepted unless it was refused in one of three ways: its connection got a
//! GOAWAY whose last stream is an earlier one, so that the server never read the request; or it was
//! answered UNAVAILABLE, because the server is shutting down; or it was answered
//! RESOURCE_EXHAUSTED, because the queue is full. Every accepted request is answered OK.

use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tonic::Code;

use super::{
    Random,
    common::{
        Server, data,
        http2::{self, CLASSIFY, framed},
        image, request,
    },
    say, setting,
};

const CONNECTIONS: usize = 6;
/// Concurrent calls on each connection.
const CALLS_AT_ONCE: usize = 4;

/// The number of calls by their outcome.
#[derive(Default)]
struct Outcomes {
    answered: u64,
    /// Refused because the queue was full.
    full: u64,
    /// Refused because the server was shutting down.
    draining: u64,
    /// Excluded by a GOAWAY.
    never_read: u64,
    /// Errors of calls that ended in any other way.
    lost: Vec<String>,
}

impl Outcomes {
    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.full += other.full;
        self.draining += other.draining;
        self.never_read += other.never_read;
        self.lost.extend(other.lost);
    }
}

/// Makes one call after the other until the server refuses one because it shuts down.
async fn call_until_refused(mut connection: SendRequest<Bytes>, body: Bytes) -> Outcomes {
    let mut outcomes = Outcomes::default();
    loop {
        connection = match connection.ready().await {
            Ok(connection) => connection,
            Err(_) => return outcomes,
        };
        let call = http2::call(CLASSIFY).body(()).unwrap();
        let Ok((response, mut sender)) = connection.send_request(call, false) else {
            return outcomes;
        };
        // If sending fails, the response fails too.
        let _ = sender.send_data(body.clone(), true);
        match http2::status(response).await {
            Ok(status) => match status.code() {
                Code::Ok => outcomes.answered += 1,
                Code::ResourceExhausted => {
                    outcomes.full += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Code::Unavailable if status.message().contains("shutting down") => {
                    outcomes.draining += 1;
                    return outcomes;
                }
                _ => outcomes.lost.push(format!("{status:?}")),
            },
            Err(error)
                if error.is_go_away()
                    && error.is_remote()
                    && error.reason() == Some(h2::Reason::NO_ERROR) =>
            {
                outcomes.never_read += 1;
                return outcomes;
            }
            Err(error) => {
                outcomes.lost.push(format!("{error:?}"));
                return outcomes;
            }
        }
    }
}

/// Overloads one server, tells it to shut down, and returns the outcomes of all calls.
async fn drain(random: &mut Random) -> Outcomes {
    let mut server = Server::start(&["--queue-capacity", "12", "--drain-timeout", "60s"]);
    let body = Bytes::from(framed(&request(image(data("tiny_33x47.png")))));
    let mut callers = Vec::new();
    for _ in 0..CONNECTIONS {
        let connection = http2::connect(&server.grpc).await;
        callers.extend(
            (0..CALLS_AT_ONCE)
                .map(|_| tokio::spawn(call_until_refused(connection.clone(), body.clone()))),
        );
    }

    tokio::time::sleep(Duration::from_millis(200) + random.milliseconds(300)).await;
    server.signal("TERM");
    let mut all = Outcomes::default();
    for caller in callers {
        let outcomes = tokio::time::timeout(Duration::from_secs(60), caller)
            .await
            .expect("no call hangs")
            .unwrap();
        all.add(outcomes);
    }

    let status = tokio::task::spawn_blocking(move || server.wait(Duration::from_secs(30)))
        .await
        .unwrap();
    assert!(status.expect("the server ends").success());
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_accepted_request_is_lost_when_a_server_drains() {
    let drains = setting("CHAOS_DRAINS", 2);
    let mut random = Random::new(setting("CHAOS_SEED", 1), 1000);

    let mut all = Outcomes::default();
    for _ in 0..drains {
        all.add(drain(&mut random).await);
    }

    let Outcomes {
        answered,
        full,
        draining,
        never_read,
        lost,
    } = all;
    say(&format!(
        "{drains} drains: {answered} answered, refused: {full} by a full queue, {draining} by \
         draining, {never_read} never read; {} lost",
        lost.len()
    ));
    assert!(lost.is_empty(), "{lost:?}");
    assert!(answered > drains && full + draining + never_read > 0);
}
