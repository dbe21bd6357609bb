//! An evaluation as text: tables of classes, confusions and mistakes.

use std::path::Path;

use console::{Alignment, measure_text_width, pad_str, style};

use super::output::{self, escaped};
use crate::offline::{
    SkippedPhoto,
    dataset::Labelled,
    evaluation::{Evaluation, Mistake},
};

/// A confusion matrix of more classes would be too wide for a terminal.
const MAX_MATRIX_CLASSES: usize = 20;
const BAR_WIDTH: usize = 12;
const SHOWN_CONFUSIONS: usize = 10;
const SHOWN_MISTAKES: usize = 5;
const SHOWN_SKIPPED: usize = 10;

/// The name of a photo in reports: its path within the dataset's folder `root`.
pub fn name_of(photo: &Labelled, root: &Path) -> String {
    photo
        .path
        .strip_prefix(root)
        .unwrap_or(&photo.path)
        .display()
        .to_string()
}

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Tables of the classes, the confusions and the worst mistakes. `labels` names all classes of the
/// model, in order.
pub fn tables(evaluation: &Evaluation, labels: &[String]) -> String {
    let mut text = classes(evaluation);
    if labels.len() <= MAX_MATRIX_CLASSES {
        text += &matrix(evaluation, labels);
    } else {
        text += &confusions(evaluation);
    }
    text + &mistakes(&evaluation.mistakes)
}

/// Prints how many files are no images by their names, if there are any, unless the report is for
/// programs.
pub fn print_ignored(files: usize, json: bool) {
    match files {
        _ if json => {}
        0 => {}
        1 => output::print_note(&"ignored 1 file whose name has no extension of an image"),
        files => output::print_note(&format_args!(
            "ignored {files} files whose names have no extension of an image"
        )),
    }
}

/// Prints a note for each photo that was skipped, up to a limit.
pub fn print_skipped(skipped: &[SkippedPhoto]) {
    for SkippedPhoto { file, reason } in skipped.iter().take(SHOWN_SKIPPED) {
        output::print_note(&format_args!(
            "skipped {}: {}",
            escaped(file),
            escaped(reason)
        ));
    }
    if skipped.len() > SHOWN_SKIPPED {
        output::print_note(&format_args!(
            "skipped {} more",
            skipped.len() - SHOWN_SKIPPED
        ));
    }
}

fn classes(evaluation: &Evaluation) -> String {
    let width = widest(evaluation.classes.iter().map(|class| class.label.as_str())).max(5);
    let mut text = style(format!(
        "{}  photos   recall  precision\n",
        left("Class", width)
    ))
    .bold()
    .to_string();

    for class in &evaluation.classes {
        let bar = style(output::bar(class.recall as f32, BAR_WIDTH)).green();
        let precision = class.precision.map_or("-".into(), percent);
        let row = format!(
            "{}  {:>6}  {:>7}  {precision:>9}  {bar}",
            left(&class.label, width),
            class.photos,
            percent(class.recall)
        );
        text += row.trim_end();
        text.push('\n');
    }
    text
}

fn matrix(evaluation: &Evaluation, labels: &[String]) -> String {
    const CORNER: &str = "Actual, predicted";

    let numbered = labels
        .iter()
        .enumerate()
        .map(|(row, label)| format!("{:>2} {label}", row + 1))
        .collect::<Vec<_>>();
    let width = widest(numbered.iter().map(String::as_str).chain([CORNER]));

    let mut header = left(CORNER, width);
    for column in 1..=labels.len() {
        header += &format!("{column:>4}");
    }
    let mut text = format!("\n{}\n", style(header).bold());

    for (row, (label, counts)) in numbered.iter().zip(evaluation.matrix(labels)).enumerate() {
        text += &left(label, width);
        for (column, count) in counts.iter().enumerate() {
            let cell = match count {
                0 => style(format!("{:>4}", "·")).dim(),
                count if row == column => style(format!("{count:>4}")).green(),
                count => style(format!("{count:>4}")).red(),
            };
            text += &cell.to_string();
        }
        text.push('\n');
    }
    text
}

fn confusions(evaluation: &Evaluation) -> String {
    if evaluation.confusions.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{}\n", style("Confused most often").bold());
    for confusion in evaluation.confusions.iter().take(SHOWN_CONFUSIONS) {
        text += &format!(
            "{:>6}  {} predicted as {}\n",
            confusion.photos,
            escaped(&confusion.label),
            escaped(&confusion.predicted)
        );
    }
    text
}

fn mistakes(mistakes: &[Mistake]) -> String {
    if mistakes.is_empty() {
        return String::new();
    }
    let shown = &mistakes[..mistakes.len().min(SHOWN_MISTAKES)];
    let width = widest(shown.iter().map(|mistake| mistake.file.as_str()));

    let mut text = format!("\n{}\n", style("Worst mistakes").bold());
    for Mistake {
        file,
        label,
        predicted,
        probability,
    } in shown
    {
        let confidence = percent((*probability).into());
        text += &format!(
            "  {}  {} predicted as {} ({confidence})\n",
            left(file, width),
            escaped(label),
            escaped(predicted)
        );
    }
    text
}

/// The text, padded at its right to `width` columns.
fn left(text: &str, width: usize) -> String {
    pad_str(&escaped(text), width, Alignment::Left, None).into_owned()
}

fn widest<'a>(texts: impl Iterator<Item = &'a str>) -> usize {
    texts
        .map(|text| measure_text_width(&escaped(text)))
        .max()
        .unwrap_or(0)
}
