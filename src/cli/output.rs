//! Output of results: text with bars and colours for people, JSON for programs.

use std::{
    borrow::Cow,
    ffi::OsStr,
    fmt::{Display, Write as _},
    io::{self, IsTerminal, Write},
};

use console::style;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde::Serialize;

use crate::{
    client::milliseconds,
    model::UNKNOWN_LABEL,
    proto::{Classification, Timing},
};

/// Width of a full bar, in characters.
pub const BAR_WIDTH: usize = 24;

/// Prints an error message to standard error.
pub fn print_error(error: &dyn Display) {
    let name = style("error:").for_stderr().red().bold();
    print_message(&format_args!(
        "{name} {}",
        escaped_lines(&error.to_string())
    ));
}

/// Prints a message that is no error to standard error.
pub fn print_note(note: &dyn Display) {
    let name = style("note:").for_stderr().yellow().bold();
    print_message(&format_args!("{name} {}", escaped_lines(&note.to_string())));
}

/// Prints what was read from files beside a model.
pub fn print_sources(sources: &[String]) {
    for source in sources {
        print_note(source);
    }
}

/// Writes a line to standard error. Unlike `eprintln!`, it doesn't panic where the pipe is closed:
/// there is nowhere left to report that.
pub fn print_message(message: &dyn Display) {
    let _ = writeln!(io::stderr(), "{message}");
}

/// The text with its control characters written as escapes, such as `\n` or `\u{1b}`.
///
/// Names of files, labels and messages of servers come from others. Unescaped, they could move the
/// cursor of a terminal, or pass for lines of the program itself.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return text.into();
    }
    let mut printable = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_unprintable(c) {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    printable.into()
}

/// The same for a message of several lines, which stay lines.
fn escaped_lines(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(escaped).collect();
    lines.join("\n")
}

/// Whether a terminal acts on the character instead of showing it: control characters, and those
/// that reverse the direction of the text after them.
fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The bytes of a name that is not UTF-8, percent-encoded as in a URL; `None` if it is UTF-8.
///
/// In JSON, which has no bytes, the name itself only shows a replacement character for them.
pub fn percent_encoded(name: &OsStr) -> Option<String> {
    if name.to_str().is_some() {
        return None;
    }
    let mut encoded = String::new();
    for &byte in name.as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    Some(encoded)
}

/// Writes one line to standard output. Unlike `println!`, it returns an error where the pipe is
/// closed, instead of panicking.
pub fn print_line(line: &dyn Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Writes one JSON value to standard output, as one line.
pub fn print_json(value: &impl Serialize) -> io::Result<()> {
    let line = serde_json::to_string(value)?;
    print_line(&line)
}

/// Whether standard output is a terminal.
pub fn on_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Prints warnings that this process logs to standard error, for subcommands that run a model
/// themselves. `serve` has a log with its own flags.
pub fn print_warnings() {
    let log = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(io::stderr);
    // Fails if a logger is installed already, as in tests; that one stays.
    let _ = log
        .with_target(false)
        .without_time()
        .with_ansi(console::colors_enabled_stderr())
        .try_init();
}

/// The style of a progress bar; the bar itself is drawn on standard error, if that is a terminal.
///
/// # Panics
/// If the template is invalid.
pub fn progress_style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the template is valid")
        .progress_chars("██░")
}

/// A progress bar for work on a number of images.
pub fn progress(images: usize, what: &'static str) -> ProgressBar {
    let speed = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // A bar that cannot be drawn is not worth an error.
        let _ = write!(out, "{:.0} images/s", state.per_sec());
    };
    let style =
        progress_style("{msg:<12} {bar:32.cyan} {human_pos} of {human_len}  {speed}  {eta} left")
            .with_key("speed", speed);
    ProgressBar::new(images as u64)
        .with_style(style)
        .with_message(what)
}

/// A progress bar from 0 to 100 %.
pub fn progress_in_percent(what: &'static str) -> ProgressBar {
    ProgressBar::new(100)
        .with_style(progress_style(
            "{msg:<12} {bar:32.cyan} {percent} %  {eta} left",
        ))
        .with_message(what)
}

/// A line of text with a bold name at its left, aligned with the other lines of a report.
pub fn named_line(name: &str, value: impl Display) -> String {
    format!("{}{value}\n", style(format!("{name:<13}")).bold())
}

/// The path, quoted for a POSIX shell where that is necessary.
pub fn quoted(path: &str) -> String {
    let needs_no_quotes = |c: char| c.is_alphanumeric() || "/._-+@%:,".contains(c);
    if path.chars().all(needs_no_quotes) {
        path.to_owned()
    } else if path.contains(is_unprintable) {
        // The quotes of bash, zsh and POSIX since 2024 that know escapes.
        let quotable = path.replace('\\', r"\\").replace('\'', r"\'");
        let escape = |c: char| match c {
            c if !is_unprintable(c) => c.to_string(),
            c => c
                .to_string()
                .bytes()
                .map(|byte| format!("\\x{byte:02x}"))
                .collect(),
        };
        format!("$'{}'", quotable.chars().map(escape).collect::<String>())
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

/// A bar of up to `width` characters, with a resolution of an eighth of a character.
pub fn bar(fraction: f32, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (fraction.clamp(0.0, 1.0) * (width * 8) as f32).round() as usize;
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

/// A duration in milliseconds, with a readable unit and precision.
pub fn time(milliseconds: f64) -> String {
    match milliseconds {
        ms if ms >= 10_000.0 => format!("{:.1} s", ms / 1e3),
        ms if ms >= 1000.0 => format!("{:.2} s", ms / 1e3),
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms if ms >= 10.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.2} ms"),
    }
}

/// A whole number with its thousands separated by commas.
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

/// A label for people, who are told in words that an image shows none of the classes.
pub fn label(label: &str) -> Cow<'_, str> {
    if label.is_empty() {
        UNKNOWN_LABEL.into()
    } else {
        escaped(label)
    }
}

/// One class in JSON.
#[derive(Debug, Serialize)]
pub struct ClassJson {
    class_id: u32,
    label: String,
    probability: f32,
}

/// Converts the classes to JSON, in the same order.
pub fn classes_json(classes: Vec<Classification>) -> Vec<ClassJson> {
    classes
        .into_iter()
        .map(|class| ClassJson {
            class_id: class.class_id,
            label: class.label,
            probability: class.probability,
        })
        .collect()
}

/// An error in JSON.
#[derive(Debug, Serialize)]
pub struct ErrorJson {
    /// The name of a gRPC status code, such as `INVALID_ARGUMENT`.
    pub code: &'static str,
    pub message: String,
}

/// How long each step took on the server, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TimingJson {
    /// Decoding, resizing and cropping.
    pub decode: f64,
    pub queue: f64,
    pub inference: f64,
    /// From the arrival of the request to its response.
    pub total: f64,
}

impl TimingJson {
    /// Converts the protobuf message, rounding to microseconds; absent durations are 0.
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
    fn control_characters_are_shown_and_not_obeyed() {
        assert_eq!(escaped("Pfütze 猫 ½"), "Pfütze 猫 ½");
        assert_eq!(escaped("a\n\u{1b}[2Jb"), r"a\n\u{1b}[2Jb");
        assert_eq!(escaped("gpj.\u{202e}exe"), r"gpj.\u{202e}exe");
        assert_eq!(escaped_lines("one\ntwo\r"), "one\ntwo\\r");
        assert_eq!(quoted("a\u{1b}'b"), r"$'a\x1b\'b'");
        assert_eq!(quoted("a b"), "'a b'");
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_not_utf8_stay_unambiguous() {
        use std::os::unix::ffi::OsStrExt;

        assert_eq!(percent_encoded(OsStr::new("grün.jpg")), None);
        let name = OsStr::from_bytes(b"gr\xfcn %1/a.jpg");
        assert_eq!(percent_encoded(name).unwrap(), "gr%FCn%20%251/a.jpg");
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
