//! Right and hostile tensors.

use std::collections::HashMap;

use super::*;
use crate::inference::InferParameter;

const GEOMETRY: Geometry = Geometry::cropped(3, 2, 3);
const FILES: Expected = Expected {
    form: Form::Encoded,
    geometry: GEOMETRY,
    normalization: None,
};
const PIXELS: Expected = Expected {
    form: Form::Tensor,
    normalization: Some(Normalization::IMAGENET),
    ..FILES
};

fn input(datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: IMAGES.into(),
        datatype: datatype.into(),
        shape: shape.into(),
        ..Default::default()
    }
}

fn raw(datatype: &str, shape: &[i64], data: impl Into<Bytes>) -> ModelInferRequest {
    let (inputs, raw_input_contents) = (vec![input(datatype, shape)], vec![data.into()]);
    ModelInferRequest {
        inputs,
        raw_input_contents,
        ..Default::default()
    }
}

fn typed(datatype: &str, shape: &[i64], contents: InferTensorContents) -> ModelInferRequest {
    let inputs = vec![InferInputTensor {
        contents: Some(contents),
        ..input(datatype, shape)
    }];
    ModelInferRequest {
        inputs,
        ..Default::default()
    }
}

fn framed(files: &[&[u8]]) -> Vec<u8> {
    files
        .iter()
        .flat_map(|file| [&(file.len() as u32).to_le_bytes()[..], file].concat())
        .collect()
}

/// The content of what is no crop of floats.
fn bytes(sources: &[Source]) -> Vec<&[u8]> {
    fn content(source: &Source) -> &[u8] {
        match source {
            Source::Encoded(file) => file,
            Source::Crop(Crop::Pixels(pixels)) => pixels,
            other => panic!("{other:?}"),
        }
    }
    sources.iter().map(content).collect()
}

fn error(request: ModelInferRequest, expected: &Expected) -> String {
    images(request, expected).unwrap_err().to_string()
}

#[test]
fn files_come_raw_or_typed_and_with_or_without_a_second_dimension() {
    let files = [&b"first"[..], b"", b"third"];
    let contents = || InferTensorContents {
        bytes_contents: files.map(Bytes::copy_from_slice).into(),
        ..Default::default()
    };
    for shape in [&[3][..], &[3, 1]] {
        let from_raw = images(raw("BYTES", shape, framed(&files)), &FILES).unwrap();
        assert_eq!(bytes(&from_raw), files);
        assert_eq!(
            bytes(&images(typed("BYTES", shape, contents()), &FILES).unwrap()),
            files
        );
    }
}

#[test]
fn pixels_come_raw_or_typed() {
    let pixels: Vec<u8> = (0..36).collect();
    let halves: Vec<&[u8]> = pixels.chunks(18).collect();
    assert_eq!(
        bytes(&images(raw("UINT8", &[2, 2, 3, 3], pixels.clone()), &PIXELS).unwrap()),
        halves
    );
    let uint_contents = pixels.iter().map(|pixel| u32::from(*pixel)).collect();
    let contents = InferTensorContents {
        uint_contents,
        ..Default::default()
    };
    assert_eq!(
        bytes(&images(typed("UINT8", &[2, 2, 3, 3], contents), &PIXELS).unwrap()),
        halves
    );
}

#[test]
fn normalized_values_come_raw_or_typed() {
    let fp32_contents: Vec<f32> = (0..18_u8).map(f32::from).collect();
    let data: Vec<u8> = fp32_contents
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let contents = InferTensorContents {
        fp32_contents,
        ..Default::default()
    };
    for request in [
        raw("FP32", &[1, 3, 2, 3], data.clone()),
        typed("FP32", &[1, 3, 2, 3], contents),
    ] {
        let sources = images(request, &PIXELS).unwrap();
        let [Source::Crop(Crop::Normalized { values, mean, std })] = &sources[..] else {
            panic!("{sources:?}")
        };
        assert_eq!(
            (&values[..], *mean, *std),
            (
                &data[..],
                Normalization::IMAGENET.mean,
                Normalization::IMAGENET.std
            )
        );
    }
}

#[test]
fn shapes_that_are_not_the_models_are_refused() {
    let huge = [
        &[][..],
        &[0],
        &[-1],
        &[65],
        &[i64::MAX],
        &[i64::MIN],
        &[1, 2],
        &[1, 1, 1],
        &[1 << 32, 1],
        &[i64::MAX, i64::MAX],
    ];
    for shape in huge {
        let message = error(raw("BYTES", shape, framed(&[b"x"])), &FILES);
        assert!(
            message.contains(&format!("{shape:?}"))
                && message.contains("BYTES [N, 1], where N is 1 to 64"),
            "{message}"
        );
    }
    for shape in [
        &[1][..],
        &[2, 3, 3],
        &[0, 2, 3, 3],
        &[-1, 2, 3, 3],
        &[65, 2, 3, 3],
        &[1, 3, 2, 3],
        &[1, -2, -3, 3],
        &[1, 2, 3, 3, 1],
        &[i64::MAX, 2, 3, 3],
        &[i64::MIN, i64::MIN, i64::MAX, 3],
    ] {
        let message = error(raw("UINT8", shape, vec![0; 18]), &PIXELS);
        assert!(message.contains("UINT8 [N, 2, 3, 3]"), "{message}");
    }
    assert!(error(raw("FP32", &[1, 2, 3, 3], vec![0; 72]), &PIXELS).contains("FP32 [N, 3, 2, 3]"));
}

#[test]
fn sizes_that_are_not_the_shapes_are_refused() {
    for size in [0, 17, 19, 36] {
        let message = error(raw("UINT8", &[1, 2, 3, 3], vec![0; size]), &PIXELS);
        assert!(
            message.contains("takes 18 bytes") && message.contains(&format!("there are {size}")),
            "{message}"
        );
    }
    assert!(error(raw("FP32", &[1, 3, 2, 3], vec![0; 18]), &PIXELS).contains("takes 72 bytes"));
    let floats = InferTensorContents {
        fp32_contents: vec![0.0; 17],
        ..Default::default()
    };
    assert!(
        error(typed("FP32", &[1, 3, 2, 3], floats.clone()), &PIXELS)
            .contains("takes 18 fp32_contents")
    );
    let message = error(typed("UINT8", &[1, 2, 3, 3], floats), &PIXELS);
    assert!(
        message.contains("takes 18 uint_contents, but there are 0"),
        "{message}"
    );
    let large = InferTensorContents {
        uint_contents: vec![256; 18],
        ..Default::default()
    };
    assert!(error(typed("UINT8", &[1, 2, 3, 3], large), &PIXELS).contains("256"));
    let few = InferTensorContents {
        bytes_contents: vec![Bytes::new()],
        ..Default::default()
    };
    assert!(error(typed("BYTES", &[2], few), &FILES).contains("takes 2 bytes_contents"));
}

#[test]
fn lengths_that_lie_are_refused() {
    let whole = framed(&[b"first", b"second"]);
    for end in 0..whole.len() {
        let message = error(raw("BYTES", &[2], whole[..end].to_vec()), &FILES);
        assert!(
            message.contains(if end < 9 {
                "image 1 of 2"
            } else {
                "image 2 of 2"
            }),
            "{end}: {message}"
        );
    }
    assert!(error(raw("BYTES", &[1], whole), &FILES).contains("10 bytes"));
    let endless = [&u32::MAX.to_le_bytes()[..], b"short"].concat();
    assert!(error(raw("BYTES", &[1], endless), &FILES).contains("image 1 of 1"));
}

#[test]
fn data_comes_one_way() {
    let contents = InferTensorContents {
        bytes_contents: vec![Bytes::from_static(b"x")],
        ..Default::default()
    };
    let one = raw("BYTES", &[1], framed(&[b"x"]));
    let twice = ModelInferRequest {
        inputs: typed("BYTES", &[1], contents).inputs,
        ..one.clone()
    };
    assert_eq!(
        images(twice, &FILES).unwrap_err(),
        TensorError::DuplicateData
    );
    let two = ModelInferRequest {
        raw_input_contents: vec![Bytes::new(); 2],
        ..one.clone()
    };
    assert_eq!(
        images(two, &FILES).unwrap_err(),
        TensorError::RawContents(2)
    );
    for inputs in [
        one.inputs.clone(),
        typed("BYTES", &[1], InferTensorContents::default()).inputs,
    ] {
        let none = ModelInferRequest {
            inputs,
            ..Default::default()
        };
        assert_eq!(images(none, &FILES).unwrap_err(), TensorError::NoData);
    }
    let mut elsewhere = one;
    elsewhere.inputs[0].parameters =
        HashMap::from([(SHARED_MEMORY.to_owned(), InferParameter::default())]);
    assert_eq!(
        images(elsewhere, &FILES).unwrap_err(),
        TensorError::SharedMemory
    );
}

#[test]
fn inputs_and_types_that_the_model_does_not_take_are_refused() {
    let mut request = raw("BYTES", &[1], framed(&[b"x"]));
    request.inputs[0].name = "input__0".into();
    assert!(error(request.clone(), &FILES).contains("`input__0`"));
    request.inputs.push(InferInputTensor::default());
    assert_eq!(images(request, &FILES).unwrap_err(), TensorError::Inputs(2));
    assert_eq!(
        images(ModelInferRequest::default(), &FILES).unwrap_err(),
        TensorError::Inputs(0)
    );
    assert!(
        error(raw("UINT8", &[1, 2, 3, 3], vec![0; 18]), &FILES)
            .contains("is UINT8; this model takes BYTES [N, 1]")
    );
    let message = error(raw("FP16", &[1, 3, 2, 3], vec![0; 36]), &PIXELS);
    assert!(
        message.contains("UINT8 [N, 2, 3, 3] or FP32 [N, 3, 2, 3]"),
        "{message}"
    );
    let integers_only = Expected {
        normalization: None,
        ..PIXELS
    };
    let message = error(raw("FP32", &[1, 3, 2, 3], vec![0; 72]), &integers_only);
    assert!(
        message.ends_with("this model takes UINT8 [N, 2, 3, 3]"),
        "{message}"
    );
}
