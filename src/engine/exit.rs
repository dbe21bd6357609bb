//! Ending the process without running the destructors of the engines' libraries.

/// Ends the process immediately with this exit status.
///
/// [`std::process::exit`] would run the destructors of the C++ libraries that engines have loaded,
/// while other threads may still compute with them, or while a GPU driver no longer responds.
#[allow(unsafe_code)]
pub fn exit_at_once(status: i32) -> ! {
    // SAFETY: `_exit` may be called at any time and from any thread; it runs no code of this
    // process.
    unsafe { libc::_exit(status) }
}
