//! The connections of the HTTP port: a limited number of them, none that dawdles and none that
//! stays for ever.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::ServiceExt;

use crate::grpc::Peer;

/// The most connections that are open at once. A browser opens six for a page, a scraper one.
const MAX: usize = 256;
/// The most connections that are being told that there is no place.
const MAX_REFUSALS: usize = 64;
/// A connection waits no longer for the whole head of its next request…
const HEAD_TIME: Duration = Duration::from_secs(5);
/// …which has no more bytes than this. The longest token fits in.
const HEAD_BYTES: usize = 16 << 10;
/// A connection that is older ends with its present request, or…
const AGE: Duration = Duration::from_secs(60);
/// …when that has gone on for this long, which is more than any answer takes.
const GRACE: Duration = Duration::from_secs(40);
/// How long a caller may take to read that there is no place.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// After an error, such as too many open files, accepting pauses instead of spinning.
const PAUSE: Duration = Duration::from_millis(100);

const REFUSAL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\nretry-after: 1\r\n\
connection: close\r\n\r\ntoo many connections are open; retry in a moment\n";

/// Serves until the returned future is dropped, which closes every connection.
pub(super) async fn serve(listener: TcpListener, routes: Router) -> io::Result<()> {
    let (places, refusals) = (
        Arc::new(Semaphore::new(MAX)),
        Arc::new(Semaphore::new(MAX_REFUSALS)),
    );
    let mut open = JoinSet::new();
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("an HTTP connection can't be accepted: {error}");
                    sleep(PAUSE).await;
                    continue;
                }
            },
            Some(_) = open.join_next() => continue,
        };
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            open.spawn(converse(stream, address, routes.clone(), place));
        } else if let Ok(place) = Arc::clone(&refusals).try_acquire_owned() {
            tracing::warn!("{MAX} HTTP connections are open; {address} is refused");
            open.spawn(async move {
                let _ = timeout(REFUSAL_TIME, refuse(stream)).await;
                drop(place);
            });
        }
    }
}

/// Answers the requests of one connection.
async fn converse(
    stream: TcpStream,
    address: SocketAddr,
    routes: Router,
    _place: OwnedSemaphorePermit,
) {
    // Answers are small and must not wait for more data.
    let _ = stream.set_nodelay(true);
    let peer = Peer::next(address.to_string());
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        routes.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_header_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // What a caller does to its connection is its own affair.
    if timeout(AGE, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(GRACE, connection).await;
    }
}

/// Says that there is no place. What the caller sent is read: a close before that would take the
/// answer away from it.
async fn refuse(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(REFUSAL).await?;
    stream.shutdown().await?;
    let mut sink = [0; 1024];
    while stream.read(&mut sink).await? > 0 {}
    Ok(())
}
