//! Classifies a video, a camera or a folder of images, frame by frame:
//! `cargo run --example stream -- http://127.0.0.1:8001 birds.mp4`
//!
//! Videos and cameras need the program `ffmpeg`; a folder of images does not.

use std::{env, error::Error};

use resnet18_server::{
    client::{
        self, Server,
        stream::{FrameOutcome, StreamEvent, StreamOptions, run_stream},
        video::{VideoOptions, VideoReader},
    },
    proto::FramePolicy,
};
use tokio::{signal::ctrl_c, sync::watch};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [server, source] = &arguments[..] else {
        return Err("usage: stream SERVER VIDEO".into());
    };
    let server: Server = server.parse()?;
    let client = client::connect(&server).await?;
    let video = VideoReader::open(&VideoOptions::new(source.parse()?)).await?;

    // Ctrl-C ends the stream, and the last answers are still shown.
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move { ctrl_c().await.map(|()| stop.send_replace(true)) });

    let options = StreamOptions {
        policy: FramePolicy::Every,
        ..StreamOptions::new(server)
    };
    let result = run_stream(&options, client, video, stopped, |event| match event {
        StreamEvent::Answer(answer) => match answer.outcome {
            FrameOutcome::Classes(classes) => {
                println!("{:6}  {}", answer.frame_id, classes[0].label);
            }
            FrameOutcome::Failed { message, .. } => println!("{:6}  {message}", answer.frame_id),
        },
        StreamEvent::Reconnecting(status) => eprintln!("reconnecting: {}", status.message()),
        StreamEvent::SourceLost(loss) => eprintln!("opening it again: {}", loss.error),
    })
    .await;

    println!("{:.1} frames/s", result.summary.mean_fps);
    match (result.video_error, result.server_error) {
        (Some(error), _) => Err(error.into()),
        (None, Some(error)) => Err(error.into()),
        (None, None) => Ok(()),
    }
}
