//! The connection to a server.

use std::{error::Error as _, str::FromStr, time::Duration};

use http::uri::PathAndQuery;
use tokio::time::timeout;
use tonic::{
    Request, Status,
    client::Grpc,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use tonic_prost::ProstCodec;

use super::{
    ClientError,
    credentials::{Credentials, SendToken},
    diagnosis::{self, Phase, explain},
    error::root_cause,
};
use crate::{
    address::{AddressError, ServerAddress},
    proto::{classifier_client::ClassifierClient, teacher_client::TeacherClient},
};

/// The largest message that a client sends or accepts: 64 MiB, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may take to answer the first call. A busy one takes longer than it takes the
/// system to accept a connection for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How often an HTTP/2 PING checks that a connection with calls in progress is still alive.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// A connection to a server, with the calls of the gRPC contract as methods.
///
/// Clones share the connection. It reconnects by itself at the next call after it was lost.
pub type Client = ClassifierClient<InterceptedService<Channel, SendToken>>;

/// The same, with the calls that teach a server.
pub type Teacher = TeacherClient<InterceptedService<Channel, SendToken>>;

/// A server's address and the credentials to use there.
///
/// An address alone parses as a server that needs no credentials:
///
/// ```
/// use resnet18_server::client::Server;
///
/// let server: Server = "https://models.example:8001".parse()?;
/// assert!(server.address.uses_tls());
/// # Ok::<(), resnet18_server::client::AddressError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Server {
    /// Where the server listens.
    pub address: ServerAddress,
    /// How the client authenticates itself, and which certificate authority it trusts.
    pub credentials: Credentials,
}

impl FromStr for Server {
    type Err = AddressError;

    fn from_str(address: &str) -> Result<Self, Self::Err> {
        Ok(Self {
            address: address.parse()?,
            credentials: Credentials::default(),
        })
    }
}

/// Connects to a server within 5 s, and waits up to 10 s for it to answer a health check. Any
/// answer will do: the server may still be starting, or not know that service.
///
/// # Errors
/// [`ClientError::Unreachable`] when nothing accepts the connection, [`ClientError::Tls`] when
/// a certificate can't be used or is not trusted, [`ClientError::Unusable`] when it is not a gRPC
/// port, or does not answer.
pub async fn connect(server: &Server) -> Result<Client, ClientError> {
    let channel = channel(server).await?;
    let token = SendToken(server.credentials.token.clone());
    let client = ClassifierClient::with_interceptor(channel, token)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Ok(client)
}

/// Connects to a server as [`connect`] does, to teach it one's own classes.
///
/// # Errors
/// As for [`connect`]. Whether the server can be taught is only known after the first call.
pub async fn connect_teacher(server: &Server) -> Result<Teacher, ClientError> {
    let channel = channel(server).await?;
    let token = SendToken(server.credentials.token.clone());
    let teacher = TeacherClient::with_interceptor(channel, token)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Ok(teacher)
}

async fn channel(server: &Server) -> Result<Channel, ClientError> {
    let Server {
        address,
        credentials,
    } = server;

    let mut endpoint = address
        .endpoint()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL);
    if address.uses_tls() {
        endpoint = endpoint
            .tls_config(credentials.tls())
            .map_err(|error| diagnosis::tls_error(address, &error))?;
    }

    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => {
            let reason = root_cause(&error);
            return Err(explain(server, reason, Phase::Connect).await);
        }
    };
    // TLS and HTTP/2 may fail after the connection has been accepted: the certificate of a client
    // is checked last.
    match timeout(ANSWER_TIMEOUT, check(channel.clone(), credentials)).await {
        Ok(Ok(())) => Ok(channel),
        Ok(Err(status)) => {
            let reason = root_cause(&status);
            Err(explain(server, reason, Phase::FirstCall).await)
        }
        Err(_) => Err(diagnosis::silent(address)),
    }
}

/// Whether a call over the channel is answered, with whatever status.
///
/// # Errors
/// The status that stands for an error of the connection.
async fn check(channel: Channel, credentials: &Credentials) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready()
        .await
        .map_err(|error| Status::from_error(error.into()))?;

    // The request for the health of the whole server is empty, and its answer does not matter.
    let request = SendToken(credentials.token.clone()).call(Request::new(()))?;
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let answer = grpc
        .unary::<(), (), _>(request, path, ProstCodec::default())
        .await;
    match answer {
        Err(status) if status.source().is_some() => Err(status),
        _ => Ok(()),
    }
}
