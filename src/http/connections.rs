//! Connections of the HTTP port, with limits on their number, on slow senders and on their age.

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
const MAX_CONNECTIONS: usize = 256;
/// The most connections that are being refused at once; more are closed without an answer.
const MAX_REFUSALS: usize = 64;
/// How long a connection may take to send the complete head of its next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest head of a request, in bytes. The longest token fits.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// A connection that is older is closed after its current request.
const MAX_AGE: Duration = Duration::from_secs(60);
/// How long that request may still take; every answer takes less.
const MAX_AGE_GRACE: Duration = Duration::from_secs(40);
/// How long a caller may take to read that it is refused.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Accepting pauses after an error, such as too many open files, instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    retry-after: 1\r\n\
    connection: close\r\n\
    \r\n\
    too many connections are open; retry in a moment\n";

/// Serves until the returned future is dropped, which closes every connection.
pub(super) async fn serve(listener: TcpListener, routes: Router) -> io::Result<()> {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let refusal_permits = Arc::new(Semaphore::new(MAX_REFUSALS));
    let mut open = JoinSet::new();

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
            Some(_) = open.join_next() => continue,
        };

        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            open.spawn(serve_connection(stream, address, routes.clone(), permit));
        } else if let Ok(permit) = Arc::clone(&refusal_permits).try_acquire_owned() {
            tracing::warn!("{MAX_CONNECTIONS} HTTP connections are open; {address} is refused");
            open.spawn(async move {
                let _ = timeout(REFUSAL_TIMEOUT, refuse(stream)).await;
                drop(permit);
            });
        }
    }
}

/// Answers the requests of one connection.
async fn serve_connection(
    stream: TcpStream,
    address: SocketAddr,
    routes: Router,
    _permit: OwnedSemaphorePermit,
) {
    // Answers are small; Nagle's algorithm would delay them.
    let _ = stream.set_nodelay(true);

    let peer = Peer::next(address.to_string());
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        routes.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);

    // Errors, such as a reset by the caller, need no handling.
    if timeout(MAX_AGE, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(MAX_AGE_GRACE, connection).await;
    }
}

/// Answers that there are too many connections. The caller's input is drained, because closing with
/// unread data sends RST, which can discard the answer.
async fn refuse(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(REFUSAL).await?;
    stream.shutdown().await?;

    let mut sink = [0; 1024];
    while stream.read(&mut sink).await? > 0 {}
    Ok(())
}
