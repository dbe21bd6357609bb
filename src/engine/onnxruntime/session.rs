//! One lane of ONNX Runtime: a session, and batches padded to the sizes that it computes.

use ort::{environment::Environment, logging::LogLevel, session::Session, value::TensorRef};

use super::{nvidia, provider::Provider};
use crate::{
    engine::{Engine, EngineError, Precision, Results},
    model::{EMBEDDING, LOGITS},
};

/// How a session is made.
#[derive(Clone, Copy)]
pub(super) struct SessionConfig {
    pub(super) provider: Provider,
    pub(super) precision: Precision,
    /// How many threads of the CPU compute, of which the calling one is the first.
    pub(super) threads: usize,
}

/// A session for this ONNX file.
///
/// # Errors
/// If the provider can't be used, or ONNX Runtime does not support the model.
pub(super) fn session(
    environment: &Environment,
    onnx: &[u8],
    config: SessionConfig,
) -> Result<Session, EngineError> {
    let builder = || -> Result<_, ort::Error> {
        Ok(Session::builder(environment)?
            .with_intra_threads(config.threads)?
            .with_inter_threads(1)?
            // Threads that spin while they wait take the cores from those that decode.
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            .with_log_level(LogLevel::Error)?)
    };
    let unsupported = |error: ort::Error| config.provider.kind().unsupported(error);
    let mut builder = config
        .provider
        .add_to(builder().map_err(unsupported)?, config.precision)?;
    builder.commit_from_memory(onnx).map_err(|error| {
        let reason = error.to_string();
        // The driver and the card are first used here.
        if reason.contains("CUDA failure") || reason.contains("CUDNN failure") {
            config.provider.unusable(&reason)
        } else {
            unsupported(error)
        }
    })
}

/// A session, and what it takes.
pub(super) struct OnnxRuntime {
    pub(super) session: Session,
    pub(super) provider: Provider,
    /// Height, width, channels.
    pub(super) shape: [usize; 3],
    /// The batch sizes that are computed, in ascending order; others are padded to the next one.
    /// Empty if every size is computed as it is.
    pub(super) sizes: Vec<usize>,
    /// A batch with padding.
    pub(super) padded: Vec<u8>,
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
        let provider = self.provider;
        let failed = |error: ort::Error| failure(provider, &error.to_string());

        let [height, width, channels] = self.shape;
        let size = self.sizes.iter().copied().find(|size| *size >= n);
        let size = size.unwrap_or(n);
        let batch = if size == n {
            images
        } else {
            self.padded.clear();
            self.padded.extend_from_slice(images);
            self.padded.resize(size * height * width * channels, 0);
            &self.padded
        };
        let input =
            TensorRef::from_array_view(([size, height, width, channels], batch)).map_err(failed)?;
        let outputs = self.session.run(ort::inputs![input]).map_err(failed)?;
        for (name, target) in wanted {
            let (_, values) = outputs[name].try_extract_tensor::<f32>().map_err(failed)?;
            let without_padding = &values[..values.len() / size * n];
            provider.kind().copy_logits(without_padding, target)?;
        }
        Ok(())
    }
}

/// A call that failed for this `reason`.
fn failure(provider: Provider, reason: &str) -> EngineError {
    let kind = provider.kind();
    if !matches!(provider, Provider::Cuda(_)) {
        return kind.failed(reason);
    }
    if nvidia::is_out_of_memory(reason) {
        return kind.failed(format!(
            "the GPU has too little memory ({reason}); give a smaller --max-batch, or end what \
             else uses the GPU"
        ));
    }
    if nvidia::is_sticky(reason) {
        return EngineError::Lost {
            kind,
            reason: reason.to_owned(),
        };
    }
    kind.failed(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_of_the_card_ends_its_lane_and_full_memory_does_not() {
        let fault = "CUDA failure 700: an illegal memory access was encountered ; GPU=0";
        let full = "CUDA failure 2: out of memory ; GPU=0";
        let error = failure(Provider::Cuda(0), fault);
        assert!(matches!(error, EngineError::Lost { .. }), "{error}");
        let error = failure(Provider::Cuda(0), full);
        assert!(matches!(error, EngineError::Inference { .. }), "{error}");
        assert!(error.to_string().contains("--max-batch"), "{error}");
        let error = failure(Provider::Cpu, fault);
        assert!(matches!(error, EngineError::Inference { .. }), "{error}");
    }
}
