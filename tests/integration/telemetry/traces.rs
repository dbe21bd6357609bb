//! Tracing, from a caller's `traceparent` to the spans that a collector receives.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use resnet18_server::proto::{FramePolicy, Image, ListModelsRequest, Timing, image::Source};
use tokio::net::TcpListener;
use tonic::Code;

use super::{
    calls::{PARENT, TRACE, call, photo, pixels, stop, stream, tokens, traceparent},
    collector::{Collector, attribute},
};
use crate::common::{Server, request};

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of_trace(spans: &[Span], trace: &str) -> Vec<Span> {
    spans
        .iter()
        .filter(|span| hex(&span.trace_id) == trace)
        .cloned()
        .collect()
}

/// The children of `parent`, ordered by start.
fn parts(spans: &[Span], parent: &Span) -> Vec<Span> {
    let mut parts: Vec<_> = spans
        .iter()
        .filter(|span| span.parent_span_id == parent.span_id)
        .cloned()
        .collect();
    parts.sort_by_key(|span| (span.start_time_unix_nano, span.end_time_unix_nano));
    parts
}

fn nanoseconds(duration: Option<prost_types::Duration>) -> u64 {
    Duration::try_from(duration.unwrap()).unwrap().as_nanos() as u64
}

/// Checks that the four stages of `whole` follow each other without a gap and take as long as the
/// answer says, and that inference and batch are linked both ways.
fn check_stages(spans: &[Span], whole: &Span, timing: &Timing) {
    let stages = parts(spans, whole);
    let names: Vec<_> = stages.iter().map(|span| &*span.name).collect();
    assert_eq!(names, ["queue", "decode", "queue", "inference"]);
    assert_eq!(stages[0].start_time_unix_nano, whole.start_time_unix_nano);
    assert!(
        stages
            .windows(2)
            .all(|two| two[0].end_time_unix_nano == two[1].start_time_unix_nano)
    );
    assert!(stages[3].end_time_unix_nano <= whole.end_time_unix_nano);
    let took = |stage: usize| stages[stage].end_time_unix_nano - stages[stage].start_time_unix_nano;
    assert_eq!(took(0) + took(2), nanoseconds(timing.queue));
    assert_eq!(
        (took(1), took(3)),
        (nanoseconds(timing.decode), nanoseconds(timing.inference))
    );

    let inference = &stages[3];
    assert_eq!(inference.links.len(), 1);
    let batch = spans
        .iter()
        .find(|span| span.span_id == inference.links[0].span_id)
        .expect("its batch was sent");
    assert_eq!(
        (&*batch.name, &batch.trace_id),
        ("batch", &inference.links[0].trace_id)
    );
    assert!(
        batch
            .links
            .iter()
            .any(|link| (&link.trace_id, &link.span_id) == (&whole.trace_id, &whole.span_id))
    );
    assert_eq!(
        attribute(&batch.attributes, "classifier.batch_size"),
        attribute(&inference.attributes, "classifier.batch_size")
    );
    let length = |span: &Span| span.end_time_unix_nano - span.start_time_unix_nano;
    assert_eq!(length(batch), length(inference));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_trace_is_continued_through_every_stage() {
    let (collector, url) = Collector::start().await;
    let tokens = tokens();
    let file = tokens.path().display().to_string();
    let mut server = Server::start(&[
        "--tokens",
        &file,
        "--otlp-endpoint",
        &url,
        "--trace-sampling",
        "1",
    ]);
    let mut client = server.client().await;

    let metadata = [
        ("traceparent", &*traceparent("01")),
        ("tracestate", "shop=cart, bank=7"),
        ("tracestate", "x=y"),
    ];
    let answer = client
        .classify(call(photo(), &metadata))
        .await
        .unwrap()
        .into_inner();
    let unsampled = traceparent("00").replace(TRACE, &"c".repeat(32));
    client
        .classify(call(photo(), &[("traceparent", &unsampled)]))
        .await
        .unwrap();
    let mut stranger = call(photo(), &metadata);
    stranger.metadata_mut().remove("authorization");
    assert_eq!(
        client.classify(stranger).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    let malformed = traceparent("01").replace(TRACE, &"D".repeat(32));
    client
        .classify(call(
            photo(),
            &[("traceparent", &malformed), ("tracestate", "a=b")],
        ))
        .await
        .unwrap();
    let of_stream = traceparent("01").replace(TRACE, &"e".repeat(32));
    let broken = Image {
        source: Some(Source::Encoded(b"no image".to_vec().into())),
    };
    let images = vec![pixels(), broken, pixels()];
    let answers = stream(
        &mut client,
        FramePolicy::Every,
        images,
        &[("traceparent", &of_stream)],
    )
    .await;
    let of_live = traceparent("01").replace(TRACE, &"f".repeat(32));
    let live = stream(
        &mut client,
        FramePolicy::Latest,
        vec![pixels()],
        &[("traceparent", &of_live)],
    )
    .await;
    drop(client);
    stop(&mut server);

    let spans = collector.spans();
    let traced = of_trace(&spans, TRACE);
    assert_eq!(traced.len(), 5, "{traced:#?}");
    let whole = traced
        .iter()
        .find(|span| hex(&span.parent_span_id) == PARENT)
        .unwrap();
    assert_eq!(
        (&*whole.name, whole.kind()),
        ("resnet18.v1.Classifier/Classify", SpanKind::Server)
    );
    assert_eq!(attribute(&whole.attributes, "classifier.caller"), "shop");
    assert_eq!(
        attribute(&whole.attributes, "classifier.model"),
        "resnet18-demo"
    );
    assert_eq!(attribute(&whole.attributes, "rpc.grpc.status_code"), "0");
    assert!(
        traced
            .iter()
            .all(|span| span.trace_state == "shop=cart,bank=7,x=y")
    );
    check_stages(&spans, whole, &answer.timing.unwrap());
    let resource = &collector.received()[0].resource;
    assert_eq!(attribute(resource, "service.name"), "resnet18");
    assert_eq!(
        attribute(resource, "service.version"),
        env!("CARGO_PKG_VERSION")
    );

    assert!(
        of_trace(&spans, &"c".repeat(32)).is_empty(),
        "the caller decided against sampling"
    );
    let roots: Vec<_> = spans
        .iter()
        .filter(|span| span.kind() == SpanKind::Server)
        .collect();
    assert_eq!(roots.len(), 4);
    let new = roots
        .iter()
        .find(|span| span.parent_span_id.is_empty())
        .expect("a malformed parent is none");
    assert!(new.trace_state.is_empty() && new.trace_id.iter().any(|byte| *byte != 0xdd));
    assert_eq!(of_trace(&spans, &hex(&new.trace_id)).len(), 5);

    for (trace, answers) in [("e".repeat(32), answers), ("f".repeat(32), live)] {
        let whole = roots
            .iter()
            .find(|span| hex(&span.trace_id) == trace)
            .unwrap();
        assert_eq!(
            attribute(&whole.attributes, "classifier.frames"),
            answers.len().to_string()
        );
        let frames = parts(&spans, whole);
        assert_eq!(frames.len(), answers.len());
        for answer in answers {
            let id = answer.frame_id.to_string();
            let is_it = |span: &&Span| attribute(&span.attributes, "classifier.frame_id") == id;
            let frame = frames.iter().find(is_it).unwrap();
            assert_eq!(frame.name, "frame");
            match attribute(&frame.attributes, "classifier.code").as_str() {
                "OK" => check_stages(&spans, frame, &answer.timing.unwrap()),
                code => assert_eq!((code, answer.frame_id), ("INVALID_ARGUMENT", 2)),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_and_their_shared_batch_are_linked_both_ways() {
    let (collector, url) = Collector::start().await;
    let flags = [
        "--max-batch",
        "4",
        "--max-queue-delay",
        "3s",
        "--trace-sampling",
        "0",
        "--otlp-endpoint",
        &url,
    ];
    let mut server = Server::start(&flags);
    let calls = (1..=4_u8).map(|caller| {
        let client = server.client();
        async move {
            let parent = format!("00-{}-{PARENT}-01", hex(&[caller; 16]));
            client
                .await
                .classify(call(photo(), &[("traceparent", &parent)]))
                .await
                .unwrap()
                .into_inner()
        }
    });
    let answers = join_all(calls).await;
    // This call is not sampled.
    server
        .client()
        .await
        .list_models(ListModelsRequest {})
        .await
        .unwrap();
    stop(&mut server);

    let spans = collector.spans();
    for (answer, caller) in answers.iter().zip(1..) {
        let whole = of_trace(&spans, &hex(&[caller; 16]))
            .into_iter()
            .find(|span| span.kind() == SpanKind::Server);
        check_stages(&spans, &whole.unwrap(), answer.timing.as_ref().unwrap());
    }
    let batches: Vec<_> = spans.iter().filter(|span| span.name == "batch").collect();
    assert_eq!(batches.len(), 1, "{batches:#?}");
    let linked: BTreeSet<_> = batches[0]
        .links
        .iter()
        .map(|link| link.trace_id.clone())
        .collect();
    assert_eq!(linked, (1..=4).map(|caller| vec![caller; 16]).collect());
    assert_eq!(
        spans
            .iter()
            .filter(|span| span.kind() == SpanKind::Server)
            .count(),
        4
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_fails_by_the_servers_fault_is_an_error_in_its_trace() {
    let (collector, url) = Collector::start().await;
    let flags = [
        "--default-deadline",
        "1ms",
        "--max-message-mib",
        "1",
        "--trace-sampling",
        "1",
        "--otlp-endpoint",
        &url,
    ];
    let mut server = Server::start(&flags);
    let mut client = server.client().await;
    assert_eq!(
        client.classify(photo()).await.unwrap_err().code(),
        Code::DeadlineExceeded
    );
    let large = Image {
        source: Some(Source::Encoded(vec![0; 2 << 20].into())),
    };
    let refused = client
        .classify(call(request(large), &[("grpc-timeout", "60S")]))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    stop(&mut server);

    let status = |span: &Span| {
        (
            attribute(&span.attributes, "rpc.grpc.status_code"),
            span.status.clone().unwrap_or_default(),
        )
    };
    let found: Vec<_> = collector.spans().iter().map(status).collect();
    let (code, late) = found.first().expect("the late call was traced");
    assert_eq!((&**code, late.code()), ("4", StatusCode::Error));
    let (code, large) = found.last().expect("the large message was traced");
    assert_eq!(
        (&**code, large.code()),
        ("11", StatusCode::Unset),
        "{found:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_down_is_logged_once_and_delays_nothing() {
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let mut server = Server::start(&[
        "--otlp-endpoint",
        &format!("http://{free}"),
        "--trace-sampling",
        "1",
    ]);
    let mut client = server.client().await;
    let warnings = |server: &Server| server.log().matches("takes no traces").count();
    client.classify(photo()).await.unwrap();
    for _ in 0..100 {
        if warnings(&server) > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.classify(photo()).await.unwrap();
    drop(client);
    stop(&mut server);
    assert_eq!(warnings(&server), 1, "{}", server.log());
    assert!(server.log().contains(&free.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_does_not_delay_the_shutdown() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let mut server = Server::start(&["--otlp-endpoint", &url, "--trace-sampling", "1"]);
    server.client().await.classify(photo()).await.unwrap();
    stop(&mut server);
    assert!(
        server.log().contains("some traces were not sent"),
        "{}",
        server.log()
    );
}
