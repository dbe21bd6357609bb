//! `resnet18 quantize`: quantizes a float model to 8 bits, calibrated on a folder of photos.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
    thread::available_parallelism,
};

use console::style;
use indicatif::ProgressBar;
use serde::Serialize;

use super::{
    CliError, blocking,
    flags::{HubFlags, ImageFlags, ManifestFlags, QuantizationFlags},
    output::{self, escaped},
    output_file::OutputFile,
    report,
};
use crate::{
    offline::SkippedPhoto,
    quantization::{self, Photos, QuantizationError, QuantizationReport, QuantizationStage},
    sync::lock,
};

const LONG_HELP: &str = "\
The photos need no labels, but should resemble those that the model will classify; 100 to 500 are \
enough. They may be at any depth below DIR; files that are no images by their names are left \
alone. If folders are named after classes of the model, the \
accuracy before and after is reported too.

The model that is written takes pixels, uint8 [N, height, width, 3], and returns logits. All \
engines run it: OpenVINO and TensorRT in 8 bits, the embedded one in fp32 with the same results.

With --json, one line is printed:
  {\"output\", \"bytes\", \"float_bytes\", \"skipped_files\", \"ignored_files\",
   \"skipped\": [{\"file\", \"reason\"}], \"range\",
   \"bias_correction\", \"calibration_photos\", \"layers\", \"kept_float\",
   \"worst_layers\": [{\"layer\", \"snr_db\"}], \"logits_snr_db\",
   \"comparison\": {\"photos\", \"agreement\", \"agreement_but_ties\",
    \"max_probability_change\", \"mean_probability_change\",
    \"accuracy\": {\"photos\", \"fp32\", \"int8\"} or null}}
For a model that is refused, \"output\" and \"bytes\" are omitted.";

/// The flags of `resnet18 quantize`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub struct Args {
    /// An ONNX image classifier, or a published model such as torchvision:resnet18 [default: the
    /// bundled ResNet18].
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// A folder of photos that resemble those the model will classify.
    #[arg(long, env = "RESNET18_QUANTIZE_CALIBRATION", value_name = "DIR")]
    calibration: PathBuf,
    /// The ONNX file to write; an existing model of this program is replaced.
    #[arg(long, short, env = "RESNET18_QUANTIZE_OUTPUT", value_name = "FILE")]
    output: PathBuf,
    /// Replace the output file whatever it is, even the float model itself.
    #[arg(long, env = "RESNET18_QUANTIZE_FORCE")]
    force: bool,
    #[command(flatten)]
    quantization: QuantizationFlags,
    #[command(flatten)]
    hub: HubFlags,
    #[command(flatten)]
    manifest: ManifestFlags,
    #[command(flatten)]
    images: ImageFlags,
    /// Number of CPU threads [default: the CPUs available to this process].
    #[arg(long, env = "RESNET18_THREADS", value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Print one line of JSON.
    #[arg(long, env = "RESNET18_QUANTIZE_JSON")]
    json: bool,
}

/// Quantizes the model and reports how well the result agrees with it.
///
/// # Errors
/// If the model or the photos cannot be used, the result differs too much from the float model, or
/// the output cannot be written.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let mut args = args;
    args.model = args.hub.optional_file(args.model.take()).await?;
    blocking(move || quantize(&args)).await?;
    Ok(ExitCode::SUCCESS)
}

/// The result; also the line of JSON.
#[derive(Serialize)]
struct QuantizeReport<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
    float_bytes: usize,
    /// All files that were not used: `ignored_files` and `skipped` together.
    skipped_files: usize,
    ignored_files: usize,
    skipped: &'a [SkippedPhoto],
    #[serde(flatten)]
    report: &'a QuantizationReport,
}

fn quantize(args: &Args) -> Result<(), CliError> {
    let inputs: Vec<&Path> = args
        .model
        .as_deref()
        .into_iter()
        .chain(args.manifest.labels_file())
        .collect();
    let output = OutputFile::check(&args.output, &inputs, args.force)?;
    let model = args.manifest.read_model(args.model.as_deref())?;

    let threads = args
        .threads
        .or_else(|| available_parallelism().ok())
        .unwrap_or(NonZeroUsize::MIN);
    let config = args.quantization.config(threads);

    let bars = StageBars::default();
    let photos = Photos::sample(
        &args.calibration,
        config.photos,
        &model,
        args.images.config(),
        &|done, total| bars.show("reading photos", done, total),
    )
    .map_err(CliError::failed)?;

    let result = quantization::quantize(&model, &photos, &config, &|stage, done, total| {
        let what = match stage {
            QuantizationStage::Calibrating => "calibrating",
            QuantizationStage::Judging => "judging layers",
            QuantizationStage::Comparing => "comparing answers",
        };
        bars.show(what, done, total);
    });
    drop(bars);

    let refused = |report| QuantizeReport {
        output: None,
        bytes: None,
        float_bytes: model.graph.size(),
        skipped_files: photos.ignored + photos.skipped.len(),
        ignored_files: photos.ignored,
        skipped: &photos.skipped,
        report,
    };
    match result {
        Ok(quantized) => {
            output.write(&quantized.onnx)?;
            print(
                args,
                &QuantizeReport {
                    output: Some(args.output.to_string_lossy().into_owned()),
                    bytes: Some(quantized.onnx.len()),
                    ..refused(&quantized.report)
                },
            )
        }
        Err(error) => {
            if let QuantizationError::Disagrees { report, .. } = &error {
                print(args, &refused(report))?;
            }
            Err(CliError::failed(error))
        }
    }
}

/// The progress bar of the current stage; each stage replaces the bar of the one before. The
/// threads that do the work report to it.
#[derive(Default)]
struct StageBars(Mutex<Option<(&'static str, ProgressBar)>>);

impl StageBars {
    fn show(&self, stage: &'static str, done: usize, total: usize) {
        let mut current = lock(&self.0);
        if current.as_ref().is_none_or(|(name, _)| *name != stage) {
            let bar = ProgressBar::new(total as u64)
                .with_style(output::progress_style("{prefix:>18} {bar:32} {pos}/{len}"))
                .with_prefix(stage);
            if let Some((_, old)) = current.replace((stage, bar)) {
                old.finish_and_clear();
            }
        }
        if let Some((_, bar)) = &*current {
            bar.set_position(done as u64);
        }
    }
}

impl Drop for StageBars {
    fn drop(&mut self) {
        if let Some((_, bar)) = lock(&self.0).take() {
            bar.finish_and_clear();
        }
    }
}

fn print(args: &Args, report: &QuantizeReport) -> Result<(), CliError> {
    if args.json {
        output::print_json(report)?;
    } else {
        report::print_ignored(report.ignored_files, args.json);
        report::print_skipped(report.skipped);
        output::print_line(&describe(report))?;
    }
    Ok(())
}

/// The report as text.
fn describe(report: &QuantizeReport) -> String {
    let QuantizeReport {
        output,
        bytes,
        float_bytes,
        report,
        ..
    } = report;
    let megabytes = |bytes: usize| bytes as f64 / 1e6;
    let mut lines: Vec<(&str, String)> = Vec::new();

    if let (Some(output), Some(bytes)) = (output, bytes) {
        lines.push((
            "model",
            format!(
                "{}, {:.1} MB (float: {:.1} MB)",
                escaped(output),
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

    let corrected = if report.bias_correction {
        ", biases corrected"
    } else {
        ""
    };
    lines.push((
        "calibration",
        format!(
            "{} photos, ranges by {}{corrected}",
            report.calibration_photos, report.range
        ),
    ));

    let comparison = &report.comparison;
    lines.push((
        "agreement",
        format!(
            "{:.1} % on {} other photos, {:.1} % if ties are ignored",
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
        let name = if index == 0 { "worst layers" } else { "" };
        lines.push((name, format!("{:.1} dB  {}", worst.snr_db, worst.layer)));
    }

    let lines: Vec<String> = lines
        .into_iter()
        .map(|(name, value)| format!("{:<16} {value}", style(name).bold()))
        .collect();
    lines.join("\n")
}
