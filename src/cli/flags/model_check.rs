//! Flags of `serve` and `check` for trying a model in a process of its own.

use std::{env, ffi::OsString, path::PathBuf, time::Duration};

use clap::Args;

use super::{ManifestFlags, engine_arguments};
use crate::{
    cli::values,
    engine::{self, EngineConfig},
    memory_limit::memory_limit,
    registry::check::{CheckConfig, CheckLimits, Passed},
};

/// The running program, even after its file was replaced.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// What a ResNet18 takes with OpenVINO, in bytes.
const LEAST_DEFAULT_MEMORY: u64 = 384 << 20;
/// Enough for any network that this server is meant for, in bytes.
const MOST_DEFAULT_MEMORY: u64 = 4096 << 20;

/// The limits of trying a model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelCheckFlags {
    /// Maximum memory for trying a model in a process of its own, in MiB. A model that takes more
    /// is not served [default: half of the memory that the process may use, by its container or the
    /// machine, from 384 to 4096].
    #[arg(long, env = "RESNET18_MODEL_MEMORY", value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    model_memory: Option<u64>,
    /// Maximum time for trying a model. One that takes longer is not served.
    #[arg(long, env = "RESNET18_MODEL_TIMEOUT", value_name = "DURATION", default_value = "120s",
          value_parser = values::positive_duration)]
    model_timeout: Duration,
}

impl ModelCheckFlags {
    pub fn limits(&self) -> CheckLimits {
        CheckLimits {
            memory: self.memory(),
            timeout: self.model_timeout,
        }
    }

    /// In bytes. What a child takes counts towards the limit of the server's container, so without a
    /// flag it may not be more than the server can spare.
    fn memory(&self) -> u64 {
        match self.model_memory {
            Some(mib) => mib << 20,
            None => (memory_limit() / 2).clamp(LEAST_DEFAULT_MEMORY, MOST_DEFAULT_MEMORY),
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
            "--model-memory".into(),
            (self.memory() >> 20).to_string().into(),
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
    match engine.cache() {
        Ok(cache) => Passed::in_cache(cache, identity),
        Err(_) => Passed::in_memory(identity),
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
