//! Why a server could not be used.

use std::error::Error as _;

use thiserror::Error;
use tonic::{Code, Status};

use super::MAX_MESSAGE_BYTES;
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

/// Explains the status for a message that is too large, which tonic words in terms of its codec, to
/// the sender of an image. Any other status is returned unchanged.
pub(super) fn explain_size(status: Status) -> Status {
    if !matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted) {
        return status;
    }
    let Some((size, limit)) = sizes(status.message()) else {
        return status;
    };
    let text = format!(
        "the image takes {:.1} MiB in a message, more than the {:.0} MiB that ",
        mebibytes(size),
        mebibytes(limit)
    );
    let advice = if limit == MAX_MESSAGE_BYTES as u64 {
        "a client sends; make it smaller".to_owned()
    } else {
        format!(
            "the server accepts; make it smaller, or start the server with --max-message-mib {}",
            size.div_ceil(1 << 20)
        )
    };
    Status::new(status.code(), text + &advice)
}

/// The size of the message and the limit for it, in bytes, from tonic's description.
fn sizes(message: &str) -> Option<(u64, u64)> {
    let (_, found) = message.split_once("message length too large: found ")?;
    let (size, rest) = found.split_once(" bytes, the limit is: ")?;
    let (limit, _) = rest.split_once(" bytes")?;
    Some((size.parse().ok()?, limit.parse().ok()?))
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
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

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(limit: usize) -> Status {
        explain_size(Status::out_of_range(format!(
            "Error, decoded message length too large: found 53477400 bytes, the limit is: {limit} \
             bytes"
        )))
    }

    #[test]
    fn a_message_that_is_too_large_is_explained_with_its_size_and_the_limit() {
        let status = explained(16 << 20);
        assert_eq!(status.code(), Code::OutOfRange);
        for part in ["51.0 MiB", "the 16 MiB", "--max-message-mib 52"] {
            assert!(status.message().contains(part), "{}", status.message());
        }
        assert!(!explained(MAX_MESSAGE_BYTES).message().contains("--max"));
    }

    #[test]
    fn other_statuses_stay_as_they_are() {
        for status in [
            Status::out_of_range("the top is out of range"),
            Status::internal("message length too large: found 1 bytes, the limit is: 0 bytes"),
        ] {
            let explained = explain_size(status.clone());
            assert_eq!(explained.message(), status.message());
        }
    }
}
