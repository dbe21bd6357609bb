//! A request in progress, counted and timed when it ends.

use std::{sync::Arc, time::Instant};

use tonic::Code;

use super::{labels::Method, model::ModelMetrics, request::RequestMetrics};

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
        Self {
            method,
            metrics: None,
            arrived,
            deadline,
            code: None,
        }
    }

    /// The served model that it is for; of several the first counts.
    pub fn model(&mut self, metrics: &ModelMetrics) {
        self.metrics
            .get_or_insert_with(|| Arc::clone(&metrics.requests));
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
        if !matches!(
            code,
            Code::ResourceExhausted | Code::Unavailable | Code::Unauthenticated
        ) {
            metrics.duration(self.method).record(now - self.arrived);
        }
    }
}
