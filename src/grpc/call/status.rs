//! Why a call or a frame has no answer, and the [`Status`] that its caller gets. All status codes
//! and messages are decided here, except tonic's own.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    image::ImageError,
    registry::UnknownModel,
    scheduler::{JobError, QueueFull},
    state::NotReady,
};

/// The metadata key of the delay after which clients with gRPC retries enabled retry (gRFC A6,
/// "Pushback").
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// The longest message, in characters. A status travels in headers, whose size is limited.
const MAX_MESSAGE: usize = 500;

/// The delay after which a client should retry when the server is starting, draining, or at a limit
/// whose end is not known.
const RETRY_DELAY: Duration = Duration::from_secs(1);

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
    #[error("this server requires a token: send the metadata `authorization: Bearer TOKEN`")]
    NoToken,
    #[error("the token is not one that this server knows")]
    WrongToken,
    #[error("the server failed on this stream; its log has the reason")]
    Panicked,
    /// The transport's own error: a message over the limit, or a caller that reset the stream.
    #[error("{}", .0.message())]
    Transport(#[from] Status),
}

impl CallError {
    pub fn code(&self) -> Code {
        match self {
            Self::Model(_) | Self::Version { .. } => Code::NotFound,
            Self::NotReady(_) | Self::Job(JobError::Abandoned) => Code::Unavailable,
            Self::QueueFull(_)
            | Self::Job(JobError::Displaced(_))
            | Self::TooManyStreams { .. }
            | Self::TooManyCalls { .. } => Code::ResourceExhausted,
            Self::Job(JobError::Image(error)) | Self::ImageInRequest { error, .. }
                if is_internal(error) =>
            {
                Code::Internal
            }
            Self::NoToken | Self::WrongToken => Code::Unauthenticated,
            Self::Invalid(_) | Self::Job(JobError::Image(_)) | Self::ImageInRequest { .. } => {
                Code::InvalidArgument
            }
            Self::Job(JobError::DeadlineExceeded)
            | Self::Deadline
            | Self::StreamDeadline
            | Self::Timeout
            | Self::SlowMessage { .. } => Code::DeadlineExceeded,
            Self::Job(JobError::Engine(_)) | Self::Panicked => Code::Internal,
            Self::Transport(status) => status.code(),
        }
    }

    /// The message for the caller. Details of an engine's failure stay in the server's log.
    pub fn message(&self) -> String {
        match self {
            Self::Job(JobError::Engine(_)) => {
                "the engine failed; the server's log has the reason".into()
            }
            // Decoders quote what they stumble on, which can be as long as the image.
            other => shorten(&other.to_string()),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull(full) | Self::Job(JobError::Displaced(full)) => Some(full.retry_after),
            Self::TooManyStreams { .. }
            | Self::TooManyCalls { .. }
            | Self::NotReady(NotReady::Starting | NotReady::Draining) => Some(RETRY_DELAY),
            _ => None,
        }
    }
}

/// Whether the error is the server's own: no image can cause it.
fn is_internal(error: &ImageError) -> bool {
    matches!(
        error,
        ImageError::Geometry { .. } | ImageError::CropLength { .. } | ImageError::Resize { .. }
    )
}

/// Cuts a message to the length that fits into a status.
pub(in crate::grpc) fn shorten(message: &str) -> String {
    match message.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        let code = error.code();
        let Some(delay) = error.retry_after() else {
            return Status::new(code, error.message());
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
