//! The gRPC services, and the one place where errors become a [`tonic::Status`].

mod admission;
mod call;
mod classifier;
pub mod oip;
mod services;
mod stream;
mod transport;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tonic::transport::Server;
use tonic_health::{ServingStatus, server::HealthReporter};

pub(crate) use self::call::caller::Peer;
use self::{
    admission::auth::Tokens,
    transport::{
        accept,
        tls::{self, Certificates},
    },
};
pub use self::{
    admission::auth::{OpenService, TokenConfig},
    call::timing::Deadlines,
    services::{BrowserCalls, Services},
    transport::{accept::Listener, tls::TlsConfig},
};
use crate::{
    inference, proto,
    registry::Registry,
    state::{State, StateCell},
};

/// The limits of the gRPC side, and who may come in.
#[derive(Clone)]
pub struct GrpcConfig {
    /// The largest message that is accepted, in bytes.
    pub max_message_bytes: usize,
    /// The most streams that are open at once, over all connections.
    pub max_streams: usize,
    /// The most calls in progress at once, over all connections; each may hold one message.
    pub max_calls: usize,
    /// The most connections.
    pub max_connections: usize,
    /// A connection that is older is asked to go, so that load balancers spread; `None` =
    /// connections may stay.
    pub max_connection_age: Option<Duration>,
    /// How long calls may go on after that.
    pub connection_grace: Duration,
    /// How long single requests may wait.
    pub deadlines: Deadlines,
    /// How long a message may take to arrive, from its first byte to its last.
    pub receive_timeout: Duration,
    /// Certificates and tokens.
    pub access: Arc<AccessControl>,
}

/// Who may come in, as the files say at present.
#[derive(Default)]
pub struct AccessControl {
    certificates: Option<Arc<Certificates>>,
    tokens: Option<Arc<Tokens>>,
}

impl AccessControl {
    /// Reads certificates and tokens; `None` = no TLS, and anyone may call.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn new(tls: Option<TlsConfig>, tokens: Option<TokenConfig>) -> Result<Self, String> {
        Ok(Self {
            certificates: tls.map(tls::certificates).transpose()?.map(Arc::new),
            tokens: tokens.map(Tokens::read).transpose()?.map(Arc::new),
        })
    }

    /// Reads changed files again, now and then, for ever.
    async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(REFRESH).await;
            let access = Arc::clone(&self);
            // A panic there has said so on standard error.
            let _ = tokio::task::spawn_blocking(move || {
                access
                    .certificates
                    .iter()
                    .for_each(|certificates| certificates.refresh());
                access.tokens.iter().for_each(|tokens| tokens.refresh());
            })
            .await;
        }
    }
}

/// How often certificates and tokens are looked at.
const REFRESH: Duration = Duration::from_secs(1);

const SERVICE: &str = "resnet18.v1.Classifier";
/// How much a sender may send ahead on one call. Large enough that a photo never waits for a round
/// trip.
const STREAM_WINDOW: u32 = 1 << 20;
/// Services at once on one connection.
const MAX_CONCURRENT_CALLS: u32 = 128;
/// How much may be sent ahead on one connection: by every call its share, so that streams that are
/// not read don't stop the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_CONCURRENT_CALLS;
/// The largest frame that senders may use, so that a photo comes in one piece instead of seven:
/// fewer reads and wake-ups.
const MAX_FRAME: u32 = 256 << 10;
/// The headers of a call, in bytes (as RFC 9113, 6.5.2, counts them). Tokens and traces take far
/// less.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// A connection is closed when it resets so many calls before they have begun ("rapid reset")…
const MAX_PENDING_RESETS: usize = 20;
/// …or makes so many errors that its calls are reset.
const MAX_ERROR_RESETS: usize = 1024;
/// The largest message to health and reflection, in bytes.
const MAX_SMALL_MESSAGE: usize = 64 << 10;
/// A connection that is silent for this long is asked whether it is alive…
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// …and closed when it does not answer within this time.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until the state is [`State::Draining`] and every accepted call has ended.
///
/// # Errors
/// What the transport reports.
pub async fn serve(
    listener: Listener,
    calls: Services,
    registry: Arc<Registry>,
    state: StateCell,
    config: GrpcConfig,
) -> Result<(), tonic::transport::Error> {
    let access = Arc::clone(&config.access);
    let watch = tokio::spawn(Arc::clone(&access).follow());
    let (health, health_service) = tonic_health::server::health_reporter();
    // The reporter begins with SERVING.
    set_health(&health, ServingStatus::NotServing).await;
    let follow = tokio::spawn(report_health(health, state.clone(), registry));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
            .register_encoded_file_descriptor_set(inference::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let valid = "the descriptors are made by the build";
    let incoming = accept::connections(
        listener,
        config.max_connections,
        access.certificates.clone(),
    );
    let mut server = Server::builder();
    if let Some(age) = config.max_connection_age {
        server = server
            .max_connection_age(age)
            .max_connection_age_grace(config.connection_grace);
    }
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
        .layer(calls.admission.layer())
        .add_service(calls.classifier)
        .add_service(calls.inference)
        .add_service(health_service.max_decoding_message_size(MAX_SMALL_MESSAGE))
        .add_service(
            reflection()
                .build_v1()
                .expect(valid)
                .max_decoding_message_size(MAX_SMALL_MESSAGE),
        )
        .add_service(
            reflection()
                .build_v1alpha()
                .expect(valid)
                .max_decoding_message_size(MAX_SMALL_MESSAGE),
        )
        .serve_with_incoming_shutdown(incoming, async move { state.draining().await })
        .await;
    follow.abort();
    watch.abort();
    served
}

/// Keeps the standard health service in step with the state and the models: the server as a whole,
/// and each model as `resnet18.v1.Classifier/NAME`.
async fn report_health(health: HealthReporter, state: StateCell, registry: Arc<Registry>) {
    let (mut state, mut models) = (state.watch(), registry.watch());
    let mut reported = BTreeSet::new();
    loop {
        models.mark_unchanged();
        let ready = *state.borrow_and_update() == State::Ready;
        set_health(
            &health,
            if ready {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            },
        )
        .await;
        let entries = registry.list();
        for entry in &entries {
            let serves = ready && entry.served.is_some();
            let status = if serves {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            health
                .set_service_status(service_of(&entry.name), status)
                .await;
        }
        let present: BTreeSet<String> = entries.into_iter().map(|entry| entry.name).collect();
        for gone in reported.difference(&present) {
            health.clone().clear_service_status(&service_of(gone)).await;
        }
        reported = present;
        let changed = tokio::select! {
            changed = state.changed() => changed,
            changed = models.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// The name under which a model's health is asked for.
fn service_of(model: &str) -> String {
    format!("{SERVICE}/{model}")
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in ["", SERVICE, oip::SERVICE] {
        health.set_service_status(service, status).await;
    }
}
