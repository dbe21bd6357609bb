//! The engine that is always there: `rten`, pure Rust, fp32, compiled into the program.

use std::sync::Arc;

use rten::{NodeId, RunOptions, ThreadPool, ValueView};

use super::{Engine, EngineConfig, EngineError, EngineInfo, EngineKind, Lanes, Precision, cpu_name};
use crate::model::{Batch, BodyPrecision, Model};

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
        Batch::Any => (None, config.cpu_max_batch()),
        Batch::Fixed(n) => (Some(n), n),
    };
    let onnx = model.graph.to_onnx(batch, BodyPrecision::Fp32).map_err(|error| KIND.unsupported(error))?;
    let network = Arc::new(Network::load(onnx, model)?);
    let threads = config.threads.get();
    let lane = |threads| -> Box<dyn Engine> {
        Box::new(Embedded { network: Arc::clone(&network), pool: Arc::new(ThreadPool::with_num_threads(threads)) })
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
            input: network.node_id("images").map_err(|error| KIND.unsupported(error))?,
            output: network.node_id("logits").map_err(|error| KIND.unsupported(error))?,
            model: network,
            image: [model.geometry.height as usize, model.geometry.width as usize, 3],
        })
    }
}

struct Embedded {
    network: Arc<Network>,
    pool: Arc<ThreadPool>,
}

impl Engine for Embedded {
    fn infer(&mut self, images: &[u8], n: usize, logits: &mut [f32]) -> Result<(), EngineError> {
        let Network { model, input, output, image: [height, width, channels] } = &*self.network;
        let images =
            ValueView::from_shape([n, *height, *width, *channels], images).map_err(|error| KIND.failed(error))?;
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(&self.pool)));
        let [values] =
            model.run_n(vec![(*input, images.into())], [*output], Some(options)).map_err(|error| KIND.failed(error))?;
        let ([_, _], values) = values.into_shape_vec::<f32, 2>().map_err(|error| KIND.failed(error))?;
        if values.len() != logits.len() {
            return Err(KIND.failed(format!("{} logits instead of {}", values.len(), logits.len())));
        }
        logits.copy_from_slice(&values);
        Ok(())
    }
}
