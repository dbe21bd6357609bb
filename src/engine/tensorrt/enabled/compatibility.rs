//! Whether a driver, a GPU and a flavour of TensorRT are compatible; from plain data, so that tests
//! need no GPU.

use std::fmt;

use super::{ComputeCapability, KIND};
use crate::engine::{EngineError, Precision};

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

    /// The oldest driver that may work, as the CUDA that it supports: NVIDIA documents that programs
    /// for a newer minor version of CUDA run on it. Between this one and [`cuda`](Self::cuda) a
    /// warning is logged.
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

    /// Whether it multiplies no float32 matrices on this hardware. Convolutions work, so that the
    /// last layer of a classifier becomes one.
    pub(super) fn needs_convolutions(
        self,
        capability: ComputeCapability,
        precision: Precision,
    ) -> bool {
        self == Self::Rtx
            && capability.sm() == 75
            && matches!(precision, Precision::Fp32 | Precision::Int8)
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
    /// As `nvidia-smi -L` prints it.
    pub(super) uuid: String,
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

    if flavour.supports(gpu.capability) {
        return Ok(());
    }
    Err(EngineError::Unavailable {
        kind: KIND,
        reason: format!(
            "{flavour} does not support GPU {}, {} with compute capability {}",
            gpu.index, gpu.name, gpu.capability
        ),
        advice: instead_of(flavour, gpu.capability),
    })
}

/// What to do with a GPU that this flavour does not support.
fn instead_of(flavour: Flavour, capability: ComputeCapability) -> String {
    let other = flavour.other();
    if other.supports(capability) {
        format!(
            "build the program for {other}: `cargo build --release --features {}`",
            other.feature()
        )
    } else {
        "use --engine openvino; TensorRT needs a GPU of the Turing generation (7.5) or newer".into()
    }
}

/// Refuses to build for a kind of GPU that this flavour does not support.
pub(super) fn check_target(flavour: Flavour, target: ComputeCapability) -> Result<(), EngineError> {
    if flavour.supports(target) {
        return Ok(());
    }
    Err(EngineError::Unavailable {
        kind: KIND,
        reason: format!("{flavour} builds nothing for compute capability {target}"),
        advice: instead_of(flavour, target),
    })
}

/// Refuses a precision that the hardware lacks.
pub(super) fn check_precision(
    target: ComputeCapability,
    precision: Precision,
) -> Result<(), EngineError> {
    if precision == Precision::Bf16 && target.major < 8 {
        return Err(KIND.unsupported(format!(
            "GPUs of compute capability {target} do not compute in {precision}; use --precision \
             fp16, which is the default on a GPU"
        )));
    }
    Ok(())
}

/// A warning for the log if the driver is older than the CUDA version that TensorRT was built with.
pub(super) fn driver_warning(flavour: Flavour, driver: CudaVersion) -> Option<String> {
    (driver < flavour.cuda()).then(|| {
        format!(
            "the NVIDIA driver supports CUDA {driver}, and {flavour} is built with CUDA {}: NVIDIA \
             documents that this works within CUDA {}, but names a driver for {} as its \
             requirement",
            flavour.cuda(),
            driver.major,
            flavour.cuda(),
        )
    })
}

/// Adds to TensorRT's reason for refusing a network what can be done about it.
pub(super) fn explain_refusal(
    reason: String,
    target: ComputeCapability,
    precision: Precision,
    workspace: u64,
) -> String {
    if let Some(advice) = more_workspace(&reason, workspace) {
        return format!("{reason}; {advice}");
    }
    if reason.contains("GEMM is not supported") {
        let float_model = match precision {
            Precision::Int8 => "serve the float model that it was made from in fp16",
            _ => "use --precision fp16",
        };
        return format!(
            "{reason}; compute capability {target} multiplies no {precision} matrices, and not all \
             of this network's layers can be rewritten as convolutions: {float_model}"
        );
    }
    reason
}

/// How to get more scratch memory, where TensorRT had too little.
fn more_workspace(reason: &str, workspace: u64) -> Option<String> {
    if !reason.contains("OutOfMemory") {
        return None;
    }
    let requested: Option<u64> = reason
        .split_once("Requested size was ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    // TensorRT names the first request that failed, and more would have followed.
    let more = 2 * mib(requested.unwrap_or(0).max(workspace));
    Some(format!(
        "layers may use {} MiB of scratch memory: allow them more, such as --workspace-mib {more}, \
         or lower --max-batch",
        mib(workspace)
    ))
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
            uuid: String::new(),
        }
    }

    fn capability(sm: u32) -> ComputeCapability {
        sm.to_string().parse().unwrap()
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

    #[test]
    fn an_older_driver_of_the_same_cuda_is_doubted_and_a_matching_one_is_not() {
        let warning = |number| driver_warning(Flavour::Rtx, CudaVersion::from_number(number));
        let said = warning(12040).unwrap();
        assert!(
            said.contains("CUDA 12.4") && said.contains("CUDA 12.9"),
            "{said}"
        );
        assert_eq!(warning(12090), None);
        assert_eq!(warning(13000), None);
        assert!(check_support(Flavour::Rtx, &gpu("RTX 3090", 86, 12000)).is_ok());
    }

    #[test]
    fn turing_computes_no_bf16() {
        let check = |sm| check_precision(capability(sm), Precision::Bf16);
        let error = check(75).unwrap_err().to_string();
        assert!(
            error.contains("7.5") && error.contains("--precision fp16"),
            "{error}"
        );
        assert!(check(80).is_ok());
        assert!(check_precision(capability(75), Precision::Fp32).is_ok());
    }

    #[test]
    fn only_turing_needs_convolutions_and_not_in_fp16() {
        let needs = |sm, precision| Flavour::Rtx.needs_convolutions(capability(sm), precision);
        assert!(needs(75, Precision::Fp32) && needs(75, Precision::Int8));
        assert!(!needs(75, Precision::Fp16) && !needs(86, Precision::Fp32));
        assert!(!Flavour::Enterprise.needs_convolutions(capability(75), Precision::Fp32));
    }

    #[test]
    fn too_little_scratch_memory_names_the_flag() {
        let reason = "Error Code 2: OutOfMemory (Requested size was 1096194004 bytes.)";
        let explain =
            |reason: &str| explain_refusal(reason.into(), capability(86), Precision::Fp16, 1 << 30);
        let said = explain(reason);
        assert!(
            said.starts_with(reason)
                && said.contains("--workspace-mib 2092")
                && said.contains("1024 MiB")
                && said.contains("--max-batch"),
            "{said}"
        );
        assert!(explain("OutOfMemory").contains("--workspace-mib 2048"));
        assert_eq!(explain("no such operator"), "no such operator");
    }

    #[test]
    fn a_float32_product_on_turing_is_explained() {
        let explain = |precision| {
            explain_refusal(
                "FP32 GEMM is not supported".into(),
                capability(75),
                precision,
                1,
            )
        };
        let said = explain(Precision::Fp32);
        assert!(
            said.contains("7.5") && said.contains("--precision fp16"),
            "{said}"
        );
        assert!(explain(Precision::Int8).contains("the float model"));
    }

    #[test]
    fn nothing_is_built_for_a_gpu_that_this_flavour_does_not_know() {
        let error = check_target(Flavour::Rtx, capability(90)).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("9.0") && error.contains("tensorrt-enterprise"),
            "{error}"
        );
        assert!(check_target(Flavour::Rtx, capability(121)).is_ok());
    }
}
