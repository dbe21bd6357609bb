//! What `resnet18 teach` prints: lines and tables for people, JSON for programs.

use console::style;
use serde::Serialize;

use crate::{
    cli::{
        CliError,
        output::{self, escaped, named_line, thousands},
        report::{self, percent},
    },
    client,
    offline::{
        SkippedPhoto,
        evaluation::{ClassResult, Confusion, Evaluation, Mistake},
    },
    proto::{Dataset, TrainResponse},
};

/// The line of JSON.
#[derive(Default, Serialize)]
pub(super) struct TeachReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub added: Option<AddedJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removed: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained: Option<TrainedJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datasets: Option<Vec<DatasetJson>>,
}

#[derive(Serialize)]
pub(super) struct AddedJson {
    pub kept: u32,
    pub known: u32,
    pub refused: Vec<SkippedPhoto>,
}

#[derive(Serialize)]
pub(super) struct TrainedJson {
    pub model: String,
    pub version: String,
    pub photos: u32,
    pub accuracy: f64,
    pub skipped: Vec<SkippedPhoto>,
    pub labels: Vec<String>,
    pub confusion_matrix: Vec<Vec<usize>>,
    pub mistakes: Vec<Mistake>,
    pub took_s: f64,
    #[serde(skip)]
    pub evaluation: Evaluation,
}

#[derive(Serialize)]
pub(super) struct DatasetJson {
    pub name: String,
    pub classes: Vec<ClassJson>,
    pub model: Option<ModelJson>,
}

#[derive(Serialize)]
pub(super) struct ClassJson {
    pub name: String,
    pub photos: u32,
    pub bytes: u64,
}

#[derive(Serialize)]
pub(super) struct ModelJson {
    pub version: String,
    pub accuracy: f64,
    pub photos: u32,
}

impl TrainedJson {
    pub fn new(answer: TrainResponse) -> Self {
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
    let judged = answer.classes.iter().filter(|class| class.examples > 0);
    let classes = judged.map(|class| {
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

/// What became of the photos; the refused ones are notes.
pub(super) fn describe_added(class: &str, added: &AddedJson) -> String {
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

pub(super) fn print(result: &TeachReport) -> Result<(), CliError> {
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
