//! Fuzzes image decoding: files of every format, preprocessed as the server does, at full size and
//! at reduced scale, within a time and within the limits that `make fuzz` sets for memory.
#![no_main]

use std::{cell::RefCell, time::Duration};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use resnet18_server::image::{
    Geometry, ImageError, JpegScaling, PreprocessConfig, Preprocessor, Source, estimate,
};

/// Small, so that the time goes into decoding, and so that JPEGs are decoded at reduced scale from
/// 16 pixels a side.
const GEOMETRY: Geometry = Geometry::cropped(4, 4, 4);

/// Few pixels, which are decoded within a part of a second, so that a decoder which takes long does
/// so because of what the file holds.
const MAX_PIXELS: u64 = 1 << 22;

fn config(jpeg_scaling: JpegScaling) -> PreprocessConfig {
    PreprocessConfig {
        jpeg_scaling,
        max_pixels: MAX_PIXELS,
        max_decode_time: Duration::from_secs(2),
        ..PreprocessConfig::default()
    }
}

thread_local! {
    /// A preprocessor that has seen other images before, like that of a worker thread.
    static REUSED: RefCell<Preprocessor> =
        RefCell::new(Preprocessor::new(config(JpegScaling::Auto)));
}

/// Panics on errors that no image file may cause.
fn crop(preprocessor: &mut Preprocessor, image: &Source) -> Result<Vec<u8>, String> {
    let mut crop = vec![0; GEOMETRY.bytes()];
    match preprocessor.crop(image, &GEOMETRY, &mut crop) {
        Ok(()) => Ok(crop),
        Err(
            error @ (ImageError::Geometry { .. }
            | ImageError::CropLength { .. }
            | ImageError::TookTooLong { .. }
            | ImageError::DecoderPanic),
        ) => panic!("no image may cause this: {error}"),
        Err(error) => Err(error.to_string()),
    }
}

fuzz_target!(|file: &[u8]| {
    let image = Source::Encoded(Bytes::copy_from_slice(file));

    let estimate = estimate(&image, &[], config(JpegScaling::Auto), &GEOMETRY);
    assert!(estimate.pixels <= MAX_PIXELS);

    let with_new = crop(&mut Preprocessor::new(config(JpegScaling::Auto)), &image);
    let with_reused = REUSED.with_borrow_mut(|reused| crop(reused, &image));
    assert_eq!(
        with_new, with_reused,
        "the answer depends on previous images"
    );

    assert!(
        with_new.is_err() || estimate.pixels > 0,
        "an image was decoded that was estimated to be rejected"
    );

    if file.starts_with(b"\xff\xd8") {
        let _ = crop(&mut Preprocessor::new(config(JpegScaling::Off)), &image);
    }
});
