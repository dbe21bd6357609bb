//! Finding and loading the ONNX Runtime library.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use ort::environment::Environment;

use super::nvidia;
use crate::engine::{
    EngineError, EngineKind,
    library_search::{fetched_folders, files_in, library_at, stamp_of},
};

/// Where `make onnxruntime` puts the library, relative to the checkout.
const FETCHED: &str = ".runtime/onnxruntime/onnxruntime/capi";
/// Where `make onnxruntime-gpu` puts the one with CUDA, which computes on the CPU as well.
const FETCHED_FOR_GPUS: &str = ".runtime/onnxruntime-gpu/onnxruntime/capi";
/// Where package managers put it.
const INSTALLED: [&str; 6] = [
    "/usr/local/lib",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/opt/homebrew/lib",
];

/// A process can load the library once only.
static LOADED: OnceLock<Result<Loaded, String>> = OnceLock::new();

struct Loaded {
    path: PathBuf,
    environment: Environment,
}

/// What CUDA's provider loads, in the order in which these need each other.
const CUDA_LIBRARIES: [&str; 9] = [
    "libcudart.so.",
    "libnvJitLink.so.",
    "libcublasLt.so.",
    "libcublas.so.",
    "libnvrtc-builtins.so.",
    "libnvrtc.so.",
    "libcurand.so.",
    "libcufft.so.",
    "libcudnn.so.",
];

/// Finds the library and loads it, unless that has been done. `kind` is the engine that needs it.
pub(super) fn load(
    kind: EngineKind,
    requested: Option<&Path>,
) -> Result<&'static Environment, EngineError> {
    let path = find(requested).map_err(|missing| missing.error(kind))?;
    let loaded = LOADED.get_or_init(|| {
        if brings_cuda(&path) {
            load_cuda_libraries(&path);
        }
        let builder = ort::init_from(&path).map_err(|error| error.to_string())?;
        let environment = builder.build().map_err(|error| error.to_string())?;
        Ok(Loaded {
            path: path.clone(),
            environment,
        })
    });
    match loaded {
        Ok(loaded) if loaded.path == path => Ok(&loaded.environment),
        Ok(loaded) => Err(EngineError::Unavailable {
            kind,
            reason: format!(
                "this process has already loaded {}, and a process can load only one ONNX Runtime",
                loaded.path.display()
            ),
            advice: format!("restart the server to use {}", path.display()),
        }),
        Err(reason) => Err(unusable(kind, &path, reason)),
    }
}

/// Whether the library comes with CUDA's provider.
pub(super) fn brings_cuda(library: &Path) -> bool {
    library.parent().is_some_and(|folder| {
        folder.join("libonnxruntime_providers_cuda.so").exists()
            || folder.join("onnxruntime_providers_cuda.dll").exists()
    })
}

/// Loads CUDA's libraries that pip has installed beside the library; those that are missing may be
/// installed elsewhere, which the provider finds by itself.
fn load_cuda_libraries(library: &Path) {
    let Some(packages) = library.ancestors().nth(3) else {
        return;
    };
    for path in cuda_libraries(&packages.join("nvidia")) {
        match ort::util::preload_dylib(&path) {
            Ok(()) => tracing::debug!("loaded {}", path.display()),
            Err(error) => tracing::warn!("{} can't be loaded: {error}", path.display()),
        }
    }
}

/// The libraries in the `lib` folders of pip's packages of NVIDIA's, in the order to load them.
fn cuda_libraries(packages: &Path) -> Vec<PathBuf> {
    let files: Vec<PathBuf> = files_in(packages)
        .flat_map(|package| files_in(&package.join("lib")).collect::<Vec<_>>())
        .collect();
    let find = |prefix: &str| {
        let named = |path: &&PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // `libnvrtc.alt.so` is for old drivers.
            name.starts_with(prefix) && !name.contains(".alt.")
        };
        files.iter().find(named).cloned()
    };
    CUDA_LIBRARIES.into_iter().filter_map(find).collect()
}

/// The path of the library that has been loaded.
pub(super) fn loaded_path() -> &'static Path {
    let loaded = LOADED.get().and_then(|loaded| loaded.as_ref().ok());
    loaded.map_or(Path::new("libonnxruntime"), |loaded| &loaded.path)
}

/// The version of the loaded library, such as `1.32.0`: by its file's name, since what it says of
/// itself may be only the branch that it was built from.
pub(super) fn version() -> String {
    let loaded = LOADED.get().and_then(|loaded| loaded.as_ref().ok());
    let name = loaded.and_then(|loaded| loaded.path.file_name());
    let name = name.unwrap_or_default().to_string_lossy();
    let digits = |c: char| c.is_ascii_digit() || c == '.';
    let version = name
        .split(|c| !digits(c))
        .map(|part| part.trim_matches('.'))
        .find(|part| part.contains('.'));
    version.map_or_else(|| ort::info().to_owned(), str::to_owned)
}

/// The path of the library with its size and time; empty if there is none.
pub(super) fn stamp(requested: Option<&Path>) -> String {
    find(requested).map_or_else(|_| String::new(), |library| stamp_of(&library))
}

/// Why no library was found.
pub(super) enum Missing {
    /// The requested path holds no library.
    NotAt(PathBuf),
    /// None of the usual folders holds a library.
    NotFound,
}

/// The target of the Makefile that fetches the library of this engine.
fn make_target(kind: EngineKind) -> &'static str {
    match kind {
        EngineKind::Cuda => "make onnxruntime-gpu",
        _ => "make onnxruntime",
    }
}

impl Missing {
    fn error(self, kind: EngineKind) -> EngineError {
        let make = make_target(kind);
        let (reason, advice) = match self {
            Self::NotAt(path) => (
                format!("there is no ONNX Runtime library at {}", path.display()),
                "give --onnxruntime-lib the file libonnxruntime.so* or the folder that holds it"
                    .to_owned(),
            ),
            Self::NotFound => (
                "the library of ONNX Runtime was not found".to_owned(),
                format!(
                    "run `{make}` in the project's folder, or `pip install {}` and point \
                     --onnxruntime-lib to its folder onnxruntime/capi",
                    match kind {
                        EngineKind::Cuda => "'onnxruntime-gpu[cuda,cudnn]'",
                        _ => "onnxruntime",
                    }
                ),
            ),
        };
        EngineError::Unavailable {
            kind,
            reason,
            advice,
        }
    }
}

/// The `requested` library; else one that `make` fetched: where there is an NVIDIA driver, rather
/// that with CUDA; else an installed one.
pub(super) fn find(requested: Option<&Path>) -> Result<PathBuf, Missing> {
    if let Some(path) = requested {
        return library_at(path, is_library).ok_or_else(|| Missing::NotAt(path.to_owned()));
    }
    let mut fetched = [FETCHED, FETCHED_FOR_GPUS];
    if nvidia::has_driver(Path::new("/")) {
        fetched.reverse();
    }
    fetched
        .into_iter()
        .flat_map(fetched_folders)
        .chain(INSTALLED.iter().map(PathBuf::from))
        .find_map(|folder| library_at(&folder, is_library))
        .ok_or(Missing::NotFound)
}

/// Whether the file's name is that of the library and not of one of its providers.
fn is_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let rest = name
        .strip_prefix("libonnxruntime.")
        .or_else(|| name.strip_prefix("onnxruntime."));
    rest.is_some_and(|rest| {
        rest.starts_with("so") || rest.ends_with("dylib") || rest.ends_with("dll")
    })
}

/// The error for a library that was found but cannot be used.
fn unusable(kind: EngineKind, library: &Path, reason: &str) -> EngineError {
    EngineError::Unavailable {
        kind,
        reason: format!("{}: {reason}", library.display()),
        advice: format!("fetch one that works with `{}`", make_target(kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_known_by_its_name() {
        for name in [
            "libonnxruntime.so",
            "libonnxruntime.so.1.32.0",
            "libonnxruntime.1.32.0.dylib",
            "libonnxruntime.dylib",
            "onnxruntime.dll",
        ] {
            assert!(is_library(Path::new(name)), "{name}");
        }
        for name in [
            "libonnxruntime_providers_shared.so",
            "libonnxruntime.a",
            "onnxruntime_pybind11_state.so",
        ] {
            assert!(!is_library(Path::new(name)), "{name}");
        }
    }
    #[test]
    fn a_library_brings_cuda_if_its_provider_lies_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libonnxruntime.so.1.31.1");
        assert!(!brings_cuda(&library));
        std::fs::write(folder.path().join("libonnxruntime_providers_cuda.so"), "").unwrap();
        assert!(brings_cuda(&library));
    }

    #[test]
    fn cudas_libraries_of_pip_are_loaded_in_the_order_of_their_needs() {
        let packages = tempfile::tempdir().unwrap();
        for file in [
            "cu13/lib/libcufft.so.12",
            "cu13/lib/libcudart.so.13",
            "cu13/lib/libcublas.so.13",
            "cu13/lib/libcublasLt.so.13",
            "cu13/lib/libnvrtc.so.13",
            "cu13/lib/libnvrtc.alt.so.13",
            "cudnn/lib/libcudnn.so.9",
            "cudnn/lib/libcudnn_ops.so.9",
            "nccl/lib/libnccl.so.2",
        ] {
            let path = packages.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let names: Vec<_> = cuda_libraries(packages.path())
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            names,
            [
                "libcudart.so.13",
                "libcublasLt.so.13",
                "libcublas.so.13",
                "libnvrtc.so.13",
                "libcufft.so.12",
                "libcudnn.so.9",
            ]
        );
        assert!(cuda_libraries(&packages.path().join("nowhere")).is_empty());
    }
}
