//! What is queued, what comes back, and the errors in between.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Priority;
use crate::{
    engine::EngineError,
    image::{ImageError, Region, Source},
    metrics::statistics::{RequestKind, Stages},
    telemetry::context::SpanContext,
};

/// The unit of fair queuing: a named caller, else a connection. Clients of one group share what one
/// client outside of it gets, so that nobody gets more by opening more connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientId {
    pub(super) id: u64,
    pub(super) group: u64,
}

impl ClientId {
    /// A client in a group of its own.
    pub const fn alone(id: u64) -> Self {
        Self { id, group: id }
    }

    /// One of the clients of a group.
    pub const fn in_group(id: u64, group: u64) -> Self {
        Self { id, group }
    }
}

/// An image, and when its wait began.
pub struct InputImage {
    pub source: Source,
    /// The parts of it to classify, each for itself; empty means the whole image.
    pub regions: Arc<[Region]>,
    /// When the image reached the server.
    pub arrived: Instant,
    /// Whether the crop is mirrored, left to right; training uses photos both ways.
    pub mirrored: bool,
}

/// Supplies an image when it is wanted.
pub type Fetch = Box<dyn FnOnce() -> Option<InputImage> + Send>;

/// One image to classify.
pub struct Job {
    pub client: ClientId,
    pub priority: Priority,
    /// When the call began that it belongs to.
    pub called: Instant,
    /// After this the answer is worthless: work that has not begun by then is never executed.
    pub deadline: Option<Instant>,
    /// Whether the job counts against the queue's capacity. Frames of streams do not: a stream
    /// limits itself to a few frames in flight.
    pub counted: bool,
    /// How long decoding the image is expected to keep a core busy; `None` if that is known only
    /// once the image has been fetched, as with a live stream.
    pub decode_estimate: Option<Duration>,
    /// How many crops the image is expected to give, by which inference is charged.
    pub crops: usize,
    /// Whether the embedding of each crop is wanted.
    pub wants_embedding: bool,
    /// Supplies the image at the moment when a worker is free for it, so that a live stream can
    /// hand over its newest frame. `None` withdraws the job.
    pub fetch: Fetch,
    /// The span that the work belongs to, if the call is traced.
    pub span: Option<SpanContext>,
    /// What kind of request brought the image, for the statistics.
    pub kind: RequestKind,
}

/// The result of a job.
pub type Outcome = Result<Reply, JobError>;

/// A classified image.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Of each region in their order, or of the whole image alone.
    pub outputs: Vec<Output>,
    /// How long each stage took.
    pub stages: Stages,
    /// When each stage took place.
    pub timeline: Timeline,
}

/// What the network gives for one crop.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// `float32 [classes]`.
    pub logits: Vec<f32>,
    /// `float32 [features]`, if it was asked for.
    pub embedding: Option<Vec<f32>>,
}

/// When an image passed through the stages, and with how many others it was inferred.
#[derive(Clone, Copy, Debug)]
pub struct Timeline {
    /// When decoding ended.
    pub decoded: Instant,
    /// When the engine's call began.
    pub inferred: Instant,
    /// How many images were in that call.
    pub batch: usize,
    /// The span of the engine's call, if any of its images is traced.
    pub span: Option<SpanContext>,
}

/// Why a job that was admitted has no answer.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("the deadline passed while the request waited; it was not executed")]
    DeadlineExceeded,
    /// The queue was full, and a job of another client with fewer in the queue, or a more urgent
    /// job of the same client, took this one's place.
    #[error(transparent)]
    Displaced(#[from] QueueFull),
    #[error(transparent)]
    Engine(Arc<EngineError>),
    /// Decoding had not ended after this time and was given up.
    #[error(
        "decoding the image had not ended after {:.0?} and was given up; save it again, for \
         example as a baseline JPEG",
        .0
    )]
    Stuck(Duration),
    /// The worker thread panicked: a defect of this program.
    #[error("the server failed on this image; its log has the reason")]
    Panicked,
    /// The image was withdrawn, or the scheduler stopped.
    #[error("the request was abandoned")]
    Abandoned,
}

/// Why nothing can be classified any more until the process is started again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// An engine will never answer again.
    #[error(transparent)]
    Engine(Arc<EngineError>),
    /// So many worker threads hang that the process cannot go on.
    #[error("{threads} worker threads hang, which is the limit; the server has to be restarted")]
    Hanging {
        /// How many.
        threads: usize,
    },
}

/// The queue is full.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the queue is full ({waiting} requests wait); retry in {} ms", retry_after.as_millis())]
pub struct QueueFull {
    /// How many requests wait.
    pub waiting: usize,
    /// When there is likely to be room, spread over the clients that were rejected.
    pub retry_after: Duration,
}
