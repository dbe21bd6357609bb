//! The dashboard's panels and the queries in them.

use serde_json::Value;

use crate::common::json;

/// The dashboard as Grafana loads it.
pub fn dashboard() -> Value {
    json(
        &std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("deploy/grafana/dashboards/resnet18.json"),
    )
}

/// Every panel, including those in collapsed rows, with its row's title.
pub fn panels() -> Vec<(String, Value)> {
    let mut row = String::new();
    let mut panels = Vec::new();
    for panel in dashboard()["panels"].as_array().unwrap() {
        if panel["type"] == "row" {
            row = panel["title"].as_str().unwrap().into();
            let inside = panel["panels"].as_array().unwrap().iter();
            panels.extend(inside.map(|panel| (row.clone(), panel.clone())));
        } else {
            panels.push((row.clone(), panel.clone()));
        }
    }
    panels
}

/// One query.
pub struct Query {
    /// The panel's title.
    pub title: String,
    pub expr: String,
    pub legend: String,
    /// Evaluated at one moment; other queries are drawn over time.
    pub instant: bool,
    pub expected: Expected,
}

/// What a query returns for a server without a GPU.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Data,
    OnGpu,
    /// Only when something happens.
    Events,
}

impl Query {
    /// The query for every server and model, with rates over `window`.
    pub fn over(&self, window: &str) -> String {
        let expr = self
            .expr
            .replace("$__rate_interval", window)
            .replace("$instance", ".*")
            .replace("$model", ".*");
        assert!(
            !expr.contains('$'),
            "{}: what is the variable in {expr}?",
            self.title
        );
        expr
    }
}

/// The queries of the panels and of the annotations.
pub fn queries() -> Vec<Query> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut queries = Vec::new();
    for (row, panel) in panels() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push(Query {
                title: text(&panel["title"]),
                expr: text(&target["expr"]),
                legend: text(&target["legendFormat"]),
                instant: target["instant"].as_bool().unwrap(),
                expected: if row.starts_with("GPU") {
                    Expected::OnGpu
                } else {
                    Expected::Data
                },
            });
        }
    }
    for annotation in dashboard()["annotations"]["list"].as_array().unwrap() {
        if let Some(expr) = annotation["expr"].as_str() {
            queries.push(Query {
                title: text(&annotation["name"]),
                expr: expr.into(),
                legend: text(&annotation["titleFormat"]),
                instant: false,
                expected: Expected::Events,
            });
        }
    }
    queries
}

/// The variables whose values come from Prometheus: name, label and metric of each.
pub fn variables() -> Vec<(String, String, String)> {
    let mut variables = Vec::new();
    for variable in dashboard()["templating"]["list"].as_array().unwrap() {
        let Some(query) = variable["query"]["query"].as_str() else {
            continue;
        };
        let inside = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')'))
            .unwrap();
        let (metric, label) = inside.rsplit_once(", ").unwrap();
        let metric = metric.replace("$instance", ".*");
        variables.push((
            variable["name"].as_str().unwrap().into(),
            label.into(),
            metric,
        ));
    }
    variables
}
