//! What the client subcommands share: reaching a server, choosing a model, one classification with
//! its deadline.

use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;
use tonic::{
    Code, Request, Status, TimeoutExpired, service::interceptor::InterceptedService,
    transport::Channel,
};

use crate::{
    address::ServerAddress,
    proto::{
        ClassifyRequest, ClassifyResponse, ListModelsRequest, Model,
        classifier_client::ClassifierClient, code_name,
    },
};

mod credentials;
mod latency;
pub mod load;
pub mod monitor;
pub mod retry;
pub mod stream;
pub mod video;

use credentials::SendToken;
pub use credentials::{Credentials, Token};
pub use latency::LatencySummary;

/// The largest message that the clients send or accept, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A connection to a server.
pub type Client = ClassifierClient<InterceptedService<Channel, SendToken>>;

/// Where a server is, and how to be let in.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where it is.
    pub address: ServerAddress,
    /// How to be let in.
    pub credentials: Credentials,
}

impl std::str::FromStr for Server {
    type Err = String;

    /// A server at an address, which wants to see nothing.
    fn from_str(address: &str) -> Result<Self, String> {
        Ok(Self {
            address: address.parse()?,
            credentials: Credentials::default(),
        })
    }
}

/// Why a server could not be used.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers at the address.
    #[error(
        "no server at {server} ({reason}); start one with `resnet18 serve`, or name another with --server"
    )]
    Unreachable {
        /// The address that was tried.
        server: ServerAddress,
        /// What the operating system said.
        reason: String,
    },
    /// The certificates that were given can't be used.
    #[error("the connection to {server} can't be encrypted: {reason}")]
    Tls {
        /// The address that was to be connected to.
        server: ServerAddress,
        /// What is wrong.
        reason: String,
    },
    /// The server has no model of that name.
    #[error("the server at {server} has no model `{model}`; choose one of: {known}")]
    UnknownModel {
        /// The server that was asked.
        server: ServerAddress,
        /// The name that was asked for.
        model: String,
        /// The names that the server knows.
        known: String,
    },
    /// The server answered with an error.
    #[error("the server at {server} answered {}: {}{}", code_name(.status.code()), .status.message(), advice(.status))]
    Refused {
        /// The server that was asked.
        server: ServerAddress,
        /// Its answer.
        status: Box<Status>,
    },
}

fn advice(status: &Status) -> &'static str {
    match status.code() {
        // What a port that expects TLS sends is no HTTP/2.
        Code::Internal | Code::Unknown if status.message().starts_with("h2 protocol error") => {
            "; does it want https://?"
        }
        Code::Unavailable => "; it is starting or shutting down, try again in a moment",
        Code::ResourceExhausted => "; it is overloaded, try again in a moment",
        Code::DeadlineExceeded => "; give it more time with --timeout",
        Code::Unauthenticated => "; give the token with --token or RESNET18_TOKEN",
        Code::Unimplemented => "; is this a resnet18 server?",
        _ => "",
    }
}

/// Connects to a server.
///
/// # Errors
/// When nobody answers there, or not in the way that was expected.
pub async fn connect(server: &Server) -> Result<Client, ClientError> {
    let Server {
        address,
        credentials,
    } = server;
    let mut endpoint = address
        .endpoint()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE);
    if address.uses_tls() {
        let tls = |error| ClientError::Tls {
            server: address.clone(),
            reason: root_cause(&error),
        };
        endpoint = endpoint.tls_config(credentials.tls()).map_err(tls)?;
    }
    let channel = endpoint.connect().await.map_err(|error| {
        let (server, reason) = (address.clone(), root_cause(&error));
        match address.uses_tls() && reason.contains("certificate") {
            true => ClientError::Tls {
                server,
                reason: format!("{reason}; give the authority's certificate with --ca"),
            },
            false => ClientError::Unreachable { server, reason },
        }
    })?;
    Ok(
        ClassifierClient::with_interceptor(channel, SendToken(credentials.token.clone()))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES),
    )
}

/// Asks which models there are and returns the one of that name, or the default one if the name is
/// empty. A server that is still starting is given until `timeout`.
pub async fn find_model(
    client: &mut Client,
    server: &ServerAddress,
    name: &str,
    timeout: Duration,
) -> Result<Model, ClientError> {
    let deadline = Instant::now() + timeout;
    let mut attempt = 0;
    let models = loop {
        let mut request = Request::new(ListModelsRequest {});
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let status = match client.list_models(request).await {
            Ok(response) => break response.into_inner().models,
            Err(status) => normalise_timeout(status),
        };
        match retry::delay_before(&status, attempt, deadline) {
            Some(delay) => tokio::time::sleep(delay).await,
            None => {
                return Err(ClientError::Refused {
                    server: server.clone(),
                    status: status.into(),
                });
            }
        }
        attempt += 1;
    };
    let known = models
        .iter()
        .map(|model| model.name.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    models
        .into_iter()
        .find(|model| name.is_empty() || model.name == name)
        .ok_or_else(|| ClientError::UnknownModel {
            server: server.clone(),
            model: name.into(),
            known: if known.is_empty() {
                "(it has none)".into()
            } else {
                known
            },
        })
}

/// Sends one request, whose deadline travels with it.
pub async fn classify(
    client: &mut Client,
    request: ClassifyRequest,
    deadline: Instant,
) -> Result<ClassifyResponse, Status> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Status::deadline_exceeded(
            "the timeout passed before the request could be sent",
        ));
    }
    let mut request = Request::new(request);
    request.set_timeout(left);
    client
        .classify(request)
        .await
        .map(tonic::Response::into_inner)
        .map_err(normalise_timeout)
}

/// Sends one request until it is answered: one that is refused for a moment is sent again after the
/// delay that the server asks for. Also returns when the request was sent that was answered.
pub async fn classify_with_retries(
    client: &mut Client,
    request: ClassifyRequest,
    deadline: Instant,
) -> Result<(ClassifyResponse, Instant), Status> {
    let mut attempt = 0;
    loop {
        let sent = Instant::now();
        let status = match classify(client, request.clone(), deadline).await {
            Ok(response) => return Ok((response, sent)),
            Err(status) => status,
        };
        match retry::delay_before(&status, attempt, deadline) {
            Some(delay) => tokio::time::sleep(delay).await,
            None => return Err(status),
        }
        attempt += 1;
    }
}

/// tonic reports a deadline that it noticed itself as CANCELLED.
fn normalise_timeout(status: Status) -> Status {
    if status.code() == Code::Cancelled && status.message() == TimeoutExpired(()).to_string() {
        return Status::deadline_exceeded("no answer within the timeout");
    }
    status
}

/// The innermost error: "Connection refused" rather than "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// A duration of the contract in milliseconds; absent and negative ones are 0.
pub fn milliseconds(duration: Option<&prost_types::Duration>) -> f64 {
    duration.map_or(0.0, |d| {
        (d.seconds as f64 * 1e3 + f64::from(d.nanos) / 1e6).max(0.0)
    })
}
