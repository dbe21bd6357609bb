//! What batches cost on the GPU itself, without a server around it.

use std::time::{Duration, Instant};

use super::{Prepared, pipeline::Device, plan::PlanSource, prepare};
use crate::{
    engine::{Engine, EngineConfig, EngineError},
    model::Model,
};

/// Calls that each time is averaged over.
const RUNS: u32 = 50;

/// The cost of one batch.
#[derive(Clone, Copy, Debug)]
pub struct DeviceTimes {
    /// Images in the batch.
    pub batch: usize,
    /// The network alone, by CUDA's clock.
    pub device: Duration,
    /// From images in memory to logits in memory, on one lane.
    pub lane: Duration,
}

/// Measures one lane of the first GPU for each of `batches`.
///
/// # Errors
/// If the engine can't start, or a batch is larger than the largest.
pub fn measure(
    config: &EngineConfig,
    model: &Model,
    batches: &[usize],
) -> Result<Vec<DeviceTimes>, EngineError> {
    let Prepared {
        gpus,
        library_version,
    } = prepare(config)?;
    let gpu = &gpus[0];
    let source = PlanSource::new(config, model, &library_version)?;
    let (plan, _) = source.load(gpu, &config.tensorrt)?;
    let mut lane = source.lane(gpu, &plan, &source.gpu_state(gpu))?;

    let mut times = Vec::new();
    for &batch in batches {
        let images = vec![128; batch * model.geometry.bytes()];
        let mut logits = vec![0.0; batch * model.graph.classes];
        // The first runs warm up.
        for _ in 0..RUNS {
            lane.infer(&images, batch, &mut logits)?;
        }

        let started = Instant::now();
        for _ in 0..RUNS {
            lane.infer(&images, batch, &mut logits)?;
        }
        let lane_time = started.elapsed() / RUNS;

        let device_time = lane
            .device()
            .device_time(batch, RUNS)
            .map_err(|error| gpu.engine_error(error))?;
        lane.device()
            .synchronise()
            .map_err(|error| gpu.engine_error(error))?;
        times.push(DeviceTimes {
            batch,
            device: device_time,
            lane: lane_time,
        });
    }
    Ok(times)
}
