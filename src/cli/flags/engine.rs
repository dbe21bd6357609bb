//! Flags that choose and configure the inference engine.

use std::{
    ffi::OsString, num::NonZeroUsize, path::PathBuf, str::FromStr, thread::available_parallelism,
};

use clap::Args;

use super::TensorRtFlags;
use crate::{
    cli::{
        CliError,
        values::{OrNone, at_most, or_none},
    },
    engine::{
        EngineConfig, EngineKind, Findings, OnnxRuntimeConfig, OpenVinoConfig, Precision, Tuning,
    },
};

/// How an engine computes: what its plan depends on, so that `build` has these flags too.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
pub struct ComputeFlags {
    /// The precision of the arithmetic; auto = int8 for a quantized model, else the fastest
    /// floating-point format of the device.
    #[arg(long, env = "RESNET18_PRECISION", default_value = "auto",
          value_parser = or_none::<Precision>("auto"))]
    pub precision: OrNone<Precision>,
    /// Maximum number of images per engine call [default: 32 on a GPU; on a CPU as --tune says when
    /// serving with OpenVINO, else 1].
    #[arg(long, env = "RESNET18_MAX_BATCH", value_name = "N", value_parser = at_most::<64>)]
    pub max_batch: Option<NonZeroUsize>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineFlags {
    /// The engine that runs the network; auto = the fastest one that starts.
    #[arg(long, env = "RESNET18_ENGINE", default_value = "auto",
          value_parser = or_none::<EngineKind>("auto"))]
    engine: OrNone<EngineKind>,
    #[command(flatten)]
    compute: ComputeFlags,
    /// The OpenVINO C library or its folder [default: the one that `make` fetched, else an
    /// installed one].
    #[arg(long, env = "RESNET18_OPENVINO_LIB", value_name = "PATH")]
    openvino_lib: Option<PathBuf>,
    /// The ONNX Runtime library or its folder [default: the one that `make onnxruntime` fetched,
    /// else an installed one].
    #[arg(long, env = "RESNET18_ONNXRUNTIME_LIB", value_name = "PATH")]
    onnxruntime_lib: Option<PathBuf>,
    /// Number of CPU threads for decoding and inference [default: the CPUs available to this
    /// process].
    #[arg(long, env = "RESNET18_THREADS", value_name = "N", value_parser = at_most::<1024>)]
    threads: Option<NonZeroUsize>,
    /// The GPUs to use: their indices, or all. Each GPU runs its own engine; all take work from the
    /// same queue.
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

/// The flags of an engine that only a server has.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
pub struct TuneFlags {
    /// Whether OpenVINO's --precision and --max-batch are measured where they are not given; auto = at
    /// the first start with a model, in some seconds, and kept for the next ones; off = the usual ones.
    #[arg(
        long,
        env = "RESNET18_TUNE",
        value_name = "WHEN",
        value_enum,
        default_value_t
    )]
    tune: Tune,
}

/// The value of --tune.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Tune {
    #[default]
    Auto,
    Off,
}

impl TuneFlags {
    /// The configuration of an engine, for a server.
    pub fn apply(&self, mut engine: EngineConfig) -> EngineConfig {
        engine.openvino.batch = OpenVinoConfig::SERVING_BATCH;
        engine.openvino.tuning = match self.tune {
            Tune::Auto => Tuning::Measured,
            Tune::Off => Tuning::Off,
        };
        engine.findings = engine.cache().ok().map(Findings::new);
        engine
    }
}

/// Indices of GPUs; `None` means all.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Devices(Option<Vec<usize>>);

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self(None));
        }
        let indices: Result<Vec<usize>, _> =
            text.split(',').map(|index| index.trim().parse()).collect();
        let indices =
            indices.map_err(|_| "expected the indices of GPUs, such as 0 or 0,1, or all")?;
        if (1..indices.len()).any(|i| indices[..i].contains(&indices[i])) {
            return Err("names a GPU twice".into());
        }
        Ok(Self(Some(indices)))
    }
}

/// The flags of an engine as arguments, for the same program in another process, without those that
/// concern only GPUs. The folder of the cache has what OpenVINO was measured with.
pub fn arguments(config: &EngineConfig) -> Vec<OsString> {
    let named = |name: Option<String>| name.unwrap_or_else(|| "auto".into());
    let mut arguments: Vec<OsString> = [
        "--engine".to_owned(),
        named(config.kind.map(|kind| kind.to_string())),
        "--precision".to_owned(),
        named(config.precision.map(|precision| precision.to_string())),
        "--threads".to_owned(),
        config.threads.to_string(),
    ]
    .map(OsString::from)
    .into();
    if let Some(max_batch) = config.max_batch {
        arguments.extend(["--max-batch".into(), max_batch.to_string().into()]);
    }
    if let Some(folder) = &config.tensorrt.cache {
        arguments.extend(["--engine-cache".into(), folder.into()]);
    }
    if let Some(library) = &config.openvino.library {
        arguments.extend(["--openvino-lib".into(), library.into()]);
    }
    if let Some(library) = &config.onnxruntime.library {
        arguments.extend(["--onnxruntime-lib".into(), library.into()]);
    }
    arguments
}

impl EngineFlags {
    /// The configuration that these flags describe.
    ///
    /// # Errors
    /// If the number of CPUs cannot be determined.
    pub fn config(&self) -> Result<EngineConfig, CliError> {
        let threads = match self.threads {
            Some(threads) => threads,
            // Respects the CPU limit of a container.
            None => available_parallelism().map_err(|error| {
                CliError::Usage(format!(
                    "cannot determine the number of CPUs ({error}); set --threads"
                ))
            })?,
        };
        let mut config = EngineConfig {
            kind: self.engine,
            precision: self.compute.precision,
            threads,
            max_batch: self.compute.max_batch,
            openvino: OpenVinoConfig {
                library: self.openvino_lib.clone(),
                // As a server has measured it, so that its answers are the same.
                tuning: Tuning::Kept,
                ..OpenVinoConfig::default()
            },
            onnxruntime: OnnxRuntimeConfig {
                library: self.onnxruntime_lib.clone(),
            },
            tensorrt: self.tensorrt.config(self.device.0.clone()),
            findings: None,
        };
        let findings = config.cache().ok().map(Findings::new);
        config.findings = findings.as_ref().map(Findings::read_only);
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_named_by_index() {
        assert_eq!("all".parse(), Ok(Devices(None)));
        assert_eq!("0, 2".parse(), Ok(Devices(Some(vec![0, 2]))));
        for wrong in ["", "GPU0", "-1", "0,0", "0,"] {
            assert!(wrong.parse::<Devices>().is_err(), "{wrong}");
        }
    }
}
