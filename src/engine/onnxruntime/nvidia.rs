//! What the system's files say about NVIDIA's driver and GPUs.

use std::{fs, path::Path};

/// Files of which one is there if the driver is: of the driver itself, in a container, and of WSL.
const SIGNS: [&str; 3] = ["proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg"];

/// Whether NVIDIA's driver is there. `root` is the folder that holds `proc` and `dev`.
pub(super) fn has_driver(root: &Path) -> bool {
    SIGNS.iter().any(|sign| root.join(sign).exists())
}

/// The names of the GPUs in the order of their slots, where the driver lists them: not in WSL.
pub(super) fn gpu_names(root: &Path) -> Vec<String> {
    let mut folders: Vec<_> = fs::read_dir(root.join("proc/driver/nvidia/gpus"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    folders.sort();
    let name = |folder: &Path| {
        let information = fs::read_to_string(folder.join("information")).unwrap_or_default();
        let model = information
            .lines()
            .find_map(|line| line.strip_prefix("Model:"));
        model.map_or_else(|| "NVIDIA GPU".to_owned(), |model| model.trim().to_owned())
    };
    folders.iter().map(|folder| name(folder)).collect()
}

/// Whether everything in this process that uses the GPU fails after this error of ONNX Runtime's,
/// which has CUDA's code in its text.
pub(super) fn is_sticky(error: &str) -> bool {
    let code = error.split("CUDA failure ").nth(1).and_then(|rest| {
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    });
    // Uncorrectable memory errors, faults of a kernel, and a GPU that is gone.
    matches!(
        code,
        Some(214 | 219..=221 | 226 | 700 | 702 | 709..=710 | 714..=720)
    )
}

/// Whether this error of ONNX Runtime's says that the GPU's memory is full.
pub(super) fn is_out_of_memory(error: &str) -> bool {
    let error = error.to_ascii_lowercase();
    [
        "out of memory",
        "failed to allocate memory",
        "cuda failure 2:",
    ]
    .iter()
    .any(|sign| error.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_and_its_gpus_are_found_in_the_systems_files() {
        let machine = tempfile::tempdir().unwrap();
        let root = machine.path();
        assert!(!has_driver(root));
        assert_eq!(gpu_names(root), [""; 0]);

        for (slot, text) in [
            ("0000:41:00.0", "Model: \t\t NVIDIA H100 PCIe\nIRQ: 42\n"),
            ("0000:01:00.0", "Model: NVIDIA L4\n"),
            ("0000:81:00.0", "IRQ: 7\n"),
        ] {
            let folder = root.join("proc/driver/nvidia/gpus").join(slot);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("information"), text).unwrap();
        }
        assert_eq!(
            gpu_names(root),
            ["NVIDIA L4", "NVIDIA H100 PCIe", "NVIDIA GPU"]
        );
        for sign in SIGNS {
            let machine = tempfile::tempdir().unwrap();
            let file = machine.path().join(sign);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
            assert!(has_driver(machine.path()), "{sign}");
        }
    }

    #[test]
    fn errors_after_which_the_gpu_is_lost_are_told_from_others() {
        let failure = |code: u32, text: &str| {
            format!("Non-zero status code: CUDA failure {code}: {text} ; GPU=0 ; hostname=h")
        };
        assert!(is_sticky(&failure(700, "an illegal memory access")));
        assert!(is_sticky(&failure(719, "unspecified launch failure")));
        for other in [
            failure(2, "out of memory"),
            failure(35, "CUDA driver version is insufficient"),
            "CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR".to_owned(),
            "Invalid rank for input".to_owned(),
        ] {
            assert!(!is_sticky(&other), "{other}");
        }
        assert!(is_out_of_memory(&failure(2, "out of memory")));
        assert!(is_out_of_memory(
            "Failed to allocate memory for requested buffer of size 411041792"
        ));
        assert!(!is_out_of_memory(&failure(700, "an illegal memory access")));
    }
}
