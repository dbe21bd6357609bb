//! Flags of `serve` and `check` for trying a model in a process of its own.

use std::{env, ffi::OsString, path::PathBuf, time::Duration};

use clap::Args;

use super::{ManifestFlags, engine_arguments};
use crate::{
    cache::ArtifactCache,
    cli::values,
    engine::{self, EngineConfig},
    registry::check::{CheckConfig, CheckLimits, Passed},
};

/// The running program, even after its file was replaced.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// The limits of trying a model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelCheckFlags {
    /// Maximum memory for trying a model in a process of its own, in MiB. A model that takes more
    /// is not served.
    #[arg(long, env = "RESNET18_MODEL_MEMORY", value_name = "MIB", default_value = "4096",
          value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    model_memory: u64,
    /// Maximum time for it. A model that takes longer is not served.
    #[arg(long, env = "RESNET18_MODEL_TIMEOUT", value_name = "DURATION", default_value = "120s",
          value_parser = values::positive_duration)]
    model_timeout: Duration,
}

impl ModelCheckFlags {
    pub fn limits(&self) -> CheckLimits {
        CheckLimits {
            memory: self.model_memory << 20,
            timeout: self.model_timeout,
        }
    }

    /// How models are tried that this `engine` is to run, but for those that have `passed`; `None`
    /// where this program can't be started again.
    pub fn config(
        &self,
        engine: &EngineConfig,
        manifest: &ManifestFlags,
        passed: Passed,
    ) -> Option<CheckConfig> {
        let mut arguments: Vec<OsString> = vec![
            "check".into(),
            "--here".into(),
            "--model-memory".into(),
            self.model_memory.to_string().into(),
            "--model-timeout".into(),
            format!("{}ms", self.model_timeout.as_millis().max(1)).into(),
        ];
        arguments.extend(engine_arguments(engine));
        arguments.extend(manifest.arguments());
        Some(CheckConfig {
            program: own_program()?,
            arguments,
            limits: self.limits(),
            passed,
        })
    }
}

/// What has passed on this `engine` before, which is kept beside the plans of TensorRT.
pub fn passed_on(engine: &EngineConfig) -> Passed {
    let identity = engine::identity(engine);
    let folder = engine.tensorrt.cache.clone();
    let cache = folder
        .or_else(ArtifactCache::default_folder)
        .and_then(|folder| ArtifactCache::open(&folder, engine.tensorrt.cache_limit).ok());
    match cache {
        Some(cache) => Passed::in_cache(cache, identity),
        None => Passed::in_memory(identity),
    }
}

/// This program, for starting it again.
pub fn own_program() -> Option<PathBuf> {
    let link = PathBuf::from(OWN_PROGRAM);
    if link.exists() {
        return Some(link);
    }
    env::current_exe().ok()
}
