//! The dashboard's structure: valid for Grafana, and complete for its readers.

use std::collections::BTreeSet;

use resnet18_server::metrics::METRICS;
use serde_json::Value;

use super::dashboard::{Expected, dashboard, panels, queries};

#[test]
fn every_panel_says_what_it_shows_in_which_unit_from_the_chosen_source() {
    let mut ids = BTreeSet::new();
    for (row, panel) in panels() {
        let title = panel["title"].as_str().unwrap();
        assert!(!row.is_empty() && !title.is_empty());
        assert!(
            panel["description"].as_str().unwrap().ends_with('.'),
            "{title}"
        );
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "{title}: its id is taken"
        );
        if panel["type"] == "text" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let unit = &panel["fieldConfig"]["defaults"]["unit"];
        assert!(
            unit.as_str().is_some_and(|unit| !unit.is_empty()),
            "{title} has no unit"
        );
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let expr = target["expr"].as_str().unwrap();
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            assert!(expr.contains("instance=~\"$instance\""), "{title}: {expr}");
            assert!(
                !expr.contains("rate(") || expr.contains("[$__rate_interval]"),
                "{title}: {expr}"
            );
        }
        let references: BTreeSet<&str> = targets
            .iter()
            .map(|target| target["refId"].as_str().unwrap())
            .collect();
        assert_eq!(references.len(), targets.len(), "{title}");
        if panel["type"] == "stat" {
            let steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
                .as_array()
                .unwrap();
            assert!(
                steps[0]["value"].is_null()
                    && steps.iter().skip(1).all(|step| step["value"].is_number()),
                "{title}"
            );
        }
    }
}

#[test]
fn panels_do_not_overlap() {
    let cells = |panels: &[Value]| {
        let mut taken = BTreeSet::new();
        for panel in panels {
            let [x, y, w, h] =
                ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
            assert!(x + w <= 24 && w > 0 && h > 0, "{}", panel["title"]);
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(
                    taken.insert(cell),
                    "{} overlaps another panel",
                    panel["title"]
                );
            }
        }
    };
    let all = dashboard()["panels"].as_array().unwrap().clone();
    cells(&all);
    all.iter()
        .filter_map(|row| row["panels"].as_array())
        .for_each(|inside| cells(inside));
}

#[test]
fn it_has_a_current_schema_and_variables_for_servers_and_models() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
    assert!(!dashboard["uid"].as_str().unwrap().is_empty());
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<&str> = variables
        .iter()
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["datasource", "instance", "model"]);
    assert!(
        panels()
            .iter()
            .any(|(row, panel)| row == "What to do" && panel["type"] == "text")
    );
    for stage in ["decode", "queue", "inference"] {
        let is = |panel: &Value| {
            panel["type"] == "heatmap"
                && panel["targets"][0]["expr"]
                    .as_str()
                    .unwrap()
                    .contains(stage)
        };
        assert!(
            panels().iter().any(|(_, panel)| is(panel)),
            "no heat map of {stage}"
        );
    }
}

/// Names of metrics and of recorded series in an expression.
fn names(expr: &str) -> impl Iterator<Item = &str> {
    let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words.filter(|word| word.contains("classifier_"))
}

/// Queries for GPU metrics are checked here only: the tests' server has none.
#[test]
fn every_metric_that_is_asked_for_exists_with_its_labels() {
    let rules = include_str!("../../../deploy/prometheus/rules.yml");
    let recorded: BTreeSet<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: "))
        .collect();
    let exists = |name: &str| {
        let stem = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|part| name.strip_suffix(part));
        recorded.contains(name)
            || METRICS
                .iter()
                .any(|metric| metric.name == name || Some(metric.name) == stem)
    };
    for name in rules
        .lines()
        .filter(|line| !line.contains("- name:"))
        .flat_map(names)
    {
        assert!(exists(name), "the rules ask for {name}");
    }
    for query in queries() {
        for name in names(&query.expr) {
            assert!(exists(name), "{} asks for {name}", query.title);
        }
        if query.expected == Expected::OnGpu {
            let metrics = METRICS
                .iter()
                .filter(|metric| names(&query.expr).any(|name| name == metric.name));
            let labels: Vec<&str> = metrics
                .flat_map(|metric| metric.labels)
                .map(|label| label.name)
                .collect();
            for label in query.labels() {
                assert!(
                    label == "instance" || labels.contains(&label.as_str()),
                    "{}: {label}",
                    query.title
                );
            }
        }
    }
}
