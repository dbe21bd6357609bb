//! TensorRT's log: forwarded to `tracing`, with the errors of each thread kept for the call that
//! failed.

use std::{
    cell::RefCell,
    ffi::{CStr, c_char, c_void},
    sync::OnceLock,
};

use trtx::{LogHandler, Logger, Severity, trtx_sys};

use super::Failure;

/// The log of builders and parsers. There is one for the process, as TensorRT keeps the first that
/// it gets.
pub(super) fn logger() -> Result<&'static Logger, Failure> {
    static LOGGER: OnceLock<Option<Logger>> = OnceLock::new();
    LOGGER
        .get_or_init(|| Logger::new(TracingLogger).ok())
        .as_ref()
        .ok_or_else(|| Failure("TensorRT's log can't be opened".into()))
}

/// The same log as an `ILogger` of TensorRT's, for runtimes. It lives until the process ends.
pub(super) fn interface() -> Result<*mut c_void, Failure> {
    /// The address of the `ILogger`; 0 if there is none.
    static INTERFACE: OnceLock<usize> = OnceLock::new();
    let address = *INTERFACE.get_or_init(|| {
        // SAFETY: the callback uses no user data and may be called on any thread; the bridge is
        // never destroyed, so that its address stays valid.
        unsafe {
            let bridge = trtx_sys::create_rust_logger_bridge(on_message, std::ptr::null_mut());
            if bridge.is_null() {
                return 0;
            }
            trtx_sys::get_logger_interface(bridge) as usize
        }
    });
    match address {
        0 => Err(Failure("TensorRT's log can't be opened".into())),
        address => Ok(address as *mut c_void),
    }
}

unsafe extern "C" fn on_message(_: *mut c_void, severity: i32, message: *const c_char) {
    if message.is_null() {
        return;
    }
    // SAFETY: TensorRT passes a string that ends with a zero and lives during the call.
    let message = unsafe { CStr::from_ptr(message) };
    let severity = match severity {
        0 => Severity::InternalError,
        1 => Severity::Error,
        2 => Severity::Warning,
        3 => Severity::Info,
        _ => Severity::Verbose,
    };
    TracingLogger.log(severity, &message.to_string_lossy());
}

thread_local! {
    /// Errors that TensorRT logged on this thread and nobody has taken yet.
    static ERRORS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Most errors that are kept for one call; more tell nothing new.
const MAX_ERRORS: usize = 8;

/// Takes the errors that TensorRT logged on this thread since the last call, as one message.
pub(super) fn take_errors() -> Option<String> {
    let errors = ERRORS.take();
    (!errors.is_empty()).then(|| errors.join("; "))
}

/// Forgets the errors of earlier calls, which would otherwise be reported for the next one.
pub(super) fn forget_errors() {
    ERRORS.take();
}

/// Puts a message on one line, without its location in TensorRT's source; `None` for a message that
/// is only decoration.
fn tidy(message: &str) -> Option<String> {
    let words = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = match words.split_once(": ") {
        Some((location, text)) if location.contains(".cpp:") && !location.contains(' ') => text,
        _ => &words,
    };
    let text = text
        .replace("--- Begin node --- ", "")
        .trim_end_matches(':')
        .to_owned();
    (!text.is_empty() && !text.contains("--- End node ---")).then_some(text)
}

/// Logs through `tracing`, and keeps errors for [`take_errors`].
struct TracingLogger;

impl LogHandler for TracingLogger {
    fn log(&self, severity: Severity, message: &str) {
        let message = message.trim();
        match severity {
            // Callers report them, and know what they are about.
            Severity::InternalError | Severity::Error => {
                tracing::debug!("{message}");
                ERRORS.with_borrow_mut(|errors| {
                    if errors.len() < MAX_ERRORS {
                        errors.extend(tidy(message));
                    }
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
        forget_errors();
        TracingLogger.log(Severity::Error, "one");
        TracingLogger.log(Severity::Warning, "two");
        assert_eq!(take_errors().as_deref(), Some("one"));
        assert_eq!(take_errors(), None);
    }
}
