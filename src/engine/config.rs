//! Which engine runs a model, in which arithmetic, and with which settings.

use std::{fmt, num::NonZeroUsize};

use serde::{Deserialize, Serialize};

use super::{
    EngineError, Findings, OnnxRuntimeConfig, OpenVinoConfig, Tuning, tensorrt::TensorRtConfig,
};
use crate::{cache::ArtifactCache, model::Model};

/// Which engine to start and how.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// `None` tries TensorRT if it is compiled in, then CUDA if ONNX Runtime is there with it, then
    /// OpenVINO, then ONNX Runtime on the CPU if it is there, then the embedded engine.
    pub kind: Option<EngineKind>,
    /// `None` means int8 for a quantized model, else the fastest float type that the processor
    /// computes natively.
    pub precision: Option<Precision>,
    /// CPU threads in total.
    pub threads: NonZeroUsize,
    /// Largest batch of one call; `None` leaves it to the engine.
    pub max_batch: Option<NonZeroUsize>,
    pub openvino: OpenVinoConfig,
    pub onnxruntime: OnnxRuntimeConfig,
    pub tensorrt: TensorRtConfig,
    /// What earlier starts have found out about models; `None` finds all of it out again.
    pub findings: Option<Findings>,
}

impl EngineConfig {
    /// The best engine that starts, with its own choice of precision and batch size.
    pub fn new(threads: NonZeroUsize) -> Self {
        Self {
            kind: None,
            precision: None,
            threads,
            max_batch: None,
            openvino: OpenVinoConfig::default(),
            onnxruntime: OnnxRuntimeConfig::default(),
            tensorrt: TensorRtConfig::default(),
            findings: None,
        }
    }

    /// The same for a model that is loaded while others are served: nothing is measured, which would
    /// disturb them and be disturbed, and nothing is added to what is kept.
    pub fn while_serving(&self) -> Self {
        let mut config = self.clone();
        if config.openvino.tuning == Tuning::Measured {
            config.openvino.tuning = Tuning::Kept;
        }
        config.findings = config.findings.as_ref().map(Findings::read_only);
        config
    }

    /// The folder for what takes long to make and can be made again, which is that of the plans of
    /// TensorRT.
    ///
    /// # Errors
    /// Why there is none.
    pub fn cache(&self) -> Result<ArtifactCache, String> {
        let folder = self.tensorrt.cache.clone();
        let folder = folder
            .or_else(ArtifactCache::default_folder)
            .ok_or("there is no home folder (HOME is not set)")?;
        ArtifactCache::open(&folder, self.tensorrt.cache_limit).map_err(|error| error.to_string())
    }
}

/// The implementations of [`Engine`](super::Engine).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum EngineKind {
    /// TensorRT on NVIDIA GPUs, from a shared library.
    TensorRt,
    /// ONNX Runtime by CUDA on NVIDIA GPUs, from a shared library.
    Cuda,
    /// ONNX Runtime by CoreML on Macs, from a shared library.
    CoreMl,
    /// OpenVINO on the CPU, from a shared library.
    OpenVino,
    /// ONNX Runtime on the CPU, from a shared library.
    OnnxRuntime,
    /// `rten` on the CPU: pure Rust, compiled into the program.
    Embedded,
}

impl EngineKind {
    pub(super) fn unsupported(self, reason: impl ToString) -> EngineError {
        EngineError::UnsupportedModel {
            kind: self,
            reason: reason.to_string(),
        }
    }

    pub(crate) fn failed(self, reason: impl ToString) -> EngineError {
        EngineError::Inference {
            kind: self,
            reason: reason.to_string(),
        }
    }

    /// Copies an engine's output to `logits`, or embeddings.
    ///
    /// # Errors
    /// If their lengths differ.
    pub(super) fn copy_logits(self, values: &[f32], logits: &mut [f32]) -> Result<(), EngineError> {
        if values.len() != logits.len() {
            return Err(self.failed(format!(
                "the output has {} values instead of {}",
                values.len(),
                logits.len()
            )));
        }
        logits.copy_from_slice(values);
        Ok(())
    }

    /// The name that flags, metrics and `ListModels` use.
    pub fn name(self) -> &'static str {
        match self {
            Self::TensorRt => "tensorrt",
            Self::Cuda => "cuda",
            Self::CoreMl => "coreml",
            Self::OpenVino => "openvino",
            Self::OnnxRuntime => "onnxruntime",
            Self::Embedded => "embedded",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Arithmetic of a network's body. Input (uint8) and logits (float32) are the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    Fp32,
    Fp16,
    Bf16,
    Int8,
}

impl Precision {
    /// The precision for `model` on an engine of this `kind`: the `requested` one, else
    /// `fastest_float`. A quantized model runs in int8 on every engine.
    ///
    /// # Errors
    /// If a quantized model is requested in float, or a float model in int8.
    pub(super) fn choose(
        model: &Model,
        requested: Option<Self>,
        fastest_float: Self,
        kind: EngineKind,
    ) -> Result<Self, EngineError> {
        match (model.graph.quantized, requested) {
            (true, None | Some(Self::Int8)) => Ok(Self::Int8),
            (true, Some(other)) => Err(kind.unsupported(format!(
                "it is quantized to int8 and can't run in {other}; leave --precision out, or give \
                 the float model that it was made from"
            ))),
            (false, Some(Self::Int8)) => Err(EngineError::NotQuantized),
            (false, requested) => Ok(requested.unwrap_or(fastest_float)),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}
