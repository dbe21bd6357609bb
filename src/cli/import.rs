//! `resnet18 import`: converts a checkpoint, or an ONNX file that lacks labels, to one ONNX file
//! that contains everything the server needs.

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

use super::{
    CliError, blocking,
    flags::{HubFlags, ManifestFlags},
    output::{self, escaped},
    output_file::OutputFile,
};
use crate::{
    answer,
    engine::{self, EngineConfig, EngineError, EngineKind},
    files::{LARGEST_CHECKPOINT, read_limited},
    image::{Filter, Fit, PreprocessConfig, Preprocessor, Source},
    model::{
        self, ChannelOrder, Model, ModelError, Overrides,
        checkpoint::{Checkpoint, ResNet, ResNetOptions},
        onnx::ModelProto,
    },
};

/// A photo of a cat, which the finished model classifies as a check.
const PHOTO: &[u8] = include_bytes!("../../tests/data/cat_lossy.webp");

const LONG_HELP: &str = "\
CHECKPOINT is a ResNet18, 34, 50, 101 or 152, a Wide ResNet or a ResNeXt, also with the stems of \
ResNet-C, D and T, for gray images or for CIFAR, that PyTorch or Hugging Face saved:
  .pth, .pt      a state dict wherever it is in the file, a whole module or a TorchScript program;
                 pickles are read as data, code is never run
  .safetensors   with the tensor names of torchvision, timm, OpenMMLab or Hugging Face
  .onnx          any image classifier, with the weights that lie in files beside it;
                 only labels and settings are added
or torchvision:NETWORK[@IMAGENET1K_V1|V2] and hf:OWNER/NAME[@REVISION], which are looked for in \
PyTorch's cache and in --hub-cache, else fetched and verified.
The network is found by its structure. Of several, an average of the weights (EMA) is taken; --key \
chooses another. What is left out, such as a second output for training, is said.
The size of the last layer determines the number of classes; --labels must have a line for each.

With --json, one line is printed:
  {\"output\", \"bytes\", \"name\", \"classes\", \"architecture\", \"parameters\",
   \"untrained\", \"notes\": [...], \"input\": {\"height\", \"width\"}, \"resize_shorter_side\",
   \"fit\", \"interpolation\", \"channels\",
   \"photo_of_a_cat\": {\"class_id\", \"label\", \"probability\"}}
For an .onnx file, architecture, parameters, untrained and notes are omitted; fit, interpolation and \
channels are there where they differ from crop, bilinear and RGB.";

/// The flags of `resnet18 import`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub struct Args {
    /// The checkpoint (.pth, .pt, .safetensors), a published one such as torchvision:resnet18, or an
    /// ONNX file to add labels to.
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// The ONNX file to write; an existing model of this program is replaced.
    #[arg(long, short, env = "RESNET18_IMPORT_OUTPUT", value_name = "FILE")]
    output: PathBuf,
    /// Replace the output file whatever it is, even the checkpoint itself.
    #[arg(long, env = "RESNET18_IMPORT_FORCE")]
    force: bool,
    /// The model's name on a server [default: the name in the file, else that of the output file].
    #[arg(long, env = "RESNET18_IMPORT_NAME", value_name = "NAME",
          value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Which of a checkpoint's networks to import, by the key that it is under [default: an average
    /// of the weights, such as `ema`, else the only one].
    #[arg(long, env = "RESNET18_IMPORT_KEY", value_name = "NAME",
          value_parser = NonEmptyStringValueParser::new())]
    key: Option<String>,
    /// Print one line of JSON.
    #[arg(long, env = "RESNET18_IMPORT_JSON")]
    json: bool,
    #[command(flatten)]
    hub: HubFlags,
    #[command(flatten)]
    manifest: ManifestFlags,
}

/// Imports the checkpoint and reports the result.
///
/// # Errors
/// If the checkpoint cannot be read or is no ResNet, the labels do not fit, or the output cannot
/// be written.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    blocking(move || {
        let report = import(&args)?;
        if args.json {
            output::print_json(&report)?;
        } else {
            output::print_line(&describe(&report))?;
        }

        let Some(network) = report.network else {
            return Ok(ExitCode::SUCCESS);
        };
        for note in network.notes {
            output::print_note(&escaped(&note));
        }
        if network.untrained {
            output::print_note(&format_args!(
                "{} has never been trained: the statistics of every BatchNorm have their initial \
                 values",
                args.checkpoint.display()
            ));
        }
        Ok(ExitCode::SUCCESS)
    })
    .await
}

/// The result; also the line of JSON.
#[derive(Serialize)]
struct ImportReport {
    output: String,
    bytes: usize,
    name: String,
    classes: usize,
    /// `None` for an ONNX file, whose network stays as it is.
    #[serde(flatten)]
    network: Option<NetworkJson>,
    input: InputSize,
    resize_shorter_side: u32,
    /// How images are fitted, if not by a crop of the centre.
    #[serde(skip_serializing_if = "Option::is_none")]
    fit: Option<String>,
    /// The filter that scales, if not bilinear with antialiasing.
    #[serde(skip_serializing_if = "Option::is_none")]
    interpolation: Option<String>,
    /// The colours of the network's input, if not RGB.
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<ChannelOrder>,
    /// `None` if the embedded engine cannot run the network.
    photo_of_a_cat: Option<PredictionJson>,
}

/// The network that was built from a checkpoint.
#[derive(Serialize)]
struct NetworkJson {
    architecture: String,
    parameters: usize,
    /// Whether every BatchNorm has its initial statistics.
    untrained: bool,
    /// What was chosen or left out.
    notes: Vec<String>,
}

#[derive(Clone, Copy, Serialize)]
struct InputSize {
    height: u32,
    width: u32,
}

#[derive(Serialize)]
struct PredictionJson {
    class_id: usize,
    label: String,
    probability: f32,
}

fn import(args: &Args) -> Result<ImportReport, CliError> {
    let mut inputs = vec![args.checkpoint.as_path()];
    inputs.extend(args.manifest.labels_file());
    let output = OutputFile::check(&args.output, &inputs, args.force)?;
    let overrides = args
        .manifest
        .overrides(args.name.clone())
        .map_err(CliError::failed)?;
    let in_file =
        |error: &dyn Display| CliError::Failed(format!("{}: {error}", args.checkpoint.display()));

    let options = ResNetOptions {
        key: args.key.clone(),
        input_size: overrides.input_size.map(|[width, height]| (height, width)),
    };
    let reference = HubFlags::reference(&args.checkpoint)?;
    let published = reference.map(|reference| args.hub.checkpoint(&reference));
    let published = published.transpose()?;
    let path = published
        .as_ref()
        .map_or(&args.checkpoint, |found| &found.path);
    let (mut onnx, network) = read(path, &options).map_err(|reason| in_file(&reason))?;
    let name = args
        .output
        .file_stem()
        .map_or("model".into(), |stem| stem.to_string_lossy());
    if let Some(found) = &published {
        // What its publisher says goes into the file, where flags take precedence over it.
        let settings = Overrides {
            labels: found
                .overrides
                .labels
                .clone()
                .or_else(|| overrides.labels.clone()),
            ..found.overrides.clone()
        };
        let taken = model::complete(&mut onnx, &settings, &name, Some(path))
            .map_err(|error| in_file(&error))?;
        output::print_sources(&taken);
    }
    let taken = model::complete(&mut onnx, &overrides, &name, Some(path))
        .map_err(|error| in_file(&error))?;
    output::print_sources(&taken);
    let content: Bytes = onnx.encode_to_vec().into();
    drop(onnx);

    // Check exactly what a server will read: the finished content, without any flags.
    let model = Model::from_bytes(content.clone(), &Overrides::default())
        .map_err(|error| in_file(&error))?;
    let photo_of_a_cat = classify_photo(&model).map_err(|error| in_file(&error))?;

    output.write(&content)?;

    Ok(ImportReport {
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
        fit: (model.geometry.fit != Fit::Crop).then(|| model.geometry.fit.to_string()),
        interpolation: (model.geometry.filter != Filter::Bilinear)
            .then(|| model.geometry.filter.to_string()),
        channels: (model.graph.channels != ChannelOrder::Rgb).then_some(model.graph.channels),
        photo_of_a_cat,
    })
}

/// Reads a checkpoint or an ONNX file as a model. The error describes what is wrong with the file.
fn read(path: &Path, options: &ResNetOptions) -> Result<(ModelProto, Option<NetworkJson>), String> {
    let content: Bytes = read_limited(path, LARGEST_CHECKPOINT)
        .map_err(|error| error.reason.to_string())?
        .into();
    if !Checkpoint::is_checkpoint(&content) {
        match model::decode_file(&content, path) {
            Ok((onnx, _)) => return Ok((onnx, None)),
            // It may be a checkpoint, which says what it looks like.
            Err(ModelError::NotOnnx(_)) => {}
            Err(error) => return Err(error.to_string()),
        }
    }

    let checkpoint = Checkpoint::from_bytes(content).map_err(|error| error.to_string())?;
    let ResNet {
        onnx,
        architecture,
        parameters,
        untrained,
        notes,
    } = checkpoint
        .into_resnet(options)
        .map_err(|error| error.to_string())?;
    Ok((
        onnx,
        Some(NetworkJson {
            architecture,
            parameters,
            untrained,
            notes,
        }),
    ))
}

/// Classifies [`PHOTO`] with the finished model. `None` if the embedded engine cannot run the
/// model; other engines may be able to.
fn classify_photo(model: &Model) -> Result<Option<PredictionJson>, EngineError> {
    let config = EngineConfig {
        kind: Some(EngineKind::Embedded),
        ..EngineConfig::new(NonZeroUsize::MIN)
    };
    let mut lanes = match engine::start(&config, model) {
        Err(error @ EngineError::UnsupportedModel { .. }) => {
            output::print_note(&format_args!("{error}; the model was not tested"));
            return Ok(None);
        }
        lanes => lanes?,
    };

    let mut crop = vec![0; model.geometry.bytes()];
    Preprocessor::new(PreprocessConfig::default())
        .crop(
            &Source::Encoded(Bytes::from_static(PHOTO)),
            &model.geometry,
            &mut crop,
        )
        .expect("the photo compiled into the program can be decoded");

    let batch = lanes.info.max_batch;
    let mut logits = vec![0.0; batch * model.graph.classes];
    lanes.narrow[0].infer(&crop.repeat(batch), batch, &mut logits)?;
    let logits = &logits[..model.graph.classes];
    if logits.iter().any(|logit| !logit.is_finite()) {
        return Err(EngineKind::Embedded
            .failed("the network's outputs for a photo are not all finite numbers"));
    }

    let best = answer::top_k(&model.activation.probabilities(logits), 1, 0.0)
        .first()
        .copied();
    Ok(best.map(|class| PredictionJson {
        class_id: class.class_id,
        label: model.labels[class.class_id].clone(),
        probability: class.probability,
    }))
}

/// The images that the network takes, in words.
fn describe_images(report: &ImportReport) -> String {
    let InputSize { height, width } = report.input;
    let fit = match &report.fit {
        None => format!("from a shorter side of {}", report.resize_shorter_side),
        Some(fit) => fit.clone(),
    };
    let channels = report.channels.map(|channels| match channels {
        ChannelOrder::Rgb => "RGB",
        ChannelOrder::Bgr => "BGR",
        ChannelOrder::Gray => "gray",
    });
    let parts = [
        Some(format!("{width}×{height}")),
        Some(fit),
        report.interpolation.clone(),
        channels.map(str::to_owned),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The report as text: the file, its properties, and the command to serve it.
fn describe(report: &ImportReport) -> String {
    let mut rows = vec![("name", escaped(&report.name).into_owned())];
    if let Some(network) = &report.network {
        rows.push(("architecture", network.architecture.clone()));
        rows.push(("parameters", output::thousands(network.parameters as u64)));
    }
    rows.push(("classes", output::thousands(report.classes as u64)));
    rows.push(("images", describe_images(report)));
    rows.push(("size", format!("{:.1} MB", report.bytes as f64 / 1e6)));
    if let Some(prediction) = &report.photo_of_a_cat {
        rows.push((
            "test",
            format!(
                "a photo of a cat is classified as {} ({:.1} %)",
                escaped(&prediction.label),
                prediction.probability * 100.0
            ),
        ));
    }

    let mut text = format!("{}\n", style(escaped(&report.output)).bold());
    for (name, value) in rows {
        text += &format!("  {}{value}\n", style(format!("{name:<14}")).dim());
    }
    let command = format!("resnet18 serve --model {}", output::quoted(&report.output));
    text + &format!("Serve it: {}", style(command).green())
}
