//! `StreamClassify`: frames in, answers out, under both frame policies and in bounded memory.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tonic::{Status, Streaming};

use super::{
    answers::{Options, Wanted},
    convert,
    slot::Slot,
};
use crate::{
    answer::Smoothing,
    budget::Reservation,
    grpc::{
        call::{
            Call,
            context::Context,
            memory::MessageMemory,
            record::{CallRecord, FrameRecord},
            status::CallError,
        },
        stream::{both, supervise},
    },
    image::{Region, Source},
    metrics::{
        FrameOutcome, ModelMetrics, RateMeter,
        statistics::{RequestKind, Stages},
    },
    proto::{
        Frame, FrameError, FramePolicy, StreamClassifyRequest, StreamClassifyResponse,
        StreamConfig, stream_classify_request::Message, stream_classify_response,
    },
    registry::Served,
    scheduler::{InputImage, Job, JobError, Outcome, Output, Reply},
    state::{NotReady, StateCell},
    telemetry::context::SpanContext,
};

type Answers = mpsc::Sender<Result<StreamClassifyResponse, Status>>;

/// A stream whose config does not arrive within this time is ended.
const CONFIG_TIMEOUT: Duration = Duration::from_secs(10);
/// How many frames of a stream under `FRAME_POLICY_EVERY` may be in flight.
const MAX_FRAMES_IN_FLIGHT: usize = 4;

pub(super) async fn run(
    context: Arc<Context>,
    inbound: Streaming<StreamClassifyRequest>,
    call: Call,
    answers: Answers,
) {
    let record = Arc::clone(&call.record);
    let work = answer_all(&context, inbound, call, &answers);
    supervise(&record, &answers, work).await;
}

async fn answer_all(
    context: &Context,
    mut inbound: Streaming<StreamClassifyRequest>,
    call: Call,
    answers: &Answers,
) -> Result<(), CallError> {
    // A stream counts against the limit before its config has arrived.
    let _place = context.stream_place(call.holder.clone())?;
    let config = config(&mut inbound, &context.state).await?;
    drop(call.memory.take());
    let served = context.model(&config.model, &call.record)?;
    let _open = served.metrics.stream();
    let policy = FramePolicy::try_from(config.policy).map_err(|_| {
        CallError::Invalid(format!(
            "the frame policy {} is unknown; send EVERY or LATEST",
            config.policy
        ))
    })?;

    let record = Arc::clone(&call.record);
    let answerer = Answerer::new(
        Arc::clone(&served),
        &config,
        answers.clone(),
        Arc::clone(&record),
    )?;
    let source = FrameSource {
        inbound,
        state: context.state.clone(),
        metrics: Arc::clone(&served.metrics),
        memory: call.memory.clone(),
        record,
        regions: convert::regions(&config.regions)?,
        crop_bytes: served.geometry.bytes(),
    };
    let submitter = Submitter {
        context,
        model: served.name.clone(),
        call,
        wants_embedding: answerer.wanted.wants_embedding(),
    };
    match policy {
        FramePolicy::Unspecified | FramePolicy::Every => {
            answer_every(source, answerer, submitter, served.queue.parallelism()).await
        }
        FramePolicy::Latest => answer_latest(source, answerer, submitter).await,
    }
}

/// Waits for the stream's config, which must be its first message.
async fn config(
    inbound: &mut Streaming<StreamClassifyRequest>,
    state: &StateCell,
) -> Result<StreamConfig, CallError> {
    let Ok(message) = timeout(CONFIG_TIMEOUT, next_message(inbound, state)).await else {
        return Err(CallError::Invalid(format!(
            "the stream's config did not arrive within {CONFIG_TIMEOUT:?}"
        )));
    };
    match message? {
        Some(Message::Config(config)) => Ok(config),
        Some(Message::Frame(_)) => Err(CallError::Invalid(
            "the first message of a stream must be its config, not a frame".into(),
        )),
        None => Err(CallError::Invalid(
            "the stream ended before its config".into(),
        )),
    }
}

/// The next message; `None` when the caller has sent all of its messages.
async fn next_message(
    inbound: &mut Streaming<StreamClassifyRequest>,
    state: &StateCell,
) -> Result<Option<Message>, CallError> {
    let message = tokio::select! {
        message = inbound.message() => message?,
        () = state.draining() => return Err(NotReady::Draining.into()),
    };
    match message {
        None => Ok(None),
        Some(StreamClassifyRequest {
            message: Some(message),
        }) => Ok(Some(message)),
        Some(StreamClassifyRequest { message: None }) => Err(CallError::Invalid(
            "a message of the stream is neither a config nor a frame".into(),
        )),
    }
}

/// Puts frames into the queue of the model's newest version. A stream outlives versions of its
/// model.
struct Submitter<'a> {
    context: &'a Context,
    model: String,
    call: Call,
    wants_embedding: bool,
}

/// A frame in the queue, and the version of the model that answers it.
struct Submitted {
    served: Arc<Served>,
    outcome: oneshot::Receiver<Outcome>,
}

impl Submitter<'_> {
    /// `frame` has the image and its regions, if it is known already which frame is taken.
    fn submit(
        &self,
        span: SpanContext,
        frame: Option<(&Source, &[Region])>,
        fetch: impl FnOnce() -> Option<InputImage> + Send + 'static,
    ) -> Result<Submitted, CallError> {
        let served = self.newest()?;
        let timing = self.call.timing;
        let job = Job {
            client: self.call.client,
            priority: timing.priority,
            called: timing.arrived,
            deadline: timing.deadline,
            counted: false,
            decode_estimate: frame.map(|(source, regions)| served.queue.estimate(source, regions)),
            crops: frame.map_or(1, |(_, regions)| regions.len().max(1)),
            wants_embedding: self.wants_embedding,
            fetch: Box::new(fetch),
            span: Some(span),
            kind: RequestKind::Contract,
        };
        let outcome = served.queue.submit(job)?;
        Ok(Submitted { served, outcome })
    }

    /// The span of the next frame.
    fn span(&self) -> SpanContext {
        self.call.record.trace().frame()
    }

    fn newest(&self) -> Result<Arc<Served>, CallError> {
        let entry = self.context.registry.find(&self.model)?;
        self.context.newest(&entry)
    }
}

impl Submitted {
    async fn outcome(self) -> (Arc<Served>, Outcome) {
        // A scheduler that stops drops the sender.
        let outcome = self.outcome.await.unwrap_or(Err(JobError::Abandoned));
        (self.served, outcome)
    }
}

/// Reads the frames of a stream.
struct FrameSource {
    inbound: Streaming<StreamClassifyRequest>,
    state: StateCell,
    metrics: Arc<ModelMetrics>,
    memory: MessageMemory,
    record: Arc<CallRecord>,
    /// Of frames that have none of their own.
    regions: Arc<[Region]>,
    /// The size of a crop.
    crop_bytes: usize,
}

impl FrameSource {
    async fn next(&mut self) -> Result<Option<Incoming>, CallError> {
        match next_message(&mut self.inbound, &self.state).await? {
            None => Ok(None),
            Some(Message::Frame(frame)) => {
                let memory = self.memory.take();
                let mut incoming = Incoming::new(frame, memory, &self.regions);
                let bytes = incoming.image.as_ref().map_or(0, Source::bytes);
                self.metrics.received(bytes);
                self.record.received(bytes);
                let crops = incoming.regions.len();
                match self.memory.crops_later(crops, self.crop_bytes).await {
                    Ok(held) => incoming.crops = held,
                    Err(never) => incoming.image = Err(never.into()),
                }
                Ok(Some(incoming))
            }
            Some(Message::Config(_)) => Err(CallError::Invalid(
                "the config of a stream comes once, as its first message".into(),
            )),
        }
    }
}

/// A frame that has arrived.
struct Incoming {
    stamp: FrameStamp,
    image: Result<Source, CallError>,
    regions: Arc<[Region]>,
    /// The memory of its message, and that of its crops, held until the frame is answered or dropped.
    memory: Option<Reservation>,
    crops: Option<Reservation>,
}

/// What an answer needs to know of its frame.
#[derive(Clone, Copy)]
struct FrameStamp {
    id: u64,
    /// In seconds since 1970, if the sender gives it.
    captured_at: Option<f64>,
    arrived: Instant,
    has_regions: bool,
    /// Whether these are the frame's own, not those of the stream.
    own_regions: bool,
}

impl FrameStamp {
    /// By the capture times if they increase, else by the times of arrival.
    fn seconds_since(self, earlier: Self) -> f64 {
        let captured = self.captured_at.unwrap_or(0.0) - earlier.captured_at.unwrap_or(0.0);
        if captured > 0.0 {
            captured
        } else {
            (self.arrived - earlier.arrived).as_secs_f64()
        }
    }
}

impl Incoming {
    /// `usual` are the regions of frames without any of their own.
    fn new(frame: Frame, memory: Option<Reservation>, usual: &Arc<[Region]>) -> Self {
        let own_regions = !frame.regions.is_empty();
        let regions = if own_regions {
            convert::regions(&frame.regions)
        } else {
            Ok(Arc::clone(usual))
        };
        let (regions, wrong) = match regions {
            Ok(regions) => (regions, None),
            Err(error) => ([].into(), Some(error)),
        };
        let captured_at = convert::captured_at(frame.captured_at);
        let stamp = FrameStamp {
            id: frame.id,
            captured_at,
            arrived: Instant::now(),
            has_regions: !regions.is_empty(),
            own_regions,
        };
        Self {
            stamp,
            image: wrong.map_or_else(|| convert::source(frame.image), Err),
            regions,
            memory,
            crops: None,
        }
    }
}

/// Answers every frame in order. Only a few are in flight at once; meanwhile no other is read, and
/// HTTP/2 flow control slows the sender down.
async fn answer_every(
    mut source: FrameSource,
    mut answerer: Answerer,
    submitter: Submitter<'_>,
    parallelism: usize,
) -> Result<(), CallError> {
    // Enough that no engine waits for the network, few enough to bound memory.
    let in_flight = parallelism.min(MAX_FRAMES_IN_FLIGHT);
    let (pending, mut in_order) = mpsc::channel(in_flight);
    let read = async move {
        while let Some(incoming) = source.next().await? {
            let Incoming {
                stamp,
                image,
                regions,
                memory,
                crops,
            } = incoming;
            let arrived = stamp.arrived;
            let span = submitter.span();
            let submitted = match image {
                Ok(source) => {
                    let frame = (&source.clone(), &*Arc::clone(&regions));
                    Ok(submitter.submit(span, Some(frame), move || {
                        Some(InputImage {
                            source,
                            regions,
                            arrived,
                            mirrored: false,
                        })
                    })?)
                }
                Err(error) => Err(error),
            };
            if pending
                .send((stamp, span, submitted, (memory, crops)))
                .await
                .is_err()
            {
                break;
            }
        }
        Ok(())
    };

    // Owns the receiver, so that reading ends when answering fails.
    let answer = async move {
        while let Some((stamp, span, submitted, memory)) = in_order.recv().await {
            let outcome = match submitted {
                Ok(submitted) => {
                    let (served, outcome) = submitted.outcome().await;
                    answerer.follow(served)?;
                    outcome.map_err(CallError::from)
                }
                Err(error) => Err(error),
            };
            drop(memory);
            answerer.answer(stamp, span, outcome, 0).await?;
        }
        Ok(())
    };
    both(read, answer).await
}

/// Answers the newest frame only: it waits in a slot of one, where a newer one replaces it.
async fn answer_latest(
    mut source: FrameSource,
    mut answerer: Answerer,
    submitter: Submitter<'_>,
) -> Result<(), CallError> {
    let metrics = Arc::clone(&answerer.served.metrics);
    let slot = Arc::new(Slot::default());
    let read = async {
        let ended = loop {
            match source.next().await {
                Ok(Some(frame)) => {
                    if slot.put(frame) {
                        metrics.frame(FrameOutcome::Dropped);
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
            let from = Arc::clone(&slot);
            let span = submitter.span();
            let submitted = submitter.submit(span, None, move || {
                let Incoming {
                    stamp,
                    image,
                    regions,
                    memory,
                    crops,
                } = from.take()?;
                let (source, error) = match image {
                    Ok(source) => (Some(source), None),
                    Err(error) => (None, Some(error)),
                };
                // The stream may have ended meanwhile.
                let _ = taken.send((stamp, error, (memory, crops)));
                Some(InputImage {
                    source: source?,
                    regions,
                    arrived: stamp.arrived,
                    mirrored: false,
                })
            })?;
            let (served, outcome) = submitted.outcome().await;
            answerer.follow(served)?;
            // Without a stamp no frame was taken: the scheduler has stopped, or the deadline has
            // passed.
            let Ok((stamp, error, memory)) = stamp.await else {
                return Err(outcome.err().unwrap_or(JobError::Abandoned).into());
            };
            drop(memory);
            let outcome = error.map_or(outcome.map_err(CallError::from), Err);
            answerer
                .answer(stamp, span, outcome, slot.dropped())
                .await?;
        }
        Ok(())
    };
    both(read, answer).await
}

/// Turns outcomes into the stream's answers.
struct Answerer {
    served: Arc<Served>,
    options: Options,
    /// The options for this version of the model.
    wanted: Wanted,
    half_life: f64,
    /// Of each of the stream's regions, or of the whole frame.
    smoothing: Vec<Smoothing>,
    last: Option<FrameStamp>,
    fps: RateMeter,
    answers: Answers,
    record: Arc<CallRecord>,
}

impl Answerer {
    fn new(
        served: Arc<Served>,
        config: &StreamConfig,
        answers: Answers,
        record: Arc<CallRecord>,
    ) -> Result<Self, CallError> {
        let half_life = convert::half_life(config.smoothing)?;
        let options = Options {
            top_k: config.top_k,
            min_probability: config.min_probability,
            want_embedding: config.want_embedding,
            normalize_embedding: config.normalize_embedding,
            allow_labels: config.allow_labels.clone(),
            deny_labels: config.deny_labels.clone(),
        };
        Ok(Self {
            wanted: Wanted::new(&options, &served)?,
            served,
            options,
            half_life,
            smoothing: Vec::new(),
            last: None,
            fps: RateMeter::new(Instant::now()),
            answers,
            record,
        })
    }

    /// Notes which version of the model classified the next frame. Probabilities of different
    /// versions are not smoothed together.
    ///
    /// # Errors
    /// When that version can't fulfil the stream's options.
    fn follow(&mut self, served: Arc<Served>) -> Result<(), CallError> {
        if !Arc::ptr_eq(&self.served, &served) {
            self.wanted = Wanted::new(&self.options, &served)?;
            self.served = served;
            self.smoothing.clear();
        }
        Ok(())
    }

    /// The probabilities of each output of a frame, smoothed.
    fn probabilities(&mut self, stamp: FrameStamp, outputs: &[Output]) -> Vec<Vec<f32>> {
        let activation = self.served.activation;
        let probabilities = outputs
            .iter()
            .map(|output| activation.probabilities(&output.logits));
        if stamp.own_regions {
            return probabilities.collect();
        }
        let elapsed = self
            .last
            .replace(stamp)
            .map_or(0.0, |last| stamp.seconds_since(last));
        let half_life = self.half_life;
        self.smoothing
            .resize_with(outputs.len(), || Smoothing::new(half_life));
        probabilities
            .zip(&mut self.smoothing)
            .map(|(probabilities, smoothing)| smoothing.update(probabilities, elapsed).to_vec())
            .collect()
    }

    /// Answers one frame. A frame that failed gets its error, and the stream goes on.
    async fn answer(
        &mut self,
        stamp: FrameStamp,
        span: SpanContext,
        outcome: Result<Reply, CallError>,
        dropped_frames: u64,
    ) -> Result<(), CallError> {
        use stream_classify_response::Outcome as Wire;
        if let Err(error @ CallError::Job(JobError::Abandoned)) = outcome {
            return Err(error);
        }
        self.record.frame(FrameRecord {
            id: stamp.id,
            arrived: stamp.arrived,
            span,
            answer: outcome.as_ref(),
        });
        let (outcome, stages) = match outcome {
            Ok(reply) => {
                let probabilities = self.probabilities(stamp, &reply.outputs);
                let answer = self.wanted.answer(
                    &reply.outputs,
                    &probabilities,
                    stamp.has_regions,
                    &self.served,
                );
                self.served.metrics.frame(FrameOutcome::Classified);
                (Wire::Result(answer), reply.stages)
            }
            Err(error) => {
                self.served.metrics.frame(FrameOutcome::Failed);
                (
                    Wire::Error(FrameError {
                        code: error.code() as i32,
                        message: error.message(),
                    }),
                    Stages::default(),
                )
            }
        };
        self.fps.add(1);
        self.served.metrics.frame_answered(stamp.arrived.elapsed());
        let response = StreamClassifyResponse {
            frame_id: stamp.id,
            outcome: Some(outcome),
            dropped_frames,
            fps: self.fps.rate() as f32,
            timing: Some(convert::timing(stages, stamp.arrived)),
        };
        // `supervise` notices a caller that has gone.
        let _ = self.answers.send(Ok(response)).await;
        Ok(())
    }
}
