//! The gRPC side: transport, admission, the classifier and the Open Inference Protocol, and the one
//! place where errors become a [`tonic::Status`].

mod admission;
mod call;
mod classifier;
mod health;
pub mod oip;
mod services;
mod stream;
mod teacher;
mod transport;

use std::{sync::Arc, time::Duration};

use tonic::transport::Server;

pub use self::{
    admission::{
        access::AccessControl,
        auth::{OpenService, TokenConfig},
    },
    call::timing::Deadlines,
    services::{HttpCalls, Services},
    transport::{accept::Listener, tls::TlsConfig},
};
pub(crate) use self::{
    call::caller::Peer,
    transport::{
        foreign::{ForeignBody, Form as BodyForm},
        inflate::Encoding,
        tls::HttpTls,
    },
};
use self::{call::places::Share, transport::table::ConnectionLimits};
use crate::{memory_limit::memory_limit, registry::Registry, state::StateCell};

/// How much a sender may send ahead on one call, in bytes. Large enough that a photo hardly ever
/// waits for a round trip; small, since it is not charged to the memory budget until it is read.
const STREAM_WINDOW: u32 = 256 << 10;
/// How many calls one connection may have in progress.
const MAX_CONCURRENT_CALLS: u32 = 1024;
/// How much may be sent ahead on one connection, in bytes: the share of 128 calls, so that as many
/// streams that are not read do not block the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * 128;
/// The largest HTTP/2 frame that senders may use, in bytes. A photo arrives in one piece instead of
/// seven, with fewer reads and wake-ups.
const MAX_FRAME: u32 = 256 << 10;
/// The largest headers that are read, in bytes as RFC 9113, 6.5.2, counts them. Admission accepts
/// less; between the two, a call is answered with a status that names the limit. Beyond it HTTP/2
/// answers 431, and beyond four times as much it closes the connection.
const MAX_HEADER_BYTES: u32 = 256 << 10;
/// A connection is closed when this many of its calls are reset before they have begun: the "rapid
/// reset" attack.
const MAX_PENDING_RESETS: usize = 20;
/// A connection is closed when the server has reset this many of its calls for protocol errors.
const MAX_ERROR_RESETS: usize = 1024;
/// The interval of HTTP/2 keep-alive pings on a silent connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// A connection is closed when a keep-alive ping is not answered within this time.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The part of the process's memory that messages may take by default, as a divisor.
const MEMORY_SHARE: u64 = 4;

/// The limits of the gRPC side, and who may call.
#[derive(Clone)]
pub struct GrpcConfig {
    /// The largest message that is accepted, in bytes.
    pub max_message_bytes: usize,
    /// The most memory that the messages of all callers may take, in bytes; one caller has half of
    /// it at most.
    pub max_memory: u64,
    /// The most open streams, over all connections.
    pub max_streams: usize,
    /// The most calls in progress, over all connections.
    pub max_calls: usize,
    /// The most open connections, and health checks and watches. A further connection replaces the
    /// one that is idle longest; while none is idle, it waits.
    pub max_connections: usize,
    /// How much of the calls, streams, health watches and connections that the others leave one
    /// client may hold, in percent: a client is a token's name, or else an address. 100 means
    /// everything.
    pub max_per_client: u8,
    /// How long a connection may be open without a call in progress; `None` means for ever.
    pub idle_timeout: Option<Duration>,
    /// The age at which a connection is asked to close, so that load balancers distribute
    /// connections anew; `None` means never.
    pub max_connection_age: Option<Duration>,
    /// How long calls may continue after their connection was asked to close.
    pub connection_grace: Duration,
    /// The server's own limits on deadlines.
    pub deadlines: Deadlines,
    /// How long a message may take to arrive, from its first byte to its last.
    pub receive_timeout: Duration,
    /// Certificates and tokens.
    pub access: Arc<AccessControl>,
}

/// The limits that the program has by default; no TLS and no tokens.
impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            max_message_bytes: 16 << 20,
            max_memory: memory_limit() / MEMORY_SHARE,
            max_streams: 256,
            max_calls: 1024,
            max_connections: 1024,
            max_per_client: 75,
            idle_timeout: Some(Duration::from_secs(300)),
            max_connection_age: None,
            connection_grace: Duration::from_secs(30),
            deadlines: Deadlines::default(),
            receive_timeout: Duration::from_secs(30),
            access: Arc::default(),
        }
    }
}

/// Serves until the state is [`State::Draining`](crate::state::State::Draining) and every accepted
/// call has ended.
///
/// # Errors
/// When the transport fails.
pub async fn serve(
    listener: Listener,
    services: Services,
    registry: Arc<Registry>,
    state: StateCell,
    config: GrpcConfig,
) -> Result<(), tonic::transport::Error> {
    let refresh = tokio::spawn(Arc::clone(&config.access).follow());
    health::report_not_serving(&services.health).await;
    let health = tokio::spawn(health::follow(services.health, state.clone(), registry));

    let mut server = Server::builder();
    if let Some(age) = config.max_connection_age {
        server = server
            .max_connection_age(age)
            .max_connection_age_grace(config.connection_grace);
    }
    let limits = ConnectionLimits {
        max: config.max_connections,
        share: Share(config.max_per_client),
        idle_timeout: config.idle_timeout,
    };
    let connections =
        transport::accept::connections(listener, limits, config.access.certificates());
    let served = server
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_CONCURRENT_CALLS)
        .max_frame_size(MAX_FRAME)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        .layer(services.admission.layer())
        .add_routes(services.routes)
        .serve_with_incoming_shutdown(connections, async move { state.draining().await })
        .await;

    health.abort();
    refresh.abort();
    served
}
