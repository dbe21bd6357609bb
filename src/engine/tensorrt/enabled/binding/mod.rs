//! The only place that calls the crate `trtx`, and through it TensorRT.
//!
//! `trtx` calls itself experimental. Building goes through its wrappers (`build`); running goes
//! through the C++ classes below them (`run`), which the wrappers do not show whole: they lack
//! `isStreamCapturable`. What differs between the two products is in `rtx` and `enterprise`.

#![allow(unsafe_code)]

mod build;
#[cfg(feature = "tensorrt-enterprise")]
mod enterprise;
mod log;
#[cfg(not(feature = "tensorrt-enterprise"))]
mod rtx;
mod run;

use std::{fmt, path::Path, sync::OnceLock};

use trtx::trtx_sys;

#[cfg(feature = "tensorrt-enterprise")]
use self::enterprise as flavour;
#[cfg(not(feature = "tensorrt-enterprise"))]
use self::rtx as flavour;

pub(super) use self::{
    build::{BatchRange, BuildRequest, build},
    flavour::{FLAVOUR, RECORDS_GRAPHS},
    run::{Context, Kernels, Plan},
};

/// A call of TensorRT's that failed: what TensorRT logged about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// A failure for this reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// The errors that TensorRT logged on this thread, or `default` if there are none.
    fn of(default: impl ToString) -> Self {
        Self(log::take_errors().unwrap_or_else(|| default.to_string()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The runtime's library, once it is loaded; it stays until the process ends.
static RUNTIME: OnceLock<libloading::Library> = OnceLock::new();

/// The version of a TensorRT library: major, minor, patch, build. The library stays loaded.
///
/// # Errors
/// The operating system's message if the file can't be loaded.
pub(super) fn library_version(path: &Path) -> Result<[i32; 4], String> {
    let names = [
        "getInferLibMajorVersion",
        "getInferLibMinorVersion",
        "getInferLibPatchVersion",
        "getInferLibBuildVersion",
    ];
    // SAFETY: loading runs the file's initializers; the user or the system says that this file is
    // TensorRT, which may be loaded at any time. The four functions are declared `int32_t name()`
    // in TensorRT's headers of every version.
    unsafe {
        let library = libloading::Library::new(path).map_err(reason)?;
        let mut version = [0; 4];
        for (number, name) in version.iter_mut().zip(names) {
            *number = library
                .get::<extern "C" fn() -> i32>(name.as_bytes())
                .map_err(reason)?();
        }
        // Unloading such a library is slow and can crash; it is about to be used anyway.
        std::mem::forget(library);
        Ok(version)
    }
}

/// Loads the runtime, whose version has been checked, unless one is loaded.
pub(super) fn load_runtime(path: &Path) -> Result<(), String> {
    if RUNTIME.get().is_none() {
        // SAFETY: as in `library_version`, which has loaded this file before.
        let library = unsafe { libloading::Library::new(path) }.map_err(reason)?;
        // Another thread may have been faster, with the same library.
        let _ = RUNTIME.set(library);
    }
    trtx::dynamically_load_tensorrt(Some(path)).map_err(|error| error.to_string())
}

/// Loads the ONNX parser, unless one is loaded.
pub(super) fn load_parser(path: &Path) -> Result<(), String> {
    trtx::dynamically_load_tensorrt_onnxparser(Some(path)).map_err(|error| error.to_string())
}

fn reason(error: libloading::Error) -> String {
    std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The version of the headers that this program was compiled with: major, minor, patch, build.
pub(super) fn header_version() -> [i32; 4] {
    // SAFETY: these functions return constants of the headers, and are compiled into this program.
    let version = unsafe {
        [
            trtx_sys::get_tensorrt_major_version(),
            trtx_sys::get_tensorrt_minor_version(),
            trtx_sys::get_tensorrt_patch_version(),
            trtx_sys::get_tensorrt_build_version(),
        ]
    };
    version.map(|number| number as i32)
}

#[cfg(test)]
mod tests {
    use super::{super::compatibility::Flavour, *};

    #[test]
    fn the_headers_are_those_of_this_flavour() {
        let major = match FLAVOUR {
            Flavour::Rtx => 1,
            Flavour::Enterprise => 11,
        };
        assert_eq!(header_version()[0], major);
    }
}
