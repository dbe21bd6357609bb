//! Requests by method and status code, and how long they take.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use metrics::{Counter, Histogram, counter, histogram};
use tonic::Code;

use super::{
    labels::Method,
    model::ModelMetrics,
    table::{REQUEST_DURATION, REQUESTS},
};
use crate::code::code_name;

const METHODS: usize = Method::LABELS.len();
const CODES: usize = Code::Unauthenticated as usize + 1;

/// The outcomes that are there from the beginning: a rate can only be taken of what was there before it grew.
const USUAL: [Code; 7] = [
    Code::Ok,
    Code::InvalidArgument,
    Code::ResourceExhausted,
    Code::DeadlineExceeded,
    Code::Cancelled,
    Code::Unavailable,
    Code::Internal,
];

/// The series of the requests for one model. Each is looked up once, when it is needed for the first time.
#[derive(Default)]
pub(super) struct RequestMetrics {
    model: Arc<str>,
    finished: [[OnceLock<Counter>; CODES]; METHODS],
    durations: [OnceLock<Histogram>; METHODS],
}

impl RequestMetrics {
    /// With the usual series of the methods that work on images.
    pub fn new(model: Arc<str>) -> Self {
        let metrics = Self { model, ..Self::default() };
        metrics.duration(Method::Classify);
        for method in [Method::Classify, Method::StreamClassify, Method::ModelInfer, Method::ModelStreamInfer] {
            for code in USUAL {
                metrics.finished(method, code);
            }
        }
        metrics
    }

    fn finished(&self, method: Method, code: Code) -> &Counter {
        self.finished[method as usize][code as usize].get_or_init(|| {
            let (model, method) = (Arc::clone(&self.model), Method::LABELS[method as usize]);
            counter!(REQUESTS, "model" => model, "method" => method, "code" => code_name(code))
        })
    }

    fn duration(&self, method: Method) -> &Histogram {
        self.durations[method as usize].get_or_init(|| {
            let (model, method) = (Arc::clone(&self.model), Method::LABELS[method as usize]);
            histogram!(REQUEST_DURATION, "model" => model, "method" => method)
        })
    }
}

/// A request in progress; counts and times it when it ends, also when its caller goes away.
pub struct RequestGuard {
    method: Method,
    /// None for a request that names no model that is known.
    metrics: Option<Arc<RequestMetrics>>,
    arrived: Instant,
    deadline: Option<Instant>,
    code: Option<Code>,
}

impl RequestGuard {
    /// A request that arrived at `arrived` and has to be answered until `deadline`.
    pub fn new(method: Method, arrived: Instant, deadline: Option<Instant>) -> Self {
        Self { method, metrics: None, arrived, deadline, code: None }
    }

    /// The served model that it is for; of several the first counts.
    pub fn model(&mut self, metrics: &ModelMetrics) {
        self.metrics.get_or_insert_with(|| Arc::clone(&metrics.requests));
    }

    /// It is answered with `code`.
    pub fn finish(mut self, code: Code) {
        self.code = Some(code);
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let now = Instant::now();
        let gone = match self.deadline {
            Some(deadline) if deadline <= now => Code::DeadlineExceeded,
            _ => Code::Cancelled,
        };
        let code = self.code.unwrap_or(gone);
        let metrics = self.metrics.take().unwrap_or_default();
        metrics.finished(self.method, code).increment(1);
        // What is refused at once would make a server look fast that is overloaded.
        if !matches!(code, Code::ResourceExhausted | Code::Unavailable | Code::Unauthenticated) {
            metrics.duration(self.method).record(now - self.arrived);
        }
    }
}
