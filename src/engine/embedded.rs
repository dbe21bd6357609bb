//! The engine that is always there: `rten`, pure Rust, fp32, compiled into the program.

use std::{num::NonZeroUsize, sync::Arc};

use rten::{NodeId, RunOptions, ThreadPool, ValueView};
use rten_tensor::{Layout, Tensor};

use super::{
    Engine, EngineConfig, EngineError, EngineInfo, EngineKind, Lanes, Precision, cpu_name,
};
use crate::model::{Batch, BodyPrecision, IMAGES, LOGITS, Model, ServingGraph};

const KIND: EngineKind = EngineKind::Embedded;

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
    let onnx = model
        .graph
        .to_onnx(batch, BodyPrecision::Fp32)
        .map_err(|error| KIND.unsupported(error))?;
    let network = Arc::new(Network::load(onnx, model)?);
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
            version: "rten 0.27".into(),
            precision: Precision::Fp32,
            device: cpu_name(),
            max_batch,
            fixed_batch: batch.is_some(),
            offloaded: false,
        },
        wide: (threads > 1).then(|| lane(threads)),
        narrow: (0..threads).map(|_| lane(1)).collect(),
    })
}

struct Network {
    model: rten::Model,
    input: NodeId,
    output: NodeId,
    /// height, width, channels.
    image: [usize; 3],
}

impl Network {
    fn load(onnx: Vec<u8>, model: &Model) -> Result<Self, EngineError> {
        let network = rten::Model::load(onnx).map_err(|error| KIND.unsupported(error))?;
        Ok(Self {
            input: network
                .node_id("images")
                .map_err(|error| KIND.unsupported(error))?,
            output: network
                .node_id("logits")
                .map_err(|error| KIND.unsupported(error))?,
            model: network,
            image: [
                model.geometry.height as usize,
                model.geometry.width as usize,
                3,
            ],
        })
    }
}

struct Embedded {
    network: Arc<Network>,
    pool: Arc<ThreadPool>,
}

impl Engine for Embedded {
    fn infer(&mut self, images: &[u8], n: usize, logits: &mut [f32]) -> Result<(), EngineError> {
        let Network {
            model,
            input,
            output,
            image: [height, width, channels],
        } = &*self.network;
        let images = ValueView::from_shape([n, *height, *width, *channels], images)
            .map_err(|error| KIND.failed(error))?;
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(&self.pool)));
        let [values] = model
            .run_n(vec![(*input, images.into())], [*output], Some(options))
            .map_err(|error| KIND.failed(error))?;
        let ([_, _], values) = values
            .into_shape_vec::<f32, 2>()
            .map_err(|error| KIND.failed(error))?;
        if values.len() != logits.len() {
            return Err(KIND.failed(format!(
                "{} logits instead of {}",
                values.len(),
                logits.len()
            )));
        }
        logits.copy_from_slice(&values);
        Ok(())
    }
}

/// The network on one thread, with some of its tensors to be read: what a calibration sees.
pub struct Probe {
    model: rten::Model,
    input: NodeId,
    tensors: Vec<NodeId>,
    /// batch, height, width, channels.
    shape: [usize; 4],
}

impl Probe {
    /// Loads the network of `graph`; `tensors` are names in it, of float32.
    ///
    /// # Errors
    /// A network that this engine can't run.
    pub fn load(graph: &ServingGraph, tensors: &[String]) -> Result<Self, EngineError> {
        let (batch, n) = match graph.batch {
            Batch::Any => (None, 1),
            Batch::Fixed(n) => (Some(n), n),
        };
        let onnx = graph
            .tapped(batch, tensors)
            .map_err(|error| KIND.unsupported(error))?;
        let model = rten::Model::load(onnx).map_err(|error| KIND.unsupported(error))?;
        let node = |name: &str| model.node_id(name).map_err(|error| KIND.unsupported(error));
        Ok(Self {
            input: node(IMAGES)?,
            tensors: std::iter::once(LOGITS)
                .chain(tensors.iter().map(String::as_str))
                .map(node)
                .collect::<Result<_, _>>()?,
            model,
            shape: [n, graph.height as usize, graph.width as usize, 3],
        })
    }

    /// The logits and then the tensors for the image `crop`, `uint8 [height, width, 3]`, each with
    /// its shape; the first dimension is 1.
    ///
    /// # Errors
    /// [`EngineError::Inference`] when the engine fails.
    pub fn run(&self, crop: &[u8], pool: &Arc<ThreadPool>) -> Result<Vec<Values>, EngineError> {
        let images = crop.repeat(self.shape[0]);
        let images =
            ValueView::from_shape(self.shape, &images[..]).map_err(|error| KIND.failed(error))?;
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(pool)));
        let input = vec![(self.input, images.into())];
        let values = self
            .model
            .run(input, &self.tensors, Some(options))
            .map_err(|error| KIND.failed(error))?;
        let first = |value: rten::Value| {
            let tensor: Tensor<f32> = value
                .try_into()
                .map_err(|error| KIND.failed(format!("{error:?}")))?;
            let mut shape = tensor.shape().to_vec();
            let mut values = tensor.into_data();
            // Of a batch all images are the same.
            values.truncate(values.len() / self.shape[0]);
            shape[0] /= self.shape[0];
            Ok((shape, values))
        };
        values.into_iter().map(first).collect()
    }
}

/// A tensor's shape and values.
pub type Values = (Vec<usize>, Vec<f32>);

/// A pool of one thread, for a [`Probe`].
pub fn one_thread() -> Arc<ThreadPool> {
    Arc::new(ThreadPool::with_num_threads(1))
}
