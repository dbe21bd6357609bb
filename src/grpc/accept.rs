//! Connections: a limited number of them, and none that stays silent.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, stream::unfold};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// A connection that has sent nothing for this long is closed.
const SILENCE: Duration = Duration::from_secs(10);
/// After an error, such as too many open files, accepting pauses instead of spinning.
const PAUSE: Duration = Duration::from_millis(100);

/// The connections that `listener` accepts; while `max` are open, further ones wait in the system's backlog.
pub(super) fn connections(listener: TcpListener, max: usize) -> impl Stream<Item = io::Result<Connection>> {
    let permits = Arc::new(Semaphore::new(max));
    unfold(listener, move |listener| {
        let permits = Arc::clone(&permits);
        async move {
            if permits.available_permits() == 0 {
                tracing::warn!("{max} connections are open; further ones wait (--max-connections)");
            }
            let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        // Answers are small and must not wait for more data.
                        let _ = stream.set_nodelay(true);
                        let silence = Some(Box::pin(sleep(SILENCE)));
                        return Some((Ok(Connection { stream, silence, _permit: permit }), listener));
                    }
                    Err(error) => {
                        tracing::warn!("a connection can't be accepted: {error}");
                        sleep(PAUSE).await;
                    }
                }
            }
        }
    })
}

/// A TCP connection that counts against the limit while it is open.
pub(super) struct Connection {
    stream: TcpStream,
    /// Runs until the first bytes arrive.
    silence: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.silence = None;
        } else if let Some(silence) = &mut self.silence
            && silence.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
