//! OpenVINO on the CPU, from a shared library that is found at run time.

#[cfg(test)]
pub(super) mod conformance;
mod library;
mod limits;
#[cfg(test)]
mod tests;
mod tuning;

use std::{num::NonZeroUsize, path::PathBuf};

use openvino::{
    Core, DeviceType, ElementType, InferRequest, PropertyKey, RwPropertyKey, Shape, Tensor,
};

use super::{
    Engine, EngineConfig, EngineError, EngineInfo, EngineKind, Lanes, Precision, Results, processor,
};
use crate::model::{Batch, BodyPrecision, EMBEDDING, LOGITS, Model};

const KIND: EngineKind = EngineKind::OpenVino;

/// Settings of the OpenVINO engine.
#[derive(Clone, Debug)]
pub struct OpenVinoConfig {
    /// The OpenVINO C library, or its folder; `None` looks for a fetched or an installed one.
    pub library: Option<PathBuf>,
    /// Largest batch unless [`EngineConfig::max_batch`] sets one, or measuring chooses another one:
    /// [`Self::SERVING_BATCH`] when many images wait, 1 if rounding must not depend on which images
    /// arrive together, and then it is not measured.
    pub batch: NonZeroUsize,
    /// The precision of a float model unless [`EngineConfig::precision`] sets one; `None` means the
    /// one that is fastest on most processors of this kind.
    pub float: Option<Precision>,
    /// Whether precision and largest batch are measured.
    pub tuning: Tuning,
}

/// Whether precision and largest batch are chosen by measuring, where nobody has set them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tuning {
    /// They are [`OpenVinoConfig::float`] and [`OpenVinoConfig::batch`].
    #[default]
    Off,
    /// As they were measured at an earlier start, if they were.
    Kept,
    /// The same, or else measured now.
    Measured,
}

impl OpenVinoConfig {
    /// The largest batch of a server that has not measured: on most processors two images in a batch
    /// are a few percent faster than one after the other.
    pub const SERVING_BATCH: NonZeroUsize = NonZeroUsize::new(2).unwrap();
}

impl Default for OpenVinoConfig {
    fn default() -> Self {
        Self {
            library: None,
            batch: NonZeroUsize::MIN,
            float: None,
            tuning: Tuning::Off,
        }
    }
}

/// The configuration with the precision and the largest batch that suit `model`, from an earlier start
/// or measured now where [`Tuning`] says so.
pub(super) fn tuned(config: &EngineConfig, model: &Model) -> EngineConfig {
    tuning::tuned(config, model)
}

/// Loads the library and compiles `model`, without running it.
///
/// # Errors
/// If there is no usable library, or OpenVINO does not support the model or the precision.
pub(super) fn load(config: &EngineConfig, model: &Model) -> Result<Lanes, EngineError> {
    let prepared = Prepared::new(config, model)?;
    let threads = config.threads.get();
    let wide = Placement::wide(threads);
    let placements: Vec<_> = std::iter::once(Placement::narrow(threads))
        .chain(wide)
        .collect();
    let mut lanes = prepared.compiler.lanes(&placements)?;
    let wide = lanes.split_off(lanes.len() - wide.map_or(0, |wide| wide.lanes));
    Ok(Lanes {
        info: prepared.info,
        narrow: lanes,
        wide: wide.into_iter().next(),
        plans: Vec::new(),
    })
}

/// Loads only the narrow lanes.
///
/// # Errors
/// As for [`load`].
fn load_narrow(config: &EngineConfig, model: &Model) -> Result<Vec<Box<dyn Engine>>, EngineError> {
    let prepared = Prepared::new(config, model)?;
    prepared
        .compiler
        .lanes(&[Placement::narrow(config.threads.get())])
}

/// One compiled network: what it uses of the processor, and how many lanes it serves.
#[derive(Clone, Copy)]
struct Placement {
    /// Without streams, it serves one lane, on the calling thread.
    streams: usize,
    threads: usize,
    lanes: usize,
}

impl Placement {
    /// One lane for each thread. They share one copy of the weights: with one for each, some chips
    /// are 2 % faster and others not at all.
    fn narrow(threads: usize) -> Self {
        let streams = if threads == 1 { 0 } else { threads };
        Self {
            streams,
            threads,
            lanes: threads,
        }
    }

    /// One lane that uses all threads; `None` if there is only one.
    fn wide(threads: usize) -> Option<Self> {
        (threads > 1).then_some(Self {
            streams: 1,
            threads,
            lanes: 1,
        })
    }
}

/// A model that has been read and can be compiled.
struct Prepared {
    compiler: Compiler,
    info: EngineInfo,
}

impl Prepared {
    fn new(config: &EngineConfig, model: &Model) -> Result<Self, EngineError> {
        let library = library::load(config.openvino.library.as_deref())?;
        if let Some(reason) = model.graph.beyond(limits::LIMITS) {
            return Err(KIND.unsupported(reason));
        }
        let mut core = Core::new().map_err(|error| library::unusable(&library, error))?;
        let precision = choose_precision(&core, config, model)?;
        let device = core
            .get_property(&DeviceType::CPU, &PropertyKey::DeviceFullName)
            .map_err(|error| KIND.failed(error))?;

        let max_batch = match model.graph.batch {
            Batch::Fixed(n) => n,
            Batch::Any => config.max_batch.unwrap_or(config.openvino.batch).get(),
        };
        let fixed_batch = matches!(model.graph.batch, Batch::Fixed(_));
        // A static shape runs faster than a symbolic one.
        let static_batch = (max_batch == 1 || fixed_batch).then_some(max_batch);
        let (network, embedding) = read_network(&mut core, model, static_batch, precision)?;

        Ok(Self {
            compiler: Compiler {
                network,
                precision,
                image_shape: [model.geometry.height.into(), model.geometry.width.into(), 3],
            },
            info: EngineInfo {
                kind: KIND,
                version: library_version(),
                precision,
                device,
                max_batch,
                fixed_batch,
                batch_sizes: Vec::new(),
                offloaded: false,
                embedding,
                warnings: Vec::new(),
            },
        })
    }
}

/// The path of the library that [`load`] uses, with its size and time, which differ from version to
/// version; empty if there is none.
pub(super) fn library_stamp(config: &EngineConfig) -> String {
    library::stamp(config.openvino.library.as_deref())
}

/// The build number without its suffixes, such as `2026.4.1`.
fn library_version() -> String {
    let build_number = openvino::version().build_number;
    match build_number.split_once('-') {
        Some((version, _)) => version.to_owned(),
        None => build_number,
    }
}

/// Reads the model with a body in `precision`; `batch` is `None` for a symbolic batch dimension.
/// Also returns how many values its embeddings have, if it gives some.
fn read_network(
    core: &mut Core,
    model: &Model,
    batch: Option<usize>,
    precision: Precision,
) -> Result<(openvino::Model, Option<usize>), EngineError> {
    let body = match precision {
        Precision::Fp32 | Precision::Int8 => BodyPrecision::Fp32,
        Precision::Fp16 => BodyPrecision::Fp16,
        Precision::Bf16 => BodyPrecision::Bf16,
    };
    let mut read = |body: BodyPrecision| -> Result<_, EngineError> {
        let serving = model
            .graph
            .to_serve(batch, body)
            .map_err(|error| KIND.unsupported(error))?;
        let network = core
            .read_model_from_buffer(&serving.onnx, None)
            .map_err(|error| KIND.unsupported(error))?;
        Ok((network, serving.embedding))
    };

    // Typing the body halves the memory that OpenVINO keeps for the weights. A network that can't
    // be typed still runs in the same arithmetic, because of the precision hint.
    match read(body) {
        Err(error) if body != BodyPrecision::Fp32 => {
            tracing::debug!("{error}; leaving the choice of types to OpenVINO");
            read(BodyPrecision::Fp32)
        }
        result => result,
    }
}

/// What OpenVINO says the processor computes in.
struct Capabilities(String);

impl Capabilities {
    fn of(core: &Core) -> Result<Self, EngineError> {
        core.get_property(&DeviceType::CPU, &PropertyKey::DeviceCapabilities)
            .map(Self)
            .map_err(|error| KIND.failed(error))
    }

    fn has(&self, name: &str) -> bool {
        self.0.split_whitespace().any(|word| word == name)
    }

    /// The half precision that the processor computes in, else fp32.
    fn float(&self) -> Precision {
        if self.has("BF16") {
            Precision::Bf16
        } else if self.has("FP16") {
            Precision::Fp16
        } else {
            Precision::Fp32
        }
    }
}

/// The half precision that the processor computes in, else fp32.
///
/// # Errors
/// If there is no usable library.
fn claimed_float(config: &EngineConfig) -> Result<Precision, EngineError> {
    let library = library::load(config.openvino.library.as_deref())?;
    let core = Core::new().map_err(|error| library::unusable(&library, error))?;
    Ok(Capabilities::of(&core)?.float())
}

/// The fastest precision on a processor that `claims` to compute in this one. Intel's compute faster
/// in half precision only with units for matrices (AMX); in vectors it takes 1.7 times as long as
/// fp32.
fn guessed_float(claims: Precision) -> Precision {
    let unit = match claims {
        Precision::Bf16 => "amx_bf16",
        Precision::Fp16 => "amx_fp16",
        Precision::Fp32 | Precision::Int8 => return claims,
    };
    if processor::is_intel_without(unit) {
        Precision::Fp32
    } else {
        claims
    }
}

fn choose_precision(
    core: &Core,
    config: &EngineConfig,
    model: &Model,
) -> Result<Precision, EngineError> {
    let capabilities = Capabilities::of(core)?;
    let has = |name: &str| capabilities.has(name);
    let fastest = config.openvino.float;
    let fastest = fastest.unwrap_or_else(|| guessed_float(capabilities.float()));
    let precision = Precision::choose(model, config.precision, fastest, KIND)?;
    let is_native = match precision {
        Precision::Bf16 => has("BF16"),
        Precision::Fp16 => has("FP16"),
        Precision::Fp32 | Precision::Int8 => true,
    };
    if !is_native {
        return Err(EngineError::Unavailable {
            kind: KIND,
            reason: format!(
                "this processor does not compute in {precision} (it has {})",
                capabilities.0
            ),
            advice: format!("use --precision {fastest} or auto"),
        });
    }
    Ok(precision)
}

/// Compiles one network for different numbers of threads.
struct Compiler {
    network: openvino::Model,
    precision: Precision,
    /// Height, width, channels.
    image_shape: [i64; 3],
}

impl Compiler {
    /// The lanes of all placements, in their order. Each is compiled by a thread of its own.
    fn lanes(&self, placements: &[Placement]) -> Result<Vec<Box<dyn Engine>>, EngineError> {
        let lanes: Result<Vec<_>, EngineError> = std::thread::scope(|scope| {
            let threads: Vec<_> = placements
                .iter()
                .map(|placement| scope.spawn(|| self.compile(*placement)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("OpenVINO's errors are no panics"))
                .collect()
        });
        Ok(lanes?.into_iter().flatten().collect())
    }

    fn compile(&self, placement: Placement) -> Result<Vec<Box<dyn Engine>>, EngineError> {
        let precision_hint = match self.precision {
            // A quantized network has little float arithmetic left between its integer layers, and
            // conversions cost more than bf16 gains there.
            Precision::Fp32 | Precision::Int8 => "f32",
            Precision::Fp16 => "f16",
            Precision::Bf16 => "bf16",
        };
        let settings = [
            ("NUM_STREAMS", placement.streams.to_string()),
            ("INFERENCE_NUM_THREADS", placement.threads.to_string()),
            ("INFERENCE_PRECISION_HINT", precision_hint.into()),
            // With pinning, two streams can end up on one core.
            ("ENABLE_CPU_PINNING", "NO".into()),
        ];
        // The settings belong to the core, and other threads have other ones.
        let mut core = Core::new().map_err(|error| KIND.failed(error))?;
        for (key, value) in settings {
            core.set_property(&DeviceType::CPU, &RwPropertyKey::Other(key.into()), &value)
                .map_err(|error| KIND.failed(error))?;
        }
        let mut compiled = core
            .compile_model(&self.network, DeviceType::CPU)
            .map_err(|error| KIND.unsupported(error))?;
        (0..placement.lanes)
            .map(|_| {
                let request = compiled
                    .create_infer_request()
                    .map_err(|error| KIND.failed(error))?;
                Ok(Box::new(OpenVino::new(request, self.image_shape)) as Box<dyn Engine>)
            })
            .collect()
    }
}

struct OpenVino {
    request: InferRequest,
    /// Height, width, channels.
    image_shape: [i64; 3],
    /// Batch size of the request's input tensor; `None` before the first call.
    batch: Option<usize>,
}

impl OpenVino {
    fn new(request: InferRequest, image_shape: [i64; 3]) -> Self {
        Self {
            request,
            image_shape,
            batch: None,
        }
    }

    /// Gives the request an input tensor for `n` images, unless it has one already.
    fn set_batch(&mut self, n: usize) -> Result<(), EngineError> {
        if self.batch == Some(n) {
            return Ok(());
        }
        let [height, width, channels] = self.image_shape;
        let shape =
            Shape::new(&[n as i64, height, width, channels]).map_err(|error| KIND.failed(error))?;
        let tensor = Tensor::new(ElementType::U8, &shape).map_err(|error| KIND.failed(error))?;
        self.request
            .set_input_tensor(&tensor)
            .map_err(|error| KIND.failed(error))?;
        self.batch = Some(n);
        Ok(())
    }
}

impl Engine for OpenVino {
    fn infer(&mut self, images: &[u8], n: usize, logits: &mut [f32]) -> Result<(), EngineError> {
        self.run(images, n)?;
        self.read(LOGITS, logits)
    }

    fn infer_with_embeddings(
        &mut self,
        images: &[u8],
        n: usize,
        results: Results<'_>,
    ) -> Result<(), EngineError> {
        self.run(images, n)?;
        self.read(LOGITS, results.logits)?;
        self.read(EMBEDDING, results.embeddings)
    }
}

impl OpenVino {
    /// Computes all outputs of these images.
    fn run(&mut self, images: &[u8], n: usize) -> Result<(), EngineError> {
        self.set_batch(n)?;
        let mut input = self
            .request
            .get_input_tensor()
            .map_err(|error| KIND.failed(error))?;
        input
            .get_raw_data_mut()
            .map_err(|error| KIND.failed(error))?
            .copy_from_slice(images);

        self.request.infer().map_err(|error| KIND.failed(error))
    }

    /// Copies an output of the images that were computed last.
    fn read(&self, name: &str, target: &mut [f32]) -> Result<(), EngineError> {
        let output = self
            .request
            .get_tensor(name)
            .map_err(|error| KIND.failed(error))?;
        let values = output
            .get_data::<f32>()
            .map_err(|error| KIND.failed(error))?;
        KIND.copy_logits(values, target)
    }
}
