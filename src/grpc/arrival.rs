//! What happens to a call before its message is read: its token is checked, it is counted against the limit, its arrival
//! and its deadline are noted, and it is answered when its time is up or its message comes too slowly.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{HeaderMap, Request, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, body::Body};
use tower::{Layer, Service, layer::layer_fn};

use super::{
    auth::{Caller, Tokens},
    receive::Receiving,
    status::CallError,
};
use crate::{
    metrics::Rejection,
    registry::Registry,
    state::{CallInProgress, StateCell},
};

/// How long callers may wait.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deadlines {
    /// For single requests that come without a deadline; `None` = they wait as long as it takes.
    pub default: Option<Duration>,
    /// A single request waits no longer than this, whatever it says.
    pub longest: Option<Duration>,
}

impl Deadlines {
    /// How long a call waits that asks for `asked`. Streams last as long as they like.
    fn of(&self, path: &str, asked: Option<Duration>) -> Option<Duration> {
        if is_stream(path) || !path.starts_with(OURS) {
            return asked;
        }
        [asked.or(self.default), self.longest].into_iter().flatten().min()
    }
}

/// What the paths of the services that do work begin with.
const OURS: &str = "/resnet18.";

/// Whether a call of this path may have many messages.
fn is_stream(path: &str) -> bool {
    ["/StreamClassify", "/ServerReflectionInfo"].iter().any(|method| path.ends_with(method))
}

/// When a call arrived and until when its caller waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    pub at: Instant,
    pub deadline: Option<Instant>,
}

impl Arrived {
    /// What [`Admit`] noted of a call.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        let now = || Self { at: Instant::now(), deadline: None };
        request.extensions().get().copied().unwrap_or_else(now)
    }
}

/// Admits a limited number of callers that are known, and puts [`Arrived`] into the extensions of each call.
///
/// tonic answers an expired call with CANCELLED; this answers first, and with what gRPC prescribes.
#[derive(Clone)]
pub(super) struct Admit<S> {
    inner: S,
    rules: Admission,
}

/// What is asked of a call before its message is read.
#[derive(Clone)]
pub(super) struct Admission {
    /// One permit for each call of the `Classifier` service that may be in progress: from its headers on, since a message
    /// is stored while it arrives.
    permits: Arc<Semaphore>,
    config: AdmissionConfig,
}

/// Whom to admit, and for how long.
#[derive(Clone)]
pub(super) struct AdmissionConfig {
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
        Self { permits: Arc::new(Semaphore::new(config.max_calls)), config }
    }

    pub fn layer<S>(self) -> impl Layer<S, Service = Admit<S>> + Clone {
        layer_fn(move |inner| Admit { inner, rules: self.clone() })
    }

    fn caller<B>(&self, request: &Request<B>) -> Result<Option<Caller>, CallError> {
        let Some(tokens) = &self.config.tokens else { return Ok(None) };
        tokens.check(request.uri().path(), request.headers(), request.extensions().get())
    }

    /// A place among the calls if the path needs one.
    fn place(&self, path: &str) -> Result<Option<Admitted>, CallError> {
        if !path.starts_with(OURS) {
            return Ok(None);
        }
        match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => Ok(Some(Admitted { _permit: permit, _in_progress: self.config.state.call() })),
            Err(_) => {
                if let Ok(default) = self.config.registry.find("") {
                    default.metrics.rejected(Rejection::CallLimit);
                }
                Err(CallError::TooManyCalls { open: self.config.max_calls })
            }
        }
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
        let timeout = self.rules.config.deadlines.of(path, grpc_timeout(request.headers()));
        let deadline = timeout.and_then(|timeout| at.checked_add(timeout));
        let admitted = self.rules.caller(&request).and_then(|caller| Ok((caller, self.rules.place(path)?)));
        let (caller, place) = match admitted {
            Ok(admitted) => admitted,
            Err(error) => return Box::pin(std::future::ready(Ok(Status::from(error).into_http()))),
        };
        request.extensions_mut().insert(Arrived { at, deadline });
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        let limit = self.rules.config.receive_timeout;
        let receiving = if is_stream(request.uri().path()) { Receiving::stream } else { Receiving::message };
        let response = self.inner.call(request.map(|body| receiving(body, limit)));
        Box::pin(async move {
            let _place = place;
            match deadline {
                None => response.await,
                Some(deadline) => tokio::time::timeout_at(deadline.into(), response).await.unwrap_or_else(|_| {
                    Ok(Status::deadline_exceeded("the deadline passed before the answer was ready").into_http())
                }),
            }
        })
    }
}

/// The `grpc-timeout` header: up to 8 digits and a unit (gRPC over HTTP/2, "Requests"). Malformed ones are ignored.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", value.parse().unwrap());
        grpc_timeout(&headers)
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        assert_eq!(parse("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse("3M"), Some(Duration::from_secs(180)));
        assert_eq!(parse("4S"), Some(Duration::from_secs(4)));
        assert_eq!(parse("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(parse("5u"), Some(Duration::from_micros(5)));
        assert_eq!(parse("6n"), Some(Duration::from_nanos(6)));
    }

    #[test]
    fn deadlines_are_given_and_limited() {
        let s = |seconds| Some(Duration::from_secs(seconds));
        let none = Deadlines::default();
        let both = Deadlines { default: s(5), longest: s(60) };
        let (single, stream) = ("/resnet18.v1.Classifier/Classify", "/resnet18.v1.Classifier/StreamClassify");
        assert_eq!((none.of(single, None), none.of(single, s(90))), (None, s(90)));
        assert_eq!((both.of(single, None), both.of(single, s(1)), both.of(single, s(90))), (s(5), s(1), s(60)));
        assert_eq!((both.of(stream, None), both.of(stream, s(90))), (None, s(90)));
        assert_eq!(both.of("/grpc.health.v1.Health/Watch", None), None);
        assert_eq!(Deadlines { default: s(90), longest: s(60) }.of(single, None), s(60));
    }

    #[test]
    fn malformed_timeouts_are_ignored() {
        for value in ["", "S", "1", "1x", "-1S", "+1S", "123456789S", "1.5S"] {
            assert_eq!(parse(value), None, "{value}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }
}
