//! Clients that send photos and a video, and record when each answer came and how long it took.

use std::{
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use resnet18_server::{
    client::{
        self,
        stream::{FrameOutcome, StreamEvent, StreamOptions, run_stream},
        video::{VideoOptions, VideoReader, VideoSource},
    },
    proto::{FramePolicy, Image},
};
use tokio::{sync::watch, task::JoinSet};
use tonic::Code;

use super::prometheus::seconds;
use crate::common::{Server, data, image, request};

type Answers = Arc<Mutex<Vec<Answer>>>;

struct Answer {
    /// When it came, in seconds since 1970.
    at: f64,
    /// In seconds, for photos only.
    latency: Option<f64>,
}

/// Load that goes on until it is stopped.
pub struct Load {
    answers: Answers,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
    _folder: tempfile::TempDir,
}

/// What the clients measured in a period.
pub struct Seen {
    /// Latencies of photos, in seconds, sorted.
    pub latencies: Vec<f64>,
    pub frames: u64,
}

impl Load {
    /// Starts this many clients in a closed loop of photos, and one that sends a video.
    pub async fn start(server: &Server, photo_clients: usize) -> Self {
        let (stop, stopped) = watch::channel(false);
        let answers = Answers::default();
        let mut clients = JoinSet::new();
        let photos: Vec<Image> = ["cat", "pizza", "leopard", "umbrella"]
            .map(|name| image(data("photos").join(format!("{name}.jpg"))))
            .into();
        for i in 0..photo_clients {
            let mut client = server.client().await;
            let (photos, stopped, answers) =
                (photos.clone(), stopped.clone(), Arc::clone(&answers));
            clients.spawn(async move {
                for photo in photos.into_iter().cycle().skip(i) {
                    if *stopped.borrow() {
                        break;
                    }
                    let sent = Instant::now();
                    match client.classify(request(photo)).await {
                        Ok(_) => {
                            let latency = Some(sent.elapsed().as_secs_f64());
                            answers.lock().unwrap().push(Answer { at: now(), latency });
                        }
                        Err(status) if status.code() == Code::ResourceExhausted => {
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                        Err(status) => panic!("{status}"),
                    }
                }
            });
        }
        let folder = tempfile::tempdir().unwrap();
        clients.spawn(send_video(
            server,
            make_video(folder.path()),
            stopped,
            Arc::clone(&answers),
        ));
        Self {
            answers,
            stop,
            clients,
            _folder: folder,
        }
    }

    /// The measurements from `begin` to `end`, in seconds since 1970.
    pub fn between(&self, begin: f64, end: f64) -> Seen {
        let answers = self.answers.lock().unwrap();
        let inside = || {
            answers
                .iter()
                .filter(|answer| answer.at > begin && answer.at <= end)
        };
        let mut latencies: Vec<f64> = inside().filter_map(|answer| answer.latency).collect();
        latencies.sort_by(f64::total_cmp);
        Seen {
            frames: (inside().count() - latencies.len()) as u64,
            latencies,
        }
    }

    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
    }
}

impl Seen {
    pub fn mean(&self) -> f64 {
        self.latencies.iter().sum::<f64>() / self.latencies.len() as f64
    }

    pub fn quantile(&self, quantile: f64) -> f64 {
        let last = self.latencies.len() - 1;
        self.latencies[((last as f64 * quantile.min(1.0)).round()) as usize]
    }
}

fn now() -> f64 {
    seconds(SystemTime::now())
}

fn make_video(folder: &Path) -> VideoSource {
    let path = folder.join("clip.mp4");
    let made = Command::new("ffmpeg")
        .args([
            "-loglevel",
            "error",
            "-nostdin",
            "-f",
            "lavfi",
            "-i",
            "testsrc=size=320x240:rate=25",
        ])
        .args(["-frames:v", "50", "-c:v", "mpeg4", "-q:v", "5"])
        .arg(&path)
        .status();
    assert!(made.unwrap().success());
    VideoSource::File(path)
}

/// Sends the video in a loop and in real time, as a camera would.
fn send_video(
    server: &Server,
    source: VideoSource,
    stop: watch::Receiver<bool>,
    answers: Answers,
) -> impl Future<Output = ()> + use<> {
    let options = StreamOptions {
        server: server.grpc.parse().unwrap(),
        model: String::new(),
        top_k: 1,
        policy: FramePolicy::Latest,
        smoothing: Duration::ZERO,
        reconnect: false,
    };
    let video = VideoOptions {
        real_time: true,
        repeat: true,
        shorter_side: 240,
        ..VideoOptions::new(source)
    };
    async move {
        let client = client::connect(&options.server).await.unwrap();
        let video = VideoReader::open(&video).await.unwrap();
        let result = run_stream(&options, client, video, stop, |event| match event {
            StreamEvent::Answer(answer) => {
                assert!(matches!(answer.outcome, FrameOutcome::Classes(_)));
                answers.lock().unwrap().push(Answer {
                    at: now(),
                    latency: None,
                });
            }
            StreamEvent::Reconnecting(status) => panic!("{status}"),
            StreamEvent::SourceLost(loss) => panic!("{}", loss.error),
        });
        let result = result.await;
        assert!(
            result.video_error.is_none() && result.server_error.is_none(),
            "{result:?}"
        );
    }
}
