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
const REJECTED_CALLS: usize = 8000;

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_not_read_any_more_holds_up_nothing() {
    serves_and_ends(LogReader::Stops).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_log_holds_up_nothing() {
    serves_and_ends(LogReader::Closes).await;
}

/// Makes the server log thousands of lines, by calls without a token.
async fn serves_and_ends(reader: LogReader) {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, format!("shop {TOKEN}\n")).unwrap();
    let flags = ["--tokens", tokens.to_str().unwrap(), "--log", "debug"];
    let mut server = Server::start_with_log(reader, &flags);

    let channel = server.channel().await;
    let callers = (0..16).map(|_| reject(ClassifierClient::new(channel.clone())));
    join_all(callers).await;

    let mut call = Request::new(cat());
    let authorization = format!("Bearer {TOKEN}").parse().unwrap();
    call.metadata_mut().insert("authorization", authorization);
    let mut client = ClassifierClient::new(channel);
    let answer = tokio::time::timeout(Duration::from_secs(20), client.classify(call)).await;
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

async fn reject(mut client: ClassifierClient<Channel>) {
    for _ in 0..REJECTED_CALLS / 16 {
        let rejected = client.list_models(ListModelsRequest {}).await;
        assert_eq!(rejected.unwrap_err().code(), Code::Unauthenticated);
    }
}
