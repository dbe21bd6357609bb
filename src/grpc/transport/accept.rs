//! Accepts connections over TCP, TLS or a Unix socket, limits their number and closes silent ones.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures_util::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::tls::Certificates;
use crate::{
    grpc::call::caller::Peer,
    metrics::{ConnectionGuard, ConnectionMetrics, Refusal},
    telemetry::summary::{self, Warning},
};

/// A connection that has not sent HTTP/2's preface within this time is closed.
const SILENCE: Duration = Duration::from_secs(10);
/// The preface and the head of the SETTINGS frame behind it, in bytes (RFC 9113, 3.4).
const PREFACE: usize = 24 + 9;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long input is drained after the server has shut its side of a connection down. Closing with
/// unread data sends RST, and a caller that is still sending could lose the final status.
const LINGER: Duration = Duration::from_millis(500);
/// How often the log may say that all connections are in use.
const LIMIT_LOGGED: Duration = Duration::from_secs(60);
/// The pause after an error such as too many open files, instead of spinning.
const PAUSE: Duration = Duration::from_millis(100);

/// A listening socket for gRPC.
pub enum Listener {
    /// A TCP address.
    Tcp(TcpListener),
    /// A socket in the file system.
    #[cfg(unix)]
    Unix(tokio::net::UnixListener),
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.fmt(f),
                Err(error) => write!(f, "an unknown address ({error})"),
            },
            #[cfg(unix)]
            Self::Unix(listener) => {
                let path = listener
                    .local_addr()
                    .ok()
                    .and_then(|address| address.as_pathname().map(ToOwned::to_owned));
                write!(f, "unix:{}", path.unwrap_or_default().display())
            }
        }
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<(Accepted, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are small and must not wait for more data (Nagle's algorithm).
                let _ = stream.set_nodelay(true);
                Ok((Accepted::Tcp(stream), address.to_string()))
            }
            #[cfg(unix)]
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Accepted::Local(Box::new(stream)), "unix".into()))
            }
        }
    }
}

enum Accepted {
    Tcp(TcpStream),
    Local(Box<dyn Duplex>),
}

/// The connections that `listener` accepts. While `max` are open, further ones wait in the system's
/// backlog. With `certificates`, those over TCP begin with a TLS handshake, concurrently.
pub(in crate::grpc) fn connections(
    listener: Listener,
    max: usize,
    certificates: Option<Arc<Certificates>>,
) -> impl Stream<Item = io::Result<Connection>> {
    let (accepted, connections) = mpsc::channel(1);
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(max));
        let acceptor = Acceptor {
            listener,
            permits,
            max,
            certificates,
            metrics: ConnectionMetrics::default(),
        };
        tokio::select! {
            () = acceptor.run(&accepted) => {}
            // The server accepts no more connections.
            () = accepted.closed() => {}
        }
    });
    ReceiverStream::new(connections)
}

struct Acceptor {
    listener: Listener,
    permits: Arc<Semaphore>,
    max: usize,
    certificates: Option<Arc<Certificates>>,
    metrics: ConnectionMetrics,
}

type Connections = mpsc::Sender<io::Result<Connection>>;

impl Acceptor {
    async fn run(&self, connections: &Connections) {
        let mut logged: Option<Instant> = None;
        loop {
            if self.permits.available_permits() == 0
                && logged.is_none_or(|logged| logged.elapsed() >= LIMIT_LOGGED)
            {
                logged = Some(Instant::now());
                tracing::warn!(
                    "{} connections are open; further ones wait (--max-connections)",
                    self.max
                );
            }
            let permit = Arc::clone(&self.permits)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            let (stream, address) = self.accept().await;
            let peer = Peer::next(address);
            let counted = self.metrics.opened();

            let (stream, certificates): (Box<dyn Duplex>, _) = match stream {
                Accepted::Tcp(stream) => (Box::new(stream), self.certificates.as_ref()),
                Accepted::Local(stream) => (stream, None),
            };
            let Some(certificates) = certificates else {
                // The server may have stopped meanwhile.
                let connection = Connection::new(stream, peer, permit, counted);
                let _ = connections.send(Ok(connection)).await;
                continue;
            };

            let acceptor = TlsAcceptor::from(Arc::clone(&*certificates.get()));
            let connections = connections.clone();
            tokio::spawn(async move {
                match handshake(acceptor, stream, &peer).await {
                    Some(stream) => {
                        let connection = Connection::new(stream, peer, permit, counted);
                        let _ = connections.send(Ok(connection)).await;
                    }
                    None => counted.refused(Refusal::Tls),
                }
            });
        }
    }

    /// Waits for the next connection, retrying after errors.
    async fn accept(&self) -> (Accepted, String) {
        loop {
            match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::warn!("a connection can't be accepted: {error}");
                    self.metrics.refused(Refusal::Accept);
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: Box<dyn Duplex>,
    peer: &Peer,
) -> Option<Box<dyn Duplex>> {
    let refused = |reason: &dyn fmt::Display| {
        let warning = Warning {
            kind: "TLS refused",
            host: peer.host(),
        };
        if let Some(further) = summary::admit(warning) {
            let further = (further > 0).then_some(further);
            tracing::warn!(peer = peer.address(), further, "TLS refused: {reason}");
        }
    };
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(Box::new(stream)),
        Ok(Err(error)) => match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                refused(&"the caller closed the connection in the handshake");
            }
            _ if error.to_string().contains("InvalidContentType") => {
                refused(&"the caller speaks plain text, not TLS");
            }
            _ if is_alert_about_certificate(&error) => refused(&format_args!(
                "the caller does not accept this server's certificate ({error})"
            )),
            _ => refused(&error),
        },
        Err(_) => refused(&format_args!(
            "the handshake took longer than {HANDSHAKE:?}"
        )),
    }
    None
}

/// Whether the caller has said that it refuses this server's certificate.
fn is_alert_about_certificate(error: &io::Error) -> bool {
    let text = error.to_string();
    text.contains("received fatal alert")
        && ["UnknownCA", "Certificate"]
            .iter()
            .any(|name| text.contains(name))
}

/// A byte stream in both directions.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection that counts against the limit while it is open.
pub(in crate::grpc) struct Connection {
    stream: Box<dyn Duplex>,
    peer: Peer,
    /// Runs until the preface has arrived.
    silence: Option<Pin<Box<Sleep>>>,
    /// How many bytes of the preface have not arrived yet.
    preface: usize,
    /// Runs since the server has shut its side down.
    linger: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
    counted: ConnectionGuard,
}

impl Connection {
    fn new(
        stream: Box<dyn Duplex>,
        peer: Peer,
        permit: OwnedSemaphorePermit,
        counted: ConnectionGuard,
    ) -> Self {
        let silence = Some(Box::pin(sleep(SILENCE)));
        Self {
            stream,
            peer,
            silence,
            preface: PREFACE,
            linger: None,
            _permit: permit,
            counted,
        }
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
