//! Finding and loading TensorRT's two libraries, the runtime and the ONNX parser.

use std::{
    env,
    path::{Path, PathBuf},
};

use super::{
    KIND,
    binding::{self, FLAVOUR},
    compatibility::Flavour,
};
use crate::engine::{
    EngineError,
    library_search::{fetched_folders, files_in, newest},
};

/// The files of one TensorRT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LibraryFiles {
    runtime: PathBuf,
    parser: PathBuf,
}

/// Names of a flavour's files and packages.
struct Naming {
    runtime: &'static str,
    parser: &'static str,
    /// The Python package that contains the libraries.
    package: &'static str,
    /// The package's folder.
    folder: &'static str,
    /// Where `make` puts the package's folder, relative to the checkout.
    fetched: &'static str,
    /// Advice to fetch it with `make`, or empty.
    make: &'static str,
}

const RTX: Naming = Naming {
    runtime: "libtensorrt_rtx.so",
    parser: "libtensorrt_onnxparser_rtx.so",
    package: "tensorrt-rtx-cu12-libs",
    folder: "tensorrt_rtx_libs",
    fetched: ".runtime/tensorrt-rtx/tensorrt_rtx_libs",
    make: "run `make tensorrt` in the project's folder, or ",
};

const ENTERPRISE: Naming = Naming {
    runtime: "libnvinfer.so",
    parser: "libnvonnxparser.so",
    package: "tensorrt-cu12-libs",
    folder: "tensorrt_libs",
    fetched: ".runtime/tensorrt/tensorrt_libs",
    make: "",
};

/// Folders in which packages of the operating system and NVIDIA's archives are installed.
const SYSTEM_FOLDERS: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/tensorrt/lib",
];

fn naming(flavour: Flavour) -> &'static Naming {
    match flavour {
        Flavour::Rtx => &RTX,
        Flavour::Enterprise => &ENTERPRISE,
    }
}

/// Finds the `requested` library; else the one that `make` fetched; else an installed one.
pub(super) fn find(requested: Option<&Path>) -> Result<LibraryFiles, EngineError> {
    if let Some(path) = requested {
        return library_at(path, FLAVOUR)?.ok_or_else(|| not_at(path));
    }

    let folders = default_folders();
    for folder in &folders {
        if let Some(library) = library_at(folder, FLAVOUR)? {
            return Ok(library);
        }
    }
    Err(not_found(&folders, advice()))
}

/// Where to look if no library is requested, in order of preference.
fn default_folders() -> Vec<PathBuf> {
    let mut folders = fetched_folders(naming(FLAVOUR).fetched);
    let library_path = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    folders.extend(env::split_paths(&library_path).filter(|path| path.is_absolute()));
    folders.extend(SYSTEM_FOLDERS.map(PathBuf::from));
    folders
}

/// The library at `path`, which is the runtime's file or its folder.
///
/// # Errors
/// If only one of the two libraries is there.
fn library_at(path: &Path, flavour: Flavour) -> Result<Option<LibraryFiles>, EngineError> {
    let naming = naming(flavour);
    let (folder, runtime) = if path.is_file() {
        let folder = path.parent().unwrap_or(Path::new("."));
        (folder, Some(path.to_owned()))
    } else {
        (path, newest_version(path, naming.runtime))
    };
    let Some(runtime) = runtime else {
        return Ok(None);
    };

    let parser = newest_version(folder, naming.parser).ok_or_else(|| EngineError::Unavailable {
        kind: KIND,
        reason: format!(
            "{flavour} in {} is incomplete: there is no {}* beside it",
            folder.display(),
            naming.parser
        ),
        advice: advice(),
    })?;
    Ok(Some(LibraryFiles { runtime, parser }))
}

/// The newest of the files `NAME`, `NAME.1`, `NAME.1.2` and so on, in `folder`.
fn newest_version(folder: &Path, name: &str) -> Option<PathBuf> {
    let is_version = |path: &PathBuf| {
        let file_name = path.file_name().and_then(|name| name.to_str());
        file_name
            .and_then(|file_name| file_name.strip_prefix(name))
            .is_some_and(|version| version.chars().all(|c| c == '.' || c.is_ascii_digit()))
    };
    newest(files_in(folder).filter(is_version))
}

/// The error for a requested path that holds no library. Says so if the other flavour is there.
fn not_at(path: &Path) -> EngineError {
    let other = FLAVOUR.other();
    let advice = match library_at(path, other) {
        Ok(Some(_)) => format!(
            "the library there is {}, for which the program has to be built with another feature",
            naming(other).runtime
        ),
        _ => advice(),
    };
    not_found(&[path.to_owned()], advice)
}

fn not_found(folders: &[PathBuf], advice: String) -> EngineError {
    let mut folders: Vec<String> = folders
        .iter()
        .map(|folder| folder.display().to_string())
        .collect();
    folders.dedup();
    EngineError::Unavailable {
        kind: KIND,
        reason: format!(
            "{FLAVOUR} ({}*) was not found in {}",
            naming(FLAVOUR).runtime,
            folders.join(", ")
        ),
        advice,
    }
}

fn advice() -> String {
    let Naming {
        package,
        folder,
        make,
        ..
    } = naming(FLAVOUR);
    format!("{make}`pip install {package}` and point --tensorrt-lib to its folder {folder}")
}

/// Loads the library. Returns its version, such as `1.7.1.116`.
pub(super) fn load(library: &LibraryFiles) -> Result<String, EngineError> {
    let unusable = |reason: String, advice: String| EngineError::Unavailable {
        kind: KIND,
        reason,
        advice,
    };
    let file = library.runtime.display();
    let version = binding::library_version(&library.runtime)
        .map_err(|reason| unusable(format!("{file} can't be loaded: {reason}"), advice()))?;

    // Minor versions are backward compatible.
    let [major, minor, ..] = binding::header_version();
    if version[0] != major || version[1] < minor {
        return Err(unusable(
            format!(
                "{file} is {FLAVOUR} {}, and this program is built for {major}.{minor} or a newer \
                 {major}.x",
                dotted(&version[..3])
            ),
            format!(
                "`pip install \"{}>={major}.{minor},<{}\"`",
                naming(FLAVOUR).package,
                major + 1
            ),
        ));
    }

    binding::load_runtime(&library.runtime)
        .map_err(|reason| unusable(format!("{file} can't be loaded: {reason}"), advice()))?;
    binding::load_parser(&library.parser).map_err(|reason| {
        unusable(
            format!("{} can't be loaded: {reason}", library.parser.display()),
            advice(),
        )
    })?;
    Ok(dotted(&version))
}

fn dotted(numbers: &[i32]) -> String {
    numbers
        .iter()
        .map(i32::to_string)
        .collect::<Vec<_>>()
        .join(".")
}
