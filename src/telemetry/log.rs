//! Logging to standard error: the filter, and the two formats, text and JSON.
//!
//! A separate thread writes the lines, so that the server never blocks on standard error. When that
//! is full, closed or not read, lines are dropped and counted.

use std::{
    fmt::{self, Write},
    io,
    str::FromStr,
    sync::{Mutex, OnceLock},
};

use tracing::field::Field;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    field::MakeExt,
    filter::{LevelFilter, Targets},
    fmt::format::{Writer, debug_fn},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::sync::lock;

/// The target of this crate's own log lines.
const OWN_TARGET: &str = "resnet18_server";

const EXPECTED: &str = "expected off, error, warn, info, debug or trace, \
                        and for libraries MODULE=LEVEL, as in info,h2=debug";

/// How many lines may wait to be written; more are dropped.
const MAX_WAITING_LINES: usize = 4096;

/// Counts the lines that were dropped.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();
/// Writes the lines that still wait when it is dropped.
static WRITER: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// How the log is written.
#[derive(Clone, Debug)]
pub struct LogConfig {
    pub filter: LogFilter,
    pub format: LogFormat,
}

/// Which lines are written: a level for the server itself, and levels for the libraries that it
/// uses. Libraries log only warnings and errors unless the filter names them.
#[derive(Clone, Debug, PartialEq)]
pub struct LogFilter(Targets);

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people, in colour on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut own = None;
        let mut modules = Vec::new();
        for word in text.split(',').map(str::trim) {
            match word.split_once('=') {
                None => {
                    if own.replace(parse_level(word)?).is_some() {
                        return Err(format!(
                            "there are two levels for the server itself; {EXPECTED}"
                        ));
                    }
                }
                Some((module, word)) => {
                    let level = parse_level(word)?;
                    if !is_module(module) {
                        return Err(format!("`{module}` is not a module; {EXPECTED}"));
                    }
                    modules.push((module.to_owned(), level));
                }
            }
        }

        let own = own.unwrap_or(LevelFilter::INFO);
        let libraries = own.min(LevelFilter::WARN);
        Ok(Self(
            Targets::new()
                .with_default(libraries)
                .with_target(OWN_TARGET, own)
                .with_targets(modules),
        ))
    }
}

fn parse_level(word: &str) -> Result<LevelFilter, String> {
    match &*word.to_ascii_lowercase() {
        "off" => Ok(LevelFilter::OFF),
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err(format!("`{word}` is not a level; {EXPECTED}")),
    }
}

/// Whether this is a module's path, such as `h2` or `tonic::transport`.
fn is_module(path: &str) -> bool {
    let name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    path.split("::").all(name)
}

/// Starts logging. A logger that was installed before, as in tests, stays in place.
pub fn start(config: &LogConfig) {
    let (lines, writer) = NonBlockingBuilder::default()
        .buffered_lines_limit(MAX_WAITING_LINES)
        .lossy(true)
        .thread_name("log")
        .finish(io::stderr());
    let dropped = lines.error_counter();

    let log = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(lines)
        .with_target(false);
    let LogFilter(filter) = config.filter.clone();

    let started = match config.format {
        LogFormat::Text => log
            .with_ansi(console::colors_enabled_stderr())
            .fmt_fields(debug_fn(write_field).delimited(" "))
            .finish()
            .with(filter)
            .try_init(),
        LogFormat::Json => log
            .json()
            .flatten_event(true)
            .finish()
            .with(filter)
            .try_init(),
    };
    // An error means that another logger is installed already.
    if started.is_ok() {
        let _ = DROPPED.set(dropped);
        *lock(&WRITER) = Some(writer);
    }
}

/// Writes the lines that still wait, for a second at most, and ends the log.
pub fn flush() {
    drop(lock(&WRITER).take());
}

/// How many lines have been dropped because standard error did not take them in time.
pub fn dropped_lines() -> u64 {
    DROPPED
        .get()
        .map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Writes one field of a line of text; the message has no name.
///
/// Names and errors come from callers and from files. A line break in them would begin a line that
/// looks like the server's own, and an escape sequence would reach the terminal.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    match field.name() {
        "message" => {}
        name if writer.has_ansi_escapes() => {
            write!(writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m")?;
        }
        name => write!(writer, "{name}=")?,
    }
    write!(Escaping(writer), "{value:?}")
}

/// Writes control characters as Rust does in a literal: `\n`, `\u{1b}`.
struct Escaping<W>(W);

impl<W: Write> Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(control) = rest.find(char::is_control) {
            let (before, from) = rest.split_at(control);
            let mut characters = from.chars();
            let found = characters.next().expect("a character was found here");
            write!(self.0, "{before}{}", found.escape_default())?;
            rest = characters.as_str();
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;
    use crate::testing::{CapturedLog, log_of};

    #[test]
    fn a_bare_level_applies_to_the_server_and_libraries_stay_quiet() {
        let filter = |text: &str| text.parse::<LogFilter>().unwrap().0;
        let debug = filter("debug");
        assert!(debug.would_enable("resnet18_server::grpc", &Level::DEBUG));
        assert!(debug.would_enable("h2", &Level::WARN) && !debug.would_enable("h2", &Level::INFO));
        let library = filter("h2::codec=trace");
        assert!(
            library.would_enable("h2::codec", &Level::TRACE)
                && !library.would_enable("h2", &Level::DEBUG)
        );
        assert!(
            library.would_enable(OWN_TARGET, &Level::INFO),
            "the server keeps its default level"
        );
        let off = filter("off");
        assert!(
            !off.would_enable(OWN_TARGET, &Level::ERROR) && !off.would_enable("h2", &Level::ERROR)
        );
        assert!(filter("INFO, h2=debug").would_enable("h2", &Level::DEBUG));
    }

    #[test]
    fn control_characters_of_callers_are_escaped_wherever_they_are() {
        let subscriber = |log: CapturedLog| {
            tracing_subscriber::fmt()
                .with_writer(move || log.clone())
                .without_time()
                .with_target(false)
                .with_ansi(false)
                .fmt_fields(debug_fn(write_field).delimited(" "))
                .finish()
        };
        let hostile = "a\nWARN forged \u{1b}[2Jé\u{85}";
        let written = log_of(subscriber, || {
            tracing::warn!(name = hostile, shown = %hostile, number = 3, "refused: {hostile}");
        });
        let safe = r"a\nWARN forged \u{1b}[2Jé\u{85}";
        assert_eq!(
            written,
            format!(" WARN refused: {safe} name=\"{safe}\" shown={safe} number=3\n")
        );
    }

    #[test]
    fn errors_name_the_valid_levels() {
        for (wrong, said) in [
            ("verbose", "`verbose` is not a level"),
            ("", "`` is not a level"),
            ("info,", "`` is not a level"),
            ("h2=loud", "`loud` is not a level"),
            ("info,debug", "two levels"),
            ("=debug", "`` is not a module"),
            ("h2[span]=debug", "`h2[span]` is not a module"),
            ("h2:codec=debug", "is not a module"),
        ] {
            let error = wrong.parse::<LogFilter>().unwrap_err();
            assert!(
                error.contains(said) && error.contains("off, error, warn, info, debug or trace"),
                "{wrong}: {error}"
            );
        }
    }
}
