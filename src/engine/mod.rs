//! What runs the network: one trait, its implementations, and the choice between them.

pub mod embedded;
mod openvino;
mod self_check;
pub mod tensorrt;

use std::{fmt, num::NonZeroUsize, path::PathBuf, time::Instant};

use self::tensorrt::TensorRtConfig;
use crate::model::Model;

/// Runs one network on batches of images.
///
/// An engine is owned by one OS thread at a time; it is never called from async code.
pub trait Engine: Send {
    /// Computes the logits of `n` images.
    ///
    /// `images` is `uint8 [n, height, width, 3]` (RGB), `logits` is `float32 [n, classes]`, both of
    /// exactly that size, and `n` is 1 to [`EngineInfo::max_batch`] (only `max_batch` for a network
    /// whose batch is fixed).
    ///
    /// # Errors
    /// [`EngineError::Inference`] when the engine fails; the logits are then meaningless.
    fn infer(&mut self, images: &[u8], n: usize, logits: &mut [f32]) -> Result<(), EngineError>;
}

/// What an engine is and what it can take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// Which implementation.
    pub kind: EngineKind,
    /// The implementation's own version.
    pub version: String,
    /// The arithmetic of the network's body.
    pub precision: Precision,
    /// The processor's name.
    pub device: String,
    /// The most images in one call.
    pub max_batch: usize,
    /// The network's batch is fixed in its file: every call must bring `max_batch` images.
    pub fixed_batch: bool,
    /// It computes on a device of its own: while it runs, the CPU's cores are free to decode.
    pub offloaded: bool,
}

/// One network, loaded as many times as it can run at once.
///
/// A CPU gives the shortest latency when all cores work on one batch, and the highest throughput
/// when each core works on a batch of its own. Both are kept ready, so that the scheduler can
/// choose from moment to moment.
pub struct Lanes {
    /// What all the lanes are.
    pub info: EngineInfo,
    /// Uses every core for one batch; nothing else should run beside it. Absent where there is only
    /// one core.
    pub wide: Option<Box<dyn Engine>>,
    /// Each uses one core (or is one context of the device that an offloaded engine uses), side by
    /// side; at least one.
    pub narrow: Vec<Box<dyn Engine>>,
}

/// The implementations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum EngineKind {
    /// TensorRT on NVIDIA GPUs, from a shared library.
    TensorRt,
    /// OpenVINO, from a shared library.
    OpenVino,
    /// Compiled into the program; pure Rust.
    Embedded,
}

/// The arithmetic of a network's body. Input and logits are the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Precision {
    Fp32,
    Fp16,
    Bf16,
    Int8,
}

impl Precision {
    /// What `model` runs in when `asked` was asked for and `usual` is the fastest for a float
    /// model. A quantised one is 8-bit integers whatever runs it.
    fn of(
        model: &Model,
        asked: Option<Self>,
        usual: Self,
        kind: EngineKind,
    ) -> Result<Self, EngineError> {
        match (model.graph.quantized, asked) {
            (true, None | Some(Self::Int8)) => Ok(Self::Int8),
            (true, Some(other)) => Err(kind.unsupported(format!(
                "it is quantised to int8 and can't run in {other}; leave --precision out, or give the float model that it \
                 was made of"
            ))),
            (false, Some(Self::Int8)) => Err(EngineError::NotQuantized),
            (false, asked) => Ok(asked.unwrap_or(usual)),
        }
    }
}

impl EngineKind {
    fn unsupported(self, reason: impl ToString) -> EngineError {
        EngineError::UnsupportedModel {
            kind: self,
            reason: reason.to_string(),
        }
    }

    pub(crate) fn failed(self, reason: impl ToString) -> EngineError {
        EngineError::Inference {
            kind: self,
            reason: reason.to_string(),
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::TensorRt => "tensorrt",
            Self::OpenVino => "openvino",
            Self::Embedded => "embedded",
        })
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

/// Which engine to start and how.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// `None` = the best that starts: TensorRT where the program has it, OpenVINO, then the
    /// embedded one.
    pub kind: Option<EngineKind>,
    /// `None` = int8 for a quantised model, else the fastest that the processor computes natively.
    pub precision: Option<Precision>,
    /// The OpenVINO C library, or the folder that holds it; `None` = look for it.
    pub openvino_lib: Option<PathBuf>,
    /// CPU threads in all.
    pub threads: NonZeroUsize,
    /// The most images in one call; `None` = what suits the engine.
    pub max_batch: Option<NonZeroUsize>,
    /// What suits OpenVINO: 2 to answer more images a second where many wait, 1 where rounding must
    /// not depend on which images come together.
    pub openvino_batch: NonZeroUsize,
    /// What only TensorRT asks for.
    pub tensorrt: TensorRtConfig,
}

impl EngineConfig {
    /// The best engine that starts, in the precision and with the batches that suit it.
    pub fn new(threads: NonZeroUsize) -> Self {
        Self {
            kind: None,
            precision: None,
            openvino_lib: None,
            threads,
            max_batch: None,
            openvino_batch: NonZeroUsize::MIN,
            tensorrt: TensorRtConfig::default(),
        }
    }
}

/// Why an engine can't be used.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// What the engine needs is not on this machine.
    #[error("the {kind} engine can't start: {reason}; {advice}")]
    Unavailable {
        /// Which engine.
        kind: EngineKind,
        /// What is missing.
        reason: String,
        /// What to do about it.
        advice: String,
    },
    /// The engine does not support this network.
    #[error("the {kind} engine can't run this model: {reason}")]
    UnsupportedModel {
        /// Which engine.
        kind: EngineKind,
        /// The engine's own words.
        reason: String,
    },
    /// int8 was asked for, and the model is a float one.
    #[error(
        "--precision int8 needs a quantised model, and this one is in float: make one with `resnet18 quantize`, or let \
         `resnet18 serve` do it with --calibration DIR, a folder of photos"
    )]
    NotQuantized,
    /// The engine answers differently from the embedded fp32 engine.
    #[error(
        "the {kind} engine in {precision} failed its self-check: {reason}; --precision fp32 or another --engine may pass it"
    )]
    SelfCheck {
        /// Which engine.
        kind: EngineKind,
        /// In which arithmetic.
        precision: Precision,
        /// The figures.
        reason: String,
    },
    /// A call failed.
    #[error("the {kind} engine failed: {reason}")]
    Inference {
        /// Which engine.
        kind: EngineKind,
        /// The engine's own words.
        reason: String,
    },
    /// A call failed, and so will all that follow in this process.
    #[error("the {kind} engine is lost: {reason}; the server has to be restarted")]
    Lost {
        /// Which engine.
        kind: EngineKind,
        /// The engine's own words.
        reason: String,
    },
}

/// Starts an engine for `model`, checks its answers and warms it up.
///
/// # Errors
/// A forced engine that can't start, or none that can.
pub fn start(config: &EngineConfig, model: &Model) -> Result<Lanes, EngineError> {
    let candidates: &[EngineKind] = match &config.kind {
        Some(kind) => std::slice::from_ref(kind),
        None if cfg!(feature = "tensorrt") => &[
            EngineKind::TensorRt,
            EngineKind::OpenVino,
            EngineKind::Embedded,
        ],
        None => &[EngineKind::OpenVino, EngineKind::Embedded],
    };
    if config.precision == Some(Precision::Int8) && !model.graph.quantized {
        return Err(EngineError::NotQuantized);
    }
    for (i, &kind) in candidates.iter().enumerate() {
        match start_one(kind, config, model) {
            Ok(lanes) => return Ok(lanes),
            Err(error) if i + 1 == candidates.len() => return Err(error),
            Err(error) => tracing::warn!("{error}; trying the {} engine", candidates[i + 1]),
        }
    }
    unreachable!("there is always a candidate, and the last one returns")
}

fn start_one(kind: EngineKind, config: &EngineConfig, model: &Model) -> Result<Lanes, EngineError> {
    let started = Instant::now();
    let mut lanes = match kind {
        EngineKind::Embedded => {
            if model.graph.quantized {
                tracing::warn!(
                    "the embedded engine computes this int8 model in fp32: its answers are right, but it is slower than the \
                     float model; OpenVINO and TensorRT are fast with it"
                );
            }
            embedded::load(config, model)?
        }
        EngineKind::TensorRt => {
            let prepared = tensorrt::prepare(config)?;
            self_check::load_checked(|| prepared.load(config, model), model)?
        }
        EngineKind::OpenVino => {
            match self_check::load_checked(|| openvino::load(config, model), model) {
                Err(error @ EngineError::SelfCheck { precision, .. })
                    if config.precision.is_none()
                        && precision != Precision::Fp32
                        && !model.graph.quantized =>
                {
                    tracing::warn!("{error}; going on in fp32");
                    let config = EngineConfig {
                        precision: Some(Precision::Fp32),
                        ..config.clone()
                    };
                    self_check::load_checked(|| openvino::load(&config, model), model)?
                }
                checked => checked?,
            }
        }
    };
    let loaded = started.elapsed();
    warm_up(&mut lanes, model)?;
    tracing::debug!(
        engine = %kind,
        version = lanes.info.version,
        precision = %lanes.info.precision,
        device = lanes.info.device,
        lanes = lanes.narrow.len(),
        "engine loaded and checked in {:.0?}, warmed up in {:.0?}",
        loaded,
        started.elapsed() - loaded,
    );
    Ok(lanes)
}

/// Runs every batch size once on every lane, so that no request pays for lazy initialisation.
fn warm_up(lanes: &mut Lanes, model: &Model) -> Result<(), EngineError> {
    let (max_batch, fixed_batch) = (lanes.info.max_batch, lanes.info.fixed_batch);
    let sizes = if fixed_batch {
        max_batch..=max_batch
    } else {
        1..=max_batch
    };
    let image = model.geometry.bytes();
    let images = vec![0; max_batch * image];
    let run_all = |engine: &mut Box<dyn Engine>| {
        let mut logits = vec![0.0; max_batch * model.graph.classes];
        sizes.clone().try_for_each(|n| {
            engine.infer(
                &images[..n * image],
                n,
                &mut logits[..n * model.graph.classes],
            )
        })
    };
    lanes.wide.iter_mut().try_for_each(run_all)?;
    std::thread::scope(|scope| {
        let lanes: Vec<_> = lanes
            .narrow
            .iter_mut()
            .map(|lane| scope.spawn(|| run_all(lane)))
            .collect();
        lanes.into_iter().try_for_each(|lane| {
            lane.join()
                .expect("an engine reports errors instead of panicking")
        })
    })
}

/// Ends the process without the destructors of C++ libraries, which would run under threads that
/// may still compute.
#[allow(unsafe_code)]
pub fn exit_at_once(status: i32) -> ! {
    // SAFETY: `_exit` may be called at any time and from any thread; it runs no code of the
    // process.
    unsafe { libc::_exit(status) }
}

/// Of several files the one whose name bears the newest version: 1.10 is newer than 1.7.
fn newest(files: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let version = |path: &PathBuf| -> Vec<u64> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect()
    };
    files.max_by_key(|path| (version(path), path.clone()))
}

/// The CPU's name, as its maker calls it.
fn cpu_name() -> String {
    let linux = std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|info| {
            let line = info.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
    linux.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_several_libraries_is_found_by_its_version() {
        let newest_of = |names: &[&str]| newest(names.iter().map(PathBuf::from)).unwrap();
        assert_eq!(
            newest_of(&["a/lib.so.1.7.1", "a/lib.so.1.10.0", "a/lib.so.1.9"]),
            PathBuf::from("a/lib.so.1.10.0")
        );
        assert_eq!(
            newest_of(&["lib.so", "lib.so.2640"]),
            PathBuf::from("lib.so.2640")
        );
        assert_eq!(newest(std::iter::empty()), None);
    }
}
