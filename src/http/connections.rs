//! Connections of the HTTP port, with limits on their number, on slow callers and on their age.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::pin,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tower::ServiceExt;

use super::slow::{TimedBody, TimedWrites};
use crate::grpc::{HttpTls, Peer};

/// The most connections that are open at once for everything. A browser opens six for a page, a
/// scraper one.
const MAX_CONNECTIONS: usize = 256;
/// The most connections beyond those. Each of them has one request answered, if it is a probe or a
/// scrape; when there is one more, the oldest is closed.
const MAX_PROBES: usize = 64;
/// How long a connection may take to send the complete head of its next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest head of a request, in bytes. The longest token fits.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// A connection that is older is closed after its current request.
const MAX_AGE: Duration = Duration::from_secs(60);
/// How long that request may still take; every answer takes less.
const MAX_AGE_GRACE: Duration = Duration::from_secs(40);
/// How long a connection for a probe may be open.
const PROBE_AGE: Duration = Duration::from_secs(5);
/// Accepting pauses after an error, such as too many open files, instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often the log may say that too many connections are open.
const LIMIT_LOGGED: Duration = Duration::from_secs(60);

/// What connections may ask for.
#[derive(Clone)]
pub(super) struct Routes {
    pub all: Router,
    /// For connections beyond the limit: probes, scrapes, and a refusal of everything else.
    pub probes: Router,
}

/// Serves until the returned future is dropped, which closes every connection.
pub(super) async fn serve(
    listener: TcpListener,
    routes: Routes,
    tls: Option<HttpTls>,
) -> io::Result<()> {
    let mut usual = JoinSet::new();
    let mut probes = Probes::default();
    let mut logged: Option<Instant> = None;

    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("an HTTP connection can't be accepted: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            Some(_) = usual.join_next() => continue,
            Some(_) = probes.tasks.join_next() => continue,
        };

        if usual.len() < MAX_CONNECTIONS {
            let routes = routes.all.clone();
            usual.spawn(encrypted(stream, tls.clone(), move |stream| {
                serve_connection(stream, address, routes)
            }));
            continue;
        }
        if logged.is_none_or(|logged| logged.elapsed() >= LIMIT_LOGGED) {
            logged = Some(Instant::now());
            tracing::warn!(
                "{MAX_CONNECTIONS} HTTP connections are open; {address} and further ones get \
                 probes and metrics only"
            );
        }
        let routes = routes.probes.clone();
        probes.spawn(encrypted(stream, tls.clone(), move |stream| {
            serve_probe(stream, address, routes)
        }));
    }
}

/// The connections beyond the limit.
#[derive(Default)]
struct Probes {
    tasks: JoinSet<()>,
    /// The oldest first.
    open: VecDeque<AbortHandle>,
}

impl Probes {
    fn spawn(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        self.open.retain(|open| !open.is_finished());
        if self.open.len() >= MAX_PROBES
            && let Some(oldest) = self.open.pop_front()
        {
            oldest.abort();
        }
        self.open.push_back(self.tasks.spawn(connection));
    }
}

/// The bytes of a connection, as they are or decrypted.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

type Stream = Box<dyn Duplex>;

/// Serves a connection once its TLS handshake has succeeded, where it needs one.
async fn encrypted<F: Future<Output = ()>>(
    stream: TcpStream,
    tls: Option<HttpTls>,
    serve: impl FnOnce(Stream) -> F,
) {
    // Answers are small; Nagle's algorithm would delay them.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return serve(Box::new(stream)).await;
    };
    match timeout(HEAD_TIMEOUT, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => serve(Box::new(stream)).await,
        Ok(Err(error)) => tracing::debug!("a TLS handshake on the HTTP port failed: {error}"),
        Err(_) => {}
    }
}

/// Answers the requests of one connection.
async fn serve_connection(stream: Stream, address: SocketAddr, routes: Router) {
    let connection = http1(true).serve_connection(io(stream), service(address, routes));
    let mut connection = pin!(connection);

    // Errors, such as a reset by the caller, need no handling.
    if timeout(MAX_AGE, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(MAX_AGE_GRACE, connection).await;
    }
}

/// Answers the first request of a connection.
async fn serve_probe(stream: Stream, address: SocketAddr, routes: Router) {
    let connection = http1(false).serve_connection(io(stream), service(address, routes));
    let _ = timeout(PROBE_AGE, connection).await;
}

fn http1(keep_alive: bool) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .keep_alive(keep_alive)
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD_BYTES);
    builder
}

fn io(stream: Stream) -> TokioIo<TimedWrites<Stream>> {
    TokioIo::new(TimedWrites::new(stream))
}

/// The routes as hyper's service, for one connection.
fn service(
    address: SocketAddr,
    routes: Router,
) -> impl hyper::service::HttpService<
    Incoming,
    ResBody = Body,
    Error = std::convert::Infallible,
    Future: Send,
> {
    let peer = Peer::next(Some(address));
    service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(|body| Body::new(TimedBody::new(body)));
        request.extensions_mut().insert(peer.clone());
        routes.clone().oneshot(request)
    })
}
