//! Finding and loading the OpenVINO C library.

use std::path::{Path, PathBuf};

use super::KIND;
use crate::engine::{
    EngineError,
    library_search::{fetched_folders, library_at, stamp_of},
};

/// Where `make openvino` puts the libraries, relative to the checkout.
const FETCHED: &str = ".runtime/openvino/openvino/libs";

/// Finds the library and loads it. Returns its path, for error messages.
pub(super) fn load(requested: Option<&Path>) -> Result<PathBuf, EngineError> {
    let library = find(requested)?;
    openvino_sys::library::load_from(&library).map_err(|reason| unusable(&library, reason))?;
    return_freed_memory();
    Ok(library)
}

/// The path of the library with its size and time; empty if there is none.
pub(super) fn stamp(requested: Option<&Path>) -> String {
    find(requested).map_or_else(|_| String::new(), |library| stamp_of(&library))
}

/// The `requested` library; else the one that `make` fetched; else an installed one.
fn find(requested: Option<&Path>) -> Result<PathBuf, EngineError> {
    if let Some(path) = requested {
        return library_at(path, is_library).ok_or_else(|| EngineError::Unavailable {
            kind: KIND,
            reason: format!("there is no OpenVINO C library at {}", path.display()),
            advice: "give --openvino-lib the file libopenvino_c.so* or the folder that holds it"
                .into(),
        });
    }

    fetched_folders(FETCHED)
        .iter()
        .find_map(|folder| library_at(folder, is_library))
        .or_else(openvino_sys::library::find)
        .ok_or_else(|| EngineError::Unavailable {
            kind: KIND,
            reason: "its library was not found".into(),
            advice: "run `make openvino` in the project's folder, or `pip install openvino` and \
                     point --openvino-lib to its folder openvino/libs"
                .into(),
        })
}

fn is_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.contains("openvino_c.") && !name.ends_with(".lib")
}

/// The error for a library that was found but cannot be used.
pub(super) fn unusable(library: &Path, reason: impl ToString) -> EngineError {
    EngineError::Unavailable {
        kind: KIND,
        reason: format!("{}: {}", library.display(), reason.to_string()),
        advice: "fetch a complete OpenVINO with `make openvino`".into(),
    }
}

/// Makes glibc return the memory of large freed blocks to the system.
///
/// OpenVINO allocates and frees several copies of the weights while it compiles. By default glibc
/// raises its threshold for mapped blocks after each large `free` and keeps what is freed later:
/// here 20 to 40 MB for the life of the process.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn return_freed_memory() {
    // SAFETY: `mallopt` takes two integers, may be called at any time, and only sets a tuning
    // parameter.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn return_freed_memory() {}
