//! The series of requests: by method and status code, and how long they take.

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

/// The outcomes that are there from the beginning: a rate can only be taken of what was there
/// before it grew.
const USUAL: [Code; 7] = [
    Code::Ok,
    Code::InvalidArgument,
    Code::ResourceExhausted,
    Code::DeadlineExceeded,
    Code::Cancelled,
    Code::Unavailable,
    Code::Internal,
];

/// The series of the requests for one model. Each is looked up once, when it is needed for the
/// first time.
#[derive(Default)]
pub(super) struct RequestMetrics {
    model: Arc<str>,
    finished: [[OnceLock<Counter>; CODES]; METHODS],
    durations: [OnceLock<Histogram>; METHODS],
}

impl RequestMetrics {
    /// With the usual series of the methods that work on images.
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
            for code in USUAL {
                metrics.finished(method, code);
            }
        }
        metrics
    }

    pub fn finished(&self, method: Method, code: Code) -> &Counter {
        self.finished[method as usize][code as usize].get_or_init(|| {
            let (model, method) = (Arc::clone(&self.model), Method::LABELS[method as usize]);
            counter!(REQUESTS, "model" => model, "method" => method, "code" => code_name(code))
        })
    }

    pub fn duration(&self, method: Method) -> &Histogram {
        self.durations[method as usize].get_or_init(|| {
            let (model, method) = (Arc::clone(&self.model), Method::LABELS[method as usize]);
            histogram!(REQUEST_DURATION, "model" => model, "method" => method)
        })
    }
}
