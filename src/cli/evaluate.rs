//! `resnet18 evaluate`: measures a model's accuracy on labelled photos, in this process or on a
//! server, and how far two engines or models agree.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use console::style;
use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::{
    CliError, blocking, files,
    flags::{CredentialFlags, EngineChoice, EngineFlags, HubFlags, ImageFlags, ManifestFlags},
    output::{self, named_line, thousands},
    report::{self, percent},
    values,
};
use crate::{
    address::ServerAddress,
    client,
    model::Model,
    offline::{
        OfflineConfig, OfflineModel, Photo, SkippedPhoto, UsableOutputs,
        dataset::{Folder, Labelled, quoted},
        evaluation::{Agreement, Case, Difference, Evaluation},
        separate_unusable,
    },
    proto::{ClassifyRequest, Image, image::Source},
};

const LONG_HELP: &str = "\
The photos are in DATASET_DIR/LABEL/ or in DATASET_DIR/val/LABEL/, where LABEL is the name of a \
class of the model. Files outside these folders are ignored.

With --json, one line is printed:
  {\"model\", \"model_version\", \"engine\", \"photos\", \"top1\", \"top5\", \"seconds\",
   \"images_per_second\",
   \"classes\": [{\"label\", \"photos\", \"right\", \"recall\", \"precision\"}],
   \"confusions\": [{\"label\", \"predicted\", \"photos\"}],
   \"mistakes\": [{\"file\", \"label\", \"predicted\", \"probability\"}],
   \"ignored_files\", \"skipped\": [{\"file\", \"reason\"}],
   \"compared\": null or {\"engine\", \"top1\", \"top5\", \"seconds\", \"images_per_second\",
    \"same_top1\", \"largest_change\", \"changed_most\",
    \"different\": [{\"file\", \"label\",
     \"answers\": [[label, probability], [label, probability]]}]}}

Exit status: 0 = the photos were classified, 1 = they were not, 64 = wrong flags.";

/// Number of differing predictions to list.
const SHOWN_DIFFERENCES: usize = 10;
/// Number of unknown folders for which similar labels are suggested.
const SHOWN_SUGGESTIONS: usize = 10;

/// The flags of `resnet18 evaluate`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
#[command(mut_arg("output_name", |flag| flag.visible_alias("output")))]
pub struct Args {
    /// The folder that holds LABEL/ or val/LABEL/.
    #[arg(value_name = "DATASET_DIR")]
    dataset: PathBuf,
    /// The ONNX classifier to run in this process (a file, or a published model such as
    /// torchvision:resnet18), or with --server the name of a model there
    /// [default: the bundled model, or the server's default model].
    #[arg(long, env = "RESNET18_EVALUATE_MODEL", value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Classify on this server instead of in this process.
    #[arg(long, env = "RESNET18_EVALUATE_SERVER", value_name = "URL")]
    server: Option<ServerAddress>,
    /// Also run the model on a second engine in this process, such as embedded or openvino:fp32,
    /// and report how far the two agree.
    #[arg(
        long,
        env = "RESNET18_EVALUATE_COMPARE",
        value_name = "ENGINE[:PRECISION]",
        conflicts_with = "server"
    )]
    compare: Option<EngineChoice>,
    /// Compare with this ONNX classifier, which must have the same classes, such as an int8 version
    /// of the model.
    #[arg(
        long,
        env = "RESNET18_EVALUATE_COMPARE_MODEL",
        value_name = "MODEL",
        conflicts_with = "server"
    )]
    compare_model: Option<PathBuf>,
    /// With --server: number of photos in flight at the same time.
    #[arg(long, env = "RESNET18_EVALUATE_CONCURRENCY", value_name = "N", default_value = "8",
          value_parser = values::count)]
    concurrency: usize,
    /// With --server: time limit per photo, including retries (ms, s, m or h).
    #[arg(long, env = "RESNET18_EVALUATE_TIMEOUT", value_name = "DURATION", default_value = "30s",
          value_parser = values::positive_duration)]
    timeout: Duration,
    /// Print one line of JSON.
    #[arg(long, env = "RESNET18_EVALUATE_JSON")]
    json: bool,
    #[command(flatten)]
    credentials: CredentialFlags,
    #[command(flatten)]
    hub: HubFlags,
    #[command(flatten)]
    manifest: ManifestFlags,
    #[command(flatten)]
    images: ImageFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

/// The result; also the line of JSON.
#[derive(Serialize)]
struct EvaluationReport {
    model: String,
    model_version: String,
    engine: String,
    seconds: f64,
    images_per_second: f64,
    #[serde(flatten)]
    evaluation: Evaluation,
    ignored_files: usize,
    skipped: Vec<SkippedPhoto>,
    compared: Option<Comparison>,
    /// The names of all classes of the model, in order.
    #[serde(skip)]
    labels: Vec<String>,
}

/// The second engine or model, and how far it agrees with the first.
#[derive(Serialize)]
struct Comparison {
    engine: String,
    top1: f64,
    top5: f64,
    seconds: f64,
    images_per_second: f64,
    #[serde(flatten)]
    agreement: Agreement,
}

/// The predictions of one engine or server for all photos.
struct Run {
    /// The engine and its precision, for display.
    engine: String,
    cases: Vec<Case>,
    skipped: Vec<SkippedPhoto>,
    took: Duration,
}

/// The photos of the dataset; their classes are indices into the model's labels.
struct LabelledPhotos<'a> {
    /// The folder of the dataset.
    root: &'a Path,
    photos: Vec<Labelled>,
}

/// Classifies every photo and reports the accuracy.
///
/// # Errors
/// If a folder is not named after a class of the model, too many photos cannot be read, or the
/// engine or server cannot be used.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let mut args = args;
    output::print_warnings();
    if args.server.is_none() {
        args.model = args.hub.optional_file(args.model.take()).await?;
        args.compare_model = args.hub.optional_file(args.compare_model.take()).await?;
    }

    let val = args.dataset.join("val");
    if !val.is_dir() && args.dataset.join("train").is_dir() {
        return Err(CliError::Failed(format!(
            "{}: there is a folder `train` but no folder `val`; name the folder to evaluate, such \
             as {}",
            args.dataset.display(),
            args.dataset.join("train").display()
        )));
    }
    let root = if val.is_dir() { &val } else { &args.dataset };
    let folder = Folder::read(root).map_err(CliError::failed)?;
    let ignored_files = folder.ignored;
    report::print_ignored(ignored_files, args.json);

    let mut report = match &args.server {
        Some(server) => evaluate_on_server(&args, server, folder).await?,
        None => evaluate_in_process(&args, folder).await?,
    };
    report.ignored_files = ignored_files;

    if args.json {
        output::print_json(&report)?;
    } else {
        report::print_skipped(&report.skipped);
        output::print_line(&describe(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn evaluate_in_process(args: &Args, folder: Folder) -> Result<EvaluationReport, CliError> {
    let model = args.manifest.read_model(args.model.as_deref())?;
    let photos = LabelledPhotos::new(&args.dataset, folder, &model.labels)?;
    let config = OfflineConfig {
        engine: args.engine.config()?,
        preprocess: args.images.config(),
    };
    // A second model that does not fit is reported before the first one runs.
    let other = match &args.compare_model {
        Some(path) => Some(read_comparable_model(path, args, &model)?),
        None if args.compare.is_some() => Some(model.clone()),
        None => None,
    };

    let run = photos.run(&config, &model).await?;

    let mut other_run = None;
    if let Some(other) = other {
        let engine = match args.compare {
            Some(choice) => choice.apply(config.engine.clone()),
            None => config.engine.clone(),
        };
        let mut run = photos
            .run(&OfflineConfig { engine, ..config }, &other)
            .await?;
        if args.compare_model.is_some() {
            run.engine = format!("{}, {}", run.engine, other.name);
        }
        other_run = Some(run);
    }

    let (name, version) = (model.name.clone(), model.version.clone());
    Ok(EvaluationReport::new(
        name,
        version,
        model.labels.to_vec(),
        run,
        other_run,
    ))
}

/// Reads a model that has the same classes as `model`, so that their predictions can be compared.
fn read_comparable_model(path: &Path, args: &Args, model: &Model) -> Result<Model, CliError> {
    let other = args.manifest.read_model(Some(path))?;
    if other.labels != model.labels {
        return Err(CliError::Failed(format!(
            "{}: its {} classes are not the {} classes of {} in the same order; only models with \
             the same classes can be compared",
            path.display(),
            other.labels.len(),
            model.labels.len(),
            model.name
        )));
    }
    Ok(other)
}

async fn evaluate_on_server(
    args: &Args,
    server: &ServerAddress,
    folder: Folder,
) -> Result<EvaluationReport, CliError> {
    // The empty name stands for the server's default model.
    let name = match &args.model {
        Some(name) => name.display().to_string(),
        None => String::new(),
    };
    let mut client = client::connect(&args.credentials.server(server.clone())?).await?;
    let model = client::find_model(&mut client, server, &name, args.timeout).await?;
    let photos = LabelledPhotos::new(&args.dataset, folder, &model.labels)?;

    let started = Instant::now();
    let bar = output::progress(photos.photos.len(), "Photos");
    let classes = model.labels.len();
    let classify = |photo: &Labelled| {
        let mut client = client.clone();
        let name = name.clone();
        let path = photo.path.clone();
        async move {
            let image = files::read(&path).await?;
            let request = ClassifyRequest {
                model: name,
                image: Some(Image {
                    source: Some(Source::Encoded(image)),
                }),
                top_k: classes as u32,
                ..ClassifyRequest::default()
            };
            let deadline = tokio::time::Instant::now() + args.timeout;
            let answer = client::classify_with_retries(&mut client, request, deadline).await?;

            let mut probabilities = vec![0.0; classes];
            for class in answer.response.classifications {
                if let Some(probability) = probabilities.get_mut(class.class_id as usize) {
                    *probability = class.probability;
                }
            }
            Ok(probabilities)
        }
    };
    let mut answers = stream::iter(&photos.photos)
        .map(classify)
        .buffered(args.concurrency);

    let mut outputs = Vec::with_capacity(photos.photos.len());
    while let Some(output) = answers.next().await {
        outputs.push(match output {
            // Any other failure, such as a lost connection, concerns all photos.
            Err(status) if !is_about_the_photo(&status) => {
                return Err(client::ClientError::Refused {
                    server: server.clone(),
                    status: Box::new(status),
                }
                .into());
            }
            output => output.map_err(|status: tonic::Status| status.message().to_owned()),
        });
        bar.inc(1);
    }
    drop(answers);
    bar.finish_and_clear();

    let engine = format!("{} {} at {server}", model.engine, model.precision);
    let run = photos.collect(engine, started.elapsed(), outputs)?;
    Ok(EvaluationReport::new(
        model.name,
        model.version,
        model.labels,
        run,
        None,
    ))
}

/// Whether the failure concerns this photo alone, so that it is skipped.
fn is_about_the_photo(status: &tonic::Status) -> bool {
    use tonic::Code::{InvalidArgument, NotFound, OutOfRange, PermissionDenied, Unknown};
    matches!(
        status.code(),
        InvalidArgument | NotFound | OutOfRange | PermissionDenied | Unknown
    )
}

impl<'a> LabelledPhotos<'a> {
    /// Finds the class of each folder, and assigns it to the folder's photos.
    fn new(root: &'a Path, folder: Folder, labels: &[String]) -> Result<Self, CliError> {
        let classes: Vec<Option<usize>> = folder
            .classes
            .iter()
            .map(|name| label_of(name, labels))
            .collect();

        let unknown: Vec<String> = folder
            .classes
            .iter()
            .zip(&classes)
            .filter(|(_, class)| class.is_none())
            .map(|(name, _)| name.clone())
            .collect();
        if !unknown.is_empty() {
            return Err(CliError::Failed(unknown_folders(root, &unknown, labels)));
        }

        let photos = folder.photos.into_iter().filter_map(|photo| {
            let class = classes[photo.class]?;
            Some(Labelled { class, ..photo })
        });
        Ok(Self {
            root,
            photos: photos.collect(),
        })
    }

    /// Classifies all photos with `model` in this process.
    async fn run(&self, config: &OfflineConfig, model: &Model) -> Result<Run, CliError> {
        let activation = model.activation;
        let (config, model) = (config.clone(), model.clone());
        let offline = blocking(move || OfflineModel::start(&config, &model))
            .await
            .map_err(CliError::failed)?;

        let images: Vec<Photo> = self
            .photos
            .iter()
            .map(|photo| Photo {
                path: photo.path.clone(),
                mirrored: false,
            })
            .collect();

        let bar = output::progress(images.len(), "Photos");
        let started = Instant::now();
        let outputs = offline
            .run(&images, |done| bar.set_position(done as u64))
            .await;
        let took = started.elapsed();
        bar.finish_and_clear();

        let probabilities = outputs
            .map_err(CliError::failed)?
            .into_iter()
            .map(|output| output.map(|logits| activation.probabilities(&logits)))
            .collect();
        let engine = format!("{} {}", offline.engine.kind, offline.engine.precision);
        self.collect(engine, took, probabilities)
    }

    /// Combines the photos with their probabilities, one result per photo in the same order.
    ///
    /// # Errors
    /// If too many photos failed.
    fn collect<E: std::fmt::Display>(
        &self,
        engine: String,
        took: Duration,
        probabilities: Vec<Result<Vec<f32>, E>>,
    ) -> Result<Run, CliError> {
        let UsableOutputs { usable, skipped } =
            separate_unusable(&self.photos, probabilities).map_err(CliError::failed)?;
        let cases = usable
            .into_iter()
            .map(|(index, probabilities)| Case {
                file: report::name_of(&self.photos[index], self.root),
                class: self.photos[index].class,
                probabilities,
            })
            .collect();
        Ok(Run {
            engine,
            cases,
            skipped,
            took,
        })
    }
}

/// The index of the label with this name, else of the only label that differs from it only in
/// case.
fn label_of(name: &str, labels: &[String]) -> Option<usize> {
    labels.iter().position(|label| label == name).or_else(|| {
        let mut alike =
            (0..labels.len()).filter(|&index| labels[index].to_lowercase() == name.to_lowercase());
        alike.next().filter(|_| alike.next().is_none())
    })
}

/// The error message for folders that are not named after a class, with suggestions.
fn unknown_folders(root: &Path, unknown: &[String], labels: &[String]) -> String {
    let mut text = format!(
        "{}: the model has no class {}; each folder must have the name of one of its {} classes",
        root.display(),
        quoted(unknown),
        labels.len()
    );
    for name in unknown.iter().take(SHOWN_SUGGESTIONS) {
        let similar: Vec<String> = labels
            .iter()
            .filter(|label| is_similar(name, label))
            .cloned()
            .collect();
        if !similar.is_empty() {
            text += &format!("\n  \"{name}\": {}?", quoted(&similar));
        }
    }
    text
}

/// Whether one name contains the other, if case, spaces and punctuation are ignored.
fn is_similar(name: &str, label: &str) -> bool {
    let simplified = |text: &str| {
        text.chars()
            .filter(|c| c.is_alphanumeric())
            .collect::<String>()
            .to_lowercase()
    };
    let (name, label) = (simplified(name), simplified(label));
    !name.is_empty() && (label.contains(&name) || (label.len() > 3 && name.contains(&label)))
}

impl Run {
    fn images_per_second(&self) -> f64 {
        self.cases.len() as f64 / self.took.as_secs_f64()
    }
}

impl EvaluationReport {
    fn new(
        model: String,
        model_version: String,
        labels: Vec<String>,
        run: Run,
        other: Option<Run>,
    ) -> Self {
        let compared = other.map(|other| {
            let Evaluation { top1, top5, .. } = Evaluation::new(&labels, &other.cases);
            Comparison {
                top1,
                top5,
                seconds: other.took.as_secs_f64(),
                images_per_second: other.images_per_second(),
                agreement: Agreement::new(&labels, &run.cases, &other.cases),
                engine: other.engine,
            }
        });
        Self {
            model,
            model_version,
            seconds: run.took.as_secs_f64(),
            images_per_second: run.images_per_second(),
            evaluation: Evaluation::new(&labels, &run.cases),
            engine: run.engine,
            ignored_files: 0,
            skipped: run.skipped,
            compared,
            labels,
        }
    }
}

/// The report as text.
fn describe(report: &EvaluationReport) -> String {
    let evaluation = &report.evaluation;
    let mut text = report::tables(evaluation, &report.labels);
    text.push('\n');
    text += &named_line(
        "Model",
        format!("{} ({})", report.model, report.model_version),
    );
    text += &named_line("Photos", thousands(evaluation.photos as u64));

    let engines =
        std::iter::once(&report.engine).chain(report.compared.as_ref().map(|other| &other.engine));
    let width = engines
        .map(|engine| console::measure_text_width(engine))
        .max()
        .unwrap_or(0);

    let row = |engine: &str, top1: f64, top5: f64, speed: f64| {
        let [top1, top5] =
            [top1, top5].map(|share| style(format!("{:>8}", percent(share))).green().bold());
        format!("{engine:<width$}  {top1}  {top5}  {speed:>8.0}\n")
    };

    text += &style(format!("\n{:<width$}     top-1     top-5  images/s\n", ""))
        .bold()
        .to_string();
    text += &row(
        &report.engine,
        evaluation.top1,
        evaluation.top5,
        report.images_per_second,
    );

    if let Some(other) = &report.compared {
        text += &row(
            &other.engine,
            other.top1,
            other.top5,
            other.images_per_second,
        );
        text.push('\n');
        text += &describe_agreement(&other.agreement);
    }
    text.truncate(text.trim_end().len());
    text
}

fn describe_agreement(agreement: &Agreement) -> String {
    let file = match &agreement.changed_most {
        Some(file) => format!(" ({file})"),
        None => String::new(),
    };
    let text = named_line(
        "Agreement",
        format!(
            "{} the same top-1, probabilities differ by {:.4} at most{file}",
            percent(agreement.same_top1),
            agreement.largest_change
        ),
    );
    text + &differences(&agreement.different)
}

/// The photos whose top-1 class differs between the two runs, the most confident first.
fn differences(different: &[Difference]) -> String {
    if different.is_empty() {
        return String::new();
    }

    let mut text = style("\nDifferent predictions\n").bold().to_string();
    for Difference {
        file,
        label,
        answers: [(one, p), (other, q)],
    } in different.iter().take(SHOWN_DIFFERENCES)
    {
        let [p, q] = [p, q].map(|probability| percent((*probability).into()));
        text += &format!("  {file}: {label} predicted as {one} ({p}), then as {other} ({q})\n");
    }
    if different.len() > SHOWN_DIFFERENCES {
        let more = different.len() - SHOWN_DIFFERENCES;
        text += &format!("  and {more} more; --json lists all\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Vec<String> {
        ["Garfield", "sea horse", "cat", "Cat"]
            .map(str::to_owned)
            .to_vec()
    }

    #[test]
    fn folders_are_matched_by_name_and_then_by_case() {
        let labels = labels();
        assert_eq!(label_of("sea horse", &labels), Some(1));
        assert_eq!(label_of("garfield", &labels), Some(0));
        assert_eq!(label_of("Cat", &labels), Some(3));
        assert_eq!(label_of("CAT", &labels), None, "it could be either");
        assert_eq!(label_of("dog", &labels), None);
    }

    #[test]
    fn folders_without_a_label_are_named_with_what_may_be_meant() {
        let text = unknown_folders(
            Path::new("d"),
            &["sea_horse".into(), "zebra".into()],
            &labels(),
        );
        assert!(
            text.contains("\"sea_horse\", \"zebra\"")
                && text.contains("\"sea_horse\": \"sea horse\"?"),
            "{text}"
        );
    }
}
