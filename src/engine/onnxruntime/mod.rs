//! ONNX Runtime on the CPU, from a shared library that is found at run time. It takes what the other
//! engines can't run, and is a third opinion where they disagree.

#[cfg(test)]
pub(super) mod conformance;
mod library;
mod limits;

use std::path::PathBuf;

use ort::{environment::Environment, logging::LogLevel, session::Session, value::TensorRef};

use super::{
    Engine, EngineConfig, EngineError, EngineInfo, EngineKind, Lanes, Precision, Results, cpu_name,
};
use crate::model::{Batch, BodyPrecision, EMBEDDING, LOGITS, Model};

const KIND: EngineKind = EngineKind::OnnxRuntime;

/// The most narrow lanes. Each has its own copy of the weights; with more threads than that, a lane
/// has several.
const MOST_LANES: usize = 4;

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

/// The path of the library that [`load`] uses, with its size and time, which differ from version to
/// version; empty if there is none.
pub(super) fn library_stamp(config: &EngineConfig) -> String {
    library::stamp(config.onnxruntime.library.as_deref())
}

/// Loads the library and `model`, without running it.
///
/// # Errors
/// If there is no usable library, or ONNX Runtime does not support the model or the precision.
pub(super) fn load(config: &EngineConfig, model: &Model) -> Result<Lanes, EngineError> {
    let environment = library::load(config.onnxruntime.library.as_deref())?;
    if let Some(reason) = model.graph.beyond(limits::LIMITS) {
        return Err(KIND.unsupported(reason));
    }
    let precision = Precision::choose(model, config.precision, Precision::Fp32, KIND)?;
    if matches!(precision, Precision::Fp16 | Precision::Bf16) {
        return Err(EngineError::Unavailable {
            kind: KIND,
            reason: format!("on a CPU it does not compute in {precision}"),
            advice: "use --precision fp32 or auto, or --engine openvino".into(),
        });
    }

    let max_batch = match model.graph.batch {
        Batch::Fixed(n) => n,
        Batch::Any => config.max_batch.map_or(1, |n| n.get()),
    };
    let batch = match model.graph.batch {
        Batch::Fixed(n) => Some(n),
        Batch::Any => None,
    };
    let serving = model
        .graph
        .to_serve(batch, BodyPrecision::Fp32)
        .map_err(|error| KIND.unsupported(error))?;

    let shape = [
        model.geometry.height as usize,
        model.geometry.width as usize,
        3,
    ];
    let lane = |threads: usize| -> Result<Box<dyn Engine>, EngineError> {
        let session = session(environment, &serving.onnx, threads)
            .map_err(|error| KIND.unsupported(error))?;
        Ok(Box::new(OnnxRuntime { session, shape }))
    };
    let threads = config.threads.get();
    let lanes = threads.min(MOST_LANES);
    Ok(Lanes {
        info: EngineInfo {
            kind: KIND,
            version: library::version(),
            precision,
            device: cpu_name(),
            max_batch,
            fixed_batch: batch.is_some(),
            offloaded: false,
            embedding: serving.embedding,
            warnings: Vec::new(),
        },
        narrow: (0..lanes)
            .map(|_| lane(threads / lanes))
            .collect::<Result<_, _>>()?,
        wide: (threads > 1).then(|| lane(threads)).transpose()?,
        plans: Vec::new(),
    })
}

/// A session that computes on this many threads, of which the calling one is the first.
fn session(environment: &Environment, onnx: &[u8], threads: usize) -> Result<Session, ort::Error> {
    let mut builder = Session::builder(environment)?
        .with_intra_threads(threads)?
        .with_inter_threads(1)?
        // Threads that spin while they wait take the cores from those that decode.
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_log_level(LogLevel::Error)?;
    builder.commit_from_memory(onnx)
}

struct OnnxRuntime {
    session: Session,
    /// Height, width, channels.
    shape: [usize; 3],
}

impl Engine for OnnxRuntime {
    fn infer(&mut self, images: &[u8], n: usize, logits: &mut [f32]) -> Result<(), EngineError> {
        self.run(images, n, [(LOGITS, logits)])
    }

    fn infer_with_embeddings(
        &mut self,
        images: &[u8],
        n: usize,
        results: Results<'_>,
    ) -> Result<(), EngineError> {
        let Results { logits, embeddings } = results;
        self.run(images, n, [(LOGITS, logits), (EMBEDDING, embeddings)])
    }
}

impl OnnxRuntime {
    /// Computes all outputs, and copies those that are wanted.
    fn run<const N: usize>(
        &mut self,
        images: &[u8],
        n: usize,
        wanted: [(&str, &mut [f32]); N],
    ) -> Result<(), EngineError> {
        let [height, width, channels] = self.shape;
        let input = TensorRef::from_array_view(([n, height, width, channels], images))
            .map_err(|error| KIND.failed(error))?;
        let outputs = self
            .session
            .run(ort::inputs![input])
            .map_err(|error| KIND.failed(error))?;
        for (name, target) in wanted {
            let (_, values) = outputs[name]
                .try_extract_tensor::<f32>()
                .map_err(|error| KIND.failed(error))?;
            KIND.copy_logits(values, target)?;
        }
        Ok(())
    }
}
