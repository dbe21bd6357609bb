//! Fuzzes requests of the Open Inference Protocol: the message, its tensor, and the images in it.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use resnet18_server::{
    grpc::oip::{Form, read_request, tensors},
    image::{Geometry, PreprocessConfig, Preprocessor, Source},
    model::Normalization,
};

/// Small, so that whole tensors fit into the fuzzer's inputs.
const GEOMETRY: Geometry = Geometry::cropped(4, 4, 4);

fuzz_target!(|message: &[u8]| {
    let Ok(request) = read_request(Bytes::copy_from_slice(message)) else {
        return;
    };

    for form in [Form::Encoded, Form::Tensor] {
        let expected = tensors::Expected {
            form,
            geometry: GEOMETRY,
            normalization: Some(Normalization::IMAGENET),
        };
        let Ok(images) = tensors::images(request.clone(), &expected) else {
            continue;
        };
        assert!(!images.is_empty());

        let mut preprocessor = Preprocessor::new(PreprocessConfig::default());
        let mut crop = vec![0; GEOMETRY.bytes()];
        for image in images {
            if matches!(image, Source::Crop(_)) {
                // It fails where a value is not that of any pixel.
                let _ = preprocessor.crop(&image, &GEOMETRY, &mut crop);
            }
        }
    }
});
