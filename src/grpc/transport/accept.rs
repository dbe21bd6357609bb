//! Accepts connections over TCP, TLS or a Unix socket, as many as there may be.

use std::{
    fmt,
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::Stream;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

#[cfg(unix)]
use super::authority::Mended;
use super::{
    connection::{Connection, Duplex},
    table::{ConnectionLimits, Decision, Registered, Table},
    tls::Certificates,
};
use crate::{
    grpc::call::caller::Peer,
    metrics::{ConnectionMetrics, Refusal},
    telemetry::summary::{self, Warning},
};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often the log may say that connections wait, are refused or displaced.
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
    async fn accept(&self) -> io::Result<(Accepted, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are small and must not wait for more data (Nagle's algorithm).
                let _ = stream.set_nodelay(true);
                Ok((Accepted::Tcp(stream), Some(address)))
            }
            #[cfg(unix)]
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Accepted::Local(Box::new(Mended::new(stream))), None))
            }
        }
    }
}

enum Accepted {
    Tcp(TcpStream),
    Local(Box<dyn Duplex>),
}

/// The connections that `listener` accepts. While as many are open as there may be, a further one
/// replaces one that is idle, or waits until one is. With `certificates`, those over TCP begin with
/// a TLS handshake, concurrently.
pub(in crate::grpc) fn connections(
    listener: Listener,
    limits: ConnectionLimits,
    certificates: Option<Arc<Certificates>>,
) -> impl Stream<Item = io::Result<Connection>> {
    let (accepted, connections) = mpsc::channel(1);
    tokio::spawn(async move {
        let metrics = ConnectionMetrics::default();
        let table = Table::new(limits, metrics.clone());
        let acceptor = Acceptor {
            listener,
            limits,
            table: Arc::clone(&table),
            certificates,
            metrics,
        };
        tokio::select! {
            () = acceptor.run(&accepted) => {}
            () = table.sweep() => {}
            // The server accepts no more connections.
            () = accepted.closed() => {}
        }
    });
    ReceiverStream::new(connections)
}

struct Acceptor {
    listener: Listener,
    limits: ConnectionLimits,
    table: Arc<Table>,
    certificates: Option<Arc<Certificates>>,
    metrics: ConnectionMetrics,
}

type Connections = mpsc::Sender<io::Result<Connection>>;

impl Acceptor {
    async fn run(&self, connections: &Connections) {
        let mut log = LimitLog::default();
        loop {
            let (stream, address) = self.accept().await;
            let peer = Peer::next(address);
            let Some(registered) = self.place(&peer, &mut log).await else {
                continue;
            };
            let peer = peer.with_activity(Arc::clone(&registered.activity));
            let counted = self.metrics.opened();

            let (stream, certificates): (Box<dyn Duplex>, _) = match stream {
                Accepted::Tcp(stream) => (Box::new(stream), self.certificates.as_ref()),
                Accepted::Local(stream) => (stream, None),
            };
            let Some(certificates) = certificates else {
                // The server may have stopped meanwhile.
                let connection = Connection::new(stream, peer, registered, counted);
                let _ = connections.send(Ok(connection)).await;
                continue;
            };

            let acceptor = TlsAcceptor::from(Arc::clone(&*certificates.get()));
            let connections = connections.clone();
            tokio::spawn(async move {
                let stream = tokio::select! {
                    stream = handshake(acceptor, stream, &peer) => stream,
                    // Its place was given to another one.
                    _ = poll_fn(|cx| registered.activity.poll_closing(cx)) => return,
                };
                match stream {
                    Some(stream) => {
                        let connection = Connection::new(stream, peer, registered, counted);
                        let _ = connections.send(Ok(connection)).await;
                    }
                    None => counted.refused(Refusal::Tls),
                }
            });
        }
    }

    /// Waits until there is a place for a connection; `None` if it is refused.
    async fn place(&self, peer: &Peer, log: &mut LimitLog) -> Option<Registered> {
        loop {
            match self.table.open(peer.id, peer.network()) {
                Decision::Open(registered) => {
                    if registered.displaced {
                        log.displaced(self.limits.max, peer);
                    }
                    return Some(registered);
                }
                Decision::Wait => log.waiting(self.limits.max),
                Decision::Later => {}
                Decision::Refuse { open } => {
                    log.refused(open, peer);
                    self.metrics.refused(Refusal::ClientLimit);
                    return None;
                }
            }
            self.table.changed().await;
        }
    }

    /// Waits for the next connection, retrying after errors.
    async fn accept(&self) -> (Accepted, Option<SocketAddr>) {
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

/// When the log last said what.
#[derive(Default)]
struct LimitLog {
    waiting: Option<Instant>,
    refused: Option<Instant>,
    displaced: Option<Instant>,
}

impl LimitLog {
    fn waiting(&mut self, max: usize) {
        if is_due(&mut self.waiting) {
            tracing::warn!(
                "{max} connections are open and have calls in progress; further ones wait \
                 (--max-connections)"
            );
        }
    }

    fn refused(&mut self, open: usize, peer: &Peer) {
        if is_due(&mut self.refused) {
            tracing::warn!(
                peer = peer.address(),
                "{open} connections of this address are open and have calls in progress; further \
                 ones are refused (--max-per-client)"
            );
        }
    }

    fn displaced(&mut self, max: usize, peer: &Peer) {
        if is_due(&mut self.displaced) {
            tracing::warn!(
                peer = peer.address(),
                "idle connections are closed in favour of new ones, as from this address \
                 (--max-connections {max}, --max-per-client)"
            );
        }
    }
}

/// Whether a line of the log may be written again.
fn is_due(last: &mut Option<Instant>) -> bool {
    let due = last.is_none_or(|last| last.elapsed() >= LIMIT_LOGGED);
    if due {
        *last = Some(Instant::now());
    }
    due
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: Box<dyn Duplex>,
    peer: &Peer,
) -> Option<Box<dyn Duplex>> {
    let refused = |reason: &dyn fmt::Display| {
        let kind = format!("TLS refused: {reason}");
        let warning = Warning {
            kind: &kind,
            host: peer.host(),
        };
        summary::warn(warning, |further| {
            tracing::warn!(peer = peer.address(), further, "TLS refused: {reason}");
        });
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
