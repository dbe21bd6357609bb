//! Counts panics of image decoders, and images that took them too long.

use metrics::counter;

use super::table::{DECODE_TIMEOUTS, DECODER_PANICS};

/// Registers the series, so that they exist, at 0, before the first panic.
pub(super) fn register() {
    let _ = counter!(DECODER_PANICS);
    let _ = counter!(DECODE_TIMEOUTS);
}

/// A decoder panicked on an image.
pub(crate) fn decoder_panicked() {
    counter!(DECODER_PANICS).increment(1);
}

/// Decoding an image was abandoned when its time was over.
pub(crate) fn decode_timed_out() {
    counter!(DECODE_TIMEOUTS).increment(1);
}
