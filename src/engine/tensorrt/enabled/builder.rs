//! Builds a plan from a serving graph: parsing, batch sizes, and the builder's settings.

use std::{collections::HashMap, ops::ControlFlow, sync::Mutex};

use trtx::{
    Builder, BuilderConfig, MemoryPoolType, OnnxParser, OptProfileSelector,
    builder::network_flags::EXPLICIT_BATCH, interfaces::MonitorProgress, trtx_sys::Dims64,
};

use super::{ComputeCapability, KIND, Progress, flavour, library};
use crate::{engine::EngineError, model::IMAGES, sync::lock};

/// What to build, and how.
pub(super) struct BuildRequest<'a> {
    /// The serving graph, typed.
    pub(super) onnx: &'a [u8],
    /// Height, width, channels.
    pub(super) image_shape: [i64; 3],
    /// `None` if the graph itself fixes the batch size.
    pub(super) batches: Option<BatchRange>,
    pub(super) target: ComputeCapability,
    /// Most scratch memory that a layer may use, in bytes.
    pub(super) workspace: u64,
    /// 0 to 5.
    pub(super) optimization_level: u8,
    pub(super) progress: Progress,
}

/// Batches from 1 to `max` images; the plan is optimized for `usual`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchRange {
    pub(super) usual: usize,
    pub(super) max: usize,
}

/// Builds a plan. With TensorRT-RTX the GPU need not be present.
pub(super) fn build(request: &BuildRequest) -> Result<Vec<u8>, EngineError> {
    // Discards errors of earlier calls, which would otherwise be reported for this one.
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
        let [height, width, channels] = request.image_shape;
        for (bound, n) in [
            (OptProfileSelector::kMIN, 1),
            (OptProfileSelector::kOPT, batches.usual),
            (OptProfileSelector::kMAX, batches.max),
        ] {
            let shape = Dims64::from_slice(&[n as i64, height, width, channels]);
            profile
                .set_dimensions(IMAGES, bound, &shape)
                .map_err(failed)?;
        }
        config
            .add_optimization_profile(&mut profile)
            .map_err(failed)?;
    }
    configure(&mut config, request)?;

    let plan = builder
        .build_serialized_network(parser.network_mut(), &mut config)
        .map_err(|error| KIND.unsupported(library::take_errors(error)))?;
    Ok(plan.to_vec())
}

fn configure(config: &mut BuilderConfig, request: &BuildRequest) -> Result<(), EngineError> {
    config.set_memory_pool_limit(MemoryPoolType::kWORKSPACE, request.workspace as usize);
    config.set_builder_optimization_level(request.optimization_level.into());
    flavour::set_target(config, request.target)?;
    config
        .set_progress_monitor(Box::new(ProgressMonitor::new(request.progress.clone())))
        .map_err(|error| KIND.failed(library::take_errors(error)))
}

/// Reports the builder's outermost phases.
struct ProgressMonitor {
    progress: Progress,
    /// The number of steps of each running phase.
    phases: Mutex<HashMap<String, i32>>,
}

impl ProgressMonitor {
    fn new(progress: Progress) -> Self {
        Self {
            progress,
            phases: Mutex::default(),
        }
    }
}

impl MonitorProgress for ProgressMonitor {
    fn phase_start(&self, phase: &str, parent: Option<&str>, steps: i32) {
        if parent.is_none() {
            lock(&self.phases).insert(phase.to_owned(), steps);
            (self.progress)(phase, 0.0);
        }
    }

    fn step_complete(&self, phase: &str, step: i32) -> ControlFlow<()> {
        let steps = lock(&self.phases).get(phase).copied();
        if let Some(steps) = steps {
            (self.progress)(phase, (step + 1) as f32 / steps.max(1) as f32);
        }
        ControlFlow::Continue(())
    }

    fn phase_finish(&self, phase: &str) {
        let removed = lock(&self.phases).remove(phase);
        if removed.is_some() {
            (self.progress)(phase, 1.0);
        }
    }
}
