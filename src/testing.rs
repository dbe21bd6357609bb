//! What the unit tests of several modules share.

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::{Arc, Mutex},
};

/// Says that a test is skipped, past the test harness, which keeps what a passing test prints to
/// itself.
pub(crate) fn skipped(reason: &str) {
    // Without standard error nobody is there to read it.
    let _ = writeln!(io::stderr(), "SKIPPED: {reason}");
}

/// What is logged by a test, shared by all who write it.
#[derive(Clone, Default)]
pub(crate) struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl io::Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `work` logs, written by the subscriber that is made here.
pub(crate) fn log_of<S>(subscriber: impl FnOnce(CapturedLog) -> S, work: impl FnOnce()) -> String
where
    S: tracing::Subscriber + Send + Sync + 'static,
{
    // Where there is only one subscriber, the thread that is the first to reach a line decides for all
    // threads whether it is logged, and that may be the thread of a test without a subscriber.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let log = CapturedLog::default();
    tracing::subscriber::with_default(subscriber(log.clone()), work);
    let bytes = log.0.lock().unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
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
