//! From a serving graph to a plan: parsing, the range of batches, and the builder's settings.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::{Mutex, PoisonError},
};

use trtx::{
    Builder, MemoryPoolType, OnnxParser, OptProfileSelector,
    builder::network_flags::EXPLICIT_BATCH, interfaces::MonitorProgress, trtx_sys::Dims64,
};

use super::{ComputeCapability, KIND, Progress, library};
use crate::{engine::EngineError, model::IMAGES};

/// What is to be built.
pub(super) struct Request<'a> {
    /// The serving graph, typed.
    pub(super) onnx: &'a [u8],
    /// Height, width and channels.
    pub(super) image: [i64; 3],
    /// `None` where the graph itself says how many images a batch has.
    pub(super) batches: Option<Batches>,
    pub(super) target: ComputeCapability,
    /// In bytes.
    pub(super) workspace: u64,
    pub(super) optimization_level: u8,
    pub(super) progress: Progress,
}

/// Batches are from 1 to `max`; the plan is made fastest for `usual`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batches {
    pub(super) usual: usize,
    pub(super) max: usize,
}

/// Builds a plan, for a GPU that need not be here if TensorRT-RTX does it.
pub(super) fn build(request: &Request) -> Result<Vec<u8>, EngineError> {
    // What was said before is not about this.
    library::take_errors("");
    let failed = |error: trtx::Error| KIND.failed(library::take_errors(error));
    let logger = library::logger()?;
    let mut builder = Builder::new(logger).map_err(failed)?;
    let network = builder.create_network(EXPLICIT_BATCH).map_err(failed)?;
    let mut config = builder.create_config().map_err(failed)?;
    let mut parser = OnnxParser::new(network, logger).map_err(failed)?;
    parser
        .parse(request.onnx)
        .map_err(|error| KIND.unsupported(library::take_errors(error)))?;

    if let Some(batches) = request.batches {
        let mut profile = builder.creata_optimization_profile().map_err(failed)?;
        let [height, width, channels] = request.image;
        for (which, n) in [
            (OptProfileSelector::kMIN, 1),
            (OptProfileSelector::kOPT, batches.usual),
            (OptProfileSelector::kMAX, batches.max),
        ] {
            let shape = Dims64::from_slice(&[n as i64, height, width, channels]);
            profile
                .set_dimensions(IMAGES, which, &shape)
                .map_err(failed)?;
        }
        config
            .add_optimization_profile(&mut profile)
            .map_err(failed)?;
    }
    config.set_memory_pool_limit(MemoryPoolType::kWORKSPACE, request.workspace as usize);
    config.set_builder_optimization_level(request.optimization_level.into());
    target(&mut config, request.target)?;
    config
        .set_progress_monitor(Box::new(Monitor::new(request.progress.clone())))
        .map_err(failed)?;
    let plan = builder
        .build_serialized_network(parser.network_mut(), &mut config)
        .map_err(|error| KIND.unsupported(library::take_errors(error)))?;
    Ok(plan.to_vec())
}

/// Says for which GPU, where that can be chosen.
#[cfg(not(feature = "tensorrt-enterprise"))]
fn target(config: &mut trtx::BuilderConfig, target: ComputeCapability) -> Result<(), EngineError> {
    use trtx::ComputeCapability as Known;
    let known = match target.sm() {
        75 => Known::kSM75,
        80 => Known::kSM80,
        86 => Known::kSM86,
        89 => Known::kSM89,
        120 => Known::kSM120,
        121 => Known::kSM121,
        _ => {
            return Err(EngineError::Unavailable {
                kind: KIND,
                reason: format!("TensorRT-RTX builds nothing for compute capability {target}"),
                advice: "it knows 75, 80, 86, 89, 120 and 121; other GPUs need the feature tensorrt-enterprise".into(),
            });
        }
    };
    let failed = |error: trtx::Error| KIND.failed(library::take_errors(error));
    config.set_nb_compute_capabilities(1).map_err(failed)?;
    config.set_compute_capability(known, 0).map_err(failed)
}

/// The data-centre TensorRT always builds for the GPU on which it measures.
#[cfg(feature = "tensorrt-enterprise")]
fn target(_: &mut trtx::BuilderConfig, _: ComputeCapability) -> Result<(), EngineError> {
    Ok(())
}

/// Passes the builder's outermost phases on.
struct Monitor {
    progress: Progress,
    /// The number of steps of each phase that runs.
    phases: Mutex<HashMap<String, i32>>,
}

impl Monitor {
    fn new(progress: Progress) -> Self {
        Self {
            progress,
            phases: Mutex::default(),
        }
    }

    fn phases(&self) -> std::sync::MutexGuard<'_, HashMap<String, i32>> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MonitorProgress for Monitor {
    fn phase_start(&self, phase: &str, parent: Option<&str>, steps: i32) {
        if parent.is_none() {
            self.phases().insert(phase.to_owned(), steps);
            (self.progress)(phase, 0.0);
        }
    }

    fn step_complete(&self, phase: &str, step: i32) -> ControlFlow<()> {
        let steps = self.phases().get(phase).copied();
        if let Some(steps) = steps {
            (self.progress)(phase, (step + 1) as f32 / steps.max(1) as f32);
        }
        ControlFlow::Continue(())
    }

    fn phase_finish(&self, phase: &str) {
        if self.phases().remove(phase).is_some() {
            (self.progress)(phase, 1.0);
        }
    }
}
