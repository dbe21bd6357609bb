//! The series of requests: counts by method and status code, and durations by method.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use metrics::{Counter, Histogram, counter, histogram};
use tonic::Code;

use super::{
    exemplar::{Exemplar, Exemplars},
    labels::Method,
    table::{DURATIONS, REQUEST_DURATION, REQUESTS},
};
use crate::{proto::code_name, telemetry::context::TraceId};

const METHODS: usize = Method::LABELS.len();
const CODES: usize = Code::Unauthenticated as usize + 1;

/// The status codes whose series exist, at 0, from a method's first request on: Prometheus computes
/// no rate for the first increment of a series that did not exist before.
const USUAL_CODES: [Code; 7] = [
    Code::Ok,
    Code::InvalidArgument,
    Code::ResourceExhausted,
    Code::DeadlineExceeded,
    Code::Cancelled,
    Code::Unavailable,
    Code::Internal,
];

/// The series of the requests for one model. Each is registered when it is first needed.
#[derive(Default)]
pub(super) struct RequestMetrics {
    model: Arc<str>,
    finished: [[OnceLock<Counter>; CODES]; METHODS],
    durations: [OnceLock<Histogram>; METHODS],
    exemplars: [Exemplars; METHODS],
}

impl RequestMetrics {
    /// Nothing is registered yet: most methods are never called.
    pub fn new(model: Arc<str>) -> Self {
        Self {
            model,
            ..Self::default()
        }
    }

    /// The requests of a method that ended with this code.
    pub fn finished(&self, method: Method, code: Code) -> &Counter {
        if method.is_timed() && !self.model.is_empty() {
            for usual in USUAL_CODES {
                self.counter(method, usual);
            }
        }
        self.counter(method, code)
    }

    fn counter(&self, method: Method, code: Code) -> &Counter {
        self.finished[method as usize][code as usize].get_or_init(|| {
            counter!(
                REQUESTS,
                "model" => Arc::clone(&self.model),
                "method" => Method::LABELS[method as usize],
                "code" => code_name(code),
            )
        })
    }

    /// Records how long a request took of a method that is timed, and its trace if it is sampled.
    pub fn took(&self, method: Method, duration: Duration, trace: Option<TraceId>) {
        self.durations[method as usize]
            .get_or_init(|| {
                histogram!(
                    REQUEST_DURATION,
                    "model" => Arc::clone(&self.model),
                    "method" => Method::LABELS[method as usize],
                )
            })
            .record(duration);
        if let Some(trace) = trace {
            self.exemplars[method as usize].record(&DURATIONS, duration, trace);
        }
    }

    /// The exemplars of the durations of each method that has some, by bucket.
    pub fn exemplars(&self) -> impl Iterator<Item = (&'static str, Vec<Option<Exemplar>>)> {
        let by_method = Method::LABELS.into_iter().zip(&self.exemplars);
        by_method
            .map(|(method, exemplars)| (method, exemplars.by_bucket()))
            .filter(|(_, buckets)| !buckets.is_empty())
    }
}
