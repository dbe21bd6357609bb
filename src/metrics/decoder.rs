//! Counts panics of image decoders.

use metrics::counter;

use super::table::DECODER_PANICS;

/// Registers the series, so that it exists, at 0, before the first panic.
pub(super) fn register() {
    let _ = counter!(DECODER_PANICS);
}

/// A decoder panicked on an image.
pub(crate) fn decoder_panicked() {
    counter!(DECODER_PANICS).increment(1);
}
