//! The spans of calls, built from recorded times once a call has ended.

use std::sync::Arc;

use http::HeaderMap;

use super::{
    TRACER,
    context::{self, Remote, SpanContext, SpanId, TraceId},
    export,
};
pub use super::{otlp::Span, period::Period};

/// The place of a call in its trace.
#[derive(Clone, Debug)]
pub struct Trace {
    own: SpanContext,
    /// Whether anybody records the trace: this server, or the caller.
    is_recorded: bool,
    /// The caller's span.
    parent: Option<SpanId>,
    /// The caller's `tracestate` header, which every span repeats.
    tracestate: Arc<str>,
}

impl Trace {
    /// Continues the trace that a call's headers name, or begins a new one. The caller's sampling
    /// decision is kept; without one `--trace-sampling` decides.
    pub fn begin(headers: &HeaderMap) -> Self {
        let (trace, parent, tracestate, decision) = match context::remote(headers) {
            Some(Remote { parent, tracestate }) => (
                parent.trace,
                Some(parent.span),
                tracestate,
                Some(parent.sampled),
            ),
            None => (TraceId::random(), None, Arc::default(), None),
        };
        let sampled = TRACER.get().is_some_and(|tracer| {
            decision.unwrap_or_else(|| is_trace_sampled(trace, tracer.sampling))
        });

        Self {
            own: SpanContext {
                trace,
                span: SpanId::random(),
                sampled,
            },
            is_recorded: sampled || decision == Some(true),
            parent,
            tracestate,
        }
    }

    /// The trace's id if the trace is recorded, by this server or by the caller.
    pub fn sampled(&self) -> Option<TraceId> {
        self.is_recorded.then_some(self.own.trace)
    }

    /// The call's own span.
    pub fn context(&self) -> SpanContext {
        self.own
    }

    /// A new span for a frame of this call, which is a stream. Frames of a sampled stream are
    /// sampled again, each on its own, since a stream may have very many.
    pub fn frame(&self) -> SpanContext {
        let sampled = self.own.sampled
            && TRACER
                .get()
                .is_some_and(|tracer| unit_interval(context::random()) < tracer.sampling);

        SpanContext {
            span: SpanId::random(),
            sampled,
            ..self.own
        }
    }

    /// The call as a span.
    pub fn call_span(&self, name: &str, time: Period) -> Span {
        self.span(name.to_owned(), self.own, time)
            .serving(self.parent)
    }

    /// A frame as a span; `context` comes from [`Self::frame`].
    pub fn frame_span(&self, context: SpanContext, time: Period) -> Span {
        self.span("frame".to_owned(), context, time)
            .below(self.own.span)
    }

    fn span(&self, name: String, context: SpanContext, time: Period) -> Span {
        Span::new(name, context, Arc::clone(&self.tracestate), time)
    }
}

/// Whether a trace belongs to the sampled fraction, 0 to 1. Depends on the id alone, so that every
/// server decides alike.
fn is_trace_sampled(TraceId(id): TraceId, sampling: f64) -> bool {
    let low = u64::from_be_bytes(id[8..].try_into().expect("half of the id has 8 bytes"));
    unit_interval(low) < sampling
}

/// Maps all 64-bit numbers evenly to 0 ≤ x < 1.
fn unit_interval(number: u64) -> f64 {
    // A double holds 53 bits exactly.
    (number >> 11) as f64 / (1_u64 << 53) as f64
}

/// Passes finished spans to the exporter, if there is one. Never blocks: spans that the collector
/// can't take in time are dropped.
pub fn end(spans: Vec<Span>) {
    export(spans);
}

/// A finished call of an engine.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The engine's name, such as `openvino`.
    pub engine: &'static str,
    pub time: Period,
    pub images: usize,
    pub failed: bool,
}

impl Batch {
    /// Exports the batch as a trace of its own that is linked to the sampled ones of `spans`, the
    /// images' spans. Returns `None`, and exports nothing, if none of them is sampled.
    pub fn end(self, spans: impl Iterator<Item = SpanContext>) -> Option<SpanContext> {
        let links: Vec<_> = spans.filter(|span| span.sampled).collect();
        if links.is_empty() {
            return None;
        }

        let context = SpanContext {
            trace: TraceId::random(),
            span: SpanId::random(),
            sampled: true,
        };
        let mut span = Span::new("batch", context, Arc::default(), self.time)
            .linked(links)
            .with("classifier.engine", self.engine)
            .with("classifier.batch_size", self.images as u64);
        if self.failed {
            span = span.failed("the engine failed");
        }
        end(vec![span]);

        Some(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sampled_fraction_is_as_large_as_configured() {
        let ids: Vec<_> = (0..20_000).map(|_| TraceId::random()).collect();
        for (sampling, fewest, most) in [
            (0.0, 0, 0),
            (0.01, 120, 290),
            (0.5, 9600, 10_400),
            (1.0, 20_000, 20_000),
        ] {
            let sampled = ids
                .iter()
                .filter(|id| is_trace_sampled(**id, sampling))
                .count();
            assert!(
                (fewest..=most).contains(&sampled),
                "{sampling}: {sampled} of {}",
                ids.len()
            );
        }
    }

    #[test]
    fn without_a_collector_nothing_is_sampled_but_traces_have_names() {
        let mut headers = HeaderMap::new();
        headers.insert(
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
                .parse()
                .unwrap(),
        );
        let trace = Trace::begin(&headers);
        assert_eq!(
            trace.context().trace.to_string(),
            "4bf92f3577b34da6a3ce929d0e0e4736"
        );
        assert_ne!(trace.context().span.to_string(), "00f067aa0ba902b7");
        assert!(!trace.context().sampled && !trace.frame().sampled);
        assert_ne!(
            Trace::begin(&HeaderMap::new()).context().trace,
            Trace::begin(&HeaderMap::new()).context().trace
        );
    }
}
