//! A whole server, to run or to embed: bind, load, serve, drain.
//!
//! ```no_run
//! # async fn embed() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{future::pending, sync::Arc};
//!
//! use resnet18_server::server::{self, Control, Listeners, ServerConfig};
//!
//! // The bundled model, on the fastest engine that starts.
//! let config = ServerConfig::default();
//! let listeners = Listeners::bind("127.0.0.1:8001", "127.0.0.1:8002").await?;
//! let control = Control {
//!     shutdown: pending(), // or any future that completes when the server is to end
//!     reload: Arc::default(),
//! };
//! server::run(listeners, config, control).await?;
//! # Ok(())
//! # }
//! ```

use std::{future::Future, io, num::NonZeroUsize, sync::Arc, thread, time::Duration};

use tokio::{
    net::{TcpListener, ToSocketAddrs},
    sync::Notify,
    time::sleep,
};

pub use crate::{
    answer::Activation,
    cache::ArtifactCache,
    engine::{
        EngineConfig, EngineError, EngineKind, OnnxRuntimeConfig, OpenVinoConfig, Precision,
        tensorrt::TensorRtConfig,
    },
    grpc::{AccessControl, Deadlines, GrpcConfig, Listener, OpenService, TlsConfig, TokenConfig},
    http::{HttpConfig, Origin, Web},
    image::{Exif, Fit, JpegScaling, PreprocessConfig},
    model::{ChannelOrder, Interpolation, Overrides, Preset, Scale},
    quantization::{Estimator, QuantizationConfig, StartupQuantization},
    registry::{
        check::{CheckConfig, CheckError, CheckLimits, Passed, Refusal},
        control::ModelControl,
        loader::{ListedModel, LoadError, LoaderConfig, ModelSource},
    },
    scheduler::{Capacity, Failure, SchedulerConfig, SpawnError},
    teaching::{Limits as TeachingLimits, StartError as TeachingError, TeachingConfig},
};
use crate::{
    engine,
    grpc::{self, Services},
    http::{self, HttpContext},
    metrics::Exporter,
    registry::{
        Registry,
        loader::{Loader, StartEngine},
    },
    scheduler::Scheduler,
    state::{State, StateCell},
    teaching::Teacher,
    telemetry::summary,
};

/// How long the last answers may take to be sent, at shutdown and after an engine was lost, where
/// callers keep their connections open.
const FLUSH: Duration = Duration::from_secs(1);
/// How long the worker threads may take to end after the last call.
const THREADS_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the scheduler is checked for a stall.
const STALL_INTERVAL: Duration = Duration::from_secs(1);
/// How often the exporter's histograms are brought up to date.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// How a server runs.
#[derive(Clone)]
pub struct ServerConfig {
    /// Which models are served, and on which engine.
    pub loader: LoaderConfig,
    /// Who decides which models of a folder are served after the start; without a folder, only
    /// [`ModelControl::None`] has a meaning.
    pub model_control: ModelControl,
    /// What callers may teach the server while it runs; `None` means nothing.
    pub teaching: Option<TeachingConfig>,
    /// The model that answers calls that name none; `None` means the first.
    pub default_model: Option<String>,
    /// How work is queued, batched and executed.
    pub scheduler: SchedulerConfig,
    /// The limits of the gRPC side, and who may call.
    pub grpc: GrpcConfig,
    /// What the HTTP port serves besides metrics and probes, and to whom.
    pub http: HttpConfig,
    /// How long requests are still served at shutdown after health and readiness checks have begun
    /// to fail, so that load balancers notice.
    pub drain_delay: Duration,
    /// How long accepted calls may take to finish at shutdown.
    pub drain_timeout: Duration,
}

/// The bundled model on the fastest engine that starts, on all CPUs, with the limits that the
/// program has by default and without the live page and REST.
impl Default for ServerConfig {
    fn default() -> Self {
        let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self {
            loader: LoaderConfig {
                source: ModelSource::Listed(vec![ListedModel::bundled()]),
                taught: None,
                engine: EngineConfig::new(threads),
                quantization: None,
                check: None,
                watch_interval: None,
            },
            model_control: ModelControl::None,
            teaching: None,
            default_model: None,
            scheduler: SchedulerConfig {
                threads,
                queue_capacity: Capacity::default(),
                max_queue_delay: Duration::ZERO,
                preprocess: PreprocessConfig::default(),
                stall_timeout: SchedulerConfig::STALL_TIMEOUT,
            },
            grpc: GrpcConfig::default(),
            http: HttpConfig::default(),
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// The sockets of a server.
pub struct Listeners {
    /// The gRPC port.
    pub grpc: Listener,
    /// The HTTP port, with metrics, probes and the live page.
    pub http: TcpListener,
}

impl Listeners {
    /// Binds both ports.
    ///
    /// # Errors
    /// When an address can't be resolved or is in use.
    pub async fn bind(grpc: impl ToSocketAddrs, http: impl ToSocketAddrs) -> io::Result<Self> {
        Ok(Self {
            grpc: Listener::Tcp(TcpListener::bind(grpc).await?),
            http: TcpListener::bind(http).await?,
        })
    }
}

/// Why a server stopped without a shutdown request.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A model can't be served.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Nothing can be taught, although that was asked for.
    #[error(transparent)]
    Teaching(#[from] TeachingError),
    /// A worker thread can't be started.
    #[error(transparent)]
    Thread(#[from] SpawnError),
    /// Nothing can be classified any more: an engine is lost, or too many threads hang.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The gRPC side failed.
    #[error("serving gRPC failed: {0}")]
    Grpc(#[from] tonic::transport::Error),
    /// The HTTP side failed.
    #[error("serving HTTP failed: {0}")]
    Http(#[from] io::Error),
}

/// What controls a running server.
pub struct Control<S> {
    /// Completes when the server is to finish accepted calls and end.
    pub shutdown: S,
    /// Notified when the models' files are to be checked at once.
    pub reload: Arc<Notify>,
}

/// Serves until `shutdown` completes and all accepted calls have been answered.
///
/// Both ports answer from the start; requests are accepted once the first model has been loaded,
/// checked and warmed up.
///
/// # Errors
/// When a model can't be loaded at the start, an engine is lost or a listener fails.
pub async fn run(
    listeners: Listeners,
    config: ServerConfig,
    control: Control<impl Future<Output = ()>>,
) -> Result<(), ServerError> {
    run_with(engine::start, listeners, config, control).await
}

async fn run_with(
    start: StartEngine,
    listeners: Listeners,
    config: ServerConfig,
    control: Control<impl Future<Output = ()>>,
) -> Result<(), ServerError> {
    let exporter = Exporter::install();
    #[cfg(feature = "tensorrt")]
    exporter.number_gpus(engine::tensorrt::gpu_uuids);

    let state = StateCell::default();
    let (controller, commands) = config.model_control.channel(config.teaching.is_some());
    let registry = Arc::new(Registry::controlled(config.default_model, controller));
    let teacher = match config.teaching {
        Some(teaching) => {
            let source = config.loader.source.clone();
            Some(open_teacher(teaching, source, Arc::clone(&registry)).await?)
        }
        None => None,
    };
    let scheduler = Arc::new(Scheduler::new(config.scheduler)?);

    // What answers the two ports.
    let services = Services::new(
        Arc::clone(&registry),
        state.clone(),
        teacher.clone(),
        &config.grpc,
    );
    let context = HttpContext {
        state: state.clone(),
        registry: Arc::clone(&registry),
        exporter: exporter.clone(),
        memory: services.memory.clone(),
        tls: config.grpc.access.http(),
    };
    let http = http::serve(listeners.http, context, config.http, services.for_http());
    let grpc = grpc::serve(
        listeners.grpc,
        services,
        Arc::clone(&registry),
        state.clone(),
        config.grpc,
    );
    let grpc = async {
        let served = grpc.await;
        // Calls of the live page and of REST arrive on the other port.
        if state.calls() > 0 {
            state.idle().await;
            sleep(FLUSH).await;
        }
        served
    };

    // What loads and teaches models.
    let loader = Loader {
        config: config.loader,
        start,
        registry,
        scheduler: Arc::clone(&scheduler),
        state: state.clone(),
    };
    let teach = start_teacher(teacher, loader.clone());
    let load = loader.run(control.reload, commands);

    // What watches over the server and ends it.
    let upkeep = async {
        loop {
            sleep(METRICS_UPKEEP).await;
            exporter.upkeep();
            summary::flush();
        }
    };
    let failed = async {
        let failure = scheduler.failed().await;
        state.set(State::Failed(failure.to_string().into()));
        // Waiting callers are answered; the supervisor of the process starts a new one.
        sleep(FLUSH).await;
        failure
    };
    let stalls = follow_stalls(&scheduler, &state);
    let shutdown = async {
        control.shutdown.await;
        drain(&state, config.drain_delay, config.drain_timeout).await;
    };

    let ended = tokio::select! {
        served = grpc => served.map_err(ServerError::from),
        served = http => served.map_err(ServerError::from),
        () = shutdown => Ok(()),
        loaded = load => match loaded {
            Ok(never) => match never {},
            Err(error) => Err(error.into()),
        },
        failure = failed => Err(failure.into()),
        failure = teach => Err(failure.into()),
        () = upkeep => Ok(()),
        () = stalls => Ok(()),
    };

    stop_threads(scheduler, &ended).await;
    ended
}

/// Waits for the worker threads to end, and logs that the server has stopped if it did without an
/// error.
async fn stop_threads(scheduler: Arc<Scheduler>, ended: &Result<(), ServerError>) {
    // Threads of an engine that has failed may hang in a driver that no longer answers.
    let limit = match ended {
        Err(ServerError::Failed(_)) => Duration::ZERO,
        _ => THREADS_TIMEOUT,
    };
    let left = tokio::task::spawn_blocking(move || scheduler.stop(limit)).await;
    if ended.is_err() {
        return;
    }

    match left {
        Ok(left @ 1..) => {
            let threads = if left == 1 {
                "thread was"
            } else {
                "threads were"
            };
            tracing::warn!("stopped; {left} worker {threads} still busy and left behind");
        }
        _ => tracing::info!("stopped"),
    }
}

/// Finds what was taught before.
async fn open_teacher(
    config: TeachingConfig,
    source: ModelSource,
    registry: Arc<Registry>,
) -> Result<Arc<Teacher>, TeachingError> {
    let opened = tokio::task::spawn_blocking(move || Teacher::open(config, source, registry));
    let teacher = opened
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    Ok(Arc::new(teacher))
}

/// Starts the model that is taught new classes, once the first model that is served has had the
/// machine for itself. Completes only if that fails.
async fn start_teacher(teacher: Option<Arc<Teacher>>, loader: Loader) -> TeachingError {
    let Some(teacher) = teacher else {
        return std::future::pending().await;
    };
    let mut states = loader.state.watch();
    // Can't fail: the sender lives in `loader`.
    let _ = states.wait_for(|state| *state != State::Starting).await;
    let started = tokio::task::spawn_blocking(move || teacher.start(&loader));
    match started
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    {
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}

/// Makes the server unready, and its health checks fail, while no job makes progress although jobs
/// are queued.
async fn follow_stalls(scheduler: &Scheduler, state: &StateCell) {
    let mut was_stalled = false;
    loop {
        match scheduler.stalled() {
            Some(time) => {
                state.stall(|| {
                    format!(
                        "no job has made progress for {time:.0?} although jobs are queued \
                         (--stall-timeout)"
                    )
                    .into()
                });
                if !was_stalled {
                    tracing::error!(
                        "no job has made progress for {time:.0?} although jobs are queued"
                    );
                }
                was_stalled = true;
            }
            None => {
                state.moves_again();
                if was_stalled {
                    tracing::info!("jobs make progress again");
                }
                was_stalled = false;
            }
        }
        sleep(STALL_INTERVAL).await;
    }
}

/// Fails health and readiness checks for `delay` while requests are still served, then lets
/// accepted calls finish for up to `timeout`.
async fn drain(state: &StateCell, delay: Duration, timeout: Duration) {
    if !delay.is_zero() {
        tracing::info!("no longer ready; still serving for {delay:?}");
        state.set(State::Leaving);
        sleep(delay).await;
    }

    tracing::info!("shutting down: finishing accepted calls, for {timeout:?} at most");
    state.set(State::Draining);
    // Connections may stay open for ever, with a health watch for example: only calls count.
    tokio::select! {
        () = state.idle() => sleep(FLUSH).await,
        () = sleep(timeout) => {
            tracing::warn!("some calls had not ended after {timeout:?}; closing them");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tonic::{
        Code,
        transport::{Channel, Endpoint},
    };
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };

    use super::*;
    use crate::{
        engine::{Engine, EngineInfo, Lanes},
        model::Model,
        proto::{ClassifyRequest, Image, classifier_client::ClassifierClient, image::Source},
    };

    /// Answers once, then is lost.
    struct Failing(usize);

    impl Engine for Failing {
        fn infer(&mut self, _: &[u8], _: usize, logits: &mut [f32]) -> Result<(), EngineError> {
            self.0 += 1;
            logits.fill(0.0);
            match self.0 {
                1 => Ok(()),
                _ => Err(EngineError::Lost {
                    kind: EngineKind::Embedded,
                    reason: "as told".into(),
                }),
            }
        }
    }

    /// Never answers.
    struct Hanging;

    impl Engine for Hanging {
        fn infer(&mut self, _: &[u8], _: usize, _: &mut [f32]) -> Result<(), EngineError> {
            loop {
                thread::park();
            }
        }
    }

    fn start_failing(_: &EngineConfig, _: &Model) -> Result<Lanes, EngineError> {
        Ok(one_lane(Failing(0)))
    }

    fn start_hanging(_: &EngineConfig, _: &Model) -> Result<Lanes, EngineError> {
        Ok(one_lane(Hanging))
    }

    fn one_lane(engine: impl Engine + 'static) -> Lanes {
        let info = EngineInfo {
            kind: EngineKind::Embedded,
            version: "1".into(),
            precision: Precision::Fp32,
            device: "test".into(),
            max_batch: 1,
            fixed_batch: false,
            batch_sizes: Vec::new(),
            offloaded: false,
            embedding: None,
            warnings: Vec::new(),
        };
        Lanes {
            info,
            wide: None,
            narrow: vec![Box::new(engine)],
            plans: Vec::new(),
        }
    }

    fn config() -> ServerConfig {
        ServerConfig {
            drain_timeout: Duration::from_secs(5),
            ..ServerConfig::default()
        }
    }

    /// A running server, and a connection to it.
    struct Running {
        server: tokio::task::JoinHandle<Result<(), ServerError>>,
        channel: Channel,
        shutdown: Arc<Notify>,
    }

    async fn start(engine: StartEngine, config: ServerConfig) -> Running {
        let bind = || TcpListener::bind("127.0.0.1:0");
        let listeners = Listeners {
            grpc: Listener::Tcp(bind().await.unwrap()),
            http: bind().await.unwrap(),
        };
        let url = format!("http://{}", listeners.grpc);
        let shutdown = Arc::new(Notify::new());
        let control = Control {
            shutdown: Arc::clone(&shutdown).notified_owned(),
            reload: Arc::default(),
        };
        let server = tokio::spawn(run_with(engine, listeners, config, control));
        let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
        Running {
            server,
            channel,
            shutdown,
        }
    }

    /// Waits until the health service reports the first status, and then until the second.
    async fn watch_health(channel: Channel) -> impl AsyncFnMut(ServingStatus) {
        let mut watch = HealthClient::new(channel)
            .watch(HealthCheckRequest {
                service: "resnet18.v1.Classifier".into(),
            })
            .await
            .unwrap()
            .into_inner();
        async move |wanted| while watch.message().await.unwrap().unwrap().status() != wanted {}
    }

    fn cat() -> ClassifyRequest {
        let photo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cat.jpg");
        ClassifyRequest {
            image: Some(Image {
                source: Some(Source::Encoded(std::fs::read(photo).unwrap().into())),
            }),
            ..Default::default()
        }
    }

    async fn ended(
        server: tokio::task::JoinHandle<Result<(), ServerError>>,
    ) -> Result<(), ServerError> {
        let ended = tokio::time::timeout(Duration::from_secs(8), server).await;
        ended.expect("the server ends by itself").unwrap()
    }

    #[tokio::test]
    async fn a_lost_engine_fails_the_server_which_then_ends_with_the_error() {
        let Running {
            server, channel, ..
        } = start(start_failing, config()).await;
        let mut until = watch_health(channel.clone()).await;
        until(ServingStatus::Serving).await;

        let mut client = ClassifierClient::new(channel);
        assert!(client.classify(cat()).await.is_ok());
        assert_eq!(
            client.classify(cat()).await.unwrap_err().code(),
            Code::Internal
        );
        until(ServingStatus::NotServing).await;
        assert!(matches!(ended(server).await, Err(ServerError::Failed(_))));
    }

    #[tokio::test]
    async fn an_engine_that_hangs_is_given_up_and_the_server_ends() {
        let mut config = config();
        config.scheduler.stall_timeout = Duration::from_millis(500);
        let Running {
            server, channel, ..
        } = start(start_hanging, config).await;
        let mut until = watch_health(channel.clone()).await;
        until(ServingStatus::Serving).await;

        let mut client = ClassifierClient::new(channel);
        let error = client.classify(cat()).await.unwrap_err();
        assert_eq!(error.code(), Code::Internal, "{error}");
        until(ServingStatus::NotServing).await;
        let error = ended(server).await.unwrap_err();
        assert!(error.to_string().contains("had not ended after"), "{error}");
    }

    #[tokio::test]
    async fn a_thread_that_hangs_does_not_hold_up_the_end() {
        let config = ServerConfig {
            drain_timeout: Duration::from_millis(300),
            ..config()
        };
        let Running {
            server,
            channel,
            shutdown,
        } = start(start_hanging, config).await;
        let mut until = watch_health(channel.clone()).await;
        until(ServingStatus::Serving).await;

        let mut client = ClassifierClient::new(channel);
        let call = tokio::spawn(async move { client.classify(cat()).await });
        sleep(Duration::from_millis(300)).await;
        shutdown.notify_one();
        assert!(ended(server).await.is_ok());
        assert!(call.await.unwrap().is_err());
    }
}
