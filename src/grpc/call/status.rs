//! Why a call or a frame has no answer, and the [`Status`] that its caller gets. All status codes
//! and messages of calls are decided here, except tonic's own and those of REST's syntax.

use std::time::Duration;

use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    budget::OutOfMemory,
    image::{ImageError, ImageFormat},
    registry::{UnknownModel, control::ControlError},
    scheduler::{JobError, QueueFull},
    state::NotReady,
    teaching::TeachError,
};

/// The metadata key of the delay after which clients with gRPC retries enabled retry (gRFC A6,
/// "Pushback").
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// The metadata key of the encodings that the server decompresses (gRPC over HTTP/2).
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

/// The longest message, in characters. A status travels in headers, whose size is limited.
const MAX_MESSAGE: usize = 500;

/// The delay after which a client should retry when the server is starting, draining, or at a limit
/// whose end is not known.
pub(in crate::grpc) const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Why a call, or one frame of a stream, has no classes.
#[derive(Debug, thiserror::Error)]
pub(in crate::grpc) enum CallError {
    #[error(transparent)]
    Model(#[from] UnknownModel),
    #[error(transparent)]
    NotReady(#[from] NotReady),
    #[error(transparent)]
    QueueFull(#[from] QueueFull),
    #[error(
        "{open} streams are open, the most that this server accepts; retry when others have ended"
    )]
    TooManyStreams { open: usize },
    #[error("{open} calls are in progress, the most that this server accepts; retry in a moment")]
    TooManyCalls { open: usize },
    #[error("{open} {what} are open, the most that this server accepts; retry in a moment")]
    TooManyOpen { open: usize, what: &'static str },
    #[error(
        "this client holds {held} of the {limit} {what} that this server accepts, the most that \
         the server's --max-per-client allows it at present; retry when one of them has ended"
    )]
    ClientLimit {
        held: usize,
        limit: usize,
        what: &'static str,
    },
    #[error(transparent)]
    Job(#[from] JobError),
    /// The request itself is wrong, for the reason given.
    #[error("{0}")]
    Invalid(String),
    #[error("image {image} of {of}: {error}")]
    ImageInRequest {
        image: usize,
        of: usize,
        error: ImageError,
    },
    #[error("\"{name}\" has no version \"{asked}\"; the version served is \"{served}\"")]
    Version {
        name: String,
        asked: String,
        served: String,
    },
    #[error("the request's timeout passed before its answer was ready")]
    Timeout,
    #[error("the deadline passed before the answer was ready")]
    Deadline,
    #[error("the deadline of the stream has passed")]
    StreamDeadline,
    #[error("the message did not arrive within {limit:?}; send it faster, or a smaller image")]
    SlowMessage { limit: Duration },
    #[error(
        "the message has {bytes} bytes; this server accepts at most {limit} (its flag \
         --max-message-mib)"
    )]
    LargeMessage { bytes: usize, limit: usize },
    #[error(
        "the message has more than {limit} bytes when it is decompressed, the most that this \
         server accepts (its flag --max-message-mib)"
    )]
    LargeInflated { limit: usize },
    #[error(
        "the body has more than {limit} bytes, the most that this server accepts (its flag \
         --max-message-mib)"
    )]
    LongBody { limit: usize },
    /// The caller's images don't fit into memory now.
    #[error("{0}; retry in a moment")]
    Memory(#[from] OutOfMemory),
    #[error("the encoding \"{name}\" is unknown; this server decompresses {accepted}")]
    UnknownEncoding {
        name: String,
        accepted: &'static str,
    },
    #[error("the call's metadata has {bytes} bytes; this server accepts at most {limit}")]
    LargeMetadata { bytes: usize, limit: usize },
    /// The newest file of the model can't be served, and there is no older version.
    #[error("the model \"{name}\" could not be loaded: {reason}")]
    ModelFailed { name: String, reason: String },
    /// An embedding is wanted, and there is none.
    #[error(
        "\"{model}\" gives no embeddings: {reason}; leave `want_embedding` out, or use another model or \
         engine"
    )]
    NoEmbedding { model: String, reason: String },
    /// A caller unloaded it.
    #[error("the model \"{0}\" is unloaded; RepositoryModelLoad loads it again")]
    Unloaded(String),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Teach(TeachError),
    /// A method of the protocol that is not offered; this says what to do instead.
    #[error("{0}")]
    NotOffered(&'static str),
    #[error("this server requires a token: send the metadata `authorization: Bearer TOKEN`")]
    NoToken,
    #[error("the token is not one that this server knows")]
    WrongToken,
    #[error("the server failed on this stream; its log has the reason")]
    Panicked,
    /// The transport's own error: a message that is damaged, late or over a limit.
    #[error("{}", .0.message())]
    Transport(Status),
}

impl CallError {
    pub fn code(&self) -> Code {
        match self {
            Self::Teach(TeachError::Unknown(_))
            | Self::Model(_)
            | Self::Version { .. }
            | Self::Unloaded(_)
            | Self::Control(ControlError::NoFile(_) | ControlError::Unknown(_)) => Code::NotFound,
            Self::NotReady(_)
            | Self::Teach(TeachError::Starting)
            | Self::Job(JobError::Abandoned)
            | Self::Control(ControlError::Unavailable) => Code::Unavailable,
            Self::QueueFull(_)
            | Self::Job(JobError::Displaced(_))
            | Self::TooManyStreams { .. }
            | Self::TooManyCalls { .. }
            | Self::Memory(_)
            | Self::TooManyOpen { .. }
            | Self::ClientLimit { .. }
            | Self::Control(ControlError::Busy)
            | Self::Teach(TeachError::Busy)
            | Self::LargeMetadata { .. } => Code::ResourceExhausted,
            Self::LargeMessage { .. } | Self::LargeInflated { .. } | Self::LongBody { .. } => {
                Code::OutOfRange
            }
            Self::UnknownEncoding { .. }
            | Self::NotOffered(_)
            | Self::Control(ControlError::Off) => Code::Unimplemented,
            Self::Teach(TeachError::Foreign(_)) => Code::AlreadyExists,
            Self::Teach(TeachError::TooFew(_) | TeachError::NoRows | TeachError::Diverged)
            | Self::ModelFailed { .. }
            | Self::NoEmbedding { .. }
            | Self::Control(ControlError::Failed { .. } | ControlError::TooMany(_)) => {
                Code::FailedPrecondition
            }
            Self::Job(JobError::Image(error)) | Self::ImageInRequest { error, .. }
                if is_internal(error) =>
            {
                Code::Internal
            }
            Self::NoToken | Self::WrongToken => Code::Unauthenticated,
            Self::Invalid(_)
            | Self::Teach(TeachError::Name(_))
            | Self::Job(JobError::Image(_) | JobError::Stuck(_))
            | Self::ImageInRequest { .. } => Code::InvalidArgument,
            Self::Job(JobError::DeadlineExceeded)
            | Self::Deadline
            | Self::StreamDeadline
            | Self::Timeout
            | Self::SlowMessage { .. } => Code::DeadlineExceeded,
            Self::Job(JobError::Engine(_) | JobError::Panicked)
            | Self::Panicked
            | Self::Teach(_) => Code::Internal,
            Self::Transport(status) => status.code(),
        }
    }

    /// The message for the caller. Details of an engine's failure stay in the server's log.
    pub fn message(&self) -> String {
        match self {
            Self::Job(JobError::Engine(_)) => {
                "the engine failed; the server's log has the reason".into()
            }
            Self::Teach(TeachError::File { .. }) => {
                "the server can't read or write a file; its log has the reason".into()
            }
            // Decoders quote what they stumble on, which can be as long as the image.
            other => shorten(&other.to_string()),
        }
    }

    /// The reason for the server's own log, which holds no part of an image: the decoder of PNM, a
    /// format of text, quotes what it stumbles on.
    pub fn for_log(&self) -> String {
        let image = match self {
            Self::Job(JobError::Image(error)) | Self::ImageInRequest { error, .. } => Some(error),
            _ => None,
        };
        match image {
            Some(
                ImageError::Damaged {
                    format: format @ ImageFormat::Pnm,
                    ..
                }
                | ImageError::UnsupportedVariant {
                    format: format @ ImageFormat::Pnm,
                    ..
                },
            ) => format!("damaged or unsupported {format}"),
            _ => self.message(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull(full) | Self::Job(JobError::Displaced(full)) => Some(full.retry_after),
            Self::TooManyStreams { .. }
            | Self::TooManyCalls { .. }
            | Self::Memory(_)
            | Self::TooManyOpen { .. }
            | Self::ClientLimit { .. }
            | Self::Control(ControlError::Busy)
            | Self::Teach(TeachError::Busy | TeachError::Starting)
            | Self::NotReady(
                NotReady::Starting
                | NotReady::NoModel(_)
                | NotReady::Stalled(_)
                | NotReady::Draining,
            ) => Some(RETRY_DELAY),
            _ => None,
        }
    }
}

impl From<TeachError> for CallError {
    fn from(error: TeachError) -> Self {
        match error {
            TeachError::Job(error) => error.into(),
            TeachError::Queue(error) => error.into(),
            TeachError::Control(error) => error.into(),
            error => Self::Teach(error),
        }
    }
}

/// Whether the error is the server's own: no image can cause it.
fn is_internal(error: &ImageError) -> bool {
    matches!(
        error,
        ImageError::Geometry { .. } | ImageError::CropLength { .. }
    )
}

/// Cuts a message to the length that fits into a status.
pub(in crate::grpc) fn shorten(message: &str) -> String {
    match message.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

/// The delay after which a rejected caller should call again, as its status says.
pub(in crate::grpc) fn pushback(status: &Status) -> Option<Duration> {
    let milliseconds = status.metadata().get(PUSHBACK)?.to_str().ok()?;
    milliseconds.parse().ok().map(Duration::from_millis)
}

/// The status of a message that tonic could not receive, in this server's words; `None` leaves it
/// as it is.
///
/// tonic reports a caller's damaged message as INTERNAL, which counts as the server's own failure.
/// The exception is a message whose framing breaks gRPC's protocol, for which that code is
/// prescribed.
pub(in crate::grpc) fn received(status: &Status) -> Option<Status> {
    let message = status.message();
    match status.code() {
        Code::Internal if !message.starts_with("protocol error") => {
            Some(Status::invalid_argument(shorten(message)))
        }
        _ => None,
    }
}

impl From<Status> for CallError {
    /// The error of a message that could not be received.
    fn from(status: Status) -> Self {
        Self::Transport(received(&status).unwrap_or(status))
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        let code = error.code();
        let Some(delay) = error.retry_after() else {
            let mut status = Status::new(code, error.message());
            if let CallError::UnknownEncoding { accepted, .. } = error {
                let accepted = MetadataValue::from_static(accepted);
                status.metadata_mut().insert(ACCEPT_ENCODING, accepted);
            }
            return status;
        };

        let details = ErrorDetails::with_retry_info(Some(delay));
        let mut status = Status::with_error_details(code, error.message(), details);
        // A client whose server is starting or draining should try another one at once, as its own
        // policy says: only an overloaded server pushes back.
        if code == Code::ResourceExhausted {
            let milliseconds = delay.as_millis() as u64;
            status.metadata_mut().insert(PUSHBACK, milliseconds.into());
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tonic_says_of_a_callers_message_is_said_in_this_servers_words() {
        let reworded = |status: Status| received(&status).map(|status| status.code());
        for message in [
            "failed to decode Protobuf message: buffer underflow",
            "Unexpected EOF decoding stream.",
            "Missing request message.",
        ] {
            assert_eq!(
                reworded(Status::internal(message)),
                Some(Code::InvalidArgument)
            );
        }
        let framing = "protocol error: received message with invalid compression flag: 7";
        assert_eq!(reworded(Status::internal(framing)), None);
        assert_eq!(reworded(Status::unimplemented("")), None);
    }

    #[test]
    fn the_documentation_has_every_code() {
        let source = include_str!("status.rs");
        let (_, codes) = source.split_once("pub fn code(").unwrap();
        let (codes, _) = codes.split_once("pub fn message(").unwrap();
        // tonic's own: a call that its caller ended, and a method or compression that is unknown.
        let others = ["Cancelled", "Unimplemented"];
        let named: Vec<&str> = codes
            .split("Code::")
            .skip(1)
            .map(|rest| {
                let end = rest.find(|letter: char| !letter.is_alphanumeric());
                &rest[..end.unwrap_or(rest.len())]
            })
            .chain(others)
            .collect();
        assert!(named.len() > 10, "{named:?}");

        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/clients.md");
        let page = std::fs::read_to_string(page).unwrap();
        let (_, table) = page.split_once("## Status codes").unwrap();
        let (table, _) = table.split_once("\n## ").unwrap();
        for code in (0..=16).map(Code::from_i32) {
            if named.contains(&&*format!("{code:?}")) {
                let name = crate::proto::code_name(code);
                assert!(table.contains(&format!("| `{name}`")), "{name}");
            }
        }
    }

    #[test]
    fn the_log_holds_no_part_of_an_image() {
        let damaged = |format| {
            CallError::Job(JobError::Image(ImageError::Damaged {
                format,
                reason: "SECRET".into(),
            }))
        };
        let text = damaged(ImageFormat::Pnm);
        assert!(text.message().contains("SECRET") && !text.for_log().contains("SECRET"));
        let binary = damaged(ImageFormat::Jpeg);
        assert_eq!(binary.for_log(), binary.message());
    }
}
