//! `resnet18 stream`: classifies the frames of a video or a camera, live.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::ValueEnum;
use serde_json::json;
use tokio::{
    signal::ctrl_c,
    sync::watch,
    time::{sleep, timeout},
};

use super::{CliError, flags::ConnectionFlags, output, values};
use crate::{
    client::{
        self,
        stream::{StreamOptions, run_stream},
        video::{VideoOptions, VideoReader, VideoSource},
    },
    proto::FramePolicy,
};

mod display;

use self::display::StreamDisplay;

/// Default half-life of the moving average over frames, except for folders of images.
const VIDEO_SMOOTHING: Duration = Duration::from_millis(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// A second Ctrl-C within this time of the first is ignored, because a held key repeats.
const KEY_REPEAT: Duration = Duration::from_millis(200);

const LONG_HELP: &str = "\
Files play in real time with --policy latest or with --fps, otherwise as fast as the server \
classifies them. Cameras, URLs and standard input are live: they determine the rate of frames \
themselves. Frames are scaled down to the size that the model needs before they are sent. Ctrl-C \
ends the stream and prints the summary.

With --json, each response is one line on standard output:
  {\"frame_id\", \"classifications\": [{\"class_id\", \"label\", \"probability\"}],
   \"latency_ms\", \"fps\", \"dropped_by_server\", \"dropped_by_client\",
   \"timing_ms\": {\"decode\", \"queue\", \"inference\", \"total\"}}
For a frame that failed, \"error\": {\"code\", \"message\"} replaces the classifications. The last \
line is
  {\"summary\": {\"sent\", \"answered\", \"failed\", \"dropped_by_server\",
    \"dropped_by_client\", \"unanswered\", \"duration_s\", \"mean_fps\",
    \"latency_ms\": {\"count\", \"mean\", \"p50\", ...},
    \"labels\": [{\"label\", \"share\"}]}}.

Exit status: 0 = the stream ended normally, 1 = it was interrupted or no frame was classified, \
64 = wrong flags.";

/// The flags of `resnet18 stream`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub struct Args {
    /// A video file, a folder of images, a camera (/dev/video0, camera:0), a URL (rtsp://...), or -
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
    /// The ffmpeg program, which reads all sources except folders.
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
    if args.repeat && args.source.is_live() {
        return Err(CliError::Usage(format!(
            "{} cannot start over: remove --loop",
            args.source
        )));
    }

    let server = args.server.server()?;
    let mut client = client::connect(&server).await?;
    let model = client::find_model(
        &mut client,
        &server.address,
        &args.server.model,
        CONNECT_TIMEOUT,
    )
    .await?;

    let real_time = args.policy == PolicyArg::Latest || args.fps.is_some();
    let options = StreamOptions {
        server,
        model: args.server.model,
        top_k: args.top_k as u32,
        policy: match args.policy {
            PolicyArg::Latest => FramePolicy::Latest,
            PolicyArg::Every => FramePolicy::Every,
        },
        smoothing: args.smoothing.unwrap_or(match args.source {
            VideoSource::Directory(_) => Duration::ZERO,
            _ => VIDEO_SMOOTHING,
        }),
        reconnect: args.source.is_live() || real_time,
    };
    let video = VideoReader::open(&VideoOptions {
        source: args.source,
        fps: args.fps,
        real_time,
        repeat: args.repeat,
        shorter_side: model.resize_shorter_side,
        ffmpeg: args.ffmpeg,
    })
    .await?;

    let (stop, stopped) = watch::channel(false);
    let stopper = tokio::spawn(stop_on_interrupt(args.duration, stop));

    let mut display = StreamDisplay::new(args.json);
    let mut written = Ok(());
    let result = run_stream(&options, client, video, stopped, |event| {
        if written.is_ok() {
            written = display.show(event);
        }
    })
    .await;
    stopper.abort();
    written?;
    display.finish();

    if args.json {
        output::print_json(&json!({ "summary": &result.summary }))?;
    } else {
        output::print_line(&display::describe(&result.summary))?;
    }
    let succeeded = result.video_error.is_none()
        && result.server_error.is_none()
        && result.summary.answered > 0;
    if let Some(error) = &result.video_error {
        output::print_error(error);
    }
    if let Some(error) = result.server_error {
        output::print_error(&CliError::from(error));
    }

    Ok(if succeeded {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Stops the stream on Ctrl-C or after `duration`; the responses that are outstanding are still
/// shown. A further Ctrl-C ends the process at once.
async fn stop_on_interrupt(duration: Option<Duration>, stop: watch::Sender<bool>) {
    // Whether this is the signal or the timeout makes no difference.
    let _ = timeout(duration.unwrap_or(Duration::MAX), ctrl_c()).await;
    stop.send_replace(true);

    sleep(KEY_REPEAT).await;
    let _ = ctrl_c().await;
    std::process::exit(130);
}
