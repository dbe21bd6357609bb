//! Image files of every kind, decoded as the server does, whole and scaled down.
#![no_main]

use std::cell::RefCell;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use resnet18_server::image::{Geometry, ImageError, JpegScaling, PreprocessConfig, Preprocessor, Source};

/// Small, so that the time goes into decoding, and JPEGs of 16 pixels a side are scaled down
/// already.
const GEOMETRY: Geometry = Geometry { width: 4, height: 4, resize_shorter_side: 4 };

fn config(jpeg_scaling: JpegScaling) -> PreprocessConfig {
    PreprocessConfig { jpeg_scaling, ..PreprocessConfig::default() }
}

thread_local! {
    /// One that has seen other images before, as a worker's has.
    static USED: RefCell<Preprocessor> = RefCell::new(Preprocessor::new(config(JpegScaling::Auto)));
}

fn crop(preprocessor: &mut Preprocessor, image: &Source) -> Result<Vec<u8>, String> {
    let mut crop = vec![0; GEOMETRY.bytes()];
    match preprocessor.crop(image, &GEOMETRY, &mut crop) {
        Ok(()) => Ok(crop),
        Err(
            error @ (ImageError::Geometry { .. }
            | ImageError::CropLength { .. }
            | ImageError::Resize { .. }
            | ImageError::DecoderPanic),
        ) => panic!("no image may cause this: {error}"),
        Err(error) => Err(error.to_string()),
    }
}

fuzz_target!(|file: &[u8]| {
    let image = Source::Encoded(Bytes::copy_from_slice(file));
    let scaled = crop(&mut Preprocessor::new(config(JpegScaling::Auto)), &image);
    let again = USED.with_borrow_mut(|used| crop(used, &image));
    assert_eq!(scaled, again, "an answer depends on the images before it");
    if file.starts_with(b"\xff\xd8") {
        let _ = crop(&mut Preprocessor::new(config(JpegScaling::Off)), &image);
    }
});
