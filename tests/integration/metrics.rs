//! The table of metrics in code, the metrics of a running server, and the documentation must agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::common::{Server, config, data, image, python, request, skipped};
use resnet18_server::{
    metrics::{METRICS, Metric, Presence, markdown},
    proto::{
        ClassifyRequest, Frame, ListModelsRequest, StreamClassifyRequest, StreamConfig,
        stream_classify_request::Message,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

#[test]
fn the_documentation_has_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let text = std::fs::read_to_string(path).unwrap();
    assert!(
        text.contains(&markdown()),
        "docs/operations.md must hold this table:\n\n{}",
        markdown()
    );
}

/// A metric as a server exports it.
#[derive(Default)]
struct Shown {
    help: String,
    kind: String,
    /// The labels of its series, without `le`.
    series: Vec<BTreeMap<String, String>>,
}

fn parse(text: &str) -> BTreeMap<String, Shown> {
    let mut shown: BTreeMap<String, Shown> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some((name, help)) = line
            .strip_prefix("# HELP ")
            .and_then(|rest| rest.split_once(' '))
        {
            shown.entry(name.into()).or_default().help = help.into();
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            shown.entry(name.into()).or_default().kind = kind.into();
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|part| name.strip_suffix(part));
            let name = base
                .filter(|base| shown.contains_key(*base))
                .unwrap_or(name);
            let labels = labels
                .trim_end_matches('}')
                .split("\",")
                .filter(|label| !label.is_empty());
            let labels = labels.map(|label| label.split_once("=\"").unwrap());
            let labels = labels
                .map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned()));
            let labels = labels.filter(|(name, _)| name != "le").collect();
            shown
                .get_mut(name)
                .unwrap_or_else(|| panic!("no type before {line}"))
                .series
                .push(labels);
        }
    }
    shown
}

fn check(metric: &Metric, shown: &Shown) {
    let name = metric.name;
    assert_eq!(
        (shown.kind.as_str(), shown.help.as_str()),
        (metric.kind.name(), metric.help),
        "{name}"
    );
    assert!(!shown.series.is_empty(), "{name}");
    let expected: BTreeSet<&str> = metric.labels.iter().map(|label| label.name).collect();
    for series in &shown.series {
        assert_eq!(
            series.keys().map(String::as_str).collect::<BTreeSet<_>>(),
            expected,
            "{name}"
        );
        for label in metric
            .labels
            .iter()
            .filter(|label| !label.values.is_empty())
        {
            let value = series[label.name].as_str();
            assert!(
                label.values.contains(&value),
                "{name}: {} is {value}",
                label.name
            );
        }
    }
}

/// A stream that is kept open.
struct OpenStream {
    frames: mpsc::Sender<StreamClassifyRequest>,
    answers: tonic::Streaming<resnet18_server::proto::StreamClassifyResponse>,
}

impl OpenStream {
    async fn open(server: &Server) -> Self {
        let (frames, receiver) = mpsc::channel(4);
        frames.send(config(StreamConfig::default())).await.unwrap();
        let answers = server
            .client()
            .await
            .stream_classify(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Self { frames, answers }
    }

    async fn classify(&mut self) {
        let frame = Frame {
            id: 1,
            captured_at: None,
            image: Some(image(data("cat.jpg"))),
            regions: Vec::new(),
        };
        self.frames
            .send(StreamClassifyRequest {
                message: Some(Message::Frame(frame)),
            })
            .await
            .unwrap();
        self.answers.message().await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_server_exports_exactly_the_metrics_of_the_table() {
    let server = Server::start(&[]);
    let mut client = server.client().await;
    client
        .classify(request(image(data("cat.jpg"))))
        .await
        .unwrap();
    client.list_models(ListModelsRequest {}).await.unwrap();
    let unknown = ClassifyRequest {
        model: "unknown".into(),
        ..request(image(data("cat.jpg")))
    };
    assert_eq!(
        client.classify(unknown).await.unwrap_err().code(),
        Code::NotFound
    );
    let mut stream = OpenStream::open(&server).await;
    stream.classify().await;

    let (_, text) = server.get("/metrics");
    let shown = parse(&text);
    for metric in METRICS {
        match (shown.get(metric.name), metric.presence) {
            (Some(shown), _) => check(&metric, shown),
            (None, Presence::Gpu) => {}
            (None, Presence::Always) => panic!("{} is not shown", metric.name),
        }
    }
    let known: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    for (name, Shown { help, kind, .. }) in &shown {
        assert!(
            known.contains(name.as_str()) || name.starts_with("process_"),
            "{name} is in no table"
        );
        assert!(!help.is_empty() && !kind.is_empty(), "{name}");
    }
    assert_eq!(shown["process_cpu_seconds_total"].kind, "counter");
    promtool_finds_nothing(&text);
}

#[tokio::test]
async fn methods_that_nobody_calls_have_no_series() {
    let server = Server::start(&["--engine", "embedded"]);
    let series = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    let (_, before) = server.get("/metrics");
    assert!(!before.contains("method=\"") && !before.contains("frame_duration"));
    assert!(series(&before) < 250, "{} series", series(&before));

    let mut client = server.client().await;
    client
        .classify(request(image(data("cat.jpg"))))
        .await
        .unwrap();
    client.list_models(ListModelsRequest {}).await.unwrap();
    let (_, after) = server.get("/metrics");
    let has = |name: &str, labels: &str| {
        let start = format!("{name}{{model=\"resnet18-demo\",method=\"{labels}");
        after.lines().any(|line| line.starts_with(&start))
    };
    assert!(has(
        "classifier_request_duration_seconds_count",
        "Classify\""
    ));
    // A rate can be computed of the first error.
    assert!(has(
        "classifier_requests_total",
        "Classify\",code=\"INTERNAL\"} 0"
    ));
    assert!(after.contains("method=\"ListModels\",code=\"OK\"} 1"));
    assert!(
        !after.contains("request_duration_seconds_count{model=\"\""),
        "it is not timed"
    );
    assert!(series(&after) < series(&before) + 60);
}

/// Prometheus asks for gzip.
#[test]
fn a_scrape_is_compressed_when_asked() {
    let server = Server::start(&["--engine", "embedded"]);
    let scrape = |accepts: &str| {
        let mut stream = TcpStream::connect(&server.http).unwrap();
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{accepts}\r\n"
        )
        .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer
            .windows(4)
            .position(|end| end == b"\r\n\r\n")
            .unwrap();
        let body = answer.split_off(end + 4);
        (String::from_utf8(answer).unwrap().to_lowercase(), body)
    };
    let (head, plain) = scrape("");
    assert!(head.contains("vary: accept, accept-encoding") && !head.contains("content-encoding"));
    let (head, compressed) = scrape("Accept-Encoding: zstd, gzip\r\n");
    assert!(head.contains("content-encoding: gzip"), "{head}");
    assert!(compressed.len() < plain.len() / 4, "{}", compressed.len());
    let mut text = String::new();
    flate2::read::GzDecoder::new(&compressed[..])
        .read_to_string(&mut text)
        .unwrap();
    assert!(text.contains("classifier_ready 1"), "{text}");
}

/// Python's own client reads it with its strict parser of OpenMetrics.
#[tokio::test]
async fn openmetrics_has_the_traces_of_slow_requests() {
    let server = Server::start(&["--engine", "embedded"]);
    let mut client = server.client().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    for (name, sampled) in [("cat.jpg", "01"), ("tiny_33x47.png", "00")] {
        let mut request = tonic::Request::new(request(image(data(name))));
        let parent = format!("00-{trace}-00f067aa0ba902b7-{sampled}");
        request
            .metadata_mut()
            .insert("traceparent", parent.parse().unwrap());
        client.classify(request).await.unwrap();
    }

    let (status, text) = server
        .try_get_as("/metrics", "application/openmetrics-text; version=1.0.0")
        .unwrap();
    assert_eq!(status, 200);
    let with_exemplars: Vec<&str> = text
        .lines()
        .filter(|line| line.contains(" # {trace_id="))
        .collect();
    let [line] = with_exemplars[..] else {
        panic!("one call was sampled: {with_exemplars:#?}");
    };
    let labels = "{model=\"resnet18-demo\",method=\"Classify\",le=";
    assert!(
        line.starts_with(&format!(
            "classifier_request_duration_seconds_bucket{labels}"
        )) && line.contains(&format!(" # {{trace_id=\"{trace}\"}} 0.")),
        "{line}"
    );
    assert!(text.ends_with("\n# EOF\n"));
    assert!(!server.get("/metrics").1.contains("trace_id"));

    let Some(python) = python() else { return };
    let program = "import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
samples = [s for family in text_string_to_metric_families(sys.stdin.read()) for s in family.samples]
print(len(samples), *[s.exemplar.labels['trace_id'] for s in samples if s.exemplar])";
    let mut parser = Command::new(python)
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = parser.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = parser.wait_with_output().unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        format!("{samples} {trace}")
    );
}

/// `promtool check metrics` reports names, types and help texts that break Prometheus' conventions.
fn promtool_finds_nothing(text: &str) {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        return skipped("promtool is not installed");
    };
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success() && said.is_empty(),
        "{}",
        String::from_utf8_lossy(&said)
    );
}

#[tokio::test]
async fn the_cost_of_requests_is_attributed_to_their_stages() {
    let server = Server::start(&["--queue-capacity", "7"]);
    assert_eq!(
        server.metric("classifier_queue_capacity", &[]),
        7.0,
        "also before the first request"
    );
    let photo = std::fs::metadata(data("cat.jpg")).unwrap().len() as f64;
    let mut client = server.client().await;
    client
        .classify(request(image(data("cat.jpg"))))
        .await
        .unwrap();
    let mut stream = OpenStream::open(&server).await;
    stream.classify().await;

    assert_eq!(
        server.metric("classifier_received_bytes_total", &[]),
        2.0 * photo
    );
    // A stage of an image occupies one worker, or others with it.
    let workers = server.metric("classifier_workers", &[]);
    for stage in ["\"decode\"", "\"inference\""] {
        let took = server.metric("classifier_stage_duration_seconds_sum", &[stage]);
        let busy = server.metric("classifier_busy_seconds_total", &[stage]);
        assert!(
            (took - 1e-6..=took * workers + 1e-6).contains(&busy),
            "{stage}: {busy} s busy in {took} s"
        );
    }
    assert_eq!(
        server.metric("classifier_frame_duration_seconds_count", &[]),
        1.0
    );

    let now = |name| server.metric(name, &[]);
    assert_eq!(
        (
            now("classifier_calls_active"),
            now("classifier_connections_active")
        ),
        (1.0, 2.0)
    );
    drop((stream, client));
    let until = Instant::now() + Duration::from_secs(5);
    while (
        now("classifier_calls_active"),
        now("classifier_connections_active"),
    ) != (0.0, 0.0)
    {
        assert!(Instant::now() < until, "{}", server.get("/metrics").1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn refused_requests_are_counted_but_not_timed() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.txt");
    std::fs::write(&tokens, "camera 0123456789abcdef0123456789abcdef\n").unwrap();
    let server = Server::start(&["--tokens", tokens.to_str().unwrap()]);
    let refused = server
        .client()
        .await
        .classify(request(image(data("cat.jpg"))))
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(
        server.metric("classifier_rejected_total", &["\"unauthenticated\""]),
        1.0
    );
    assert_eq!(
        server.metric(
            "classifier_requests_total",
            &["\"Classify\"", "\"UNAUTHENTICATED\""]
        ),
        1.0
    );
    assert_eq!(
        server.metric(
            "classifier_request_duration_seconds_count",
            &["\"Classify\""]
        ),
        0.0
    );
}
