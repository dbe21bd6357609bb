//! Spans: what is told of a piece of work, with its beginning and its end, once it is over.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use http::HeaderMap;

use super::{
    TRACER,
    context::{self, Remote, SpanContext, SpanId, TraceId},
    export,
};
use crate::engine::EngineKind;

/// The place of a call in its trace.
#[derive(Clone, Debug)]
pub struct Trace {
    own: SpanContext,
    /// The caller's span.
    parent: Option<SpanId>,
    /// The caller's `tracestate`, which goes with every span.
    state: Arc<str>,
}

impl Trace {
    /// Continues the trace that the headers of a call name, else begins a new one. The caller's
    /// decision whether it is sampled is kept; without one `--trace-sampling` decides.
    pub fn begin(headers: &HeaderMap) -> Self {
        let (trace, parent, state, wanted) = match context::remote(headers) {
            Some(Remote { parent, state }) => {
                (parent.trace, Some(parent.span), state, Some(parent.sampled))
            }
            None => (TraceId::random(), None, Arc::default(), None),
        };
        let sampled = TRACER
            .get()
            .is_some_and(|tracer| wanted.unwrap_or_else(|| in_part(trace, tracer.sampling)));
        Self {
            own: SpanContext {
                trace,
                span: SpanId::random(),
                sampled,
            },
            parent,
            state,
        }
    }

    /// The call's own span.
    pub fn context(&self) -> SpanContext {
        self.own
    }

    /// A new span below that of the call, which is a stream. Of a stream that is sampled, a part of
    /// the frames is, since there may be very many.
    pub fn frame(&self) -> SpanContext {
        let wanted = |sampling| part(context::random()) < sampling;
        let sampled =
            self.own.sampled && TRACER.get().is_some_and(|tracer| wanted(tracer.sampling));
        SpanContext {
            span: SpanId::random(),
            sampled,
            ..self.own
        }
    }

    /// The call as a span.
    pub fn call_span(&self, name: &str, time: Period) -> Span {
        let parent = self.parent.map(|span| Parent { span, remote: true });
        Span {
            served: true,
            ..self.span(name.to_owned(), self.own, parent, time)
        }
    }

    /// One of [`Self::frame`] as a span.
    pub fn frame_span(&self, context: SpanContext, time: Period) -> Span {
        self.span(
            "frame",
            context,
            Some(Parent {
                span: self.own.span,
                remote: false,
            }),
            time,
        )
    }

    fn span(
        &self,
        name: impl Into<Cow<'static, str>>,
        context: SpanContext,
        parent: Option<Parent>,
        time: Period,
    ) -> Span {
        let state = Arc::clone(&self.state);
        Span {
            state,
            ..Span::new(name.into(), context, parent, time)
        }
    }
}

/// Whether a trace is within this part of all, 0 to 1: the same for everyone who decides by its id.
fn in_part(TraceId(id): TraceId, sampling: f64) -> bool {
    part(u64::from_be_bytes(
        id[8..].try_into().expect("half of the id has 8 bytes"),
    )) < sampling
}

/// Where a number lies among all, from 0 to less than 1.
fn part(number: u64) -> f64 {
    // As many bits as a double holds.
    (number >> 11) as f64 / (1_u64 << 53) as f64
}

/// From when to when.
#[derive(Clone, Copy, Debug)]
pub struct Period {
    /// Its beginning.
    pub start: Instant,
    /// Its end.
    pub end: Instant,
}

impl Period {
    /// What begins at `start` and lasts for `time`.
    pub fn lasting(start: Instant, time: Duration) -> Self {
        Self {
            start,
            end: start + time,
        }
    }
}

/// A piece of work that is over.
#[derive(Clone, Debug)]
pub struct Span {
    /// What was done.
    pub name: Cow<'static, str>,
    /// Whether it answers a call.
    pub served: bool,
    /// What others call it.
    pub context: SpanContext,
    /// What it is a part of.
    pub parent: Option<Parent>,
    /// The caller's `tracestate`.
    pub state: Arc<str>,
    /// When that was.
    pub time: Period,
    /// What else is said of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// Spans of other traces that it has to do with.
    pub links: Vec<SpanContext>,
    /// Why it failed, if it did and not by the caller's fault.
    pub failed: Option<Cow<'static, str>>,
}

/// The span that another one is a part of.
#[derive(Clone, Copy, Debug)]
pub struct Parent {
    /// Its id, in the same trace.
    pub span: SpanId,
    /// Whether it is the caller's.
    pub remote: bool,
}

/// What is said of a span under a name.
#[derive(Clone, Debug)]
pub enum Value {
    /// Words.
    Text(String),
    /// A count.
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number.try_into().unwrap_or(i64::MAX))
    }
}

impl Span {
    fn new(
        name: Cow<'static, str>,
        context: SpanContext,
        parent: Option<Parent>,
        time: Period,
    ) -> Self {
        Self {
            name,
            served: false,
            context,
            parent,
            state: Arc::default(),
            time,
            attributes: Vec::new(),
            links: Vec::new(),
            failed: None,
        }
    }

    /// A part of this work.
    pub fn part(&self, name: &'static str, time: Period) -> Self {
        let context = SpanContext {
            span: SpanId::random(),
            ..self.context
        };
        let parent = Parent {
            span: self.context.span,
            remote: false,
        };
        Self {
            state: Arc::clone(&self.state),
            ..Self::new(name.into(), context, Some(parent), time)
        }
    }

    /// Says something more.
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// Points to a span of another trace.
    pub fn linked(mut self, other: Option<SpanContext>) -> Self {
        self.links.extend(other);
        self
    }

    /// The work failed, and not by the caller's fault.
    pub fn failed(mut self, reason: impl Into<Cow<'static, str>>) -> Self {
        self.failed = Some(reason.into());
        self
    }
}

/// Hands over the spans of work that is over. Never waits: what the collector can't take in time is
/// dropped.
pub fn end(spans: Vec<Span>) {
    export(spans);
}

/// A call of an engine that is over.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Whose call it is.
    pub engine: EngineKind,
    /// From when to when it ran.
    pub time: Period,
    /// How many images it was for.
    pub images: usize,
    /// Whether it failed.
    pub failed: bool,
}

impl Batch {
    /// Tells of it in a trace of its own, which is linked to the spans that it worked for, if any
    /// of them is sampled.
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
        let failed = self.failed.then_some("the engine failed".into());
        let span = Span {
            links,
            failed,
            ..Span::new("batch".into(), context, None, self.time)
        };
        end(vec![
            span.with("classifier.engine", &*self.engine.to_string())
                .with("classifier.batch_size", self.images as u64),
        ]);
        Some(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_that_is_sampled_is_as_large_as_asked_for() {
        let ids: Vec<_> = (0..20_000).map(|_| TraceId::random()).collect();
        for (sampling, fewest, most) in [
            (0.0, 0, 0),
            (0.01, 120, 290),
            (0.5, 9600, 10_400),
            (1.0, 20_000, 20_000),
        ] {
            let sampled = ids.iter().filter(|id| in_part(**id, sampling)).count();
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
