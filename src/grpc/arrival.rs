//! What happens to a call before its message is read: it is counted against the limit, its arrival and its deadline are
//! noted, and it is answered when its time is up.

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

use super::status::CallError;
use crate::{metrics::Rejection, registry::Registry};

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

/// Admits a limited number of calls and puts [`Arrived`] into the extensions of each.
///
/// tonic answers an expired call with CANCELLED; this answers first, and with what gRPC prescribes.
#[derive(Clone)]
pub(super) struct Admit<S> {
    inner: S,
    limit: CallLimit,
}

/// How many calls of the `Classifier` service may be in progress: from their headers on, since a message is stored while
/// it arrives.
#[derive(Clone)]
pub(super) struct CallLimit {
    permits: Arc<Semaphore>,
    max: usize,
    registry: Arc<Registry>,
}

impl CallLimit {
    pub fn new(max: usize, registry: Arc<Registry>) -> Self {
        Self { permits: Arc::new(Semaphore::new(max)), max, registry }
    }

    pub fn layer<S>(self) -> impl Layer<S, Service = Admit<S>> + Clone {
        layer_fn(move |inner| Admit { inner, limit: self.clone() })
    }

    /// A permit if the path needs one.
    fn admit(&self, path: &str) -> Result<Option<OwnedSemaphorePermit>, CallError> {
        if !path.starts_with("/resnet18.") {
            return Ok(None);
        }
        Arc::clone(&self.permits).try_acquire_owned().map(Some).map_err(|_| {
            if let Ok(default) = self.registry.find("") {
                default.metrics.rejected(Rejection::CallLimit);
            }
            CallError::TooManyCalls { open: self.max }
        })
    }
}

impl<S, B> Service<Request<B>> for Admit<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let at = Instant::now();
        let deadline = grpc_timeout(request.headers()).and_then(|timeout| at.checked_add(timeout));
        request.extensions_mut().insert(Arrived { at, deadline });
        let permit = match self.limit.admit(request.uri().path()) {
            Ok(permit) => permit,
            Err(error) => return Box::pin(std::future::ready(Ok(Status::from(error).into_http()))),
        };
        let response = self.inner.call(request);
        Box::pin(async move {
            let _permit = permit;
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
    fn malformed_timeouts_are_ignored() {
        for value in ["", "S", "1", "1x", "-1S", "+1S", "123456789S", "1.5S"] {
            assert_eq!(parse(value), None, "{value}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }
}
