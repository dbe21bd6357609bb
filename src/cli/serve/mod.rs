//! `resnet18 serve`: flags → a [`ServerConfig`], then the server.

use std::{
    num::NonZeroUsize,
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args as ClapArgs;
use tokio::sync::Notify;

use super::{
    CliError,
    flags::{
        EngineFlags, ImageFlags, ManifestFlags, NetworkFlags, QuantizationFlags, SecurityFlags,
        TelemetryFlags,
    },
    output, values,
};
use crate::{
    cache::PlanCache,
    engine::{self, EngineConfig, Precision},
    http::Web,
    model::{Model, ModelError},
    quantization::{AtStart, QuantizationConfig},
    registry::loader::{ListedModel, LoaderConfig, ModelSource},
    scheduler::{Capacity, SchedulerConfig},
    server::{self, Control, ServerConfig, ServerError},
    telemetry,
};

/// How long the last traces may take to leave.
const FLUSH: Duration = Duration::from_secs(2);
/// Two images at once take OpenVINO a few percent less time than one after the other.
const OPENVINO_BATCH: NonZeroUsize = NonZeroUsize::new(2).expect("2 is not 0");

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
    quantization: QuantizationArgs,
    #[command(flatten)]
    network: NetworkFlags,
    #[command(flatten)]
    security: SecurityFlags,
    #[command(flatten)]
    queue: QueueArgs,
    #[command(flatten)]
    telemetry: TelemetryFlags,
}

#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Model")]
struct ModelArgs {
    /// An ONNX image classifier to serve instead of the bundled one, under NAME; several by
    /// repeating the flag or with commas.
    #[arg(
        long,
        env = "RESNET18_MODEL",
        value_name = "[NAME=]PATH",
        value_delimiter = ','
    )]
    model: Vec<ModelFile>,
    /// A folder whose *.onnx files are all served, each under its file's name.
    #[arg(
        long,
        env = "RESNET18_MODEL_DIR",
        value_name = "DIR",
        conflicts_with = "model"
    )]
    model_dir: Option<PathBuf>,
    /// The model that answers where none is named [default: the first].
    #[arg(long, env = "RESNET18_DEFAULT_MODEL", value_name = "NAME")]
    default_model: Option<String>,
    /// How often the models' files are looked at; a changed, new or removed one takes effect
    /// without a restart. 0 = only on SIGHUP.
    #[arg(long, env = "RESNET18_WATCH_INTERVAL", value_name = "DURATION", default_value = "1s",
          value_parser = values::duration)]
    watch_interval: Duration,
    #[command(flatten)]
    manifest: ManifestFlags,
}

#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Quantization")]
struct QuantizationArgs {
    /// With --precision int8: a folder of photos of the kind that the models will see, to quantise
    /// float models with.
    #[arg(long, env = "RESNET18_CALIBRATION", value_name = "DIR")]
    calibration: Option<PathBuf>,
    #[command(flatten)]
    flags: QuantizationFlags,
}

#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Queue")]
struct QueueArgs {
    /// The most requests that wait for a model [default: as many as take about 0.2 s, at least 16].
    #[arg(
        long,
        env = "RESNET18_QUEUE_CAPACITY",
        value_name = "N",
        conflicts_with = "latency_target"
    )]
    queue_capacity: Option<NonZeroUsize>,
    /// Accept only what can be answered within this time, by the pace that is measured; the rest is
    /// refused at once.
    #[arg(long, env = "RESNET18_LATENCY_TARGET", value_name = "DURATION", value_parser = values::positive_duration)]
    latency_target: Option<Duration>,
    /// How long an incomplete batch waits for more images.
    #[arg(long, env = "RESNET18_MAX_QUEUE_DELAY", value_name = "DURATION", default_value = "0ms",
          value_parser = values::duration)]
    max_queue_delay: Duration,
}

/// `[NAME=]PATH`.
#[derive(Clone, Debug)]
struct ModelFile {
    name: Option<String>,
    path: PathBuf,
}

impl FromStr for ModelFile {
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
        Ok(Self {
            name: name.map(str::to_owned),
            path: path.into(),
        })
    }
}

/// Serves until SIGTERM or Ctrl-C; a second signal ends the program at once.
///
/// # Errors
/// A model that can't be served, an address that is taken, an engine that can't start.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let started = Instant::now();
    args.telemetry.start()?;
    let config = config(&args)?;
    let listeners = args.network.listen().await?;
    // Not the flag's address: a port of 0 is chosen by the system.
    let http = listeners.http.local_addr()?;
    tracing::info!(
        "serving gRPC on {} and metrics on http://{http}/metrics; loading {}",
        listeners.grpc,
        describe(&config.loader)
    );
    if config.web != Web::Off {
        tracing::info!("the live page is on http://{http}/");
    }
    args.network.warn(&args.security);
    tracing::debug!("flags and models read in {:.0?}", started.elapsed());
    let control = Control {
        shutdown: signal(),
        reload: reload_on_hangup(),
    };
    let ended = server::run(listeners, config, control).await;
    telemetry::flush(FLUSH).await;
    match ended {
        Ok(()) => engine::exit_at_once(0),
        Err(ServerError::Engine(error)) => {
            output::print_error(&error);
            // The libraries' destructors could hang in a driver that no longer answers.
            engine::exit_at_once(1)
        }
        Err(error) => Err(CliError::Failed(error.to_string())),
    }
}

fn config(args: &Args) -> Result<ServerConfig, CliError> {
    let engine = EngineConfig {
        openvino_batch: OPENVINO_BATCH,
        ..args.engine.config()?
    };
    let web = args.network.web(&args.security)?;
    Ok(ServerConfig {
        scheduler: SchedulerConfig {
            threads: engine.threads,
            queue_capacity: match (args.queue.queue_capacity, args.queue.latency_target) {
                (Some(images), _) => Capacity::Exactly(images),
                (None, Some(target)) => Capacity::Within(target),
                (None, None) => Capacity::Usual,
            },
            max_queue_delay: args.queue.max_queue_delay,
            preprocess: args.images.config(),
        },
        loader: LoaderConfig {
            source: source(&args.model)?,
            quantization: quantization(args, &engine)?,
            engine,
            watch_interval: Some(args.model.watch_interval).filter(|interval| !interval.is_zero()),
        },
        default_model: args.model.default_model.clone(),
        grpc: args.network.config(&args.security)?,
        web,
        drain_delay: args.network.drain_delay,
        drain_timeout: args.network.drain_timeout,
    })
}

/// How float models are quantised, if int8 was asked for.
fn quantization(args: &Args, engine: &EngineConfig) -> Result<Option<AtStart>, CliError> {
    let Some(folder) = &args.quantization.calibration else {
        return Ok(None);
    };
    if engine.precision != Some(Precision::Int8) {
        return Err(CliError::Usage(
            "--calibration is for --precision int8".into(),
        ));
    }
    if !folder.is_dir() {
        return Err(CliError::Usage(format!(
            "--calibration {}: there is no such folder",
            folder.display()
        )));
    }
    let config = QuantizationConfig {
        judge_layers: false,
        ..args.quantization.flags.config(engine.threads)
    };
    let cache = match engine
        .tensorrt
        .cache
        .clone()
        .or_else(PlanCache::default_folder)
    {
        Some(folder) => PlanCache::open(&folder, engine.tensorrt.cache_limit)
            .inspect_err(|error| tracing::warn!("{error}; what is quantised is not kept"))
            .ok(),
        None => None,
    };
    Ok(Some(AtStart {
        photos: folder.clone(),
        preprocess: args.images.config(),
        config,
        cache,
    }))
}

/// The models that were asked for. Listed files are read here, so that a wrong one is told before
/// anything is bound.
fn source(args: &ModelArgs) -> Result<ModelSource, CliError> {
    let failed = |error: ModelError| CliError::Failed(error.to_string());
    if (args.model.len() > 1 || args.model_dir.is_some()) && !args.manifest.is_empty() {
        return Err(CliError::Usage(
            "--labels, --mean, --std and --resize are for one model; with several, write them into each file: \
             resnet18 import MODEL.onnx --labels FILE --output MODEL.onnx"
                .into(),
        ));
    }
    if let Some(folder) = &args.model_dir {
        return match folder.is_dir() {
            true => Ok(ModelSource::Folder(folder.clone())),
            false => Err(CliError::Usage(format!(
                "--model-dir {}: there is no such folder",
                folder.display()
            ))),
        };
    }
    let files = match &args.model[..] {
        [] => vec![(None, None)],
        files => files
            .iter()
            .map(|file| (file.name.clone(), Some(file.path.clone())))
            .collect(),
    };
    let mut models: Vec<ListedModel> = Vec::new();
    for (name, path) in files {
        let overrides = args.manifest.overrides(name.clone()).map_err(failed)?;
        let model = match &path {
            Some(path) => Model::from_file(path, &overrides),
            None => Model::bundled(&overrides),
        };
        let name = model.map_err(failed)?.name;
        if models.iter().any(|model| model.name == name) {
            return Err(CliError::Usage(format!(
                "two models are called \"{name}\"; name them: --model NAME=PATH"
            )));
        }
        models.push(ListedModel {
            name,
            path,
            overrides,
        });
    }
    if let Some(default) = &args.default_model
        && !models.iter().any(|model| model.name == *default)
    {
        let names: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
        return Err(CliError::Usage(format!(
            "--default-model {default}: the models are {}",
            names.join(", ")
        )));
    }
    Ok(ModelSource::Listed(models))
}

fn describe(loader: &LoaderConfig) -> String {
    match &loader.source {
        ModelSource::Folder(folder) => format!("the models in {}", folder.display()),
        ModelSource::Listed(models) => models
            .iter()
            .map(|model| model.name.as_str())
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// What SIGHUP asks for.
fn reload_on_hangup() -> Arc<Notify> {
    let reload = Arc::new(Notify::new());
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let reload = Arc::clone(&reload);
        match signal(SignalKind::hangup()) {
            Err(error) => tracing::warn!("SIGHUP can't be handled: {error}"),
            Ok(mut hangup) => drop(tokio::spawn(async move {
                while hangup.recv().await.is_some() {
                    tracing::info!("SIGHUP: looking at the models' files");
                    reload.notify_one();
                }
            })),
        }
    }
    reload
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
        let parse = |text: &str| {
            text.parse::<ModelFile>()
                .map(|m| (m.name, m.path.display().to_string()))
        };
        assert_eq!(parse("a.onnx"), Ok((None, "a.onnx".into())));
        assert_eq!(
            parse("cats=/m/a.onnx"),
            Ok((Some("cats".into()), "/m/a.onnx".into()))
        );
        assert_eq!(parse("/m/a=b.onnx"), Ok((None, "/m/a=b.onnx".into())));
        assert!(parse("=a.onnx").is_err() && parse("cats=").is_err());
    }
}
