//! Dashboard, recording rules and alerts, with a real Prometheus that scrapes a server under load.

mod dashboard;
mod load;
mod prometheus;
mod structure;

use std::time::{Duration, Instant, SystemTime};

use self::dashboard::{Expected, Query, queries};
use self::load::Load;
use self::prometheus::{Prometheus, seconds};
use crate::common::{Server, data, exclusive, ffmpeg, image, request};

/// Clients in a closed loop: enough that an answer takes far longer than its way through the
/// network.
const CLIENTS: usize = 32;
const CAPACITY: &str = "40";
const LOAD: Duration = Duration::from_secs(11);

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_and_the_clients_agree_and_alerts_fire() {
    if !ffmpeg() || !prometheus::installed() {
        return;
    }
    let alone = exclusive();
    let mut server = Server::start(&["--threads", "2", "--queue-capacity", CAPACITY]);
    let prometheus = Prometheus::start(server.http);
    prometheus.wait_for_scrapes().await;
    prometheus.wait_until_calm().await;

    let load = Load::start(&server, CLIENTS).await;
    tokio::time::sleep(LOAD).await;
    measurements_agree(&prometheus, &load);

    let overload = Load::start(&server, 4 * CLIENTS).await;
    prometheus.wait_until_firing("ClassifierQueueFull").await;
    every_query_answers(&prometheus, &server);
    load.stop().await;
    overload.stop().await;
    drop(alone);

    let fired = prometheus.firing();
    for wrong in [
        "ClassifierDown",
        "ClassifierNotReady",
        "ClassifierReloadFailed",
        "ClassifierErrors",
    ] {
        assert!(!fired.contains(wrong), "{fired:?}");
    }

    server.signal("KILL");
    server.wait(Duration::from_secs(5)).unwrap();
    prometheus.wait_until_firing("ClassifierDown").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_found_from_the_latency_that_it_had() {
    if !prometheus::installed() {
        return;
    }
    let server = Server::start(&["--engine", "embedded"]);
    let prometheus = Prometheus::start(server.http);
    prometheus.wait_for_scrapes().await;

    let trace = "0af7651916cd43dd8448eb211c80319c";
    let mut call = tonic::Request::new(request(image(data("cat.jpg"))));
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    call.metadata_mut()
        .insert("traceparent", parent.parse().unwrap());
    let began = Instant::now();
    server.client().await.classify(call).await.unwrap();
    let took = began.elapsed().as_secs_f64();

    let series = "classifier_request_duration_seconds_bucket{method=\"Classify\"}";
    let value = prometheus.wait_for_exemplar(series, trace).await;
    assert!(0.0 < value && value <= took, "{value} of {took} s");
}

/// Compares throughput and latency as the dashboard shows them with the clients' own measurements.
fn measurements_agree(prometheus: &Prometheus, load: &Load) {
    let scrapes = prometheus.scrapes(
        "classifier_batch_size_sum",
        seconds(SystemTime::now()),
        "9s",
    );
    let [begin, .., end] = scrapes[..] else {
        panic!("{scrapes:?}")
    };
    let window = end - begin;
    assert!(window > 6.0, "{scrapes:?}");
    let show = |title: &str, legend: &str| {
        let query = queries()
            .into_iter()
            .find(|query| query.title == title && query.legend == legend);
        let expr = query
            .unwrap_or_else(|| panic!("no {title}"))
            .over(&format!("{}ms", (window * 1e3).round()));
        prometheus.value(&expr, end)
    };
    let seen = load.between(begin, end);

    let images = (seen.latencies.len() as u64 + seen.frames) as f64;
    // On a very slow machine a few answers in flight at either end are more than 5 %.
    close(
        "images a second",
        show("Images a second", ""),
        images / window,
        0.05_f64.max(3.0 / images),
    );
    close(
        "mean latency",
        show("Latency of requests", "mean"),
        seen.mean(),
        0.05,
    );
    // A quantile is accurate to the width of its bucket, whose bounds differ by up to this factor.
    const WIDTH: f64 = 1.6;
    for (name, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
        let shown = show("Latency of requests", name);
        let (low, high) = (
            seen.quantile(quantile - 0.02),
            seen.quantile(quantile + 0.02),
        );
        assert!(
            low / WIDTH < shown && shown < high * WIDTH,
            "{name}: {shown} beside {low} to {high}"
        );
    }
}

fn close(what: &str, shown: f64, seen: f64, tolerance: f64) {
    eprintln!("{what}: Prometheus {shown:.3}, clients {seen:.3}");
    assert!(
        (shown / seen - 1.0).abs() < tolerance,
        "{what}: Prometheus says {shown}, the clients saw {seen}"
    );
}

/// Every query of the dashboard, and every rule, gives data of the shape that its panel expects.
fn every_query_answers(prometheus: &Prometheus, server: &Server) {
    let end = seconds(SystemTime::now());
    for query in queries() {
        let expr = query.over("8s");
        let series = prometheus.series(&expr, end, query.instant);
        match query.expected {
            Expected::OnGpu | Expected::Events => continue,
            Expected::Data => assert!(!series.is_empty(), "{}: no data for {expr}", query.title),
        }
        for (labels, value) in series {
            assert!(value.is_finite(), "{}: {value} for {expr}", query.title);
            for label in query.labels() {
                assert!(
                    labels.contains_key(&label),
                    "{}: no {label} in {labels:?}",
                    query.title
                );
            }
        }
    }
    for (variable, label, metric) in dashboard::variables() {
        let values = prometheus.label_values(&label, &metric);
        let expected = if variable == "model" {
            "resnet18-demo".to_owned()
        } else {
            server.http.to_string()
        };
        assert_eq!(values, [expected], "{variable}");
    }
    for rule in prometheus.rules() {
        assert_eq!(
            (rule.health.as_str(), rule.error.as_str()),
            ("ok", ""),
            "{}",
            rule.name
        );
        if rule.kind == "recording" {
            assert!(
                !prometheus.series(&rule.name, end, true).is_empty(),
                "{} has no data",
                rule.name
            );
        }
    }
}

#[test]
fn the_rules_pass_promtools_tests() {
    if !prometheus::installed() {
        return;
    }
    let folder = data("").join("../../deploy/prometheus");
    for arguments in [
        &["check", "config", "prometheus.yml"][..],
        &["check", "rules", "rules.yml"],
        &["test", "rules", "rules.test.yml"],
    ] {
        let output = std::process::Command::new("promtool")
            .args(arguments)
            .current_dir(&folder)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(
            output.status.success(),
            "promtool {}: {said}",
            arguments.join(" ")
        );
    }
    // An alert without a test is one that nobody has seen fire.
    let tests = std::fs::read_to_string(folder.join("rules.test.yml")).unwrap();
    let rules = std::fs::read_to_string(folder.join("rules.yml")).unwrap();
    for alert in rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        assert!(
            tests.contains(&format!("\"{alert}\""))
                || tests.contains(&format!("alertname: {alert}\n")),
            "{alert}"
        );
    }
}

impl Query {
    /// The labels that its legend names.
    fn labels(&self) -> Vec<String> {
        self.legend
            .split("{{")
            .skip(1)
            .filter_map(|rest| rest.split_once("}}"))
            .map(|(name, _)| name.into())
            .collect()
    }
}
