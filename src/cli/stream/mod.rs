//! `resnet18 stream`: what a video or a camera shows, live.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::ValueEnum;
use serde_json::json;
use tokio::{
    signal::ctrl_c,
    sync::watch,
    time::{sleep, timeout},
};

use super::{CliError, flags::ServerFlags, output, values};
use crate::{
    client::{
        self,
        stream::{StreamOptions, run_stream},
        video::{VideoOptions, VideoReader, VideoSource},
    },
    proto::FramePolicy,
};

mod display;

use display::Display;

const VIDEO_SMOOTHING: Duration = Duration::from_millis(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

const LONG_HELP: &str = "\
Files play in real time with --policy latest or with --fps, otherwise as fast as the server takes them. Cameras, URLs \
     and standard input are live: their frames come when they come. Frames are scaled down to what the model needs before \
     they are sent. Ctrl-C ends the stream and prints the summary.

With --json every answer is one line on standard output:
  {\"frame_id\", \"classifications\": [{\"class_id\", \"label\", \"probability\"}], \"latency_ms\", \"fps\", \
     \"dropped_by_server\", \"dropped_by_client\", \"timing_ms\": {\"decode\", \"queue\", \"inference\", \"total\"}}
where a frame that failed has \"error\": {\"code\", \"message\"} in place of the classifications. The last line is
  {\"summary\": {\"sent\", \"answered\", \"failed\", \"dropped_by_server\", \"dropped_by_client\", \"unanswered\", \
     \"duration_s\", \"mean_fps\", \"latency_ms\": {\"count\", \"mean\", \"p50\", ...}, \"labels\": [{\"label\", \"share\"}]}}.

Exit status: 0 = the stream ended well, 1 = it was cut off or no frame was answered, 64 = wrong flags.";

/// The flags of `resnet18 stream`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub struct Args {
    /// A video file, a folder of images, a camera (/dev/video0, camera:0), a URL (rtsp://...), or -
    /// for standard input.
    #[arg(value_name = "VIDEO")]
    source: VideoSource,
    #[command(flatten)]
    server: ServerFlags,
    /// Frames to send a second [default: as many as the video has; 25 for folders played in real
    /// time].
    #[arg(long, env = "RESNET18_STREAM_FPS", value_name = "N", value_parser = values::rate)]
    fps: Option<f64>,
    /// What happens to frames that come faster than they are classified.
    #[arg(
        long,
        env = "RESNET18_STREAM_POLICY",
        value_name = "POLICY",
        default_value = "latest"
    )]
    policy: Policy,
    /// Half-life of the mean over the frames, against flicker; 0 = off [default: 300ms, for a
    /// folder of images 0].
    #[arg(long, env = "RESNET18_STREAM_SMOOTHING", value_name = "DURATION", value_parser = values::duration)]
    smoothing: Option<Duration>,
    /// How many classes to ask for; only the first is shown without --json.
    #[arg(long, env = "RESNET18_STREAM_TOP_K", value_name = "N", default_value = "1", value_parser = values::count)]
    top_k: usize,
    /// Stop after this time [default: at the end of the video].
    #[arg(long, env = "RESNET18_STREAM_DURATION", value_name = "DURATION", value_parser = values::positive_duration)]
    duration: Option<Duration>,
    /// Begin again at the end of a file or folder.
    #[arg(long = "loop", env = "RESNET18_STREAM_LOOP")]
    repeat: bool,
    /// The ffmpeg program, which reads everything but folders.
    #[arg(
        long,
        env = "RESNET18_STREAM_FFMPEG",
        value_name = "PATH",
        default_value = "ffmpeg"
    )]
    ffmpeg: PathBuf,
    /// Print JSON, one object a line for each frame and one for the summary.
    #[arg(long, env = "RESNET18_STREAM_JSON")]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Policy {
    /// A newer frame replaces the one that waits: live, nothing stale.
    Latest,
    /// Every frame is classified, in order.
    Every,
}

/// Classifies the frames and shows the answers as they come.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    if args.repeat && args.source.is_live() {
        return Err(CliError::Usage(format!(
            "{} can't begin again: leave out --loop",
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
    let real_time = args.policy == Policy::Latest || args.fps.is_some();
    let options = StreamOptions {
        server,
        model: args.server.model,
        top_k: args.top_k as u32,
        policy: match args.policy {
            Policy::Latest => FramePolicy::Latest,
            Policy::Every => FramePolicy::Every,
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
    let stopper = tokio::spawn(async move {
        // Either way, Ctrl-C or the time, the answers that are due are still shown.
        let _ = timeout(args.duration.unwrap_or(Duration::MAX), ctrl_c()).await;
        stop.send_replace(true);
        // Whoever presses Ctrl-C again doesn't want to wait; held keys don't count.
        sleep(Duration::from_millis(200)).await;
        let _ = ctrl_c().await;
        std::process::exit(130);
    });
    let mut display = Display::new(args.json);
    let mut written = Ok(());
    let result = {
        let mut streaming = std::pin::pin!(run_stream(&options, client, video, stopped, |event| {
            if written.is_ok() {
                written = display.show(event);
            }
        }));
        (&mut streaming).await
    };
    stopper.abort();
    written?;
    display.finish();

    if args.json {
        output::print_json(&json!({ "summary": &result.summary }))?;
    } else {
        output::print_line(&display::describe(&result.summary))?;
    }
    let well = result.video_error.is_none()
        && result.server_error.is_none()
        && result.summary.answered > 0;
    if let Some(error) = &result.video_error {
        output::print_error(error);
    }
    if let Some(error) = &result.server_error {
        output::print_error(error);
    }
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
