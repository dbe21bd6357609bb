//! Finding and loading the ONNX Runtime library.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use ort::environment::Environment;

use super::KIND;
use crate::engine::{
    EngineError,
    library_search::{fetched_folders, library_at, stamp_of},
};

/// Where `make onnxruntime` puts the library, relative to the checkout.
const FETCHED: &str = ".runtime/onnxruntime/onnxruntime/capi";
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

/// Finds the library and loads it, unless that has been done.
pub(super) fn load(requested: Option<&Path>) -> Result<&'static Environment, EngineError> {
    let path = find(requested)?;
    let loaded = LOADED.get_or_init(|| {
        let builder = ort::init_from(&path).map_err(|error| error.to_string())?;
        let environment = builder.build().map_err(|error| error.to_string())?;
        Ok(Loaded {
            path: path.clone(),
            environment,
        })
    });
    match loaded {
        Ok(loaded) if loaded.path == path => Ok(&loaded.environment),
        Ok(loaded) => Err(unusable(
            &path,
            &format!("this process has loaded {} already", loaded.path.display()),
        )),
        Err(reason) => Err(unusable(&path, reason)),
    }
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

/// The `requested` library; else the one that `make` fetched; else an installed one.
pub(super) fn find(requested: Option<&Path>) -> Result<PathBuf, EngineError> {
    if let Some(path) = requested {
        return library_at(path, is_library).ok_or_else(|| EngineError::Unavailable {
            kind: KIND,
            reason: format!("there is no ONNX Runtime library at {}", path.display()),
            advice:
                "give --onnxruntime-lib the file libonnxruntime.so* or the folder that holds it"
                    .into(),
        });
    }
    fetched_folders(FETCHED)
        .iter()
        .map(PathBuf::as_path)
        .chain(INSTALLED.iter().map(Path::new))
        .find_map(|folder| library_at(folder, is_library))
        .ok_or_else(|| EngineError::Unavailable {
            kind: KIND,
            reason: "its library was not found".into(),
            advice: "run `make onnxruntime` in the project's folder, or `pip install onnxruntime` \
                     and point --onnxruntime-lib to its folder onnxruntime/capi"
                .into(),
        })
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

/// A library was found and does not work.
fn unusable(library: &Path, reason: &str) -> EngineError {
    EngineError::Unavailable {
        kind: KIND,
        reason: format!("{}: {reason}", library.display()),
        advice: "fetch one that fits with `make onnxruntime`".into(),
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
}
