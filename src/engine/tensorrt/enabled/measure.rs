//! What batches cost on the GPU itself, without a server around it.

use std::time::{Duration, Instant};

use super::{Prepared, pipeline::Device, plan::PlanSource, prepare};
use crate::{
    engine::{Engine, EngineConfig, EngineError},
    model::Model,
};

/// Calls that each time is averaged over.
const RUNS: u32 = 50;

/// The number of consecutive measurements that must agree before the time counts as stable.
const STABLE_RUNS: u32 = 3;

/// How much measurements that agree may differ.
const TOLERANCE: f64 = 0.05;

/// The most measurements that are taken for one batch.
const MAX_MEASUREMENTS: u32 = 40;

/// The cost of one batch.
#[derive(Clone, Copy, Debug)]
pub struct DeviceTimes {
    /// Images in the batch.
    pub batch: usize,
    /// The network alone, by CUDA's clock.
    pub device: Duration,
    /// From images in memory to logits in memory, on one lane.
    pub lane: Duration,
    /// Batches that ran before these times were taken.
    pub warm_up: u32,
    /// Whether times had stopped changing by then, as they do when all kernels are compiled.
    pub settled: bool,
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
    let source = PlanSource::new(config, model, &library_version, gpu.info.capability)?;
    let (plan, _) = source.load(gpu, &config.tensorrt)?;
    let mut lane = source.lane(gpu, &plan, &source.gpu_state(gpu))?;

    let mut times = Vec::new();
    for &batch in batches {
        let images = vec![128; batch * model.geometry.bytes()];
        let mut logits = vec![0.0; batch * model.graph.classes];
        let mut lane_time = || {
            let started = Instant::now();
            for _ in 0..RUNS {
                lane.infer(&images, batch, &mut logits)?;
            }
            Ok(started.elapsed() / RUNS)
        };
        let Stability { taken, settled } = measure_until_stable(&mut lane_time)?;
        let lane_time = lane_time()?;

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
            warm_up: taken * RUNS,
            settled,
        });
    }
    Ok(times)
}

/// How measuring ended.
#[derive(Debug, PartialEq, Eq)]
struct Stability {
    /// How many were taken.
    taken: u32,
    settled: bool,
}

/// Measures until the times agree, or there have been enough.
fn measure_until_stable<E>(take: &mut impl FnMut() -> Result<Duration, E>) -> Result<Stability, E> {
    let mut previous = take()?.as_secs_f64();
    let mut alike = 1;
    for taken in 2..=MAX_MEASUREMENTS {
        let time = take()?.as_secs_f64();
        let close = (time - previous).abs() <= TOLERANCE * time.max(previous);
        alike = if close { alike + 1 } else { 1 };
        previous = time;
        if alike == STABLE_RUNS {
            return Ok(Stability {
                taken,
                settled: true,
            });
        }
    }
    Ok(Stability {
        taken: MAX_MEASUREMENTS,
        settled: false,
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn settled(time: impl Fn(u32) -> u64) -> Stability {
        let mut taken = 0;
        let mut take = || {
            taken += 1;
            Ok::<_, Infallible>(Duration::from_micros(time(taken)))
        };
        let Ok(settled) = measure_until_stable(&mut take);
        settled
    }

    #[test]
    fn times_are_taken_until_they_stay_the_same() {
        // Compiled kernels take over from the fifth time on.
        let found = settled(|taken| if taken < 5 { 900 - taken * 100 } else { 200 }.into());
        let expected = Stability {
            taken: 7,
            settled: true,
        };
        assert_eq!(found, expected);
        assert_eq!(settled(|_| 100).taken, STABLE_RUNS);
    }

    #[test]
    fn times_that_never_settle_are_told() {
        let found = settled(|taken| 100 + u64::from(taken % 2) * 100);
        let expected = Stability {
            taken: MAX_MEASUREMENTS,
            settled: false,
        };
        assert_eq!(found, expected);
    }
}
