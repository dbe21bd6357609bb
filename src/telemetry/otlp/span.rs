//! A finished span, and its form in OpenTelemetry's SDK.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Instant, SystemTime},
};

use opentelemetry::{
    InstrumentationScope, KeyValue, TraceFlags, Value,
    trace::{Link, SpanKind, Status},
};
use opentelemetry_sdk::trace::{SpanData, SpanLinks};

use crate::telemetry::{
    context::{SpanContext, SpanId, TraceId},
    period::Period,
};

/// A piece of work that is over.
#[derive(Clone, Debug)]
pub struct Span {
    name: Cow<'static, str>,
    kind: SpanKind,
    context: SpanContext,
    /// In the same trace; `None` for the first span of a trace.
    parent: Option<SpanId>,
    /// The parent was sent by another program.
    parent_is_remote: bool,
    /// The caller's `tracestate` header.
    tracestate: Arc<str>,
    time: Period,
    attributes: Vec<KeyValue>,
    /// Related spans of other traces.
    links: Vec<SpanContext>,
    status: Status,
}

/// The value of a span's attribute.
pub struct AttributeValue(Value);

impl From<&str> for AttributeValue {
    fn from(text: &str) -> Self {
        Self(text.to_owned().into())
    }
}

impl From<u64> for AttributeValue {
    fn from(number: u64) -> Self {
        // OTLP has signed integers only.
        Self(i64::try_from(number).unwrap_or(i64::MAX).into())
    }
}

impl Span {
    /// An internal span without a parent.
    pub fn new(
        name: impl Into<Cow<'static, str>>,
        context: SpanContext,
        tracestate: Arc<str>,
        time: Period,
    ) -> Self {
        Self {
            name: name.into(),
            kind: SpanKind::Internal,
            context,
            parent: None,
            parent_is_remote: false,
            tracestate,
            time,
            attributes: Vec::new(),
            links: Vec::new(),
            status: Status::Unset,
        }
    }

    /// Marks the span as the server's side of a call; `caller` is the client's span.
    pub fn serving(mut self, caller: Option<SpanId>) -> Self {
        self.kind = SpanKind::Server;
        self.parent = caller;
        self.parent_is_remote = caller.is_some();
        self
    }

    /// Makes the span a child of another span of this program, in the same trace.
    pub fn below(mut self, parent: SpanId) -> Self {
        self.parent = Some(parent);
        self
    }

    /// A child span.
    pub fn part(&self, name: &'static str, time: Period) -> Self {
        let context = SpanContext {
            span: SpanId::random(),
            ..self.context
        };

        Self::new(name, context, Arc::clone(&self.tracestate), time).below(self.context.span)
    }

    /// Adds an attribute.
    pub fn with(mut self, name: &'static str, value: impl Into<AttributeValue>) -> Self {
        let AttributeValue(value) = value.into();
        self.attributes.push(KeyValue::new(name, value));
        self
    }

    /// Links to spans of other traces.
    pub fn linked(mut self, others: impl IntoIterator<Item = SpanContext>) -> Self {
        self.links.extend(others);
        self
    }

    /// Marks the span as an error that is not the caller's fault.
    pub fn failed(mut self, reason: impl Into<Cow<'static, str>>) -> Self {
        self.status = Status::error(reason);
        self
    }

    /// The span as the SDK's exporter takes it. Spans that belong together need the same `clock`.
    pub(super) fn into_data(self, clock: Clock, scope: InstrumentationScope) -> SpanData {
        let mut links = SpanLinks::default();
        links.links = self
            .links
            .into_iter()
            .map(|link| Link::with_context(sdk_context(link, "")))
            .collect();

        SpanData {
            span_context: sdk_context(self.context, &self.tracestate),
            parent_span_id: self
                .parent
                .map_or(opentelemetry::SpanId::INVALID, sdk_span_id),
            parent_span_is_remote: self.parent_is_remote,
            span_kind: self.kind,
            name: self.name,
            start_time: clock.time(self.time.start),
            end_time: clock.time(self.time.end),
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events: Default::default(),
            links,
            status: self.status,
            instrumentation_scope: scope,
        }
    }
}

/// The same moment on the monotonic and on the wall clock.
///
/// The spans of one call are converted with the same pair, so that a step of the wall clock does
/// not tear them apart.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    pub fn now() -> Self {
        Self {
            instant: Instant::now(),
            time: SystemTime::now(),
        }
    }

    fn time(self, instant: Instant) -> SystemTime {
        match self.instant.checked_duration_since(instant) {
            Some(before) => self.time - before,
            None => self.time + (instant - self.instant),
        }
    }
}

fn sdk_span_id(SpanId(id): SpanId) -> opentelemetry::SpanId {
    opentelemetry::SpanId::from_bytes(id)
}

fn sdk_context(context: SpanContext, tracestate: &str) -> opentelemetry::trace::SpanContext {
    let TraceId(trace) = context.trace;
    let flags = if context.sampled {
        TraceFlags::SAMPLED
    } else {
        TraceFlags::NOT_SAMPLED
    };

    opentelemetry::trace::SpanContext::new(
        opentelemetry::TraceId::from_bytes(trace),
        sdk_span_id(context.span),
        flags,
        false,
        tracestate.parse().unwrap_or_default(),
    )
}
