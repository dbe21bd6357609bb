//! TensorRT on NVIDIA GPUs: finds the library and the GPUs, gets the plan from the cache or builds
//! it, and makes the lanes.
//!
//! The library and CUDA are loaded at run time, so that one program runs with and without a GPU.
//! Everything `unsafe` is in `device` and `version`; what surrounds it (splitting, halving,
//! failing) is in `pipeline`, behind a trait that tests script.

#[cfg(feature = "tensorrt")]
mod build;
#[cfg(feature = "tensorrt")]
mod compatibility;
#[cfg(feature = "tensorrt")]
mod device;
#[cfg(feature = "tensorrt")]
mod engine;
#[cfg(feature = "tensorrt")]
mod library;
#[cfg(feature = "tensorrt")]
mod pipeline;
#[cfg(feature = "tensorrt")]
mod version;

use std::{fmt, num::NonZeroUsize, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

#[cfg(feature = "tensorrt")]
pub(super) use self::engine::prepare;
#[cfg(feature = "tensorrt")]
pub use self::engine::{DeviceTimes, build_ahead, measure};
use super::EngineKind;
#[cfg(not(feature = "tensorrt"))]
use super::{EngineConfig, EngineError, Lanes};
use crate::cache::Origin;
#[cfg(not(feature = "tensorrt"))]
use crate::model::Model;

const KIND: EngineKind = EngineKind::TensorRt;

/// The most images in one call, unless something else is asked for.
pub const DEFAULT_MAX_BATCH: NonZeroUsize = NonZeroUsize::new(32).unwrap();
/// The batch that a plan is made fastest for, unless something else is asked for.
#[cfg(feature = "tensorrt")]
const DEFAULT_USUAL_BATCH: usize = 8;

/// How TensorRT builds and runs.
#[derive(Clone, Debug)]
pub struct TensorRtConfig {
    /// The TensorRT library, or the folder that holds it; `None` = look for it.
    pub library: Option<PathBuf>,
    /// Where plans are kept; `None` = the user's cache folder.
    pub cache: Option<PathBuf>,
    /// How large that folder may grow, in bytes.
    pub cache_limit: u64,
    /// The GPUs to use, by their numbers; `None` = all.
    pub devices: Option<Vec<usize>>,
    /// The batch that the plan is made fastest for; `None` = 8, or the largest where that is less.
    pub usual_batch: Option<NonZeroUsize>,
    /// The most memory that a layer may use as scratch, in bytes.
    pub workspace: u64,
    /// How hard the builder searches for fast kernels, 0 to 5.
    pub optimization_level: u8,
}

impl Default for TensorRtConfig {
    fn default() -> Self {
        Self {
            library: None,
            cache: None,
            cache_limit: 4 << 30,
            devices: Some(vec![0]),
            usual_batch: None,
            workspace: 1 << 30,
            optimization_level: 3,
        }
    }
}

/// What hardware a GPU is, as its maker counts: 8.6 is written `86` where kernels are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ComputeCapability {
    /// The generation.
    pub major: u32,
    /// The variant.
    pub minor: u32,
}

impl ComputeCapability {
    /// As one number: 86 for 8.6.
    pub fn sm(self) -> u32 {
        self.major * 10 + self.minor
    }
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for ComputeCapability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sm = text
            .trim()
            .parse()
            .ok()
            .filter(|sm| (50..1000).contains(sm));
        let sm: u32 = sm.ok_or("expected a compute capability without its dot, such as 86")?;
        Ok(Self {
            major: sm / 10,
            minor: sm % 10,
        })
    }
}

/// Told while a plan is built: the phase and how much of it is done, 0 to 1.
pub type Progress = Arc<dyn Fn(&str, f32) + Send + Sync>;

/// A plan that was built ahead of time.
#[derive(Clone, Debug)]
pub struct Built {
    /// The GPUs that it is for.
    pub target: ComputeCapability,
    /// Its file in the cache.
    pub file: PathBuf,
    /// Its size.
    pub bytes: usize,
    /// Whether it was there already, or why not.
    pub origin: Origin,
    /// How long it took.
    pub took: Duration,
}

/// Stands for the engine in a program that was built without it.
#[cfg(not(feature = "tensorrt"))]
pub(super) struct Prepared(std::convert::Infallible);

#[cfg(not(feature = "tensorrt"))]
impl Prepared {
    pub(super) fn load(self, _: &EngineConfig, _: &Model) -> Result<Lanes, EngineError> {
        match self.0 {}
    }
}

#[cfg(not(feature = "tensorrt"))]
pub(super) fn prepare(_: &EngineConfig) -> Result<Prepared, EngineError> {
    Err(absent())
}

/// Builds plans for GPUs that need not be here.
///
/// # Errors
/// Always: this program was built without the feature `tensorrt`.
#[cfg(not(feature = "tensorrt"))]
pub fn build_ahead(
    _: &EngineConfig,
    _: &Model,
    _: ComputeCapability,
    _: Progress,
) -> Result<Built, EngineError> {
    Err(absent())
}

#[cfg(not(feature = "tensorrt"))]
fn absent() -> EngineError {
    EngineError::Unavailable {
        kind: KIND,
        reason: "this program was built without it".into(),
        advice: "build it with `cargo build --release --features tensorrt` (GeForce and RTX cards) or `tensorrt-enterprise` \
                 (A100, H100, T4 and other servers)"
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compute_capabilities_are_written_as_nvidia_does() {
        let parse = |text: &str| {
            text.parse::<ComputeCapability>()
                .map(|found| (found.to_string(), found.sm()))
        };
        assert_eq!(parse("86"), Ok(("8.6".into(), 86)));
        assert_eq!(parse("120"), Ok(("12.0".into(), 120)));
        for wrong in ["8.6", "sm_86", "", "7", "-86", "99999"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
