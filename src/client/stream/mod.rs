//! Sends the frames of a video to a server and matches the answers to them.

use std::{
    collections::VecDeque,
    error::Error,
    future,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::{Stream, StreamExt, stream};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status, Streaming};

use super::{
    Client, ClientError, Server,
    retry::backoff,
    video::{VideoError, VideoFrame, VideoReader},
};
use crate::proto::{
    Classification, Frame, FramePolicy, StreamClassifyRequest, StreamClassifyResponse,
    StreamConfig, Timing, stream_classify_request::Message, stream_classify_response::Outcome,
};

mod slot;
mod summary;

pub use slot::FrameSlot;
use summary::Tally;
pub use summary::{LabelShare, StreamSummary};

/// Sent frames that are remembered until their answers come; of older ones the latency isn't known.
const REMEMBERED_FRAMES: usize = 4096;
/// How long answers may still come once no more frames are sent on the user's request.
const DRAIN_TIME: Duration = Duration::from_secs(3);
/// How often in a row a lost connection is made anew, over about 15 s.
const RECONNECTS: u32 = 10;

/// How a video is classified.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// The server.
    pub server: Server,
    /// The model's name; empty = the server's default model.
    pub model: String,
    /// Classes for each frame; 0 = 5.
    pub top_k: u32,
    /// What happens to frames that come faster than they are classified.
    pub policy: FramePolicy,
    /// Half-life of the mean over the frames; zero = none.
    pub smoothing: Duration,
    /// Go on when the connection is lost, without the frames that were on their way.
    pub reconnect: bool,
}

/// What happens on a stream.
#[derive(Debug)]
pub enum StreamEvent {
    /// A frame came back.
    Answer(FrameAnswer),
    /// The connection was lost and is made anew.
    Reconnecting(Status),
}

/// What the server says about a frame.
#[derive(Clone, Debug)]
pub struct FrameAnswer {
    /// The frame's number, from 0.
    pub frame_id: u64,
    /// Its classes.
    pub outcome: FrameOutcome,
    /// From reading the frame to its answer.
    pub latency: Option<Duration>,
    /// When the frame was taken.
    pub captured_at: Option<SystemTime>,
    /// Frames answered a second, lately.
    pub fps: f32,
    /// Where the server's time went.
    pub timing: Option<Timing>,
    /// Frames that the server has dropped so far.
    pub dropped_by_server: u64,
    /// Frames that were replaced before they could be sent, so far.
    pub dropped_by_client: u64,
}

/// Whether a frame was classified.
#[derive(Clone, Debug)]
pub enum FrameOutcome {
    /// The most probable classes, best first.
    Classes(Vec<Classification>),
    /// The frame could not be classified.
    Failed {
        /// What kind of error it is.
        code: Code,
        /// The server's explanation.
        message: String,
    },
}

/// How a stream ended: what became of the frames, and what went wrong.
#[derive(Debug)]
pub struct StreamResult {
    /// The frames, counted.
    pub summary: StreamSummary,
    /// Why the video could not be read to its end.
    pub video_error: Option<VideoError>,
    /// Why the server ended the stream.
    pub server_error: Option<ClientError>,
}

/// Classifies a video until it ends, the server ends the stream, or `stop` becomes true.
pub async fn run_stream(
    options: &StreamOptions,
    client: Client,
    video: VideoReader,
    stop: watch::Receiver<bool>,
    mut on_event: impl FnMut(StreamEvent),
) -> StreamResult {
    let slot = Arc::new(FrameSlot::new(options.policy));
    let reader = tokio::spawn(read_frames(video, slot.clone(), stop.clone()));
    let mut session = Session {
        options,
        client,
        slot,
        sent: Arc::default(),
        tally: Tally::new(),
        dropped_before: 0,
        dropped_now: 0,
    };
    let ended = tokio::select! {
        ended = session.run(&mut on_event) => ended,
        () = give_up(stop) => Ok(()),
    };
    session.slot.close();
    if ended.is_err() {
        // It may be waiting for a camera that has nothing to say.
        reader.abort();
    }
    let video_error = reader.await.unwrap_or(Ok(())).err();
    let server_error = ended.err().map(|status| ClientError::Refused {
        server: options.server.address.clone(),
        status: status.into(),
    });
    let dropped_by_server = session.dropped_before + session.dropped_now;
    let sent = session.sent().count;
    StreamResult {
        summary: session
            .tally
            .summary(sent, dropped_by_server, session.slot.replaced()),
        video_error,
        server_error,
    }
}

/// Completes some time after the user wants to stop, when the last answers should be there.
async fn give_up(mut stop: watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        future::pending::<()>().await;
    }
    sleep(DRAIN_TIME).await;
}

/// Moves frames from the video to the slot.
async fn read_frames(
    mut video: VideoReader,
    slot: Arc<FrameSlot<VideoFrame>>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), VideoError> {
    let read = async {
        while let Some(frame) = video.next().await? {
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

/// The frames that were sent, oldest first.
#[derive(Debug, Default)]
struct SentFrames {
    count: u64,
    waiting: VecDeque<SentFrame>,
}

#[derive(Clone, Copy, Debug)]
struct SentFrame {
    id: u64,
    read_at: Instant,
    captured_at: SystemTime,
}

impl SentFrames {
    /// Notes that a frame is sent and gives it a number.
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

    /// Finds the frame that an answer is for. Answers come in order: older frames won't be answered
    /// any more.
    fn answered(&mut self, id: u64) -> Option<SentFrame> {
        while self.waiting.front()?.id < id {
            self.waiting.pop_front();
        }
        self.waiting.pop_front_if(|frame| frame.id == id)
    }
}

struct Session<'a> {
    options: &'a StreamOptions,
    client: Client,
    slot: Arc<FrameSlot<VideoFrame>>,
    sent: Arc<Mutex<SentFrames>>,
    tally: Tally,
    dropped_before: u64,
    dropped_now: u64,
}

impl Session<'_> {
    /// Runs one connection after the other until all frames are answered.
    async fn run(&mut self, on_event: &mut impl FnMut(StreamEvent)) -> Result<(), Status> {
        let mut attempt = 0;
        loop {
            let mut answers = 0_u64;
            let Err(status) = self.connection(&mut answers, on_event).await else {
                return Ok(());
            };
            if answers > 0 {
                attempt = 0;
            }
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

    async fn connection(
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
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next answer. A server that neither answers nor ends the stream after the last frame isn't
/// waited for forever.
async fn next_response(
    responses: &mut Streaming<StreamClassifyResponse>,
    slot: &FrameSlot<VideoFrame>,
) -> Result<Option<StreamClassifyResponse>, Status> {
    const SILENCE: Duration = Duration::from_secs(30);
    let mut next = pin!(responses.message());
    loop {
        match timeout(SILENCE, &mut next).await {
            Ok(result) => return result,
            Err(_) if slot.is_finished() => {
                return Err(Status::deadline_exceeded(
                    "the last frames were not answered",
                ));
            }
            Err(_) => {}
        }
    }
}

/// The messages of a stream: the configuration, then each frame as soon as the connection takes it.
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
    };
    let frames = stream::unfold((slot, sent), |(slot, sent)| async move {
        let frame = slot.take().await?;
        let id = sent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(&frame);
        let message = Message::Frame(Frame {
            id,
            captured_at: Some(frame.captured_at.into()),
            image: Some(frame.image),
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
    fn only_so_many_frames_are_remembered() {
        let mut sent = SentFrames::default();
        for _ in 0..REMEMBERED_FRAMES + 10 {
            sent.push(&frame());
        }
        assert_eq!(sent.waiting.len(), REMEMBERED_FRAMES);
        assert!(sent.answered(9).is_none() && sent.answered(10).is_some());
    }
}
