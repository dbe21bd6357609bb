//! Limits on callers of the HTTP port that send or read too slowly.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// How long the rest of a request's body may be waited for, from one part of it to the next.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller may read nothing of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// A timer that runs while something is waited for.
struct Patience {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Self { limit, timer: None }
    }

    /// Whether the limit has passed, after `polled` said whether there was progress.
    fn is_over<T>(&mut self, polled: &Poll<T>, cx: &mut Context<'_>) -> bool {
        if polled.is_ready() {
            self.timer = None;
            return false;
        }
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        timer.as_mut().poll(cx).is_ready()
    }
}

/// Why a body failed: its sender has stopped.
#[derive(Debug, thiserror::Error)]
#[error("nothing of the request arrived within {BODY_TIMEOUT:?}")]
pub(super) struct Stalled;

impl Stalled {
    /// This reason, if it is among an error's sources.
    pub fn of<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut sources = std::iter::successors(Some(error), |error| error.source());
        sources.find_map(|error| error.downcast_ref())
    }
}

/// The body of a request, which fails when its sender stops.
pub(super) struct TimedBody {
    body: Incoming,
    patience: Patience,
}

impl TimedBody {
    pub fn new(body: Incoming) -> Self {
        Self {
            body,
            patience: Patience::new(BODY_TIMEOUT),
        }
    }
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if self.patience.is_over(&polled, cx) {
            return Poll::Ready(Some(Err(Stalled.into())));
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that fails when its caller does not read.
pub(super) struct TimedWrites<S> {
    stream: S,
    patience: Patience,
}

impl<S> TimedWrites<S> {
    pub fn new(stream: S) -> Self {
        Self::within(stream, WRITE_TIMEOUT)
    }

    fn within(stream: S, limit: Duration) -> Self {
        Self {
            stream,
            patience: Patience::new(limit),
        }
    }

    /// Turns a write that has waited for too long into an error.
    fn timed<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if self.patience.is_over(&polled, cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedWrites<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedWrites<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.timed(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.timed(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.timed(polled, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_caller_that_does_not_read_is_given_up_and_a_slow_one_is_not() {
        let limit = Duration::from_millis(500);
        let (server, mut client) = duplex(16);
        let mut server = TimedWrites::within(server, limit);
        let slow = tokio::spawn(async move {
            let mut part = [0; 16];
            for _ in 0..6 {
                sleep(limit / 5).await;
                client.read_exact(&mut part).await.unwrap();
            }
            client
        });
        server.write_all(&[1; 112]).await.unwrap();
        let _unread = slow.await.unwrap();

        let error = server.write_all(&[1; 48]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
