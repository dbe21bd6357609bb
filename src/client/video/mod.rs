//! Reading frames from video files, cameras and network streams, through the `ffmpeg` program, and
//! from folders of images, without it.
//!
//! Frames of video are raw I420 pixels (8 bits a sample, BT.601, limited range), scaled down to
//! the size that the model needs, which is faster to send and to decode than an encoded image. If
//! asked for, they are JPEG files instead, which can be kept.
//! Images of a folder are the files as they are.
//!
//! ```no_run
//! use resnet18_server::client::video::{VideoOptions, VideoReader};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let source = "camera:0".parse()?;
//! let mut video = VideoReader::open(&VideoOptions::new(source)).await?;
//! while let Some(frame) = video.next().await? {
//!     println!("captured at {:?}", frame.captured_at);
//! }
//! # Ok(())
//! # }
//! ```

use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};

use crate::proto::Image;

mod directory;
mod ffmpeg;
mod mpjpeg;
mod source;
mod y4m;

use self::{directory::DirectoryFrames, ffmpeg::Ffmpeg};
pub use self::{mpjpeg::MpjpegError, source::VideoSource, y4m::Y4mError};

/// The pause before a source is opened again for the first time; it doubles after each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The frame rate of a source that doesn't say its own, in frames per second.
const DEFAULT_FPS: f64 = 25.0;

/// How a video is read.
#[derive(Clone, Debug)]
pub struct VideoOptions {
    /// Where the frames come from.
    pub source: VideoSource,
    /// The frame rate to convert to, in frames per second; `None` keeps the source's.
    pub fps: Option<f64>,
    /// Whether to deliver frames at the times when they would be shown, rather than as fast as they
    /// can be read. Live sources always do.
    pub real_time: bool,
    /// Whether to start over at the end. Live sources ignore it.
    pub repeat: bool,
    /// The length of the frames' shorter side in pixels. Larger frames are scaled down to it,
    /// smaller ones stay as they are. A model's `resize_shorter_side` is the best choice.
    pub shorter_side: u32,
    /// Whether frames of video are JPEG files rather than raw pixels.
    pub jpeg: bool,
    /// How long a camera or a URL may take for its first frame, and for each further one, before
    /// reading fails with [`VideoError::Silent`]; `None` means without limit.
    pub longest_silence: Option<Duration>,
    /// Whether a camera or a URL that ends, fails or falls silent is opened again. [`run_stream`]
    /// does so, with growing pauses of up to half a minute.
    ///
    /// [`run_stream`]: crate::client::stream::run_stream
    pub reconnect: bool,
    /// The `ffmpeg` program, as a path or a name to look up in `PATH`.
    pub ffmpeg: PathBuf,
}

impl VideoOptions {
    /// All frames of `source` once, as fast as they can be read, with 256 pixels on the shorter
    /// side: the size that ImageNet's ResNets are evaluated with. A camera or a URL may be silent
    /// for 15 s, and is not opened again.
    pub fn new(source: VideoSource) -> Self {
        Self {
            source,
            fps: None,
            real_time: false,
            repeat: false,
            shorter_side: 256,
            jpeg: false,
            longest_silence: Some(Duration::from_secs(15)),
            reconnect: false,
            ffmpeg: "ffmpeg".into(),
        }
    }

    /// The time limit for one frame; `None` means without limit. At a low rate, frames are far
    /// apart even if the source is not silent.
    fn frame_limit(&self) -> Option<Duration> {
        let limit = self.longest_silence.filter(|_| self.source.is_remote())?;
        let apart = match self.fps {
            Some(fps) => Duration::try_from_secs_f64(1.0 / fps).ok()?,
            None => Duration::ZERO,
        };
        limit.checked_add(apart)
    }
}

/// One frame of a video.
#[derive(Clone, Debug)]
pub struct VideoFrame {
    /// The pixels, or an image file.
    pub image: Image,
    /// When the frame was captured. For a file that is read faster than it would be shown, this
    /// advances with the video's own time.
    pub captured_at: SystemTime,
    /// When the frame was read; latencies are measured from here.
    pub read_at: Instant,
}

/// Why a video can't be read.
#[derive(Debug, Error)]
pub enum VideoError {
    /// There is no file, folder or device at that path.
    #[error("no such file, folder or device: {0}")]
    NotFound(PathBuf),
    /// The folder contains no images.
    #[error(
        "{0} holds no image files (jpg, png, webp, gif, bmp, tif, pnm, heic, avif, qoi, ico, tga)"
    )]
    NoImages(PathBuf),
    /// Standard input is a terminal, from which no video can be read.
    #[error("standard input is a terminal; pipe a video into it, or name a file")]
    Keyboard,
    /// A file or folder can't be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system reported, or that an image exceeds
        /// [`MAX_MESSAGE_BYTES`](crate::client::MAX_MESSAGE_BYTES).
        error: io::Error,
    },
    /// A camera or a URL delivered no frame for too long.
    #[error("{source_name} has sent no frame for {:.0} s", limit.as_secs_f64().ceil())]
    Silent {
        /// The source.
        source_name: String,
        /// How long a frame was awaited.
        limit: Duration,
    },
    /// A camera or a URL that is to be read for ever has ended.
    #[error("{source_name} has ended")]
    Ended {
        /// The source.
        source_name: String,
    },
    /// `ffmpeg` isn't installed.
    #[error(
        "video needs the program `{program}`, which isn't installed; {}",
        ffmpeg::INSTALL
    )]
    FfmpegMissing {
        /// The program that was tried.
        program: String,
    },
    /// `ffmpeg` could not be started or read from.
    #[error("cannot run `ffmpeg`: {0}")]
    FfmpegIo(#[source] io::Error),
    /// `ffmpeg` exited with an error.
    #[error("ffmpeg can't read {source_name}:\n{messages}")]
    FfmpegFailed {
        /// The source that it was given.
        source_name: String,
        /// The last lines that it printed.
        messages: String,
    },
    /// `ffmpeg` wrote something other than the requested YUV4MPEG2 stream.
    #[error("unexpected output of ffmpeg: {0}")]
    Y4m(#[from] y4m::Y4mError),
    /// `ffmpeg` wrote something other than the requested JPEG files.
    #[error("unexpected output of ffmpeg: {0}")]
    Mpjpeg(#[from] mpjpeg::MpjpegError),
}

impl VideoError {
    /// Whether opening the source again can't help.
    fn is_permanent(&self) -> bool {
        matches!(self, Self::FfmpegMissing { .. } | Self::Keyboard)
    }
}

/// A source that was lost and is opened again after a pause.
#[derive(Debug)]
pub struct SourceLost {
    /// Why it was lost, or could not be opened.
    pub error: VideoError,
    /// The pause.
    pub retry_in: Duration,
}

/// Reads the frames of a video one after another.
///
/// Dropping it ends the `ffmpeg` process.
pub struct VideoReader {
    options: VideoOptions,
    frames: FrameSource,
    clock: FrameClock,
    /// How often in a row the source was lost without a frame in between.
    losses: u32,
}

enum FrameSource {
    Ffmpeg(Box<Ffmpeg>),
    Directory(DirectoryFrames),
    /// It was lost.
    Lost,
}

impl FrameSource {
    async fn open(options: &VideoOptions) -> Result<Self, VideoError> {
        if let Some(image) = options.source.image() {
            return DirectoryFrames::single(image, options).map(Self::Directory);
        }
        match &options.source {
            VideoSource::Directory(path) => {
                DirectoryFrames::open(path, options).map(Self::Directory)
            }
            _ => {
                let ffmpeg = within_limit(options, Ffmpeg::start(options)).await?;
                Ok(Self::Ffmpeg(ffmpeg.into()))
            }
        }
    }
}

/// Fails if the source takes longer than its limit allows.
async fn within_limit<T>(
    options: &VideoOptions,
    work: impl Future<Output = Result<T, VideoError>>,
) -> Result<T, VideoError> {
    let Some(limit) = options.frame_limit() else {
        return work.await;
    };
    timeout(limit, work).await.unwrap_or_else(|_| {
        Err(VideoError::Silent {
            source_name: options.source.to_string(),
            limit,
        })
    })
}

/// The pause after a source was lost for the `losses`-th time in a row, from 1.
fn pause_after(losses: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(1 << losses.saturating_sub(1).min(10))
        .min(LONGEST_PAUSE)
}

impl VideoReader {
    /// Opens a video. When this returns, `ffmpeg` has recognized the format and the first frame is
    /// about to follow.
    ///
    /// # Errors
    /// A source that does not exist, is not a video or is silent for too long, or an `ffmpeg` that
    /// can't be run.
    pub async fn open(options: &VideoOptions) -> Result<Self, VideoError> {
        let frames = FrameSource::open(options).await?;
        Ok(Self::new(options, frames))
    }

    /// Opens a video; a camera or a URL is tried until it can be opened. `on_lost` is called before
    /// each pause.
    ///
    /// # Errors
    /// As for [`open`](Self::open), except for failures that another attempt may mend.
    pub async fn open_persistently(
        options: &VideoOptions,
        mut on_lost: impl FnMut(SourceLost),
    ) -> Result<Self, VideoError> {
        let mut losses = 0;
        loop {
            let error = match FrameSource::open(options).await {
                Ok(frames) => return Ok(Self::new(options, frames)),
                Err(error) if error.is_permanent() || !options.source.is_remote() => {
                    return Err(error);
                }
                Err(error) => error,
            };
            losses += 1;
            let retry_in = pause_after(losses);
            on_lost(SourceLost { error, retry_in });
            sleep(retry_in).await;
        }
    }

    fn new(options: &VideoOptions, frames: FrameSource) -> Self {
        let fps = match &frames {
            FrameSource::Ffmpeg(ffmpeg) => ffmpeg.fps(),
            _ => None,
        };
        Self {
            frames,
            clock: FrameClock {
                begin: SystemTime::now(),
                fps: fps.or(options.fps).unwrap_or(DEFAULT_FPS),
                number: 0,
                real_time: options.real_time || options.source.is_live(),
            },
            options: options.clone(),
            losses: 0,
        }
    }

    /// The number of files in a folder that are no images by their names.
    pub fn ignored_files(&self) -> usize {
        match &self.frames {
            FrameSource::Directory(directory) => directory.ignored,
            _ => 0,
        }
    }

    /// Waits for the next frame; `None` at the end.
    ///
    /// # Errors
    /// A video that breaks off or is silent for too long, or an image file that can't be read.
    /// There are no frames after an error.
    pub async fn next(&mut self) -> Result<Option<VideoFrame>, VideoError> {
        let image = match &mut self.frames {
            FrameSource::Ffmpeg(ffmpeg) => within_limit(&self.options, ffmpeg.next()).await,
            FrameSource::Directory(directory) => directory.next().await,
            FrameSource::Lost => Ok(None),
        };
        let image = match image {
            Ok(image) => image,
            Err(error) => {
                self.frames = FrameSource::Lost;
                return Err(error);
            }
        };
        if image.is_some() {
            self.losses = 0;
        }
        let captured_at = self.clock.tick();
        Ok(image.map(|image| VideoFrame {
            image,
            captured_at,
            read_at: Instant::now(),
        }))
    }
}

impl VideoReader {
    /// Waits for the next frame like [`next`](Self::next). With [`VideoOptions::reconnect`], a
    /// camera or a URL that is lost is opened again until there is one.
    pub(super) async fn next_persistently(
        &mut self,
        mut on_lost: impl FnMut(SourceLost),
    ) -> Result<Option<VideoFrame>, VideoError> {
        loop {
            let next = self.next().await;
            if !self.options.reconnect || !self.options.source.is_remote() {
                return next;
            }
            let error = match next {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => VideoError::Ended {
                    source_name: self.options.source.to_string(),
                },
                Err(error) => error,
            };

            self.frames = FrameSource::Lost;
            self.reopen(error, &mut on_lost).await?;
        }
    }

    /// Opens a lost source again, for as often as it takes.
    async fn reopen(
        &mut self,
        mut error: VideoError,
        on_lost: &mut impl FnMut(SourceLost),
    ) -> Result<(), VideoError> {
        loop {
            self.losses += 1;
            let retry_in = pause_after(self.losses);
            on_lost(SourceLost { error, retry_in });
            sleep(retry_in).await;
            match FrameSource::open(&self.options).await {
                Ok(frames) => {
                    self.frames = frames;
                    return Ok(());
                }
                Err(failed) if failed.is_permanent() => return Err(failed),
                Err(failed) => error = failed,
            }
        }
    }
}

/// Determines when each frame was captured.
struct FrameClock {
    begin: SystemTime,
    fps: f64,
    /// The next frame's number.
    number: u64,
    real_time: bool,
}

impl FrameClock {
    fn tick(&mut self) -> SystemTime {
        if self.real_time {
            return SystemTime::now();
        }

        let time = self.begin + Duration::from_secs_f64(self.number as f64 / self.fps);
        self.number += 1;
        time
    }
}
