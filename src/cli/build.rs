//! `resnet18 build`: builds TensorRT engines ahead of time, into the cache that `resnet18 serve`
//! loads them from.

use std::{num::NonZeroUsize, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

use super::{
    CliError, blocking,
    flags::{ComputeFlags, ManifestFlags, TensorRtFlags},
    output,
};
use crate::{
    cache::Origin,
    engine::{
        EngineConfig, EngineKind,
        tensorrt::{self, BuiltPlan, ComputeCapability},
    },
};

const HELP: &str = "\
Pass the same --max-batch, --precision and TensorRT flags as to `resnet18 serve`: an engine is \
only used with exactly these settings. Without MODEL, the bundled ResNet18 is built.";

/// The flags of `resnet18 build`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// An ONNX image classifier.
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// The GPUs to build for, as compute capabilities without the dot: 75 (Turing), 80 and 86
    /// (Ampere), 89 (Ada), 120 (Blackwell).
    #[arg(
        long,
        env = "RESNET18_SM",
        value_name = "SM[,SM]",
        value_delimiter = ',',
        required = true
    )]
    sm: Vec<ComputeCapability>,
    /// Print one line of JSON per engine.
    #[arg(long, env = "RESNET18_BUILD_JSON")]
    json: bool,
    #[command(flatten)]
    manifest: ManifestFlags,
    #[command(flatten)]
    compute: ComputeFlags,
    #[command(flatten)]
    tensorrt: TensorRtFlags,
}

/// Builds one engine for each compute capability.
///
/// # Errors
/// If the model cannot be read or built, the library is missing, or the program was compiled
/// without TensorRT.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    blocking(move || build_all(&args)).await?;
    Ok(ExitCode::SUCCESS)
}

fn build_all(args: &Args) -> Result<(), CliError> {
    let model = args.manifest.read_model(args.model.as_deref())?;

    let config = EngineConfig {
        kind: Some(EngineKind::TensorRt),
        precision: args.compute.precision,
        max_batch: args.compute.max_batch,
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
        print(&built.map_err(CliError::failed)?, args.json)?;
    }
    Ok(())
}

fn progress_bar(target: ComputeCapability) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{spinner} compute capability {prefix}: {msg} ({elapsed})");
    let bar = ProgressBar::new_spinner().with_prefix(target.to_string());
    bar.set_style(style.expect("the template is valid"));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn print(built: &BuiltPlan, json: bool) -> Result<(), CliError> {
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
                "already cached"
            },
            output::time(built.took.as_secs_f64() * 1e3),
            built.bytes as f64 / 1e6,
            built.file.display()
        ))?;
    }
    Ok(())
}
