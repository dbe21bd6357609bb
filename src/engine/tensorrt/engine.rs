//! The engine itself: which GPUs and which library, the plan for each GPU, two lanes on each.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::{
    Built, ComputeCapability, DEFAULT_MAX_BATCH, DEFAULT_USUAL_BATCH, KIND, Progress,
    TensorRtConfig,
    build::{self, Batches},
    compatibility::{FLAVOUR, Flavour, Gpu, check, check_memory},
    device::{Card, KernelStore, Lane, Loaded, cards},
    library,
    pipeline::{Device, DeviceError, Pipeline, Shared},
};
use crate::{
    cache::{Key, Miss, Origin, PlanCache, hex},
    engine::{Engine, EngineConfig, EngineError, EngineInfo, Lanes, Precision},
    metrics,
    model::{Batch, BodyPrecision, Model},
};

/// Execution contexts of each GPU: while one computes, the other's images travel.
const LANES: usize = 2;
/// How often a long build says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// The library and the GPUs, found and checked.
pub(in crate::engine) struct Prepared {
    cards: Vec<Card>,
    /// The library's version.
    version: String,
}

/// Looks for the library and the GPUs. Takes a moment only where one is missing.
///
/// # Errors
/// What is missing or doesn't fit, and what to do about it.
pub(in crate::engine) fn prepare(config: &EngineConfig) -> Result<Prepared, EngineError> {
    let library = library::find(config.tensorrt.library.as_deref())?;
    let cards = cards(config.tensorrt.devices.as_deref())?;
    cards
        .iter()
        .try_for_each(|card| check(FLAVOUR, &card.facts))?;
    Ok(Prepared {
        cards,
        version: library::load(&library)?,
    })
}

impl Prepared {
    pub(in crate::engine) fn load(
        self,
        config: &EngineConfig,
        model: &Model,
    ) -> Result<Lanes, EngineError> {
        let network = Network::new(config, model, &self.version)?;
        let mut narrow: Vec<Box<dyn Engine>> = Vec::new();
        for card in &self.cards {
            let loaded = network.load(card, config)?;
            let shared = Shared::new(
                network.max_batch,
                network.batches.is_none(),
                name(&card.facts),
            );
            for _ in 0..LANES {
                narrow.push(Box::new(network.lane(card, &loaded, &shared)?));
            }
        }
        Ok(Lanes {
            info: EngineInfo {
                kind: KIND,
                version: format!("{FLAVOUR} {}", self.version),
                precision: network.precision,
                device: devices(&self.cards),
                max_batch: network.max_batch,
                fixed_batch: network.batches.is_none(),
                offloaded: true,
            },
            wide: None,
            narrow,
        })
    }
}

fn name(gpu: &Gpu) -> String {
    format!("GPU {} ({})", gpu.index, gpu.name)
}

/// The GPUs' names, each with how many there are.
fn devices(cards: &[Card]) -> String {
    let mut counted: Vec<(usize, &str)> = Vec::new();
    for card in cards {
        match counted
            .iter_mut()
            .find(|(_, name)| *name == card.facts.name)
        {
            Some((count, _)) => *count += 1,
            None => counted.push((1, &card.facts.name)),
        }
    }
    let named = |&(count, name): &(usize, &str)| {
        if count == 1 {
            name.into()
        } else {
            format!("{count} × {name}")
        }
    };
    counted
        .iter()
        .map(named)
        .collect::<Vec<String>>()
        .join(", ")
}

/// A model as TensorRT is given it.
struct Network {
    onnx: Vec<u8>,
    /// Height, width, channels.
    image: [i64; 3],
    classes: usize,
    precision: Precision,
    batches: Option<Batches>,
    max_batch: usize,
    /// What a plan for it depends on, but for the GPU.
    key: Key,
}

impl Network {
    fn new(config: &EngineConfig, model: &Model, version: &str) -> Result<Self, EngineError> {
        let precision = Precision::of(model, config.precision, Precision::Fp16, KIND)?;
        let body = match precision {
            // Between the integers little is left in float, and types are as the graph says.
            Precision::Fp32 | Precision::Int8 => BodyPrecision::Fp32,
            Precision::Fp16 => BodyPrecision::Fp16,
            Precision::Bf16 => BodyPrecision::Bf16,
        };
        let (fixed, batches, max_batch) = match model.graph.batch {
            Batch::Fixed(n) => (Some(n), None, n),
            Batch::Any => {
                let max = config.max_batch.unwrap_or(DEFAULT_MAX_BATCH).get();
                let usual = config
                    .tensorrt
                    .usual_batch
                    .map_or(DEFAULT_USUAL_BATCH, |usual| usual.get())
                    .min(max);
                (None, Some(Batches { usual, max }), max)
            }
        };
        let signed = model
            .graph
            .quantized
            .then(|| model.graph.with_signed_activations());
        let onnx = signed
            .as_ref()
            .unwrap_or(&model.graph)
            .to_onnx(fixed, body)
            .map_err(|error| {
                let advice = if precision == Precision::Fp32 {
                    ""
                } else {
                    "; --precision fp32 does without"
                };
                KIND.unsupported(format!("{error}{advice}"))
            })?;
        let key = Key::new([
            ("kind", format!("{FLAVOUR} plan")),
            ("version", version.to_owned()),
            ("precision", precision.to_string()),
            (
                "batches",
                batches.map_or_else(
                    || format!("of {max_batch}"),
                    |b| format!("1 to {}, usually {}", b.max, b.usual),
                ),
            ),
            ("workspace", config.tensorrt.workspace.to_string()),
            (
                "optimization level",
                config.tensorrt.optimization_level.to_string(),
            ),
            ("model", hex(&Sha256::digest(&onnx)[..16])),
        ]);
        Ok(Self {
            onnx,
            image: [model.geometry.height.into(), model.geometry.width.into(), 3],
            classes: model.graph.classes,
            precision,
            batches,
            max_batch,
            key,
        })
    }

    /// A plan of TensorRT-RTX is for a compute capability, whatever the card; one of TensorRT is
    /// for the card on which it was measured.
    fn key(&self, target: ComputeCapability, gpu: Option<&Gpu>) -> Key {
        let target = self.key.with("compute capability", target.to_string());
        match gpu {
            Some(gpu) if FLAVOUR == Flavour::Enterprise => target.with("GPU", gpu.name.clone()),
            _ => target,
        }
    }

    fn build(
        &self,
        target: ComputeCapability,
        config: &TensorRtConfig,
        progress: Progress,
    ) -> Result<Vec<u8>, EngineError> {
        let started = Instant::now();
        let plan = build::build(&build::Request {
            onnx: &self.onnx,
            image: self.image,
            batches: self.batches,
            target,
            workspace: config.workspace,
            optimization_level: config.optimization_level,
            progress,
        })?;
        metrics::engine_built(started.elapsed());
        Ok(plan)
    }

    /// The plan for this GPU from the cache, or a new one, on the GPU.
    fn load(&self, card: &Card, config: &EngineConfig) -> Result<Arc<Loaded>, EngineError> {
        let (gpu, config) = (&card.facts, &config.tensorrt);
        let (cache, key) = (open_cache(config)?, self.key(gpu.capability, Some(gpu)));
        let build = |miss: &Miss| {
            tracing::info!("building for {}: {miss}", name(gpu));
            card.bind()?;
            self.build(gpu.capability, config, log_progress())
        };
        let (plan, origin) = cache.get_or_make(&key, build)?;
        note(&origin, &cache, &key);
        let put = |plan: &[u8]| {
            check_memory(gpu, plan.len() as u64)?;
            Ok(Loaded::new(card, plan, kernel_store(&cache, &key, gpu))
                .map_err(|error| self.error(gpu, error)))
        };
        match put(&plan)? {
            Err(error @ EngineError::Inference { .. }) if origin == Origin::Hit => {
                let miss = Miss::Rejected(error.to_string());
                let plan = build(&miss)?;
                note(&Origin::Miss(miss), &cache, &key);
                cache.put(&key, &plan);
                put(&plan)?
            }
            loaded => loaded,
        }
    }

    fn lane(
        &self,
        card: &Card,
        loaded: &Arc<Loaded>,
        shared: &Arc<Shared>,
    ) -> Result<Pipeline<Lane>, EngineError> {
        let lane = Lane::new(loaded, self.image, self.classes)
            .map_err(|error| self.error(&card.facts, error))?;
        Pipeline::new(
            lane,
            Arc::clone(shared),
            self.image.iter().product::<i64>() as usize,
            self.classes,
        )
    }

    fn error(&self, gpu: &Gpu, error: DeviceError) -> EngineError {
        match error {
            DeviceError::OutOfMemory(reason) => EngineError::Unavailable {
                kind: KIND,
                reason: format!("{} has too little memory: {reason}", name(gpu)),
                advice: "end what else uses it (`nvidia-smi` lists that), choose another GPU with --device, or lower \
                         --max-batch"
                    .into(),
            },
            DeviceError::Lost(reason) => EngineError::Lost { kind: KIND, reason },
            DeviceError::Failed(reason) => KIND.failed(reason),
        }
    }
}

fn open_cache(config: &TensorRtConfig) -> Result<PlanCache, EngineError> {
    let unavailable = |reason: String| EngineError::Unavailable {
        kind: KIND,
        reason,
        advice: "name a folder for the plans with --engine-cache".into(),
    };
    let folder = config.cache.clone().or_else(PlanCache::default_folder);
    let folder =
        folder.ok_or_else(|| unavailable("there is no home folder to keep plans in".into()))?;
    PlanCache::open(&folder, config.cache_limit).map_err(|error| unavailable(error.to_string()))
}

/// What TensorRT-RTX compiles from a plan is for this very GPU and driver.
fn kernel_store(cache: &PlanCache, plan: &Key, gpu: &Gpu) -> KernelStore {
    let key = Key::new([
        ("kind", "compiled kernels".to_owned()),
        ("plan", plan.file_name()),
        ("GPU", gpu.name.clone()),
        ("driver", gpu.driver.to_string()),
    ]);
    let cache = cache.clone();
    KernelStore {
        kept: cache.get(&key).ok(),
        keep: Box::new(move |kernels| cache.put(&key, kernels)),
    }
}

/// Logs and counts whether a plan was found.
fn note(origin: &Origin, cache: &PlanCache, key: &Key) {
    let file = cache.folder().join(key.file_name());
    match origin {
        Origin::Hit => tracing::info!("engine cache hit: {}", file.display()),
        Origin::Miss(miss) => {
            tracing::info!("engine cache miss: {miss}; now kept in {}", file.display())
        }
    }
    metrics::engine_cache(*origin == Origin::Hit);
}

/// Says in the log how far a build is, now and then.
fn log_progress() -> Progress {
    let last = std::sync::Mutex::new(Instant::now());
    Arc::new(move |phase, done| {
        let Ok(mut last) = last.lock() else { return };
        if last.elapsed() > PROGRESS_EVERY {
            *last = Instant::now();
            tracing::info!("still building: {phase}, {:.0} %", done * 100.0);
        }
    })
}

/// Builds a plan for GPUs that need not be here, into the cache where `serve` looks for it.
///
/// # Errors
/// A missing library, a model that TensorRT can't run, GPUs that this flavour can't build for.
pub fn build_ahead(
    config: &EngineConfig,
    model: &Model,
    target: ComputeCapability,
    progress: Progress,
) -> Result<Built, EngineError> {
    if FLAVOUR == Flavour::Enterprise {
        return Err(EngineError::Unavailable {
            kind: KIND,
            reason: "the data-centre TensorRT builds only on the GPU that it builds for".into(),
            advice: "run `resnet18 serve` on that machine, or build the program with the feature tensorrt instead"
                .into(),
        });
    }
    let version = library::load(&library::find(config.tensorrt.library.as_deref())?)?;
    let network = Network::new(config, model, &version)?;
    let (cache, key) = (open_cache(&config.tensorrt)?, network.key(target, None));
    let started = Instant::now();
    let (plan, origin) =
        cache.get_or_make(&key, |_| network.build(target, &config.tensorrt, progress))?;
    note(&origin, &cache, &key);
    Ok(Built {
        target,
        file: cache.folder().join(key.file_name()),
        bytes: plan.len(),
        origin,
        took: started.elapsed(),
    })
}

/// What a batch costs on the GPU.
#[derive(Clone, Copy, Debug)]
pub struct DeviceTimes {
    /// Images in a batch.
    pub batch: usize,
    /// The network alone, by CUDA's clock.
    pub device: Duration,
    /// From images in memory to logits in memory, on one lane.
    pub lane: Duration,
}

/// Measures one lane of the first GPU for each of `batches`, without a server around it.
///
/// # Errors
/// As for starting the engine; a batch above the largest.
pub fn measure(
    config: &EngineConfig,
    model: &Model,
    batches: &[usize],
) -> Result<Vec<DeviceTimes>, EngineError> {
    const RUNS: u32 = 50;
    let Prepared { cards, version } = prepare(config)?;
    let network = Network::new(config, model, &version)?;
    let card = &cards[0];
    let loaded = network.load(card, config)?;
    let shared = Shared::new(
        network.max_batch,
        network.batches.is_none(),
        name(&card.facts),
    );
    let mut lane = network.lane(card, &loaded, &shared)?;
    let mut measured = Vec::new();
    for &batch in batches {
        let images = vec![128; batch * model.geometry.bytes()];
        let mut logits = vec![0.0; batch * network.classes];
        for _ in 0..RUNS {
            lane.infer(&images, batch, &mut logits)?;
        }
        let started = Instant::now();
        for _ in 0..RUNS {
            lane.infer(&images, batch, &mut logits)?;
        }
        let whole = started.elapsed() / RUNS;
        let device = lane
            .device()
            .device_time(batch, RUNS)
            .map_err(|error| network.error(&card.facts, error))?;
        lane.device()
            .synchronise()
            .map_err(|error| network.error(&card.facts, error))?;
        measured.push(DeviceTimes {
            batch,
            device,
            lane: whole,
        });
    }
    Ok(measured)
}
