//! `resnet18 serve`: turns the flags into a [`ServerConfig`] and runs the server until a signal.

use std::{
    num::NonZeroUsize,
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    CliError,
    flags::{
        EngineFlags, HubFlags, ImageFlags, ManifestFlags, ModelCheckFlags, NetworkFlags,
        QuantizationFlags, SecurityFlags, TeachingFlags, TelemetryFlags, TuneFlags, passed_on,
    },
    output, values,
};
use crate::{
    engine::{self, EngineConfig, Precision},
    http::Web,
    image::PreprocessConfig,
    model::Model,
    quantization::{QuantizationConfig, StartupQuantization},
    registry::{
        check::CheckConfig,
        control::ModelControl,
        loader::{ListedModel, LoaderConfig, ModelSource},
    },
    scheduler::{Capacity, SchedulerConfig},
    server::{self, Control, ServerConfig, ServerError},
    telemetry::{self, log},
};

/// How long exporting the last traces may take at shutdown.
const TRACE_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The flags of `resnet18 serve`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --model, the bundled ResNet18 with 106 everyday classes is served."
)]
#[command(mut_arg("output_name", |flag| flag.visible_alias("output")))]
pub struct Args {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    images: ImageFlags,
    #[command(flatten)]
    engine: EngineFlags,
    #[command(flatten)]
    tune: TuneFlags,
    #[command(flatten)]
    quantization: CalibrationFlags,
    #[command(flatten)]
    network: NetworkFlags,
    #[command(flatten)]
    security: SecurityFlags,
    #[command(flatten)]
    queue: QueueFlags,
    #[command(flatten)]
    teaching: TeachingFlags,
    #[command(flatten)]
    telemetry: TelemetryFlags,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
struct ModelFlags {
    /// An ONNX image classifier to serve instead of the bundled one, as NAME: a file, or a published
    /// model such as torchvision:resnet18. For several models, repeat the flag or separate them with
    /// commas.
    #[arg(
        long,
        env = "RESNET18_MODEL",
        value_name = "[NAME=]PATH",
        value_delimiter = ','
    )]
    model: Vec<ModelFile>,
    /// A folder whose *.onnx files are all served, each under the name of its file.
    #[arg(
        long,
        env = "RESNET18_MODEL_DIR",
        value_name = "DIR",
        conflicts_with = "model"
    )]
    model_dir: Option<PathBuf>,
    /// The model for requests that do not name one [default: the first].
    #[arg(long, env = "RESNET18_DEFAULT_MODEL", value_name = "NAME")]
    default_model: Option<String>,
    /// How often to check the models' files; changed, new and removed ones take effect without a
    /// restart. 0 = only on SIGHUP.
    #[arg(long, env = "RESNET18_WATCH_INTERVAL", value_name = "DURATION", default_value = "1s",
          value_parser = values::duration)]
    watch_interval: Duration,
    /// Who decides which models of --model-dir are served after the start: their files, or callers
    /// by RepositoryModelLoad and RepositoryModelUnload of the Open Inference Protocol. With explicit,
    /// changes of the files and SIGHUP have no effect by themselves.
    #[arg(
        long,
        env = "RESNET18_MODEL_CONTROL",
        value_name = "WHO",
        value_enum,
        default_value_t
    )]
    model_control: ModelControl,
    /// Serve the bundled model if the published one can't be had within this time; what has come of
    /// it is kept for the next start.
    #[arg(long, env = "RESNET18_BUNDLED_AFTER", value_name = "DURATION",
          value_parser = values::positive_duration)]
    bundled_after: Option<Duration>,
    #[command(flatten)]
    hub: HubFlags,
    #[command(flatten)]
    check: ModelCheckFlags,
    #[command(flatten)]
    manifest: ManifestFlags,
}

impl ModelFlags {
    /// Fetches the published models, whose files then take the place of their names.
    async fn fetch(&mut self) -> Result<(), CliError> {
        if self.bundled_after.is_some() && self.model.len() > 1 {
            return Err(CliError::Usage(
                "--bundled-after is for one --model; the bundled model can't take the place of \
                 several"
                    .into(),
            ));
        }
        let listed = std::mem::take(&mut self.model);
        for ModelFile { name, path } in listed {
            match self.hub.file_within(path, self.bundled_after).await? {
                Ok(path) => self.model.push(ModelFile { name, path }),
                Err(error) if self.bundled_after.is_some() => {
                    tracing::warn!("serving the bundled model instead: {error}");
                }
                Err(error) => return Err(CliError::failed(error)),
            }
        }
        Ok(())
    }
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Quantization")]
struct CalibrationFlags {
    /// With --precision int8: a folder of photos for calibration, to quantize floating-point models
    /// at start. The photos should resemble those that the models will classify.
    #[arg(long, env = "RESNET18_CALIBRATION", value_name = "DIR")]
    calibration: Option<PathBuf>,
    #[command(flatten)]
    flags: QuantizationFlags,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Queue")]
struct QueueFlags {
    /// Maximum number of requests in a model's queue, at any time [default: as many as take about
    /// 0.2 s, at least 16, and up to --max-queue in a burst].
    #[arg(
        long,
        env = "RESNET18_QUEUE_CAPACITY",
        value_name = "N",
        conflicts_with = "latency_target"
    )]
    queue_capacity: Option<NonZeroUsize>,
    /// While the queue is never empty, accept only requests that can be answered within this time,
    /// given the measured throughput, and reject the rest at once.
    #[arg(long, env = "RESNET18_LATENCY_TARGET", value_name = "DURATION",
          value_parser = values::positive_duration)]
    latency_target: Option<Duration>,
    /// Maximum number of requests in a model's queue after a burst: requests that come at once to an
    /// empty queue may wait as long as their own deadlines allow.
    #[arg(long, env = "RESNET18_MAX_QUEUE", value_name = "N", default_value_t = Capacity::BURST,
          conflicts_with = "queue_capacity")]
    max_queue: NonZeroUsize,
    /// Maximum time that an incomplete batch waits for more images.
    #[arg(long, env = "RESNET18_MAX_QUEUE_DELAY", value_name = "DURATION", default_value = "0ms",
          value_parser = values::duration)]
    max_queue_delay: Duration,
    /// How long a call of the engine may take, or decoding an image beyond --max-decode-time, before
    /// its thread is left behind and replaced; and for how long nothing may move while work waits
    /// before health checks fail.
    #[arg(long, env = "RESNET18_STALL_TIMEOUT", value_name = "DURATION", default_value = "30s",
          value_parser = values::positive_duration)]
    stall_timeout: Duration,
}

/// The value of --model: `[NAME=]PATH`.
#[derive(Clone, Debug)]
struct ModelFile {
    name: Option<String>,
    path: PathBuf,
}

impl FromStr for ModelFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = match text.split_once('=') {
            // A path may contain an equals sign, but a name contains no slash.
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

/// Serves until SIGTERM or Ctrl-C; a second signal ends the process at once.
///
/// # Errors
/// If a model cannot be served, an address cannot be bound, or an engine cannot start.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let mut args = args;
    args.telemetry.start()?;
    args.model.fetch().await?;
    let ended = serve(&args).await;
    telemetry::flush(TRACE_FLUSH_TIMEOUT).await;

    match ended? {
        Ok(()) => engine::exit_at_once(0),
        Err(ServerError::Failed(failure)) => {
            output::print_error(&failure);
            // The destructors of the engine's libraries could hang in a driver that has failed.
            engine::exit_at_once(1)
        }
        Err(error) => Err(CliError::failed(error)),
    }
}

/// How the server ended; the outer error is one of the flags or addresses, before it started.
async fn serve(args: &Args) -> Result<Result<(), ServerError>, CliError> {
    let started = Instant::now();
    let config = config(args)?;
    let bound = args.network.listen().await?;
    let listeners = bound.listeners;

    // The system chooses the port if that of the flag is 0.
    let scheme = if args.security.has_http_tls() {
        "https"
    } else {
        "http"
    };
    let http = format!("{scheme}://{}", listeners.http.local_addr()?);
    tracing::info!(
        "serving gRPC on {} and metrics on {http}/metrics; loading {}",
        listeners.grpc,
        describe(&config.loader)
    );
    if config.http.web != Web::Off {
        tracing::info!("the live page is on {http}/");
    }
    if config.http.rest != Web::Off {
        tracing::info!("REST is on {http}/v1 and /v2");
    }
    args.network.warn_if_exposed(&args.security);
    tracing::debug!("flags and models read in {:.0?}", started.elapsed());

    // Its file is removed in any case: a second signal ends the process without destructors.
    let socket = bound.socket;
    let at_end = {
        let socket = socket.clone();
        move || socket.remove()
    };
    let control = Control {
        shutdown: shutdown_signal(at_end),
        reload: reload_on_hangup(),
    };
    let ended = server::run(listeners, config, control).await;
    socket.remove();
    Ok(ended)
}

fn config(args: &Args) -> Result<ServerConfig, CliError> {
    let engine = args.tune.apply(args.engine.config()?);
    let http = args.network.http(&args.security)?;
    let burst = args.queue.max_queue;
    let queue_capacity = match (args.queue.queue_capacity, args.queue.latency_target) {
        (Some(requests), _) => Capacity::Exactly(requests),
        (None, Some(target)) => Capacity::Within { target, burst },
        (None, None) => Capacity::Usual { burst },
    };
    let watch_interval = Some(args.model.watch_interval).filter(|interval| !interval.is_zero());

    let source = model_source(&args.model)?;
    let teaching = args.teaching.config(&source, engine.threads)?;

    Ok(ServerConfig {
        scheduler: SchedulerConfig {
            threads: engine.threads,
            queue_capacity,
            max_queue_delay: args.queue.max_queue_delay,
            preprocess: PreprocessConfig {
                // The half of the memory that messages don't have, in equal parts.
                max_memory: args.network.max_memory()? / 2 / engine.threads.get() as u64,
                ..args.images.config()
            },
            stall_timeout: args.queue.stall_timeout,
        },
        loader: LoaderConfig {
            source,
            taught: args.teaching.folder(),
            quantization: quantization_at_start(args, &engine)?,
            check: check(args, &engine),
            engine,
            watch_interval,
        },
        model_control: args.model.model_control,
        teaching,
        default_model: args.model.default_model.clone(),
        grpc: args.network.config(&args.security)?,
        http,
        drain_delay: args.network.drain_delay,
        drain_timeout: args.network.drain_timeout,
    })
}

/// How models are tried in a process of their own; `None` if there is only the bundled one, and none
/// can be taught.
fn check(args: &Args, engine: &EngineConfig) -> Option<CheckConfig> {
    let only_bundled = args.model.model.is_empty() && args.model.model_dir.is_none();
    if only_bundled && !args.teaching.is_on() {
        return None;
    }
    // A model that is quantized at the start is tried as it is in its file.
    let precision = match args.quantization.calibration {
        Some(_) => None,
        None => engine.precision,
    };
    let engine = EngineConfig {
        precision,
        ..engine.clone()
    };
    let passed = passed_on(&engine);
    let check = args
        .model
        .check
        .config(&engine, &args.model.manifest, passed);
    if check.is_none() {
        tracing::warn!("this program can't be started again: models are loaded unchecked");
    }
    check
}

/// How floating-point models are quantized, if --calibration is given.
fn quantization_at_start(
    args: &Args,
    engine: &EngineConfig,
) -> Result<Option<StartupQuantization>, CliError> {
    let Some(folder) = &args.quantization.calibration else {
        return Ok(None);
    };
    if engine.precision != Some(Precision::Int8) {
        return Err(CliError::Usage(
            "--calibration needs --precision int8".into(),
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
    Ok(Some(StartupQuantization {
        photos: folder.clone(),
        preprocess: args.images.config(),
        config,
        cache: engine.cache(),
    }))
}

/// The models to serve. Listed files are read here, so that errors in them are reported before any
/// address is bound.
fn model_source(flags: &ModelFlags) -> Result<ModelSource, CliError> {
    let several = flags.model.len() > 1 || flags.model_dir.is_some();
    if several && !flags.manifest.is_empty() {
        return Err(CliError::Usage(
            "--labels, --preset, --mean and the other flags of a model apply to one model; with \
             several, write them into each file: resnet18 import MODEL.onnx --labels FILE --output NEW.onnx"
                .into(),
        ));
    }

    if flags.model_control == ModelControl::Explicit && flags.model_dir.is_none() {
        return Err(CliError::Usage(
            "--model-control explicit needs --model-dir: callers load models from its files".into(),
        ));
    }
    if let Some(folder) = &flags.model_dir {
        if !folder.is_dir() {
            return Err(CliError::Usage(format!(
                "--model-dir {}: there is no such folder",
                folder.display()
            )));
        }
        return Ok(ModelSource::Folder(folder.clone()));
    }

    let mut models: Vec<ListedModel> = Vec::new();
    if flags.model.is_empty() {
        models.push(read_model(flags, None)?);
    }
    for file in &flags.model {
        let model = read_model(flags, Some(file))?;
        if models.iter().any(|other| other.name == model.name) {
            return Err(CliError::Usage(format!(
                "two models are called \"{}\"; choose names with --model NAME=PATH",
                model.name
            )));
        }
        models.push(model);
    }

    if let Some(default) = &flags.default_model
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

/// Checks a model and determines its name. `None` stands for the bundled model.
fn read_model(flags: &ModelFlags, file: Option<&ModelFile>) -> Result<ListedModel, CliError> {
    let name = file.and_then(|file| file.name.clone());
    let overrides = flags.manifest.overrides(name).map_err(CliError::failed)?;
    let model = match file {
        Some(file) => Model::from_file(&file.path, &overrides),
        None => Model::bundled(&overrides),
    };
    Ok(ListedModel {
        name: model.map_err(CliError::failed)?.name,
        path: file.map(|file| file.path.clone()),
        overrides,
    })
}

/// The models, for the log.
fn describe(loader: &LoaderConfig) -> String {
    match &loader.source {
        ModelSource::Folder(folder) => format!("the models in {}", folder.display()),
        ModelSource::Listed(models) => {
            let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
            names.join(", ")
        }
    }
}

/// A notification for each SIGHUP, which asks to check the models' files.
fn reload_on_hangup() -> Arc<Notify> {
    let reload = Arc::new(Notify::new());
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};

        let notify = Arc::clone(&reload);
        match signal(SignalKind::hangup()) {
            Err(error) => tracing::warn!("SIGHUP can't be handled: {error}"),
            Ok(mut hangup) => {
                tokio::spawn(async move {
                    while hangup.recv().await.is_some() {
                        tracing::info!("SIGHUP: checking the models' files");
                        notify.notify_one();
                    }
                });
            }
        }
    }
    reload
}

/// Completes at the first SIGTERM or Ctrl-C. A second one ends the process, after `at_end`.
async fn shutdown_signal(at_end: impl FnOnce() + Send + 'static) {
    terminate_or_interrupt().await;
    tokio::spawn(async {
        terminate_or_interrupt().await;
        tracing::warn!("second signal: ending at once");
        at_end();
        log::flush();
        engine::exit_at_once(130);
    });
}

#[cfg(unix)]
async fn terminate_or_interrupt() {
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
async fn terminate_or_interrupt() {
    let _ = tokio::signal::ctrl_c().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_may_be_named() {
        let parse = |text: &str| {
            text.parse::<ModelFile>()
                .map(|file| (file.name, file.path.display().to_string()))
        };
        assert_eq!(parse("a.onnx"), Ok((None, "a.onnx".into())));
        assert_eq!(
            parse("cats=/m/a.onnx"),
            Ok((Some("cats".into()), "/m/a.onnx".into()))
        );
        assert_eq!(parse("/m/a=b.onnx"), Ok((None, "/m/a=b.onnx".into())));
        for wrong in ["=a.onnx", "cats="] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
