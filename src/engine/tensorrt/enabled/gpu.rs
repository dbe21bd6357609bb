//! The GPUs of this machine, with their CUDA contexts and errors.

#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, sys};

use super::{
    ComputeCapability, KIND,
    binding::Failure,
    compatibility::{CudaVersion, GpuInfo, MAKE_ROOM},
    pipeline::DeviceError,
};
use crate::engine::EngineError;

/// A GPU with its CUDA context, which TensorRT uses too.
#[derive(Clone)]
pub(super) struct Gpu {
    pub(super) info: GpuInfo,
    pub(super) context: Arc<CudaContext>,
}

/// Opens the GPUs with these indices, or all of them.
pub(super) fn find(requested: Option<&[usize]>) -> Result<Vec<Gpu>, EngineError> {
    const USE_CPU: &str = "use --engine openvino to serve on the CPU";

    // SAFETY: loads libcuda.so and unloads it again, which the driver's library supports at any
    // time.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable(
            "there is no NVIDIA driver here (libcuda.so was not found)",
            format!(
                "install NVIDIA's driver, or start the container with `--gpus all`, or {USE_CPU}"
            ),
        ));
    }
    let count = CudaContext::device_count().map_err(|error| {
        let reason = match error.0 {
            sys::cudaError_enum::CUDA_ERROR_NO_DEVICE => "the NVIDIA driver finds no GPU".into(),
            _ => format!("the NVIDIA driver does not start: {error}"),
        };
        unavailable(reason, USE_CPU)
    })?;
    let count = usize::try_from(count).unwrap_or(0);

    let indices = match requested {
        Some(indices) => indices.to_vec(),
        None => (0..count).collect(),
    };
    if let Some(index) = indices.iter().find(|index| **index >= count) {
        return Err(unavailable(
            format!("there is no GPU {index}"),
            format!("--device takes numbers below {count}, the number of GPUs"),
        ));
    }
    if indices.is_empty() {
        return Err(unavailable("the NVIDIA driver finds no GPU", USE_CPU));
    }
    indices
        .into_iter()
        .map(|index| {
            Gpu::open(index).map_err(|error| {
                unavailable(format!("GPU {index} can't be used: {error}"), USE_CPU)
            })
        })
        .collect()
}

fn unavailable(reason: impl Into<String>, advice: impl Into<String>) -> EngineError {
    EngineError::Unavailable {
        kind: KIND,
        reason: reason.into(),
        advice: advice.into(),
    }
}

/// The newest CUDA that the driver supports.
fn driver_version() -> Result<CudaVersion, DriverError> {
    let mut number = 0;
    // SAFETY: writes one `int` through the pointer, which is valid for that.
    unsafe { sys::cuDriverGetVersion(&mut number) }.result()?;
    Ok(CudaVersion::from_number(number))
}

/// The identities of the GPUs that CUDA shows to this process, in its order, as `nvidia-smi -L`
/// prints them; none if there is no driver. No memory of a GPU is used for that.
pub(in super::super) fn uuids() -> Vec<String> {
    // SAFETY: as in `find`.
    if !unsafe { sys::is_culib_present() } || cudarc::driver::result::init().is_err() {
        return Vec::new();
    }
    let count = cudarc::driver::result::device::get_count().unwrap_or(0);
    let uuid = |index| {
        let device = cudarc::driver::result::device::get(index)?;
        cudarc::driver::result::device::get_uuid(device)
    };
    (0..count)
        .map(|index| uuid(index).map(|uuid| uuid_text(uuid.bytes.map(|byte| byte as u8))))
        .collect::<Result<_, DriverError>>()
        .unwrap_or_default()
}

/// A GPU's identity as `nvidia-smi -L` prints it.
fn uuid_text(bytes: [u8; 16]) -> String {
    let hex = crate::cache::hex(&bytes);
    format!(
        "GPU-{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

impl Gpu {
    fn open(index: usize) -> Result<Self, DriverError> {
        let context = CudaContext::new(index)?;
        // SAFETY: every buffer of this engine is allocated, used and freed on one stream.
        unsafe { context.disable_event_tracking() };

        let (major, minor) = context.compute_capability()?;
        let (free, total) = context.mem_get_info()?;
        let info = GpuInfo {
            index,
            name: context.name()?,
            capability: ComputeCapability {
                major: major.unsigned_abs(),
                minor: minor.unsigned_abs(),
            },
            driver: driver_version()?,
            free_memory: free as u64,
            total_memory: total as u64,
            uuid: uuid_text(context.uuid()?.bytes.map(|byte| byte as u8)),
        };
        Ok(Self { info, context })
    }

    /// Makes this the GPU of the calling thread.
    pub(super) fn bind(&self) -> Result<(), EngineError> {
        self.context
            .bind_to_thread()
            .map_err(|error| KIND.failed(error))
    }

    /// Interprets an error of CUDA's.
    pub(super) fn cuda_error(&self, error: DriverError) -> DeviceError {
        if error.0 == sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY {
            return DeviceError::OutOfMemory(error.to_string());
        }
        if is_sticky(error) {
            return DeviceError::Lost(error.to_string());
        }
        match self.sticky_error() {
            Some(sticky) => DeviceError::Lost(sticky),
            None => DeviceError::Failed(error.to_string()),
        }
    }

    /// Interprets an error of TensorRT's, which has no code.
    pub(super) fn tensorrt_error(&self, failure: Failure) -> DeviceError {
        let reason = failure.to_string();
        if let Some(sticky) = self.sticky_error() {
            return DeviceError::Lost(format!("{reason} ({sticky})"));
        }
        // Only the message tells that an allocation of TensorRT's failed.
        let lower = reason.to_ascii_lowercase();
        if lower.contains("out of memory") || lower.contains("outofmemory") {
            return DeviceError::OutOfMemory(reason);
        }
        DeviceError::Failed(reason)
    }

    /// The sticky error that the context is in, if any: CUDA reports it again for every later call.
    fn sticky_error(&self) -> Option<String> {
        let error = self.context.mem_get_info().err()?;
        is_sticky(error).then(|| error.to_string())
    }

    /// An error while this GPU was set up.
    pub(super) fn engine_error(&self, error: DeviceError) -> EngineError {
        match error {
            DeviceError::OutOfMemory(reason) => EngineError::Unavailable {
                kind: KIND,
                reason: format!("{} has too little memory: {reason}", self.info),
                advice: MAKE_ROOM.into(),
            },
            DeviceError::Lost(reason) => EngineError::Lost { kind: KIND, reason },
            DeviceError::Failed(reason) => KIND.failed(reason),
        }
    }
}

/// Whether everything in this process that uses the GPU fails after this error.
fn is_sticky(error: DriverError) -> bool {
    use sys::cudaError_enum::*;

    matches!(
        error.0,
        CUDA_ERROR_ASSERT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_MPS_CLIENT_TERMINATED
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_UNKNOWN
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_named_as_nvidia_smi_does() {
        let bytes = std::array::from_fn(|index| index as u8 * 16 + 1);
        assert_eq!(uuid_text(bytes), "GPU-01112131-4151-6171-8191-a1b1c1d1e1f1");
    }

    #[test]
    fn errors_that_outlive_their_call_are_told_from_those_that_do_not() {
        use sys::cudaError_enum::*;
        for error in [
            CUDA_ERROR_ILLEGAL_ADDRESS,
            CUDA_ERROR_LAUNCH_FAILED,
            CUDA_ERROR_ECC_UNCORRECTABLE,
        ] {
            assert!(is_sticky(DriverError(error)), "{error:?}");
        }
        for error in [
            CUDA_ERROR_OUT_OF_MEMORY,
            CUDA_ERROR_INVALID_VALUE,
            CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
        ] {
            assert!(!is_sticky(DriverError(error)), "{error:?}");
        }
    }
}
