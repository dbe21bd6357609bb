//! `resnet18 import`: a checkpoint, or an ONNX file that needs labels, into one file that says
//! everything about itself.

use std::{
    fmt::Display,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
};

use bytes::Bytes;
use clap::builder::NonEmptyStringValueParser;
use console::style;
use prost::Message;
use serde::Serialize;

use super::{CliError, files, flags::ManifestFlags, output};
use crate::{
    answer,
    engine::{self, EngineConfig, EngineError, EngineKind},
    image::{PreprocessConfig, Preprocessor, Source},
    model::{
        self, Model, Overrides,
        checkpoint::{Checkpoint, ResNet},
        onnx::ModelProto,
    },
};

/// More than twice a ResNet200 with the state of its optimiser.
const LARGEST_FILE: u64 = 4 << 30;

/// What the finished model is shown, to prove that it answers: a cat.
const PHOTO: &[u8] = include_bytes!("../../tests/data/cat_lossy.webp");

const HELP: &str = "\
CHECKPOINT is what PyTorch or Hugging Face saved of a ResNet18, 34, 50, 101 or 152 (wide ones and ResNeXts too):
  .pth, .pt      a state dict, bare or under `state_dict` or `model`; pickles are read as data, their code is never run
  .safetensors   with torchvision's, timm's or Hugging Face's names
  .onnx          any image classifier; it is only given its labels and settings
The size of the last layer says how many classes there are; --labels must have a line for each.

With --json one line is printed:
  {\"output\", \"bytes\", \"name\", \"classes\", \"architecture\", \"parameters\", \"untrained\", \"input\": {\"height\", \"width\"}, \
     \"resize_shorter_side\", \"photo_of_a_cat\": {\"class_id\", \"label\", \"probability\"}}
For .onnx architecture, parameters and untrained are left out.";

/// The flags of `resnet18 import`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// The checkpoint (.pth, .pt, .safetensors), or an ONNX file that is to get labels.
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// The ONNX file to write; one that is there is replaced.
    #[arg(long, short, env = "RESNET18_IMPORT_OUTPUT", value_name = "FILE")]
    output: PathBuf,
    /// What clients call the model [default: what the file has, else the name of the output].
    #[arg(long, env = "RESNET18_IMPORT_NAME", value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Print one line of JSON.
    #[arg(long, env = "RESNET18_IMPORT_JSON")]
    json: bool,
    #[command(flatten)]
    manifest: ManifestFlags,
}

/// Imports and says what came of it.
///
/// # Errors
/// A checkpoint that can't be read or is no ResNet, labels that don't fit, an output that can't be
/// written.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let work = tokio::task::spawn_blocking(move || import(&args).map(|report| (args, report)));
    let (args, report) = work
        .await
        .map_err(|error| CliError::Failed(format!("the import broke off: {error}")))??;
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print_line(&table(&report))?;
    }
    if report
        .network
        .as_ref()
        .is_some_and(|network| network.untrained)
    {
        output::print_note(&format_args!(
            "{} has never been trained: every BatchNorm has the statistics that it begins with",
            args.checkpoint.display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// What was made; also the line of JSON.
#[derive(Serialize)]
struct Report {
    output: String,
    bytes: usize,
    name: String,
    classes: usize,
    /// What the checkpoint made; an ONNX file is taken as it is.
    #[serde(flatten)]
    network: Option<Network>,
    input: InputSize,
    resize_shorter_side: u32,
    /// `None` where the embedded engine can't run the network.
    photo_of_a_cat: Option<Answer>,
}

#[derive(Serialize)]
struct Network {
    architecture: String,
    parameters: usize,
    untrained: bool,
}

#[derive(Clone, Copy, Serialize)]
struct InputSize {
    height: u32,
    width: u32,
}

#[derive(Serialize)]
struct Answer {
    class_id: usize,
    label: String,
    probability: f32,
}

fn import(args: &Args) -> Result<Report, CliError> {
    files::check_output(&args.output).map_err(CliError::Failed)?;
    let overrides = args.manifest.overrides(args.name.clone()).map_err(failed)?;
    let in_file =
        |error: &dyn Display| CliError::Failed(format!("{}: {error}", args.checkpoint.display()));

    let (mut onnx, network) = read(&args.checkpoint).map_err(|reason| in_file(&reason))?;
    let name = args
        .output
        .file_stem()
        .map_or("model".into(), |stem| stem.to_string_lossy());
    model::complete(&mut onnx, &overrides, &name, Some(&args.checkpoint))
        .map_err(|error| in_file(&error))?;
    let content: Bytes = onnx.encode_to_vec().into();
    drop(onnx);
    // What is tried out is what will be served: the finished content, without flags.
    let model = Model::from_bytes(content.clone(), &Overrides::default())
        .map_err(|error| in_file(&error))?;
    let photo_of_a_cat = try_out(&model).map_err(|error| in_file(&error))?;
    files::write_atomically(&args.output, &content).map_err(|error| {
        CliError::Failed(format!(
            "{}: cannot be written: {error}",
            args.output.display()
        ))
    })?;
    Ok(Report {
        output: args.output.to_string_lossy().into_owned(),
        bytes: content.len(),
        name: model.name,
        classes: model.graph.classes,
        network,
        input: InputSize {
            height: model.geometry.height,
            width: model.geometry.width,
        },
        resize_shorter_side: model.geometry.resize_shorter_side,
        photo_of_a_cat,
    })
}

/// The model of a checkpoint or an ONNX file, or why there is none.
fn read(path: &Path) -> Result<(ModelProto, Option<Network>), String> {
    let content: Bytes = files::read_at_most(path, LARGEST_FILE)?.into();
    if !Checkpoint::is_one(&content)
        && let Ok(onnx) = model::decode(&content)
    {
        return Ok((onnx, None));
    }
    let checkpoint = Checkpoint::from_bytes(content).map_err(|error| error.to_string())?;
    let ResNet {
        onnx,
        architecture,
        parameters,
        untrained,
    } = checkpoint
        .into_resnet()
        .map_err(|error| error.to_string())?;
    Ok((
        onnx,
        Some(Network {
            architecture,
            parameters,
            untrained,
        }),
    ))
}

/// What the finished model says of a photo; `None` where the embedded engine can't run it, though
/// others may.
fn try_out(model: &Model) -> Result<Option<Answer>, EngineError> {
    let config = EngineConfig {
        kind: Some(EngineKind::Embedded),
        ..EngineConfig::new(NonZeroUsize::MIN)
    };
    let mut lanes = match engine::start(&config, model) {
        Err(error @ EngineError::UnsupportedModel { .. }) => {
            output::print_note(&format_args!("{error}; the file was not tried out"));
            return Ok(None);
        }
        lanes => lanes?,
    };
    let batch = lanes.info.max_batch;
    let mut crop = vec![0; model.geometry.bytes()];
    Preprocessor::new(PreprocessConfig::default())
        .crop(
            &Source::Encoded(Bytes::from_static(PHOTO)),
            &model.geometry,
            &mut crop,
        )
        .expect("the photo compiled into the program can be decoded");
    let mut logits = vec![0.0; batch * model.graph.classes];
    lanes.narrow[0].infer(&crop.repeat(batch), batch, &mut logits)?;
    let logits = &logits[..model.graph.classes];
    if logits.iter().any(|logit| !logit.is_finite()) {
        return Err(EngineKind::Embedded
            .failed("for a photo the network answers with what are no finite numbers"));
    }
    let best = answer::top_k(&answer::softmax(logits), 1, 0.0)
        .first()
        .copied();
    Ok(best.map(|class| Answer {
        class_id: class.class_id,
        label: model.labels[class.class_id].clone(),
        probability: class.probability,
    }))
}

fn failed(error: impl Display) -> CliError {
    CliError::Failed(error.to_string())
}

/// The report as lines: the file, its properties, and how to go on.
fn table(report: &Report) -> String {
    let mut rows = vec![("name", report.name.clone())];
    if let Some(network) = &report.network {
        rows.push(("architecture", network.architecture.clone()));
        rows.push(("parameters", output::thousands(network.parameters as u64)));
    }
    rows.push(("classes", output::thousands(report.classes as u64)));
    let InputSize { height, width } = report.input;
    rows.push((
        "images",
        format!(
            "{width}×{height}, from a shorter side of {}",
            report.resize_shorter_side
        ),
    ));
    rows.push(("size", format!("{:.1} MB", report.bytes as f64 / 1e6)));
    if let Some(Answer {
        label, probability, ..
    }) = &report.photo_of_a_cat
    {
        rows.push((
            "tried out",
            format!(
                "takes a photo of a cat for: {label} ({:.1} %)",
                probability * 100.0
            ),
        ));
    }
    let mut text = format!("{}\n", style(&report.output).bold());
    for (name, value) in rows {
        text += &format!("  {}{value}\n", style(format!("{name:<14}")).dim());
    }
    text + &format!(
        "Serve it: {}",
        style(format!(
            "resnet18 serve --model {}",
            output::quoted(&report.output)
        ))
        .green()
    )
}
