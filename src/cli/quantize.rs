//! `resnet18 quantize`: a float model and a folder of photos → a model whose layers compute in 8
//! bits.

use std::{
    num::NonZeroUsize, path::PathBuf, process::ExitCode, sync::Mutex, thread::available_parallelism,
};

use console::style;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{
    CliError, files,
    flags::{ImageFlags, ManifestFlags, QuantizationFlags},
    output,
};
use crate::{
    model::Model,
    quantization::{self, Photos, QuantizationError, Report, Stage},
};

const HELP: &str = "\
The photos need no labels, but should be of the kind that the model will see; 100 to 500 are enough. They lie in any depth
below DIR. Where folders are named after classes of the model, the accuracy before and after is shown too.

The file takes pixels, uint8 [N, height, width, 3], and gives logits. Every engine here runs it: OpenVINO and TensorRT in
8 bits, the embedded one in fp32 with the same results.

With --json one line is printed:
  {\"output\", \"bytes\", \"float_bytes\", \"skipped_files\", \"range\", \"bias_correction\", \"calibration_photos\", \"layers\", \
   \"kept_float\", \"worst_layers\": [{\"layer\", \"snr_db\"}], \"logits_snr_db\", \"comparison\": {\"photos\", \"agreement\", \"agreement_but_ties\", \
   \"max_probability_change\", \"mean_probability_change\", \"accuracy\": {\"photos\", \"fp32\", \"int8\"} or null}}
A refused model's line has no \"output\" and no \"bytes\".";

/// The flags of `resnet18 quantize`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// An ONNX image classifier [default: the bundled ResNet18].
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// A folder of photos of the kind that the model will see.
    #[arg(long, env = "RESNET18_QUANTIZE_CALIBRATION", value_name = "DIR")]
    calibration: PathBuf,
    /// The ONNX file to write; one that is there is replaced.
    #[arg(long, short, env = "RESNET18_QUANTIZE_OUTPUT", value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    quantization: QuantizationFlags,
    #[command(flatten)]
    manifest: ManifestFlags,
    #[command(flatten)]
    images: ImageFlags,
    /// CPU threads [default: the CPUs that this process may use].
    #[arg(long, env = "RESNET18_THREADS", value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Print one line of JSON.
    #[arg(long, env = "RESNET18_QUANTIZE_JSON")]
    json: bool,
}

/// Quantises, and says how good the result is.
///
/// # Errors
/// A model or photos that can't be used, a result that differs too much, an output that can't be
/// written.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let done = tokio::task::spawn_blocking(move || quantize(&args)).await;
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    Ok(ExitCode::SUCCESS)
}

/// What came of it; also the line of JSON.
#[derive(Serialize)]
struct Outcome<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
    float_bytes: usize,
    skipped_files: usize,
    #[serde(flatten)]
    report: &'a Report,
}

fn quantize(args: &Args) -> Result<(), CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(error.to_string());
    files::check_output(&args.output).map_err(CliError::Failed)?;
    let overrides = args
        .manifest
        .overrides(None)
        .map_err(|error| failed(&error))?;
    let model = match &args.model {
        Some(path) => Model::from_file(path, &overrides),
        None => Model::bundled(&overrides),
    };
    let model = model.map_err(|error| failed(&error))?;
    let threads = args
        .threads
        .or_else(|| available_parallelism().ok())
        .unwrap_or(NonZeroUsize::MIN);
    let config = args.quantization.config(threads);

    let bars = Bars::default();
    let photos = Photos::sample(
        &args.calibration,
        config.photos,
        &model,
        args.images.config(),
        &|done, total| {
            bars.show("reading photos", done, total);
        },
    );
    let photos = photos.map_err(|error| failed(&error))?;
    let result = quantization::quantize(&model, &photos, &config, &|stage, done, total| {
        let what = match stage {
            Stage::Calibrating => "calibrating",
            Stage::Judging => "judging layers",
            Stage::Comparing => "comparing answers",
        };
        bars.show(what, done, total);
    });
    drop(bars);
    let float_bytes = model.graph.size();
    let outcome = |report| Outcome {
        output: None,
        bytes: None,
        float_bytes,
        skipped_files: photos.skipped,
        report,
    };
    match result {
        Ok(quantized) => {
            files::write_atomically(&args.output, &quantized.onnx).map_err(|error| {
                CliError::Failed(format!(
                    "{}: cannot be written: {error}",
                    args.output.display()
                ))
            })?;
            let output = Some(args.output.to_string_lossy().into_owned());
            print(
                args,
                &Outcome {
                    output,
                    bytes: Some(quantized.onnx.len()),
                    ..outcome(&quantized.report)
                },
            )
        }
        Err(error) => {
            if let QuantizationError::Disagrees { report, .. } = &error {
                print(args, &outcome(report))?;
            }
            Err(failed(&error))
        }
    }
}

/// One bar after the other, on a terminal.
#[derive(Default)]
struct Bars(Mutex<Option<(&'static str, ProgressBar)>>);

impl Bars {
    fn show(&self, what: &'static str, done: usize, total: usize) {
        let mut shown = self
            .0
            .lock()
            .expect("nothing panics while it holds the bar");
        if shown.as_ref().is_none_or(|(shown, _)| *shown != what) {
            let style = ProgressStyle::with_template("{prefix:>18} {bar:32} {pos}/{len}")
                .expect("the template is right");
            let bar = ProgressBar::new(total as u64)
                .with_style(style)
                .with_prefix(what);
            if let Some((_, old)) = shown.replace((what, bar)) {
                old.finish_and_clear();
            }
        }
        if let Some((_, bar)) = &*shown {
            bar.set_position(done as u64);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        if let Ok(Some((_, bar))) = self.0.get_mut().map(Option::take) {
            bar.finish_and_clear();
        }
    }
}

fn print(args: &Args, outcome: &Outcome) -> Result<(), CliError> {
    match args.json {
        true => output::print_json(outcome)?,
        false => output::print_line(&table(outcome))?,
    }
    Ok(())
}

fn table(outcome: &Outcome) -> String {
    let Outcome {
        output,
        bytes,
        float_bytes,
        skipped_files,
        report,
    } = outcome;
    let mut lines: Vec<(&str, String)> = Vec::new();
    let megabytes = |bytes: usize| bytes as f64 / 1e6;
    if let (Some(output), Some(bytes)) = (output, bytes) {
        lines.push((
            "model",
            format!(
                "{output}, {:.1} MB (float: {:.1} MB)",
                megabytes(*bytes),
                megabytes(*float_bytes)
            ),
        ));
    }
    let kept = match &report.kept_float[..] {
        [] => String::new(),
        kept => format!(", in float: {}", kept.join(", ")),
    };
    lines.push(("8-bit layers", format!("{}{kept}", report.layers)));
    let skipped = if *skipped_files > 0 {
        format!(", {skipped_files} files are no photos")
    } else {
        String::new()
    };
    let corrected = if report.bias_correction {
        ", biases corrected"
    } else {
        ""
    };
    lines.push((
        "calibration",
        format!(
            "{} photos, ranges by {}{corrected}{skipped}",
            report.calibration_photos, report.range
        ),
    ));
    let comparison = &report.comparison;
    lines.push((
        "agreement",
        format!(
            "{:.1} % on {} other photos, {:.1} % but for ties",
            comparison.agreement * 100.0,
            comparison.photos,
            comparison.agreement_but_ties * 100.0
        ),
    ));
    lines.push((
        "probabilities",
        format!(
            "change by {:.3} on average, {:.3} at most",
            comparison.mean_probability_change, comparison.max_probability_change
        ),
    ));
    if let Some(accuracy) = &comparison.accuracy {
        let (fp32, int8) = (accuracy.fp32 * 100.0, accuracy.int8 * 100.0);
        lines.push((
            "top-1",
            format!(
                "{int8:.1} % on {} labelled photos (float: {fp32:.1} %)",
                accuracy.photos
            ),
        ));
    }
    lines.push(("signal to noise", format!("{:.1} dB", report.logits_snr_db)));
    for (index, worst) in report.worst_layers.iter().enumerate() {
        let what = if index == 0 { "worst layers" } else { "" };
        lines.push((what, format!("{:.1} dB  {}", worst.snr_db, worst.layer)));
    }
    let lines = lines
        .into_iter()
        .map(|(what, value)| format!("{:<16} {value}", style(what).bold()));
    lines.collect::<Vec<_>>().join("\n")
}
