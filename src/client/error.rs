//! Why a server could not be used.

use std::error::Error as _;

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
    /// Something listens there, but it is no gRPC port that this client can use: the HTTP port, one
    /// that wants TLS or has none, or one that does not answer.
    #[error("the server at {server} can't be used: {reason}")]
    Unusable {
        /// The address that was tried.
        server: ServerAddress,
        /// What listens there instead, and what would be right.
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
    #[error("the server at {server} has {}", unknown_model(model, known))]
    UnknownModel {
        /// The server that was asked.
        server: ServerAddress,
        /// The requested name.
        model: String,
        /// The names of the server's models, separated by commas; empty if it has none.
        known: String,
    },
    /// The server answered with an error.
    #[error("the server at {server} answered {}: {}", code_name(.status.code()), message(.status))]
    Refused {
        /// The server that was asked.
        server: ServerAddress,
        /// Its answer.
        status: Box<Status>,
    },
}

fn unknown_model(model: &str, known: &str) -> String {
    if known.is_empty() {
        "no model at present".into()
    } else {
        format!("no model `{model}`; choose one of: {known}")
    }
}

/// The status's message; with its innermost reason, where the connection failed.
fn message(status: &Status) -> String {
    match status.source() {
        None => status.message().to_owned(),
        Some(source) => format!("{}: {}", status.message(), root_cause(source)),
    }
}

/// The innermost error: "Connection refused" rather than "transport error".
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
