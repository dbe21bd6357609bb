//! TensorRT on NVIDIA GPUs, if the program is built with the feature `tensorrt`.
//!
//! `enabled` is the engine, `disabled` stands in for it in other programs; both have the same
//! interface. The types here are common to both.

#[cfg(not(feature = "tensorrt"))]
mod disabled;
#[cfg(feature = "tensorrt")]
mod enabled;

use std::{fmt, num::NonZeroUsize, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

#[cfg(not(feature = "tensorrt"))]
use self::disabled as implementation;
#[cfg(feature = "tensorrt")]
use self::enabled as implementation;

#[cfg(all(test, feature = "tensorrt"))]
pub(crate) use self::enabled::hanging_lane;
#[cfg(feature = "tensorrt")]
pub use self::enabled::{DeviceTimes, gpu_uuids, measure, plumbing};
pub use self::implementation::build_ahead;
pub(super) use self::implementation::{COMPILED_IN, prepare};

use super::EngineKind;
use crate::cache::Origin;

const KIND: EngineKind = EngineKind::TensorRt;

/// Settings of the TensorRT engine.
#[derive(Clone, Debug)]
pub struct TensorRtConfig {
    /// The TensorRT library, or its folder; `None` looks for a fetched or an installed one.
    pub library: Option<PathBuf>,
    /// Folder that plans are kept in; `None` means the user's cache folder.
    pub cache: Option<PathBuf>,
    /// Largest size of that folder, in bytes.
    pub cache_limit: u64,
    /// Indices of the GPUs to use; `None` means all.
    pub devices: Option<Vec<usize>>,
    /// Batch size that the plan is optimized for; `None` means 8, or the largest batch if that is
    /// smaller.
    pub usual_batch: Option<NonZeroUsize>,
    /// Most scratch memory that a layer may use, in bytes.
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

/// NVIDIA's number for a generation of GPUs, such as 8.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ComputeCapability {
    pub major: u32,
    pub minor: u32,
}

impl ComputeCapability {
    /// The number without its dot, as in the names of kernels: 86 for 8.6.
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
        let sm: u32 = text
            .trim()
            .parse()
            .ok()
            .filter(|sm| (50..1000).contains(sm))
            .ok_or("expected a compute capability without its dot, such as 86")?;
        Ok(Self {
            major: sm / 10,
            minor: sm % 10,
        })
    }
}

/// Called while a plan is built, with the name of the phase and how much of it is done, 0 to 1.
pub type Progress = Arc<dyn Fn(&str, f32) + Send + Sync>;

/// How the plan for one GPU was obtained.
#[derive(Clone, Debug)]
pub struct PlanOutcome {
    /// Whether the cache held it.
    pub origin: Origin,
    /// How long building took; `None` if it was not built.
    pub build_time: Option<Duration>,
}

/// A plan that was built ahead of time.
#[derive(Clone, Debug)]
pub struct BuiltPlan {
    /// The GPUs that it is for.
    pub target: ComputeCapability,
    /// Its file in the cache.
    pub file: PathBuf,
    /// Its size.
    pub bytes: usize,
    /// Whether the cache held it, or why not.
    pub origin: Origin,
    /// How long it took to find or build it.
    pub took: Duration,
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
