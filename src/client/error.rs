//! Why a server could not be used.

use thiserror::Error;
use tonic::Status;

use crate::{address::ServerAddress, proto::code_name};

/// Why a server could not be used.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No connection could be established.
    #[error("no server at {server} ({reason})")]
    Unreachable {
        /// The address that was tried.
        server: ServerAddress,
        /// The innermost error, usually the operating system's, such as "Connection refused".
        reason: String,
    },
    /// The connection can't be encrypted: a certificate or key that can't be used, or one that the
    /// other side does not trust.
    #[error("the connection to {server} can't be encrypted: {reason}")]
    Tls {
        /// The address that was tried.
        server: ServerAddress,
        /// The innermost error, usually of the TLS library.
        reason: String,
    },
    /// The server has no model of the requested name.
    #[error("the server at {server} has no model `{model}`; choose one of: {known}")]
    UnknownModel {
        /// The server that was asked.
        server: ServerAddress,
        /// The requested name.
        model: String,
        /// The names of the server's models, separated by commas.
        known: String,
    },
    /// The server answered with an error.
    #[error("the server at {server} answered {}: {}", code_name(.status.code()), .status.message())]
    Refused {
        /// The server that was asked.
        server: ServerAddress,
        /// Its answer.
        status: Box<Status>,
    },
}
