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

/// The status codes whose series exist, at 0, from the beginning: Prometheus computes no rate for
/// the first increment of a series that did not exist before.
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
    /// Registers the usual series of the methods that work on images.
    pub fn new(model: Arc<str>) -> Self {
        let metrics = Self {
            model,
            ..Self::default()
        };

        metrics.duration(Method::Classify);
        for method in [
            Method::Classify,
            Method::StreamClassify,
            Method::ModelInfer,
            Method::ModelStreamInfer,
        ] {
            for code in USUAL_CODES {
                metrics.finished(method, code);
            }
        }
        metrics
    }

    pub fn finished(&self, method: Method, code: Code) -> &Counter {
        self.finished[method as usize][code as usize].get_or_init(|| {
            counter!(
                REQUESTS,
                "model" => Arc::clone(&self.model),
                "method" => Method::LABELS[method as usize],
                "code" => code_name(code),
            )
        })
    }

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
