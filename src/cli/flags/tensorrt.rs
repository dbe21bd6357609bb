//! How TensorRT builds: flags → a [`TensorRtConfig`], the same for `serve` and `build`, so that
//! they find the same plans.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;

use super::engine::{PrecisionArg, at_most};
use crate::engine::{Precision, tensorrt::TensorRtConfig};

/// The flags of TensorRT that a plan depends on, and where plans are kept.
#[derive(Debug, Args)]
#[command(next_help_heading = "TensorRT")]
pub struct TensorRtFlags {
    /// The TensorRT library or its folder [default: the one that make fetched, else an installed
    /// one].
    #[arg(long, env = "RESNET18_TENSORRT_LIB", value_name = "PATH")]
    tensorrt_lib: Option<PathBuf>,
    /// Where engines are kept for the next start [default: resnet18 in the user's cache folder].
    #[arg(long, env = "RESNET18_ENGINE_CACHE", value_name = "DIR")]
    engine_cache: Option<PathBuf>,
    /// The most that this folder may hold, in MiB; what was not used for longest is removed.
    #[arg(long, env = "RESNET18_ENGINE_CACHE_MIB", value_name = "MIB", default_value = "4096",
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    engine_cache_mib: u64,
    /// The batch that the engine is made fastest for [default: 8, or --max-batch where that is
    /// less].
    #[arg(long, env = "RESNET18_USUAL_BATCH", value_name = "N", value_parser = at_most::<64>)]
    usual_batch: Option<NonZeroUsize>,
    /// The most memory that a layer may use as scratch, in MiB.
    #[arg(long, env = "RESNET18_WORKSPACE_MIB", value_name = "MIB", default_value = "1024",
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    workspace_mib: u64,
    /// How hard fast kernels are searched for, from 0 to 5.
    #[arg(long, env = "RESNET18_BUILDER_LEVEL", value_name = "LEVEL", default_value = "3",
          value_parser = clap::value_parser!(u8).range(0..=5))]
    builder_level: u8,
}

impl TensorRtFlags {
    /// What was asked for, on the GPUs of these numbers (`None` = all).
    pub fn config(&self, devices: Option<Vec<usize>>) -> TensorRtConfig {
        TensorRtConfig {
            library: self.tensorrt_lib.clone(),
            cache: self.engine_cache.clone(),
            cache_limit: self.engine_cache_mib << 20,
            devices,
            usual_batch: self.usual_batch,
            workspace: self.workspace_mib << 20,
            optimization_level: self.builder_level,
        }
    }
}

/// The two flags of [`super::EngineFlags`] that a plan depends on too.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
pub struct PlanFlags {
    /// The arithmetic; auto = int8 for a quantised model, else fp16.
    #[arg(long, env = "RESNET18_PRECISION", value_enum, default_value = "auto")]
    precision: PrecisionArg,
    /// The most images in one call of the engine [default: 32].
    #[arg(long, env = "RESNET18_MAX_BATCH", value_name = "N", value_parser = at_most::<64>)]
    pub max_batch: Option<NonZeroUsize>,
}

impl PlanFlags {
    /// The arithmetic, if one was asked for.
    pub fn precision(&self) -> Option<Precision> {
        self.precision.into()
    }
}
