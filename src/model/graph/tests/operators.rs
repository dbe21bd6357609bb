//! Operators that are rewritten, and those beyond an engine's limits.

use super::*;

/// [`tiny`] with nodes in front of its pooling, the last of which gives `pixels_2`.
fn with_front(nodes: Vec<NodeProto>, stored: Vec<TensorProto>) -> ModelProto {
    let mut model = tiny();
    let graph = graph(&mut model);
    graph.node[0].input[0] = "pixels_2".into();
    graph.node.splice(0..0, nodes);
    graph.initializer.extend(stored);
    model
}

/// The serving graph's node of this operator.
fn served_node(model: &ModelProto, op_type: &str) -> NodeProto {
    let nodes = decoded(&serve(model).unwrap(), None, BodyPrecision::Fp32)
        .graph
        .unwrap()
        .node;
    let mut found = nodes.into_iter().filter(|node| node.op_type() == op_type);
    found.next().unwrap()
}

fn ints_of(node: &NodeProto, name: &str) -> Vec<i64> {
    walk::attribute(node, name).map_or(Vec::new(), |attribute| attribute.ints.clone())
}

/// A convolution of 3×3 pixels that passes each colour's middle pixel on.
fn middle() -> TensorProto {
    let mut weights = vec![0.0; 3 * 3 * 9];
    (0..3).for_each(|colour| weights[(colour * 3 + colour) * 9 + 4] = 1.0);
    floats("middle", &[3, 3, 3, 3], &weights)
}

#[test]
fn omitted_attributes_of_a_convolution_get_their_defaults() {
    let conv = node("Conv", &["pixels", "middle"], "pixels_2");
    let conv = served_node(&with_front(vec![conv], vec![middle()]), "Conv");
    assert_eq!(ints_of(&conv, "kernel_shape"), [3, 3]);
    assert_eq!(ints_of(&conv, "strides"), [1, 1]);
    assert_eq!(ints_of(&conv, "dilations"), [1, 1]);
    assert_eq!(ints_of(&conv, "pads"), [0; 4]);
}

#[test]
fn automatic_padding_becomes_the_padding_that_it_means() {
    // 4×6 pixels, windows of 3×3.
    let pads = |auto_pad: &str, stride: i64| {
        let mut conv =
            node("Conv", &["pixels", "middle"], "pixels_2").with_ints("strides", &[stride, stride]);
        conv.attribute.push(AttributeProto {
            name: Some("auto_pad".into()),
            r#type: Some(AttributeType::String as i32),
            s: Some(auto_pad.as_bytes().to_vec()),
            ..Default::default()
        });
        ints_of(
            &served_node(&with_front(vec![conv], vec![middle()]), "Conv"),
            "pads",
        )
    };
    assert_eq!(pads("SAME_LOWER", 1), [1, 1, 1, 1]);
    assert_eq!(pads("SAME_LOWER", 2), [1, 1, 0, 0]);
    assert_eq!(pads("SAME_UPPER", 2), [0, 0, 1, 1]);
    assert_eq!(pads("VALID", 2), [0; 4]);
}

#[test]
fn what_is_left_of_training_is_removed() {
    let dropout = node("Dropout", &["pixels", "ratio"], "pixels_2");
    let model = with_front(vec![dropout], vec![floats("ratio", &[], &[0.5])]);
    assert_tiny(&serve(&model).unwrap());
    served_node(&model, "Identity");
}

#[test]
fn booleans_are_computed_by_comparison() {
    let model = with_front(
        vec![
            node("Cast", &["pixels"], "some").with_int("to", DataType::Bool as i64),
            node("Cast", &["some"], "ones").with_int("to", DataType::Float as i64),
            node("Mul", &["ones", "pixels"], "pixels_2"),
        ],
        vec![],
    );
    // No pixel of these images is normalized to 0, so the product changes nothing.
    assert_tiny(&serve(&model).unwrap());
    served_node(&model, "Not");
}

#[test]
fn quantization_to_16_bits_is_computed_in_floats() {
    let zero = TensorProto {
        name: Some("zero".into()),
        data_type: Some(DataType::Int16 as i32),
        raw_data: Some(vec![0, 0].into()),
        ..Default::default()
    };
    let microsoft = |op_type: &str, input: &str, output: &str| NodeProto {
        domain: Some("com.microsoft".into()),
        ..node(op_type, &[input, "scale", "zero"], output)
    };
    let model = with_front(
        vec![
            microsoft("QuantizeLinear", "pixels", "steps"),
            microsoft("DequantizeLinear", "steps", "pixels_2"),
        ],
        vec![floats("scale", &[], &[1e-3]), zero],
    );
    let images = tiny_images();
    let serving = serve(&model).unwrap();
    assert!(!serving.quantized);
    let logits = run(
        serving.to_onnx(None, BodyPrecision::Fp32).unwrap(),
        &images,
        [2, 4, 6, 3],
    );
    assert_close(&logits, &tiny_logits(&images, PLAIN.mean, PLAIN.std), 4e-3);
}

#[test]
fn a_convolution_of_integers_pads_with_its_zero_point() {
    let byte = |name: &str, dims: &[i64], values: Vec<u8>| TensorProto {
        name: Some(name.into()),
        data_type: Some(DataType::Uint8 as i32),
        dims: dims.to_vec(),
        raw_data: Some(values.into()),
        ..Default::default()
    };
    // Each filter sums one colour over a window with weights of 121 - 120.
    let mut weights = vec![120; 3 * 3 * 9];
    for colour in 0..3 {
        weights[(colour * 3 + colour) * 9..][..9].fill(121);
    }
    let conv = node("ConvInteger", &["bytes", "weights", "ten", "zeros"], "sums")
        .with_ints("pads", &[1, 1, 1, 1]);
    let mut model = with_front(
        vec![
            conv,
            node("Cast", &["sums"], "pixels_2").with_int("to", DataType::Float as i64),
        ],
        vec![
            byte("weights", &[3, 3, 3, 3], weights),
            byte("ten", &[], vec![10]),
            byte("zeros", &[3], vec![120; 3]),
        ],
    );
    graph(&mut model).input = vec![value("bytes", DataType::Uint8, &[-1, 3, 4, 6])];

    // With every pixel at the zero point all sums are 0, and the logits are the bias.
    let onnx = serve(&model)
        .unwrap()
        .to_onnx(None, BodyPrecision::Fp32)
        .unwrap();
    assert_close(&run(onnx, &[10; 4 * 6 * 3], [1, 4, 6, 3]), &BIAS, 1e-6);
}

#[test]
fn nodes_beyond_an_engines_limits_are_named_with_the_reason() {
    let limits = [Limit {
        operators: &["Gemm"],
        applies: |node| node.int("transB") == Some(1) && node.elem(0) == DataType::Float,
        reason: "it is known to be wrong",
    }];
    let serving = serve(&tiny()).unwrap();
    assert_eq!(
        serving.beyond(&limits).unwrap(),
        "node `scores_node (Gemm)`: it is known to be wrong"
    );
    assert_eq!(serving.beyond(&[]), None);
}

#[test]
fn normalization_over_channels_is_computed_by_every_engine() {
    let mut response = node("LRN", &["pixels"], "pixels_2").with_int("size", 2);
    for (name, value) in [("alpha", 0.5), ("beta", 0.5), ("bias", 2.0)] {
        response.attribute.push(AttributeProto {
            name: Some(name.into()),
            r#type: Some(AttributeType::Float as i32),
            f: Some(value),
            ..Default::default()
        });
    }
    let model = with_front(vec![response], vec![]);
    let images = [51, 102, 204].repeat(4 * 6);
    let serving = serve(&model).unwrap();
    let onnx = serving.to_onnx(Some(1), BodyPrecision::Fp32).unwrap();
    let logits = run(onnx, &images, [1, 4, 6, 3]);

    // Each colour with the one after it.
    let x: [f32; 3] = std::array::from_fn(|colour| {
        (images[colour] as f32 / 255.0 - PLAIN.mean[colour]) / PLAIN.std[colour]
    });
    let normal: [f32; 3] = std::array::from_fn(|colour| {
        let after = x.get(colour + 1).map_or(0.0, |after| after * after);
        x[colour] / (2.0 + 0.25 * (x[colour] * x[colour] + after)).sqrt()
    });
    let expected: Vec<f32> = WEIGHT
        .chunks(3)
        .zip(BIAS)
        .map(|(row, bias)| row.iter().zip(normal).map(|(a, b)| a * b).sum::<f32>() + bias)
        .collect();
    assert_close(&logits, &expected, 1e-5);
}
