//! Video streams: sends the frames of a video to a server and matches the answers to them.
//!
//! [`run_stream`] sends frames as fast as the connection accepts them and reports each answer.
//! When frames arrive faster than they are classified, [`FramePolicy::Latest`] drops the older
//! ones, so that answers stay current, and [`FramePolicy::Every`] slows down the reading.
//!
//! # Example
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use resnet18_server::{
//!     client::{
//!         self, Server,
//!         stream::{FrameOutcome, StreamEvent, StreamOptions, run_stream},
//!         video::{VideoOptions, VideoReader, VideoSource},
//!     },
//!     proto::FramePolicy,
//! };
//! use tokio::sync::watch;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let server: Server = "http://127.0.0.1:8001".parse()?;
//! let client = client::connect(&server).await?;
//! let source = VideoSource::File("birds.mp4".into());
//! let video = VideoReader::open(&VideoOptions::new(source)).await?;
//!
//! let options = StreamOptions {
//!     policy: FramePolicy::Every,
//!     smoothing: Duration::from_millis(500),
//!     ..StreamOptions::new(server)
//! };
//! // Sending `true` would end the stream early.
//! let (_stop, stopped) = watch::channel(false);
//! let result = run_stream(&options, client, video, stopped, |event| {
//!     if let StreamEvent::Answer(answer) = event
//!         && let FrameOutcome::Classes(classes) = answer.outcome
//!     {
//!         println!("frame {}: {}", answer.frame_id, classes[0].label);
//!     }
//! })
//! .await;
//! println!("{:.1} frames/s", result.summary.mean_fps);
//! # Ok(())
//! # }
//! ```

use std::{
    collections::VecDeque,
    error::Error,
    future,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use futures_util::{Stream, StreamExt, stream};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status, Streaming};

use super::{
    Client, ClientError, Server,
    error::explain_size,
    retry::backoff,
    video::{SourceLost, VideoError, VideoFrame, VideoReader},
};
use crate::{
    proto::{
        Classification, Frame, FramePolicy, StreamClassifyRequest, StreamClassifyResponse,
        StreamConfig, Timing, stream_classify_request::Message, stream_classify_response::Outcome,
    },
    sync,
};

mod slot;
mod summary;

use self::summary::Tally;
pub use self::{
    slot::FrameSlot,
    summary::{LabelShare, StreamSummary},
};

/// How many sent frames are remembered until they are answered. An answer to an older frame has no
/// latency.
const REMEMBERED_FRAMES: usize = 4096;

/// How long answers are still awaited after the caller has stopped the stream.
const DRAIN_TIME: Duration = Duration::from_secs(3);

/// How often in a row a lost connection is re-established; with the backoff about 15 s in all.
const RECONNECTS: u32 = 10;

/// How long a server may be silent after the last frame was sent.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);

/// How a video is classified.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// The server; [`run_stream`] names its address in errors.
    pub server: Server,
    /// The model's name; empty for the server's default model.
    pub model: String,
    /// How many classes to return for each frame; 0 for the server's default, 5.
    pub top_k: u32,
    /// What happens to frames that arrive faster than they are classified.
    pub policy: FramePolicy,
    /// The half-life of the exponential moving average over the frames' probabilities; zero for no
    /// smoothing.
    pub smoothing: Duration,
    /// Whether to reconnect after the connection was lost. The frames that were sent but not yet
    /// answered are not sent again.
    pub reconnect: bool,
}

impl StreamOptions {
    /// The default model and number of classes, the newest frame first, without smoothing and
    /// without reconnecting.
    pub fn new(server: Server) -> Self {
        Self {
            server,
            model: String::new(),
            top_k: 0,
            policy: FramePolicy::Latest,
            smoothing: Duration::ZERO,
            reconnect: false,
        }
    }
}

/// An event on a stream.
#[derive(Debug)]
pub enum StreamEvent {
    /// The server answered a frame.
    Answer(FrameAnswer),
    /// The connection was lost, for this reason, and is being re-established.
    Reconnecting(Status),
    /// The camera or URL was lost and will be opened again.
    SourceLost(SourceLost),
}

/// The server's answer to a frame.
#[derive(Clone, Debug)]
pub struct FrameAnswer {
    /// The frame's number, from 0.
    pub frame_id: u64,
    /// Its classes, or why it has none.
    pub outcome: FrameOutcome,
    /// The time from reading the frame to its answer; `None` if the frame is no longer remembered,
    /// because more than 4096 were sent after it.
    pub latency: Option<Duration>,
    /// When the frame was captured; `None` as for `latency`.
    pub captured_at: Option<SystemTime>,
    /// The frame rate that the server currently measures on this stream, in frames per second.
    pub fps: f32,
    /// How long the server took for each stage.
    pub timing: Option<Timing>,
    /// How many frames the server has dropped so far.
    pub dropped_by_server: u64,
    /// How many frames have been replaced by newer ones before they could be sent, so far.
    pub dropped_by_client: u64,
}

/// Whether a frame was classified.
#[derive(Clone, Debug)]
pub enum FrameOutcome {
    /// The most probable classes, best first.
    Classes(Vec<Classification>),
    /// The frame could not be classified.
    Failed {
        /// The gRPC status code.
        code: Code,
        /// The server's explanation.
        message: String,
    },
}

/// How a stream ended: the summary, and the errors that ended it, if any.
#[derive(Debug)]
pub struct StreamResult {
    /// Frame counts, latencies and labels.
    pub summary: StreamSummary,
    /// Why the video could not be read to its end; `None` if it was, or if the stream ended first.
    pub video_error: Option<VideoError>,
    /// Why the server ended the stream, or why the connection could not be kept up.
    pub server_error: Option<ClientError>,
}

/// Classifies a video until it ends, the server ends the stream, or `stop` becomes true.
///
/// Each answer, each reconnection and each loss of the source is passed to `on_event`. After `stop` the answers to
/// frames that were already sent are awaited for up to 3 s. Errors do not discard what was
/// measured: they are part of the result.
pub async fn run_stream(
    options: &StreamOptions,
    client: Client,
    video: VideoReader,
    stop: watch::Receiver<bool>,
    on_event: impl FnMut(StreamEvent),
) -> StreamResult {
    let slot = Arc::new(FrameSlot::new(options.policy));
    let (lost, mut losses) = mpsc::unbounded_channel();
    let reader = tokio::spawn(read_frames(video, slot.clone(), stop.clone(), lost));
    let on_event = Mutex::new(on_event);
    let emit = |event| (*sync::lock(&on_event))(event);
    let mut on_answer = &emit;
    let mut source_reconnects = 0;
    let mut session = StreamSession {
        options,
        client,
        slot,
        sent: Arc::default(),
        tally: Tally::new(),
        dropped_before: 0,
        dropped_now: 0,
    };
    let ended = tokio::select! {
        ended = session.run(&mut on_answer) => ended,
        () = drained(stop) => Ok(()),
        () = async {
            while let Some(loss) = losses.recv().await {
                source_reconnects += 1;
                emit(StreamEvent::SourceLost(loss));
            }
            future::pending::<()>().await;
        } => Ok(()),
    };

    session.slot.close();
    if ended.is_err() {
        // It may be waiting for a camera that delivers no frames.
        reader.abort();
    }

    let video_error = reader.await.unwrap_or(Ok(())).err();
    let server_error = ended.err().map(|status| ClientError::Refused {
        server: options.server.address.clone(),
        status: status.into(),
    });

    let dropped_by_server = session.dropped_before + session.dropped_now;
    let sent = session.sent().count;
    let summary = session
        .tally
        .summary(sent, dropped_by_server, session.slot.replaced());
    StreamResult {
        summary: StreamSummary {
            source_reconnects,
            ..summary
        },
        video_error,
        server_error,
    }
}

/// Completes `DRAIN_TIME` after the stream was stopped, when the last answers should have arrived.
/// Without a stop it never completes.
async fn drained(mut stop: watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        future::pending::<()>().await;
    }
    sleep(DRAIN_TIME).await;
}

/// Moves frames from the video to the slot, until either ends or `stop` becomes true.
async fn read_frames(
    mut video: VideoReader,
    slot: Arc<FrameSlot<VideoFrame>>,
    mut stop: watch::Receiver<bool>,
    lost: mpsc::UnboundedSender<SourceLost>,
) -> Result<(), VideoError> {
    let on_lost = |loss| {
        // The stream may have ended; then nobody wants to know.
        let _ = lost.send(loss);
    };
    let read = async {
        while let Some(frame) = video.next_persistently(on_lost).await? {
            if !slot.put(frame).await {
                break;
            }
        }
        Ok(())
    };
    let result = tokio::select! {
        result = read => result,
        Ok(_) = stop.wait_for(|stop| *stop) => Ok(()),
    };
    slot.close();
    result
}

/// The frames that were sent but not yet answered.
#[derive(Debug, Default)]
struct SentFrames {
    /// How many frames were sent in all; the next frame's number.
    count: u64,
    /// Oldest first.
    waiting: VecDeque<SentFrame>,
}

#[derive(Clone, Copy, Debug)]
struct SentFrame {
    id: u64,
    read_at: Instant,
    captured_at: SystemTime,
}

impl SentFrames {
    /// Records that a frame is being sent, and returns the number assigned to it.
    fn push(&mut self, frame: &VideoFrame) -> u64 {
        let id = self.count;
        self.count += 1;
        if self.waiting.len() == REMEMBERED_FRAMES {
            self.waiting.pop_front();
        }
        self.waiting.push_back(SentFrame {
            id,
            read_at: frame.read_at,
            captured_at: frame.captured_at,
        });
        id
    }

    /// Removes and returns the frame with this number. Answers arrive in order, so frames before it
    /// will not be answered any more and are removed too.
    fn answered(&mut self, id: u64) -> Option<SentFrame> {
        while self.waiting.front()?.id < id {
            self.waiting.pop_front();
        }
        self.waiting.pop_front_if(|frame| frame.id == id)
    }
}

/// One run of [`run_stream`], possibly over several connections.
struct StreamSession<'a> {
    options: &'a StreamOptions,
    client: Client,
    slot: Arc<FrameSlot<VideoFrame>>,
    sent: Arc<Mutex<SentFrames>>,
    tally: Tally,
    /// Frames that the server dropped on the connections before this one.
    dropped_before: u64,
    /// Frames that the server has dropped on this connection.
    dropped_now: u64,
}

impl StreamSession<'_> {
    /// Runs one connection after another until all frames are answered.
    async fn run(&mut self, on_event: &mut impl FnMut(StreamEvent)) -> Result<(), Status> {
        let mut attempt = 0;
        loop {
            let mut answers = 0_u64;
            let status = match self.run_connection(&mut answers, on_event).await {
                Ok(()) => return Ok(()),
                Err(status) => explain_size(status),
            };
            if answers > 0 {
                attempt = 0;
            }

            // A status with a source is tonic's report of a broken connection.
            let lost = status.code() == Code::Unavailable || status.source().is_some();
            if !self.options.reconnect || !lost || attempt == RECONNECTS || self.slot.is_finished()
            {
                return Err(status);
            }

            on_event(StreamEvent::Reconnecting(status));
            sleep(backoff(attempt + 1)).await;
            attempt += 1;

            self.dropped_before += self.dropped_now;
            self.dropped_now = 0;
            self.sent().waiting.clear();
        }
    }

    /// Runs one call until all frames are answered, and counts its answers in `answers` even if it
    /// fails.
    async fn run_connection(
        &mut self,
        answers: &mut u64,
        on_event: &mut impl FnMut(StreamEvent),
    ) -> Result<(), Status> {
        let requests = requests(self.options, self.slot.clone(), self.sent.clone());
        let mut responses = self.client.stream_classify(requests).await?.into_inner();
        while let Some(response) = next_response(&mut responses, &self.slot).await? {
            *answers += 1;
            let answer = self.answer(response);
            self.tally.add(&answer);
            on_event(StreamEvent::Answer(answer));
        }
        if self.slot.is_finished() {
            Ok(())
        } else {
            Err(Status::unavailable("the server ended the stream"))
        }
    }

    fn answer(&mut self, response: StreamClassifyResponse) -> FrameAnswer {
        let sent = self.sent().answered(response.frame_id);
        self.dropped_now = response.dropped_frames;
        FrameAnswer {
            frame_id: response.frame_id,
            outcome: match response.outcome {
                Some(Outcome::Result(result)) => FrameOutcome::Classes(result.classifications),
                Some(Outcome::Error(error)) => FrameOutcome::Failed {
                    code: Code::from_i32(error.code),
                    message: error.message,
                },
                None => FrameOutcome::Failed {
                    code: Code::Unknown,
                    message: "the answer is empty".into(),
                },
            },
            latency: sent.map(|frame| frame.read_at.elapsed()),
            captured_at: sent.map(|frame| frame.captured_at),
            fps: response.fps,
            timing: response.timing,
            dropped_by_server: self.dropped_before + self.dropped_now,
            dropped_by_client: self.slot.replaced(),
        }
    }

    fn sent(&self) -> MutexGuard<'_, SentFrames> {
        sync::lock(&self.sent)
    }
}

/// Waits for the next answer. Once the last frame was sent, a server that neither answers nor ends
/// the stream for `LONGEST_SILENCE` is an error.
async fn next_response(
    responses: &mut Streaming<StreamClassifyResponse>,
    slot: &FrameSlot<VideoFrame>,
) -> Result<Option<StreamClassifyResponse>, Status> {
    let mut next = pin!(responses.message());
    loop {
        match timeout(LONGEST_SILENCE, &mut next).await {
            Ok(result) => return result,
            Err(_) if slot.is_finished() => {
                return Err(Status::deadline_exceeded(
                    "the last frames were not answered",
                ));
            }
            // A live source may deliver frames as rarely as it likes.
            Err(_) => {}
        }
    }
}

/// The request messages of a call: the configuration, then each frame as soon as the connection
/// accepts it.
fn requests(
    options: &StreamOptions,
    slot: Arc<FrameSlot<VideoFrame>>,
    sent: Arc<Mutex<SentFrames>>,
) -> impl Stream<Item = StreamClassifyRequest> + Send + 'static {
    let config = StreamConfig {
        model: options.model.clone(),
        top_k: options.top_k,
        min_probability: 0.0,
        policy: options.policy.into(),
        smoothing: prost_types::Duration::try_from(options.smoothing)
            .ok()
            .filter(|_| !options.smoothing.is_zero()),
        ..StreamConfig::default()
    };
    let frames = stream::unfold((slot, sent), |(slot, sent)| async move {
        let frame = slot.take().await?;
        let id = sync::lock(&sent).push(&frame);
        let message = Message::Frame(Frame {
            id,
            captured_at: Some(frame.captured_at.into()),
            image: Some(frame.image),
            regions: Vec::new(),
        });
        Some((message, (slot, sent)))
    });
    stream::once(future::ready(Message::Config(config)))
        .chain(frames)
        .map(|message| StreamClassifyRequest {
            message: Some(message),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Image;

    fn frame() -> VideoFrame {
        VideoFrame {
            image: Image::default(),
            captured_at: SystemTime::UNIX_EPOCH,
            read_at: Instant::now(),
        }
    }

    #[test]
    fn answers_find_their_frames() {
        let mut sent = SentFrames::default();
        for id in 0..5 {
            assert_eq!(sent.push(&frame()), id);
        }
        assert_eq!(sent.answered(0).unwrap().id, 0);
        // Frames 1 and 2 were dropped by the server.
        assert_eq!(sent.answered(3).unwrap().id, 3);
        assert!(sent.answered(2).is_none() && sent.answered(9).is_none());
        assert!(sent.waiting.is_empty());
    }

    #[test]
    fn the_oldest_frames_are_forgotten() {
        let mut sent = SentFrames::default();
        for _ in 0..REMEMBERED_FRAMES + 10 {
            sent.push(&frame());
        }
        assert_eq!(sent.waiting.len(), REMEMBERED_FRAMES);
        assert!(sent.answered(9).is_none() && sent.answered(10).is_some());
    }
}
