//! The dashboard is as Grafana wants it and as a reader needs it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::dashboard::{dashboard, panels};

#[test]
fn every_panel_says_what_it_shows_in_which_unit_from_the_chosen_source() {
    let mut ids = BTreeSet::new();
    for (row, panel) in panels() {
        let title = panel["title"].as_str().unwrap();
        assert!(!row.is_empty() && !title.is_empty());
        assert!(panel["description"].as_str().unwrap().ends_with('.'), "{title}");
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is taken");
        if panel["type"] == "text" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let unit = &panel["fieldConfig"]["defaults"]["unit"];
        assert!(unit.as_str().is_some_and(|unit| !unit.is_empty()), "{title} has no unit");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let expr = target["expr"].as_str().unwrap();
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            assert!(expr.contains("instance=~\"$instance\""), "{title}: {expr}");
            assert!(!expr.contains("rate(") || expr.contains("[$__rate_interval]"), "{title}: {expr}");
        }
        let references: BTreeSet<&str> = targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
        assert_eq!(references.len(), targets.len(), "{title}");
        if panel["type"] == "stat" {
            let steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array().unwrap();
            assert!(
                steps[0]["value"].is_null() && steps.iter().skip(1).all(|step| step["value"].is_number()),
                "{title}"
            );
        }
    }
}

#[test]
fn no_two_panels_lie_on_each_other() {
    let cells = |panels: &[Value]| {
        let mut taken = BTreeSet::new();
        for panel in panels {
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
            assert!(x + w <= 24 && w > 0 && h > 0, "{}", panel["title"]);
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(taken.insert(cell), "{} lies on another panel", panel["title"]);
            }
        }
    };
    let all = dashboard()["panels"].as_array().unwrap().clone();
    cells(&all);
    all.iter().filter_map(|row| row["panels"].as_array()).for_each(|inside| cells(inside));
}

#[test]
fn it_is_of_a_schema_that_grafana_reads_and_can_be_asked_for_servers_and_models() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
    assert!(!dashboard["uid"].as_str().unwrap().is_empty());
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<&str> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "instance", "model"]);
    assert!(panels().iter().any(|(row, panel)| row == "What to do" && panel["type"] == "text"));
    for stage in ["decode", "queue", "inference"] {
        let is =
            |panel: &Value| panel["type"] == "heatmap" && panel["targets"][0]["expr"].as_str().unwrap().contains(stage);
        assert!(panels().iter().any(|(_, panel)| is(panel)), "no heat map of {stage}");
    }
}
