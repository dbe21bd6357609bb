//! `resnet18 evaluate`: how often a model is right on labelled photos, and whether two engines
//! agree about them.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use console::style;
use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::{
    CliError, files,
    flags::{CredentialFlags, EngineChoice, EngineFlags, ImageFlags, ManifestFlags},
    output::{self, thousands},
    report::{self, line, percent},
    values,
};
use crate::{
    address::ServerAddress,
    answer, client,
    model::Model,
    offline::{
        Offline, OfflineConfig, Photo, Skipped, SortedOut,
        dataset::{Folder, Labelled, quoted},
        evaluation::{Agreement, Case, Difference, Evaluation},
        sort_out,
    },
    proto::{ClassifyRequest, Image, image::Source},
};

const HELP: &str = "\
The photos lie in DATASET_DIR/LABEL/ or in DATASET_DIR/val/LABEL/, where LABEL is the name of a class of the model; files \
     beside these folders are ignored.

With --json one line is printed:
  {\"model\", \"model_version\", \"engine\", \"photos\", \"top1\", \"top5\", \"seconds\", \"images_per_second\", \
     \"classes\": [{\"label\", \"photos\", \"right\", \"recall\", \"precision\"}], \
     \"confusions\": [{\"label\", \"predicted\", \"photos\"}], \"mistakes\": [{\"file\", \"label\", \"predicted\", \
     \"probability\"}], \"skipped\": [{\"file\", \"reason\"}], \"compared\": null or {\"engine\", \"top1\", \"top5\", \"seconds\", \
     \"images_per_second\", \"same_top1\", \"largest_change\", \"changed_most\", \
     \"different\": [{\"file\", \"label\", \"answers\": [[label, probability], [label, probability]]}]}}

Exit status: 0 = the photos were classified, 1 = they were not, 64 = wrong flags.";

/// So many photos are named on which two runs differ.
const SHOWN: usize = 10;

/// The flags of `resnet18 evaluate`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// The folder that holds LABEL/ or val/LABEL/.
    #[arg(value_name = "DATASET_DIR")]
    dataset: PathBuf,
    /// The ONNX classifier to run in this process; with --server, the name of a model there
    /// [default: the bundled model, or the server's default].
    #[arg(long, env = "RESNET18_EVALUATE_MODEL", value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Ask this server instead of running the model in this process.
    #[arg(long, env = "RESNET18_EVALUATE_SERVER", value_name = "URL")]
    server: Option<ServerAddress>,
    /// Run the model on a second engine in this process too, such as embedded or openvino:fp32, and
    /// say how far both agree.
    #[arg(
        long,
        env = "RESNET18_EVALUATE_COMPARE",
        value_name = "ENGINE[:PRECISION]",
        conflicts_with = "server"
    )]
    compare: Option<EngineChoice>,
    /// Compare with this ONNX classifier of the same classes, such as the int8 version of the
    /// model.
    #[arg(
        long,
        env = "RESNET18_EVALUATE_COMPARE_MODEL",
        value_name = "MODEL",
        conflicts_with = "server"
    )]
    compare_model: Option<PathBuf>,
    /// With --server: how many photos are on their way at the same time.
    #[arg(long, env = "RESNET18_EVALUATE_CONCURRENCY", value_name = "N", default_value = "8", value_parser = values::count)]
    concurrency: usize,
    /// With --server: how long one photo may take, retries included (ms, s, m or h).
    #[arg(long, env = "RESNET18_EVALUATE_TIMEOUT", value_name = "DURATION", default_value = "30s",
          value_parser = values::positive_duration)]
    timeout: Duration,
    /// Print one line of JSON.
    #[arg(long, env = "RESNET18_EVALUATE_JSON")]
    json: bool,
    #[command(flatten)]
    credentials: CredentialFlags,
    #[command(flatten)]
    manifest: ManifestFlags,
    #[command(flatten)]
    images: ImageFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

#[derive(Serialize)]
struct Report {
    model: String,
    model_version: String,
    engine: String,
    seconds: f64,
    images_per_second: f64,
    #[serde(flatten)]
    evaluation: Evaluation,
    skipped: Vec<Skipped>,
    compared: Option<Compared>,
    #[serde(skip)]
    labels: Vec<String>,
}

#[derive(Serialize)]
struct Compared {
    engine: String,
    top1: f64,
    top5: f64,
    seconds: f64,
    images_per_second: f64,
    #[serde(flatten)]
    agreement: Agreement,
}

/// The photos, and the answers of one engine or server to them.
struct Run {
    /// What answered.
    engine: String,
    cases: Vec<Case>,
    skipped: Vec<Skipped>,
    took: Duration,
}

/// The photos of the dataset, with the indices of the model's labels as their classes.
struct Photos<'a> {
    root: &'a Path,
    photos: Vec<Labelled>,
}

/// Classifies every photo and says how often the answer is right.
///
/// # Errors
/// Folders that are no labels of the model, photos that can't be read, an engine or a server that
/// can't be used.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    output::print_warnings();
    let val = args.dataset.join("val");
    if !val.is_dir() && args.dataset.join("train").is_dir() {
        return Err(CliError::Failed(format!(
            "{}: there is a folder `train` but none called `val`; name the one whose photos are meant, such as {}",
            args.dataset.display(),
            args.dataset.join("train").display()
        )));
    }
    let folder =
        Folder::read(if val.is_dir() { &val } else { &args.dataset }).map_err(CliError::failed)?;
    let report = match &args.server {
        Some(server) => at_server(&args, server, folder).await?,
        None => in_process(&args, folder).await?,
    };
    if args.json {
        output::print_json(&report)?;
    } else {
        report::print_skipped(&report.skipped);
        output::print_line(&describe(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn in_process(args: &Args, folder: Folder) -> Result<Report, CliError> {
    let overrides = args.manifest.overrides(None).map_err(CliError::failed)?;
    let model = match &args.model {
        Some(path) => Model::from_file(path, &overrides),
        None => Model::bundled(&overrides),
    };
    let model = model.map_err(CliError::failed)?;
    let photos = Photos::new(&args.dataset, folder, &model.labels)?;
    let config = OfflineConfig {
        engine: args.engine.config()?,
        preprocess: args.images.config(),
    };
    let other = match &args.compare_model {
        Some(path) => Some(other_model(path, args, &model)?),
        None => args.compare.is_some().then(|| model.clone()),
    };

    let run = photos.run(&config, &model).await?;
    let compared = match other {
        Some(other) => {
            let engine = args.compare.map_or(config.engine.clone(), |choice| {
                choice.apply(config.engine.clone())
            });
            let mut run = photos
                .run(&OfflineConfig { engine, ..config }, &other)
                .await?;
            if args.compare_model.is_some() {
                run.engine = format!("{}, {}", run.engine, other.name);
            }
            Some(run)
        }
        None => None,
    };
    Ok(report(
        (model.name.clone(), model.version.clone()),
        model.labels.to_vec(),
        run,
        compared,
    ))
}

/// A model whose answers can be laid beside those of `model`.
fn other_model(path: &Path, args: &Args, model: &Model) -> Result<Model, CliError> {
    let overrides = args.manifest.overrides(None).map_err(CliError::failed)?;
    let other = Model::from_file(path, &overrides).map_err(CliError::failed)?;
    if other.labels != model.labels {
        return Err(CliError::Failed(format!(
            "{}: its {} classes are not the {} of {}, in the same order; only models of the same classes can be compared",
            path.display(),
            other.labels.len(),
            model.labels.len(),
            model.name
        )));
    }
    Ok(other)
}

async fn at_server(
    args: &Args,
    server: &ServerAddress,
    folder: Folder,
) -> Result<Report, CliError> {
    let name = args
        .model
        .as_ref()
        .map_or(String::new(), |name| name.display().to_string());
    let mut client = client::connect(&args.credentials.server(server.clone())?).await?;
    let model = client::find_model(&mut client, server, &name, args.timeout).await?;
    let photos = Photos::new(&args.dataset, folder, &model.labels)?;

    let started = Instant::now();
    let bar = output::progress(photos.photos.len(), "Photos");
    let classes = model.labels.len();
    let answer = |photo: &Labelled| {
        let (mut client, name, path) = (client.clone(), name.clone(), photo.path.clone());
        async move {
            let image = files::read(&path).await?;
            let request = ClassifyRequest {
                model: name,
                image: Some(Image {
                    source: Some(Source::Encoded(image)),
                }),
                top_k: classes as u32,
                min_probability: 0.0,
            };
            let deadline = tokio::time::Instant::now() + args.timeout;
            let (response, _) =
                client::classify_with_retries(&mut client, request, deadline).await?;
            let mut probabilities = vec![0.0; classes];
            for class in response.classifications {
                if let Some(probability) = probabilities.get_mut(class.class_id as usize) {
                    *probability = class.probability;
                }
            }
            Ok(probabilities)
        }
    };
    let mut answers = stream::iter(&photos.photos)
        .map(answer)
        .buffered(args.concurrency);
    let mut outputs = Vec::with_capacity(photos.photos.len());
    while let Some(output) = answers.next().await {
        outputs.push(match output {
            // Whatever else fails, fails for all photos.
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
    let run = photos.finish(engine, started.elapsed(), outputs, |probabilities| {
        probabilities
    })?;
    Ok(report((model.name, model.version), model.labels, run, None))
}

fn is_about_the_photo(status: &tonic::Status) -> bool {
    use tonic::Code::{InvalidArgument, NotFound, OutOfRange, PermissionDenied, Unknown};
    matches!(
        status.code(),
        InvalidArgument | NotFound | OutOfRange | PermissionDenied | Unknown
    )
}

impl<'a> Photos<'a> {
    /// Finds the label of each folder: the same name, or the only one that differs in case alone.
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
            .map(|(n, _)| n.clone())
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

    async fn run(&self, config: &OfflineConfig, model: &Model) -> Result<Run, CliError> {
        let (config, model) = (config.clone(), model.clone());
        let offline = tokio::task::spawn_blocking(move || Offline::start(&config, &model)).await;
        let offline = offline.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let offline = offline.map_err(CliError::failed)?;
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
        bar.finish_and_clear();
        let engine = format!("{} {}", offline.engine.kind, offline.engine.precision);
        self.finish(
            engine,
            started.elapsed(),
            outputs.map_err(CliError::failed)?,
            |logits| answer::softmax(&logits),
        )
    }

    fn finish<E: std::fmt::Display>(
        &self,
        engine: String,
        took: Duration,
        outputs: Vec<Result<Vec<f32>, E>>,
        probabilities: impl Fn(Vec<f32>) -> Vec<f32>,
    ) -> Result<Run, CliError> {
        let SortedOut { usable, skipped } =
            sort_out(&self.photos, outputs).map_err(CliError::failed)?;
        let case = |(index, output): (usize, Vec<f32>)| Case {
            file: report::name_of(&self.photos[index], self.root),
            class: self.photos[index].class,
            probabilities: probabilities(output),
        };
        Ok(Run {
            engine,
            cases: usable.into_iter().map(case).collect(),
            skipped,
            took,
        })
    }
}

fn label_of(name: &str, labels: &[String]) -> Option<usize> {
    labels.iter().position(|label| label == name).or_else(|| {
        let mut alike =
            (0..labels.len()).filter(|&index| labels[index].to_lowercase() == name.to_lowercase());
        alike.next().filter(|_| alike.next().is_none())
    })
}

/// Says which folders are no labels, and which labels may be meant.
fn unknown_folders(root: &Path, unknown: &[String], labels: &[String]) -> String {
    let mut text = format!(
        "{}: the model has no class {}; folders must bear the names of its {} classes",
        root.display(),
        quoted(unknown),
        labels.len()
    );
    for name in unknown.iter().take(10) {
        let simple = |text: &str| {
            text.chars()
                .filter(|c| c.is_alphanumeric())
                .collect::<String>()
                .to_lowercase()
        };
        let wanted = simple(name);
        let near: Vec<String> = labels
            .iter()
            .filter(|label| {
                let label = simple(label);
                !wanted.is_empty()
                    && (label.contains(&wanted) || (label.len() > 3 && wanted.contains(&label)))
            })
            .cloned()
            .collect();
        if !near.is_empty() {
            text += &format!("\n  \"{name}\": {}?", quoted(&near));
        }
    }
    text
}

fn report(
    (model, model_version): (String, String),
    labels: Vec<String>,
    run: Run,
    other: Option<Run>,
) -> Report {
    let speed = |run: &Run| {
        (
            run.took.as_secs_f64(),
            run.cases.len() as f64 / run.took.as_secs_f64(),
        )
    };
    let compared = other.map(|other| {
        let Evaluation { top1, top5, .. } = Evaluation::new(&labels, &other.cases);
        let (seconds, images_per_second) = speed(&other);
        let agreement = Agreement::new(&labels, &run.cases, &other.cases);
        Compared {
            engine: other.engine,
            top1,
            top5,
            seconds,
            images_per_second,
            agreement,
        }
    });
    let (seconds, images_per_second) = speed(&run);
    Report {
        model,
        model_version,
        engine: run.engine,
        seconds,
        images_per_second,
        evaluation: Evaluation::new(&labels, &run.cases),
        skipped: run.skipped,
        compared,
        labels,
    }
}

fn describe(report: &Report) -> String {
    let Report { evaluation, .. } = report;
    let mut text = report::tables(evaluation, &report.labels);
    text.push('\n');
    text += &line(
        "Model",
        format!("{} ({})", report.model, report.model_version),
    );
    text += &line("Photos", thousands(evaluation.photos as u64));
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
    if let Some(Compared {
        engine,
        top1,
        top5,
        images_per_second,
        agreement,
        ..
    }) = &report.compared
    {
        text += &row(engine, *top1, *top5, *images_per_second);
        let change = format!(
            "probabilities differ by {:.4} at most",
            agreement.largest_change
        );
        let most = agreement
            .changed_most
            .as_ref()
            .map_or(String::new(), |file| format!(" ({file})"));
        text.push('\n');
        text += &line(
            "Agreement",
            format!(
                "{} the same top-1, {change}{most}",
                percent(agreement.same_top1)
            ),
        );
        text += &differences(&agreement.different);
    }
    text.truncate(text.trim_end().len());
    text
}

/// The photos on which two runs differ, the surest answers first.
fn differences(different: &[Difference]) -> String {
    if different.is_empty() {
        return String::new();
    }
    let mut text = style("\nTaken for another class\n").bold().to_string();
    for Difference {
        file,
        label,
        answers: [(one, p), (other, q)],
    } in different.iter().take(SHOWN)
    {
        let [p, q] = [p, q].map(|share| percent((*share).into()));
        text += &format!("  {file}: {label} taken for {one} ({p}), then {other} ({q})\n");
    }
    if different.len() > SHOWN {
        text += &format!("  and {} more; --json has all\n", different.len() - SHOWN);
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
