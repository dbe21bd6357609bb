//! A whole server: bind, load, serve, drain.

use std::{
    future::Future,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::TcpListener;

use crate::{
    engine::{self, EngineConfig, EngineError},
    grpc::{self, GrpcConfig},
    http::{self, HttpContext},
    metrics::Exporter,
    model::Model,
    registry::{Registry, Running, Served},
    scheduler::{Scheduler, SchedulerConfig, Start},
    state::{State, StateCell},
};

/// How long the last answers may take to leave, once they have been made.
const FLUSH: Duration = Duration::from_millis(300);

/// How a server runs.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// What runs the network.
    pub engine: EngineConfig,
    /// How requests are queued and batched.
    pub scheduler: SchedulerConfig,
    /// The limits of the gRPC side.
    pub grpc: GrpcConfig,
    /// How long accepted work may take to finish when the server shuts down.
    pub drain_timeout: Duration,
}

/// Where a server listens.
pub struct Listeners {
    /// For gRPC.
    pub grpc: TcpListener,
    /// For HTTP.
    pub http: TcpListener,
}

/// Why a server ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No engine can run the model.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The gRPC side failed.
    #[error("serving gRPC failed: {0}")]
    Grpc(#[from] tonic::transport::Error),
    /// The HTTP side failed.
    #[error("serving HTTP failed: {0}")]
    Http(#[from] io::Error),
}

/// Serves `model` until `shutdown` completes and what was accepted has been answered.
///
/// Both ports answer at once; requests are accepted when the model has been loaded, checked and warmed up.
///
/// # Errors
/// When the model can't be loaded or a listener fails.
pub async fn run(
    listeners: Listeners,
    model: Model,
    config: ServerConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    let exporter = Exporter::install();
    let state = StateCell::default();
    let registry = Arc::new(Registry::new(Served::new(&model)));

    let context = HttpContext { state: state.clone(), registry: Arc::clone(&registry), exporter: exporter.clone() };
    let http = http::serve(listeners.http, context);
    let grpc = grpc::serve(listeners.grpc, Arc::clone(&registry), state.clone(), config.grpc);
    let load = load(Arc::clone(&registry), model, (config.engine, config.scheduler), state.clone());
    let upkeep = async {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            exporter.upkeep();
        }
    };
    let shutdown = async {
        shutdown.await;
        tracing::info!("shutting down: finishing what was accepted, for {:?} at most", config.drain_timeout);
        state.set(State::Draining);
        // Connections may stay open for ever, by a health watch for example: what counts is the calls.
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
        error = failed(load) => return Err(error),
        () = upkeep => {}
    }
    tracing::info!("stopped");
    Ok(())
}

/// Completes only when loading fails.
async fn failed(load: impl Future<Output = Result<(), ServerError>>) -> ServerError {
    match load.await {
        Err(error) => error,
        Ok(()) => std::future::pending().await,
    }
}

async fn load(
    registry: Arc<Registry>,
    model: Model,
    (engine_config, scheduler_config): (EngineConfig, SchedulerConfig),
    state: StateCell,
) -> Result<(), ServerError> {
    let started = Instant::now();
    let served = registry.find(&model.name).map(Arc::clone).expect("the registry was made of this model");
    let metrics = Arc::clone(&served.metrics);
    let loading = tokio::task::spawn_blocking(move || {
        let lanes = engine::start(&engine_config, &model)?;
        let engine = lanes.info.clone();
        let start = Start { lanes, geometry: model.geometry, classes: model.graph.classes, metrics };
        Ok(Running { engine, scheduler: Scheduler::start(start, scheduler_config) })
    });
    let loaded = loading.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    match loaded {
        Ok(running) => {
            served.metrics.loaded(&running.engine, started.elapsed());
            served.start(running);
            state.set(State::Ready);
            Ok(())
        }
        Err(error) => {
            let error: EngineError = error;
            state.set(State::Failed(error.to_string().into()));
            Err(error.into())
        }
    }
}
