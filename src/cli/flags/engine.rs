//! What runs the network: flags → an [`EngineConfig`].

use std::{num::NonZeroUsize, path::PathBuf, str::FromStr, thread::available_parallelism};

use clap::{Args, ValueEnum};

use super::TensorRtFlags;
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
    /// The arithmetic; auto = int8 for a quantised model, else the fastest float that the processor
    /// has.
    #[arg(long, env = "RESNET18_PRECISION", value_enum, default_value = "auto")]
    precision: PrecisionArg,
    /// The OpenVINO C library or its folder [default: the one that make fetched, else an installed
    /// one].
    #[arg(long, env = "RESNET18_OPENVINO_LIB", value_name = "PATH")]
    openvino_lib: Option<PathBuf>,
    /// CPU threads that decode and infer [default: the CPUs that this process may use].
    #[arg(long, env = "RESNET18_THREADS", value_name = "N", value_parser = at_most::<1024>)]
    threads: Option<NonZeroUsize>,
    /// The most images in one call of the engine [default: 32 on a GPU; on a CPU 2 to serve with
    /// OpenVINO, else 1].
    #[arg(long, env = "RESNET18_MAX_BATCH", value_name = "N", value_parser = at_most::<64>)]
    max_batch: Option<NonZeroUsize>,
    /// The GPUs to use: their numbers, or all. Each gets an engine of its own behind the same
    /// queue.
    #[arg(
        long,
        env = "RESNET18_DEVICE",
        value_name = "N[,N]|all",
        default_value = "0"
    )]
    device: Devices,
    #[command(flatten)]
    tensorrt: TensorRtFlags,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EngineArg {
    Auto,
    Tensorrt,
    Openvino,
    Embedded,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum PrecisionArg {
    Auto,
    Fp32,
    Fp16,
    Bf16,
    Int8,
}

impl From<PrecisionArg> for Option<Precision> {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::Auto => None,
            PrecisionArg::Fp32 => Some(Precision::Fp32),
            PrecisionArg::Fp16 => Some(Precision::Fp16),
            PrecisionArg::Bf16 => Some(Precision::Bf16),
            PrecisionArg::Int8 => Some(Precision::Int8),
        }
    }
}

/// The numbers of GPUs; `None` = all.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Devices(Option<Vec<usize>>);

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self(None));
        }
        let numbers: Result<Vec<usize>, _> = text
            .split(',')
            .map(|number| number.trim().parse())
            .collect();
        let numbers =
            numbers.map_err(|_| "expected the numbers of GPUs such as 0 or 0,1, or all")?;
        match (1..numbers.len()).any(|i| numbers[..i].contains(&numbers[i])) {
            true => Err("names a GPU twice".into()),
            false => Ok(Self(Some(numbers))),
        }
    }
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
            None => available_parallelism().map_err(|error| {
                CliError::Usage(format!(
                    "the CPUs can't be counted ({error}); set --threads"
                ))
            })?,
        };
        Ok(EngineConfig {
            kind: match self.engine {
                EngineArg::Auto => None,
                EngineArg::Tensorrt => Some(EngineKind::TensorRt),
                EngineArg::Openvino => Some(EngineKind::OpenVino),
                EngineArg::Embedded => Some(EngineKind::Embedded),
            },
            precision: self.precision.into(),
            openvino_lib: self.openvino_lib.clone(),
            threads,
            max_batch: self.max_batch,
            tensorrt: self.tensorrt.config(self.device.0.clone()),
            ..EngineConfig::new(threads)
        })
    }
}

/// A number from 1 to `MAX`.
pub(super) fn at_most<const MAX: usize>(text: &str) -> Result<NonZeroUsize, String> {
    let number = text
        .parse()
        .ok()
        .filter(|number: &NonZeroUsize| number.get() <= MAX);
    number.ok_or_else(|| format!("expected a whole number from 1 to {MAX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_named_by_number() {
        assert_eq!("all".parse(), Ok(Devices(None)));
        assert_eq!("0, 2".parse(), Ok(Devices(Some(vec![0, 2]))));
        for wrong in ["", "GPU0", "-1", "0,0", "0,"] {
            assert!(wrong.parse::<Devices>().is_err(), "{wrong}");
        }
    }
}
