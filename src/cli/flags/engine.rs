//! What runs the network: flags → an [`EngineConfig`].

use std::{num::NonZeroUsize, path::PathBuf, thread::available_parallelism};

use clap::{Args, ValueEnum};

use crate::{
    cli::CliError,
    engine::{EngineConfig, EngineKind, Precision},
};

/// The flags that choose an engine.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineFlags {
    /// What runs the network; auto = the fastest that starts.
    #[arg(long, env = "RESNET18_ENGINE", value_enum, default_value = "auto")]
    engine: EngineArg,
    /// The arithmetic; auto = the fastest that the processor has, except int8.
    #[arg(long, env = "RESNET18_PRECISION", value_enum, default_value = "auto")]
    precision: PrecisionArg,
    /// The OpenVINO C library or its folder [default: the one that make fetched, else an installed one].
    #[arg(long, env = "RESNET18_OPENVINO_LIB", value_name = "PATH")]
    openvino_lib: Option<PathBuf>,
    /// CPU threads that decode and infer [default: the CPUs that this process may use].
    #[arg(long, env = "RESNET18_THREADS", value_name = "N", value_parser = at_most::<1024>)]
    threads: Option<NonZeroUsize>,
    /// The most images in one call of the engine. On a CPU more than 1 gains a few percent of throughput at the cost of latency.
    #[arg(long, env = "RESNET18_MAX_BATCH", value_name = "N", default_value = "1", value_parser = at_most::<64>)]
    max_batch: NonZeroUsize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EngineArg {
    Auto,
    Openvino,
    Embedded,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PrecisionArg {
    Auto,
    Fp32,
    Fp16,
    Bf16,
}

impl EngineFlags {
    /// What was asked for.
    ///
    /// # Errors
    /// When the CPUs can't be counted.
    pub fn config(&self) -> Result<EngineConfig, CliError> {
        let threads = match self.threads {
            Some(threads) => threads,
            // Counts the CPUs of a container's limit too.
            None => available_parallelism()
                .map_err(|error| CliError::Usage(format!("the CPUs can't be counted ({error}); set --threads")))?,
        };
        Ok(EngineConfig {
            kind: match self.engine {
                EngineArg::Auto => None,
                EngineArg::Openvino => Some(EngineKind::OpenVino),
                EngineArg::Embedded => Some(EngineKind::Embedded),
            },
            precision: match self.precision {
                PrecisionArg::Auto => None,
                PrecisionArg::Fp32 => Some(Precision::Fp32),
                PrecisionArg::Fp16 => Some(Precision::Fp16),
                PrecisionArg::Bf16 => Some(Precision::Bf16),
            },
            openvino_lib: self.openvino_lib.clone(),
            threads,
            max_batch: self.max_batch,
        })
    }
}

/// A number from 1 to `MAX`.
fn at_most<const MAX: usize>(text: &str) -> Result<NonZeroUsize, String> {
    let number = text.parse().ok().filter(|number: &NonZeroUsize| number.get() <= MAX);
    number.ok_or_else(|| format!("expected a whole number from 1 to {MAX}"))
}
