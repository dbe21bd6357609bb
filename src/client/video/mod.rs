//! Reading frames from video files, cameras and network streams, through the `ffmpeg` program, and
//! from folders of images, without it.
//!
//! Frames of video are raw I420 pixels (8 bits a sample, BT.601, limited range), scaled down to
//! the size that the model needs, which is faster to send and to decode than an encoded image.
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
use tokio::time::Instant;

use crate::proto::Image;

mod directory;
mod ffmpeg;
mod source;
mod y4m;

use self::{directory::DirectoryFrames, ffmpeg::Ffmpeg};
pub use self::{source::VideoSource, y4m::Y4mError};

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
    /// The `ffmpeg` program, as a path or a name to look up in `PATH`.
    pub ffmpeg: PathBuf,
}

impl VideoOptions {
    /// All frames of `source` once, as fast as they can be read, with 256 pixels on the shorter
    /// side: the size that ImageNet's ResNets are evaluated with.
    pub fn new(source: VideoSource) -> Self {
        Self {
            source,
            fps: None,
            real_time: false,
            repeat: false,
            shorter_side: 256,
            ffmpeg: "ffmpeg".into(),
        }
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
    #[error("{0} holds no images (jpg, png, webp, gif, bmp, tif, pnm)")]
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
}

/// Reads the frames of a video one after another.
///
/// Dropping it ends the `ffmpeg` process.
pub struct VideoReader {
    frames: FrameSource,
    clock: FrameClock,
}

enum FrameSource {
    Ffmpeg(Box<Ffmpeg>),
    Directory(DirectoryFrames),
}

impl VideoReader {
    /// Opens a video. When this returns, `ffmpeg` has recognized the format and the first frame is
    /// about to follow.
    ///
    /// # Errors
    /// A source that does not exist or is not a video, or an `ffmpeg` that can't be run.
    pub async fn open(options: &VideoOptions) -> Result<Self, VideoError> {
        let mut fps = options.fps.unwrap_or(DEFAULT_FPS);
        let frames = match &options.source {
            VideoSource::Directory(path) => {
                FrameSource::Directory(DirectoryFrames::open(path, options)?)
            }
            _ => {
                let ffmpeg = Ffmpeg::start(options).await?;
                fps = ffmpeg.fps().unwrap_or(fps);
                FrameSource::Ffmpeg(ffmpeg.into())
            }
        };

        let real_time = options.real_time || options.source.is_live();
        Ok(Self {
            frames,
            clock: FrameClock {
                begin: SystemTime::now(),
                fps,
                number: 0,
                real_time,
            },
        })
    }

    /// Waits for the next frame; `None` at the end.
    ///
    /// # Errors
    /// A video that breaks off, or an image file that can't be read.
    pub async fn next(&mut self) -> Result<Option<VideoFrame>, VideoError> {
        let image = match &mut self.frames {
            FrameSource::Ffmpeg(ffmpeg) => ffmpeg.next().await?,
            FrameSource::Directory(directory) => directory.next().await?,
        };
        let captured_at = self.clock.tick();
        Ok(image.map(|image| VideoFrame {
            image,
            captured_at,
            read_at: Instant::now(),
        }))
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
