//! Whether a driver, a GPU and a flavour of TensorRT are compatible; from plain data, so that tests
//! need no GPU.

use std::fmt;

use super::{ComputeCapability, KIND};
use crate::engine::EngineError;

/// The two products that are called TensorRT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    /// TensorRT for RTX: compiles for the GPU when it starts; needs no GPU to build.
    Rtx,
    /// The data-centre TensorRT: measures kernels on the GPU while it builds.
    Enterprise,
}

/// How to free memory on a GPU that has too little.
pub(super) const MAKE_ROOM: &str = "end what else uses it (`nvidia-smi` lists that), choose \
                                    another GPU with --device, or lower --max-batch";

impl Flavour {
    /// The CUDA that its libraries are built with.
    fn cuda(self) -> CudaVersion {
        match self {
            Self::Rtx => CudaVersion {
                major: 12,
                minor: 9,
            },
            Self::Enterprise => CudaVersion {
                major: 13,
                minor: 4,
            },
        }
    }

    /// The oldest driver that is documented to work, as the CUDA that it supports. Minor versions
    /// of CUDA are compatible.
    fn oldest_driver(self) -> CudaVersion {
        match self {
            Self::Rtx => CudaVersion {
                major: 12,
                minor: 0,
            },
            // For the libraries that are built for CUDA 12; those for CUDA 13 need its driver.
            Self::Enterprise => CudaVersion {
                major: 12,
                minor: 2,
            },
        }
    }

    /// Whether it has kernels for this hardware.
    fn supports(self, capability: ComputeCapability) -> bool {
        match self {
            Self::Rtx => [75, 80, 86, 89, 120, 121].contains(&capability.sm()),
            Self::Enterprise => capability.sm() >= 75,
        }
    }

    /// The Cargo feature that builds it.
    fn feature(self) -> &'static str {
        match self {
            Self::Rtx => "tensorrt",
            Self::Enterprise => "tensorrt-enterprise",
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Rtx => Self::Enterprise,
            Self::Enterprise => Self::Rtx,
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Rtx => "TensorRT-RTX",
            Self::Enterprise => "TensorRT",
        })
    }
}

/// A version of CUDA, such as 12.9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CudaVersion {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl CudaVersion {
    /// Parses CUDA's own number, such as 12090 for 12.9.
    pub(super) fn from_number(number: i32) -> Self {
        let number = number.unsigned_abs();
        Self {
            major: number / 1000,
            minor: number % 1000 / 10,
        }
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What the driver tells about a GPU before anything runs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GpuInfo {
    /// CUDA's index, as in `--device`.
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) capability: ComputeCapability,
    /// The newest CUDA that the driver supports.
    pub(super) driver: CudaVersion,
    /// In bytes, when the engine was started.
    pub(super) free_memory: u64,
    /// In bytes.
    pub(super) total_memory: u64,
}

/// For messages, such as `GPU 0 (NVIDIA L4)`.
impl fmt::Display for GpuInfo {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "GPU {} ({})", self.index, self.name)
    }
}

/// Refuses a driver or a GPU that can't work, before any library is loaded.
pub(super) fn check_support(flavour: Flavour, gpu: &GpuInfo) -> Result<(), EngineError> {
    if gpu.driver < flavour.oldest_driver() {
        return Err(EngineError::Unavailable {
            kind: KIND,
            reason: format!(
                "the NVIDIA driver is too old: it supports CUDA {}, and {flavour} is built with \
                 CUDA {}",
                gpu.driver,
                flavour.cuda()
            ),
            advice: format!(
                "install a driver for CUDA {} or newer",
                flavour.oldest_driver()
            ),
        });
    }

    if !flavour.supports(gpu.capability) {
        let other = flavour.other();
        let advice = if other.supports(gpu.capability) {
            format!(
                "build the program for {other}: `cargo build --release --features {}`",
                other.feature()
            )
        } else {
            "use --engine openvino; TensorRT needs a GPU of the Turing generation (7.5) or newer"
                .into()
        };
        return Err(EngineError::Unavailable {
            kind: KIND,
            reason: format!(
                "{flavour} does not support GPU {}, {} with compute capability {}",
                gpu.index, gpu.name, gpu.capability
            ),
            advice,
        });
    }
    Ok(())
}

/// Refuses a GPU that has less than `needed` bytes free.
pub(super) fn check_memory(gpu: &GpuInfo, needed: u64) -> Result<(), EngineError> {
    if needed <= gpu.free_memory {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(EngineError::Unavailable {
        kind: KIND,
        reason: format!(
            "GPU {}, {}, has too little memory: at least {} MiB are needed, {} of {} MiB are free",
            gpu.index,
            gpu.name,
            mib(needed),
            gpu.free_memory >> 20,
            mib(gpu.total_memory)
        ),
        advice: MAKE_ROOM.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(name: &str, sm: u32, driver: i32) -> GpuInfo {
        GpuInfo {
            index: 0,
            name: name.into(),
            capability: ComputeCapability {
                major: sm / 10,
                minor: sm % 10,
            },
            driver: CudaVersion::from_number(driver),
            free_memory: 500 << 20,
            total_memory: 8 << 30,
        }
    }

    #[test]
    fn what_the_vendor_documents_passes() {
        for sm in [75, 86, 89, 120] {
            assert!(
                check_support(Flavour::Rtx, &gpu("an RTX card", sm, 12090)).is_ok(),
                "{sm}"
            );
        }
        for (name, sm) in [("Tesla T4", 75), ("A100", 80), ("H100", 90)] {
            assert!(
                check_support(Flavour::Enterprise, &gpu(name, sm, 13000)).is_ok(),
                "{name}"
            );
        }
    }

    #[test]
    fn an_old_driver_is_refused_with_both_versions() {
        let error = check_support(Flavour::Rtx, &gpu("RTX 3090", 86, 11080))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("CUDA 11.8") && error.contains("CUDA 12.9"),
            "{error}"
        );
    }

    #[test]
    fn a_data_centre_gpu_is_sent_to_the_other_flavour_and_an_old_one_to_none() {
        let error = check_support(Flavour::Rtx, &gpu("NVIDIA H100", 90, 12090))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("H100")
                && error.contains("9.0")
                && error.contains("tensorrt-enterprise"),
            "{error}"
        );
        let error = check_support(Flavour::Enterprise, &gpu("GTX 1080", 61, 13000))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("Turing") && error.contains("--engine openvino"),
            "{error}"
        );
    }

    #[test]
    fn too_little_memory_says_how_much_there_is() {
        let gpu = gpu("RTX 3090", 86, 12090);
        assert!(check_memory(&gpu, 400 << 20).is_ok());
        let error = check_memory(&gpu, 600 << 20).unwrap_err().to_string();
        assert!(
            error.contains("600 MiB")
                && error.contains("500 of 8192 MiB")
                && error.contains("--max-batch"),
            "{error}"
        );
    }
}
