//! `resnet18 train`: a folder of photos and a model → a model that knows the photos' classes.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::{ValueEnum, builder::NonEmptyStringValueParser};
use console::style;
use serde::Serialize;
use serde_json::json;

use super::{
    CliError, files,
    flags::{EngineFlags, ImageFlags, PixelFlags},
    output::{self, thousands},
    report::{self, line, percent},
    values,
};
use crate::{
    answer,
    engine::EngineInfo,
    model::{Base, Description, LinearLayer, Model, Overrides},
    offline::{
        Offline, OfflineConfig, Skipped,
        dataset::Dataset,
        evaluation::{Case, Evaluation},
        training::{
            Examples, Plan,
            search::{self, Found},
            softmax_layer::{self, Example, Settings, SoftmaxLayer},
        },
    },
};

const HELP: &str = "\
The photos lie in DATASET_DIR/train/CLASS/ and DATASET_DIR/val/CLASS/; without val/, every fifth photo of each class is kept \
     for validation, by chance. The base's network stays as it is: it turns every photo into features, once, and a new last \
     layer with softmax is learned from them. Without --auto the settings are those of the usual article: learning rate 0.001, \
     momentum 0.9, 10 epochs of batches of 32. --auto compares settings by cross-validation on the photos of train/ only.

The same run on the same machine gives the same file (with --max-batch above 1, rounding may depend on the batches).

With --json one line is printed:
  {\"output\", \"name\", \"labels\", \"train_photos\", \"val_photos\", \"skipped\": [{\"file\", \"reason\"}], \
     \"engine\": {\"kind\", \"precision\", \"device\"}, \"features_s\", \"images_per_second\", \"total_s\", \
     \"settings\": {\"learning_rate\", \"momentum\", \"weight_decay\", \"batch\", \"epochs\", \"seed\", …}, \
     \"epochs\": [{\"loss\", \"accuracy\"}], \"accuracy\", \"evaluation\": {\"photos\", \"top1\", \"top5\", \"classes\", \
     \"confusions\", \"mistakes\"}, \"confusion_matrix\"}

Exit status: 0 = the model was written, 1 = it was not, 64 = wrong flags.";

/// The flags of `resnet18 train`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// The folder that holds train/CLASS/ and perhaps val/CLASS/.
    #[arg(value_name = "DATASET_DIR")]
    dataset: PathBuf,
    /// The ONNX file to write; one that is there is replaced.
    #[arg(long, short, env = "RESNET18_TRAIN_OUTPUT", value_name = "FILE")]
    output: PathBuf,
    /// The ONNX classifier whose network is used [default: the bundled one].
    #[arg(long, env = "RESNET18_TRAIN_BASE", value_name = "MODEL")]
    base: Option<PathBuf>,
    /// What clients call the new model [default: the name of the output].
    #[arg(long, env = "RESNET18_TRAIN_NAME", value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Print one line of JSON.
    #[arg(long, env = "RESNET18_TRAIN_JSON")]
    json: bool,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    pixels: PixelFlags,
    #[command(flatten)]
    images: ImageFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Training")]
struct TrainingArgs {
    /// Choose learning rate, weight decay and epochs by cross-validation; usually better than the
    /// defaults.
    #[arg(long, env = "RESNET18_TRAIN_AUTO", conflicts_with_all = ["learning_rate", "weight_decay", "epochs"])]
    auto: bool,
    /// How far a step follows the gradient.
    #[arg(long, env = "RESNET18_TRAIN_LEARNING_RATE", value_name = "X", default_value = "0.001", value_parser = values::positive)]
    learning_rate: f32,
    /// How much of the last step is in the next, 0 to 1.
    #[arg(long, env = "RESNET18_TRAIN_MOMENTUM", value_name = "X", default_value = "0.9", value_parser = values::probability)]
    momentum: f32,
    /// How much of each weight is added to its gradient.
    #[arg(long, env = "RESNET18_TRAIN_WEIGHT_DECAY", value_name = "X", default_value = "0", value_parser = values::not_negative)]
    weight_decay: f32,
    /// How often every photo is seen.
    #[arg(long, env = "RESNET18_TRAIN_EPOCHS", value_name = "N", default_value = "10", value_parser = values::count)]
    epochs: usize,
    /// Photos in a step.
    #[arg(long, env = "RESNET18_TRAIN_BATCH", value_name = "N", default_value = "32", value_parser = values::count)]
    batch: usize,
    /// Learn from mirror images too, each photo either way by chance. It takes twice the time, and
    /// helps where photos are few.
    #[arg(long, env = "RESNET18_TRAIN_FLIP")]
    flip: bool,
    /// Whether photos of small classes count more, so that all classes count alike, or all photos
    /// count alike.
    #[arg(
        long,
        env = "RESNET18_TRAIN_CLASS_WEIGHTS",
        value_enum,
        default_value = "balanced"
    )]
    class_weights: ClassWeights,
    /// Where the random numbers begin: the same seed gives the same model.
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

impl TrainingArgs {
    fn settings(&self) -> Settings {
        Settings {
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

/// What was made.
#[derive(Serialize)]
struct Report {
    output: String,
    name: String,
    labels: Vec<String>,
    train_photos: usize,
    val_photos: usize,
    skipped: Vec<Skipped>,
    engine: EngineJson,
    features_s: f64,
    images_per_second: f64,
    total_s: f64,
    settings: serde_json::Value,
    epochs: Vec<Epoch>,
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
struct Epoch {
    loss: f32,
    accuracy: f32,
}

/// Trains, shows how it goes, writes the model and says how well it does.
///
/// # Errors
/// A dataset or a base that can't be used, an engine that can't start, an output that can't be
/// written.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let started = Instant::now();
    output::print_warnings();
    files::check_output(&args.output).map_err(CliError::Failed)?;
    let dataset = Dataset::read(&args.dataset).map_err(CliError::failed)?;
    let plan = Plan::new(dataset, args.training.seed, &args.dataset).map_err(CliError::failed)?;
    say(&args, || {
        let photos = format!("{} to learn from", thousands(plan.train.len() as u64));
        line(
            "Photos",
            format!(
                "{photos}, {} to check with, {} classes",
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
    let (base, backbone) = blocking(move || {
        let base = match path {
            Some(path) => Base::from_file(&path, &overrides),
            None => Base::bundled(&overrides),
        };
        let base = base.map_err(CliError::failed)?;
        let backbone = Offline::start(&config, &base.backbone).map_err(CliError::failed)?;
        Ok((base, backbone))
    })
    .await?;
    let (examples, took) = features(&args, &plan, &backbone).await?;
    let engine = backbone.engine.clone();
    blocking(move || {
        drop(backbone);
        Ok(())
    })
    .await?;
    if !args.json {
        report::print_skipped(&examples.skipped);
    }

    blocking(move || {
        let learned = learn(&args, &plan, &examples, threads)?;
        let cases = cases(&args, &learned.layer, &examples);
        let evaluation = Evaluation::new(&plan.classes, &cases);
        let name = args.name.clone().unwrap_or_else(|| {
            args.output.file_stem().map_or("model".into(), |stem| stem.to_string_lossy().into_owned())
        });
        let settings = settings_json(&args, &learned);
        let training = json!({
            "validation_accuracy": (evaluation.top1 * 1e4).round() / 1e4,
            "train_photos": examples.train.len(),
            "validation_photos": examples.val.len(),
            "features": { "engine": engine.kind.to_string(), "precision": engine.precision.to_string() },
            "settings": settings,
        });
        let description = Description { name: name.clone(), labels: plan.classes.clone(), training };
        let onnx: Bytes = base.with_layer(&learned.layer, description).map_err(CliError::failed)?.into();
        // What is written has to be what `serve` takes.
        Model::from_bytes(onnx.clone(), &Overrides::default()).map_err(CliError::failed)?;
        files::write_atomically(&args.output, &onnx)
            .map_err(|error| CliError::Failed(format!("{}: cannot be written: {error}", args.output.display())))?;
        let images = plan.images(args.training.flip) as f64;
        let report = Report {
            output: args.output.display().to_string(),
            name,
            train_photos: examples.train.len(),
            val_photos: examples.val.len(),
            skipped: examples.skipped,
            engine: EngineJson::new(&engine),
            features_s: took.as_secs_f64(),
            images_per_second: images / took.as_secs_f64(),
            total_s: started.elapsed().as_secs_f64(),
            settings,
            epochs: learned.epochs,
            accuracy: evaluation.top1,
            confusion_matrix: evaluation.matrix(&plan.classes),
            evaluation,
            labels: plan.classes,
        };
        if args.json {
            output::print_json(&report)?
        } else {
            output::print_line(&describe(&report))?
        }
        Ok(ExitCode::SUCCESS)
    })
    .await
}

/// Runs work that keeps a thread busy.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CliError> + Send + 'static,
) -> Result<T, CliError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Prints a line for a person.
fn say(args: &Args, text: impl FnOnce() -> String) -> Result<(), CliError> {
    if !args.json {
        output::print_line(&text().trim_end())?;
    }
    Ok(())
}

async fn features(
    args: &Args,
    plan: &Plan,
    backbone: &Offline,
) -> Result<(Examples, Duration), CliError> {
    let images = plan.images(args.training.flip);
    let started = Instant::now();
    let bar = output::progress(images, "Features");
    let examples = plan
        .examples(backbone, args.training.flip, |done| {
            bar.set_position(done as u64)
        })
        .await;
    bar.finish_and_clear();
    let (examples, took) = (examples.map_err(CliError::failed)?, started.elapsed());
    let engine = &backbone.engine;
    say(args, || {
        let speed = format!("{:.0} images/s", images as f64 / took.as_secs_f64());
        let what = format!(
            "{} images in {:.1} s",
            thousands(images as u64),
            took.as_secs_f64()
        );
        line(
            "Features",
            format!(
                "{what}, {speed}, {} {} on {}",
                engine.kind, engine.precision, engine.device
            ),
        )
    })?;
    Ok((examples, took))
}

struct Learned {
    settings: Settings,
    found: Option<Found>,
    layer: LinearLayer,
    epochs: Vec<Epoch>,
}

fn learn(
    args: &Args,
    plan: &Plan,
    examples: &Examples,
    threads: std::num::NonZeroUsize,
) -> Result<Learned, CliError> {
    let train: Vec<&Example> = examples.train.iter().collect();
    let val: Vec<&Example> = examples.val.iter().collect();
    let mut settings = args.training.settings();
    let mut found = None;
    if args.training.auto {
        let bar = output::progress_in_percent("Settings");
        let search = search::search(&train, plan.classes.len(), settings, threads, |done| {
            bar.set_position((done * 100.0) as u64)
        });
        bar.finish_and_clear();
        let Some(best) = search else {
            return Err(CliError::Failed(
                "--auto leaves photos out, but no class has two of them to learn from".into(),
            ));
        };
        (settings, found) = (best.settings, Some(best));
        say(args, || {
            let Settings {
                learning_rate,
                weight_decay,
                epochs,
                ..
            } = settings;
            let chosen = format!(
                "learning rate {learning_rate}, weight decay {weight_decay}, {epochs} epochs"
            );
            let score = percent(best.score.accuracy.into());
            line(
                "Settings",
                format!(
                    "{chosen}: the best of {}, {score} in cross-validation",
                    best.tried
                ),
            )
        })?;
    }
    say(args, || {
        style("Epoch     loss  validation").bold().to_string()
    })?;
    let mut layer = SoftmaxLayer::new(&train, plan.classes.len(), settings);
    let mut epochs = Vec::new();
    for number in 1..=settings.epochs {
        let loss = layer.epoch(&train);
        if !loss.is_finite() {
            return Err(CliError::Failed(format!(
                "the weights grew without bounds in epoch {number}; choose a smaller --learning-rate than {} or use --auto",
                settings.learning_rate
            )));
        }
        let accuracy = softmax_layer::score(layer.layer(), &val).accuracy;
        epochs.push(Epoch { loss, accuracy });
        say(args, || {
            let bar = style(output::bar(accuracy, output::BAR_WIDTH)).green();
            format!(
                "{number:>5}  {loss:>7.4}  {:>10}  {bar}",
                percent(accuracy.into())
            )
        })?;
    }
    Ok(Learned {
        settings,
        found,
        layer: layer.layer().clone(),
        epochs,
    })
}

/// What the new layer says of the photos kept for validation.
fn cases(args: &Args, layer: &LinearLayer, examples: &Examples) -> Vec<Case> {
    let case = |(example, photo): (&Example, _)| Case {
        file: report::name_of(photo, &args.dataset),
        class: example.class,
        probabilities: answer::softmax(&softmax_layer::logits(layer, &example.features)),
    };
    examples
        .val
        .iter()
        .zip(&examples.val_photos)
        .map(case)
        .collect()
}

fn settings_json(args: &Args, learned: &Learned) -> serde_json::Value {
    let Settings {
        learning_rate,
        momentum,
        weight_decay,
        batch,
        epochs,
        balance,
        seed,
    } = learned.settings;
    // As they were written, not as the nearest float64 to the float32.
    let number = |value: f32| value.to_string().parse::<f64>().unwrap_or(value.into());
    json!({
        "learning_rate": number(learning_rate),
        "momentum": number(momentum),
        "weight_decay": number(weight_decay),
        "batch": batch,
        "epochs": epochs,
        "class_weights": if balance { "balanced" } else { "none" },
        "flip": args.training.flip,
        "seed": seed,
        "auto": learned.found.is_some(),
    })
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

fn describe(report: &Report) -> String {
    let mut text = format!("\n{}\n", report::tables(&report.evaluation, &report.labels));
    let accuracy = style(percent(report.accuracy)).green().bold();
    let right: usize = report
        .evaluation
        .classes
        .iter()
        .map(|class| class.right)
        .sum();
    text += &line(
        "Accuracy",
        format!(
            "{accuracy}: {right} of {} photos kept for validation",
            report.val_photos
        ),
    );
    text += &line(
        "Took",
        format!(
            "{:.1} s, {:.1} s of them for the features",
            report.total_s, report.features_s
        ),
    );
    text += &line("Written", &report.output);
    let command = format!("resnet18 serve --model {}", output::quoted(&report.output));
    text + line("Serve it", style(command).green()).trim_end()
}
