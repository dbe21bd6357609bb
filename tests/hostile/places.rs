//! Callers that take every place: connections, calls, streams, health watches and reflection.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::select_all;
use h2::client::SendRequest;
use resnet18_server::{
    client::{self, Credentials, Token},
    proto::{ListModelsRequest, StreamConfig},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;

use super::{
    assert_recovers, cat,
    common::{
        Server, config,
        http2::{self, CLASSIFY, STREAM_CLASSIFY, Wire, frame, framed, kind},
    },
};

const SHOP: &str = "0123456789abcdef-shop";
const CAMERA: &str = "0123456789abcdef-camera";
const LIST_MODELS: &str = "/resnet18.v1.Classifier/ListModels";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
/// The flag of the last frame of a stream (RFC 9113, 6.1).
const END_STREAM: u8 = 1;

/// A file with the tokens of two callers.
fn tokens(folder: &tempfile::TempDir) -> String {
    let file = folder.path().join("tokens");
    std::fs::write(&file, format!("shop {SHOP}\ncamera {CAMERA}\n")).unwrap();
    file.display().to_string()
}

/// One call of a new connection, with a token.
async fn classify(server: &Server, token: &str) -> Result<String, String> {
    let to = client::Server {
        address: server.url().parse().unwrap(),
        credentials: Credentials {
            token: Some(Token::new(token).unwrap()),
            ..Credentials::default()
        },
    };
    let mut client = client::connect(&to)
        .await
        .map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(Duration::from_secs(20), client.classify(cat())).await;
    let answer = answer.map_err(|_| "no answer within 20 s".to_owned())?;
    let answer = answer.map_err(|status| status.to_string())?;
    Ok(answer.into_inner().classifications[0].label.clone())
}

/// A call that has begun; dropping it resets it.
struct OpenCall {
    response: h2::client::ResponseFuture,
    sender: h2::SendStream<Bytes>,
}

impl OpenCall {
    /// The status that the server ends the call with, within 20 s.
    async fn rejection(self) -> Status {
        let status = tokio::time::timeout(Duration::from_secs(20), http2::status(self.response));
        let status = status.await.expect("the call is rejected");
        status.expect("a rejected call has a status")
    }

    /// Whether the call is open after a moment.
    async fn lasts(self) -> bool {
        let ended = http2::status(self.response);
        let ended = tokio::time::timeout(Duration::from_secs(1), ended).await;
        ended.is_err()
    }
}

/// Begins a call and sends nothing more, or this first message.
fn begin(
    connection: &mut SendRequest<Bytes>,
    path: &str,
    token: Option<&str>,
    first: Option<Vec<u8>>,
) -> OpenCall {
    let mut call = http2::call(path);
    if let Some(token) = token {
        call = call.header("authorization", format!("Bearer {token}"));
    }
    let call = call.body(()).unwrap();
    let (response, mut sender) = connection.send_request(call, false).unwrap();
    if let Some(first) = first {
        sender.send_data(first.into(), false).unwrap();
    }
    OpenCall { response, sender }
}

/// Begins this many calls, each on its own connection, and waits until all are in progress.
async fn hold(
    server: &Server,
    calls: usize,
    path: &str,
    token: Option<&str>,
    first: Option<Vec<u8>>,
) -> Vec<(SendRequest<Bytes>, OpenCall)> {
    let active = || server.metric("classifier_calls_active", &[]);
    let before = active();
    let mut open = Vec::new();
    for _ in 0..calls {
        let mut connection = http2::connect(&server.grpc).await;
        let call = begin(&mut connection, path, token, first.clone());
        open.push((connection, call));
    }
    let give_up = Instant::now() + Duration::from_secs(10);
    while active() != before + calls as f64 {
        assert!(Instant::now() < give_up, "not {calls} calls of {path}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    open
}

fn assert_limited(status: &Status) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("--max-per-client"), "{status:?}");
    let retry = status.get_error_details().retry_info().cloned();
    assert!(retry.is_some_and(|info| info.retry_delay.is_some()));
    assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
}

fn client_limited(server: &Server) -> f64 {
    server.metric("classifier_rejected_total", &["client_limit"])
}

fn displaced(server: &Server) -> f64 {
    server.metric("classifier_connections_closed_total", &["displaced"])
}

fn active_connections(server: &Server) -> f64 {
    server.metric("classifier_connections_active", &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_up_to_the_limit_keep_no_caller_out() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&["--engine", "embedded", "--tokens", &tokens(&folder)]);
    assert_eq!(classify(&server, SHOP).await, Ok("cat".into()));
    let before = server.usage();

    let address = server.grpc.clone();
    let connect = move || {
        (0..1024)
            .map(|_| Wire::connect(&address))
            .collect::<Vec<_>>()
    };
    let idle = tokio::task::spawn_blocking(connect).await.unwrap();
    for _ in 0..14 {
        assert_eq!(classify(&server, SHOP).await, Ok("cat".into()));
    }
    assert!(displaced(&server) > 200.0, "{}", server.log());
    assert_eq!(server.get("/readyz").0, 200);
    let lines = server.log().matches("idle connections are closed").count();
    assert_eq!(lines, 1, "{}", server.log());
    drop(idle);
    assert_recovers(&server, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_have_called_are_kept_while_strangers_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--max-connections", "32", "--tokens", &tokens(&folder)];
    let server = Server::start(&[&["--engine", "embedded"], &flags[..]].concat());
    let mut known = server.client().await;
    let mut call = Request::new(ListModelsRequest {});
    let token = format!("Bearer {SHOP}").parse().unwrap();
    call.metadata_mut().insert("authorization", token);
    let again = || {
        let mut again = Request::new(ListModelsRequest {});
        *again.metadata_mut() = call.metadata().clone();
        again
    };
    known.list_models(again()).await.unwrap();

    let mut strangers: Vec<Wire> = (0..200).map(|_| Wire::connect(&server.grpc)).collect();
    known.list_models(again()).await.unwrap();
    // The first stranger has given way, without a word: it has never called.
    let mut first = strangers.remove(0);
    let ended = tokio::task::spawn_blocking(move || first.ended())
        .await
        .unwrap();
    assert_eq!(ended.expect("it is closed"), None);
    let give_up = Instant::now() + Duration::from_secs(10);
    while displaced(&server) < 169.0 || active_connections(&server) > 32.0 {
        let counts = (displaced(&server), active_connections(&server));
        assert!(Instant::now() < give_up, "{counts:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_without_a_call_are_closed_politely_and_watches_keep_theirs() {
    let server = Server::start(&["--engine", "embedded", "--idle-timeout", "1s"]);
    let mut watch = HealthClient::new(server.channel().await)
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    watch.message().await.unwrap();
    let mut client = server.client().await;
    client.list_models(ListModelsRequest {}).await.unwrap();

    let mut wire = Wire::connect(&server.grpc);
    wire.send_all(
        [
            frame(
                kind::HEADERS,
                http2::END_HEADERS,
                1,
                &http2::headers(LIST_MODELS),
            ),
            frame(kind::DATA, END_STREAM, 1, &framed(&ListModelsRequest {})),
        ]
        .into_iter(),
    );
    let called = Instant::now();
    let ended = tokio::task::spawn_blocking(move || {
        wire.wait_for(kind::DATA).expect("the call is answered");
        wire.ended()
    });
    let ended = ended.await.unwrap().expect("the connection is closed");
    assert_eq!(ended, Some(0), "GOAWAY without an error");
    assert!(called.elapsed() > Duration::from_secs(1));
    assert!(called.elapsed() < Duration::from_secs(5));

    assert!(server.metric("classifier_connections_closed_total", &["idle"]) >= 2.0);
    client
        .list_models(ListModelsRequest {})
        .await
        .expect("a client connects again by itself");
    let silent = tokio::time::timeout(Duration::from_millis(100), watch.message()).await;
    assert!(silent.is_err(), "the watch is open: {silent:?}");
}

#[tokio::test]
async fn a_named_caller_that_sends_slowly_leaves_places_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--max-calls", "8", "--max-streams", "8"];
    let tokens = tokens(&folder);
    let server =
        Server::start(&[&["--engine", "embedded", "--tokens", &tokens], &flags[..]].concat());
    let stream = || Some(framed(&config(StreamConfig::default())));
    let mut open = Vec::new();
    for (path, first) in [(STREAM_CLASSIFY, stream()), (CLASSIFY, None)] {
        open.extend(hold(&server, 6, path, Some(SHOP), first.clone()).await);
        // On another connection, since it is the name that counts.
        let mut connection = http2::connect(&server.grpc).await;
        let next = begin(&mut connection, path, Some(SHOP), first);
        assert_limited(&next.rejection().await);
    }
    assert_eq!(client_limited(&server), 2.0);

    for _ in 0..10 {
        assert_eq!(classify(&server, CAMERA).await, Ok("cat".into()));
    }
    let mut connection = http2::connect(&server.grpc).await;
    let streamed = begin(&mut connection, STREAM_CLASSIFY, Some(CAMERA), stream());
    assert!(streamed.lasts().await);
    drop(open);
    let give_up = Instant::now() + Duration::from_secs(10);
    while classify(&server, SHOP).await.is_err() {
        assert!(Instant::now() < give_up, "its places are not given back");
    }
}

#[tokio::test]
async fn callers_without_a_name_are_limited_by_their_address_on_all_connections() {
    let server = Server::start(&["--engine", "embedded", "--max-calls", "8"]);
    let _open = hold(&server, 6, CLASSIFY, None, None).await;
    let mut connection = http2::connect(&server.grpc).await;
    let next = begin(&mut connection, CLASSIFY, None, None);
    assert_limited(&next.rejection().await);

    let mut other = http2::connect_from([127, 0, 0, 2], &server.grpc).await;
    let call = http2::call(CLASSIFY).body(()).unwrap();
    let (response, mut sender) = other.send_request(call, false).unwrap();
    sender.send_data(framed(&cat()).into(), true).unwrap();
    assert_eq!(http2::status(response).await.unwrap().code(), Code::Ok);
}

#[tokio::test]
async fn one_caller_may_have_everything_where_the_server_says_so() {
    let flags = ["--max-calls", "4", "--max-per-client", "100"];
    let server = Server::start(&[&["--engine", "embedded"], &flags[..]].concat());
    let _open = hold(&server, 4, CLASSIFY, None, None).await;
    let mut connection = http2::connect(&server.grpc).await;
    let next = begin(&mut connection, CLASSIFY, None, None);
    let status = next.rejection().await;
    assert!(status.message().contains("4 calls are in progress"));
    assert_eq!(client_limited(&server), 0.0);
}

#[tokio::test]
async fn health_watches_and_reflection_are_limited_for_one_address_and_in_all() {
    let server = Server::start(&["--engine", "embedded", "--max-connections", "16"]);
    let before = server.usage();
    let mut connection = http2::connect(&server.grpc).await;
    let mut other = http2::connect_from([127, 0, 0, 2], &server.grpc).await;
    let watch = || Some(framed(&HealthCheckRequest::default()));
    let mut open = Vec::new();

    for (path, message, own) in [(WATCH, watch(), 12), (REFLECTION, None, 48)] {
        // The server looks at the calls of a connection in any order.
        let (calls, senders): (Vec<_>, Vec<_>) = (0..=own)
            .map(|_| begin(&mut connection, path, None, message.clone()))
            .map(|call| (Box::pin(http2::status(call.response)), call.sender))
            .unzip();
        let ended = tokio::time::timeout(Duration::from_secs(20), select_all(calls));
        let (status, _, others) = ended.await.expect("one call is rejected");
        assert_limited(&status.unwrap());
        let second = tokio::time::timeout(Duration::from_millis(500), select_all(others));
        assert!(second.await.is_err(), "another call ends too");
        open.push(senders);
        let beside = begin(&mut other, path, None, message);
        assert!(beside.lasts().await, "{path}");
    }
    drop((open, connection, other));
    assert_recovers(&server, before).await;
    let give_up = Instant::now() + Duration::from_secs(10);
    loop {
        let mut connection = http2::connect(&server.grpc).await;
        let again = begin(&mut connection, WATCH, None, watch());
        if again.lasts().await {
            break;
        }
        assert!(
            Instant::now() < give_up,
            "the places of closed connections are not given back"
        );
    }
}
