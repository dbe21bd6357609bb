//! A load generator: sends many requests to one server and reports throughput and latency.
//!
//! In a closed loop ([`LoadMode::Closed`]) a fixed number of clients each wait for an answer before
//! they send the next request, so a slow server is asked less. At a fixed rate ([`LoadMode::Open`])
//! requests are sent on schedule, and latency counts from the time a request was due, which avoids
//! coordinated omission: requests that a stalled server held up still count.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use resnet18_server::client::load::{LoadConfig, LoadMode, run_load};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let images = vec![std::fs::read("cat.jpg")?.into()];
//! let config = LoadConfig {
//!     mode: LoadMode::Closed { clients: 8 },
//!     duration: Duration::from_secs(5),
//!     ..LoadConfig::new("http://127.0.0.1:8001".parse()?, images)
//! };
//! let report = run_load(config).await?;
//! println!("{:.1} images/s", report.goodput);
//! # Ok(())
//! # }
//! ```

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use thiserror::Error;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tonic::{Code, Status};

use super::{Client, ClientError, Server, classify, connect, find_model, retry::requested_delay};
use crate::{
    proto::{ClassifyRequest, Image, PixelFormat, RawFrame, image::Source},
    sync,
};

mod report;

use self::report::{LoadRecorder, MeasurementWindow};
pub use self::report::{LoadReport, ServerMeans};
pub use super::LatencySummary;

/// The most connections at a fixed rate; the requests in flight share them.
const OPEN_LOOP_CONNECTIONS: usize = 16;

/// The pause after RESOURCE_EXHAUSTED from a server that does not ask for a delay.
const OVERLOADED_PAUSE: Duration = Duration::from_millis(10);

/// The pause after UNAVAILABLE from a server that does not ask for a delay.
const UNAVAILABLE_PAUSE: Duration = Duration::from_millis(100);

/// What to send, and for how long.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// The server to measure.
    pub server: Server,
    /// The model's name; empty for the server's default model.
    pub model: String,
    /// The image files to send, in turn; pixels if [`frame_size`](Self::frame_size) is given.
    pub images: Vec<Bytes>,
    /// The images are no files but frames of red, green and blue bytes, of this width and height,
    /// which the server need not decode.
    pub frame_size: Option<[u32; 2]>,
    /// When requests are sent.
    pub mode: LoadMode,
    /// How many connections to open; `None` means one for each client of a closed loop, and up to
    /// 16 for a fixed rate.
    pub connections: Option<usize>,
    /// How long requests are measured, after the warm-up.
    pub duration: Duration,
    /// How long requests are sent before the measurement begins.
    pub warmup: Duration,
    /// How long a request may take, including its retries.
    pub timeout: Duration,
    /// What a client does when the server rejects a request because its queue is full.
    pub on_rejection: OnRejection,
}

impl LoadConfig {
    /// 16 clients in a closed loop for 10 s after 1 s of warm-up, with a timeout of 10 s.
    pub fn new(server: Server, images: Vec<Bytes>) -> Self {
        Self {
            server,
            model: String::new(),
            images,
            frame_size: None,
            mode: LoadMode::Closed { clients: 16 },
            connections: None,
            duration: Duration::from_secs(10),
            warmup: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            on_rejection: OnRejection::Wait,
        }
    }
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LoadMode {
    /// Each client sends its next request when the last one has been answered.
    Closed {
        /// The number of concurrent clients.
        clients: usize,
    },
    /// Requests are sent on a fixed schedule, however long answers take. Latency counts from the
    /// time a request was due, so a stalled server can't hide the requests that it held up.
    Open {
        /// Requests per second.
        rate: f64,
        /// How many requests may be awaiting an answer. A request that is due while this many are
        /// in flight is not sent and counts as missed.
        max_in_flight: usize,
    },
}

/// What a client does when a request is rejected with RESOURCE_EXHAUSTED.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRejection {
    /// Wait as long as the server asks, then go on with the next request.
    #[default]
    Wait,
    /// Wait as long as the server asks, then send the same request again, until its timeout.
    Retry,
    /// Go on with the next request immediately.
    Hammer,
}

/// Why a load run could not start.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The configuration has no images.
    #[error("no images to send")]
    NoImages,
    /// The server can't be reached, or does not have the model.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// The progress of a run, shared with the code that displays it, and a way to end the run early.
///
/// Unlike the report, it counts the requests of the warm-up too.
#[derive(Debug, Default)]
pub struct LoadProgress {
    ok: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
    stop: watch::Sender<bool>,
}

impl LoadProgress {
    /// How many requests were answered with OK so far.
    pub fn ok(&self) -> u64 {
        self.ok.load(Ordering::Relaxed)
    }

    /// How many attempts were rejected with RESOURCE_EXHAUSTED so far.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// How many attempts failed for another reason so far.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Ends the run early; the report covers the time until then.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// Runs a load test.
///
/// # Errors
/// [`LoadError`] when it can't start. Errors during the run are counted in the report.
pub async fn run_load(config: LoadConfig) -> Result<LoadReport, LoadError> {
    run_load_observed(config, Arc::default()).await
}

/// Runs a load test like [`run_load`], with its progress visible to others through `progress`.
///
/// # Errors
/// [`LoadError`] when it can't start.
pub async fn run_load_observed(
    config: LoadConfig,
    progress: Arc<LoadProgress>,
) -> Result<LoadReport, LoadError> {
    if config.images.is_empty() {
        return Err(LoadError::NoImages);
    }
    let clients = connect_all(&config).await?;
    let connections = clients.len();

    let begin = Instant::now();
    let window = MeasurementWindow {
        start: begin + config.warmup,
        end: begin + config.warmup + config.duration,
    };
    let run = Arc::new(LoadRun {
        requests: requests(&config),
        next_request: AtomicUsize::new(0),
        timeout: config.timeout,
        on_rejection: config.on_rejection,
        end: window.end,
        recorder: Mutex::new(LoadRecorder::new(window)),
        stop: progress.stop.subscribe(),
        progress,
    });

    match config.mode {
        LoadMode::Closed { clients: count } => {
            run.clone().closed_loop(&clients, count).await;
        }
        LoadMode::Open {
            rate,
            max_in_flight,
        } => {
            run.clone()
                .open_loop(&clients, begin, rate, max_in_flight)
                .await;
        }
    }

    let report = run.recorder().report(&config, connections);
    Ok(report)
}

async fn connect_all(config: &LoadConfig) -> Result<Vec<Client>, ClientError> {
    let count = config.connections.unwrap_or(match config.mode {
        LoadMode::Closed { clients } => clients,
        LoadMode::Open { max_in_flight, .. } => max_in_flight.min(OPEN_LOOP_CONNECTIONS),
    });

    let mut first = connect(&config.server).await?;
    find_model(
        &mut first,
        &config.server.address,
        &config.model,
        config.timeout,
    )
    .await?;

    let mut clients = vec![first];
    while clients.len() < count {
        clients.push(connect(&config.server).await?);
    }
    Ok(clients)
}

fn requests(config: &LoadConfig) -> Vec<ClassifyRequest> {
    let image = |data: &Bytes| match config.frame_size {
        None => Image::encoded(data.clone()),
        Some([width, height]) => Image {
            source: Some(Source::Raw(RawFrame {
                format: PixelFormat::Rgb8.into(),
                width,
                height,
                stride: 0,
                data: data.clone(),
            })),
        },
    };
    let request = |data: &Bytes| ClassifyRequest {
        model: config.model.clone(),
        image: Some(image(data)),
        ..ClassifyRequest::default()
    };
    config.images.iter().map(request).collect()
}

/// The state that the clients of one run share.
struct LoadRun {
    requests: Vec<ClassifyRequest>,
    next_request: AtomicUsize,
    timeout: Duration,
    on_rejection: OnRejection,
    end: Instant,
    recorder: Mutex<LoadRecorder>,
    progress: Arc<LoadProgress>,
    stop: watch::Receiver<bool>,
}

impl LoadRun {
    async fn closed_loop(self: Arc<Self>, clients: &[Client], count: usize) {
        let mut tasks = JoinSet::new();
        for mut client in clients.iter().cycle().take(count).cloned() {
            let run = self.clone();
            tasks.spawn(async move {
                while run.should_continue() {
                    if let Some(pause) = run.send(&mut client, Instant::now()).await {
                        run.sleep_until(Instant::now() + pause).await;
                    }
                }
            });
        }

        self.sleep_until(self.end).await;
        self.recorder().close(Instant::now());
        tasks.join_all().await;
    }

    async fn open_loop(
        self: Arc<Self>,
        clients: &[Client],
        begin: Instant,
        rate: f64,
        max_in_flight: usize,
    ) {
        let mut tasks = JoinSet::new();
        let in_flight = Arc::new(Semaphore::new(max_in_flight));
        for (number, client) in clients.iter().cycle().enumerate() {
            let due = begin + Duration::from_secs_f64(number as f64 / rate);
            if due >= self.end {
                break;
            }
            // Tokio's timer has a resolution of 1 ms: requests that became due in between are sent
            // without a pause.
            if due > Instant::now() {
                self.sleep_until(due).await;
            }
            if !self.should_continue() {
                break;
            }

            // Frees the memory of the tasks that have ended.
            while tasks.try_join_next().is_some() {}
            match in_flight.clone().try_acquire_owned() {
                Ok(permit) => {
                    let (run, mut client) = (self.clone(), client.clone());
                    tasks.spawn(async move {
                        run.send(&mut client, due).await;
                        drop(permit);
                    });
                }
                Err(_) => self.recorder().missed(due),
            }
        }

        self.sleep_until(self.end).await;
        self.recorder().close(Instant::now());
        tasks.join_all().await;
    }

    /// Sends the next request, which was due at `due`, and returns how long the client should pause
    /// before the one after it; `None` means no pause.
    async fn send(&self, client: &mut Client, due: Instant) -> Option<Duration> {
        let number = self.next_request.fetch_add(1, Ordering::Relaxed);
        let request = &self.requests[number % self.requests.len()];
        let deadline = due + self.timeout;
        let mut began = due;

        loop {
            let outcome = classify(client, request.clone(), deadline).await;
            let finished = Instant::now();
            let status = match outcome {
                Ok(response) => {
                    self.progress.ok.fetch_add(1, Ordering::Relaxed);
                    let timing = response.timing.unwrap_or_default();
                    self.recorder()
                        .answered(due, began, finished, image_bytes(request), &timing);
                    return None;
                }
                Err(status) => status,
            };

            let counter = if status.code() == Code::ResourceExhausted {
                &self.progress.rejected
            } else {
                &self.progress.failed
            };
            counter.fetch_add(1, Ordering::Relaxed);
            self.recorder().refused(due, began, finished, &status);

            let pause = self.pause_after(&status)?;
            if self.on_rejection != OnRejection::Retry {
                return Some(pause);
            }
            if finished + pause >= deadline {
                self.recorder().gave_up(due);
                return Some(pause);
            }
            sleep_until(finished + pause).await;
            began = Instant::now();
        }
    }

    /// How long to wait after an answer other than OK; `None` means not at all.
    fn pause_after(&self, status: &Status) -> Option<Duration> {
        match status.code() {
            Code::ResourceExhausted if self.on_rejection == OnRejection::Hammer => None,
            Code::ResourceExhausted => Some(requested_delay(status).unwrap_or(OVERLOADED_PAUSE)),
            Code::Unavailable => Some(requested_delay(status).unwrap_or(UNAVAILABLE_PAUSE)),
            _ => None,
        }
    }

    fn should_continue(&self) -> bool {
        Instant::now() < self.end && !*self.stop.borrow()
    }

    /// Sleeps until `time`, or until the run ends if that is earlier.
    async fn sleep_until(&self, time: Instant) {
        let mut stop = self.stop.clone();
        tokio::select! {
            () = sleep_until(time.min(self.end)) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    fn recorder(&self) -> MutexGuard<'_, LoadRecorder> {
        sync::lock(&self.recorder)
    }
}

fn image_bytes(request: &ClassifyRequest) -> usize {
    match request
        .image
        .as_ref()
        .and_then(|image| image.source.as_ref())
    {
        Some(Source::Encoded(data)) => data.len(),
        Some(Source::Raw(frame)) => frame.data.len(),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_sent_as_pixels_and_files_as_they_are() {
        let server: Server = "http://127.0.0.1:1".parse().unwrap();
        let mut config = LoadConfig::new(server, vec![Bytes::from_static(&[7; 12])]);
        let source = |config: &LoadConfig| requests(config)[0].image.clone().unwrap().source;
        assert_eq!(
            source(&config),
            Some(Source::Encoded(Bytes::from_static(&[7; 12])))
        );

        config.frame_size = Some([2, 2]);
        let Some(Source::Raw(frame)) = source(&config) else {
            panic!("a frame");
        };
        assert_eq!(frame.format(), PixelFormat::Rgb8);
        assert_eq!((frame.width, frame.height, frame.stride), (2, 2, 0));
        assert_eq!(image_bytes(&requests(&config)[0]), 12);
    }
}
