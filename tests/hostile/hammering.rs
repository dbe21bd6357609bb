//! Callers that call again at once when they are rejected: what they cost is limited by holding
//! their rejections back.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tonic::{Code, Status};

use super::{
    cat,
    common::{Server, exclusive},
};

const TIME: Duration = Duration::from_secs(3);

/// How calls have ended.
#[derive(Default)]
struct Ended {
    answered: u32,
    rejected: u32,
}

/// Calls on connections of their own, each as soon as the last has ended.
async fn hammer(server: &Server, connections: usize) -> Ended {
    let callers = (0..connections).map(|_| {
        let client = server.client();
        tokio::spawn(async move {
            let mut client = client.await;
            let mut ended = Ended::default();
            let started = Instant::now();
            while started.elapsed() < TIME {
                match client.classify(cat()).await {
                    Ok(_) => ended.answered += 1,
                    Err(status) => {
                        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                        ended.rejected += 1;
                    }
                }
            }
            ended
        })
    });
    let mut all = Ended::default();
    for ended in join_all(callers).await {
        let ended = ended.expect("no caller panics");
        all.answered += ended.answered;
        all.rejected += ended.rejected;
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_do_not_wait_are_slowed_to_the_pace_of_the_server() {
    const CONNECTIONS: usize = 48;
    let _exclusive = exclusive();
    let server = Server::start(&["--engine", "embedded", "--queue-capacity", "4"]);

    let peak = hammer(&server, 4).await;
    let hammered = hammer(&server, CONNECTIONS).await;
    assert!(hammered.rejected > 0, "the queue was never full");
    // Each is held back by half of its delay: mostly for half a second.
    let most = CONNECTIONS as u32 * 10 * TIME.as_secs() as u32;
    assert!(hammered.rejected < most, "{} rejections", hammered.rejected);
    assert!(
        2 * hammered.answered > peak.answered,
        "{} answers beside the hammering, {} without",
        hammered.answered,
        peak.answered
    );
}

/// Who is rejected for the first time learns it at once: another server may be idle.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_rejection_of_a_connection_comes_at_once() {
    let _exclusive = exclusive();
    let server = Server::start(&["--engine", "embedded", "--queue-capacity", "1"]);
    // More than the workers and the queue take.
    let fillers: Vec<_> = (0..16)
        .map(|_| {
            let client = server.client();
            tokio::spawn(async move {
                let mut client = client.await;
                loop {
                    let _ = client.classify(cat()).await;
                }
            })
        })
        .collect();

    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        let mut client = server.client().await;
        let started = Instant::now();
        let rejected: Option<Status> = client.classify(cat()).await.err();
        if rejected.is_some() {
            fastest = fastest.min(started.elapsed());
        }
    }
    for filler in fillers {
        filler.abort();
    }
    assert!(fastest < Duration::from_millis(150), "{fastest:?}");
}
