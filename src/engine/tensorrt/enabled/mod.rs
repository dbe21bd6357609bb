//! The TensorRT engine: finds the library and the GPUs, gets each plan from the cache or builds it,
//! and makes the lanes.
//!
//! The library and CUDA are loaded at run time, so that one program runs with and without a GPU.
//! The GPU and TensorRT's objects on it are in `gpu`, `loaded_plan` and `lane`; what surrounds them
//! (splitting batches, halving them when memory runs out, giving up) is in `pipeline`, behind a
//! trait that tests implement. `rtx` and `enterprise` hold what differs between the two products.

mod builder;
mod compatibility;
#[cfg(feature = "tensorrt-enterprise")]
mod enterprise;
mod gpu;
mod lane;
mod library;
mod loaded_plan;
mod measure;
mod pipeline;
mod plan;
#[cfg(not(feature = "tensorrt-enterprise"))]
mod rtx;
mod version;

use std::time::Instant;

#[cfg(feature = "tensorrt-enterprise")]
use self::enterprise as flavour;
#[cfg(not(feature = "tensorrt-enterprise"))]
use self::rtx as flavour;

pub use self::measure::{DeviceTimes, measure};

use self::{
    compatibility::{Flavour, check_support},
    flavour::FLAVOUR,
    gpu::Gpu,
    plan::{PlanSource, log_origin, open_cache},
};
use super::{BuiltPlan, ComputeCapability, KIND, Progress, TensorRtConfig};
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
    let library = library::find(config.tensorrt.library.as_deref())?;
    let gpus = gpu::find(config.tensorrt.devices.as_deref())?;
    for gpu in &gpus {
        check_support(FLAVOUR, &gpu.info)?;
    }
    Ok(Prepared {
        gpus,
        library_version: library::load(&library)?,
    })
}

impl Prepared {
    /// Puts the model's plan on each GPU, and makes the lanes.
    pub(in crate::engine) fn load(
        self,
        config: &EngineConfig,
        model: &Model,
    ) -> Result<Lanes, EngineError> {
        let source = PlanSource::new(config, model, &self.library_version)?;
        let mut narrow: Vec<Box<dyn Engine>> = Vec::new();
        let mut plans = Vec::new();
        for gpu in &self.gpus {
            let (plan, outcomes) = source.load(gpu, &config.tensorrt)?;
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
                precision: source.precision,
                device: device_names(self.gpus.iter().map(|gpu| gpu.info.name.as_str())),
                max_batch: source.max_batch,
                fixed_batch: source.has_fixed_batch(),
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

    let library = library::find(config.tensorrt.library.as_deref())?;
    let library_version = library::load(&library)?;
    let source = PlanSource::new(config, model, &library_version)?;
    let cache = open_cache(&config.tensorrt)?;
    let key = source.key(target, None);

    let started = Instant::now();
    let (plan, origin) =
        cache.get_or_make(&key, |_| source.build(target, &config.tensorrt, progress))?;
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
    use super::device_names;

    #[test]
    fn gpus_of_the_same_name_are_counted() {
        assert_eq!(device_names(["L4"].into_iter()), "L4");
        assert_eq!(device_names(["L4", "T4", "L4"].into_iter()), "2 × L4, T4");
    }
}
