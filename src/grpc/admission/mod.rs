//! What happens to a call before its message is read: its token is checked, it is counted against
//! the limit, it is refused if it could only be refused later, its arrival and its deadline are
//! noted, and it is answered when its time is up or its message comes too slowly.

pub(in crate::grpc) mod auth;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, body::Body};
use tower::{Layer, Service, layer::layer_fn};

use self::auth::Tokens;
use crate::{
    grpc::{
        call::{
            arrival::{Arrived, Deadlines, grpc_timeout, priority},
            caller::{Caller, Peer, client},
            methods::{LONGEST_PATH, brings_images, is_ours, is_probe, is_stream},
            record::Record,
            status::CallError,
        },
        transport::receive::Receiving,
    },
    metrics::{Method, Rejection},
    registry::Registry,
    scheduler::Priority,
    state::{CallInProgress, StateCell},
    telemetry::trace::Trace,
};

/// A refused message is let in, unread, for so long before its caller is told. A connection on
/// which many calls are reset while their messages are on the way would be closed by HTTP/2's rules
/// against floods.
const DISCARD: Duration = Duration::from_millis(100);

/// Admits a limited number of callers that are known, and puts [`Arrived`] into the extensions of
/// each call.
///
/// tonic answers an expired call with CANCELLED; this answers first, and with what gRPC prescribes.
#[derive(Clone)]
pub(in crate::grpc) struct Admit<S> {
    inner: S,
    rules: Admission,
}

/// What is asked of a call before its message is read.
#[derive(Clone)]
pub(in crate::grpc) struct Admission {
    /// One permit for each call of a service that does work that may be in progress: from its
    /// headers on, since a message is stored while it arrives.
    permits: Arc<Semaphore>,
    config: AdmissionConfig,
}

/// Whom to admit, and for how long.
#[derive(Clone)]
pub(in crate::grpc) struct AdmissionConfig {
    pub max_calls: usize,
    pub deadlines: Deadlines,
    pub receive_timeout: Duration,
    pub tokens: Option<Arc<Tokens>>,
    pub registry: Arc<Registry>,
    pub state: StateCell,
}

/// A call that was admitted, until it is answered.
struct Admitted {
    _permit: OwnedSemaphorePermit,
    /// From its headers on: a server that drains waits for the message, to answer it.
    _in_progress: CallInProgress,
}

impl Admission {
    pub fn new(config: AdmissionConfig) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(config.max_calls)),
            config,
        }
    }

    /// The same, and counted together, for callers who wait no longer than `longest`.
    pub fn within(&self, longest: Duration) -> Self {
        let longest = self
            .config
            .deadlines
            .longest
            .map_or(longest, |own| own.min(longest));
        let mut same = self.clone();
        same.config.deadlines.longest = Some(longest);
        same
    }

    pub fn layer<S>(self) -> impl Layer<S, Service = Admit<S>> + Clone {
        layer_fn(move |inner| Admit {
            inner,
            rules: self.clone(),
        })
    }

    fn caller<B>(&self, request: &Request<B>, trace: &Trace) -> Result<Option<Caller>, CallError> {
        let Some(tokens) = &self.config.tokens else {
            return Ok(None);
        };
        let path = request.uri().path();
        tokens.check(path, request.headers()).inspect_err(|error| {
            let peer = request.extensions().get().map(Peer::address);
            let path: String = path.chars().take(LONGEST_PATH).collect();
            tracing::warn!(peer, path, trace_id = %trace.context().trace, "refused: {error}");
            self.rejected(Rejection::Unauthenticated);
        })
    }

    /// Which model it is for is not known yet.
    fn rejected(&self, reason: Rejection) {
        if let Ok(default) = self.config.registry.find("") {
            default.metrics.rejected(reason);
        }
    }

    /// A place among the calls if the path needs one.
    fn place(&self, path: &str) -> Result<Option<Admitted>, CallError> {
        if !is_ours(path) || is_probe(path) {
            return Ok(None);
        }
        match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => Ok(Some(Admitted {
                _permit: permit,
                _in_progress: self.config.state.call(),
            })),
            Err(_) => {
                self.rejected(Rejection::CallLimit);
                Err(CallError::TooManyCalls {
                    open: self.config.max_calls,
                })
            }
        }
    }

    /// Refuses an image that no queue would take, while it is still on its way. Which queue that is
    /// the message says, unless there is only one.
    fn room<B>(
        &self,
        request: &Request<B>,
        caller: Option<&Caller>,
        record: &Record,
    ) -> Result<(), CallError> {
        let Some(method) = brings_images(request.uri().path()) else {
            return Ok(());
        };
        if self.config.state.get().admits().is_err() {
            return Ok(());
        }
        let Some(only) = self.config.registry.only() else {
            return Ok(());
        };
        // A request for inference may still say that it is urgent.
        let priority = if method == Method::ModelInfer {
            Priority::High
        } else {
            record.arrived.priority
        };
        let turn = (client(caller, request.extensions().get()), priority);
        let Some(full) = only.queue.refuse(turn) else {
            return Ok(());
        };
        record.refused_by(&only.metrics);
        Err(full.into())
    }
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
        let at = Instant::now();
        let path = request.uri().path();
        let timeout = self
            .rules
            .config
            .deadlines
            .of(path, grpc_timeout(request.headers()));
        let deadline = timeout.and_then(|timeout| at.checked_add(timeout));
        let priority = priority(request.headers());
        let arrived = Arrived {
            at,
            deadline,
            priority: *priority.as_ref().unwrap_or(&Priority::default()),
        };
        let trace = Trace::begin(request.headers());
        let caller = self.rules.caller(&request, &trace);
        // Probes by load balancers are not worth a word.
        let record = is_ours(path).then(|| Arc::new(Record::new(path, trace, arrived)));
        let admitted = caller.and_then(|caller| {
            record
                .iter()
                .zip(&caller)
                .for_each(|(record, caller)| record.caller(caller));
            priority?;
            let place = self.rules.place(path)?;
            record
                .iter()
                .try_for_each(|record| self.rules.room(&request, caller.as_ref(), record))?;
            Ok((caller, place))
        });
        let (caller, place) = match admitted {
            Ok(admitted) => admitted,
            Err(error) => {
                record.iter().for_each(|record| record.finish(error.code()));
                return Box::pin(async move {
                    let _ = tokio::time::timeout(DISCARD, discard(request.into_body())).await;
                    Ok(Status::from(error).into_http())
                });
            }
        };
        request.extensions_mut().insert(arrived);
        caller.map(|caller| request.extensions_mut().insert(caller));
        record
            .clone()
            .map(|record| request.extensions_mut().insert(record));
        let limit = self.rules.config.receive_timeout;
        let receiving = if is_stream(request.uri().path()) {
            Receiving::stream
        } else {
            Receiving::message
        };
        let response = self.inner.call(request.map(|body| receiving(body, limit)));
        Box::pin(async move {
            let _place = place;
            let response = match deadline {
                None => response.await,
                Some(deadline) => tokio::time::timeout_at(deadline.into(), response)
                    .await
                    .unwrap_or_else(|_| {
                        Ok(Status::deadline_exceeded(
                            "the deadline passed before the answer was ready",
                        )
                        .into_http())
                    }),
            };
            // Also of a message that never reached the service, being too large for example.
            let status = response
                .as_ref()
                .ok()
                .and_then(|response| Status::from_header_map(response.headers()));
            record
                .iter()
                .zip(status)
                .for_each(|(record, status)| record.finish(status.code()));
            response
        })
    }
}

/// Reads to the end what nobody wants.
async fn discard(mut body: Body) {
    while let Some(Ok(_)) = body.frame().await {}
}
