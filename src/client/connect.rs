//! The connection to a server.

use std::{error::Error, str::FromStr, time::Duration};

use tonic::{service::interceptor::InterceptedService, transport::Channel};

use super::{
    ClientError,
    credentials::{Credentials, SendToken},
};
use crate::{
    address::{AddressError, ServerAddress},
    proto::classifier_client::ClassifierClient,
};

/// The largest message that a client sends or accepts: 64 MiB, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often an HTTP/2 PING checks that a connection with calls in progress is still alive.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// A connection to a server, with the calls of the gRPC contract as methods.
///
/// Clones share the connection. It reconnects by itself at the next call after it was lost.
pub type Client = ClassifierClient<InterceptedService<Channel, SendToken>>;

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

/// Connects to a server, within 5 s.
///
/// # Errors
/// [`ClientError::Unreachable`] when nothing accepts the connection, [`ClientError::Tls`] when
/// a certificate can't be used or is not trusted.
pub async fn connect(server: &Server) -> Result<Client, ClientError> {
    let Server {
        address,
        credentials,
    } = server;
    let tls_error = |error: &dyn Error| ClientError::Tls {
        server: address.clone(),
        reason: root_cause(error),
    };

    let mut endpoint = address
        .endpoint()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL);
    if address.uses_tls() {
        endpoint = endpoint
            .tls_config(credentials.tls())
            .map_err(|error| tls_error(&error))?;
    }

    let channel = endpoint.connect().await.map_err(|error| {
        let reason = root_cause(&error);
        // Errors of the TLS library are reported as errors of the transport.
        if address.uses_tls() && reason.contains("certificate") {
            tls_error(&error)
        } else {
            ClientError::Unreachable {
                server: address.clone(),
                reason,
            }
        }
    })?;

    let client = ClassifierClient::with_interceptor(channel, SendToken(credentials.token.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Ok(client)
}

/// The innermost error: "Connection refused" rather than "transport error".
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
