//! How results look: bars and colours for people, JSON for programs.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use console::style;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde::Serialize;

use crate::{
    client::milliseconds,
    proto::{Classification, Timing},
};

/// Characters of a full bar.
pub const BAR_WIDTH: usize = 24;

/// Prints an error for a person.
pub fn print_error(error: &dyn Display) {
    eprintln!("{} {error}", style("error:").for_stderr().red().bold());
}

/// Prints what isn't an error, but worth knowing.
pub fn print_note(note: &dyn Display) {
    eprintln!("{} {note}", style("note:").for_stderr().yellow().bold());
}

/// Writes one line to standard output; unlike `println!` it reports a closed pipe instead of
/// panicking.
pub fn print_line(line: &dyn Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Writes one JSON value as one line.
pub fn print_json(value: &impl Serialize) -> io::Result<()> {
    let line = serde_json::to_string(value)?;
    print_line(&line)
}

/// Whether a person watches standard output.
pub fn on_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Prints the warnings of what works in this process; a server has a log for that.
pub fn print_warnings() {
    let log = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(io::stderr);
    // A logger that was installed before, by a test, stays.
    let _ = log
        .with_target(false)
        .without_time()
        .with_ansi(console::colors_enabled_stderr())
        .try_init();
}

/// A bar on standard error for work on `images`; it is only seen on a terminal.
pub fn progress(images: usize, what: &'static str) -> ProgressBar {
    let per_second = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // What can't be shown is not worth an error.
        let _ = write!(out, "{:.0} images/s", state.per_sec());
    };
    let look = "{msg:<12} {bar:32.cyan} {human_pos} of {human_len}  {speed}  {eta} left";
    bar_on_stderr(images as u64, look, what, |style| {
        style.with_key("speed", per_second)
    })
}

/// A bar on standard error for work of 100 parts.
pub fn progress_in_percent(what: &'static str) -> ProgressBar {
    bar_on_stderr(
        100,
        "{msg:<12} {bar:32.cyan} {percent} %  {eta} left",
        what,
        |style| style,
    )
}

fn bar_on_stderr(
    length: u64,
    look: &str,
    what: &'static str,
    keys: impl FnOnce(ProgressStyle) -> ProgressStyle,
) -> ProgressBar {
    let style = ProgressStyle::with_template(look)
        .expect("the template is valid")
        .progress_chars("██░");
    ProgressBar::new(length)
        .with_style(keys(style))
        .with_message(what)
}

/// A name at the left of a line, of which there are several one below the other.
pub fn heading(name: &str) -> String {
    style(format!("{name:<13}")).bold().to_string()
}

/// The path as a shell takes it.
pub fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+@%:,".contains(c);
    match path.chars().all(plain) {
        true => path.to_owned(),
        false => format!("'{}'", path.replace('\'', r"'\''")),
    }
}

/// A bar of at most `width` characters, in steps of an eighth of a character.
pub fn bar(fraction: f32, width: usize) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (fraction.clamp(0.0, 1.0) * (width * 8) as f32).round() as usize;
    "█".repeat(eighths / 8) + PARTS[eighths % 8]
}

/// A number of milliseconds with a sensible unit and precision.
pub fn time(milliseconds: f64) -> String {
    match milliseconds {
        ms if ms >= 10_000.0 => format!("{:.1} s", ms / 1e3),
        ms if ms >= 1000.0 => format!("{:.2} s", ms / 1e3),
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms if ms >= 10.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.2} ms"),
    }
}

/// A whole number with thousands separated.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A class's name; models without labels have only numbers.
pub fn label(class: &Classification) -> String {
    if class.label.is_empty() {
        format!("class {}", class.class_id)
    } else {
        class.label.clone()
    }
}

/// One class in JSON.
#[derive(Debug, Serialize)]
pub struct ClassJson {
    class_id: u32,
    label: String,
    probability: f32,
}

/// The classes in JSON, in the same order.
pub fn classes_json(classes: Vec<Classification>) -> Vec<ClassJson> {
    let json = |c: Classification| ClassJson {
        class_id: c.class_id,
        label: c.label,
        probability: c.probability,
    };
    classes.into_iter().map(json).collect()
}

/// An error in JSON.
#[derive(Debug, Serialize)]
pub struct ErrorJson {
    /// A canonical gRPC status, such as `INVALID_ARGUMENT`.
    pub code: &'static str,
    /// What happened.
    pub message: String,
}

/// Where the server's time went, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TimingJson {
    /// Decoding, resizing and cropping.
    pub decode: f64,
    /// Waiting.
    pub queue: f64,
    /// The network.
    pub inference: f64,
    /// From the request's arrival to its answer.
    pub total: f64,
}

impl TimingJson {
    /// Reads the contract's message; what is absent is 0.
    pub fn new(timing: Option<&Timing>) -> Self {
        let part = |get: fn(&Timing) -> Option<&prost_types::Duration>| {
            let milliseconds = milliseconds(timing.and_then(get));
            (milliseconds * 1e3).round() / 1e3
        };
        Self {
            decode: part(|t| t.decode.as_ref()),
            queue: part(|t| t.queue.as_ref()),
            inference: part(|t| t.inference.as_ref()),
            total: part(|t| t.total.as_ref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_by_eighths() {
        assert_eq!(bar(0.0, 8), "");
        assert_eq!(bar(1.0, 8), "████████");
        assert_eq!(bar(0.5 + 1.0 / 64.0, 8), "████▏");
        assert_eq!(bar(f32::NAN, 8), "");
        assert_eq!(bar(7.0, 2), "██");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(thousands(7), "7");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(time(0.256), "0.26 ms");
        assert_eq!(time(12.34), "12.3 ms");
        assert_eq!(time(1234.0), "1.23 s");
    }

    #[test]
    fn absent_timings_are_zero() {
        assert_eq!(TimingJson::new(None).total, 0.0);
        let timing = Timing {
            total: Some(prost_types::Duration {
                seconds: 1,
                nanos: 500_000_000,
            }),
            ..Timing::default()
        };
        assert_eq!(TimingJson::new(Some(&timing)).total, 1500.0);
    }
}
