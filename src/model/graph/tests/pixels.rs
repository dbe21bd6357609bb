//! What is put in front of a network so that it sees its own colours, scale and dimensions.

use super::*;
use crate::model::preprocessing::Scale;

fn with(model: &ModelProto, settings: Preprocessing) -> Result<ServingGraph, ModelError> {
    ServingGraph::new(model.clone(), &settings, None)
}

fn logits(serving: &ServingGraph, images: &[u8], batch: usize) -> Vec<f32> {
    let onnx = match serving.batch {
        Batch::Any => serving.to_onnx(None, BodyPrecision::Fp32),
        Batch::Fixed(batch) => serving.to_onnx(Some(batch), BodyPrecision::Fp32),
    };
    run(onnx.unwrap(), images, [batch, 4, 6, 3])
}

/// Each image with the order of its colours reversed.
fn reversed(images: &[u8]) -> Vec<u8> {
    let pixels = images.as_chunks::<3>().0;
    pixels
        .iter()
        .flat_map(|&[red, green, blue]| [blue, green, red])
        .collect()
}

/// Pillow's `convert("L")`.
fn luma(&[red, green, blue]: &[u8; 3]) -> u8 {
    let sum = u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471;
    ((sum + 0x8000) >> 16) as u8
}

/// [`tiny`] for gray images of this shape: the mean luma times the first column of the weights.
fn gray(shape: &[i64], first: &[NodeProto]) -> ModelProto {
    let mut model = tiny();
    let graph = graph(&mut model);
    let weights: Vec<f32> = WEIGHT.iter().step_by(3).copied().collect();
    graph.initializer[0] = floats("fc.weight", &[CLASSES as i64, 1], &weights);
    graph.input = vec![value("pixels", DataType::Float, shape)];
    if let Some(last) = first.last() {
        graph.node[0].input[0].clone_from(&last.output[0]);
        graph.node.splice(0..0, first.iter().cloned());
    }
    model
}

/// The logits of [`gray`] for one normalization.
fn gray_logits(images: &[u8], mean: f32, std: f32) -> Vec<f32> {
    images
        .chunks(4 * 6 * 3)
        .flat_map(|image| {
            let pixels = image.as_chunks::<3>().0;
            let sum: f32 = pixels
                .iter()
                .map(|pixel| (f32::from(luma(pixel)) / 255.0 - mean) / std)
                .sum();
            let mean = sum / pixels.len() as f32;
            let rows = WEIGHT.chunks(3).zip(BIAS);
            rows.map(move |(row, bias)| row[0] * mean + bias)
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn bgr_networks_see_the_colours_reversed() {
    let images = tiny_images();
    let settings = Preprocessing {
        channels: Some(ChannelOrder::Bgr),
        ..PLAIN.into()
    };
    // The network's first channel is blue, with blue's mean and deviation.
    let [mean, std] = [PLAIN.mean, PLAIN.std].map(|[red, green, blue]| [blue, green, red]);
    let expected = tiny_logits(&reversed(&images), mean, std);
    assert_close(
        &logits(&with(&tiny(), settings.clone()).unwrap(), &images, 2),
        &expected,
        1e-5,
    );

    let mut last = tiny();
    graph(&mut last).input = vec![value("pixels", DataType::Float, &[-1, 4, 6, 3])];
    graph(&mut last).node.insert(
        0,
        node("Transpose", &["pixels"], "nchw").with_ints("perm", &[0, 3, 1, 2]),
    );
    graph(&mut last).node[1].input[0] = "nchw".into();
    let serving = with(&last, settings).unwrap();
    assert_eq!(serving.channels, ChannelOrder::Bgr);
    assert_close(&logits(&serving, &images, 2), &expected, 1e-5);
}

#[test]
fn a_scale_of_255_leaves_pixels_as_they_are() {
    let images = tiny_images();
    let scaled = |mean: Option<[f32; 3]>, std: Option<[f32; 3]>| {
        let settings = Preprocessing {
            scale: Some(Scale::Byte),
            mean,
            std,
            ..Preprocessing::default()
        };
        with(&tiny(), settings)
    };
    let raw = scaled(None, None).unwrap();
    let expected = tiny_logits(&images, [0.0; 3], [1.0 / 255.0; 3]);
    assert_close(&logits(&raw, &images, 2), &expected, 2e-3);

    let (mean, std) = ([123.68, 116.779, 103.939], [58.0, 57.0, 57.5]);
    let serving = scaled(Some(mean), Some(std)).unwrap();
    let expected = tiny_logits(
        &images,
        mean.map(|mean| mean / 255.0),
        std.map(|std| std / 255.0),
    );
    assert_close(&logits(&serving, &images, 2), &expected, 1e-5);
    assert!((serving.normalization.mean[0] - 123.68 / 255.0).abs() < 1e-6);

    for (mean, std) in [
        (Some([0.485, 0.456, 0.406]), None),
        (None, Some([0.229, 0.224, 0.225])),
    ] {
        let error = scaled(mean, std).unwrap_err().to_string();
        assert!(error.contains("--scale 1"), "{error}");
    }
    let caffe = Preprocessing {
        mean: Some([123.68, 116.779, 103.939]),
        ..Preprocessing::default()
    };
    let error = with(&tiny(), caffe).unwrap_err().to_string();
    assert!(error.contains("--scale 255"), "{error}");
}

#[test]
fn gray_networks_see_pillows_luma() {
    let images = tiny_images();
    let transpose = node("Transpose", &["pixels"], "nchw").with_ints("perm", &[0, 3, 1, 2]);
    let unsqueeze = node("Unsqueeze", &["pixels", "channel"], "nchw");
    for (shape, first) in [
        (&[-1, 1, 4, 6][..], &[][..]),
        (&[-1, 4, 6, 1], &[transpose]),
        (&[-1, 4, 6], &[unsqueeze]),
    ] {
        let mut model = gray(shape, first);
        graph(&mut model).initializer.push(ints("channel", &[1]));
        let plain = with(&model, Preprocessing::default()).unwrap();
        assert_eq!(plain.channels, ChannelOrder::Gray);
        assert_close(
            &logits(&plain, &images, 2),
            &gray_logits(&images, 0.0, 1.0),
            1e-5,
        );

        let mnist = Preprocessing {
            mean: Some([0.1307; 3]),
            std: Some([0.3081; 3]),
            channels: Some(ChannelOrder::Gray),
            ..Preprocessing::default()
        };
        assert_close(
            &logits(&with(&model, mnist).unwrap(), &images, 2),
            &gray_logits(&images, 0.1307, 0.3081),
            1e-5,
        );
    }
}

#[test]
fn every_luma_is_rounded_as_pillow_does() {
    // Each pixel is an image: the network gives its luma back.
    let mut model = gray(&[-1, 1, 1, 1], &[]);
    graph(&mut model).initializer = vec![
        floats("fc.weight", &[CLASSES as i64, 1], &[1.0; CLASSES]),
        floats("fc.bias", &[CLASSES as i64], &[0.0; CLASSES]),
    ];
    let settings = Preprocessing {
        scale: Some(Scale::Byte),
        ..Preprocessing::default()
    };
    let serving = with(&model, settings).unwrap();
    let images: Vec<u8> = (0..3 * 50_000_u32)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 23) as u8)
        .collect();
    let found = run(
        serving.to_onnx(None, BodyPrecision::Fp32).unwrap(),
        &images,
        [50_000, 1, 1, 3],
    );
    for (pixel, found) in images.as_chunks::<3>().0.iter().zip(found.chunks(CLASSES)) {
        assert_eq!(found[0], f32::from(luma(pixel)), "{pixel:?}");
    }
}

#[test]
fn a_network_without_a_batch_is_served_one_image_at_a_time() {
    let image = &tiny_images()[..4 * 6 * 3];
    let expected = tiny_logits(image, PLAIN.mean, PLAIN.std);
    let end = node("Softmax", &["list"], "probabilities").with_int("axis", 0);
    for (shape, transposes, softmax) in [
        (&[3, 4, 6], false, false),
        (&[4, 6, 3], true, false),
        (&[3, 4, 6], false, true),
    ] {
        let mut model = tiny();
        let graph = graph(&mut model);
        graph.input = vec![value("pixels", DataType::Float, shape)];
        let mut first = vec![node("Unsqueeze", &["pixels", "batch"], "batched")];
        if transposes {
            first.push(node("Transpose", &["batched"], "nchw").with_ints("perm", &[0, 3, 1, 2]));
        }
        graph.node[0].input[0].clone_from(&first.last().unwrap().output[0]);
        graph.node.splice(0..0, first);
        graph
            .node
            .push(node("Squeeze", &["scores", "batch"], "list"));
        graph.initializer.push(ints("batch", &[0]));
        let mut output = "list";
        if softmax {
            graph.node.push(end.clone());
            output = "probabilities";
        }
        graph.output = vec![value(output, DataType::Float, &[CLASSES as i64])];

        let serving = serve(&model).unwrap();
        assert_eq!(serving.batch, Batch::Fixed(1), "{shape:?}");
        assert_close(&logits(&serving, image, 1), &expected, 1e-5);
        assert!(serving.to_onnx(Some(2), BodyPrecision::Fp32).is_err());
        serving.to_onnx(Some(1), BodyPrecision::Fp16).unwrap();
    }
}

#[test]
fn integers_are_reordered_and_made_gray_as_well() {
    let images = tiny_images();
    let mut model = tiny();
    graph(&mut model).input = vec![value("pixels", DataType::Uint8, &[-1, 3, 4, 6])];
    graph(&mut model).node[0].input[0] = "float".into();
    graph(&mut model).node.insert(
        0,
        node("Cast", &["pixels"], "float").with_int("to", DataType::Float as i64),
    );
    let settings = Preprocessing {
        channels: Some(ChannelOrder::Bgr),
        ..Preprocessing::default()
    };
    let serving = with(&model, settings).unwrap();
    assert!(!serving.normalizes);
    let expected = tiny_logits(&reversed(&images), [0.0; 3], [1.0 / 255.0; 3]);
    assert_close(&logits(&serving, &images, 2), &expected, 2e-3);

    let cast = node("Cast", &["pixels"], "float").with_int("to", DataType::Float as i64);
    let mut model = gray(&[-1, 1, 4, 6], &[cast]);
    graph(&mut model).input = vec![value("pixels", DataType::Int32, &[-1, 1, 4, 6])];
    let serving = with(&model, Preprocessing::default()).unwrap();
    let expected = gray_logits(&images, 0.0, 1.0 / 255.0);
    assert_close(&logits(&serving, &images, 2), &expected, 2e-3);
}

#[test]
fn the_prologue_keeps_its_precision_when_the_network_is_typed() {
    for (model, channels) in [
        (tiny(), ChannelOrder::Bgr),
        (gray(&[-1, 1, 4, 6], &[]), ChannelOrder::Gray),
    ] {
        let settings = Preprocessing {
            channels: Some(channels),
            ..Preprocessing::default()
        };
        let serving = with(&model, settings).unwrap();
        for precision in [BodyPrecision::Fp16, BodyPrecision::Bf16] {
            let typed = decoded(&serving, Some(2), precision).graph.unwrap();
            let kept = typed.initializer.iter().filter(|tensor| {
                tensor.name().starts_with("preprocess")
                    && tensor.data_type() != DataType::Int64 as i32
            });
            assert!(kept.clone().count() >= 2);
            for tensor in kept {
                assert_eq!(
                    tensor.data_type(),
                    DataType::Float as i32,
                    "{}",
                    tensor.name()
                );
            }
        }
    }
}

#[test]
fn channels_that_the_network_does_not_have_are_refused() {
    let refusal = |model: &ModelProto, channels| {
        let settings = Preprocessing {
            channels: Some(channels),
            ..Preprocessing::default()
        };
        with(model, settings).unwrap_err().to_string()
    };
    let error = refusal(&tiny(), ChannelOrder::Gray);
    assert!(
        error.contains("3 channels") && error.contains("--channels"),
        "{error}"
    );
    let error = refusal(&gray(&[-1, 1, 4, 6], &[]), ChannelOrder::Bgr);
    assert!(
        error.contains("1 channel,") && error.contains("says bgr"),
        "{error}"
    );

    let coloured = Preprocessing {
        mean: Some([0.5, 0.4, 0.3]),
        ..Preprocessing::default()
    };
    let error = with(&gray(&[-1, 1, 4, 6], &[]), coloured)
        .unwrap_err()
        .to_string();
    assert!(error.contains("gray images"), "{error}");
}
