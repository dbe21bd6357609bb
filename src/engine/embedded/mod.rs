//! The engine that is always available: `rten`, pure Rust, in fp32, compiled into the program.

#[cfg(test)]
pub(super) mod conformance;
mod limits;

use std::{num::NonZeroUsize, sync::Arc};

use rten::{NodeId, RunOptions, ThreadPool, ValueView};
use rten_tensor::{Layout, Tensor};

use super::{
    Engine, EngineConfig, EngineError, EngineInfo, EngineKind, Lanes, Precision, Results, processor,
};
use crate::model::{Batch, BodyPrecision, EMBEDDING, IMAGES, LOGITS, Model, Serving, ServingGraph};

const KIND: EngineKind = EngineKind::Embedded;
/// The library and its version.
pub(super) const VERSION: &str = "rten 0.27";

/// Loads `model`, without running it.
///
/// # Errors
/// If another precision than fp32 is requested, or `rten` does not support the model.
pub(super) fn load(config: &EngineConfig, model: &Model) -> Result<Lanes, EngineError> {
    if let Some(precision) = config.precision
        && precision != Precision::Fp32
    {
        return Err(EngineError::Unavailable {
            kind: KIND,
            reason: format!("it computes in fp32 only, not in {precision}"),
            advice: "use --precision fp32 or auto".into(),
        });
    }

    let (batch, max_batch) = match model.graph.batch {
        // Larger batches make this engine slower.
        Batch::Any => (None, config.max_batch.map_or(1, NonZeroUsize::get)),
        Batch::Fixed(n) => (Some(n), n),
    };
    if let Some(reason) = model.graph.beyond(limits::LIMITS) {
        return Err(KIND.unsupported(reason));
    }
    let serving = model
        .graph
        .to_serve(batch, BodyPrecision::Fp32)
        .map_err(|error| KIND.unsupported(error))?;
    let embedding = serving.embedding;
    let network = Arc::new(RtenNetwork::load(serving, model)?);

    let threads = config.threads.get();
    let lane = |threads| -> Box<dyn Engine> {
        Box::new(Embedded {
            network: Arc::clone(&network),
            pool: Arc::new(ThreadPool::with_num_threads(threads)),
        })
    };

    Ok(Lanes {
        info: EngineInfo {
            kind: KIND,
            version: VERSION.into(),
            precision: Precision::Fp32,
            device: processor::name(),
            max_batch,
            fixed_batch: batch.is_some(),
            batch_sizes: Vec::new(),
            offloaded: false,
            embedding,
            warnings: Vec::new(),
        },
        wide: (threads > 1).then(|| lane(threads)),
        narrow: (0..threads).map(|_| lane(1)).collect(),
        plans: Vec::new(),
    })
}

/// A network that all lanes share.
struct RtenNetwork {
    model: rten::Model,
    input: NodeId,
    output: NodeId,
    embedding: Option<NodeId>,
    /// Height, width, channels.
    image_shape: [usize; 3],
}

impl RtenNetwork {
    fn load(serving: Serving, model: &Model) -> Result<Self, EngineError> {
        let network = rten::Model::load(serving.onnx).map_err(|error| KIND.unsupported(error))?;
        let has_embedding = serving.embedding.is_some();
        Ok(Self {
            input: node_id(&network, IMAGES)?,
            output: node_id(&network, LOGITS)?,
            embedding: has_embedding
                .then(|| node_id(&network, EMBEDDING))
                .transpose()?,
            model: network,
            image_shape: [
                model.geometry.height as usize,
                model.geometry.width as usize,
                3,
            ],
        })
    }
}

fn node_id(model: &rten::Model, name: &str) -> Result<NodeId, EngineError> {
    model.node_id(name).map_err(|error| KIND.unsupported(error))
}

/// One lane: the network on its own threads.
struct Embedded {
    network: Arc<RtenNetwork>,
    pool: Arc<ThreadPool>,
}

impl Engine for Embedded {
    fn infer(&mut self, images: &[u8], n: usize, logits: &mut [f32]) -> Result<(), EngineError> {
        let [values] = self.run(images, n, [self.network.output])?;
        KIND.copy_logits(&values, logits)
    }

    fn infer_with_embeddings(
        &mut self,
        images: &[u8],
        n: usize,
        results: Results<'_>,
    ) -> Result<(), EngineError> {
        let embedding = self.network.embedding;
        let embedding = embedding.ok_or_else(|| KIND.failed("it gives no embeddings"))?;
        let [logits, embeddings] = self.run(images, n, [self.network.output, embedding])?;
        KIND.copy_logits(&logits, results.logits)?;
        KIND.copy_logits(&embeddings, results.embeddings)
    }
}

impl Embedded {
    /// Computes these outputs, `float32 [n, …]`.
    fn run<const N: usize>(
        &self,
        images: &[u8],
        n: usize,
        outputs: [NodeId; N],
    ) -> Result<[Vec<f32>; N], EngineError> {
        let network = &*self.network;
        let [height, width, channels] = network.image_shape;
        let images = ValueView::from_shape([n, height, width, channels], images)
            .map_err(|error| KIND.failed(error))?;
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(&self.pool)));
        let values = network
            .model
            .run_n(vec![(network.input, images.into())], outputs, Some(options))
            .map_err(|error| KIND.failed(error))?;

        let mut read = [const { Vec::new() }; N];
        for (read, values) in read.iter_mut().zip(values) {
            let ([_, _], values) = values
                .into_shape_vec::<f32, 2>()
                .map_err(|error| KIND.failed(error))?;
            *read = values;
        }
        Ok(read)
    }
}

/// The values of one tensor for one image.
pub struct TensorValues {
    /// The first dimension is 1.
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// A network whose inner tensors can be read, for calibration.
pub struct Probe {
    model: rten::Model,
    input: NodeId,
    /// The logits and then the requested tensors.
    outputs: Vec<NodeId>,
    /// Batch, height, width, channels.
    input_shape: [usize; 4],
}

impl Probe {
    /// Loads the network of `graph`. `tensors` are names of float32 tensors in it.
    ///
    /// # Errors
    /// If `rten` does not support the network.
    pub fn load(graph: &ServingGraph, tensors: &[String]) -> Result<Self, EngineError> {
        let (batch, n) = match graph.batch {
            Batch::Any => (None, 1),
            Batch::Fixed(n) => (Some(n), n),
        };
        if let Some(reason) = graph.beyond(limits::LIMITS) {
            return Err(KIND.unsupported(reason));
        }
        let onnx = graph
            .tapped(batch, tensors)
            .map_err(|error| KIND.unsupported(error))?;
        let model = rten::Model::load(onnx).map_err(|error| KIND.unsupported(error))?;

        let mut outputs = vec![node_id(&model, LOGITS)?];
        for tensor in tensors {
            outputs.push(node_id(&model, tensor)?);
        }
        Ok(Self {
            input: node_id(&model, IMAGES)?,
            outputs,
            model,
            input_shape: [n, graph.height as usize, graph.width as usize, 3],
        })
    }

    /// Runs the network on the image `crop`, `uint8 [height, width, 3]`. Returns the logits and
    /// then the requested tensors.
    ///
    /// # Errors
    /// [`EngineError::Inference`] if the engine fails.
    pub fn run(
        &self,
        crop: &[u8],
        pool: &Arc<ThreadPool>,
    ) -> Result<Vec<TensorValues>, EngineError> {
        // A network with a fixed batch gets the same image in every place.
        let batch = self.input_shape[0];
        let images = crop.repeat(batch);
        let images = ValueView::from_shape(self.input_shape, &images[..])
            .map_err(|error| KIND.failed(error))?;
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(pool)));
        let outputs = self
            .model
            .run(
                vec![(self.input, images.into())],
                &self.outputs,
                Some(options),
            )
            .map_err(|error| KIND.failed(error))?;

        outputs
            .into_iter()
            .map(|output| first_of_batch(output, batch))
            .collect()
    }
}

/// The part of a tensor that belongs to the first image of the batch.
fn first_of_batch(output: rten::Value, batch: usize) -> Result<TensorValues, EngineError> {
    let tensor: Tensor<f32> = output
        .try_into()
        .map_err(|error| KIND.failed(format!("{error:?}")))?;
    let mut shape = tensor.shape().to_vec();
    let mut values = tensor.into_data();
    shape[0] /= batch;
    values.truncate(values.len() / batch);
    Ok(TensorValues { shape, values })
}

/// A pool of one thread, for a [`Probe`].
pub fn one_thread() -> Arc<ThreadPool> {
    Arc::new(ThreadPool::with_num_threads(1))
}
