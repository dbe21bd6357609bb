//! One gRPC connection: the deadline for its preface, its closing in favour of another connection,
//! and the draining of its input at shutdown.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

use super::table::Registered;
use crate::{
    grpc::call::{activity::Closing, caller::Peer},
    metrics::{ConnectionGuard, Refusal},
};

/// A connection that has not sent HTTP/2's preface within this time is closed.
const SILENCE: Duration = Duration::from_secs(10);
/// The preface and the head of the SETTINGS frame behind it, in bytes (RFC 9113, 3.4).
const PREFACE: usize = 24 + 9;
/// How long input is drained after the server has shut its side of a connection down. Closing with
/// unread data sends RST, and a caller that is still sending could lose the final status.
const LINGER: Duration = Duration::from_millis(500);
/// How long a caller may take to end a connection after GOAWAY was sent.
const GOAWAY_GRACE: Duration = Duration::from_secs(1);

/// A frame of HTTP/2 that says: begin no more calls here, without an error (RFC 9113, 6.8). It
/// allows all calls that are on their way. Its payload is the greatest stream identifier, and
/// `NO_ERROR`.
const GOAWAY: [u8; 17] = [
    0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0,
];

/// A byte stream in both directions.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection that counts against the limit while it is open.
pub(in crate::grpc) struct Connection {
    stream: Box<dyn Duplex>,
    peer: Peer,
    /// Runs until the preface has arrived.
    silence: Option<Pin<Box<Sleep>>>,
    /// How many bytes of the preface have not arrived yet.
    preface: usize,
    /// Whether all frames written so far have been sent in full.
    between_frames: bool,
    end: End,
    /// Runs since the server has shut its side down.
    linger: Option<Pin<Box<Sleep>>>,
    registered: Registered,
    counted: ConnectionGuard,
}

/// How far the server is in closing the connection before its caller does.
enum End {
    Open,
    /// The next byte of [`GOAWAY`] to be sent.
    SendingGoaway(usize),
    /// The caller may still finish calls until this time has passed.
    GoawaySent(Pin<Box<Sleep>>),
    Closed,
}

impl Connection {
    pub(super) fn new(
        stream: Box<dyn Duplex>,
        peer: Peer,
        registered: Registered,
        counted: ConnectionGuard,
    ) -> Self {
        let silence = Some(Box::pin(sleep(SILENCE)));
        Self {
            stream,
            peer,
            silence,
            preface: PREFACE,
            between_frames: false,
            end: End::Open,
            linger: None,
            registered,
            counted,
        }
    }

    /// Moves on in closing the connection, if it is to be closed. Returns whether it is closed;
    /// `Pending` while a frame is being sent that no other may interrupt.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            match &mut self.end {
                End::Open => match self.registered.activity.poll_closing(cx) {
                    Poll::Pending => return Poll::Ready(false),
                    // Before the preface, and within a frame, the caller would not understand.
                    Poll::Ready(Closing::Gracefully)
                        if self.silence.is_none() && self.between_frames =>
                    {
                        self.end = End::SendingGoaway(0);
                    }
                    Poll::Ready(_) => self.end = End::Closed,
                },
                End::SendingGoaway(sent) if *sent == GOAWAY.len() => {
                    if ready!(Pin::new(&mut self.stream).poll_flush(cx)).is_err() {
                        self.end = End::Closed;
                    } else {
                        self.end = End::GoawaySent(Box::pin(sleep(GOAWAY_GRACE)));
                    }
                }
                End::SendingGoaway(sent) => {
                    match ready!(Pin::new(&mut self.stream).poll_write(cx, &GOAWAY[*sent..])) {
                        Ok(bytes) if bytes > 0 => *sent += bytes,
                        _ => self.end = End::Closed,
                    }
                }
                End::GoawaySent(grace) => {
                    if grace.as_mut().poll(cx).is_pending() {
                        return Poll::Ready(false);
                    }
                    // Calls that were on their way are answered.
                    self.end = if self.registered.activity.idle().is_some() {
                        End::Closed
                    } else {
                        End::GoawaySent(Box::pin(sleep(GOAWAY_GRACE)))
                    };
                }
                End::Closed => return Poll::Ready(true),
            }
        }
    }

    /// Like [`poll_end`](Self::poll_end), for what can't be done on a closed connection.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if ready!(self.poll_end(cx)) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if ready!(self.poll_end(cx)) {
            // To HTTP/2 the caller seems to have closed the connection.
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.silence.is_some() {
            self.preface = self.preface.saturating_sub(buf.filled().len() - before);
            if self.preface == 0 {
                self.silence = None;
            }
        }
        if let Some(silence) = &mut self.silence
            && silence.as_mut().poll(cx).is_ready()
        {
            self.counted.refused(Refusal::Silent);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?;
        self.between_frames = false;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?;
        self.between_frames = false;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?;
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        // HTTP/2 flushes after it has written whole frames.
        if let Poll::Ready(Ok(())) = flushed {
            self.between_frames = true;
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nobody waits for an answer on a connection that gives way, and it must not wait itself.
        if self.registered.activity.poll_closing(cx).is_ready() {
            let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
            return Poll::Ready(Ok(()));
        }
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        let Self { stream, linger, .. } = &mut *self;
        let linger = linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut discarded = [0; 4096];
        loop {
            let mut discarded = ReadBuf::new(&mut discarded);
            match Pin::new(&mut *stream).poll_read(cx, &mut discarded) {
                Poll::Ready(Ok(())) if !discarded.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return linger.as_mut().poll(cx).map(Ok),
            }
            if linger.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
