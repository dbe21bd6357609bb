//! `resnet18 train`: trains a new last layer for a model, on a folder of labelled photos.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::{ValueEnum, builder::NonEmptyStringValueParser};
use console::style;
use serde::Serialize;
use serde_json::json;

use super::{
    CliError, blocking,
    flags::{EngineFlags, HubFlags, ImageFlags, PixelFlags},
    output::{self, escaped, named_line, thousands},
    output_file::OutputFile,
    report::{self, percent},
    values,
};
use crate::{
    answer,
    engine::EngineInfo,
    model::{Base, Description, LinearLayer, Model, Overrides},
    offline::{
        OfflineConfig, OfflineModel, SkippedPhoto,
        dataset::Dataset,
        evaluation::{Case, Evaluation},
        training::{
            Examples, TrainingPlan,
            search::{self, Material, SearchResult},
            softmax_layer::{self, Example, SoftmaxLayer, TrainingSettings},
            stand_ins::add_unknown_class,
        },
    },
};

const LONG_HELP: &str = "\
The photos are in DATASET_DIR/train/CLASS/ and DATASET_DIR/val/CLASS/. Without val/, a random \
fifth of each class is kept for validation. Files that are no images by their names, such as \
annotations, are left alone. The base model's other layers stay as they are: they \
turn each photo into features once, and a new last layer with softmax is trained on these.

The default settings are the customary ones for transfer learning: learning rate 0.001, momentum \
0.9, and 10 epochs with batches of 32. --auto instead compares settings by cross-validation on \
the photos of train/ only.

A folder of photos called `nothing of these` becomes the class for everything that the other classes \
are not: servers answer it with an empty label. --reject-unknown learns that class without photos of \
it, from what the base model was trained to tell apart; if the folder is there, from both.

The same run on the same machine produces the same file; with --max-batch above 1, rounding may \
depend on how the photos are batched.

With --json, one line is printed:
  {\"output\", \"name\", \"labels\", \"train_photos\", \"val_photos\",
   \"ignored_files\", \"skipped\": [{\"file\", \"reason\"}],
   \"engine\": {\"kind\", \"precision\", \"device\"},
   \"features_s\", \"images_per_second\", \"total_s\",
   \"settings\": {\"learning_rate\", \"momentum\", \"weight_decay\", \"batch\", \"epochs\",
    \"seed\", …},
   \"epochs\": [{\"loss\", \"accuracy\"}], \"accuracy\",
   \"evaluation\": {\"photos\", \"top1\", \"top5\", \"classes\",
    \"confusions\", \"mistakes\"},
   \"confusion_matrix\"}

Exit status: 0 = the model was written, 1 = it was not, 64 = wrong flags.";

/// The flags of `resnet18 train`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub struct Args {
    /// The folder with train/CLASS/ and, optionally, val/CLASS/.
    #[arg(value_name = "DATASET_DIR")]
    dataset: PathBuf,
    /// The ONNX file to write; an existing model of this program is replaced.
    #[arg(long, short, env = "RESNET18_TRAIN_OUTPUT", value_name = "FILE")]
    output: PathBuf,
    /// Replace the output file whatever it is, even the base model itself.
    #[arg(long, env = "RESNET18_TRAIN_FORCE")]
    force: bool,
    /// The ONNX classifier to start from, or a published model such as torchvision:resnet18
    /// [default: the bundled ResNet18].
    #[arg(long, env = "RESNET18_TRAIN_BASE", value_name = "MODEL")]
    base: Option<PathBuf>,
    /// The new model's name on a server [default: the name of the output file].
    #[arg(long, env = "RESNET18_TRAIN_NAME", value_name = "NAME",
          value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Learn the class `nothing of these` without photos of it, so that photos of other things are
    /// not called one of the classes.
    #[arg(long, env = "RESNET18_TRAIN_REJECT_UNKNOWN")]
    reject_unknown: bool,
    /// Print one line of JSON.
    #[arg(long, env = "RESNET18_TRAIN_JSON")]
    json: bool,
    #[command(flatten)]
    training: TrainingFlags,
    #[command(flatten)]
    hub: HubFlags,
    #[command(flatten)]
    pixels: PixelFlags,
    #[command(flatten)]
    images: ImageFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Training")]
struct TrainingFlags {
    /// Choose learning rate, weight decay and epochs by cross-validation; usually better than the
    /// defaults.
    #[arg(long, env = "RESNET18_TRAIN_AUTO",
          conflicts_with_all = ["learning_rate", "weight_decay", "epochs"])]
    auto: bool,
    /// Step size along the gradient.
    #[arg(long, env = "RESNET18_TRAIN_LEARNING_RATE", value_name = "X", default_value = "0.001",
          value_parser = values::positive)]
    learning_rate: f32,
    /// Share of the previous step that is added to the next one, 0 to 1.
    #[arg(long, env = "RESNET18_TRAIN_MOMENTUM", value_name = "X", default_value = "0.9",
          value_parser = values::probability)]
    momentum: f32,
    /// Share of each weight that is added to its gradient (L2 regularization).
    #[arg(long, env = "RESNET18_TRAIN_WEIGHT_DECAY", value_name = "X", default_value = "0",
          value_parser = values::not_negative)]
    weight_decay: f32,
    /// Number of passes over the photos.
    #[arg(long, env = "RESNET18_TRAIN_EPOCHS", value_name = "N", default_value = "10",
          value_parser = values::count)]
    epochs: usize,
    /// Number of photos per step.
    #[arg(long, env = "RESNET18_TRAIN_BATCH", value_name = "N", default_value = "32",
          value_parser = values::count)]
    batch: usize,
    /// Mirror each photo at random, as augmentation. Takes twice the time, and helps with few
    /// photos.
    #[arg(long, env = "RESNET18_TRAIN_FLIP")]
    flip: bool,
    /// Whether all classes weigh the same, so that photos of small classes weigh more, or all
    /// photos.
    #[arg(
        long,
        env = "RESNET18_TRAIN_CLASS_WEIGHTS",
        value_enum,
        default_value = "balanced"
    )]
    class_weights: ClassWeights,
    /// Seed of the random numbers; the same seed produces the same model.
    #[arg(
        long,
        env = "RESNET18_TRAIN_SEED",
        value_name = "N",
        default_value = "0"
    )]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum ClassWeights {
    Balanced,
    None,
}

impl TrainingFlags {
    fn settings(&self) -> TrainingSettings {
        TrainingSettings {
            learning_rate: self.learning_rate,
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            batch: self.batch,
            epochs: self.epochs,
            balance: self.class_weights == ClassWeights::Balanced,
            seed: self.seed,
        }
    }
}

/// The result; also the line of JSON.
#[derive(Serialize)]
struct TrainReport {
    output: String,
    name: String,
    labels: Vec<String>,
    train_photos: usize,
    val_photos: usize,
    ignored_files: usize,
    skipped: Vec<SkippedPhoto>,
    engine: EngineJson,
    features_s: f64,
    images_per_second: f64,
    total_s: f64,
    settings: serde_json::Value,
    epochs: Vec<EpochJson>,
    accuracy: f64,
    evaluation: Evaluation,
    confusion_matrix: Vec<Vec<usize>>,
}

#[derive(Serialize)]
struct EngineJson {
    kind: String,
    precision: String,
    device: String,
}

#[derive(Clone, Copy, Serialize)]
struct EpochJson {
    loss: f32,
    accuracy: f32,
}

/// Trains, shows the progress, writes the model and reports its accuracy.
///
/// # Errors
/// If the dataset or the base model cannot be used, the engine cannot start, or the output cannot
/// be written.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let mut args = args;
    output::print_warnings();
    args.base = args.hub.optional_file(args.base.take()).await?;
    let started = Instant::now();
    let inputs: Vec<&Path> = args.base.as_deref().into_iter().collect();
    let output = OutputFile::check(&args.output, &inputs, args.force)?;

    let dataset = Dataset::read(&args.dataset).map_err(CliError::failed)?;
    let ignored_files = dataset.ignored();
    report::print_ignored(ignored_files, args.json);
    let plan =
        TrainingPlan::new(dataset, args.training.seed, &args.dataset).map_err(CliError::failed)?;
    print_unless_json(&args, || {
        named_line(
            "Photos",
            format!(
                "{} to train on, {} for validation, {} classes",
                thousands(plan.train.len() as u64),
                plan.val.len(),
                plan.classes.len()
            ),
        )
    })?;

    let config = OfflineConfig {
        engine: args.engine.config()?,
        preprocess: args.images.config(),
    };
    let threads = config.engine.threads;
    let (path, overrides) = (args.base.clone(), args.pixels.overrides());
    let (base, backbone) = blocking(move || start_backbone(path, &overrides, &config)).await?;

    let (examples, extraction) = extract_features(&args, &plan, &backbone).await?;
    let engine = backbone.engine.clone();
    // Stopping the engine waits for its threads.
    blocking(move || drop(backbone)).await;
    if !args.json {
        report::print_skipped(&examples.skipped);
    }

    let mut labels = plan.classes.clone();
    let stand_ins = if args.reject_unknown {
        let rows = base.rows().ok_or_else(|| {
            CliError::Failed(
                "--reject-unknown can't read the weights of the base model's last layer, which it \
                 learns from; add a folder `nothing of these` with photos instead"
                    .into(),
            )
        })?;
        add_unknown_class(&mut labels, &rows, &examples.train)
    } else {
        Vec::new()
    };
    let job = TrainingJob {
        args,
        output,
        ignored_files,
        plan,
        labels,
        base,
        engine,
        threads,
        examples,
        stand_ins,
        extraction,
        started,
    };
    blocking(move || job.run()).await?;
    Ok(ExitCode::SUCCESS)
}

/// Reads the base model, and starts an engine with all of its layers but the last.
fn start_backbone(
    path: Option<PathBuf>,
    overrides: &Overrides,
    config: &OfflineConfig,
) -> Result<(Base, OfflineModel), CliError> {
    let base = match path {
        Some(path) => Base::from_file(&path, overrides),
        None => Base::bundled(overrides),
    };
    let base = base.map_err(CliError::failed)?;
    output::print_sources(&base.backbone.sources);
    let backbone = OfflineModel::start(config, &base.backbone).map_err(CliError::failed)?;
    Ok((base, backbone))
}

/// Prints text for a person to standard output.
fn print_unless_json(args: &Args, text: impl FnOnce() -> String) -> Result<(), CliError> {
    if !args.json {
        output::print_line(&text().trim_end())?;
    }
    Ok(())
}

/// Runs the backbone on all photos; also returns how long that took.
async fn extract_features(
    args: &Args,
    plan: &TrainingPlan,
    backbone: &OfflineModel,
) -> Result<(Examples, Duration), CliError> {
    let images = plan.images(args.training.flip);
    let bar = output::progress(images, "Features");
    let started = Instant::now();
    let examples = plan
        .examples(backbone, args.training.flip, |done| {
            bar.set_position(done as u64);
        })
        .await;
    bar.finish_and_clear();
    let examples = examples.map_err(CliError::failed)?;
    let took = started.elapsed();

    print_unless_json(args, || {
        let EngineInfo {
            kind,
            precision,
            device,
            ..
        } = &backbone.engine;
        let images = images as u64;
        let seconds = took.as_secs_f64();
        named_line(
            "Features",
            format!(
                "{} images in {seconds:.1} s, {:.0} images/s, {kind} {precision} on {device}",
                thousands(images),
                images as f64 / seconds,
            ),
        )
    })?;
    Ok((examples, took))
}

/// The part of the work that follows the extraction of features. It blocks its thread.
struct TrainingJob {
    args: Args,
    output: OutputFile,
    ignored_files: usize,
    plan: TrainingPlan,
    /// Those of the plan, and perhaps that of the unknown class.
    labels: Vec<String>,
    base: Base,
    engine: EngineInfo,
    threads: NonZeroUsize,
    examples: Examples,
    /// Examples of the unknown class that are no photos.
    stand_ins: Vec<Example>,
    /// How long the extraction of features took.
    extraction: Duration,
    started: Instant,
}

/// The trained layer and how it was trained.
struct TrainedLayer {
    settings: TrainingSettings,
    layer: LinearLayer,
    epochs: Vec<EpochJson>,
}

impl TrainingJob {
    /// Trains the layer, writes the model, and prints the report.
    fn run(self) -> Result<(), CliError> {
        let trained = self.train()?;
        let evaluation = Evaluation::new(&self.labels, &self.cases(&trained.layer));
        let settings = trained
            .settings
            .json(self.args.training.auto, self.args.training.flip);
        let name = self.model_name();

        let description = Description {
            name: name.clone(),
            labels: self.labels.clone(),
            training: json!({
                "validation_accuracy": (evaluation.top1 * 1e4).round() / 1e4,
                "train_photos": self.examples.train.len(),
                "reject_unknown": self.args.reject_unknown,
                "validation_photos": self.examples.val.len(),
                "features": {
                    "engine": self.engine.kind.to_string(),
                    "precision": self.engine.precision.to_string(),
                },
                "settings": settings,
            }),
        };
        self.write(&trained.layer, description)?;

        let images = self.plan.images(self.args.training.flip) as f64;
        let features_s = self.extraction.as_secs_f64();
        let report = TrainReport {
            output: self.args.output.display().to_string(),
            name,
            train_photos: self.examples.train.len(),
            val_photos: self.examples.val.len(),
            ignored_files: self.ignored_files,
            skipped: self.examples.skipped,
            engine: EngineJson::new(&self.engine),
            features_s,
            images_per_second: images / features_s,
            total_s: self.started.elapsed().as_secs_f64(),
            settings,
            epochs: trained.epochs,
            accuracy: evaluation.top1,
            confusion_matrix: evaluation.matrix(&self.labels),
            evaluation,
            labels: self.labels,
        };
        if self.args.json {
            output::print_json(&report)?;
        } else {
            output::print_line(&describe(&report))?;
        }
        Ok(())
    }

    fn model_name(&self) -> String {
        if let Some(name) = &self.args.name {
            return name.clone();
        }
        match self.args.output.file_stem() {
            Some(stem) => stem.to_string_lossy().into_owned(),
            None => "model".into(),
        }
    }

    fn train(&self) -> Result<TrainedLayer, CliError> {
        let train: Vec<&Example> = self.examples.train.iter().collect();
        let val: Vec<&Example> = self.examples.val.iter().collect();
        let settings = if self.args.training.auto {
            self.search_settings(&train)?
        } else {
            self.args.training.settings()
        };

        print_unless_json(&self.args, || {
            style("Epoch     loss  validation").bold().to_string()
        })?;
        let all: Vec<&Example> = train.into_iter().chain(&self.stand_ins).collect();
        let mut layer = SoftmaxLayer::new(&all, self.labels.len(), settings);
        let mut epochs = Vec::new();
        for number in 1..=settings.epochs {
            let loss = layer.epoch(&all);
            if !loss.is_finite() {
                return Err(CliError::Failed(format!(
                    "training diverged in epoch {number}; choose a --learning-rate below {} or \
                     use --auto",
                    settings.learning_rate
                )));
            }
            let accuracy = softmax_layer::score(layer.layer(), &val).accuracy;
            epochs.push(EpochJson { loss, accuracy });

            print_unless_json(&self.args, || {
                let bar = style(output::bar(accuracy, output::BAR_WIDTH)).green();
                let accuracy = percent(accuracy.into());
                format!("{number:>5}  {loss:>7.4}  {accuracy:>10}  {bar}")
            })?;
        }

        Ok(TrainedLayer {
            settings,
            layer: layer.layer().clone(),
            epochs,
        })
    }

    /// Finds the best settings by cross-validation, for --auto.
    fn search_settings(&self, train: &[&Example]) -> Result<TrainingSettings, CliError> {
        let bar = output::progress_in_percent("Settings");
        let found = search::search(
            Material {
                train,
                stand_ins: &self.stand_ins,
                classes: self.labels.len(),
            },
            self.args.training.settings(),
            self.threads,
            |done| bar.set_position((done * 100.0) as u64),
        );
        bar.finish_and_clear();
        let Some(SearchResult {
            settings,
            score,
            tried,
        }) = found
        else {
            return Err(CliError::Failed(
                "--auto needs a class with at least two training photos, to leave one out".into(),
            ));
        };

        print_unless_json(&self.args, || {
            named_line(
                "Settings",
                format!(
                    "learning rate {}, weight decay {}, {} epochs: the best of {tried}, {} in \
                     cross-validation",
                    settings.learning_rate,
                    settings.weight_decay,
                    settings.epochs,
                    percent(score.accuracy.into())
                ),
            )
        })?;
        Ok(settings)
    }

    /// The new layer's predictions for the validation photos.
    fn cases(&self, layer: &LinearLayer) -> Vec<Case> {
        self.examples
            .val
            .iter()
            .zip(&self.examples.val_photos)
            .map(|(example, photo)| Case {
                file: report::name_of(photo, &self.args.dataset),
                class: example.class,
                probabilities: answer::softmax(&softmax_layer::logits(layer, &example.features)),
            })
            .collect()
    }

    /// Writes the base model with the new layer, once it is certain that `serve` can read it.
    fn write(&self, layer: &LinearLayer, description: Description) -> Result<(), CliError> {
        let onnx: Bytes = self
            .base
            .with_layer(layer, description)
            .map_err(CliError::failed)?
            .into();
        Model::from_bytes(onnx.clone(), &Overrides::default()).map_err(CliError::failed)?;
        self.output.write(&onnx)
    }
}

impl EngineJson {
    fn new(engine: &EngineInfo) -> Self {
        Self {
            kind: engine.kind.to_string(),
            precision: engine.precision.to_string(),
            device: engine.device.clone(),
        }
    }
}

/// The report as text.
fn describe(report: &TrainReport) -> String {
    let mut text = format!("\n{}\n", report::tables(&report.evaluation, &report.labels));
    let accuracy = style(percent(report.accuracy)).green().bold();
    let right: usize = report
        .evaluation
        .classes
        .iter()
        .map(|class| class.right)
        .sum();

    text += &named_line(
        "Accuracy",
        format!(
            "{accuracy}: {right} of {} photos kept for validation",
            report.val_photos
        ),
    );
    text += &named_line(
        "Took",
        format!(
            "{:.1} s, of which {:.1} s for the features",
            report.total_s, report.features_s
        ),
    );
    text += &named_line("Written", escaped(&report.output));
    let command = format!("resnet18 serve --model {}", output::quoted(&report.output));
    text + named_line("Serve it", style(command).green()).trim_end()
}
