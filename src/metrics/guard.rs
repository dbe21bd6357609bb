//! Counts and times a request when it ends.

use std::{sync::Arc, time::Instant};

use tonic::Code;

use super::{labels::Method, model::ModelMetrics, request::RequestMetrics};

/// A request in progress. Dropping it counts and times the request, also if its caller has gone.
pub struct RequestGuard {
    method: Method,
    /// `None` until the model is known, and for requests that name an unknown one.
    metrics: Option<Arc<RequestMetrics>>,
    arrived: Instant,
    deadline: Option<Instant>,
    code: Option<Code>,
}

impl RequestGuard {
    /// Begins to watch a request that arrived at `arrived` and must be answered by `deadline`.
    pub fn new(method: Method, arrived: Instant, deadline: Option<Instant>) -> Self {
        Self {
            method,
            metrics: None,
            arrived,
            deadline,
            code: None,
        }
    }

    /// Attributes the request to a model. Only the first call has an effect.
    pub fn model(&mut self, metrics: &ModelMetrics) {
        self.metrics
            .get_or_insert_with(|| Arc::clone(&metrics.requests));
    }

    /// Ends the request with the status `code`.
    pub fn finish(mut self, code: Code) {
        self.code = Some(code);
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let now = Instant::now();
        let code = self.code.unwrap_or_else(|| match self.deadline {
            Some(deadline) if deadline <= now => Code::DeadlineExceeded,
            _ => Code::Cancelled,
        });

        let metrics = self.metrics.take().unwrap_or_default();
        metrics.finished(self.method, code).increment(1);

        // Immediate refusals are not timed: they would make an overloaded server look fast.
        if !matches!(
            code,
            Code::ResourceExhausted | Code::Unavailable | Code::Unauthenticated
        ) {
            metrics.duration(self.method).record(now - self.arrived);
        }
    }
}
