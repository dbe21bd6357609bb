//! A log that nobody reads, or that cannot be written, is not the callers' problem.

use std::time::Duration;

use futures_util::future::join_all;
use resnet18_server::proto::{ListModelsRequest, classifier_client::ClassifierClient};
use tonic::{Code, Request, transport::Channel};

use super::{
    cat,
    common::{LogReader, Server},
};

const TOKEN: &str = "6f1f4d0cbd6a49b8a5d3a5ad8a0f3a1e";

/// More lines than the server keeps for a slow reader.
const LOGGED_CALLS: usize = 8000;

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_not_read_any_more_holds_up_nothing() {
    serves_and_ends(LogReader::Stops).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_log_holds_up_nothing() {
    serves_and_ends(LogReader::Closes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_callers_do_not_fill_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, format!("shop {TOKEN}\n")).unwrap();
    let server = Server::start(&["--tokens", tokens.to_str().unwrap()]);

    // One connection for each, since repeated rejections on one are held back.
    const CONNECTIONS: usize = 200;
    let callers = (0..CONNECTIONS).map(|_| async {
        let mut client = ClassifierClient::new(server.channel().await);
        let rejected = client.list_models(ListModelsRequest {}).await;
        assert_eq!(rejected.unwrap_err().code(), Code::Unauthenticated);
    });
    join_all(callers).await;

    let log = server.log();
    let lines = log.lines().filter(|line| line.contains("token")).count();
    assert!((1..20).contains(&lines), "{lines} lines:\n{log}");
    let counted = server.metric("classifier_rejected_total", &["unauthenticated"]);
    assert_eq!(counted as usize, CONNECTIONS);

    // What was not logged at once is summed up.
    let summed_up = || server.log().lines().any(|line| line.contains("further="));
    for _ in 0..100 {
        if summed_up() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no sum: {}", server.log());
}

/// Makes the server log thousands of lines, one for each call.
async fn serves_and_ends(reader: LogReader) {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, format!("shop {TOKEN}\n")).unwrap();
    let flags = ["--tokens", tokens.to_str().unwrap(), "--log", "debug"];
    let mut server = Server::start_with_log(reader, &flags);

    let channel = server.channel().await;
    let callers = (0..16).map(|_| list_models(ClassifierClient::new(channel.clone())));
    join_all(callers).await;

    let mut client = ClassifierClient::new(channel);
    let call = client.classify(with_token(cat()));
    let answer = tokio::time::timeout(Duration::from_secs(20), call).await;
    let answer = answer.expect("the server answers in time").unwrap();
    assert_eq!(answer.into_inner().classifications[0].label, "cat");

    let dropped = server.metric("classifier_log_lines_dropped_total", &[]);
    match reader {
        LogReader::Stops => assert!(dropped > 0.0, "the pipe and the queue took every line"),
        // What cannot be written at all is discarded, but it never waits.
        LogReader::Closes | LogReader::Reads => {}
    }

    server.signal("TERM");
    let ended = server.wait(Duration::from_secs(10));
    assert!(ended.expect("the server ends in time").success());
}

async fn list_models(mut client: ClassifierClient<Channel>) {
    for _ in 0..LOGGED_CALLS / 16 {
        let listed = client.list_models(with_token(ListModelsRequest {})).await;
        assert_eq!(listed.unwrap().into_inner().models.len(), 1);
    }
}

fn with_token<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let authorization = format!("Bearer {TOKEN}").parse().unwrap();
    request
        .metadata_mut()
        .insert("authorization", authorization);
    request
}
