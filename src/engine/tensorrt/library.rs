//! Finding and loading TensorRT's two libraries, the runtime and the ONNX parser, and what they
//! log.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use trtx::{LogHandler, Logger, Severity};

use super::{
    KIND,
    compatibility::{FLAVOUR, Flavour},
    version,
};
use crate::engine::{EngineError, newest};

/// The files of one TensorRT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Library {
    runtime: PathBuf,
    parser: PathBuf,
}

/// How a flavour's files and packages are called.
struct Names {
    runtime: &'static str,
    parser: &'static str,
    package: &'static str,
    /// The package's folder.
    folder: &'static str,
    /// Where `make` puts the package, from the project's folder.
    made: &'static str,
    make: &'static str,
}

const RTX: Names = Names {
    runtime: "libtensorrt_rtx.so",
    parser: "libtensorrt_onnxparser_rtx.so",
    package: "tensorrt-rtx-cu12-libs",
    folder: "tensorrt_rtx_libs",
    made: ".runtime/tensorrt-rtx",
    make: "run `make tensorrt` in the project's folder, or ",
};

const ENTERPRISE: Names = Names {
    runtime: "libnvinfer.so",
    parser: "libnvonnxparser.so",
    package: "tensorrt-cu12-libs",
    folder: "tensorrt_libs",
    made: ".runtime/tensorrt",
    make: "",
};

const SYSTEM: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/tensorrt/lib",
];

fn names(flavour: Flavour) -> &'static Names {
    match flavour {
        Flavour::Rtx => &RTX,
        Flavour::Enterprise => &ENTERPRISE,
    }
}

/// The library that was asked for; else the one that `make` fetched; else one that is installed.
pub(super) fn find(asked: Option<&Path>) -> Result<Library, EngineError> {
    let names = names(FLAVOUR);
    if let Some(asked) = asked {
        return at(asked, FLAVOUR)?.ok_or_else(|| not_found(&[asked.to_owned()]));
    }
    let program = std::env::current_exe().unwrap_or_default();
    // Not the current folder, which may be anyone's: where the program was built, and above where
    // it lies.
    let projects =
        std::iter::once(Path::new(env!("CARGO_MANIFEST_DIR"))).chain(program.ancestors().skip(1));
    let made = projects.map(|project| project.join(names.made).join(names.folder));
    let listed = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let listed: Vec<PathBuf> = std::env::split_paths(&listed)
        .filter(|path| path.is_absolute())
        .collect();
    let folders: Vec<PathBuf> = made
        .chain(listed)
        .chain(SYSTEM.map(PathBuf::from))
        .collect();
    for folder in &folders {
        if let Some(library) = at(folder, FLAVOUR)? {
            return Ok(library);
        }
    }
    Err(not_found(&folders))
}

/// The library that `path` is or holds.
fn at(path: &Path, flavour: Flavour) -> Result<Option<Library>, EngineError> {
    let names = names(flavour);
    let folder = if path.is_file() {
        path.parent().unwrap_or(Path::new("."))
    } else {
        path
    };
    let in_folder = |stem: &str| {
        let files = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()));
        // `libname.so`, or a version after that.
        let is_it = |path: &PathBuf| {
            let version = path.file_name()?.to_str()?.strip_prefix(stem)?;
            version
                .chars()
                .all(|c| c == '.' || c.is_ascii_digit())
                .then_some(())
        };
        newest(files.filter(|path| is_it(path).is_some()))
    };
    let runtime = if path.is_file() {
        Some(path.to_owned())
    } else {
        in_folder(names.runtime)
    };
    let Some(runtime) = runtime else {
        return Ok(None);
    };
    let parser = in_folder(names.parser).ok_or_else(|| EngineError::Unavailable {
        kind: KIND,
        reason: format!(
            "{flavour} in {} is incomplete: there is no {}* beside it",
            folder.display(),
            names.parser
        ),
        advice: advice(),
    })?;
    Ok(Some(Library { runtime, parser }))
}

fn not_found(folders: &[PathBuf]) -> EngineError {
    let mut looked: Vec<String> = folders
        .iter()
        .map(|folder| folder.display().to_string())
        .collect();
    looked.dedup();
    let other = names(if FLAVOUR == Flavour::Rtx {
        Flavour::Enterprise
    } else {
        Flavour::Rtx
    });
    // The other flavour in the very place that was named.
    let mistaken = folders.len() == 1 && matches!(at(&folders[0], flavour_of(other)), Ok(Some(_)));
    EngineError::Unavailable {
        kind: KIND,
        reason: format!(
            "{FLAVOUR} ({}*) was not found in {}",
            names(FLAVOUR).runtime,
            looked.join(", ")
        ),
        advice: if mistaken {
            format!(
                "what is there is {}, for which the program has to be built with another feature",
                other.runtime
            )
        } else {
            advice()
        },
    }
}

fn flavour_of(names: &Names) -> Flavour {
    if names.runtime == RTX.runtime {
        Flavour::Rtx
    } else {
        Flavour::Enterprise
    }
}

fn advice() -> String {
    let Names {
        package,
        folder,
        make,
        ..
    } = names(FLAVOUR);
    format!("{make}`pip install {package}` and point --tensorrt-lib to its folder {folder}")
}

/// Loads the library. Returns its version, such as `1.7.1.116`.
pub(super) fn load(library: &Library) -> Result<String, EngineError> {
    let unusable = |reason: String, advice: String| EngineError::Unavailable {
        kind: KIND,
        reason,
        advice,
    };
    let file = library.runtime.display();
    let version = version::library_version(&library.runtime)
        .map_err(|reason| unusable(format!("{file} can't be loaded: {reason}"), advice()))?;
    let wanted = version::header_version();
    if version[0] != wanted[0] || version[1] < wanted[1] {
        let [major, minor, ..] = wanted;
        return Err(unusable(
            format!(
                "{file} is {FLAVOUR} {}, and this program is built for {major}.{minor} or a newer {major}.x",
                dotted(&version[..3])
            ),
            format!(
                "`pip install \"{}>={major}.{minor},<{}\"`",
                names(FLAVOUR).package,
                major + 1
            ),
        ));
    }
    trtx::dynamically_load_tensorrt(Some(&library.runtime))
        .map_err(|error| unusable(format!("{file} can't be loaded: {error}"), advice()))?;
    trtx::dynamically_load_tensorrt_onnxparser(Some(&library.parser)).map_err(|error| {
        unusable(
            format!("{} can't be loaded: {error}", library.parser.display()),
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

/// TensorRT's log. There is one for the process: TensorRT keeps the first one that it is given.
pub(super) fn logger() -> Result<&'static Logger, EngineError> {
    static LOGGER: OnceLock<Option<Logger>> = OnceLock::new();
    LOGGER
        .get_or_init(|| Logger::new(ToTracing).ok())
        .as_ref()
        .ok_or_else(|| KIND.failed("its log can't be opened"))
}

thread_local! {
    /// What TensorRT called errors on this thread.
    static ERRORS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// More errors than this for one call tell nothing new.
const MAX_ERRORS: usize = 8;

/// What went wrong on this thread since the last time, in TensorRT's words; `otherwise` where it
/// said nothing.
pub(super) fn take_errors(otherwise: impl ToString) -> String {
    let errors = ERRORS.take();
    if errors.is_empty() {
        otherwise.to_string()
    } else {
        errors.join("; ")
    }
}

/// A message on one line, without the place in TensorRT's source; `None` for mere decoration.
fn tidy(message: &str) -> Option<String> {
    let words = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = match words.split_once(": ") {
        Some((place, text)) if place.contains(".cpp:") && !place.contains(' ') => text,
        _ => &words,
    };
    let text = text
        .replace("--- Begin node --- ", "")
        .trim_end_matches(':')
        .to_owned();
    (!text.is_empty() && !text.contains("--- End node ---")).then_some(text)
}

struct ToTracing;

impl LogHandler for ToTracing {
    fn log(&self, severity: Severity, message: &str) {
        let message = message.trim();
        match severity {
            // Whoever called reports them, with what it was about.
            Severity::InternalError | Severity::Error => {
                tracing::debug!("{message}");
                ERRORS.with_borrow_mut(|errors| {
                    errors.extend(tidy(message).filter(|_| errors.len() < MAX_ERRORS));
                });
            }
            Severity::Warning | Severity::Info => tracing::debug!("{message}"),
            Severity::Verbose => tracing::trace!("{message}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_on_one_line_without_decoration() {
        assert_eq!(
            tidy("ModelImporter.cpp:142: --- Begin node ---\nNode name: /relu/Relu").unwrap(),
            "Node name: /relu/Relu"
        );
        assert_eq!(tidy("ModelImporter.cpp:143: --- End node ---"), None);
        assert_eq!(
            tidy("Error Code 2: out\n of memory").unwrap(),
            "Error Code 2: out of memory"
        );
        assert_eq!(tidy(" \n"), None);
    }

    #[test]
    fn errors_are_taken_once() {
        ToTracing.log(Severity::Error, "one");
        ToTracing.log(Severity::Warning, "two");
        assert_eq!(take_errors("nothing"), "one");
        assert_eq!(take_errors("nothing"), "nothing");
    }
}
