//! What happens to a call before its message is read.
//!
//! Its token is checked, it is counted against the limit of calls, and it is rejected at once if
//! its queue would reject it later. Its record begins here, its message must arrive in time, and it
//! is answered when its deadline passes.

pub(in crate::grpc) mod access;
pub(in crate::grpc) mod auth;
pub(in crate::grpc) mod caps;
mod content_type;
mod hold;
mod keep;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use tokio::time::{timeout, timeout_at};
use tonic::{Status, body::Body};
use tower::{Layer, Service, layer::layer_fn};

use self::{
    auth::Tokens,
    caps::{CallLimits, CallPlace, CallPlaces},
    hold::HeldBack,
};
use crate::{
    budget::MemoryBudget,
    grpc::{
        call::{
            caller::{Caller, Peer, client_id},
            memory::MessageMemory,
            methods::{MAX_PATH, image_method, is_classifying, is_stream},
            places::Holder,
            record::CallRecord,
            status::{CallError, received},
            timing::{CallTiming, Deadlines, grpc_timeout, priority},
        },
        transport::{
            foreign::{ForeignBody, Reading},
            inflate::{Encoding, Inflater},
            receive::{ReceiveConfig, ReceiveLimits, Receiving, ReceivingCall},
        },
    },
    metrics::{Method, Rejection},
    registry::Registry,
    scheduler::Priority,
    state::StateCell,
    telemetry::{
        context::TraceId,
        summary::{self, Warning},
        trace::Trace,
    },
};

/// How long the message of a rejected call is read and discarded before its caller is answered.
/// HTTP/2's protection against floods would close a connection on which many calls are reset while
/// their messages are on the way.
const DISCARD: Duration = Duration::from_millis(100);

/// The largest metadata of a call, in bytes as RFC 9113, 6.5.2, counts headers: room for the tokens
/// and the headers that proxies add.
const MAX_METADATA_BYTES: usize = 64 << 10;
/// What RFC 9113 counts for each header besides its name and its value, in bytes.
const HEADER_OVERHEAD: usize = 32;

/// The limits on calls, and who may call.
#[derive(Clone)]
pub(in crate::grpc) struct AdmissionConfig {
    pub limits: CallLimits,
    pub deadlines: Deadlines,
    pub receive_timeout: Duration,
    /// The largest message of a classifying service, in bytes.
    pub max_message_bytes: usize,
    /// What the messages of classifying services are charged to.
    pub memory: MemoryBudget,
    pub inflater: Inflater,
    pub tokens: Option<Arc<Tokens>>,
    pub registry: Arc<Registry>,
    pub state: StateCell,
}

/// Decides which calls are admitted. Clones share the limit of calls.
#[derive(Clone)]
pub(in crate::grpc) struct Admission {
    places: CallPlaces,
    held_back: HeldBack,
    config: AdmissionConfig,
}

/// What an admitted call holds until it is answered.
struct Admitted {
    caller: Option<Caller>,
    place: CallPlace,
}

impl Admission {
    pub fn new(config: AdmissionConfig) -> Self {
        Self {
            places: CallPlaces::new(config.limits),
            held_back: HeldBack::default(),
            config,
        }
    }

    /// The same admission, for callers that wait no longer than `longest`.
    pub fn within(&self, longest: Duration) -> Self {
        let deadlines = &self.config.deadlines;
        let longest = deadlines.longest.map_or(longest, |own| own.min(longest));
        let mut admission = self.clone();
        admission.config.deadlines.longest = Some(longest);
        admission
    }

    pub fn layer<S>(self) -> impl Layer<S, Service = Admit<S>> + Clone {
        layer_fn(move |inner| Admit {
            inner,
            admission: self.clone(),
        })
    }

    /// When a call arrived, by when it must be answered, and its priority, if that is valid.
    fn timing<B>(&self, request: &Request<B>) -> (CallTiming, Result<Priority, CallError>) {
        let arrived = Instant::now();
        let requested = grpc_timeout(request.headers());
        let timeout = self
            .config
            .deadlines
            .timeout(request.uri().path(), requested);
        let priority = priority(request.headers());
        let timing = CallTiming {
            arrived,
            deadline: timeout.and_then(|timeout| arrived.checked_add(timeout)),
            priority: *priority.as_ref().unwrap_or(&Priority::default()),
        };
        (timing, priority)
    }

    /// Checks everything that can be checked before the message is read.
    fn admit<B>(
        &self,
        request: &Request<B>,
        trace: TraceId,
        priority: Result<Priority, CallError>,
        record: Option<&CallRecord>,
    ) -> Result<Admitted, CallError> {
        check_metadata(request.headers())?;
        let caller = self.authenticate(request, trace)?;
        if let (Some(record), Some(caller)) = (record, &caller) {
            record.caller(caller);
        }
        priority?;
        let holder = Holder::of(caller.as_ref(), request.extensions().get());
        let place = self.place(request.uri().path(), holder)?;
        if let Some(record) = record {
            self.reject_early(request, caller.as_ref(), record)?;
        }
        Ok(Admitted { caller, place })
    }

    /// The caller's name, where the server asks for tokens and the service is not open.
    fn authenticate<B>(
        &self,
        request: &Request<B>,
        trace: TraceId,
    ) -> Result<Option<Caller>, CallError> {
        let Some(tokens) = &self.config.tokens else {
            return Ok(None);
        };
        let path = request.uri().path();
        tokens.check(path, request.headers()).inspect_err(|error| {
            self.count_rejection(Rejection::Unauthenticated);
            let peer = request.extensions().get::<Peer>();
            let kind = format!("rejected: {error}");
            let warning = Warning {
                kind: &kind,
                host: peer.map_or("unknown", Peer::host),
            };
            summary::warn(warning, |further| {
                let peer = peer.map(Peer::address);
                let path: String = path.chars().take(MAX_PATH).collect();
                tracing::warn!(peer, path, trace_id = %trace, further, "rejected: {error}");
            });
        })
    }

    fn count_rejection(&self, reason: Rejection) {
        self.config.registry.count_rejection(reason);
    }

    /// Takes the place that a call of this path needs.
    fn place(&self, path: &str, holder: Option<Holder>) -> Result<CallPlace, CallError> {
        self.places
            .take(path, holder, &self.config.state)
            .inspect_err(|error| self.count_rejection(caps::reason(error)))
    }

    /// Rejects an image while it is still on its way, if the queue would reject it. This needs the
    /// queue to be known before the message is: the server has only one model.
    fn reject_early<B>(
        &self,
        request: &Request<B>,
        caller: Option<&Caller>,
        record: &CallRecord,
    ) -> Result<(), CallError> {
        let Some(method) = image_method(request.uri().path()) else {
            return Ok(());
        };
        if self.config.state.get().admits().is_err() {
            return Ok(());
        }
        let Some(only) = self.config.registry.only() else {
            return Ok(());
        };

        // The message of an inference request may still ask for a higher priority.
        let priority = if method == Method::ModelInfer {
            Priority::High
        } else {
            record.timing.priority
        };
        let client = client_id(caller, request.extensions().get());
        let Some(full) = only
            .queue
            .reject_early((client, priority), record.timing.deadline)
        else {
            return Ok(());
        };
        record.model(&only.name, &only.metrics);
        Err(full.into())
    }
}

/// The service around all others that admits calls and puts their [`CallRecord`] and [`Caller`]
/// into the extensions of the requests.
///
/// tonic answers an expired call with CANCELLED; this answers first, with DEADLINE_EXCEEDED as gRPC
/// prescribes.
#[derive(Clone)]
pub(in crate::grpc) struct Admit<S> {
    inner: S,
    admission: Admission,
}

impl<S> Service<Request<Body>> for Admit<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if !content_type::is_grpc(request.headers()) {
            return Box::pin(async { Ok(content_type::unsupported()) });
        }
        let path = request.uri().path();
        let is_stream = is_stream(path);
        let (timing, priority) = self.admission.timing(&request);
        let trace = Trace::begin(request.headers());
        let trace_id = trace.context().trace;
        let peer = request.extensions().get::<Peer>().cloned();
        // Health checks by load balancers are not worth a record.
        let record = is_classifying(path)
            .then(|| Arc::new(CallRecord::new(path, trace, timing, peer.as_ref())));

        let admitted = self
            .admission
            .admit(&request, trace_id, priority, record.as_deref());
        let mut admitted = match admitted {
            Ok(admitted) => admitted,
            Err(error) => return Box::pin(self.admission.reject(request, record, error)),
        };
        let open_call = peer.as_ref().and_then(|peer| peer.call(record.is_some()));
        let until_sent = (open_call, admitted.place.until_sent.take());

        if let Some(caller) = &admitted.caller {
            request.extensions_mut().insert(caller.clone());
        }
        let encoding = match Encoding::take(request.headers_mut()) {
            Ok(encoding) => encoding,
            Err(error) => return Box::pin(self.admission.reject(request, record, error)),
        };
        let holder = Holder::of(admitted.caller.as_ref(), peer.as_ref());
        let receiving = record.as_ref().map(|record| {
            self.admission
                .receiving_call(record, encoding, holder.as_ref())
        });
        let memory = receiving.as_ref().map(|call| call.memory.clone());
        if let Some(receiving) = &receiving {
            request = self.admission.prepare(request, receiving);
        }

        let config = &self.admission.config;
        let receive = ReceiveConfig {
            limits: ReceiveLimits {
                time: config.receive_timeout,
                bytes: config.max_message_bytes,
            },
            is_stream,
            call: receiving,
        };
        let response = self
            .inner
            .call(request.map(|body| Receiving::body(body, receive)));

        let ending = Ending {
            deadline: timing.deadline,
            record,
            peer,
            held_back: self.admission.held_back.clone(),
        };
        Box::pin(async move {
            let response = match timing.deadline {
                None => response.await,
                Some(deadline) => timeout_at(deadline.into(), response)
                    .await
                    .unwrap_or_else(|_| Ok(Status::from(CallError::Deadline).into_http())),
            };
            // The memory of a single message was held until here.
            drop((admitted, memory));

            let response = ending.finish(response?).await;
            Ok(response.map(|body| keep::until_sent(body, until_sent)))
        })
    }
}

/// What is still to be done for a call that the service has answered.
struct Ending {
    deadline: Option<Instant>,
    record: Option<Arc<CallRecord>>,
    peer: Option<Peer>,
    held_back: HeldBack,
}

impl Ending {
    /// Records a call that ended before the service ran, with an oversized message for example, and
    /// holds rejections back.
    async fn finish(self, response: Response<Body>) -> Response<Body> {
        let Some(status) = Status::from_header_map(response.headers()) else {
            return response;
        };
        if let Some(record) = self.record
            && !record.has_ended()
        {
            let reworded = received(&status);
            let error = reworded.as_ref().unwrap_or(&status).clone();
            record.failed(&CallError::Transport(error));
            if let Some(status) = reworded {
                return status.into_http();
            }
        }

        self.held_back
            .hold(self.peer.as_ref(), &status, self.deadline)
            .await;
        response
    }
}

impl Admission {
    /// What reading the messages of an admitted call needs.
    fn receiving_call(
        &self,
        record: &Arc<CallRecord>,
        encoding: Option<Encoding>,
        holder: Option<&Holder>,
    ) -> ReceivingCall {
        let config = &self.config;
        ReceivingCall {
            record: Arc::clone(record),
            encoding,
            inflater: config.inflater.clone(),
            memory: MessageMemory::new(config.memory.clone(), Holder::budget_key(holder)),
            registry: Arc::clone(&config.registry),
        }
    }

    /// Gives the service the call's record and memory, and frames the body of a call by REST.
    fn prepare(&self, mut request: Request<Body>, call: &ReceivingCall) -> Request<Body> {
        let extensions = request.extensions_mut();
        extensions.insert(Arc::clone(&call.record));
        extensions.insert(call.memory.clone());
        let Some(foreign) = extensions.remove::<ForeignBody>() else {
            return request;
        };
        let reading = Reading {
            memory: call.memory.clone(),
            inflater: call.inflater.clone(),
            registry: Arc::clone(&call.registry),
            limit: self.config.max_message_bytes,
        };
        request.map(|body| foreign.framed(body, reading))
    }

    /// Answers a call that is not admitted.
    fn reject<E>(
        &self,
        request: Request<Body>,
        record: Option<Arc<CallRecord>>,
        error: CallError,
    ) -> impl Future<Output = Result<Response<Body>, E>> + Send + use<E> {
        let held_back = self.held_back.clone();
        let peer = request.extensions().get::<Peer>().cloned();
        let body = request.into_body();
        async move {
            let deadline = record.as_ref().and_then(|record| record.timing.deadline);
            if let Some(record) = record {
                record.failed(&error);
            }
            // Whether all of the body was discarded in time makes no difference.
            let _ = timeout(DISCARD, discard(body)).await;

            let status = Status::from(error);
            held_back.hold(peer.as_ref(), &status, deadline).await;
            Ok(status.into_http())
        }
    }
}

/// Whether a call's metadata is within the limit.
fn check_metadata(headers: &HeaderMap) -> Result<(), CallError> {
    let size = |(name, value): (&HeaderName, &HeaderValue)| {
        name.as_str().len() + value.len() + HEADER_OVERHEAD
    };
    let bytes: usize = headers.iter().map(size).sum();
    if bytes > MAX_METADATA_BYTES {
        return Err(CallError::LargeMetadata {
            bytes,
            limit: MAX_METADATA_BYTES,
        });
    }
    Ok(())
}

async fn discard(mut body: Body) {
    while let Some(Ok(_)) = body.frame().await {}
}
