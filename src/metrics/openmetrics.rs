//! Rewrites Prometheus's text format as OpenMetrics 1.0, with exemplars of request durations.
//!
//! <https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md>

use std::{collections::HashMap, fmt::Write, time::UNIX_EPOCH};

use super::{
    exemplar::Exemplar,
    exposition::label,
    table::{DURATIONS, REQUEST_DURATION},
};

/// The exemplars of request durations by the labels `model`, as it is written, and `method`.
pub(super) type RequestExemplars = HashMap<(String, &'static str), Vec<Option<Exemplar>>>;

/// The same metrics in OpenMetrics' text format.
pub(super) fn openmetrics(text: &str, exemplars: &RequestExemplars) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 16);
    // OpenMetrics has no empty lines.
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(described) = line.strip_prefix("# ") {
            describe(&mut out, described);
        } else {
            sample(&mut out, line, exemplars);
        }
        out.push('\n');
    }
    out.push_str("# EOF\n");
    out
}

/// Writes a line that describes a metric. A counter's name has no `_total` there.
fn describe(out: &mut String, described: &str) {
    let mut words = described.splitn(3, ' ');
    let [keyword, name, rest] = [(); 3].map(|()| words.next().unwrap_or_default());
    let name = name.strip_suffix("_total").unwrap_or(name);
    out.extend(["# ", keyword, " ", name, " ", rest]);
}

/// Writes a sample. Bounds of buckets are written as floating-point numbers.
fn sample(out: &mut String, line: &str, exemplars: &RequestExemplars) {
    let Some(bound) = label(line, "le") else {
        out.push_str(line);
        return;
    };
    let is_whole = bound.bytes().all(|byte| byte.is_ascii_digit());
    match line.rsplit_once("le=\"") {
        Some((before, after)) if is_whole => {
            let after = &after[bound.len()..];
            out.extend([before, "le=\"", bound, ".0", after]);
        }
        _ => out.push_str(line),
    }
    if let Some(exemplar) = exemplar_of(line, bound, exemplars) {
        let since_1970 = exemplar.at.duration_since(UNIX_EPOCH);
        let at = since_1970.unwrap_or_default().as_secs_f64();
        let Exemplar { trace, value, .. } = exemplar;
        write!(out, " # {{trace_id=\"{trace}\"}} {value} {at:.3}")
            .expect("writing into a string does not fail");
    }
}

/// The exemplar of a bucket of a request's duration.
fn exemplar_of(line: &str, bound: &str, exemplars: &RequestExemplars) -> Option<Exemplar> {
    if exemplars.is_empty() || !line.strip_prefix(REQUEST_DURATION)?.starts_with("_bucket{") {
        return None;
    }
    let [model, method] = ["model", "method"].map(|name| label(line, name));
    let (model, method) = (model?, method?);
    let (_, buckets) = exemplars
        .iter()
        .find(|((a_model, a_method), _)| a_model == model && *a_method == method)?;
    let bound: f64 = bound.trim_start_matches('+').parse().ok()?;
    let bucket = DURATIONS.partition_point(|&other| other < bound);
    buckets.get(bucket).copied().flatten()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        metrics::table::{METRICS, MetricKind},
        telemetry::context::TraceId,
    };

    #[test]
    fn the_text_becomes_openmetrics() {
        let text = "# HELP a_total How many.\n# TYPE a_total counter\na_total{model=\"le=\"} 3\n\n\
                    # HELP b How big.\n# TYPE b histogram\nb_bucket{le=\"1\"} 1\n\
                    b_bucket{le=\"1.5\"} 1\nb_bucket{le=\"+Inf\"} 2\nb_sum 9\nb_count 2\n";
        let expected = "# HELP a How many.\n# TYPE a counter\na_total{model=\"le=\"} 3\n\
                        # HELP b How big.\n# TYPE b histogram\nb_bucket{le=\"1.0\"} 1\n\
                        b_bucket{le=\"1.5\"} 1\nb_bucket{le=\"+Inf\"} 2\nb_sum 9\nb_count 2\n\
                        # EOF\n";
        assert_eq!(openmetrics(text, &RequestExemplars::new()), expected);
    }

    #[test]
    fn buckets_of_requests_have_their_exemplars() {
        let mut buckets = vec![None; DURATIONS.len() + 1];
        let exemplar = |value| {
            Some(Exemplar {
                trace: TraceId([0xab; 16]),
                value,
                at: UNIX_EPOCH + Duration::from_millis(1500),
            })
        };
        let tenth = DURATIONS.iter().position(|&bound| bound == 0.1).unwrap();
        buckets[tenth] = exemplar(0.09);
        buckets[DURATIONS.len()] = exemplar(11.0);
        let exemplars = RequestExemplars::from([(("m".into(), "Classify"), buckets)]);

        let line = |model: &str, bound: &str| {
            format!(
                "{REQUEST_DURATION}_bucket{{model=\"{model}\",method=\"Classify\",le=\"{bound}\"}} 1"
            )
        };
        let written = |line: &str| {
            let text = openmetrics(line, &exemplars);
            text.lines().next().unwrap().to_owned()
        };
        let trace = "ab".repeat(16);
        let first = line("m", "0.1");
        assert_eq!(
            written(&first),
            format!("{first} # {{trace_id=\"{trace}\"}} 0.09 1.500")
        );
        assert!(written(&line("m", "+Inf")).ends_with("} 11 1.500"));
        for other in [line("m", "0.2"), line("n", "0.1")] {
            assert_eq!(written(&other), other);
        }
    }

    #[test]
    fn names_end_in_total_if_and_only_if_they_count() {
        for metric in METRICS {
            let counts = matches!(
                metric.kind,
                MetricKind::Counter | MetricKind::FractionalCounter
            );
            assert_eq!(metric.name.ends_with("_total"), counts, "{}", metric.name);
        }
    }
}
