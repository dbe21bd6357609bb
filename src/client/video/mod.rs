//! Where frames come from: files, cameras and network streams through the `ffmpeg` program, folders
//! of images without.

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

use directory::Directory;
use ffmpeg::Ffmpeg;
pub use source::VideoSource;

/// Frames a second of a source that doesn't say.
const DEFAULT_FPS: f64 = 25.0;

/// How a video is read.
#[derive(Clone, Debug)]
pub struct VideoOptions {
    /// Where it comes from.
    pub source: VideoSource,
    /// Frames a second to deliver; `None` = as many as there are.
    pub fps: Option<f64>,
    /// Deliver frames when they would be shown, rather than as fast as they are read. Live sources
    /// always do.
    pub real_time: bool,
    /// Begin again at the end.
    pub repeat: bool,
    /// Frames are scaled down until their shorter side has this many pixels; they are never scaled
    /// up.
    pub shorter_side: u32,
    /// The `ffmpeg` program.
    pub ffmpeg: PathBuf,
}

/// One frame.
#[derive(Clone, Debug)]
pub struct VideoFrame {
    /// The pixels, or an image file.
    pub image: Image,
    /// When the frame was taken. For a file that is read faster than it would be shown, this
    /// follows the video's time.
    pub captured_at: SystemTime,
    /// When the frame was read.
    pub read_at: Instant,
}

/// Why a video can't be read.
#[derive(Debug, Error)]
pub enum VideoError {
    /// There is nothing at that path.
    #[error("no such file, folder or device: {0}")]
    NotFound(PathBuf),
    /// A folder without images.
    #[error("{0} holds no images (jpg, png, webp, gif, bmp, tif, pnm)")]
    NoImages(PathBuf),
    /// Standard input is a keyboard.
    #[error("standard input is a terminal; pipe a video into it, or name a file")]
    Keyboard,
    /// A file can't be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
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
    /// `ffmpeg` failed.
    #[error("ffmpeg can't read {source_name}:\n{messages}")]
    FfmpegFailed {
        /// What it was to read.
        source_name: String,
        /// The last lines that it printed.
        messages: String,
    },
    /// `ffmpeg` wrote something other than was asked for.
    #[error("unexpected output of ffmpeg: {0}")]
    Y4m(#[from] y4m::Y4mError),
}

/// A video that is being read.
pub struct VideoReader {
    frames: Frames,
    clock: FrameClock,
}

enum Frames {
    Ffmpeg(Box<Ffmpeg>),
    Directory(Directory),
}

impl VideoReader {
    /// Opens a video and waits until its first frame is there or nearly so.
    pub async fn open(options: &VideoOptions) -> Result<Self, VideoError> {
        let mut fps = options.fps.unwrap_or(DEFAULT_FPS);
        let frames = match &options.source {
            VideoSource::Directory(path) => Frames::Directory(Directory::open(path, options)?),
            _ => {
                let ffmpeg = Ffmpeg::start(options).await?;
                fps = ffmpeg.fps().unwrap_or(fps);
                Frames::Ffmpeg(ffmpeg.into())
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

    /// The next frame; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<VideoFrame>, VideoError> {
        let image = match &mut self.frames {
            Frames::Ffmpeg(ffmpeg) => ffmpeg.next().await?,
            Frames::Directory(directory) => directory.next().await?,
        };
        let captured_at = self.clock.tick();
        Ok(image.map(|image| VideoFrame {
            image,
            captured_at,
            read_at: Instant::now(),
        }))
    }
}

/// Says when each frame was taken.
struct FrameClock {
    begin: SystemTime,
    fps: f64,
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
