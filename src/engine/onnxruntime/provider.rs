//! Where ONNX Runtime computes: its execution providers for the CPU, NVIDIA's GPUs and Macs.

use std::path::Path;

use ort::{
    ep::{
        CUDA, CoreML, ExecutionProvider, ExecutionProviderDispatch,
        coreml::{ComputeUnits, ModelFormat},
    },
    session::builder::SessionBuilder,
};

use super::{library, nvidia};
use crate::engine::{EngineConfig, EngineError, EngineKind, Precision, processor};

/// The root of the system's files.
const ROOT: &str = "/";
const INSTALL_CUDA: &str = "run `make onnxruntime-gpu` in the project's folder, which fetches ONNX \
                            Runtime with CUDA and what it needs, or `pip install \
                            'onnxruntime-gpu[cuda,cudnn]'` and point --onnxruntime-lib to its \
                            folder onnxruntime/capi";

/// An execution provider, on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    Cpu,
    /// The GPU with this number.
    Cuda(usize),
    CoreMl,
}

impl Provider {
    /// The engine that computes here.
    pub(super) fn kind(self) -> EngineKind {
        match self {
            Self::Cpu => EngineKind::OnnxRuntime,
            Self::Cuda(_) => EngineKind::Cuda,
            Self::CoreMl => EngineKind::CoreMl,
        }
    }

    /// Adds the provider to a session. What it can't compute, ONNX Runtime computes on the CPU.
    ///
    /// # Errors
    /// If its libraries can't be loaded, or there is no such device.
    pub(super) fn add_to(
        self,
        builder: SessionBuilder,
        precision: Precision,
    ) -> Result<SessionBuilder, EngineError> {
        let dispatch: ExecutionProviderDispatch = match self {
            Self::Cpu => return Ok(builder),
            Self::Cuda(device) => CUDA::default()
                .with_device_id(device as i32)
                // Else fp32 would be computed with 10 bits of mantissa.
                .with_tf32(precision != Precision::Fp32)
                .build(),
            Self::CoreMl => CoreML::default()
                .with_model_format(ModelFormat::MLProgram)
                .with_static_input_shapes(true)
                .with_compute_units(ComputeUnits::All)
                .build(),
        };
        builder
            .with_execution_providers([dispatch.error_on_failure()])
            .map_err(|error| self.unusable(&error.to_string()))
    }

    /// The error for a provider that the library has but that cannot be used.
    pub(super) fn unusable(self, reason: &str) -> EngineError {
        let advice = match self {
            Self::Cuda(_) => format!(
                "it needs NVIDIA's driver (R580 or newer for CUDA 13), CUDA's libraries and cuDNN 9: \
                 {INSTALL_CUDA}"
            ),
            Self::Cpu | Self::CoreMl => "use --engine auto or --engine onnxruntime".into(),
        };
        EngineError::Unavailable {
            kind: self.kind(),
            reason: reason.trim().to_owned(),
            advice,
        }
    }
}

/// The devices that `kind` computes on.
///
/// # Errors
/// If the library was built without the provider, or the machine has no such device.
pub(super) fn devices(
    kind: EngineKind,
    config: &EngineConfig,
) -> Result<Vec<Provider>, EngineError> {
    let has = |found: ort::Result<bool>| found.unwrap_or(false);
    match kind {
        EngineKind::Cuda => {
            if !has(CUDA::is_available()) {
                return Err(without(kind, "CUDA", INSTALL_CUDA));
            }
            cuda_devices(Path::new(ROOT), config.tensorrt.devices.as_deref())
        }
        EngineKind::CoreMl => {
            if !has(CoreML::is_available()) {
                let advice = "it is in the libraries for Macs only: use --engine auto";
                return Err(without(kind, "CoreML", advice));
            }
            Ok(vec![Provider::CoreMl])
        }
        _ => Ok(vec![Provider::Cpu]),
    }
}

/// The error for a library that was built without a provider.
fn without(kind: EngineKind, name: &str, advice: &str) -> EngineError {
    EngineError::Unavailable {
        kind,
        reason: format!(
            "the ONNX Runtime library {} was built without {name}",
            library::loaded_path().display()
        ),
        advice: advice.into(),
    }
}

/// The GPUs with these numbers; `None` means all that the driver lists.
fn cuda_devices(root: &Path, wanted: Option<&[usize]>) -> Result<Vec<Provider>, EngineError> {
    let unavailable = |reason: String, advice: &str| EngineError::Unavailable {
        kind: EngineKind::Cuda,
        reason,
        advice: advice.into(),
    };
    if !nvidia::has_driver(root) {
        return Err(unavailable(
            "there is no NVIDIA driver on this machine".into(),
            "install the driver of the GPU, or in a container start it with the GPUs \
             (`--gpus all`)",
        ));
    }
    let gpus = nvidia::gpu_names(root).len();
    let wanted: Vec<usize> = match wanted {
        Some(wanted) => wanted.to_vec(),
        None if gpus == 0 => {
            return Err(unavailable(
                "the driver does not list the GPUs".into(),
                "give their numbers, such as --device 0,1",
            ));
        }
        None => (0..gpus).collect(),
    };
    if let Some(missing) = wanted.iter().find(|device| gpus > 0 && **device >= gpus) {
        return Err(unavailable(
            format!("there is no GPU {missing}, the machine has {gpus}"),
            "choose others with --device",
        ));
    }
    Ok(wanted.into_iter().map(Provider::Cuda).collect())
}

/// The name of the processor or of the GPUs.
pub(super) fn device_name(providers: &[Provider]) -> String {
    match providers {
        [Provider::Cuda(_), ..] => gpus_name(&nvidia::gpu_names(Path::new(ROOT)), providers.len()),
        [Provider::CoreMl, ..] => format!("CoreML on {}", processor::name()),
        _ => processor::name(),
    }
}

/// The name of `used` of the GPUs. CUDA may number GPUs of several kinds in another order than
/// the driver lists them, so these are not told apart.
fn gpus_name(gpus: &[String], used: usize) -> String {
    let name = match gpus {
        [first, others @ ..] if others.iter().all(|other| other == first) => first.as_str(),
        _ => "NVIDIA GPU",
    };
    match used {
        1 => name.to_owned(),
        _ => format!("{used} × {name}"),
    }
}

/// Whether CUDA is worth trying: the library brings its provider, and there is a driver.
pub(super) fn cuda_is_likely(config: &EngineConfig) -> bool {
    nvidia::has_driver(Path::new(ROOT))
        && library::find(config.onnxruntime.library.as_deref())
            .is_ok_and(|library| library::brings_cuda(&library))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn machine(gpus: usize) -> tempfile::TempDir {
        let machine = tempfile::tempdir().unwrap();
        let driver = machine.path().join("proc/driver/nvidia");
        fs::create_dir_all(&driver).unwrap();
        fs::write(driver.join("version"), "NVRM version: 580").unwrap();
        for gpu in 0..gpus {
            let folder = driver.join(format!("gpus/0000:0{gpu}:00.0"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("information"), "Model: NVIDIA H100").unwrap();
        }
        machine
    }

    #[test]
    fn gpus_are_chosen_by_number_and_missing_ones_are_named() {
        let devices = |gpus: usize, wanted: Option<&[usize]>| {
            let machine = machine(gpus);
            cuda_devices(machine.path(), wanted).map_err(|error| error.to_string())
        };
        assert_eq!(devices(2, Some(&[1])), Ok(vec![Provider::Cuda(1)]));
        let both = vec![Provider::Cuda(0), Provider::Cuda(1)];
        assert_eq!(devices(2, None), Ok(both));
        // In WSL the driver lists none.
        assert_eq!(devices(0, Some(&[0])), Ok(vec![Provider::Cuda(0)]));
        assert!(devices(0, None).unwrap_err().contains("--device 0,1"));
        let error = devices(2, Some(&[0, 2])).unwrap_err();
        assert!(error.contains("no GPU 2, the machine has 2"), "{error}");

        let bare = tempfile::tempdir().unwrap();
        let error = cuda_devices(bare.path(), None).unwrap_err().to_string();
        assert!(
            error.contains("the cuda engine can't start: there is no NVIDIA driver"),
            "{error}"
        );
    }

    #[test]
    fn gpus_of_one_kind_have_their_name() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| name.to_string())
                .collect::<Vec<_>>()
        };
        let h100 = names(&["NVIDIA H100", "NVIDIA H100"]);
        assert_eq!(gpus_name(&h100, 1), "NVIDIA H100");
        assert_eq!(gpus_name(&h100, 2), "2 × NVIDIA H100");
        assert_eq!(
            gpus_name(&names(&["NVIDIA L4", "NVIDIA T4"]), 1),
            "NVIDIA GPU"
        );
        assert_eq!(gpus_name(&[], 1), "NVIDIA GPU");
    }

    #[test]
    fn what_does_not_work_is_said_with_what_it_needs() {
        let reason = "libcublasLt.so.13: cannot open shared object file";
        let error = Provider::Cuda(0).unusable(reason).to_string();
        for part in [reason, "R580", "make onnxruntime-gpu"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
