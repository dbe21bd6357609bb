//! Tests on a small residual network that is quantized, run, and compared with its float32 form.

use std::collections::{HashMap, HashSet};

use super::{ActivationRange, Quantization, QuantizedWeights};
use crate::model::{
    ModelError,
    graph::{BodyPrecision, Normalization, ServingGraph},
    onnx::{GraphProto, ModelProto, tensor_proto::DataType},
    tensor,
    testing::{self, assert_close, floats, node, run, tiny, value},
};

const SHAPE: [usize; 4] = [2, 8, 8, 3];

/// Numbers that look random, from -0.5 to 0.5.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count)
        .map(|index| ((index + seed * 131) * 7919 % 1009) as f32 / 1009.0 - 0.5)
        .collect()
}

/// Conv, BatchNorm, Relu, MaxPool, then a residual block and a last layer.
fn residual() -> ModelProto {
    let conv = |inputs: &[&str], output: &str| {
        node("Conv", inputs, output)
            .with_ints("pads", &[1, 1, 1, 1])
            .with_ints("strides", &[1, 1])
            .with_ints("dilations", &[1, 1])
    };
    let graph = GraphProto {
        name: Some("residual".into()),
        node: vec![
            conv(&["pixels", "w1"], "c1"),
            node(
                "BatchNormalization",
                &["c1", "scale", "shift", "mean", "variance"],
                "n1",
            ),
            node("Relu", &["n1"], "r1"),
            node("MaxPool", &["r1"], "p1")
                .with_ints("kernel_shape", &[2, 2])
                .with_ints("pads", &[0; 4])
                .with_ints("strides", &[2, 2]),
            conv(&["p1", "w2", "b2"], "c2"),
            node("Add", &["c2", "p1"], "sum"),
            node("Relu", &["sum"], "r2"),
            node("GlobalAveragePool", &["r2"], "pooled"),
            node("Flatten", &["pooled"], "flat"),
            node("Gemm", &["flat", "fc", "fc_bias"], "scores").with_int("transB", 1),
        ],
        initializer: vec![
            floats("w1", &[4, 3, 3, 3], &numbers(108, 1)),
            floats("scale", &[4], &[1.0, 0.5, 2.0, -1.0]),
            floats("shift", &[4], &[0.1, 0.0, -0.2, 0.3]),
            floats("mean", &[4], &[0.05, -0.1, 0.2, 0.0]),
            floats("variance", &[4], &[0.5, 1.0, 2.0, 0.25]),
            floats("w2", &[4, 4, 3, 3], &numbers(144, 2)),
            floats("b2", &[4], &[0.1, -0.2, 0.3, 0.0]),
            floats("fc", &[5, 4], &numbers(20, 3)),
            floats("fc_bias", &[5], &numbers(5, 4)),
        ],
        input: vec![value("pixels", DataType::Float, &[-1, 3, 8, 8])],
        output: vec![value("scores", DataType::Float, &[-1, 5])],
        ..Default::default()
    };
    testing::model_of(graph)
}

fn serve(model: ModelProto) -> ServingGraph {
    ServingGraph::new(model, &Normalization::IMAGENET.into(), None).unwrap()
}

fn images() -> Vec<u8> {
    (0..SHAPE.iter().product::<usize>())
        .map(|index| (index * 37 % 256) as u8)
        .collect()
}

fn logits(graph: &ServingGraph) -> Vec<f32> {
    run(
        graph.to_onnx(None, BodyPrecision::Fp32).unwrap(),
        &images(),
        SHAPE,
    )
}

/// Ranges wide enough for [`residual`] on [`images`].
fn how(graph: &ServingGraph) -> Quantization {
    let tensors = graph.ranged_tensors();
    let model = rten::Model::load(graph.tapped(None, &tensors).unwrap()).unwrap();
    let input = rten_tensor::Tensor::from_data(&SHAPE, images());
    let wanted: Vec<_> = tensors
        .iter()
        .map(|name| model.node_id(name).unwrap())
        .collect();
    let values = model
        .run(
            vec![(model.node_id("images").unwrap(), input.into())],
            &wanted,
            None,
        )
        .unwrap();
    let range = |value: rten::Value| {
        let values: rten_tensor::Tensor<f32> = value.try_into().unwrap();
        let values = values.into_data();
        let limit = values
            .iter()
            .fold(0_f32, |limit, value| limit.max(value.abs()));
        ActivationRange {
            limit,
            signed: values.iter().any(|value| *value < 0.0),
        }
    };
    Quantization {
        ranges: tensors
            .into_iter()
            .zip(values.into_iter().map(range))
            .collect(),
        ..Default::default()
    }
}

fn nodes(graph: &ServingGraph) -> &GraphProto {
    graph.model.graph.as_ref().unwrap()
}

/// The operator that produces input `slot` of the node that produces `output`, and the element type
/// of its zero point.
fn source(graph: &ServingGraph, output: &str, slot: usize) -> (String, Option<DataType>) {
    let graph = nodes(graph);
    let maker = |name: &str| graph.node.iter().find(|node| node.output[0] == name);
    let from = maker(&maker(output).unwrap().input[slot]).unwrap();
    let zero = from.input.get(2).and_then(|zero| {
        graph
            .initializer
            .iter()
            .find(|tensor| tensor.name() == zero)
    });
    (from.op_type().to_owned(), zero.map(tensor::elem))
}

#[test]
fn batch_norm_goes_into_the_convolution() {
    let float = serve(residual());
    let folded = float.folded().unwrap();
    assert!(
        nodes(&folded)
            .node
            .iter()
            .all(|node| node.op_type() != "BatchNormalization")
    );
    assert!(
        nodes(&folded)
            .initializer
            .iter()
            .all(|tensor| !["w1", "scale", "mean"].contains(&tensor.name()))
    );
    assert_close(&logits(&folded), &logits(&float), 1e-5);

    // A convolution whose output is used elsewhere keeps its weights.
    let mut shared = residual();
    let graph = testing::graph(&mut shared);
    graph.node.insert(3, node("Add", &["r1", "c1"], "again"));
    graph.node[4].input[0] = "again".into();
    let folded = serve(shared).folded().unwrap();
    assert!(
        nodes(&folded)
            .node
            .iter()
            .any(|node| node.op_type() == "BatchNormalization")
    );
}

#[test]
fn a_convolution_without_weights_keeps_its_batch_norm() {
    let mut model = residual();
    testing::graph(&mut model).initializer[0] = floats("w1", &[4, 3, 3, 0], &[]);
    let folded = serve(model).folded().unwrap();
    assert!(
        nodes(&folded)
            .node
            .iter()
            .any(|node| node.op_type() == "BatchNormalization")
    );
}

#[test]
fn a_weight_without_channels_is_not_a_layer() {
    let mut model = residual();
    testing::graph(&mut model).initializer[0] = floats("w1", &[108], &numbers(108, 1));
    let layers = serve(model).layers();
    assert_eq!(
        layers
            .iter()
            .map(|layer| layer.name.as_str())
            .collect::<Vec<_>>(),
        ["c2_node", "scores_node"]
    );
}

#[test]
fn layers_residual_additions_and_pools_read_integers() {
    let float = serve(residual()).folded().unwrap();
    assert_eq!(
        float
            .layers()
            .iter()
            .map(|layer| layer.name.as_str())
            .collect::<Vec<_>>(),
        ["c1_node", "c2_node", "scores_node"]
    );
    assert_eq!(
        float.ranged_tensors(),
        ["network_input", "r1", "flat", "c2"]
    );
    let quantized = float.quantized(&how(&float)).unwrap();
    let (unsigned, signed) = (Some(DataType::Uint8), Some(DataType::Int8));
    for (reader, slot, elem) in [
        ("n1", 0, signed),
        ("n1", 1, signed),
        ("p1", 0, unsigned),
        ("c2", 0, unsigned),
        ("c2", 1, signed),
        ("sum", 0, signed),
        ("sum", 1, unsigned),
        ("logits", 0, unsigned),
        ("logits", 1, signed),
    ] {
        assert_eq!(
            source(&quantized, reader, slot),
            ("DequantizeLinear".into(), elem),
            "{reader} {slot}"
        );
    }
    // Weights in float are gone.
    assert!(
        nodes(&quantized)
            .initializer
            .iter()
            .all(|tensor| tensor.name() != "w2" && tensor.name() != "fc")
    );
    let (actual, expected) = (logits(&quantized), logits(&float));
    assert_ne!(actual, expected);
    assert_close(&actual, &expected, 0.03);
}

#[test]
fn a_file_with_integers_is_served_as_it_is() {
    let float = serve(residual()).folded().unwrap();
    let quantized = float.quantized(&how(&float)).unwrap();
    let file = quantized.to_file(&Default::default()).unwrap();
    let loaded = serve(crate::model::decode(&file.into()).unwrap());
    assert!(loaded.quantized && !float.quantized);
    assert_eq!((loaded.classes, loaded.height, loaded.width), (5, 8, 8));
    assert_close(&logits(&loaded), &logits(&quantized), 1e-6);
    let refused = loaded.quantized(&how(&float)).unwrap_err();
    assert!(
        matches!(refused, ModelError::Quantization(reason) if reason.contains("quantized already"))
    );
}

#[test]
fn layers_can_stay_in_float() {
    let float = serve(residual()).folded().unwrap();
    let mut how = how(&float);
    how.keep_float = HashSet::from(["c1_node".into(), "c2_node".into()]);
    let quantized = float.quantized(&how).unwrap();
    assert_eq!(source(&quantized, "p1", 0).0, "Relu");
    let addition = nodes(&quantized)
        .node
        .iter()
        .find(|node| node.op_type() == "Add" && node.output[0] == "sum")
        .unwrap();
    assert_eq!(addition.input, ["c2", "p1"]);
    assert_eq!(source(&quantized, "logits", 1).0, "DequantizeLinear");
    how.keep_float.insert("scores_node".into());
    assert!(
        float
            .quantized(&how)
            .unwrap_err()
            .to_string()
            .contains("no layer to quantize")
    );
}

#[test]
fn engines_without_unsigned_integers_get_signed_ones() {
    let float = serve(residual()).folded().unwrap();
    let quantized = float.quantized(&how(&float)).unwrap();
    let signed = quantized.with_signed_activations();
    assert!(
        nodes(&signed)
            .initializer
            .iter()
            .all(|stored| tensor::elem(stored) != DataType::Uint8)
    );
    assert_close(&logits(&signed), &logits(&float), 0.05);
}

#[test]
fn biases_make_up_for_the_rounding_of_the_weights() {
    // The first column's step is 1/127, so 0.0035 becomes 0 and 0.0045 a whole step: on average the
    // logits move.
    let mut model = tiny();
    let graph = testing::graph(&mut model);
    let weights = [
        1.0, 0.0035, 0.0035, 1.0, 0.0045, 0.0045, 0.0035, 1.0, 0.0035, 0.0045, 1.0, 0.0045,
    ];
    graph.initializer[0] = floats("fc.weight", &[4, 3], &weights);
    let float = serve(model).folded().unwrap();
    let [input] = &float.ranged_tensors()[..] else {
        panic!("one layer")
    };
    let means = [40.0, 50.0, 60.0];
    let corrected = Quantization {
        ranges: HashMap::from([(
            input.clone(),
            ActivationRange {
                limit: 100.0,
                signed: true,
            },
        )]),
        means: HashMap::from([(input.clone(), means.to_vec())]),
        keep_float: HashSet::new(),
    };
    let plain = Quantization {
        means: HashMap::new(),
        ..corrected.clone()
    };
    let answer = |graph: &ServingGraph| -> Vec<f32> {
        let graph = nodes(graph);
        let stored = |name: &str| {
            graph
                .initializer
                .iter()
                .find(|tensor| tensor.name() == name)
                .unwrap()
        };
        let layer = graph
            .node
            .iter()
            .find(|node| node.op_type() == "Gemm")
            .unwrap();
        let bias = tensor::to_floats(stored(&layer.input[2])).unwrap();
        let weights = match graph
            .initializer
            .iter()
            .find(|tensor| tensor.name() == layer.input[1])
        {
            Some(stored) => tensor::to_floats(stored).unwrap(),
            None => {
                let dequantize = graph
                    .node
                    .iter()
                    .find(|node| node.output[0] == layer.input[1])
                    .unwrap();
                let scales = tensor::to_floats(stored(&dequantize.input[1])).unwrap();
                let steps = stored(&dequantize.input[0]).raw_data();
                steps
                    .iter()
                    .enumerate()
                    .map(|(index, step)| f32::from(*step as i8) * scales[index / 3])
                    .collect()
            }
        };
        let row = |row: &[f32]| {
            row.iter()
                .zip(means)
                .map(|(weight, mean)| weight * mean)
                .sum::<f32>()
        };
        weights
            .chunks(3)
            .zip(bias)
            .map(|(weights, bias)| row(weights) + bias)
            .collect()
    };
    let expected = answer(&float);
    assert_close(
        &answer(&float.quantized(&corrected).unwrap()),
        &expected,
        1e-4,
    );
    let moved = answer(&float.quantized(&plain).unwrap());
    assert!(
        (moved[0] - expected[0]).abs() > 0.1,
        "{moved:?} {expected:?}"
    );
}

#[test]
fn weights_without_values_have_no_channels() {
    let promising = tensor::floats("w", &[1 << 50, 0], &[]);
    assert!(QuantizedWeights::new(&promising, 0).is_err());
}
