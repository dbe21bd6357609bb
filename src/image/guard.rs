//! Runs decoders, which are memory-safe but may panic on what an untrusted file holds.
//!
//! Such a panic prints nothing to standard error, where a caller could fill the disk with it. It is
//! counted, and for each place in the code it is logged once.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    panic::{self, AssertUnwindSafe, catch_unwind},
    sync::{Mutex, Once},
};

use super::ImageFormat;
use crate::{metrics, sync::lock};

thread_local! {
    /// Whether this thread runs a decoder.
    static DECODING: Cell<bool> = const { Cell::new(false) };
    /// Where the decoder panicked.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs a decoder of files of this format, or of raw pixels; `None` if it panicked. What `work`
/// had changed is in an unknown state then.
pub(super) fn guarded<T>(format: Option<ImageFormat>, work: impl FnOnce() -> T) -> Option<T> {
    install_hook();
    let outer = DECODING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    DECODING.set(outer);

    if result.is_err() {
        metrics::decoder_panicked();
        let place = PLACE.take().unwrap_or_default();
        if is_new(format, &place) {
            let format = format.map_or_else(|| "raw pixels".to_owned(), |f| f.to_string());
            tracing::warn!(
                %format,
                %place,
                "a decoder panicked and its image was rejected; further panics at this place are \
                 only counted"
            );
        }
    }
    result.ok()
}

/// Makes panics of decoders silent, once. All others go to the hook that was there before.
fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if DECODING.try_with(Cell::get).unwrap_or(false) {
                let place = info.location().map(ToString::to_string);
                let _ = PLACE.try_with(|last| *last.borrow_mut() = place);
            } else {
                previous(info);
            }
        }));
    });
}

/// Whether no decoder of this format has panicked at this place before.
pub(super) fn is_new(format: Option<ImageFormat>, place: &str) -> bool {
    static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    lock(&SEEN).insert(format!("{format:?} {place}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_and_its_place_is_new_once() {
        assert_eq!(guarded(Some(ImageFormat::Png), || 1), Some(1));
        let index = std::hint::black_box(3);
        assert_eq!(guarded(Some(ImageFormat::Png), || [1, 2][index]), None);
        assert!(!DECODING.get());
        assert!(PLACE.take().is_none(), "the place was taken for the log");

        assert!(is_new(Some(ImageFormat::Gif), "here:1"));
        assert!(!is_new(Some(ImageFormat::Gif), "here:1"));
        assert!(is_new(Some(ImageFormat::Gif), "here:2"));
        assert!(is_new(None, "here:1"));
    }
}
