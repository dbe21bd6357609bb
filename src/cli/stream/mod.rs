//! `resnet18 stream`: classifies the frames of a video or a camera, live.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::ValueEnum;
use serde_json::json;
use tokio::sync::watch;

use super::{CliError, flags::ConnectionFlags, output, report, values};
use crate::{
    client::{
        self,
        stream::{StreamEvent, StreamOptions, run_stream},
        video::{VideoError, VideoOptions, VideoReader, VideoSource},
    },
    proto::FramePolicy,
};

mod display;
mod stop;

use self::{display::StreamDisplay, stop::stop_on_interrupt};

/// Default half-life of the moving average over frames, except for folders of images.
const VIDEO_SMOOTHING: Duration = Duration::from_millis(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

const LONG_HELP: &str = "\
Files play in real time with --policy latest or with --fps, otherwise as fast as the server \
classifies them. Cameras, URLs and standard input are live: they determine the rate of frames \
themselves. Frames are scaled down to the size that the model needs before they are sent. An image \
file is a video of one frame, which --loop repeats. Ctrl-C and SIGTERM end the stream and print the \
summary.

A camera or URL that sends no frame for --source-timeout ends the stream with an error. With \
--reconnect it is opened again, and so is one that ends or fails: after 1 s, then after pauses that \
double up to 30 s. Each time is reported on standard error and counted in the summary.

With --json, each response is one line on standard output:
  {\"frame_id\", \"classifications\": [{\"class_id\", \"label\", \"probability\"}],
   \"latency_ms\", \"fps\", \"dropped_by_server\", \"dropped_by_client\",
   \"timing_ms\": {\"decode\", \"queue\", \"inference\", \"total\"}}
For a frame that failed, \"error\": {\"code\", \"message\"} replaces the classifications. The last \
line is
  {\"summary\": {\"sent\", \"answered\", \"failed\", \"dropped_by_server\",
    \"dropped_by_client\", \"unanswered\", \"source_reconnects\", \"duration_s\",
    \"mean_fps\",
    \"latency_ms\": {\"count\", \"mean\", \"p50\", ...},
    \"labels\": [{\"label\", \"share\"}]}}.

Exit status: 0 = the stream ended normally, 1 = it was interrupted or no frame was classified, \
64 = wrong flags.";

/// The flags of `resnet18 stream`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub struct Args {
    /// A video file, an image or a folder of images, a camera (/dev/video0, camera:0), a URL (rtsp://...), or -
    /// for standard input.
    #[arg(value_name = "VIDEO")]
    source: VideoSource,
    #[command(flatten)]
    server: ConnectionFlags,
    /// Frames to send per second [default: the rate of the video; 25 for folders played in real
    /// time].
    #[arg(long, env = "RESNET18_STREAM_FPS", value_name = "N", value_parser = values::rate)]
    fps: Option<f64>,
    /// How to handle frames that arrive faster than they are classified.
    #[arg(
        long,
        env = "RESNET18_STREAM_POLICY",
        value_name = "POLICY",
        default_value = "latest"
    )]
    policy: PolicyArg,
    /// Half-life of the moving average over frames, which reduces flicker; 0 = off [default: 300ms;
    /// 0 for a folder of images].
    #[arg(long, env = "RESNET18_STREAM_SMOOTHING", value_name = "DURATION",
          value_parser = values::duration)]
    smoothing: Option<Duration>,
    /// Number of classes to request; without --json, only the first is shown.
    #[arg(long, env = "RESNET18_STREAM_TOP_K", value_name = "N", default_value = "1",
          value_parser = values::count)]
    top_k: usize,
    /// Stop after this time [default: at the end of the video].
    #[arg(long, env = "RESNET18_STREAM_DURATION", value_name = "DURATION",
          value_parser = values::positive_duration)]
    duration: Option<Duration>,
    /// Start over at the end of a file or folder.
    #[arg(long = "loop", env = "RESNET18_STREAM_LOOP")]
    repeat: bool,
    /// How long a camera or URL may send no frame; 0 = without limit.
    #[arg(long, env = "RESNET18_STREAM_SOURCE_TIMEOUT", value_name = "DURATION",
          default_value = "15s", value_parser = values::duration)]
    source_timeout: Duration,
    /// Open a camera or URL again when it ends, fails or sends no frame.
    #[arg(long, env = "RESNET18_STREAM_RECONNECT")]
    reconnect: bool,
    /// The ffmpeg program, which reads all sources except images.
    #[arg(
        long,
        env = "RESNET18_STREAM_FFMPEG",
        value_name = "PATH",
        default_value = "ffmpeg"
    )]
    ffmpeg: PathBuf,
    /// Print JSON, one object per line and frame, and one for the summary.
    #[arg(long, env = "RESNET18_STREAM_JSON")]
    json: bool,
}

/// The values of [`FramePolicy`], which is generated from the protobuf contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PolicyArg {
    /// A newer frame replaces the waiting one, so that responses stay up to date.
    Latest,
    /// Every frame is classified, in order.
    Every,
}

/// Classifies the frames and shows the responses as they arrive.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    args.check()?;
    let server = args.server.server()?;
    let mut client = client::connect(&server).await?;
    let model = client::find_model(
        &mut client,
        &server.address,
        &args.server.model,
        CONNECT_TIMEOUT,
    )
    .await?;
    let options = args.stream_options(server);
    let video_options = args.video_options(model.resize_shorter_side);
    let source = &args.source;

    let (stop, mut stopped) = watch::channel(false);
    let stopper = tokio::spawn(stop_on_interrupt(args.duration, stop.clone()));
    let mut display = StreamDisplay::new(args.json);

    // Opening waits for the first frame, and --duration and Ctrl-C are kept meanwhile.
    let opened = tokio::select! {
        opened = open(&video_options, &mut display) => Some(opened),
        _ = stopped.wait_for(|stop| *stop) => None,
    };
    let video = match opened {
        Some(Ok(video)) => video,
        Some(Err(error)) => {
            display.finish();
            return Err(video_failure(error));
        }
        None => {
            display.finish();
            return Err(CliError::Failed(format!(
                "{source} sent no frame before the stream was stopped"
            )));
        }
    };
    report::print_ignored(video.ignored_files(), args.json);

    let mut written = Ok(());
    let result = run_stream(&options, client, video, stopped, |event| {
        if written.is_ok() {
            written = display.show(event);
            if written.is_err() {
                // The reader of the output has closed the pipe, as `head` does.
                stop.send_replace(true);
            }
        }
    })
    .await;
    let interrupted = *stop.borrow();
    stopper.abort();
    display.finish();
    written?;

    let failed = result.video_error.is_some() || result.server_error.is_some();
    let summary = result.summary;
    if args.json {
        output::print_json(&json!({ "summary": &summary }))?;
    } else {
        output::print_line(&display::describe(&summary))?;
    }
    if let Some(error) = result.video_error {
        output::print_error(&video_failure(error));
    }
    if let Some(error) = result.server_error {
        output::print_error(&CliError::from(error));
    }
    if summary.sent == 0 && !failed && !interrupted {
        output::print_error(&format_args!("{source} holds no frame"));
    }

    Ok(if !failed && summary.answered > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Args {
    /// Rejects flags that do not fit the source.
    fn check(&self) -> Result<(), CliError> {
        let source = &self.source;
        if self.repeat && source.is_live() {
            return Err(CliError::Usage(format!(
                "{source} cannot start over: remove --loop"
            )));
        }
        if self.reconnect && !source.is_remote() {
            return Err(CliError::Usage(format!(
                "{source} cannot be lost, only a camera or a URL: remove --reconnect"
            )));
        }
        Ok(())
    }

    /// Whether frames are sent at the rate at which they were taken.
    fn is_real_time(&self) -> bool {
        self.policy == PolicyArg::Latest || self.fps.is_some()
    }

    fn stream_options(&self, server: client::Server) -> StreamOptions {
        let source = &self.source;
        let is_images = matches!(source, VideoSource::Directory(_)) || source.image().is_some();
        StreamOptions {
            server,
            model: self.server.model.clone(),
            top_k: self.top_k as u32,
            policy: match self.policy {
                PolicyArg::Latest => FramePolicy::Latest,
                PolicyArg::Every => FramePolicy::Every,
            },
            smoothing: self.smoothing.unwrap_or(if is_images {
                Duration::ZERO
            } else {
                VIDEO_SMOOTHING
            }),
            reconnect: source.is_live() || self.is_real_time(),
        }
    }

    fn video_options(&self, shorter_side: u32) -> VideoOptions {
        VideoOptions {
            source: self.source.clone(),
            fps: self.fps,
            real_time: self.is_real_time(),
            repeat: self.repeat,
            shorter_side,
            jpeg: false,
            longest_silence: Some(self.source_timeout).filter(|limit| !limit.is_zero()),
            reconnect: self.reconnect,
            ffmpeg: self.ffmpeg.clone(),
        }
    }
}

/// Opens the video, with --reconnect for as often as it takes.
async fn open(
    options: &VideoOptions,
    display: &mut StreamDisplay,
) -> Result<VideoReader, VideoError> {
    if !options.reconnect {
        return VideoReader::open(options).await;
    }
    VideoReader::open_persistently(options, |loss| {
        // It goes to standard error, whose loss is not reported.
        let _ = display.show(StreamEvent::SourceLost(loss));
    })
    .await
}

/// The error for people, with what to do about it in terms of the command line.
fn video_failure(error: VideoError) -> CliError {
    match error {
        VideoError::Silent { .. } => CliError::Failed(format!(
            "{error}; is it there? --source-timeout gives it more time, and --reconnect opens it \
             again"
        )),
        error => error.into(),
    }
}
