//! What the unit tests of several modules share.

use std::{
    io::{self, Write},
    path::PathBuf,
};

/// Says that a test is skipped, past the test harness, which keeps what a passing test prints to
/// itself.
pub(crate) fn skipped(reason: &str) {
    // Without standard error nobody is there to read it.
    let _ = writeln!(io::stderr(), "SKIPPED: {reason}");
}

/// Numbers from 0 up to a limit, by Marsaglia's xorshift generator: the same for the same `seed`, which
/// is not 0.
pub(crate) fn random_numbers(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    }
}

/// A file or folder of the reference data beside the repository; `None`, with a visible word, where
/// it is missing.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let shared = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared")).join(path);
    if !shared.exists() {
        skipped(&format!("there is no ../shared/{path} beside the project"));
        return None;
    }
    Some(shared)
}
