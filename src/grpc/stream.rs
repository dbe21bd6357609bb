//! `StreamClassify`: both frame policies, in bounded memory.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use tokio::sync::{Notify, mpsc, oneshot};
use tonic::{Code, Status, Streaming};

use super::{
    context::{Call, Context, running},
    convert::{self, Wanted},
    status::CallError,
};
use crate::{
    answer::{Smoothing, softmax},
    image::Source,
    metrics::{FrameOutcome, RateMeter, Rejection, RequestGuard},
    proto::{
        Classifications, Frame, FrameError, FramePolicy, StreamClassifyRequest, StreamClassifyResponse, StreamConfig,
        stream_classify_request::Message, stream_classify_response,
    },
    registry::Served,
    scheduler::{Arrival, ClientId, Job, JobError, Outcome},
    state::{NotReady, StateCell},
};

pub(super) type Answers = mpsc::Sender<Result<StreamClassifyResponse, Status>>;

/// Runs a stream to its end and tells the caller how it ended, unless the caller has gone.
pub(super) async fn run(
    context: Arc<Context>,
    inbound: Streaming<StreamClassifyRequest>,
    call: Call,
    mut guard: RequestGuard,
    answers: Answers,
) {
    let work = async {
        match call.arrived.deadline {
            None => open_and_answer(&context, inbound, call, &mut guard, &answers).await,
            Some(deadline) => {
                let work = open_and_answer(&context, inbound, call, &mut guard, &answers);
                tokio::time::timeout_at(deadline.into(), work).await.unwrap_or(Err(CallError::StreamDeadline))
            }
        }
    };
    let ended = tokio::select! {
        ended = work => ended,
        () = answers.closed() => return,
    };
    match ended {
        Ok(()) => guard.finish(Code::Ok),
        Err(error) => {
            guard.finish(error.code());
            // The caller may have gone in this very moment.
            let _ = answers.send(Err(error.into())).await;
        }
    }
}

async fn open_and_answer(
    context: &Context,
    mut inbound: Streaming<StreamClassifyRequest>,
    call: Call,
    guard: &mut RequestGuard,
    answers: &Answers,
) -> Result<(), CallError> {
    let config = match next(&mut inbound, &context.state).await? {
        Some(Message::Config(config)) => config,
        Some(Message::Frame(_)) => {
            return Err(CallError::Invalid("the first message of a stream must be its config, not a frame".into()));
        }
        None => return Err(CallError::Invalid("the stream ended before its config".into())),
    };
    let served = Arc::clone(context.model(&config.model, guard)?);
    let Ok(_permit) = context.streams.try_acquire() else {
        served.metrics.rejected(Rejection::StreamLimit);
        return Err(CallError::TooManyStreams { open: context.max_streams });
    };
    let _open = served.metrics.stream();
    let policy = FramePolicy::try_from(config.policy).map_err(|_| {
        CallError::Invalid(format!("the frame policy {} is unknown; send EVERY or LATEST", config.policy))
    })?;
    let answerer = Answerer::new(Arc::clone(&served), &config, answers.clone())?;
    let source = FrameSource { inbound, state: context.state.clone() };
    match policy {
        FramePolicy::Unspecified | FramePolicy::Every => every(source, answerer, call.client).await,
        FramePolicy::Latest => latest(source, answerer, call.client).await,
    }
}

/// The next message; `None` when the caller has sent its last.
async fn next(inbound: &mut Streaming<StreamClassifyRequest>, state: &StateCell) -> Result<Option<Message>, CallError> {
    let message = tokio::select! {
        message = inbound.message() => message?,
        () = state.draining() => return Err(NotReady::Draining.into()),
    };
    match message {
        None => Ok(None),
        Some(StreamClassifyRequest { message: Some(message) }) => Ok(Some(message)),
        Some(StreamClassifyRequest { message: None }) => {
            Err(CallError::Invalid("a message of the stream is neither a config nor a frame".into()))
        }
    }
}

struct FrameSource {
    inbound: Streaming<StreamClassifyRequest>,
    state: StateCell,
}

impl FrameSource {
    async fn next(&mut self) -> Result<Option<Incoming>, CallError> {
        match next(&mut self.inbound, &self.state).await? {
            None => Ok(None),
            Some(Message::Frame(frame)) => Ok(Some(Incoming::new(frame))),
            Some(Message::Config(_)) => {
                Err(CallError::Invalid("the config of a stream comes once, as its first message".into()))
            }
        }
    }
}

/// A frame that has arrived.
struct Incoming {
    stamp: Stamp,
    image: Result<Source, CallError>,
}

/// What an answer needs to know of its frame.
#[derive(Clone, Copy)]
struct Stamp {
    id: u64,
    captured_at: f64,
    arrived: Instant,
}

impl Incoming {
    fn new(frame: Frame) -> Self {
        let captured_at = convert::captured_at(frame.captured_at);
        let stamp = Stamp { id: frame.id, captured_at, arrived: Instant::now() };
        Self { stamp, image: convert::source(frame.image) }
    }
}

/// Every frame is answered in order. Only a few are in work at once; while they are, no further one is read.
async fn every(mut source: FrameSource, mut answerer: Answerer, client: ClientId) -> Result<(), CallError> {
    let served = Arc::clone(&answerer.served);
    let scheduler = &running(&served).scheduler;
    // One more than can be worked on, so that no lane waits for the network.
    let (pending, mut in_order) = mpsc::channel(scheduler.lanes());
    let read = async move {
        while let Some(Incoming { stamp, image }) = source.next().await? {
            let outcome = image.and_then(|image| {
                let at = stamp.arrived;
                let fetch = Box::new(move || Some(Arrival { image, at }));
                Ok(scheduler.submit(Job { client, deadline: None, counts: false, fetch })?)
            });
            if pending.send((stamp, outcome)).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let answer = async {
        while let Some((stamp, outcome)) = in_order.recv().await {
            let outcome = match outcome {
                Ok(outcome) => received(outcome).await.map_err(CallError::from),
                Err(error) => Err(error),
            };
            answerer.answer(stamp, outcome, 0).await?;
        }
        Ok(())
    };
    // Reading ends first; then what was read is answered; then the caller learns why reading ended.
    let (read, answered) = tokio::join!(read, answer);
    answered.and(read)
}

/// Only the newest frame is of interest: it waits in a slot of one, where a newer one replaces it.
async fn latest(mut source: FrameSource, mut answerer: Answerer, client: ClientId) -> Result<(), CallError> {
    let served = Arc::clone(&answerer.served);
    let scheduler = &running(&served).scheduler;
    let slot = Arc::new(Slot::default());
    let read = async {
        let ended = loop {
            match source.next().await {
                Ok(Some(frame)) => {
                    if slot.put(frame) {
                        served.metrics.frame(FrameOutcome::Dropped);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        slot.close();
        ended
    };
    let answer = async {
        while slot.filled().await {
            let (taken, stamp) = oneshot::channel();
            let fetch = {
                let slot = Arc::clone(&slot);
                move || {
                    let Incoming { stamp, image } = slot.take()?;
                    let (image, error) = match image {
                        Ok(image) => (Some(image), None),
                        Err(error) => (None, Some(error)),
                    };
                    // The stream may have ended meanwhile.
                    let _ = taken.send((stamp, error));
                    Some(Arrival { image: image?, at: stamp.arrived })
                }
            };
            let outcome = scheduler.submit(Job { client, deadline: None, counts: false, fetch: Box::new(fetch) })?;
            let outcome = received(outcome).await;
            // Without a stamp the scheduler stopped before it took the frame.
            let Ok((stamp, error)) = stamp.await else {
                return Err(JobError::Abandoned.into());
            };
            let outcome = error.map_or(outcome.map_err(CallError::from), Err);
            answerer.answer(stamp, outcome, slot.dropped()).await?;
        }
        Ok(())
    };
    let (read, answered) = tokio::join!(read, answer);
    answered.and(read)
}

async fn received(outcome: oneshot::Receiver<Outcome>) -> Outcome {
    outcome.await.unwrap_or(Err(JobError::Abandoned))
}

/// Holds the newest frame.
#[derive(Default)]
struct Slot {
    frame: Mutex<SlotState>,
    changed: Notify,
    dropped: AtomicU64,
}

#[derive(Default)]
struct SlotState {
    frame: Option<Incoming>,
    closed: bool,
}

impl Slot {
    fn lock(&self) -> std::sync::MutexGuard<'_, SlotState> {
        self.frame.lock().expect("nothing panics while it holds the slot")
    }

    /// Whether an older frame had to go.
    fn put(&self, frame: Incoming) -> bool {
        let replaced = self.lock().frame.replace(frame).is_some();
        self.dropped.fetch_add(replaced.into(), Relaxed);
        self.changed.notify_one();
        replaced
    }

    fn take(&self) -> Option<Incoming> {
        self.lock().frame.take()
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// Waits for a frame; false when there will be none.
    async fn filled(&self) -> bool {
        loop {
            {
                let state = self.lock();
                if state.frame.is_some() {
                    return true;
                }
                if state.closed {
                    return false;
                }
            }
            self.changed.notified().await;
        }
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

/// Turns outcomes into the stream's answers.
struct Answerer {
    served: Arc<Served>,
    wanted: Wanted,
    smoothing: Smoothing,
    fps: RateMeter,
    answers: Answers,
}

impl Answerer {
    fn new(served: Arc<Served>, config: &StreamConfig, answers: Answers) -> Result<Self, CallError> {
        Ok(Self {
            served,
            wanted: Wanted::new(config.top_k, config.min_probability)?,
            smoothing: Smoothing::new(convert::half_life(config.smoothing)?),
            fps: RateMeter::new(Instant::now()),
            answers,
        })
    }

    /// Answers one frame; a frame that failed gets its error, and the stream goes on.
    async fn answer(
        &mut self,
        stamp: Stamp,
        outcome: Result<crate::scheduler::Reply, CallError>,
        dropped_frames: u64,
    ) -> Result<(), CallError> {
        use stream_classify_response::Outcome as Wire;
        let (outcome, stages) = match outcome {
            Ok(reply) => {
                let probabilities = self.smoothing.update(softmax(&reply.logits), stamp.captured_at);
                let classifications = self.wanted.classifications(probabilities, &self.served);
                self.served.metrics.frame(FrameOutcome::Classified);
                (Wire::Result(Classifications { classifications }), reply.stages)
            }
            Err(error @ CallError::Job(JobError::Abandoned)) => return Err(error),
            Err(error) => {
                self.served.metrics.frame(FrameOutcome::Failed);
                (Wire::Error(FrameError { code: error.code() as i32, message: error.message() }), Default::default())
            }
        };
        self.fps.add(1);
        let response = StreamClassifyResponse {
            frame_id: stamp.id,
            outcome: Some(outcome),
            dropped_frames,
            fps: self.fps.rate() as f32,
            timing: Some(convert::timing(stages, stamp.arrived)),
        };
        // A caller that has gone is noticed by `run`.
        let _ = self.answers.send(Ok(response)).await;
        Ok(())
    }
}
