//! How an evaluation looks: tables for people.

use std::path::Path;

use console::{Alignment, measure_text_width, pad_str, style};

use super::output::{self, heading};
use crate::offline::{
    Skipped,
    dataset::Labelled,
    evaluation::{Evaluation, Mistake},
};

/// A matrix of more classes fits no terminal.
const LARGEST_MATRIX: usize = 20;
const BAR_WIDTH: usize = 12;
const SHOWN_CONFUSIONS: usize = 10;
const SHOWN_MISTAKES: usize = 5;
const SHOWN_SKIPPED: usize = 10;

/// The file of a photo as reports name it: without the dataset's folder, which all have in common.
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

/// A table of the classes, what was confused, and the worst mistakes. `labels` are all the classes'
/// names.
pub fn tables(evaluation: &Evaluation, labels: &[String]) -> String {
    let mut text = classes(evaluation);
    if labels.len() <= LARGEST_MATRIX {
        text += &matrix(evaluation, labels);
    } else {
        text += &confusions(evaluation);
    }
    text + &mistakes(&evaluation.mistakes)
}

/// A line for each photo that was left out.
pub fn print_skipped(skipped: &[Skipped]) {
    for Skipped { file, reason } in skipped.iter().take(SHOWN_SKIPPED) {
        output::print_note(&format_args!("skipped {file}: {reason}"));
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
    const CORNER: &str = "Shown, taken for";
    let numbered = labels
        .iter()
        .enumerate()
        .map(|(row, label)| format!("{:>2} {label}", row + 1))
        .collect::<Vec<_>>();
    let width = widest(numbered.iter().map(String::as_str).chain([CORNER]));
    let mut header = left(CORNER, width);
    (1..=labels.len()).for_each(|column| header += &format!("{column:>4}"));
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
            "{:>6}  {} taken for {}\n",
            confusion.photos, confusion.label, confusion.predicted
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
        let sure = percent((*probability).into());
        text += &format!(
            "  {}  {label} taken for {predicted} ({sure})\n",
            left(file, width)
        );
    }
    text
}

/// A line with a name at its left.
pub fn line(name: &str, value: impl std::fmt::Display) -> String {
    format!("{}{value}\n", heading(name))
}

fn left(text: &str, width: usize) -> String {
    pad_str(text, width, Alignment::Left, None).into_owned()
}

fn widest<'a>(texts: impl Iterator<Item = &'a str>) -> usize {
    texts.map(measure_text_width).max().unwrap_or(0)
}
