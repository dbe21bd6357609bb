//! The log: which lines are written, as text for people or as JSON for machines.

use std::{io, str::FromStr};

use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// What the server's own lines come under.
const OWN: &str = "resnet18_server";
const EXPECTED: &str = "expected off, error, warn, info, debug or trace, and for libraries MODULE=LEVEL, as in info,h2=debug";

/// How the log is written, on standard error.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Which lines are written.
    pub filter: LogFilter,
    /// How they look.
    pub format: LogFormat,
}

/// Which lines are written: a level for the server itself, and levels for the libraries that it
/// uses. What a library tells below a warning is only of interest to who asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct LogFilter(Targets);

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
                    let level =
                        level(word).ok_or_else(|| format!("`{word}` is no level; {EXPECTED}"))?;
                    if own.replace(level).is_some() {
                        return Err(format!(
                            "there are two levels for the server itself; {EXPECTED}"
                        ));
                    }
                }
                Some((module, name)) => {
                    let level =
                        level(name).ok_or_else(|| format!("`{name}` is no level; {EXPECTED}"))?;
                    if !is_module(module) {
                        return Err(format!("`{module}` is no module; {EXPECTED}"));
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
                .with_target(OWN, own)
                .with_targets(modules),
        ))
    }
}

fn level(word: &str) -> Option<LevelFilter> {
    Some(match &*word.to_ascii_lowercase() {
        "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return None,
    })
}

/// A path such as `h2` or `tonic::transport`.
fn is_module(path: &str) -> bool {
    let name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    path.split("::").all(name)
}

/// Begins to log; a logger that was installed before stays.
pub fn start(config: &LogConfig) {
    let log = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(io::stderr)
        .with_target(false);
    let LogFilter(filter) = config.filter.clone();
    // A logger that was installed before, by a test, stays.
    let _ = match config.format {
        LogFormat::Text => log
            .with_ansi(console::colors_enabled_stderr())
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
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_level_is_for_the_server_and_libraries_stay_quiet() {
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
            library.would_enable(OWN, &Level::INFO),
            "the server goes on at its usual level"
        );
        let off = filter("off");
        assert!(!off.would_enable(OWN, &Level::ERROR) && !off.would_enable("h2", &Level::ERROR));
        assert!(filter("INFO, h2=debug").would_enable("h2", &Level::DEBUG));
    }

    #[test]
    fn anything_else_is_refused_with_what_would_be_right() {
        for (wrong, said) in [
            ("verbose", "`verbose` is no level"),
            ("", "`` is no level"),
            ("info,", "`` is no level"),
            ("h2=loud", "`loud` is no level"),
            ("info,debug", "two levels"),
            ("=debug", "`` is no module"),
            ("h2[span]=debug", "`h2[span]` is no module"),
            ("h2:codec=debug", "is no module"),
        ] {
            let error = wrong.parse::<LogFilter>().unwrap_err();
            assert!(
                error.contains(said) && error.contains("off, error, warn, info, debug or trace"),
                "{wrong}: {error}"
            );
        }
    }
}
