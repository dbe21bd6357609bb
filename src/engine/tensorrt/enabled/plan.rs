//! A model as TensorRT gets it: its typed graph, the cache key of its plans, and how a plan gets
//! from the cache or the builder onto a GPU.

use std::{
    borrow::Cow,
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::{
    ComputeCapability, KIND, Progress, TensorRtConfig,
    binding::{self, BatchRange, BuildRequest, FLAVOUR},
    compatibility::{Flavour, GpuInfo, check_memory, check_precision},
    gpu::Gpu,
    lane::GpuLane,
    loaded_plan::{Execution, LoadedPlan},
    pipeline::{GpuState, Pipeline},
};
use crate::{
    cache::{ArtifactCache, CacheKey, MissReason, Origin, hex},
    engine::{EngineConfig, EngineError, Precision, batch_sizes, tensorrt::PlanOutcome},
    model::{Batch, BodyPrecision, Model},
    sync::lock,
};

/// Largest batch, unless the configuration sets one.
const DEFAULT_MAX_BATCH: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// Batch size that a plan is optimized for, unless the configuration sets one.
const DEFAULT_USUAL_BATCH: usize = 8;

/// How often a long build logs its progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// All that the plan of one model for one kind of GPU is made from.
pub(super) struct PlanSource {
    pub(super) target: ComputeCapability,
    /// The serving graph, typed.
    onnx: Vec<u8>,
    /// Height, width, channels.
    image_shape: [i64; 3],
    classes: usize,
    pub(super) precision: Precision,
    /// `None` if the model fixes the batch size.
    batches: Option<BatchRange>,
    pub(super) max_batch: usize,
    /// All that a plan depends on, except for the card.
    base_key: CacheKey,
}

impl PlanSource {
    pub(super) fn new(
        config: &EngineConfig,
        model: &Model,
        library_version: &str,
        target: ComputeCapability,
    ) -> Result<Self, EngineError> {
        let precision = Precision::choose(model, config.precision, Precision::Fp16, KIND)?;
        check_precision(target, precision)?;
        let (fixed_batch, batches, max_batch) = match model.graph.batch {
            Batch::Fixed(n) => (Some(n), None, n),
            Batch::Any => {
                let range = batch_range(config);
                (None, Some(range), range.max)
            }
        };
        let onnx = typed_graph(model, fixed_batch, precision, target)?;
        let batches_text = match batches {
            Some(BatchRange { usual, max }) => format!("1 to {max}, usually {usual}"),
            None => format!("of {max_batch}"),
        };
        let base_key = CacheKey::new([
            ("kind", format!("{FLAVOUR} plan")),
            ("version", library_version.to_owned()),
            ("precision", precision.to_string()),
            ("batches", batches_text),
            ("workspace", config.tensorrt.workspace.to_string()),
            (
                "optimization level",
                config.tensorrt.optimization_level.to_string(),
            ),
            ("model", hex(&Sha256::digest(&onnx)[..16])),
            ("execution memory", "ours".to_owned()),
            ("compute capability", target.to_string()),
        ]);
        Ok(Self {
            target,
            onnx,
            image_shape: [model.geometry.height.into(), model.geometry.width.into(), 3],
            classes: model.graph.classes,
            precision,
            batches,
            max_batch,
            base_key,
        })
    }

    pub(super) fn has_fixed_batch(&self) -> bool {
        self.batches.is_none()
    }

    /// The batch sizes that are computed.
    pub(super) fn batch_sizes(&self) -> Vec<usize> {
        batch_sizes(self.max_batch, self.has_fixed_batch())
    }

    /// The cache key of a plan. One of TensorRT-RTX is for a compute capability, whatever the card;
    /// one of the data-centre TensorRT is for the card on which it was measured.
    pub(super) fn key(&self, gpu: Option<&GpuInfo>) -> CacheKey {
        match gpu {
            Some(gpu) if FLAVOUR == Flavour::Enterprise => {
                self.base_key.with("GPU", gpu.name.clone())
            }
            _ => self.base_key.clone(),
        }
    }

    pub(super) fn build(
        &self,
        config: &TensorRtConfig,
        progress: Progress,
    ) -> Result<Vec<u8>, EngineError> {
        binding::build(&BuildRequest {
            onnx: &self.onnx,
            image_shape: self.image_shape,
            batches: self.batches,
            target: self.target,
            precision: self.precision,
            workspace: config.workspace,
            optimization_level: config.optimization_level,
            progress,
        })
    }

    /// Puts the plan for this GPU onto it, from the cache or newly built. Also returns how it was
    /// obtained: once, or twice if what the cache held could not be used.
    pub(super) fn load(
        &self,
        gpu: &Gpu,
        config: &TensorRtConfig,
    ) -> Result<(Arc<LoadedPlan>, Vec<PlanOutcome>), EngineError> {
        let cache = open_cache(config)?;
        let key = self.key(Some(&gpu.info));

        let mut build_time = None;
        let (plan, origin) = cache.get_or_make(&key, |miss| {
            let (plan, took) = self.build_on(gpu, config, miss)?;
            build_time = Some(took);
            Ok::<_, EngineError>(plan)
        })?;
        log_origin(&origin, &cache, &key);
        let was_cached = origin == Origin::Hit;
        let mut outcomes = vec![PlanOutcome { origin, build_time }];

        check_memory(&gpu.info, plan.len() as u64)?;
        let error = match LoadedPlan::new(gpu, &plan, &cache, &key) {
            Ok(loaded) => return Ok((loaded, outcomes)),
            Err(error) => gpu.engine_error(error),
        };
        if !was_cached || !matches!(error, EngineError::Inference { .. }) {
            return Err(error);
        }

        // The cached plan is intact but TensorRT rejects it, so it is replaced.
        let miss = MissReason::Rejected(error.to_string());
        let (plan, took) = self.build_on(gpu, config, &miss)?;
        let origin = Origin::Miss(miss);
        log_origin(&origin, &cache, &key);
        outcomes.push(PlanOutcome {
            origin,
            build_time: Some(took),
        });
        cache.put(&key, &plan);

        check_memory(&gpu.info, plan.len() as u64)?;
        let loaded =
            LoadedPlan::new(gpu, &plan, &cache, &key).map_err(|error| gpu.engine_error(error))?;
        Ok((loaded, outcomes))
    }

    /// Builds a plan on the GPU that will run it. Also returns how long that took.
    fn build_on(
        &self,
        gpu: &Gpu,
        config: &TensorRtConfig,
        miss: &MissReason,
    ) -> Result<(Vec<u8>, Duration), EngineError> {
        tracing::info!("building a plan for {}: {miss}", gpu.info);
        gpu.bind()?;
        let started = Instant::now();
        let plan = self.build(config, log_progress())?;
        Ok((plan, started.elapsed()))
    }

    /// The state that the lanes of one GPU share.
    pub(super) fn gpu_state(&self, gpu: &Gpu) -> Arc<GpuState> {
        GpuState::new(self.max_batch, self.has_fixed_batch(), gpu.info.to_string())
    }

    pub(super) fn lane(
        &self,
        gpu: &Gpu,
        plan: &Arc<LoadedPlan>,
        state: &Arc<GpuState>,
    ) -> Result<Pipeline<GpuLane<Execution>>, EngineError> {
        let lane = LoadedPlan::execution(plan)
            .and_then(|network| GpuLane::new(gpu, network, self.image_shape, self.classes))
            .map_err(|error| gpu.engine_error(error))?;
        let image_len = self.image_shape.iter().product::<i64>() as usize;
        Pipeline::new(lane, Arc::clone(state), image_len, self.classes)
    }
}

fn batch_range(config: &EngineConfig) -> BatchRange {
    let max = config.max_batch.unwrap_or(DEFAULT_MAX_BATCH).get();
    let usual = match config.tensorrt.usual_batch {
        Some(usual) => usual.get(),
        None => DEFAULT_USUAL_BATCH,
    };
    BatchRange {
        usual: usual.min(max),
        max,
    }
}

/// The model's graph as ONNX, with its body typed for `precision`.
fn typed_graph(
    model: &Model,
    fixed_batch: Option<usize>,
    precision: Precision,
    target: ComputeCapability,
) -> Result<Vec<u8>, EngineError> {
    let body = match precision {
        // A quantized graph has little float arithmetic left, and states its types itself.
        Precision::Fp32 | Precision::Int8 => BodyPrecision::Fp32,
        Precision::Fp16 => BodyPrecision::Fp16,
        Precision::Bf16 => BodyPrecision::Bf16,
    };
    let mut graph = Cow::Borrowed(&model.graph);
    if graph.quantized {
        graph = Cow::Owned(graph.with_signed_activations());
    }
    if FLAVOUR.needs_convolutions(target, precision) {
        graph = Cow::Owned(graph.with_linear_layers_as_convolutions());
    }
    let onnx = graph.to_onnx(fixed_batch, body);
    onnx.map_err(|error| {
        let advice = if precision == Precision::Fp32 {
            ""
        } else {
            "; --precision fp32 does without"
        };
        KIND.unsupported(format!("{error}{advice}"))
    })
}

pub(super) fn open_cache(config: &TensorRtConfig) -> Result<ArtifactCache, EngineError> {
    let unavailable = |reason: String| EngineError::Unavailable {
        kind: KIND,
        reason,
        advice: "name a folder for the plans with --engine-cache".into(),
    };
    let folder = config
        .cache
        .clone()
        .or_else(ArtifactCache::default_folder)
        .ok_or_else(|| unavailable("there is no home folder to keep plans in".into()))?;
    ArtifactCache::open(&folder, config.cache_limit).map_err(|error| unavailable(error.to_string()))
}

/// Logs whether a plan was in the cache.
pub(super) fn log_origin(origin: &Origin, cache: &ArtifactCache, key: &CacheKey) {
    let file = cache.folder().join(key.file_name());
    match origin {
        Origin::Hit => tracing::info!("plan cache hit: {}", file.display()),
        Origin::Miss(miss) => {
            tracing::info!(
                "plan cache miss: {miss}; the new plan is in {}",
                file.display()
            );
        }
    }
}

/// Logs the progress of a build now and then.
fn log_progress() -> Progress {
    let last_logged = Mutex::new(Instant::now());
    Arc::new(move |phase, done| {
        let mut last_logged = lock(&last_logged);
        if last_logged.elapsed() > PROGRESS_INTERVAL {
            *last_logged = Instant::now();
            tracing::info!("still building: {phase}, {:.0} %", done * 100.0);
        }
    })
}
