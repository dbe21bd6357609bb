//! Flags for TensorRT, shared by `serve` and `build` so that both use the same cached engines.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;

use crate::{cli::values::at_most, engine::tensorrt::TensorRtConfig};

/// Flags for building and caching TensorRT engines.
#[derive(Debug, Args)]
#[command(next_help_heading = "TensorRT")]
pub struct TensorRtFlags {
    /// The TensorRT library or its folder [default: the one that `make` fetched, else an installed
    /// one].
    #[arg(long, env = "RESNET18_TENSORRT_LIB", value_name = "PATH")]
    tensorrt_lib: Option<PathBuf>,
    /// The folder for what later starts reuse: TensorRT's plans, quantized models, the measurements
    /// of --tune, and which models have passed their check [default: resnet18 in the user's cache
    /// folder].
    #[arg(long, env = "RESNET18_ENGINE_CACHE", value_name = "DIR")]
    engine_cache: Option<PathBuf>,
    /// Maximum size of the folder of --engine-cache, in MiB; the least recently used files are removed.
    #[arg(long, env = "RESNET18_ENGINE_CACHE_MIB", value_name = "MIB", default_value = "4096",
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    engine_cache_mib: u64,
    /// The batch size to optimize the engine for [default: 8, or --max-batch if that is less].
    #[arg(long, env = "RESNET18_USUAL_BATCH", value_name = "N", value_parser = at_most::<64>)]
    usual_batch: Option<NonZeroUsize>,
    /// Maximum scratch memory per layer, in MiB.
    #[arg(long, env = "RESNET18_WORKSPACE_MIB", value_name = "MIB", default_value = "1024",
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    workspace_mib: u64,
    /// How thoroughly TensorRT searches for fast kernels, from 0 to 5.
    #[arg(long, env = "RESNET18_BUILDER_LEVEL", value_name = "LEVEL", default_value = "3",
          value_parser = clap::value_parser!(u8).range(0..=5))]
    builder_level: u8,
}

impl TensorRtFlags {
    /// The configuration that these flags describe, for the GPUs with these indices; `None` means
    /// all.
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
