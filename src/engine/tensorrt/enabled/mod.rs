//! The TensorRT engine: finds the library and the GPUs, gets each plan from the cache or builds it,
//! and makes the lanes.
//!
//! The library and CUDA are loaded at run time, so that one program runs with and without a GPU.
//! All calls of TensorRT are in `binding`; the GPU and its memory are in `gpu`, `loaded_plan` and
//! `lane`; what surrounds them (padding and splitting batches, making them smaller when memory runs
//! out, giving up) is in `pipeline`, behind a trait that tests implement.

mod binding;
mod compatibility;
mod gpu;
mod kernel_store;
mod lane;
mod library;
mod loaded_plan;
mod measure;
mod network;
mod pipeline;
mod plan;
#[doc(hidden)]
pub mod plumbing;

use std::time::Instant;

#[cfg(test)]
pub(crate) use self::pipeline::tests::hanging_lane;

pub use self::measure::{DeviceTimes, measure};

use self::{
    binding::FLAVOUR,
    compatibility::{Flavour, check_support, check_target, driver_warning},
    gpu::Gpu,
    plan::{PlanSource, log_origin, open_cache},
};
use super::{BuiltPlan, ComputeCapability, KIND, PlanOutcome, Progress, TensorRtConfig};
use crate::{
    engine::{Engine, EngineConfig, EngineError, EngineInfo, Lanes},
    model::Model,
};

/// Whether this program contains the engine.
pub(in crate::engine) const COMPILED_IN: bool = true;

/// Lanes on each GPU: while one computes, the images of the other are copied.
const LANES_PER_GPU: usize = 2;

/// The library and the GPUs, found and checked.
pub(in crate::engine) struct Prepared {
    gpus: Vec<Gpu>,
    library_version: String,
}

/// Looks for the library and the GPUs. It is slow only if they are there.
///
/// # Errors
/// What is missing or incompatible, and how to fix it.
pub(in crate::engine) fn prepare(config: &EngineConfig) -> Result<Prepared, EngineError> {
    // The GPUs first: one that needs the other product makes this one's library useless.
    let gpus = gpu::find(config.tensorrt.devices.as_deref())?;
    for gpu in &gpus {
        check_support(FLAVOUR, &gpu.info)?;
    }
    if let Some(doubt) = gpus
        .first()
        .and_then(|gpu| driver_warning(FLAVOUR, gpu.info.driver))
    {
        tracing::warn!("{doubt}");
    }
    let library = library::find(config.tensorrt.library.as_deref())?;
    Ok(Prepared {
        gpus,
        library_version: library::load(&library)?,
    })
}

/// The identities of the GPUs that this process sees, in the order of `--device`, as
/// `nvidia-smi -L` prints them.
pub fn gpu_uuids() -> Vec<String> {
    gpu::uuids()
}

impl Prepared {
    /// Puts the model's plan on each GPU, and makes the lanes.
    pub(in crate::engine) fn load(
        self,
        config: &EngineConfig,
        model: &Model,
    ) -> Result<Lanes, EngineError> {
        let mut narrow: Vec<Box<dyn Engine>> = Vec::new();
        let mut plans = Vec::new();
        let source =
            |gpu: &Gpu| PlanSource::new(config, model, &self.library_version, gpu.info.capability);
        let first = source(&self.gpus[0])?;
        for gpu in &self.gpus {
            let own;
            let source = if gpu.info.capability == first.target {
                &first
            } else {
                own = source(gpu)?;
                &own
            };
            let (plan, outcomes) = source.load(gpu, &config.tensorrt)?;
            tracing::info!(
                "{} with compute capability {}: {FLAVOUR} {} in {}, {}",
                gpu.info,
                gpu.info.capability,
                self.library_version,
                source.precision,
                describe(outcomes.last())
            );
            plans.extend(outcomes);

            let state = source.gpu_state(gpu);
            for _ in 0..LANES_PER_GPU {
                narrow.push(Box::new(source.lane(gpu, &plan, &state)?));
            }
        }
        Ok(Lanes {
            info: EngineInfo {
                kind: KIND,
                version: format!("{FLAVOUR} {}", self.library_version),
                precision: first.precision,
                device: device_names(self.gpus.iter().map(|gpu| gpu.info.name.as_str())),
                max_batch: first.max_batch,
                fixed_batch: first.has_fixed_batch(),
                batch_sizes: first.batch_sizes(),
                offloaded: true,
                embedding: None,
                warnings: Vec::new(),
            },
            wide: None,
            narrow,
            plans,
        })
    }
}

/// How a plan was obtained, for the log.
fn describe(outcome: Option<&PlanOutcome>) -> String {
    match outcome.and_then(|outcome| outcome.build_time) {
        Some(took) => format!("plan built in {:.1} s", took.as_secs_f64()),
        None => "plan from the cache".into(),
    }
}

/// The GPUs' names, such as `2 × NVIDIA L4`.
fn device_names<'a>(gpus: impl Iterator<Item = &'a str>) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for gpu in gpus {
        match counts.iter_mut().find(|(name, _)| *name == gpu) {
            Some((_, count)) => *count += 1,
            None => counts.push((gpu, 1)),
        }
    }
    let names: Vec<String> = counts
        .into_iter()
        .map(|(name, count)| match count {
            1 => name.to_owned(),
            _ => format!("{count} × {name}"),
        })
        .collect();
    names.join(", ")
}

/// Builds a plan for GPUs that need not be present, into the cache where `serve` looks for it.
///
/// # Errors
/// If the library is missing, TensorRT can't run the model, or this flavour can't build for the
/// GPUs.
pub fn build_ahead(
    config: &EngineConfig,
    model: &Model,
    target: ComputeCapability,
    progress: Progress,
) -> Result<BuiltPlan, EngineError> {
    if FLAVOUR == Flavour::Enterprise {
        return Err(EngineError::Unavailable {
            kind: KIND,
            reason: "the data-centre TensorRT builds only on the GPU that it builds for".into(),
            advice: "run `resnet18 serve` on that machine, or build the program with the feature \
                     tensorrt instead"
                .into(),
        });
    }

    check_target(FLAVOUR, target)?;

    let library = library::find(config.tensorrt.library.as_deref())?;
    let library_version = library::load(&library)?;
    let source = PlanSource::new(config, model, &library_version, target)?;
    let cache = open_cache(&config.tensorrt)?;
    let key = source.key(None);

    let started = Instant::now();
    let (plan, origin) = cache.get_or_make(&key, |_| source.build(&config.tensorrt, progress))?;
    log_origin(&origin, &cache, &key);
    Ok(BuiltPlan {
        target,
        file: cache.folder().join(key.file_name()),
        bytes: plan.len(),
        origin,
        took: started.elapsed(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cache::Origin;

    #[test]
    fn the_log_says_how_a_plan_was_obtained() {
        let outcome = |build_time| PlanOutcome {
            origin: Origin::Hit,
            build_time,
        };
        assert_eq!(describe(Some(&outcome(None))), "plan from the cache");
        let built = outcome(Some(Duration::from_millis(2345)));
        assert_eq!(describe(Some(&built)), "plan built in 2.3 s");
    }

    #[test]
    fn gpus_of_the_same_name_are_counted() {
        assert_eq!(device_names(["L4"].into_iter()), "L4");
        assert_eq!(device_names(["L4", "T4", "L4"].into_iter()), "2 × L4, T4");
    }
}
