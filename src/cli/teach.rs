//! `resnet18 teach`: adds photos to the classes of a running server, and lets it learn from them.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use console::style;
use serde::Serialize;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use super::{
    CliError,
    files::{self, Images},
    flags::ServerFlags,
    output::{self, escaped, named_line, thousands},
    report::{self, percent},
    values,
};
use crate::{
    address::ServerAddress,
    client::{self, ClientError, Teacher, retry},
    offline::{
        SkippedPhoto,
        evaluation::{ClassResult, Confusion, Evaluation, Mistake},
    },
    proto::{
        AddExamplesRequest, Dataset, ListDatasetsRequest, RemoveExamplesRequest, TrainRequest,
        TrainResponse,
    },
    sync::lock,
};

/// How many photos are read ahead.
const READ_AHEAD: usize = 2;

const LONG_HELP: &str = "\
The server must have been started with --teach. Two classes with ten photos each are a start:

  resnet18 teach cups --class 'blue cup' photos/blue
  resnet18 teach cups --class 'red cup' photos/red
  resnet18 teach cups --train
  resnet18 classify --model cups cup.jpg

The accuracy is that of cross-validation: of layers that did not see the photos that they classify.

With --json, the result is one object with the keys of what was done:
  {\"added\": {\"kept\", \"known\", \"refused\": [{\"file\", \"reason\"}]}}
  {\"removed\": N}
  {\"trained\": {\"model\", \"version\", \"photos\", \"accuracy\", \"skipped\": [{\"file\", \"reason\"}],
    \"labels\", \"confusion_matrix\", \"mistakes\": [{\"file\", \"label\", \"predicted\", \"probability\"}],
    \"took_s\"}}
  {\"datasets\": [{\"name\", \"classes\": [{\"name\", \"photos\", \"bytes\"}],
    \"model\": {\"version\", \"accuracy\", \"photos\"} or null}]}

Exit status: 0 = success, 1 = a photo was not kept, or the server refuses, 64 = wrong flags.";

/// The flags of `resnet18 teach`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
#[command(group = clap::ArgGroup::new("what").multiple(true).required(true)
          .args(["class", "train", "list", "remove"]))]
pub struct Args {
    /// The name of the dataset, and of the model that is learned from it: letters, digits, -, _ and
    /// spaces inside.
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// Photos of the class, and folders of them.
    #[arg(value_name = "PHOTOS", requires = "class", conflicts_with = "remove")]
    photos: Vec<PathBuf>,
    /// The class that the photos show; it becomes a label.
    #[arg(long, env = "RESNET18_TEACH_CLASS", value_name = "CLASS")]
    class: Option<String>,
    /// Learn from the photos, and serve the model.
    #[arg(long, env = "RESNET18_TEACH_TRAIN", conflicts_with = "remove")]
    train: bool,
    /// List what was taught.
    #[arg(long, env = "RESNET18_TEACH_LIST", conflicts_with_all = ["class", "train", "remove"])]
    list: bool,
    /// Remove the photos of the class, or without --class the dataset and its model.
    #[arg(long, env = "RESNET18_TEACH_REMOVE")]
    remove: bool,
    #[command(flatten)]
    server: ServerFlags,
    /// Time limit for each step: adding the photos, and learning (ms, s, m or h).
    #[arg(long, env = "RESNET18_TEACH_TIMEOUT", value_name = "DURATION", default_value = "10m",
          value_parser = values::positive_duration)]
    timeout: Duration,
    /// Print one line of JSON.
    #[arg(long, env = "RESNET18_TEACH_JSON")]
    json: bool,
}

/// The line of JSON.
#[derive(Default, Serialize)]
struct TeachReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    added: Option<AddedJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trained: Option<TrainedJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    datasets: Option<Vec<DatasetJson>>,
}

#[derive(Serialize)]
struct AddedJson {
    kept: u32,
    known: u32,
    refused: Vec<SkippedPhoto>,
}

#[derive(Serialize)]
struct TrainedJson {
    model: String,
    version: String,
    photos: u32,
    accuracy: f64,
    skipped: Vec<SkippedPhoto>,
    labels: Vec<String>,
    confusion_matrix: Vec<Vec<usize>>,
    mistakes: Vec<Mistake>,
    took_s: f64,
    #[serde(skip)]
    evaluation: Evaluation,
}

#[derive(Serialize)]
struct DatasetJson {
    name: String,
    classes: Vec<ClassJson>,
    model: Option<ModelJson>,
}

#[derive(Serialize)]
struct ClassJson {
    name: String,
    photos: u32,
    bytes: u64,
}

#[derive(Serialize)]
struct ModelJson {
    version: String,
    accuracy: f64,
    photos: u32,
}

/// Adds, removes, trains or lists, and prints what came of it.
///
/// # Errors
/// If photos can't be found, or the server can't be reached or refuses the call.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    if args.class.is_some() && args.photos.is_empty() && !args.remove {
        return Err(CliError::Usage(
            "--class needs photos: resnet18 teach NAME --class CLASS PHOTOS...".into(),
        ));
    }
    let images = Images::find(&args.photos)?;
    report::print_ignored(images.ignored, args.json);
    let server = args.server.server()?;
    let mut session = Session {
        teacher: client::connect_teacher(&server).await?,
        address: server.address,
        timeout: args.timeout,
    };

    let name = args.name.unwrap_or_default();
    session.wait_until_ready(&name).await;
    let mut result = TeachReport::default();
    if args.list {
        result.datasets = Some(session.list(name).await?);
    } else if args.remove {
        result.removed = Some(session.remove(name, args.class.unwrap_or_default()).await?);
    } else {
        if let Some(class) = &args.class {
            let added = session.add(&name, class, images.files).await?;
            if !args.json {
                output::print_line(&describe_added(class, &added))?;
            }
            result.added = Some(added);
        }
        if args.train {
            result.trained = Some(session.train(name).await?);
        }
    }

    let refused = result
        .added
        .as_ref()
        .is_some_and(|added| !added.refused.is_empty());
    if args.json {
        output::print_json(&result)?;
    } else {
        print(&result)?;
    }
    Ok(if refused {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The connection to the server that is taught.
struct Session {
    teacher: Teacher,
    address: ServerAddress,
    timeout: Duration,
}

impl Session {
    /// Waits while the server starts. What else is wrong, the calls that follow say.
    async fn wait_until_ready(&mut self, dataset: &str) {
        let deadline = Instant::now() + self.timeout;
        let mut attempt = 0;
        loop {
            let request = self.request(ListDatasetsRequest {
                dataset: dataset.to_owned(),
            });
            let Err(status) = self.teacher.list_datasets(request).await else {
                return;
            };
            match retry::delay_before(&status, attempt, deadline) {
                Some(delay) => sleep(delay).await,
                None => return,
            }
            attempt += 1;
        }
    }

    /// Sends the photos one after the other, as they are read.
    async fn add(
        &mut self,
        dataset: &str,
        class: &str,
        photos: Vec<PathBuf>,
    ) -> Result<AddedJson, CliError> {
        let bar = output::progress(photos.len(), "Photos");
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        // What was sent, in its order, and what could not be read.
        let sent = Arc::new(Mutex::new(Vec::new()));
        let unread = Arc::new(Mutex::new(Vec::new()));
        let read = {
            let (dataset, class) = (dataset.to_owned(), class.to_owned());
            let (sent, unread, bar) = (Arc::clone(&sent), Arc::clone(&unread), bar.clone());
            async move {
                for path in photos {
                    match files::read(&path).await {
                        Ok(image) => {
                            let request = AddExamplesRequest {
                                dataset: dataset.clone(),
                                class: class.clone(),
                                image,
                            };
                            lock(&sent).push(files::name(&path));
                            // The server has answered: it refuses the call.
                            if sender.send(request).await.is_err() {
                                return;
                            }
                        }
                        Err(status) => lock(&unread).push(skipped(&path, status.message())),
                    }
                    bar.inc(1);
                }
            }
        };
        let request = self.request(ReceiverStream::new(receiver));
        let reading = tokio::spawn(read);
        let answer = self.teacher.add_examples(request).await;
        reading.abort();
        bar.finish_and_clear();
        let answer = answer.map_err(|status| self.refused(status))?.into_inner();

        let mut refused = std::mem::take(&mut *lock(&unread));
        let sent = lock(&sent);
        refused.extend(answer.refusals.into_iter().map(|refusal| {
            SkippedPhoto {
                file: sent
                    .get(refusal.index as usize)
                    .cloned()
                    .unwrap_or_else(|| format!("photo {}", refusal.index + 1)),
                reason: refusal.reason,
            }
        }));
        Ok(AddedJson {
            kept: answer.kept,
            known: answer.known,
            refused,
        })
    }

    async fn remove(&mut self, dataset: String, class: String) -> Result<u32, CliError> {
        let request = self.request(RemoveExamplesRequest {
            dataset,
            class,
            examples: Vec::new(),
        });
        let answer = self.teacher.remove_examples(request).await;
        let answer = answer.map_err(|status| self.refused(status))?;
        Ok(answer.into_inner().removed)
    }

    async fn train(&mut self, dataset: String) -> Result<TrainedJson, CliError> {
        let request = self.request(TrainRequest { dataset });
        let answer = self.teacher.train(request).await;
        let answer = answer.map_err(|status| self.refused(status))?;
        Ok(TrainedJson::new(answer.into_inner()))
    }

    async fn list(&mut self, dataset: String) -> Result<Vec<DatasetJson>, CliError> {
        let request = self.request(ListDatasetsRequest { dataset });
        let answer = self.teacher.list_datasets(request).await;
        let answer = answer.map_err(|status| self.refused(status))?;
        let datasets = answer.into_inner().datasets.into_iter();
        Ok(datasets.map(DatasetJson::from).collect())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    fn refused(&self, status: Status) -> CliError {
        ClientError::Refused {
            server: self.address.clone(),
            status: Box::new(client::normalize_timeout(status)),
        }
        .into()
    }
}

impl TrainedJson {
    fn new(answer: TrainResponse) -> Self {
        let labels: Vec<String> = answer
            .classes
            .iter()
            .map(|class| class.class.clone())
            .collect();
        let evaluation = evaluation(&answer);
        Self {
            confusion_matrix: evaluation.matrix(&labels),
            mistakes: evaluation.mistakes.clone(),
            evaluation,
            skipped: answer
                .skipped
                .into_iter()
                .map(|photo| SkippedPhoto {
                    file: format!("{}/{}", photo.class, photo.example),
                    reason: photo.reason,
                })
                .collect(),
            labels,
            model: answer.model,
            version: answer.model_version,
            photos: answer.examples,
            accuracy: answer.accuracy,
            took_s: client::milliseconds(answer.took.as_ref()) / 1e3,
        }
    }
}

/// The answer as other evaluations are shown.
fn evaluation(answer: &TrainResponse) -> Evaluation {
    let taken_for = |label: &str| -> usize {
        let wrong = answer
            .confusions
            .iter()
            .filter(|confusion| confusion.predicted == label);
        wrong.map(|confusion| confusion.examples as usize).sum()
    };
    let classes = answer.classes.iter().map(|class| {
        let (photos, right) = (class.examples as usize, class.right as usize);
        let taken = right + taken_for(&class.class);
        ClassResult {
            label: class.class.clone(),
            photos,
            right,
            recall: share(right, photos),
            precision: (taken > 0).then(|| share(right, taken)),
        }
    });
    Evaluation {
        photos: answer.examples as usize,
        top1: answer.accuracy,
        // The answer does not have it, and nothing here shows it.
        top5: answer.accuracy,
        classes: classes.collect(),
        confusions: answer
            .confusions
            .iter()
            .map(|confusion| Confusion {
                label: confusion.class.clone(),
                predicted: confusion.predicted.clone(),
                photos: confusion.examples as usize,
            })
            .collect(),
        mistakes: answer
            .mistakes
            .iter()
            .map(|mistake| Mistake {
                file: mistake.example.clone(),
                label: mistake.class.clone(),
                predicted: mistake.predicted.clone(),
                probability: mistake.probability,
            })
            .collect(),
    }
}

fn share(part: usize, of: usize) -> f64 {
    if of == 0 {
        0.0
    } else {
        part as f64 / of as f64
    }
}

impl From<Dataset> for DatasetJson {
    fn from(dataset: Dataset) -> Self {
        let classes = dataset.classes.into_iter();
        Self {
            name: dataset.name,
            classes: classes
                .map(|class| ClassJson {
                    name: class.name,
                    photos: class.examples,
                    bytes: class.bytes,
                })
                .collect(),
            model: dataset.model.map(|model| ModelJson {
                version: model.version,
                accuracy: model.accuracy,
                photos: model.examples,
            }),
        }
    }
}

fn skipped(path: &Path, reason: &str) -> SkippedPhoto {
    SkippedPhoto {
        file: files::name(path),
        reason: reason.to_owned(),
    }
}

/// What became of the photos; the refused ones are notes.
fn describe_added(class: &str, added: &AddedJson) -> String {
    report::print_skipped(&added.refused);
    let mut text = format!(
        "{} new photos of {}",
        thousands(added.kept.into()),
        escaped(class)
    );
    if added.known > 0 {
        text += &format!(", {} were there already", thousands(added.known.into()));
    }
    named_line("Added", text).trim_end().to_owned()
}

fn print(result: &TeachReport) -> Result<(), CliError> {
    if let Some(removed) = result.removed {
        let text = format!("{} photos", thousands(removed.into()));
        output::print_line(&named_line("Removed", text).trim_end())?;
    }
    if let Some(trained) = &result.trained {
        report::print_skipped(&trained.skipped);
        output::print_line(&describe_trained(trained))?;
    }
    match result.datasets.as_deref() {
        None => {}
        Some([]) => output::print_line(&"nothing was taught yet")?,
        Some(datasets) => output::print_line(&describe_datasets(datasets).trim_end())?,
    }
    Ok(())
}

fn describe_trained(trained: &TrainedJson) -> String {
    let accuracy = style(percent(trained.accuracy)).green().bold();
    let mut text = format!(
        "\n{}\n",
        report::tables(&trained.evaluation, &trained.labels)
    );
    text += &named_line(
        "Accuracy",
        format!(
            "{accuracy} of {} photos in cross-validation",
            thousands(trained.photos.into())
        ),
    );
    text += &named_line("Took", format!("{:.1} s", trained.took_s));
    let command = format!(
        "resnet18 classify --model {} PHOTO",
        output::quoted(&trained.model)
    );
    text + named_line("Use it", style(command).green()).trim_end()
}

fn describe_datasets(datasets: &[DatasetJson]) -> String {
    let mut text = String::new();
    for dataset in datasets {
        let model = match &dataset.model {
            Some(model) => format!("{} from {} photos", percent(model.accuracy), model.photos),
            None => "not trained yet".to_owned(),
        };
        let heading = style(escaped(&dataset.name)).bold();
        text += &format!("{heading}  {model}\n");
        for class in &dataset.classes {
            text += &format!(
                "  {:>6} photos  {:>8.1} MiB  {}\n",
                thousands(class.photos.into()),
                class.bytes as f64 / f64::from(1 << 20),
                escaped(&class.name)
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;

    fn answer() -> TrainResponse {
        let class = |class: &str, right| proto::ClassAccuracy {
            class: class.into(),
            examples: 4,
            right,
        };
        TrainResponse {
            model: "my cups".into(),
            model_version: "0123".into(),
            examples: 8,
            accuracy: 0.875,
            classes: vec![class("blue", 4), class("red\u{1b}", 3)],
            confusions: vec![proto::Confusion {
                class: "red\u{1b}".into(),
                predicted: "blue".into(),
                examples: 1,
            }],
            mistakes: vec![proto::Mistake {
                class: "red\u{1b}".into(),
                example: "1.jpg".into(),
                predicted: "blue".into(),
                probability: 0.75,
            }],
            ..TrainResponse::default()
        }
    }

    #[test]
    fn a_training_is_shown_as_tables() {
        let trained = TrainedJson::new(answer());
        assert_eq!(trained.confusion_matrix, [[4, 0], [1, 3]]);
        assert_eq!(trained.evaluation.classes[0].precision, Some(0.8));
        let text = console::strip_ansi_codes(&describe_trained(&trained)).into_owned();
        for part in [
            "87.5 % of 8 photos",
            "1.jpg",
            r"red\u{1b}",
            "--model 'my cups'",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn datasets_are_shown_with_their_classes() {
        let dataset = Dataset {
            name: "cups".into(),
            classes: vec![proto::TaughtClass {
                name: "blue".into(),
                examples: 1200,
                bytes: 3 << 20,
                names: Vec::new(),
            }],
            model: None,
        };
        let text = describe_datasets(&[dataset.into()]);
        let text = console::strip_ansi_codes(&text).into_owned();
        assert_eq!(
            text,
            "cups  not trained yet\n   1,200 photos       3.0 MiB  blue\n"
        );
    }
}
