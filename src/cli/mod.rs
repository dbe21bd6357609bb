//! The command line: one file a subcommand, which turns flags and environment variables into a
//! typed configuration.

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};
use thiserror::Error;

use crate::client::{ClientError, video::VideoError};

pub mod build;
pub mod classify;
pub mod evaluate;
mod files;
mod flags;
pub mod import;
pub mod load;
mod open_files;
mod output;
pub mod quantize;
mod report;
pub mod serve;
pub mod stream;
pub mod top;
pub mod train;
mod values;

/// The exit status for wrong flags (`EX_USAGE` of sysexits).
pub const EXIT_USAGE: u8 = 64;

/// Classifies images and live video: a gRPC server and its clients.
#[derive(Debug, Parser)]
#[command(name = "resnet18", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over gRPC.
    Serve(Box<serve::Args>),
    /// Say what images show.
    Classify(classify::Args),
    /// Say what a video or a camera shows, frame by frame.
    Stream(stream::Args),
    /// Turn a checkpoint, weights that PyTorch or Hugging Face saved, into a model.
    Import(import::Args),
    /// Teach a model new classes, from a folder of photos.
    Train(train::Args),
    /// Measure how often a model is right, on a folder of photos.
    Evaluate(evaluate::Args),
    /// Make a model compute in 8 bits, about twice as fast on a CPU, with the help of some photos.
    Quantize(quantize::Args),
    /// Measure a server: throughput, latency and errors under load.
    Load(load::Args),
    /// Watch servers live: throughput, latency, queue and load.
    Top(top::Args),
    /// Build TensorRT engines ahead of time, without a GPU (in programs with the feature tensorrt).
    Build(build::Args),
}

/// Why a subcommand could not do its work.
#[derive(Debug, Error)]
pub enum CliError {
    /// Flags that don't fit together.
    #[error("{0}")]
    Usage(String),
    /// The server can't be reached or refuses.
    #[error(transparent)]
    Client(Box<ClientError>),
    /// A video can't be read.
    #[error(transparent)]
    Video(#[from] VideoError),
    /// The result can't be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// Anything else, in words for the user.
    #[error("{0}")]
    Failed(String),
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        Self::Client(error.into())
    }
}

impl CliError {
    /// The error in its own words.
    fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(EXIT_USAGE),
            // The reader has seen enough, as `head` does.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

impl Cli {
    /// Runs the subcommand; an error is printed and becomes the exit status.
    pub async fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Serve(args) => serve::run(*args).await,
            Command::Classify(args) => classify::run(args).await,
            Command::Stream(args) => stream::run(args).await,
            Command::Import(args) => import::run(args).await,
            Command::Train(args) => train::run(args).await,
            Command::Evaluate(args) => evaluate::run(args).await,
            Command::Quantize(args) => quantize::run(args).await,
            Command::Load(args) => load::run(args).await,
            Command::Top(args) => top::run(args).await,
            Command::Build(args) => build::run(args).await,
        };
        result.unwrap_or_else(|error| {
            let code = error.exit_code();
            if code != ExitCode::SUCCESS {
                output::print_error(&error);
            }
            code
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Cli;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_an_environment_variable() {
        for command in Cli::command().get_subcommands() {
            for flag in command.get_arguments().filter(|arg| !arg.is_positional()) {
                let id = flag.get_id().as_str();
                if matches!(id, "help" | "version") {
                    continue;
                }
                let variable = flag
                    .get_env()
                    .and_then(|name| name.to_str())
                    .unwrap_or_default();
                assert!(
                    variable.starts_with("RESNET18_"),
                    "{} --{id}: {variable:?}",
                    command.get_name()
                );
            }
        }
    }

    #[test]
    fn wrong_values_are_refused_with_a_reason() {
        for (arguments, reason) in [
            (&["classify", "a.jpg", "--timeout", "5"][..], "unit"),
            (&["classify", "a.jpg", "--server", "ftp://host:1"], "https"),
            (
                &["classify", "a.jpg", "--min-probability", "1.5"],
                "between 0 and 1",
            ),
            (&["stream", "a.mp4", "--policy", "some"], "latest"),
            (&["load", "a.jpg", "--rate", "0"], "more than 0"),
            (&["top", "https://host:8002"], "no TLS"),
        ] {
            let error = Cli::try_parse_from(["resnet18"].iter().chain(arguments)).unwrap_err();
            assert!(error.to_string().contains(reason), "{arguments:?}: {error}");
            assert!(error.use_stderr());
        }
    }
}
