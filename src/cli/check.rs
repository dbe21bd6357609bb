//! `resnet18 check`: tries a model in a process of its own, as the server does before it loads one.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use console::style;
use serde::Serialize;

use super::{
    CliError, blocking,
    flags::{EngineFlags, ManifestFlags, ModelCheckFlags},
    output::{self, escaped, thousands},
};
use crate::{
    engine::{EngineConfig, OpenVinoConfig},
    registry::check::{self, CheckError, Passed, Report},
};

const LONG_HELP: &str = "\
The model is read, built and run on a few photos by the engine that would serve it, and its answers \
are compared as `resnet18 serve` compares them, in a process with limits of memory and time. TensorRT \
itself is not tried.

With --json, the result is one object:
  {\"model\", \"passed\", \"name\", \"version\", \"classes\", \"engine\", \"engine_version\", \
\"precision\", \"warnings\", \"problem\"}
where problem is null if the model passed, and otherwise all between passed and problem is absent.

Exit status: 0 = the model passed, 1 = it did not, 64 = wrong flags.";

/// The flags of `resnet18 check`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
#[command(mut_arg("output_name", |flag| flag.visible_alias("output")))]
pub struct Args {
    /// An ONNX image classifier.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Print one line of JSON.
    #[arg(long, env = "RESNET18_CHECK_JSON")]
    json: bool,
    /// Try the model in this process, and answer in the form that the parent expects, which has
    /// this process id.
    #[arg(long, env = "RESNET18_CHECK_PARENT", hide = true)]
    parent: Option<u32>,
    #[command(flatten)]
    check: ModelCheckFlags,
    #[command(flatten)]
    manifest: ManifestFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

/// The line of JSON.
#[derive(Serialize)]
struct CheckJson<'a> {
    model: &'a Path,
    passed: bool,
    #[serde(flatten)]
    report: Option<&'a Report>,
    problem: Option<String>,
}

/// Tries the model and prints what came of it.
///
/// # Errors
/// If the process for it can't be started.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let mut engine = args.engine.config()?;
    engine.openvino.batch = OpenVinoConfig::SERVING_BATCH;
    if let Some(parent) = args.parent {
        return blocking(move || try_here(&args, &engine, parent)).await;
    }

    // It is tried in any case, so nothing need be remembered.
    let passed = Passed::in_memory("");
    let config = args.check.config(&engine, &args.manifest, passed);
    let config = config.ok_or_else(|| CliError::failed("this program can't be started again"))?;
    let model = args.model.clone();
    let outcome = blocking(move || config.run(&model)).await;
    if let Err(error @ CheckError::NotStarted(_)) = outcome {
        return Err(CliError::failed(error));
    }

    if args.json {
        output::print_json(&CheckJson {
            model: &args.model,
            passed: outcome.is_ok(),
            report: outcome.as_ref().ok(),
            problem: outcome.as_ref().err().map(ToString::to_string),
        })?;
    } else if let Ok(report) = &outcome {
        output::print_line(&describe(report))?;
    }
    match outcome {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(_) if args.json => Ok(ExitCode::FAILURE),
        Err(error) => Err(CliError::failed(error)),
    }
}

/// What the process does that the server starts.
fn try_here(args: &Args, engine: &EngineConfig, parent: u32) -> Result<ExitCode, CliError> {
    let threads = engine.threads.get() as u64;
    check::confine(&args.check.limits(), threads, parent).map_err(CliError::failed)?;
    let overrides = args.manifest.overrides(None).map_err(CliError::failed)?;
    output::print_json(&check::answer(&args.model, &overrides, engine))?;
    Ok(ExitCode::SUCCESS)
}

fn describe(report: &Report) -> String {
    let mut text = format!(
        "{} {}: {} classes, runs on {} {} in {}",
        style(escaped(&report.name)).bold(),
        report.version,
        thousands(report.classes as u64),
        report.engine,
        report.engine_version,
        report.precision
    );
    for warning in &report.warnings {
        text += &format!("\n  {}", style(escaped(warning)).yellow());
    }
    text
}
