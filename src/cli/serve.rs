//! `resnet18 serve`: flags → a [`ServerConfig`], then the server.

use std::{
    io,
    net::SocketAddr,
    num::NonZeroUsize,
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    time::{Duration, Instant},
};

use clap::{Args as ClapArgs, ValueEnum};
use tokio::net::TcpListener;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{
    CliError,
    flags::{EngineFlags, ImageFlags, ManifestFlags},
    values,
};
use crate::{
    engine,
    grpc::GrpcConfig,
    model::{Model, ModelError},
    scheduler::SchedulerConfig,
    server::{self, Listeners, ServerConfig},
};

/// The flags of `resnet18 serve`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Without --model the bundled ResNet18 is served: 106 everyday classes.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    images: ImageFlags,
    #[command(flatten)]
    engine: EngineFlags,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    queue: QueueArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Model")]
struct ModelArgs {
    /// An ONNX image classifier to serve instead of the bundled one, under NAME.
    #[arg(long, env = "RESNET18_MODEL", value_name = "[NAME=]PATH")]
    model: Option<ModelSource>,
    #[command(flatten)]
    manifest: ManifestFlags,
}

#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Network")]
struct NetworkArgs {
    /// Where gRPC is served.
    #[arg(long, env = "RESNET18_GRPC", value_name = "ADDRESS", default_value = "127.0.0.1:8001")]
    grpc: SocketAddr,
    /// Where /metrics, /healthz and /readyz are served.
    #[arg(long, env = "RESNET18_HTTP", value_name = "ADDRESS", default_value = "127.0.0.1:8002")]
    http: SocketAddr,
    /// The largest message that is accepted, in MiB.
    #[arg(long, env = "RESNET18_MAX_MESSAGE_MIB", value_name = "MIB", default_value = "16",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_message_mib: u32,
    /// The most streams that are open at once.
    #[arg(long, env = "RESNET18_MAX_STREAMS", value_name = "N", default_value = "256")]
    max_streams: NonZeroUsize,
    /// The most calls that are in progress at once; each may hold one message.
    #[arg(long, env = "RESNET18_MAX_CALLS", value_name = "N", default_value = "512")]
    max_calls: NonZeroUsize,
    /// The most connections that are open at once; further ones wait.
    #[arg(long, env = "RESNET18_MAX_CONNECTIONS", value_name = "N", default_value = "1024")]
    max_connections: NonZeroUsize,
    /// How long accepted work may take to finish at shutdown.
    #[arg(long, env = "RESNET18_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s",
          value_parser = values::duration)]
    drain_timeout: Duration,
}

#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Queue")]
struct QueueArgs {
    /// The most requests that wait [default: as many as take about 0.2 s, at least 16].
    #[arg(long, env = "RESNET18_QUEUE_CAPACITY", value_name = "N")]
    queue_capacity: Option<NonZeroUsize>,
    /// How long an incomplete batch waits for more images.
    #[arg(long, env = "RESNET18_MAX_QUEUE_DELAY", value_name = "DURATION", default_value = "0ms",
          value_parser = values::duration)]
    max_queue_delay: Duration,
}

#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Log")]
struct LogArgs {
    /// What is logged, on standard error: error, warn, info, debug or trace, or a list such as info,h2=debug.
    #[arg(long, env = "RESNET18_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
    /// Lines for people or JSON for machines.
    #[arg(long, env = "RESNET18_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// `[NAME=]PATH`.
#[derive(Clone, Debug)]
struct ModelSource {
    name: Option<String>,
    path: PathBuf,
}

impl FromStr for ModelSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = match text.split_once('=') {
            // A path may hold an equals sign, a name holds no slash.
            Some((name, path)) if !name.contains(['/', '\\']) => (Some(name), path),
            _ => (None, text),
        };
        if name.is_some_and(str::is_empty) || path.is_empty() {
            return Err("expected PATH or NAME=PATH".into());
        }
        Ok(Self { name: name.map(str::to_owned), path: path.into() })
    }
}

/// Serves until SIGTERM or Ctrl-C; a second signal ends the program at once.
///
/// # Errors
/// A model that can't be served, an address that is taken, an engine that can't start.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let started = Instant::now();
    start_log(&args.log)?;
    let model = load_model(&args.model).map_err(|error| CliError::Failed(error.to_string()))?;
    let config = config(&args)?;
    let listeners =
        Listeners { grpc: bind(args.network.grpc, "grpc").await?, http: bind(args.network.http, "http").await? };
    // Not the flags' addresses: a port of 0 is chosen by the system.
    let [grpc, http] = [listeners.grpc.local_addr()?, listeners.http.local_addr()?];
    tracing::info!(
        model = model.name,
        version = model.version,
        classes = model.graph.classes,
        "serving gRPC on {grpc} and metrics on http://{http}/metrics",
    );
    if [grpc, http].iter().any(|address| !address.ip().is_loopback()) {
        tracing::warn!("anyone who can reach this address can use the server: there is no TLS and no token");
    }
    tracing::debug!("flags and model read in {:.0?}", started.elapsed());
    server::run(listeners, model, config, signal()).await.map_err(|error| CliError::Failed(error.to_string()))?;
    engine::exit_at_once(0)
}

fn load_model(args: &ModelArgs) -> Result<Model, ModelError> {
    let overrides = args.manifest.overrides(args.model.as_ref().and_then(|source| source.name.clone()))?;
    match &args.model {
        Some(source) => Model::from_file(&source.path, &overrides),
        None => Model::bundled(&overrides),
    }
}

fn config(args: &Args) -> Result<ServerConfig, CliError> {
    Ok(ServerConfig {
        engine: args.engine.config()?,
        scheduler: SchedulerConfig {
            queue_capacity: args.queue.queue_capacity,
            max_queue_delay: args.queue.max_queue_delay,
            preprocess: args.images.config(),
        },
        grpc: GrpcConfig {
            max_message_bytes: args.network.max_message_mib as usize * 1024 * 1024,
            max_streams: args.network.max_streams.get(),
            max_calls: args.network.max_calls.get(),
            max_connections: args.network.max_connections.get(),
        },
        drain_timeout: args.network.drain_timeout,
    })
}

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, CliError> {
    TcpListener::bind(address).await.map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => "another program uses it",
            io::ErrorKind::PermissionDenied => "this user may not",
            io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
            _ => "it failed",
        };
        CliError::Failed(format!("can't listen on {address}: {advice} ({error}); choose another with --{flag}"))
    })
}

fn start_log(args: &LogArgs) -> Result<(), CliError> {
    let wrong = |reason: String| CliError::Usage(format!("--log {}: {reason}", args.log));
    // The filter takes a lone word that is no level for a module's name, and then logs nothing else.
    if let Some(word) = args.log.split(',').find(|word| !word.contains('=') && word.parse::<LevelFilter>().is_err()) {
        return Err(wrong(format!("`{word}` is not error, warn, info, debug, trace, off or MODULE=LEVEL")));
    }
    let filter = EnvFilter::try_new(&args.log).map_err(|error| wrong(error.to_string()))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    // A logger that was installed before, by a test, stays.
    let _ = match args.log_format {
        LogFormat::Text => log.with_ansi(console::colors_enabled_stderr()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// Returns at the first SIGTERM or Ctrl-C; the second one ends the process.
async fn signal() {
    one_signal().await;
    tokio::spawn(async {
        one_signal().await;
        eprintln!("second signal: ending at once");
        engine::exit_at_once(130);
    });
}

#[cfg(unix)]
async fn one_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        },
        Err(error) => {
            tracing::warn!("SIGTERM can't be handled: {error}");
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}

#[cfg(not(unix))]
async fn one_signal() {
    let _ = tokio::signal::ctrl_c().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_may_be_named() {
        let parse = |text: &str| text.parse::<ModelSource>().map(|m| (m.name, m.path.display().to_string()));
        assert_eq!(parse("a.onnx"), Ok((None, "a.onnx".into())));
        assert_eq!(parse("cats=/m/a.onnx"), Ok((Some("cats".into()), "/m/a.onnx".into())));
        assert_eq!(parse("/m/a=b.onnx"), Ok((None, "/m/a=b.onnx".into())));
        assert!(parse("=a.onnx").is_err() && parse("cats=").is_err());
    }
}
