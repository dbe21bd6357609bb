//! Networks whose arithmetic becomes half precision.

use super::*;

#[test]
fn typing_changes_only_tensors_that_depend_on_the_pixels() {
    for (precision, elem) in [
        (BodyPrecision::Bf16, DataType::Bfloat16),
        (BodyPrecision::Fp16, DataType::Float16),
    ] {
        let serving = serve(&with_arithmetic()).unwrap();
        let graph = decoded(&serving, Some(1), precision).graph.unwrap();
        let stored = |name: &str| {
            tensor::elem(
                graph
                    .initializer
                    .iter()
                    .find(|tensor| tensor.name() == name)
                    .unwrap(),
            )
        };
        for typed in ["fc.weight", "fc.bias", "low", "high"] {
            assert_eq!(stored(typed), elem, "{typed}");
        }
        for kept in ["scales", "preprocess_scale", "preprocess_bias"] {
            assert_eq!(stored(kept), DataType::Float, "{kept}");
        }
        let declared = |name: &str| {
            let value = graph
                .value_info
                .iter()
                .find(|value| value.name() == name)
                .unwrap();
            inspect::tensor_type(value.r#type.as_ref()).unwrap().0
        };
        assert_eq!(
            [declared("large"), declared("low"), declared("ratio")],
            [elem, elem, DataType::Float]
        );
        let casts: Vec<(&str, i64)> = graph
            .node
            .iter()
            .filter(|node| node.op_type() == "Cast")
            .map(|node| (node.input[0].as_str(), walk::int(node, "to").unwrap()))
            .collect();
        let to = elem as i64;
        let expected = [
            (IMAGES, 1),
            ("preprocess_float", to),
            ("shape", 1),
            ("two", to),
            ("factor", to),
            ("network_logits", 1),
        ];
        assert_eq!(casts, expected);
        assert_eq!(graph.output[0].name(), LOGITS);
        check_order(&graph).unwrap();
    }
}

#[test]
fn shape_arithmetic_does_not_change_the_numbers() {
    let images = tiny_images();
    let serving = serve(&with_arithmetic()).unwrap();
    let logits = run(
        serving.to_onnx(None, BodyPrecision::Fp32).unwrap(),
        &images,
        [2, 4, 6, 3],
    );
    assert_eq!(logits.len(), 2 * CLASSES);
}

#[test]
fn impossible_typing_names_the_obstacle() {
    let error = |model: &ModelProto, precision| {
        serve(model)
            .unwrap()
            .to_onnx(Some(1), precision)
            .unwrap_err()
            .to_string()
    };
    let mut model = tiny();
    graph(&mut model).initializer[1] = floats("fc.bias", &[4], &[0.0, 1e6, 0.0, 0.0]);
    assert_eq!(
        error(&model, BodyPrecision::Fp16),
        "tensor `fc.bias`: its value 1000000 is outside the range of float16"
    );
    assert!(
        serve(&model)
            .unwrap()
            .to_onnx(Some(1), BodyPrecision::Bf16)
            .is_ok()
    );

    let mut model = tiny();
    let mut custom = node("Special", &["pooled"], "special");
    custom.domain = Some("com.example".into());
    graph(&mut model).node.insert(1, custom);
    graph(&mut model).node[2].input[0] = "special".into();
    let message = error(&model, BodyPrecision::Bf16);
    assert!(
        message.contains("bfloat16")
            && message.contains("special_node (Special)")
            && message.contains("com.example"),
        "{message}"
    );

    let mut model = tiny();
    graph(&mut model).node.insert(
        1,
        node("QuantizeLinear", &["pooled", "fc.bias"], "quantized"),
    );
    graph(&mut model).node.insert(
        2,
        node("DequantizeLinear", &["quantized", "fc.bias"], "dequantized"),
    );
    graph(&mut model).node[3].input[0] = "dequantized".into();
    assert!(error(&model, BodyPrecision::Fp16).contains("before opset 19"));
}
