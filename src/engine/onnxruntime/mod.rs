//! ONNX Runtime, from a shared library that is found at run time. On the CPU it takes what the other
//! engines can't run, and is a third opinion where they disagree; on NVIDIA's GPUs and on Macs it
//! computes by CUDA and CoreML.

#[cfg(test)]
pub(super) mod conformance;
mod library;
mod limits;
mod nvidia;
mod provider;
mod session;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use self::{
    provider::Provider,
    session::{OnnxRuntime, SessionConfig},
};
use super::{
    Engine, EngineConfig, EngineError, EngineInfo, EngineKind, Lanes, Precision, batch_sizes,
};
use crate::model::{Batch, BodyPrecision, Model, Serving};

/// The most narrow lanes on a CPU. Each has its own copy of the weights; with more threads than that,
/// a lane has several.
const MOST_LANES: usize = 4;

/// The lanes for each GPU: one computes while the batch of the other is copied and answered.
const LANES_PER_DEVICE: usize = 2;

/// The largest batch on a GPU unless another one is given.
const MAX_BATCH_ON_GPU: usize = 32;

/// Settings of the ONNX Runtime engine.
#[derive(Clone, Debug, Default)]
pub struct OnnxRuntimeConfig {
    /// The library `libonnxruntime`, or its folder; `None` looks for a fetched or an installed one.
    pub library: Option<PathBuf>,
}

/// Whether there is a library to try.
pub(super) fn is_installed(config: &EngineConfig) -> bool {
    library::find(config.onnxruntime.library.as_deref()).is_ok()
}

/// Whether CUDA is worth trying: the library brings its provider, and there is a driver.
pub(super) fn cuda_is_likely(config: &EngineConfig) -> bool {
    provider::cuda_is_likely(config)
}

/// The path of the library that [`load`] uses, with its size and time, which differ from version to
/// version; empty if there is none.
pub(super) fn library_stamp(config: &EngineConfig) -> String {
    library::stamp(config.onnxruntime.library.as_deref())
}

/// Loads the library and `model`, without running it. `kind` says where it computes: on the CPU, by
/// CUDA, or by CoreML.
///
/// # Errors
/// If there is no usable library or device, or ONNX Runtime does not support the model or the
/// precision.
pub(super) fn load(
    kind: EngineKind,
    config: &EngineConfig,
    model: &Model,
) -> Result<Lanes, EngineError> {
    library::load(kind, config.onnxruntime.library.as_deref())?;
    if let Some(reason) = model.graph.beyond(limits::LIMITS) {
        return Err(kind.unsupported(reason));
    }
    let precision = precision(kind, config, model)?;
    load_on(&provider::devices(kind, config)?, precision, config, model)
}

/// The precision in which `kind` computes the model.
fn precision(
    kind: EngineKind,
    config: &EngineConfig,
    model: &Model,
) -> Result<Precision, EngineError> {
    let on_cpu = kind == EngineKind::OnnxRuntime;
    let fastest = if on_cpu {
        Precision::Fp32
    } else {
        Precision::Fp16
    };
    let precision = Precision::choose(model, config.precision, fastest, kind)?;
    match (on_cpu, precision) {
        (true, Precision::Fp16 | Precision::Bf16) => Err(EngineError::Unavailable {
            kind,
            reason: format!("on a CPU it does not compute in {precision}"),
            advice: "use --precision fp32 or auto, or --engine openvino".into(),
        }),
        (false, Precision::Bf16) => Err(EngineError::Unavailable {
            kind,
            reason: format!("it does not compute in {precision}"),
            advice: "use --precision fp16, fp32 or auto".into(),
        }),
        _ => Ok(precision),
    }
}

/// Loads `model` on each of the `providers`, which are of one kind. The library has been loaded.
fn load_on(
    providers: &[Provider],
    precision: Precision,
    config: &EngineConfig,
    model: &Model,
) -> Result<Lanes, EngineError> {
    let kind = providers[0].kind();
    let environment = library::load(kind, config.onnxruntime.library.as_deref())?;
    let offloaded = kind != EngineKind::OnnxRuntime;

    let max_batch = match (model.graph.batch, kind) {
        (Batch::Fixed(n), _) => n,
        // CoreML compiles a network for one size.
        (Batch::Any, EngineKind::CoreMl) => 1,
        (Batch::Any, EngineKind::Cuda) => config
            .max_batch
            .map_or(MAX_BATCH_ON_GPU, |batch| batch.get()),
        (Batch::Any, _) => config.max_batch.map_or(1, |batch| batch.get()),
    };
    let batch = match model.graph.batch {
        Batch::Fixed(n) => Some(n),
        Batch::Any => (kind == EngineKind::CoreMl).then_some(1),
    };
    let body = match precision {
        Precision::Fp16 => BodyPrecision::Fp16,
        _ => BodyPrecision::Fp32,
    };
    let Serving { onnx, embedding } = model
        .graph
        .to_serve(batch, body)
        .map_err(|error| kind.unsupported(error))?;
    // cuDNN looks for the fastest algorithm for each size.
    let sizes = match kind {
        EngineKind::Cuda => batch_sizes(max_batch, batch.is_some()),
        _ => Vec::new(),
    };

    let shape = [
        model.geometry.height as usize,
        model.geometry.width as usize,
        3,
    ];
    let lane = |provider: Provider, threads: usize| -> Result<Box<dyn Engine>, EngineError> {
        let config = SessionConfig {
            provider,
            precision,
            threads,
        };
        Ok(Box::new(OnnxRuntime {
            session: session::session(environment, &onnx, config)?,
            provider,
            shape,
            sizes: sizes.clone(),
            padded: Vec::new(),
        }))
    };

    let threads = config.threads.get();
    let mut wide = None;
    let narrow: Vec<_> = if offloaded {
        let lanes = providers
            .iter()
            .flat_map(|provider| [*provider; LANES_PER_DEVICE]);
        lanes
            .map(|provider| lane(provider, 1))
            .collect::<Result<_, _>>()?
    } else {
        let lanes = threads.min(MOST_LANES);
        wide = (threads > 1)
            .then(|| lane(Provider::Cpu, threads))
            .transpose()?;
        (0..lanes)
            .map(|_| lane(Provider::Cpu, threads / lanes))
            .collect::<Result<_, _>>()?
    };

    Ok(Lanes {
        info: EngineInfo {
            kind,
            version: library::version(),
            precision,
            device: provider::device_name(providers),
            max_batch,
            fixed_batch: batch.is_some(),
            batch_sizes: sizes,
            offloaded,
            embedding,
            warnings: Vec::new(),
        },
        narrow,
        wide,
        plans: Vec::new(),
    })
}
