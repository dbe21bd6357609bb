//! Sends spans to an OpenTelemetry collector: in batches, from a queue of limited length, beside
//! all other work.

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{Link, SpanContext, SpanKind, Status},
};
use opentelemetry_otlp::{SpanExporter, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter as _, SpanLinks},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval, timeout},
};
use tonic::transport::ClientTlsConfig;

use super::{
    context,
    trace::{Parent, Period, Span, Value},
};
use crate::address::ServerAddress;

/// The most calls whose spans wait; what comes while it is full is dropped.
const QUEUE: usize = 1024;
/// So many spans are sent at once…
const BATCH: usize = 512;
/// …and fewer after this time.
const INTERVAL: Duration = Duration::from_secs(2);
/// A collector that does not answer a batch within this time has not taken it.
const PATIENCE: Duration = Duration::from_secs(10);
/// A collector that does not take a connection within this time is down.
const CONNECT: Duration = Duration::from_secs(5);

pub(super) struct Exporter {
    queue: mpsc::Sender<Message>,
    /// Spans for which there was no place.
    lost: Arc<AtomicU64>,
}

enum Message {
    Ended(Vec<Span>),
    Flush(oneshot::Sender<()>),
}

impl Exporter {
    /// Begins to send to `collector`. Needs tokio.
    pub fn start(collector: &ServerAddress) -> Result<Self, String> {
        let (queue, messages) = mpsc::channel(QUEUE);
        let lost = Arc::<AtomicU64>::default();
        let sender = Sender {
            exporter: exporter(collector)?,
            collector: collector.to_string(),
            scope: InstrumentationScope::builder(env!("CARGO_PKG_NAME"))
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
            spans: Vec::new(),
            lost: Arc::clone(&lost),
            missing: 0,
        };
        tokio::spawn(sender.run(messages));
        Ok(Self { queue, lost })
    }

    /// Queues spans, or drops them where there is no place.
    pub fn export(&self, spans: Vec<Span>) {
        if let Err(mpsc::error::TrySendError::Full(Message::Ended(spans))) =
            self.queue.try_send(Message::Ended(spans))
        {
            self.lost.fetch_add(spans.len() as u64, Relaxed);
        }
    }

    /// Sends what waits, for `limit` at most.
    pub async fn flush(&self, limit: Duration) {
        let (done, sent) = oneshot::channel();
        let flush = async {
            if self.queue.send(Message::Flush(done)).await.is_ok() {
                // The sender says by itself what went wrong.
                let _ = sent.await;
            }
        };
        if timeout(limit, flush).await.is_err() {
            tracing::warn!("some traces were not sent: the collector takes longer than {limit:?}");
        }
    }
}

fn exporter(collector: &ServerAddress) -> Result<SpanExporter, String> {
    let mut endpoint = collector
        .endpoint()
        .connect_timeout(CONNECT)
        .timeout(PATIENCE);
    if collector.uses_tls() {
        let roots = ClientTlsConfig::new().with_native_roots();
        endpoint = endpoint
            .tls_config(roots)
            .map_err(|error| error.to_string())?;
    }
    let builder = SpanExporter::builder()
        .with_tonic()
        .with_channel(endpoint.connect_lazy());
    let mut exporter = builder.build().map_err(|error| error.to_string())?;
    exporter.set_resource(&resource());
    Ok(exporter)
}

/// What sends: as `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say, else this program.
fn resource() -> Resource {
    let given = |name: &str| env::var(name).unwrap_or_default();
    let named = !given("OTEL_SERVICE_NAME").is_empty()
        || given("OTEL_RESOURCE_ATTRIBUTES").contains("service.name=");
    let resource = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if named {
        resource.build()
    } else {
        resource.with_service_name("resnet18").build()
    }
}

/// Owns the connection to the collector.
struct Sender {
    exporter: SpanExporter,
    collector: String,
    scope: InstrumentationScope,
    /// Those of the next batch.
    spans: Vec<SpanData>,
    lost: Arc<AtomicU64>,
    /// Spans that were lost since the log told of a problem; 0 while there is none.
    missing: u64,
}

impl Sender {
    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let mut due = interval(INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    None => return,
                    Some(Message::Ended(spans)) => {
                        self.take(spans);
                        if self.spans.len() >= BATCH {
                            self.send().await;
                        }
                    }
                    Some(Message::Flush(done)) => {
                        self.send().await;
                        // Nobody may wait any more.
                        let _ = done.send(());
                    }
                },
                _ = due.tick() => self.send().await,
            }
        }
    }

    /// Spans of one call are put on the wall clock together, so that their times fit together
    /// whatever it does.
    fn take(&mut self, spans: Vec<Span>) {
        let clock = Clock {
            instant: Instant::now(),
            time: SystemTime::now(),
        };
        self.spans.extend(
            spans
                .into_iter()
                .map(|span| data(span, clock, self.scope.clone())),
        );
    }

    /// Sends what waits. A problem is logged when it comes and when it has gone, not at each batch.
    async fn send(&mut self) {
        if self.spans.is_empty() {
            return;
        }
        let spans = std::mem::take(&mut self.spans);
        let n = spans.len() as u64;
        let sent = self.exporter.export(spans).await;
        let lost = self.lost.swap(0, Relaxed) + if sent.is_ok() { 0 } else { n };
        let collector = &self.collector;
        match sent {
            Ok(()) if lost == 0 => {
                if self.missing > 0 {
                    tracing::info!(
                        "the collector at {collector} takes traces again; {} spans are lost",
                        self.missing
                    );
                }
                self.missing = 0;
                return;
            }
            _ if self.missing > 0 => {}
            Ok(()) => {
                tracing::warn!("the collector at {collector} is too slow; some spans are lost")
            }
            Err(error) => {
                tracing::warn!(
                    "the collector at {collector} takes no traces; requests go on without: {error}"
                );
            }
        }
        self.missing += lost;
    }
}

/// The same moment on two clocks.
#[derive(Clone, Copy)]
struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    fn time(self, instant: Instant) -> SystemTime {
        match self.instant.checked_duration_since(instant) {
            Some(before) => self.time - before,
            None => self.time + (instant - self.instant),
        }
    }
}

fn data(span: Span, clock: Clock, instrumentation_scope: InstrumentationScope) -> SpanData {
    let Span {
        name,
        served,
        context,
        parent,
        state,
        time: Period { start, end },
        attributes,
        links,
        failed,
    } = span;
    let remote = parent.is_some_and(|parent| parent.remote);
    let value = |value| match value {
        Value::Text(text) => opentelemetry::Value::from(text),
        Value::Number(number) => number.into(),
    };
    let mut all_links = SpanLinks::default();
    all_links.links = links
        .into_iter()
        .map(|link| Link::with_context(span_context(link, "")))
        .collect();
    SpanData {
        span_context: span_context(context, &state),
        parent_span_id: parent.map_or(SpanId::INVALID, |Parent { span, .. }| {
            SpanId::from_bytes(span.0)
        }),
        parent_span_is_remote: remote,
        span_kind: if served {
            SpanKind::Server
        } else {
            SpanKind::Internal
        },
        name,
        start_time: clock.time(start),
        end_time: clock.time(end),
        attributes: attributes
            .into_iter()
            .map(|(name, said)| KeyValue::new(name, value(said)))
            .collect(),
        dropped_attributes_count: 0,
        events: Default::default(),
        links: all_links,
        status: failed.map_or(Status::Unset, Status::error),
        instrumentation_scope,
    }
}

fn span_context(span: context::SpanContext, state: &str) -> SpanContext {
    let flags = if span.sampled {
        TraceFlags::SAMPLED
    } else {
        TraceFlags::NOT_SAMPLED
    };
    let (trace, id) = (
        TraceId::from_bytes(span.trace.0),
        SpanId::from_bytes(span.span.0),
    );
    SpanContext::new(trace, id, flags, false, state.parse().unwrap_or_default())
}
