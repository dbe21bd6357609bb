//! Builds a plan from a serving graph: parsing, batch sizes, and the builder's settings.

use std::{collections::HashMap, ops::ControlFlow, sync::Mutex};

use trtx::{
    Builder, BuilderConfig, MemoryPoolType, OnnxParser, OptProfileSelector,
    builder::network_flags::EXPLICIT_BATCH, interfaces::MonitorProgress, trtx_sys::Dims64,
};

use super::{
    super::{ComputeCapability, KIND, Progress, compatibility::explain_refusal},
    Failure, flavour, log,
};
use crate::{
    engine::{EngineError, Precision},
    model::IMAGES,
    sync::lock,
};

/// What to build, and how.
pub(in super::super) struct BuildRequest<'a> {
    /// The serving graph, typed.
    pub(in super::super) onnx: &'a [u8],
    /// Height, width, channels.
    pub(in super::super) image_shape: [i64; 3],
    /// `None` if the graph itself fixes the batch size.
    pub(in super::super) batches: Option<BatchRange>,
    pub(in super::super) target: ComputeCapability,
    /// Of the graph, for error messages.
    pub(in super::super) precision: Precision,
    /// Most scratch memory that a layer may use, in bytes.
    pub(in super::super) workspace: u64,
    /// 0 to 5.
    pub(in super::super) optimization_level: u8,
    pub(in super::super) progress: Progress,
}

/// Batches from 1 to `max` images; the plan is optimized for `usual`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct BatchRange {
    pub(in super::super) usual: usize,
    pub(in super::super) max: usize,
}

/// Why no plan was built.
enum Refusal {
    /// TensorRT can't run this network.
    Network(Failure),
    /// Something else failed.
    Other(Failure),
}

/// Builds a plan. With TensorRT-RTX the GPU need not be present.
pub(in super::super) fn build(request: &BuildRequest) -> Result<Vec<u8>, EngineError> {
    let refusal = match attempt(request, true) {
        Ok(plan) => return Ok(plan),
        Err(refusal @ Refusal::Other(_)) => refusal,
        // A network that has to allocate while it runs is refused in this way too.
        Err(Refusal::Network(_)) => match attempt(request, false) {
            Ok(plan) => {
                tracing::info!(
                    "this network allocates memory while it runs, so CUDA graphs can't be used"
                );
                return Ok(plan);
            }
            Err(refusal) => refusal,
        },
    };
    Err(match refusal {
        Refusal::Network(failure) => KIND.unsupported(explain_refusal(
            failure.to_string(),
            request.target,
            request.precision,
            request.workspace,
        )),
        Refusal::Other(failure) => KIND.failed(failure),
    })
}

/// Builds a plan. With `user_allocation` it allocates no memory while it runs.
fn attempt(request: &BuildRequest, user_allocation: bool) -> Result<Vec<u8>, Refusal> {
    log::forget_errors();
    let other = |error: trtx::Error| Refusal::Other(Failure::of(error));
    let network = |error: trtx::Error| Refusal::Network(Failure::of(error));

    let logger = log::logger().map_err(Refusal::Other)?;
    let mut builder = Builder::new(logger).map_err(other)?;
    let definition = builder.create_network(EXPLICIT_BATCH).map_err(other)?;
    let mut config = builder.create_config().map_err(other)?;
    let mut parser = OnnxParser::new(definition, logger).map_err(other)?;
    parser.parse(request.onnx).map_err(network)?;

    if let Some(batches) = request.batches {
        let mut profile = builder.creata_optimization_profile().map_err(other)?;
        let [height, width, channels] = request.image_shape;
        for (bound, n) in [
            (OptProfileSelector::kMIN, 1),
            (OptProfileSelector::kOPT, batches.usual),
            (OptProfileSelector::kMAX, batches.max),
        ] {
            let shape = Dims64::from_slice(&[n as i64, height, width, channels]);
            profile
                .set_dimensions(IMAGES, bound, &shape)
                .map_err(other)?;
        }
        config
            .add_optimization_profile(&mut profile)
            .map_err(other)?;
    }
    configure(&mut config, request).map_err(Refusal::Other)?;
    if user_allocation {
        flavour::require_user_allocation(&mut config);
    }

    let plan = builder
        .build_serialized_network(parser.network_mut(), &mut config)
        .map_err(network)?;
    Ok(plan.to_vec())
}

fn configure(config: &mut BuilderConfig, request: &BuildRequest) -> Result<(), Failure> {
    config.set_memory_pool_limit(MemoryPoolType::kWORKSPACE, request.workspace as usize);
    config.set_builder_optimization_level(request.optimization_level.into());
    flavour::set_target(config, request.target)?;
    config
        .set_progress_monitor(Box::new(ProgressMonitor::new(request.progress.clone())))
        .map_err(Failure::of)
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
