//! `resnet18 build`: TensorRT engines ahead of time, into the cache where `resnet18 serve` looks
//! for them.

use std::{num::NonZeroUsize, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::Args as ClapArgs;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    CliError,
    flags::{ManifestFlags, PlanFlags, TensorRtFlags},
    output,
};
use crate::{
    cache::Origin,
    engine::{
        EngineConfig, EngineKind,
        tensorrt::{self, Built, ComputeCapability},
    },
    model::Model,
};

/// The flags of `resnet18 build`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Give it the same --max-batch, --precision and TensorRT flags as `resnet18 serve`: an engine is for \
                        exactly these. Without MODEL the bundled ResNet18 is built."
)]
pub struct Args {
    /// An ONNX image classifier.
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// The GPUs to build for, by their compute capability without its dot: 75 (Turing), 80 and 86
    /// (Ampere), 89 (Ada), 120 (Blackwell).
    #[arg(
        long,
        env = "RESNET18_SM",
        value_name = "SM[,SM]",
        value_delimiter = ',',
        required = true
    )]
    sm: Vec<ComputeCapability>,
    /// One line of JSON for each engine.
    #[arg(long, env = "RESNET18_JSON")]
    json: bool,
    #[command(flatten)]
    manifest: ManifestFlags,
    #[command(flatten)]
    plan: PlanFlags,
    #[command(flatten)]
    tensorrt: TensorRtFlags,
}

/// Builds one engine for each kind of GPU.
///
/// # Errors
/// A model that can't be served or built, a missing library, a program without TensorRT.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let built = tokio::task::spawn_blocking(move || build_all(&args)).await;
    built.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    Ok(ExitCode::SUCCESS)
}

fn build_all(args: &Args) -> Result<(), CliError> {
    let overrides = args
        .manifest
        .overrides(None)
        .map_err(|error| CliError::Failed(error.to_string()))?;
    let model = match &args.model {
        Some(path) => Model::from_file(path, &overrides),
        None => Model::bundled(&overrides),
    };
    let model = model.map_err(|error| CliError::Failed(error.to_string()))?;
    let config = EngineConfig {
        kind: Some(EngineKind::TensorRt),
        precision: args.plan.precision(),
        max_batch: args.plan.max_batch,
        tensorrt: args.tensorrt.config(None),
        ..EngineConfig::new(NonZeroUsize::MIN)
    };
    for &target in &args.sm {
        let bar = progress_bar(target);
        let watched = bar.clone();
        let progress = Arc::new(move |phase: &str, done: f32| {
            watched.set_message(format!("{phase} {:.0} %", done * 100.0));
        });
        let built = tensorrt::build_ahead(&config, &model, target, progress);
        bar.finish_and_clear();
        print(
            &built.map_err(|error| CliError::Failed(error.to_string()))?,
            args.json,
        )?;
    }
    Ok(())
}

fn progress_bar(target: ComputeCapability) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{spinner} compute capability {prefix}: {msg} ({elapsed})");
    let bar = ProgressBar::new_spinner().with_prefix(target.to_string());
    bar.set_style(style.expect("the template is right"));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn print(built: &Built, json: bool) -> Result<(), CliError> {
    let miss = match &built.origin {
        Origin::Hit => None,
        Origin::Miss(miss) => Some(miss.to_string()),
    };
    if json {
        output::print_json(&serde_json::json!({
            "compute_capability": built.target.to_string(),
            "file": built.file,
            "bytes": built.bytes,
            "cached": miss.is_none(),
            "built_because": miss,
            "seconds": built.took.as_secs_f64(),
        }))?;
    } else {
        output::print_line(&format!(
            "compute capability {}: {} in {}, {:.1} MB, {}",
            built.target,
            if miss.is_some() {
                "built"
            } else {
                "there already"
            },
            output::time(built.took.as_secs_f64() * 1e3),
            built.bytes as f64 / 1e6,
            built.file.display()
        ))?;
    }
    Ok(())
}
