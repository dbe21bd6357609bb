//! A whole server: bind, load, serve, drain.

use std::{future::Future, io, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::Notify};

use crate::{
    engine::{self, EngineError},
    grpc::{self, GrpcConfig, Listener, Services},
    http::{self, HttpContext, Web},
    metrics::Exporter,
    registry::{
        Registry,
        loader::{LoadError, Loader, LoaderConfig, StartEngine},
    },
    scheduler::{Scheduler, SchedulerConfig, SpawnError},
    state::{State, StateCell},
};

/// How long the last answers may take to leave, once they have been made, where callers keep their
/// connections.
const FLUSH: Duration = Duration::from_secs(1);

/// How a server runs.
#[derive(Clone)]
pub struct ServerConfig {
    /// Which models are served, and what runs them.
    pub loader: LoaderConfig,
    /// The model that answers where none is named; `None` = the first.
    pub default_model: Option<String>,
    /// How requests are queued and batched.
    pub scheduler: SchedulerConfig,
    /// The limits of the gRPC side.
    pub grpc: GrpcConfig,
    /// Who gets the page at `/` of the HTTP port.
    pub web: Web,
    /// How long requests are still served when the server shuts down, while health and readiness
    /// say no.
    pub drain_delay: Duration,
    /// How long accepted work may take to finish when the server shuts down.
    pub drain_timeout: Duration,
}

/// Where a server listens.
pub struct Listeners {
    /// For gRPC.
    pub grpc: Listener,
    /// For HTTP.
    pub http: TcpListener,
}

/// Why a server ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A model can't be served.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A worker thread can't be started.
    #[error(transparent)]
    Thread(#[from] SpawnError),
    /// An engine will never answer again.
    #[error(transparent)]
    Engine(#[from] Arc<EngineError>),
    /// The gRPC side failed.
    #[error("serving gRPC failed: {0}")]
    Grpc(#[from] tonic::transport::Error),
    /// The HTTP side failed.
    #[error("serving HTTP failed: {0}")]
    Http(#[from] io::Error),
}

/// What tells a running server what to do.
pub struct Control<S> {
    /// Completes when the server is to finish what it accepted and end.
    pub shutdown: S,
    /// Asks for a look at the models' files.
    pub reload: Arc<Notify>,
}

/// Serves until `shutdown` completes and what was accepted has been answered.
///
/// Both ports answer at once; requests are accepted when the first model has been loaded, checked
/// and warmed up.
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
    let state = StateCell::default();
    let registry = Arc::new(Registry::new(config.default_model));
    let scheduler = Arc::new(Scheduler::new(config.scheduler)?);

    let context = HttpContext {
        state: state.clone(),
        registry: Arc::clone(&registry),
        exporter: exporter.clone(),
    };
    let calls = Services::new(Arc::clone(&registry), state.clone(), &config.grpc);
    let http = http::serve(listeners.http, context, config.web, calls.for_browsers());
    let grpc = grpc::serve(
        listeners.grpc,
        calls,
        Arc::clone(&registry),
        state.clone(),
        config.grpc,
    );
    let grpc = async {
        let served = grpc.await;
        // The page's calls come by the other port.
        if state.calls() > 0 {
            state.idle().await;
            tokio::time::sleep(FLUSH).await;
        }
        served
    };
    let loader = Loader {
        config: config.loader,
        start,
        registry,
        scheduler: Arc::clone(&scheduler),
        state: state.clone(),
    };
    let load = loader.run(control.reload);
    let upkeep = async {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            exporter.upkeep();
        }
    };
    let lost = async {
        let error = scheduler.lost().await;
        state.set(State::Failed(error.to_string().into()));
        // Those who wait are answered; whoever watches over the process starts a new one.
        tokio::time::sleep(FLUSH).await;
        // Its threads may hang in a driver that no longer answers: they are not waited for.
        std::mem::forget(Arc::clone(&scheduler));
        error
    };
    let shutdown = async {
        control.shutdown.await;
        if !config.drain_delay.is_zero() {
            tracing::info!(
                "no longer ready; still serving for {:?}",
                config.drain_delay
            );
            state.set(State::Leaving);
            tokio::time::sleep(config.drain_delay).await;
        }
        tracing::info!(
            "shutting down: finishing what was accepted, for {:?} at most",
            config.drain_timeout
        );
        state.set(State::Draining);
        // Connections may stay open for ever, by a health watch for example: what counts is the
        // calls.
        tokio::select! {
            () = state.idle() => tokio::time::sleep(FLUSH).await,
            () = tokio::time::sleep(config.drain_timeout) => {
                tracing::warn!("some calls had not ended after {:?}; closing them", config.drain_timeout);
            }
        }
    };

    tokio::select! {
        served = grpc => served?,
        served = http => served?,
        () = shutdown => {}
        loaded = load => match loaded? {},
        error = lost => return Err(error.into()),
        () = upkeep => {}
    }
    tracing::info!("stopped");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroUsize, path::Path};

    use tonic::{Code, transport::Endpoint};
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };

    use super::*;
    use crate::{
        engine::{Engine, EngineConfig, EngineInfo, EngineKind, Lanes, Precision},
        grpc::Deadlines,
        image::PreprocessConfig,
        model::{Model, Overrides},
        proto::{ClassifyRequest, Image, classifier_client::ClassifierClient, image::Source},
        registry::loader::{ListedModel, ModelSource},
        scheduler::Capacity,
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

    fn start_failing(_: &EngineConfig, _: &Model) -> Result<Lanes, EngineError> {
        let info = EngineInfo {
            kind: EngineKind::Embedded,
            version: "1".into(),
            precision: Precision::Fp32,
            device: "test".into(),
            max_batch: 1,
            fixed_batch: false,
            offloaded: false,
        };
        Ok(Lanes {
            info,
            wide: None,
            narrow: vec![Box::new(Failing(0))],
        })
    }

    fn config() -> ServerConfig {
        let one = NonZeroUsize::MIN;
        let overrides = Overrides::default();
        ServerConfig {
            loader: LoaderConfig {
                source: ModelSource::Listed(vec![ListedModel {
                    name: "model".into(),
                    path: None,
                    overrides,
                }]),
                engine: EngineConfig::new(one),
                quantization: None,
                watch_interval: None,
            },
            default_model: None,
            scheduler: SchedulerConfig {
                threads: one,
                queue_capacity: Capacity::Usual,
                max_queue_delay: Duration::ZERO,
                preprocess: PreprocessConfig::default(),
            },
            grpc: GrpcConfig {
                max_message_bytes: 1 << 24,
                max_streams: 8,
                max_calls: 8,
                max_connections: 8,
                max_connection_age: None,
                connection_grace: Duration::ZERO,
                deadlines: Deadlines::default(),
                receive_timeout: Duration::from_secs(5),
                access: Arc::default(),
            },
            web: Web::Off,
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(5),
        }
    }

    #[tokio::test]
    async fn a_lost_engine_fails_the_server_which_then_ends_with_the_error() {
        let bind = || TcpListener::bind("127.0.0.1:0");
        let listeners = Listeners {
            grpc: Listener::Tcp(bind().await.unwrap()),
            http: bind().await.unwrap(),
        };
        let url = format!("http://{}", listeners.grpc);
        let control = Control {
            shutdown: std::future::pending(),
            reload: Arc::default(),
        };
        let server = tokio::spawn(run_with(start_failing, listeners, config(), control));

        let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
        let mut watch = HealthClient::new(channel.clone())
            .watch(HealthCheckRequest {
                service: "resnet18.v1.Classifier".into(),
            })
            .await
            .unwrap()
            .into_inner();
        let mut until = async |wanted: ServingStatus| {
            while watch.message().await.unwrap().unwrap().status() != wanted {}
        };
        until(ServingStatus::Serving).await;

        let photo = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cat.jpg"))
            .unwrap();
        let request = ClassifyRequest {
            image: Some(Image {
                source: Some(Source::Encoded(photo.into())),
            }),
            ..Default::default()
        };
        let mut client = ClassifierClient::new(channel);
        assert!(client.classify(request.clone()).await.is_ok());
        assert_eq!(
            client.classify(request).await.unwrap_err().code(),
            Code::Internal
        );
        until(ServingStatus::NotServing).await;
        let ended = tokio::time::timeout(Duration::from_secs(5), server)
            .await
            .expect("the server ends by itself");
        assert!(matches!(ended.unwrap(), Err(ServerError::Engine(_))));
    }
}
