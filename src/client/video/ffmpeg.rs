//! Runs the `ffmpeg` program, which decodes any video and delivers scaled I420 frames.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io::{self, IsTerminal},
    process::Stdio,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, ChildStdout, Command},
    task::JoinHandle,
};

use super::{
    VideoError, VideoOptions, VideoSource,
    mpjpeg::{self, MpjpegError},
    y4m::{self, Y4mError, Y4mHeader},
};
use crate::proto::{Image, PixelFormat, RawFrame, image::Source};

/// Advice on how to install the program.
pub const INSTALL: &str = if cfg!(target_os = "macos") {
    "get it with `brew install ffmpeg`"
} else if cfg!(windows) {
    "get it with `winget install ffmpeg`"
} else {
    "get it with `apt install ffmpeg`, `dnf install ffmpeg` or your system's package manager"
};

/// How many of the last lines of its error output an error shows.
const STDERR_LINES: usize = 12;

/// A running `ffmpeg`; dropping it ends the process.
pub struct Ffmpeg {
    child: Child,
    /// Ends the process if this one is killed. Dropped after `child`.
    _watchdog: Option<Watchdog>,
    stdout: BufReader<ChildStdout>,
    stderr: Option<JoinHandle<String>>,
    /// Of raw frames; `None` for JPEG files.
    header: Option<Y4mHeader>,
    source_name: String,
}

impl Ffmpeg {
    /// Starts the program and waits until it has written the size of the frames, or something of
    /// the first one.
    pub async fn start(options: &VideoOptions) -> Result<Self, VideoError> {
        check_source(&options.source)?;
        let passthrough = passthrough_flag(&version(options).await?);

        let stdin = if options.source == VideoSource::Stdin {
            Stdio::inherit()
        } else {
            Stdio::null()
        };
        let mut command = Command::new(&options.ffmpeg);
        command
            .args(arguments(options, passthrough))
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // Ctrl-C must reach only this program, which then ends ffmpeg. If it reached ffmpeg too,
        // that would look like a failure of ffmpeg.
        #[cfg(unix)]
        command.process_group(0);

        let mut child = command
            .spawn()
            .map_err(|error| start_error(options, error))?;
        let watchdog = Watchdog::start(&child);
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(VideoError::FfmpegIo(io::ErrorKind::BrokenPipe.into()));
        };

        let mut ffmpeg = Self {
            child,
            _watchdog: watchdog,
            stdout: BufReader::new(stdout),
            stderr: Some(tokio::spawn(last_lines(stderr))),
            header: None,
            source_name: options.source.to_string(),
        };

        let holds_video = if options.jpeg {
            let beginning = ffmpeg.stdout.fill_buf().await;
            !beginning.map_err(VideoError::FfmpegIo)?.is_empty()
        } else {
            ffmpeg.header = y4m::read_header(&mut ffmpeg.stdout).await?;
            ffmpeg.header.is_some()
        };
        if !holds_video {
            return Err(ffmpeg.failure("it holds no video".into()).await);
        }
        Ok(ffmpeg)
    }

    /// The frame rate in frames per second, if known.
    pub fn fps(&self) -> Option<f64> {
        self.header?.fps
    }

    /// Reads the next frame; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Image>, VideoError> {
        let source = match self.header {
            None => match mpjpeg::read_file(&mut self.stdout).await {
                Ok(Some(file)) => Some(Source::Encoded(file)),
                Ok(None) | Err(MpjpegError::Truncated) => None,
                Err(error) => return Err(error.into()),
            },
            Some(header) => match y4m::read_frame(&mut self.stdout, &header).await {
                Ok(Some(data)) => Some(Source::Raw(RawFrame {
                    format: PixelFormat::I420.into(),
                    width: header.width,
                    height: header.height,
                    stride: 0,
                    data,
                })),
                Ok(None) | Err(Y4mError::Truncated) => None,
                Err(error) => return Err(error.into()),
            },
        };
        if source.is_some() {
            return Ok(Some(Image { source }));
        }
        let status = self.child.wait().await.map_err(VideoError::FfmpegIo)?;
        if status.success() {
            Ok(None)
        } else {
            Err(self.failure(status.to_string()).await)
        }
    }

    /// An error with the messages that the program printed, or with `otherwise` if there are none.
    async fn failure(&mut self, otherwise: String) -> VideoError {
        let printed = match self.stderr.take() {
            Some(stderr) => stderr.await.unwrap_or_default(),
            None => String::new(),
        };
        let messages = if printed.is_empty() {
            otherwise
        } else {
            printed
        };
        VideoError::FfmpegFailed {
            source_name: self.source_name.clone(),
            messages,
        }
    }
}

/// A small process that ends `ffmpeg` when this process is gone, however it ended.
///
/// It waits on a pipe that nobody writes to and that the system closes with this process. An
/// `ffmpeg` that waits for a silent camera would not notice that its output is closed.
struct Watchdog(Child);

impl Watchdog {
    #[cfg(unix)]
    fn start(ffmpeg: &Child) -> Option<Self> {
        // The process is the leader of its own group, so this number is also the group's.
        let group = format!("-{}", ffmpeg.id()?);
        let child = Command::new("sh")
            .args(["-c", "read -r _ || kill -s KILL -- \"$1\"", "sh", &group])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        child.ok().map(Self)
    }

    #[cfg(not(unix))]
    fn start(_: &Child) -> Option<Self> {
        None
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Before the pipe is closed, so that it doesn't end a group whose number may have been
        // given to another one. A failure means that it has ended already.
        let _ = self.0.start_kill();
    }
}

/// Refuses a source that can't work, with a clearer error than ffmpeg's.
fn check_source(source: &VideoSource) -> Result<(), VideoError> {
    match source {
        VideoSource::File(path) if !path.exists() => Err(VideoError::NotFound(path.clone())),
        #[cfg(target_os = "linux")]
        VideoSource::Camera(path) if !std::path::Path::new(path).exists() => {
            Err(VideoError::NotFound(path.into()))
        }
        VideoSource::Stdin if io::stdin().is_terminal() => Err(VideoError::Keyboard),
        _ => Ok(()),
    }
}

fn start_error(options: &VideoOptions, error: io::Error) -> VideoError {
    match error.kind() {
        io::ErrorKind::NotFound => VideoError::FfmpegMissing {
            program: options.ffmpeg.to_string_lossy().into_owned(),
        },
        _ => VideoError::FfmpegIo(error),
    }
}

/// What the program prints about its version.
async fn version(options: &VideoOptions) -> Result<String, VideoError> {
    let output = Command::new(&options.ffmpeg)
        .arg("-version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let output = output.map_err(|error| start_error(options, error))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The flag that keeps ffmpeg from duplicating or dropping frames to reach a constant rate. It was
/// renamed in version 5.1.
fn passthrough_flag(version: &str) -> &'static str {
    let number = version
        .strip_prefix("ffmpeg version ")
        .unwrap_or_default()
        .trim_start_matches('n');
    let mut parts = number
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse::<u32>().ok());
    match (parts.next(), parts.next()) {
        (Some(major), minor) if (major, minor.unwrap_or(0)) < (5, 1) => "-vsync",
        _ => "-fps_mode",
    }
}

/// The command line, without the program's name.
fn arguments(options: &VideoOptions, passthrough: &str) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut push = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
    push(&["-hide_banner", "-loglevel", "error", "-nostdin"]);
    // Live sources don't get `-fflags nobuffer`: with it ffmpeg discards the frames that it read to
    // recognize the format.
    if !options.source.is_live() {
        if options.real_time {
            push(&["-re"]);
        }
        if options.repeat {
            push(&["-stream_loop", "-1"]);
        }
    }

    let input: OsString = match &options.source {
        VideoSource::File(path) | VideoSource::Directory(path) => {
            // Without the prefix, the part of a name before a colon would be taken for a protocol.
            let mut input = OsString::from("file:");
            input.push(path);
            input
        }
        VideoSource::Camera(name) if cfg!(target_os = "macos") => {
            push(&["-f", "avfoundation", "-framerate", "30"]);
            format!("{name}:none").into()
        }
        VideoSource::Camera(name) if cfg!(windows) => {
            push(&["-f", "dshow"]);
            format!("video={name}").into()
        }
        VideoSource::Camera(device) => {
            push(&["-f", "v4l2"]);
            device.into()
        }
        VideoSource::Url(url) => {
            if url.starts_with("rtsp://") {
                push(&["-rtsp_transport", "tcp"]);
            }
            url.into()
        }
        VideoSource::Stdin => "pipe:0".into(),
    };
    arguments.extend(["-i".into(), input]);

    let mut push = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
    push(&[
        "-map",
        "0:v:0",
        "-vf",
        &filter(options),
        passthrough,
        "passthrough",
    ]);
    let format: &[&str] = if options.jpeg {
        &["-c:v", "mjpeg", "-q:v", "2", "-f", "mpjpeg"]
    } else {
        &["-f", "yuv4mpegpipe"]
    };
    push(format);
    // Without flushing, the end of each frame would stay in a buffer until the next one.
    push(&["-flush_packets", "1", "pipe:1"]);
    arguments
}

/// The filter that scales down to the requested size, with square pixels, even sides and the
/// colour space of the gRPC contract, BT.601 in limited range, or that of JPEG files.
fn filter(options: &VideoOptions) -> String {
    let rate = options
        .fps
        // The last frame is passed on even if it ends before the next one would be due; otherwise
        // a short video would have none.
        .map(|fps| format!("fps={fps}:eof_action=pass,"))
        .unwrap_or_default();
    let side = options.shorter_side.max(2).next_multiple_of(2);
    let scale = format!("min(1,{side}/min(iw*sar,ih))");
    let (range, pixels) = if options.jpeg {
        ("pc", "yuvj420p")
    } else {
        ("tv", "yuv420p")
    };
    format!(
        "{rate}scale=w='2*max(1,floor(iw*sar*{scale}/2+.01))':h='2*max(1,floor(ih*{scale}/2+.01))'\
         :flags=bilinear+accurate_rnd:out_color_matrix=bt601:out_range={range},setsar=1,format={pixels}"
    )
}

/// Reads to the end, so that the program never blocks on a full pipe, and returns the last lines.
async fn last_lines(stderr: impl AsyncRead + Unpin) -> String {
    let mut reader = BufReader::new(stderr);
    let mut lines = VecDeque::new();
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line).await, Ok(1..)) {
        if lines.len() == STDERR_LINES {
            lines.pop_front();
        }
        lines.push_back(format!("  {}", String::from_utf8_lossy(&line).trim_end()));
        line.clear();
    }
    Vec::from(lines).join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_follows_the_version() {
        for (version, flag) in [
            ("ffmpeg version 5.1.9-0+deb12u1 Copyright", "-fps_mode"),
            ("ffmpeg version 4.4.2-0ubuntu0.22.04.1 Copyright", "-vsync"),
            ("ffmpeg version 5.0 Copyright", "-vsync"),
            ("ffmpeg version 8 Copyright", "-fps_mode"),
            ("ffmpeg version n7.1 Copyright", "-fps_mode"),
            ("ffmpeg version N-118000-g1234567 Copyright", "-fps_mode"),
            ("", "-fps_mode"),
        ] {
            assert_eq!(passthrough_flag(version), flag, "{version}");
        }
    }

    #[tokio::test]
    async fn only_the_last_lines_are_kept() {
        let text: String = (0..100).map(|i| format!("line {i}\n")).collect();
        let kept = last_lines(text.as_bytes()).await;
        assert_eq!(kept.lines().count(), STDERR_LINES);
        assert!(kept.ends_with("  line 99"));
    }

    /// A video of three red frames; `None`, with a note, where ffmpeg is missing.
    fn red_video(folder: &std::path::Path) -> Option<std::path::PathBuf> {
        let video = folder.join("red: full range.avi");
        let made = std::process::Command::new("ffmpeg")
            .args([
                "-loglevel",
                "error",
                "-nostdin",
                "-f",
                "lavfi",
                "-i",
                "color=red:size=1281x721,format=gbrp",
            ])
            .args(["-frames:v", "3", "-c:v", "mjpeg", "-pix_fmt", "yuvj444p"])
            .arg(format!("file:{}", video.display()))
            .status();
        if let Err(error) = made {
            crate::testing::skipped(&format!("ffmpeg can't be run: {error}"));
            return None;
        }
        Some(video)
    }

    #[tokio::test]
    async fn frames_may_be_jpeg_files() {
        let folder = tempfile::tempdir().unwrap();
        let Some(video) = red_video(folder.path()) else {
            return;
        };
        let options = VideoOptions {
            jpeg: true,
            ..VideoOptions::new(VideoSource::File(video))
        };
        let mut ffmpeg = Ffmpeg::start(&options).await.unwrap();
        let mut frames = 0;
        while let Some(Image {
            source: Some(Source::Encoded(file)),
        }) = ffmpeg.next().await.unwrap()
        {
            assert!(file.starts_with(b"\xff\xd8") && file.ends_with(b"\xff\xd9"));
            frames += 1;
        }
        assert_eq!(frames, 3);
    }

    #[tokio::test]
    async fn frames_have_the_colours_and_size_of_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let Some(video) = red_video(folder.path()) else {
            return;
        };
        for (shorter_side, width, height) in [(256, 454, 256), (255, 454, 256), (2000, 1280, 720)] {
            let options = VideoOptions {
                shorter_side,
                ..VideoOptions::new(VideoSource::File(video.clone()))
            };
            let mut ffmpeg = Ffmpeg::start(&options).await.unwrap();
            let mut frames = 0;
            while let Some(Image {
                source: Some(Source::Raw(frame)),
            }) = ffmpeg.next().await.unwrap()
            {
                assert_eq!((frame.width, frame.height), (width, height));
                let luma = (width * height) as usize;
                let sample = |plane: usize| frame.data[luma + plane * luma / 4 + luma / 8];
                for (sample, expected) in [
                    (frame.data[luma / 2], 81),
                    (sample(0), 90),
                    (sample(1), 240),
                ] {
                    assert!(
                        sample.abs_diff(expected) <= 2,
                        "{sample} instead of {expected}"
                    );
                }
                frames += 1;
            }
            assert_eq!(frames, 3);
        }
    }
}
