//! The command line, one file per subcommand.
//!
//! Each subcommand turns its flags and environment variables into a typed configuration and hands
//! that to the rest of the crate. `flags` holds groups of flags that several subcommands share,
//! or that are too long for the file of their subcommand.

use std::{fmt::Display, io, panic::resume_unwind, process::ExitCode};

use clap::{Parser, Subcommand};
use thiserror::Error;
use tokio::{runtime, task::spawn_blocking};
use tonic::Code;

use crate::{
    client::{ClientError, retry::requested_delay, video::VideoError},
    image,
};

mod build;
mod check;
mod classify;
mod evaluate;
mod files;
mod flags;
mod import;
mod load;
mod models;
mod open_files;
mod output;
mod output_file;
mod quantize;
mod report;
mod serve;
mod stream;
mod teach;
mod top;
mod train;
mod values;

/// Exit status for wrong flags (`EX_USAGE` in `sysexits.h`).
const EXIT_USAGE: u8 = 64;

/// Classify images and live video: a gRPC server and its clients.
#[derive(Debug, Parser)]
#[command(name = "resnet18", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model over gRPC.
    Serve(Box<serve::Args>),
    /// Classify image files.
    Classify(classify::Args),
    /// Classify a video or a camera, frame by frame.
    Stream(stream::Args),
    /// Convert a PyTorch or Hugging Face checkpoint to a model.
    Import(import::Args),
    /// Train a model on new classes, from a folder of photos.
    Train(train::Args),
    /// Teach a running server new classes, from photos.
    Teach(teach::Args),
    /// Measure a model's accuracy on a folder of photos.
    Evaluate(evaluate::Args),
    /// Quantize a model to 8 bits, for about twice the speed on a CPU.
    Quantize(quantize::Args),
    /// Try a model in a process of its own, as the server does before it loads one.
    Check(check::Args),
    /// List the models that a server serves.
    Models(models::Args),
    /// Measure a server's throughput, latency and errors under load.
    Load(load::Args),
    /// Watch servers live: throughput, latency, queue and load.
    Top(top::Args),
    /// Build TensorRT engines ahead of time, without a GPU (needs the feature tensorrt).
    Build(build::Args),
    /// Decode AV1 pictures for a server that has started this process.
    #[cfg(unix)]
    #[command(hide = true)]
    DecodeAv1,
}

/// Why a subcommand failed.
#[derive(Debug, Error)]
enum CliError {
    /// Flags that are wrong or do not fit together.
    #[error("{0}")]
    Usage(String),
    /// The server cannot be reached or refuses the request.
    #[error("{}{}", .0, advice(.0))]
    Client(Box<ClientError>),
    /// A video cannot be read.
    #[error(transparent)]
    Video(#[from] VideoError),
    /// Standard output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// Any other failure, described for the user.
    #[error("{0}")]
    Failed(String),
}

/// What to do about a server that cannot be used, in terms of the command line.
fn advice(error: &ClientError) -> &'static str {
    match error {
        ClientError::Unreachable { .. } => {
            "; start one with `resnet18 serve`, or name another with --server"
        }
        ClientError::Tls { reason, .. } => tls_advice(reason),
        ClientError::Refused { status, .. } => match status.code() {
            // A port that expects TLS answers with bytes that are not HTTP/2.
            Code::Internal | Code::Unknown if status.message().starts_with("h2 protocol error") => {
                "; does it want https://?"
            }
            // Most of the server's own messages say what to do.
            Code::Unavailable
                if !["retry", "no model"]
                    .iter()
                    .any(|word| status.message().contains(word)) =>
            {
                "; try again in a moment"
            }
            Code::ResourceExhausted if requested_delay(status).is_some() => {
                "; it is overloaded, try again in a moment"
            }
            Code::DeadlineExceeded => "; give it more time with --timeout",
            Code::Unauthenticated => "; give the token with --token or RESNET18_TOKEN",
            // A server of ours says which flag is missing.
            Code::Unimplemented if status.message().contains("flag") => "",
            Code::Unimplemented => "; is this a resnet18 server?",
            _ => "",
        },
        _ => "",
    }
}

/// What to do about a connection that can't be encrypted, by the TLS library's name for the reason.
fn tls_advice(reason: &str) -> &'static str {
    let is = |name: &str| reason.contains(name);
    if is("CaUsedAsEndEntity") || is("UnsupportedCertVersion") {
        "; docs/security.md has the commands that make one"
    } else if is("client's certificate and its key") {
        "; check --client-cert and --client-key"
    } else if is("client's certificate") {
        "; give one that the server accepts with --client-cert and --client-key"
    } else if is("UnknownIssuer") {
        "; give the authority's certificate with --ca"
    } else {
        ""
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        Self::Client(error.into())
    }
}

impl CliError {
    /// A failure that `error`'s message describes in full.
    fn failed(error: impl Display) -> Self {
        Self::Failed(error.to_string())
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(EXIT_USAGE),
            // The reader of a pipe may close it early, as `head` does.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

/// The whole program: parses the arguments, runs the subcommand, and returns the exit status.
///
/// It is not generic, so that all asynchronous code is compiled once, in the library, instead of
/// in every program that calls it.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // There is nowhere left to report that the message itself cannot be written.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(EXIT_USAGE)
            } else {
                // --help and --version.
                ExitCode::SUCCESS
            };
        }
    };

    #[cfg(unix)]
    {
        if matches!(cli.command, Command::DecodeAv1) {
            return match image::decode_av1() {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    output::print_error(&format_args!(
                        "decode-av1 is started by the server only: {error}"
                    ));
                    ExitCode::FAILURE
                }
            };
        }
        if let Some(program) = flags::own_program() {
            image::decode_av1_with(program, vec!["decode-av1".into()]);
        }
    }

    let runtime = match runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            output::print_error(&format_args!("cannot start the program's threads: {error}"));
            return ExitCode::FAILURE;
        }
    };

    let result = runtime.block_on(run(cli.command));
    // A blocked read from standard input cannot be interrupted; waiting for it would hang.
    runtime.shutdown_background();

    result.unwrap_or_else(|error| {
        let code = error.exit_code();
        if code != ExitCode::SUCCESS {
            output::print_error(&error);
        }
        code
    })
}

async fn run(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Serve(args) => serve::run(*args).await,
        Command::Classify(args) => classify::run(args).await,
        Command::Stream(args) => stream::run(args).await,
        Command::Import(args) => import::run(args).await,
        Command::Train(args) => train::run(args).await,
        Command::Teach(args) => teach::run(args).await,
        Command::Evaluate(args) => evaluate::run(args).await,
        Command::Quantize(args) => quantize::run(args).await,
        Command::Check(args) => check::run(args).await,
        Command::Models(args) => models::run(args).await,
        Command::Load(args) => load::run(args).await,
        Command::Top(args) => top::run(args).await,
        Command::Build(args) => build::run(args).await,
        #[cfg(unix)]
        Command::DecodeAv1 => Ok(ExitCode::FAILURE),
    }
}

/// Runs `work`, which keeps a thread busy, outside the asynchronous runtime's threads. A panic in
/// it continues here.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|error| resume_unwind(error.into_panic()))
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
        // A variable that several subcommands read is about the same flag.
        let mut flags = std::collections::HashMap::new();
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
                let other = flags.entry(variable.to_owned()).or_insert(id.to_owned());
                assert_eq!(other, id, "{} --{id}: {variable}", command.get_name());
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
