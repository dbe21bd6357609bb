//! A whole server: bind, load, serve, drain.

use std::{future::Future, io, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::Notify};

use crate::{
    engine::EngineError,
    grpc::{self, GrpcConfig},
    http::{self, HttpContext},
    loader::{LoadError, Loader, LoaderConfig},
    metrics::Exporter,
    registry::Registry,
    scheduler::{Scheduler, SchedulerConfig},
    state::{State, StateCell},
};

/// How long the last answers may take to leave, once they have been made.
const FLUSH: Duration = Duration::from_millis(300);

/// How a server runs.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Which models are served, and what runs them.
    pub loader: LoaderConfig,
    /// The model that answers where none is named; `None` = the first.
    pub default_model: Option<String>,
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
    /// A model can't be served.
    #[error(transparent)]
    Load(#[from] LoadError),
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
/// Both ports answer at once; requests are accepted when the first model has been loaded, checked and warmed up.
///
/// # Errors
/// When a model can't be loaded at the start, an engine is lost or a listener fails.
pub async fn run(
    listeners: Listeners,
    config: ServerConfig,
    control: Control<impl Future<Output = ()>>,
) -> Result<(), ServerError> {
    let exporter = Exporter::install();
    let state = StateCell::default();
    let registry = Arc::new(Registry::new(config.default_model));
    let scheduler = Arc::new(Scheduler::new(config.scheduler));

    let context = HttpContext { state: state.clone(), registry: Arc::clone(&registry), exporter: exporter.clone() };
    let http = http::serve(listeners.http, context);
    let grpc = grpc::serve(listeners.grpc, Arc::clone(&registry), state.clone(), config.grpc);
    let loader = Loader { config: config.loader, registry, scheduler: Arc::clone(&scheduler), state: state.clone() };
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
        error
    };
    let shutdown = async {
        control.shutdown.await;
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
        loaded = load => match loaded? {},
        error = lost => return Err(error.into()),
        () = upkeep => {}
    }
    tracing::info!("stopped");
    Ok(())
}
