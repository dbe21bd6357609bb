//! Errors → [`Status`]. What a caller is told is decided here and nowhere else.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    image::ImageError,
    registry::UnknownModel,
    scheduler::{JobError, QueueFull},
    state::NotReady,
};

/// By this a client of any language that has gRPC's retries switched on comes back when it should
/// (gRFC A6, "Pushback").
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// In characters; a status travels in headers, which are limited.
const LONGEST_MESSAGE: usize = 500;

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
        "{open} streams are open, which is the most that this server takes; retry when others have ended"
    )]
    TooManyStreams { open: usize },
    #[error(transparent)]
    Job(#[from] JobError),
    #[error("{0}")]
    Invalid(String),
    #[error("image {image} of {of}: {error}")]
    OneOf {
        image: usize,
        of: usize,
        error: ImageError,
    },
    #[error("\"{name}\" has no version \"{asked}\"; the one that is served is \"{served}\"")]
    Version {
        name: String,
        asked: String,
        served: String,
    },
    #[error("the request's time was up before its answer was ready")]
    TimeIsUp,
    #[error("the deadline of the stream has passed")]
    StreamDeadline,
    #[error(
        "{open} calls are in progress, which is the most that this server takes; retry in a moment"
    )]
    TooManyCalls { open: usize },
    #[error("the message did not arrive within {limit:?}; send it faster, or a smaller image")]
    SlowMessage { limit: Duration },
    #[error("this server wants a token: send the metadata `authorization: Bearer TOKEN`")]
    NoToken,
    #[error("the token is none that this server knows")]
    WrongToken,
    #[error("the server failed on this stream; its log says why")]
    Panicked,
    /// The transport's own: a message over the limit, a caller that reset the stream.
    #[error("{}", .0.message())]
    Transport(#[from] Status),
}

impl CallError {
    pub fn code(&self) -> Code {
        match self {
            Self::Model(_) | Self::Version { .. } => Code::NotFound,
            Self::NotReady(_) => Code::Unavailable,
            Self::QueueFull(_)
            | Self::Job(JobError::Displaced(_))
            | Self::TooManyStreams { .. }
            | Self::TooManyCalls { .. } => Code::ResourceExhausted,
            Self::Job(JobError::Image(error)) | Self::OneOf { error, .. } if is_ours(error) => {
                Code::Internal
            }
            Self::NoToken | Self::WrongToken => Code::Unauthenticated,
            Self::Invalid(_) | Self::Job(JobError::Image(_)) | Self::OneOf { .. } => {
                Code::InvalidArgument
            }
            Self::Job(JobError::DeadlineExceeded)
            | Self::StreamDeadline
            | Self::TimeIsUp
            | Self::SlowMessage { .. } => Code::DeadlineExceeded,
            Self::Job(JobError::Engine(_)) | Self::Panicked => Code::Internal,
            Self::Job(JobError::Abandoned) => Code::Unavailable,
            Self::Transport(status) => status.code(),
        }
    }

    /// What the caller reads. Details of an engine's failure stay in the server's log.
    pub fn message(&self) -> String {
        match self {
            Self::Job(JobError::Engine(_)) => "the engine failed; the server's log says why".into(),
            // Decoders quote what they stumble on, which can be as long as the image.
            other => shorten(&other.to_string()),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull(full) | Self::Job(JobError::Displaced(full)) => Some(full.retry_after),
            Self::TooManyStreams { .. } | Self::TooManyCalls { .. } => Some(Duration::from_secs(1)),
            Self::NotReady(NotReady::Starting | NotReady::Draining) => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

/// Errors that no image can cause.
fn is_ours(error: &ImageError) -> bool {
    matches!(
        error,
        ImageError::Geometry { .. } | ImageError::CropLength { .. } | ImageError::Resize { .. }
    )
}

/// A message that fits into a status.
pub(in crate::grpc) fn shorten(message: &str) -> String {
    match message.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        match error.retry_after() {
            None => Status::new(error.code(), error.message()),
            Some(delay) => {
                let (code, details) = (error.code(), ErrorDetails::with_retry_info(Some(delay)));
                let mut status = Status::with_error_details(code, error.message(), details);
                // Who finds a server that starts or goes should try another one at once, as its own
                // policy says.
                if code == Code::ResourceExhausted {
                    status
                        .metadata_mut()
                        .insert(PUSHBACK, (delay.as_millis() as u64).into());
                }
                status
            }
        }
    }
}
