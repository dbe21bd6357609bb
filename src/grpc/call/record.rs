//! What is told of a call when it has ended: one line in the log, and its spans if it is sampled.
//! Never what the image shows, never a token.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tonic::{Code, Request};

use super::{
    arrival::Arrived,
    caller::Caller,
    methods::{LONGEST_PATH, method},
};
use crate::{
    metrics::{ModelMetrics, RequestGuard},
    proto::code_name,
    scheduler::{Reply, Stages, Timeline},
    telemetry::{
        context::SpanContext,
        trace::{self, Period, Span, Trace},
    },
};

/// A call of a service that does work. It ends when the last one who holds it lets it go.
pub(in crate::grpc) struct Record {
    /// `SERVICE/METHOD`.
    path: String,
    trace: Trace,
    pub arrived: Arrived,
    notes: Mutex<Notes>,
}

/// What becomes known while the call is in progress.
#[derive(Default)]
struct Notes {
    /// Until the service takes it; a call whose message never comes is counted all the same.
    guard: Option<RequestGuard>,
    caller: Option<String>,
    model: Option<String>,
    bytes: usize,
    frames: usize,
    reply: Option<Work>,
    ended: Option<(Code, Instant)>,
}

/// When an image was worked on.
#[derive(Clone, Copy)]
struct Work {
    arrived: Instant,
    stages: Stages,
    timeline: Timeline,
}

/// A frame that has been answered.
pub(in crate::grpc) struct FrameRecord<'a> {
    pub id: u64,
    pub arrived: Instant,
    pub span: SpanContext,
    /// What it is answered with.
    pub answer: Result<&'a Reply, Code>,
}

impl Record {
    pub fn new(path: &str, trace: Trace, arrived: Arrived) -> Self {
        let guard =
            method(path).map(|method| RequestGuard::new(method, arrived.at, arrived.deadline));
        let path = path
            .trim_start_matches('/')
            .chars()
            .take(LONGEST_PATH)
            .collect();
        Self {
            path,
            trace,
            arrived,
            notes: Mutex::new(Notes {
                guard,
                ..Notes::default()
            }),
        }
    }

    /// The record of a call that has been admitted.
    pub fn of<T>(request: &Request<T>) -> Arc<Self> {
        Arc::clone(
            request
                .extensions()
                .get()
                .expect("admission makes a record of every call of these services"),
        )
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes
            .lock()
            .expect("nothing panics while it holds the notes")
    }

    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    pub fn caller(&self, Caller(name): &Caller) {
        self.notes().caller = Some(name.clone());
    }

    pub fn model(&self, name: &str) {
        self.notes().model.get_or_insert_with(|| name.to_owned());
    }

    /// The call was refused before its message was read, which can only have been for this model.
    pub fn refused_by(&self, metrics: &ModelMetrics) {
        self.notes()
            .guard
            .iter_mut()
            .for_each(|guard| guard.model(metrics));
    }

    /// What counts and times the call: the service's from now on.
    pub fn guard(&self) -> RequestGuard {
        self.notes()
            .guard
            .take()
            .expect("every method of these services is counted, and takes this once")
    }

    /// An image of this size has come in.
    pub fn received(&self, bytes: usize) {
        self.notes().bytes += bytes;
    }

    /// The call's image has been classified.
    pub fn classified(&self, reply: &Reply) {
        self.notes().reply = Some(Work::new(self.arrived.at, reply));
    }

    /// A frame of the call has been answered.
    pub fn frame(&self, frame: FrameRecord) {
        let FrameRecord {
            id,
            arrived,
            span,
            answer,
        } = frame;
        self.notes().frames += 1;
        let code = code_name(answer.err().unwrap_or(Code::Ok));
        let work = answer.ok().map(|reply| Work::new(arrived, reply));
        let time = Period {
            start: arrived,
            end: Instant::now(),
        };
        tracing::trace!(
            method = self.method(),
            frame = id,
            code,
            decode_ms = work.map(|work| milliseconds(work.stages.decode)),
            queue_ms = work.map(|work| milliseconds(work.stages.queue)),
            inference_ms = work.map(|work| milliseconds(work.stages.inference)),
            total_ms = milliseconds(time.end - time.start),
            batch = work.map(|work| work.timeline.batch),
            trace_id = %self.trace.context().trace,
            "frame"
        );
        if span.sampled {
            let whole = self
                .trace
                .frame_span(span, time)
                .with("classifier.frame_id", id)
                .with("classifier.code", code);
            trace::end(with_stages(whole, work));
        }
    }

    /// The call is answered with `code`, if it has not been before.
    pub fn finish(&self, code: Code) {
        self.notes().ended.get_or_insert((code, Instant::now()));
    }

    fn method(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    fn log(&self, notes: &Notes, code: Code, ended: Instant) {
        let work = notes.reply;
        tracing::debug!(
            method = self.method(),
            model = notes.model,
            caller = notes.caller,
            code = code_name(code),
            bytes = notes.bytes,
            frames = (notes.frames > 0).then_some(notes.frames),
            decode_ms = work.map(|work| milliseconds(work.stages.decode)),
            queue_ms = work.map(|work| milliseconds(work.stages.queue)),
            inference_ms = work.map(|work| milliseconds(work.stages.inference)),
            total_ms = milliseconds(ended - self.arrived.at),
            batch = work.map(|work| work.timeline.batch),
            trace_id = %self.trace.context().trace,
            "call"
        );
    }

    /// As OpenTelemetry's conventions for RPC name things.
    fn spans(&self, notes: &Notes, code: Code, ended: Instant) -> Vec<Span> {
        let (service, method) = self.path.split_once('/').unwrap_or_default();
        let mut span = self
            .trace
            .call_span(
                &self.path,
                Period {
                    start: self.arrived.at,
                    end: ended,
                },
            )
            .with("rpc.system", "grpc")
            .with("rpc.service", service)
            .with("rpc.method", method)
            .with("rpc.grpc.status_code", code as u64)
            .with("classifier.received_bytes", notes.bytes as u64);
        if let Some(model) = &notes.model {
            span = span.with("classifier.model", &**model);
        }
        if let Some(caller) = &notes.caller {
            span = span.with("classifier.caller", &**caller);
        }
        if notes.frames > 0 {
            span = span.with("classifier.frames", notes.frames as u64);
        }
        if is_servers_fault(code) {
            span = span.failed(code_name(code));
        }
        with_stages(span, notes.reply)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let mut notes = std::mem::take(&mut *self.notes());
        let now = Instant::now();
        let (code, ended) = notes.ended.unwrap_or_else(|| match self.arrived.deadline {
            Some(deadline) if deadline <= now => (Code::DeadlineExceeded, now),
            _ => (Code::Cancelled, now),
        });
        if let Some(guard) = notes.guard.take() {
            guard.finish(code);
        }
        self.log(&notes, code, ended);
        // Who may not come in may not fill the collector either.
        if self.trace.context().sampled && code != Code::Unauthenticated {
            trace::end(self.spans(&notes, code, ended));
        }
    }
}

impl Work {
    fn new(arrived: Instant, reply: &Reply) -> Self {
        Self {
            arrived,
            stages: reply.stages,
            timeline: reply.timeline,
        }
    }
}

/// The span, and those of its stages: it waits to be decoded, is decoded, waits for a batch, and is
/// inferred with it.
fn with_stages(whole: Span, work: Option<Work>) -> Vec<Span> {
    let Some(Work {
        arrived,
        stages,
        timeline:
            Timeline {
                decoded,
                inferred,
                batch,
                span,
            },
    }) = work
    else {
        return vec![whole];
    };
    // A live frame may arrive in the very moment at which it is taken.
    let decoding = (decoded - stages.decode).max(arrived);
    let parts = [
        whole
            .part(
                "queue",
                Period {
                    start: arrived,
                    end: decoding,
                },
            )
            .with("classifier.waits_for", "decode"),
        whole.part(
            "decode",
            Period {
                start: decoding,
                end: decoded,
            },
        ),
        whole
            .part(
                "queue",
                Period {
                    start: decoded,
                    end: inferred,
                },
            )
            .with("classifier.waits_for", "batch"),
        whole
            .part("inference", Period::lasting(inferred, stages.inference))
            .with("classifier.batch_size", batch as u64)
            .linked(span),
    ];
    std::iter::once(whole).chain(parts).collect()
}

/// To the microsecond.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

/// What OpenTelemetry's conventions for gRPC servers count as an error.
fn is_servers_fault(code: Code) -> bool {
    use Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
    matches!(
        code,
        Unknown | DeadlineExceeded | Unimplemented | Internal | Unavailable | DataLoss
    )
}
