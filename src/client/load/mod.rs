//! A load generator: many requests to one server, in a closed loop or at a fixed rate.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
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
use crate::proto::{ClassifyRequest, Image, image::Source};

mod report;

pub use super::latency::LatencySummary;
pub use report::{LoadReport, ServerMeans};
use report::{Recorder, Window};

/// Connections at a fixed rate; more requests in flight share them.
const OPEN_LOOP_CONNECTIONS: usize = 16;
const OVERLOADED_PAUSE: Duration = Duration::from_millis(10);
const UNAVAILABLE_PAUSE: Duration = Duration::from_millis(100);

/// What to send, and for how long.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// The server to measure.
    pub server: Server,
    /// The model's name; empty = the server's default model.
    pub model: String,
    /// Encoded images, sent in turn.
    pub images: Vec<Bytes>,
    /// When requests are sent.
    pub mode: LoadMode,
    /// Connections; `None` = one for every client of a closed loop, at most 16 for a fixed rate.
    pub connections: Option<usize>,
    /// How long requests are counted.
    pub duration: Duration,
    /// How long requests are sent before counting begins.
    pub warmup: Duration,
    /// The deadline of a request, its retries included.
    pub timeout: Duration,
    /// What a client does when the server refuses a request because it is full.
    pub on_rejection: OnRejection,
}

impl LoadConfig {
    /// 16 clients in a closed loop for 10 s after 1 s of warm-up.
    pub fn new(server: Server, images: Vec<Bytes>) -> Self {
        Self {
            server,
            model: String::new(),
            images,
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
    /// Every client sends its next request when the last one is answered.
    Closed {
        /// How many clients there are.
        clients: usize,
    },
    /// Requests are sent at fixed times, whatever the answers do. Latency counts from the time a
    /// request was due, so a server that stalls can't hide the requests that it held up.
    Open {
        /// Requests a second.
        rate: f64,
        /// Requests that may wait for an answer; one that is due beyond that isn't sent and counts
        /// as missed.
        max_in_flight: usize,
    },
}

/// What a client does when a request is refused with RESOURCE_EXHAUSTED.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRejection {
    /// Wait as long as the server asks, then go on with the next request.
    #[default]
    Wait,
    /// Wait as long as the server asks, then send the same request again until its timeout.
    Retry,
    /// Go on with the next request at once.
    Hammer,
}

/// Why no load could be made.
#[derive(Debug, Error)]
pub enum LoadError {
    /// There is nothing to send.
    #[error("no images to send")]
    NoImages,
    /// The server could not be used to begin with.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// A run that is going on: what has happened so far, and a way to end it early.
#[derive(Debug, Default)]
pub struct LoadProgress {
    ok: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
    stop: watch::Sender<bool>,
}

impl LoadProgress {
    /// Requests that were answered.
    pub fn ok(&self) -> u64 {
        self.ok.load(Ordering::Relaxed)
    }

    /// Requests that were refused with RESOURCE_EXHAUSTED.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Requests that failed otherwise.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Ends the run early; what was measured is reported.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// Measures a server.
pub async fn run_load(config: LoadConfig) -> Result<LoadReport, LoadError> {
    run_load_observed(config, Arc::default()).await
}

/// Measures a server while others look at the progress.
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
    let window = Window {
        start: begin + config.warmup,
        end: begin + config.warmup + config.duration,
    };
    let run = Arc::new(Run {
        requests: requests(&config),
        next_request: AtomicUsize::new(0),
        timeout: config.timeout,
        on_rejection: config.on_rejection,
        end: window.end,
        recorder: Mutex::new(Recorder::new(window)),
        stop: progress.stop.subscribe(),
        progress,
    });
    match config.mode {
        LoadMode::Closed { clients: count } => run.clone().closed_loop(&clients, count).await,
        LoadMode::Open {
            rate,
            max_in_flight,
        } => {
            run.clone()
                .open_loop(&clients, begin, rate, max_in_flight)
                .await
        }
    }
    Ok(run.recorder().report(&config, connections))
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
    let request = |image: &Bytes| ClassifyRequest {
        model: config.model.clone(),
        image: Some(Image {
            source: Some(Source::Encoded(image.clone())),
        }),
        ..ClassifyRequest::default()
    };
    config.images.iter().map(request).collect()
}

/// What the clients of one run share.
struct Run {
    requests: Vec<ClassifyRequest>,
    next_request: AtomicUsize,
    timeout: Duration,
    on_rejection: OnRejection,
    end: Instant,
    recorder: Mutex<Recorder>,
    progress: Arc<LoadProgress>,
    stop: watch::Receiver<bool>,
}

impl Run {
    async fn closed_loop(self: Arc<Self>, clients: &[Client], count: usize) {
        let mut tasks = JoinSet::new();
        for mut client in clients.iter().cycle().take(count).cloned() {
            let run = self.clone();
            tasks.spawn(async move {
                while run.goes_on() {
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
            // Timers tick every millisecond: whatever became due in between is sent at once.
            if due > Instant::now() {
                self.sleep_until(due).await;
            }
            if !self.goes_on() {
                break;
            }
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

    /// Sends the next request, which is due now or was already, and says for how long the client
    /// should pause.
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
            let rejected = status.code() == Code::ResourceExhausted;
            let counter = if rejected {
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

    fn pause_after(&self, status: &Status) -> Option<Duration> {
        match status.code() {
            Code::ResourceExhausted if self.on_rejection == OnRejection::Hammer => None,
            Code::ResourceExhausted => Some(requested_delay(status).unwrap_or(OVERLOADED_PAUSE)),
            Code::Unavailable => Some(requested_delay(status).unwrap_or(UNAVAILABLE_PAUSE)),
            _ => None,
        }
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.end && !*self.stop.borrow()
    }

    /// Sleeps, but not beyond the end of the run.
    async fn sleep_until(&self, time: Instant) {
        let mut stop = self.stop.clone();
        tokio::select! {
            () = sleep_until(time.min(self.end)) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn image_bytes(request: &ClassifyRequest) -> usize {
    match request
        .image
        .as_ref()
        .and_then(|image| image.source.as_ref())
    {
        Some(Source::Encoded(data)) => data.len(),
        _ => 0,
    }
}
