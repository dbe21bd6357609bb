//! Versions of TensorRT: that of a library file, and that of the headers this program uses.

#![allow(unsafe_code)]

use std::path::Path;

use trtx::trtx_sys;

/// The version of a TensorRT library: major, minor, patch, build.
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
    let version = unsafe {
        let library = libloading::Library::new(path).map_err(reason)?;
        let mut version = [0; 4];
        for (number, name) in version.iter_mut().zip(names) {
            *number = library
                .get::<extern "C" fn() -> i32>(name.as_bytes())
                .map_err(reason)?();
        }
        // Unloading such a library is slow and can crash; it is about to be used anyway.
        std::mem::forget(library);
        version
    };
    Ok(version)
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
    use super::{
        super::{compatibility::Flavour, flavour::FLAVOUR},
        *,
    };

    #[test]
    fn the_headers_are_those_of_this_flavour() {
        let major = match FLAVOUR {
            Flavour::Rtx => 1,
            Flavour::Enterprise => 11,
        };
        assert_eq!(header_version()[0], major);
    }
}
