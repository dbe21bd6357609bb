//! The series of requests: counts by method and status code, and durations by method.

use std::sync::{Arc, OnceLock};

use metrics::{Counter, Histogram, counter, histogram};
use tonic::Code;

use super::{
    labels::Method,
    table::{REQUEST_DURATION, REQUESTS},
};
use crate::proto::code_name;

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

    /// How long requests of a method take that is timed.
    pub fn duration(&self, method: Method) -> &Histogram {
        self.durations[method as usize].get_or_init(|| {
            histogram!(
                REQUEST_DURATION,
                "model" => Arc::clone(&self.model),
                "method" => Method::LABELS[method as usize],
            )
        })
    }
}
