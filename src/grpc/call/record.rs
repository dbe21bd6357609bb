//! The record of a call: what is known of it, and what is reported to metrics, log and traces when
//! it ends.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tonic::Code;

use super::{
    caller::{Caller, Peer},
    methods::{MAX_PATH, method},
    status::CallError,
    timing::CallTiming,
};
use crate::{
    metrics::{self, EndedRequest, Method, ModelMetrics, statistics::Stages},
    proto::code_name,
    scheduler::{Reply, Timeline},
    sync::lock,
    telemetry::{
        context::SpanContext,
        trace::{self, Period, Span, Trace},
    },
};

/// A call of a classifying service, from its headers to its end.
///
/// The call is counted when it is answered, or when the last holder drops the record: then its
/// caller has gone, or its deadline has passed.
pub(in crate::grpc) struct CallRecord {
    /// `SERVICE/METHOD`.
    path: String,
    method: Option<Method>,
    peer: Option<Peer>,
    trace: Trace,
    pub timing: CallTiming,
    notes: Mutex<Notes>,
}

/// What becomes known while the call is in progress.
#[derive(Default)]
struct Notes {
    caller: Option<String>,
    model: Option<(String, Arc<ModelMetrics>)>,
    bytes: usize,
    frames: usize,
    work: Option<ImageTiming>,
    /// Why the call failed, for the log.
    error: Option<String>,
    /// The code of the answer, and when it was ready.
    ended: Option<(Code, Instant)>,
}

/// When an image was worked on.
#[derive(Clone, Copy)]
struct ImageTiming {
    arrived: Instant,
    stages: Stages,
    timeline: Timeline,
}

/// A frame that has been answered.
pub(in crate::grpc) struct FrameRecord<'a> {
    pub id: u64,
    pub arrived: Instant,
    pub span: SpanContext,
    /// What the frame was answered with.
    pub answer: Result<&'a Reply, &'a CallError>,
}

impl CallRecord {
    pub fn new(path: &str, trace: Trace, timing: CallTiming, peer: Option<&Peer>) -> Self {
        let method = method(path);
        let path = path.trim_start_matches('/').chars().take(MAX_PATH);
        Self {
            path: path.collect(),
            method,
            peer: peer.cloned(),
            trace,
            timing,
            notes: Mutex::default(),
        }
    }

    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    pub fn caller(&self, Caller(name): &Caller) {
        lock(&self.notes).caller = Some(name.clone());
    }

    /// The served model that the call is for. Only the first call of this has an effect.
    pub fn model(&self, name: &str, metrics: &Arc<ModelMetrics>) {
        lock(&self.notes)
            .model
            .get_or_insert_with(|| (name.to_owned(), Arc::clone(metrics)));
    }

    /// Adds `bytes` to the size of the images received.
    pub fn received(&self, bytes: usize) {
        lock(&self.notes).bytes += bytes;
    }

    /// The call's image has been classified.
    pub fn classified(&self, reply: &Reply) {
        lock(&self.notes).work = Some(ImageTiming::new(self.timing.arrived, reply));
    }

    /// A frame of the call has been answered.
    pub fn frame(&self, frame: FrameRecord) {
        let FrameRecord {
            id,
            arrived,
            span,
            answer,
        } = frame;
        lock(&self.notes).frames += 1;
        let code = code_name(answer.err().map_or(Code::Ok, CallError::code));
        let error = answer.err().map(CallError::for_log);
        let work = answer.ok().map(|reply| ImageTiming::new(arrived, reply));
        let time = Period {
            start: arrived,
            end: Instant::now(),
        };
        tracing::trace!(
            method = self.method_name(),
            frame = id,
            peer = self.peer.as_ref().map(Peer::address),
            code,
            error,
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

    /// The call is answered well, unless it has been answered before.
    pub fn succeeded(&self) {
        self.finish(Code::Ok, None);
    }

    /// The call is answered with this error, unless it has been answered before.
    pub fn failed(&self, error: &CallError) {
        self.finish(error.code(), Some(error));
    }

    /// Nobody waits for the answer any more: the caller has gone, or the deadline has passed.
    pub fn abandoned(&self) {
        let code = match self.timing.deadline {
            Some(deadline) if deadline <= Instant::now() => Code::DeadlineExceeded,
            _ => Code::Cancelled,
        };
        self.finish(code, None);
    }

    /// Whether the call has been answered, or abandoned.
    pub fn has_ended(&self) -> bool {
        lock(&self.notes).ended.is_some()
    }

    fn finish(&self, code: Code, error: Option<&CallError>) {
        let mut notes = lock(&self.notes);
        if notes.ended.is_none() {
            let now = Instant::now();
            notes.ended = Some((code, now));
            notes.error = error.map(CallError::for_log);
            self.count(&notes, code, now);
        }
    }

    fn count(&self, notes: &Notes, code: Code, ended: Instant) {
        if let Some(method) = self.method {
            let model = notes.model.as_ref().map(|(_, metrics)| &**metrics);
            metrics::request_ended(EndedRequest {
                method,
                model,
                code,
                duration: ended - self.timing.arrived,
                trace: self.trace.sampled(),
            });
        }
    }

    fn method_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    fn log(&self, notes: &Notes, code: Code, ended: Instant) {
        let work = notes.work;
        tracing::debug!(
            method = self.method_name(),
            model = notes.model.as_ref().map(|(name, _)| name),
            caller = notes.caller,
            peer = self.peer.as_ref().map(Peer::address),
            code = code_name(code),
            error = notes.error,
            bytes = notes.bytes,
            frames = (notes.frames > 0).then_some(notes.frames),
            decode_ms = work.map(|work| milliseconds(work.stages.decode)),
            queue_ms = work.map(|work| milliseconds(work.stages.queue)),
            inference_ms = work.map(|work| milliseconds(work.stages.inference)),
            total_ms = milliseconds(ended - self.timing.arrived),
            batch = work.map(|work| work.timeline.batch),
            trace_id = %self.trace.context().trace,
            "call"
        );
    }

    /// The spans of the call and its stages, named by OpenTelemetry's conventions for RPC.
    fn spans(&self, notes: &Notes, code: Code, ended: Instant) -> Vec<Span> {
        let (service, method) = self.path.split_once('/').unwrap_or_default();
        let mut span = self
            .trace
            .call_span(
                &self.path,
                Period {
                    start: self.timing.arrived,
                    end: ended,
                },
            )
            .with("rpc.system", "grpc")
            .with("rpc.service", service)
            .with("rpc.method", method)
            .with("rpc.grpc.status_code", code as u64)
            .with("classifier.received_bytes", notes.bytes as u64);
        if let Some((model, _)) = &notes.model {
            span = span.with("classifier.model", &**model);
        }
        if let Some(caller) = &notes.caller {
            span = span.with("classifier.caller", &**caller);
        }
        if notes.frames > 0 {
            span = span.with("classifier.frames", notes.frames as u64);
        }
        if is_server_error(code) {
            span = span.failed(code_name(code));
        }
        with_stages(span, notes.work)
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        self.abandoned();

        let notes = std::mem::take(&mut *lock(&self.notes));
        let Some((code, ended)) = notes.ended else {
            return;
        };
        self.log(&notes, code, ended);
        // Callers that are not authenticated may not fill the collector.
        if self.trace.context().sampled && code != Code::Unauthenticated {
            trace::end(self.spans(&notes, code, ended));
        }
    }
}

impl ImageTiming {
    fn new(arrived: Instant, reply: &Reply) -> Self {
        Self {
            arrived,
            stages: reply.stages,
            timeline: reply.timeline,
        }
    }
}

/// The span and those of its stages: waiting to be decoded, decoding, waiting for a batch, and
/// inference.
fn with_stages(whole: Span, work: Option<ImageTiming>) -> Vec<Span> {
    let Some(ImageTiming {
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
    // A live frame may arrive at the very moment at which it is taken.
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

/// Milliseconds, to the microsecond.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

/// Whether OpenTelemetry's conventions for gRPC servers count the code as an error.
fn is_server_error(code: Code) -> bool {
    use Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
    matches!(
        code,
        Unknown | DeadlineExceeded | Unimplemented | Internal | Unavailable | DataLoss
    )
}
