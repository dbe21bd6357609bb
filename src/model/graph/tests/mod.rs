//! Tests of every rewriting step on small graphs, which are run where there are values to compare.

mod bounds;
mod functions;
mod operators;
mod pixels;
mod scores;
mod sorting;
mod typing;

use prost::Message;

use super::*;
use crate::model::{
    onnx::{
        FunctionProto, OperatorSetIdProto, SparseTensorProto, StringStringEntryProto,
        TrainingInfoProto, tensor_proto::DataLocation,
    },
    testing::{
        BIAS, CLASSES, WEIGHT, assert_close, floats, graph, ints, node, run, tiny, tiny_images,
        tiny_logits, value,
    },
};

const PLAIN: Normalization = Normalization {
    mean: [0.5, 0.25, 0.125],
    std: [0.5, 0.25, 1.0],
};

fn serve(model: &ModelProto) -> Result<ServingGraph, ModelError> {
    ServingGraph::new(model.clone(), &PLAIN.into(), None)
}

fn refusal(model: &ModelProto) -> String {
    serve(model).unwrap_err().to_string()
}

fn decoded(serving: &ServingGraph, batch: Option<usize>, precision: BodyPrecision) -> ModelProto {
    ModelProto::decode(serving.to_onnx(batch, precision).unwrap().as_slice()).unwrap()
}

fn dims(value: &ValueInfoProto) -> String {
    inspect::show(
        &inspect::tensor_type(value.r#type.as_ref())
            .unwrap()
            .1
            .unwrap(),
    )
}

/// Runs the model on [`tiny_images`] and compares with what [`tiny`] should answer.
fn assert_tiny(serving: &ServingGraph) {
    let images = tiny_images();
    let logits = run(
        serving.to_onnx(None, BodyPrecision::Fp32).unwrap(),
        &images,
        [2, 4, 6, 3],
    );
    assert_close(&logits, &tiny_logits(&images, PLAIN.mean, PLAIN.std), 1e-5);
}

fn set_weight(model: &mut ModelProto, weight: TensorProto) {
    graph(model).initializer[0] = weight;
}

#[test]
fn pixels_go_in_and_logits_come_out() {
    let serving = serve(&tiny()).unwrap();
    assert_eq!(
        (serving.classes, serving.height, serving.width),
        (CLASSES, 4, 6)
    );
    assert_eq!(
        (serving.batch, serving.activation, serving.normalizes),
        (Batch::Any, Activation::Softmax, true)
    );
    assert_tiny(&serving);

    let model = decoded(&serving, None, BodyPrecision::Fp32);
    let graph = model.graph.unwrap();
    let ops: Vec<&str> = graph.node.iter().map(|node| node.op_type()).collect();
    assert_eq!(
        ops,
        [
            "Cast",
            "Transpose",
            "Mul",
            "Add",
            "GlobalAveragePool",
            "Flatten",
            "Gemm"
        ]
    );
    assert_eq!(
        (graph.input[0].name(), dims(&graph.input[0]).as_str()),
        (IMAGES, "[?,4,6,3]")
    );
    assert_eq!(
        (graph.output[0].name(), dims(&graph.output[0]).as_str()),
        (LOGITS, "[?,4]")
    );

    let graph = decoded(&serving, Some(2), BodyPrecision::Fp32)
        .graph
        .unwrap();
    assert_eq!(
        (
            dims(&graph.input[0]).as_str(),
            dims(&graph.output[0]).as_str()
        ),
        ("[2,4,6,3]", "[2,4]")
    );
}

#[test]
fn channels_last_needs_no_transpose() {
    let mut model = tiny();
    graph(&mut model).input = vec![value("pixels", DataType::Float, &[-1, 4, 6, 3])];
    graph(&mut model).node.insert(
        0,
        node("Transpose", &["pixels"], "nchw").with_ints("perm", &[0, 3, 1, 2]),
    );
    graph(&mut model).node[1].input[0] = "nchw".into();
    let serving = serve(&model).unwrap();
    assert_tiny(&serving);
    let ops: Vec<_> = decoded(&serving, None, BodyPrecision::Fp32)
        .graph
        .unwrap()
        .node;
    assert_eq!(
        ops.iter()
            .filter(|node| node.op_type() == "Transpose")
            .count(),
        1
    );
}

#[test]
fn a_fixed_batch_stays_fixed() {
    let mut model = tiny();
    graph(&mut model).input = vec![value("pixels", DataType::Float, &[2, 3, 4, 6])];
    graph(&mut model).output = vec![value("scores", DataType::Float, &[2, 4])];
    graph(&mut model).value_info = vec![value("flat", DataType::Float, &[2, 3])];
    let serving = serve(&model).unwrap();
    assert_eq!(serving.batch, Batch::Fixed(2));
    let graph = decoded(&serving, Some(2), BodyPrecision::Fp32)
        .graph
        .unwrap();
    assert_eq!(dims(&graph.value_info[0]), "[2,3]");
    for wrong in [None, Some(1)] {
        let error = serving
            .to_onnx(wrong, BodyPrecision::Fp32)
            .unwrap_err()
            .to_string();
        assert!(error.contains("batches of exactly 2"), "{error}");
    }
}

#[test]
fn stale_shapes_within_the_network_are_dropped() {
    let mut model = tiny();
    graph(&mut model).value_info = vec![value("flat", DataType::Float, &[1, 3])];
    let graph = decoded(&serve(&model).unwrap(), None, BodyPrecision::Fp32)
        .graph
        .unwrap();
    assert_eq!(
        inspect::tensor_type(graph.value_info[0].r#type.as_ref()),
        Some((DataType::Float, None))
    );
}

#[test]
fn open_sizes_come_from_the_settings_and_are_never_guessed() {
    let with_size = |model: &ModelProto, input_size| {
        let settings = Preprocessing {
            input_size: Some(input_size),
            ..PLAIN.into()
        };
        ServingGraph::new(model.clone(), &settings, None)
    };
    let mut model = tiny();
    graph(&mut model).input = vec![value("pixels", DataType::Float, &[-1, 3, -1, -1])];
    let error = refusal(&model);
    assert!(
        error.contains("[?,3,?,?]") && error.contains("--input-size 224x224"),
        "{error}"
    );
    assert_tiny(&with_size(&model, [6, 4]).unwrap());
    let error = with_size(&tiny(), [6, 5]).unwrap_err().to_string();
    assert!(
        error.contains("the height 4, but `--input-size`") && error.contains("says 5"),
        "{error}"
    );
}

#[test]
fn a_softmax_at_the_end_is_removed() {
    let ends: [&[NodeProto]; 4] = [
        &[node("Softmax", &["scores"], "out").with_int("axis", 1)],
        &[node("LogSoftmax", &["scores"], "out").with_int("axis", -1)],
        &[
            node("Identity", &["scores"], "same"),
            node("Softmax", &["same"], "soft"),
            node("Cast", &["soft"], "cast").with_int("to", 1),
            node("Identity", &["cast"], "out"),
        ],
        &[
            node("Exp", &["scores"], "exp"),
            node("ReduceSum", &["exp", "axis"], "sum").with_int("keepdims", 1),
            node("Div", &["exp", "sum"], "out"),
        ],
    ];
    for end in ends {
        let mut model = tiny();
        graph(&mut model).node.extend_from_slice(end);
        graph(&mut model).initializer.push(ints("axis", &[1]));
        graph(&mut model).output = vec![value("out", DataType::Float, &[-1, 4])];
        let serving = serve(&model).unwrap();
        assert_tiny(&serving);
        let graph = decoded(&serving, None, BodyPrecision::Fp32).graph.unwrap();
        assert!(
            graph
                .node
                .iter()
                .all(|node| !node.op_type().contains("Softmax") && node.op_type() != "Exp")
        );
    }
}

#[test]
fn scores_of_other_shapes_are_flattened() {
    let mut model = tiny();
    let graph_ = graph(&mut model);
    graph_.node = vec![
        node("GlobalAveragePool", &["pixels"], "pooled"),
        node("Conv", &["pooled", "fc.weight", "fc.bias"], "scores")
            .with_ints("strides", &[1, 1])
            .with_ints("dilations", &[1, 1])
            .with_ints("pads", &[0; 4]),
    ];
    graph_.initializer[0].dims = vec![4, 3, 1, 1];
    for shape in [&[-1, 4, 1, 1][..], &[-1, -1, -1, -1]] {
        graph(&mut model).output = vec![value("scores", DataType::Float, shape)];
        assert_tiny(&serve(&model).unwrap());
    }
}

#[test]
fn the_last_layer_determines_classes_that_the_output_does_not() {
    let mut model = tiny();
    graph(&mut model).output = vec![value("scores", DataType::Float, &[-1, -1])];
    assert_tiny(&serve(&model).unwrap());

    let columns: Vec<f32> = (0..12)
        .map(|index| WEIGHT[index % 4 * 3 + index / 4])
        .collect();
    set_weight(&mut model, floats("fc.weight", &[3, 4], &columns));
    graph(&mut model).node.truncate(2);
    graph(&mut model).node.extend([
        node("MatMul", &["flat", "fc.weight"], "product"),
        node("Add", &["product", "fc.bias"], "scores"),
    ]);
    assert_tiny(&serve(&model).unwrap());
    graph(&mut model).node[3] = node("Relu", &["product"], "scores");
    assert_eq!(serve(&model).unwrap().classes, 4);
    graph(&mut model).node[3] = node("Celu", &["product"], "scores");
    assert!(refusal(&model).contains("no fixed number of classes"));
}

#[test]
fn of_several_outputs_the_scores_are_taken() {
    let mut model = tiny();
    graph(&mut model)
        .node
        .push(node("Softmax", &["scores"], "probabilities"));
    graph(&mut model)
        .node
        .push(node("Relu", &["pooled"], "features"));
    let outputs = [
        ("features", vec![-1, 3, 2, 2]),
        ("probabilities", vec![-1, 4]),
        ("scores", vec![-1, 4]),
    ];
    graph(&mut model).output = outputs
        .iter()
        .map(|(name, dims)| value(name, DataType::Float, dims))
        .collect();
    let serving = serve(&model).unwrap();
    assert_tiny(&serving);
    assert_eq!(
        decoded(&serving, None, BodyPrecision::Fp32)
            .graph
            .unwrap()
            .output
            .len(),
        1
    );

    graph(&mut model)
        .node
        .push(node("Identity", &["flat"], "embedding"));
    graph(&mut model)
        .output
        .push(value("embedding", DataType::Float, &[-1, 3]));
    let error = refusal(&model);
    assert!(
        error.contains("4 outputs") && error.contains("`embedding`") && error.contains("2 of them"),
        "{error}"
    );
}

#[test]
fn names_that_clash_are_changed() {
    let mut model = tiny();
    for (from, to) in [
        ("pixels", "images"),
        ("pooled", "logits"),
        ("flat", "network_input"),
    ] {
        walk::rename(graph(&mut model), from, to);
    }
    assert_tiny(&serve(&model).unwrap());

    let mut model = tiny();
    walk::rename(graph(&mut model), "pixels", "logits");
    walk::rename(graph(&mut model), "scores", "images");
    assert_tiny(&serve(&model).unwrap());
}

#[test]
fn stored_halves_and_casts_of_weights_become_float() {
    for elem in [DataType::Float16, DataType::Bfloat16] {
        let mut model = tiny();
        let half = tensor::converted(&floats("half", &[4, 3], &WEIGHT), elem, false).unwrap();
        set_weight(&mut model, half);
        let bias = floats("", &[4], &BIAS);
        let bias = TensorProto {
            data_type: Some(DataType::Double as i32),
            raw_data: None,
            double_data: BIAS.map(f64::from).to_vec(),
            ..bias
        };
        graph(&mut model).initializer.pop();
        graph(&mut model).node.splice(
            0..0,
            [
                node("Cast", &["half"], "fc.weight").with_int("to", 1),
                node("Constant", &[], "double").with_tensor("value", bias),
                node("Cast", &["double"], "fc.bias").with_int("to", 1),
            ],
        );
        let serving = serve(&model).unwrap();
        assert_tiny(&serving);
        let graph = decoded(&serving, None, BodyPrecision::Fp32).graph.unwrap();
        assert_eq!(graph.node.len(), 7);
        assert!(
            graph
                .initializer
                .iter()
                .all(|tensor| tensor.data_type() == DataType::Float as i32)
        );
    }
}

#[test]
fn a_network_in_half_runs_in_float() {
    let mut model = tiny();
    for index in 0..2 {
        let tensor = &mut graph(&mut model).initializer[index];
        *tensor = tensor::converted(tensor, DataType::Float16, false).unwrap();
    }
    graph(&mut model).input = vec![value("pixels", DataType::Float16, &[-1, 3, 4, 6])];
    graph(&mut model).output = vec![value("scores", DataType::Float16, &[-1, 4])];
    assert_tiny(&serve(&model).unwrap());
}

#[test]
fn networks_that_take_integers_get_the_pixels_as_they_are() {
    let mut model = tiny();
    graph(&mut model)
        .node
        .insert(0, node("Cast", &["pixels"], "float").with_int("to", 1));
    graph(&mut model).node[1].input[0] = "float".into();
    let images = tiny_images();
    for elem in [DataType::Uint8, DataType::Int32] {
        graph(&mut model).input = vec![value("pixels", elem, &[-1, 3, 4, 6])];
        let serving = serve(&model).unwrap();
        assert!(!serving.normalizes);
        let logits = run(
            serving.to_onnx(None, BodyPrecision::Fp32).unwrap(),
            &images,
            [2, 4, 6, 3],
        );
        assert_close(
            &logits,
            &tiny_logits(&images, [0.0; 3], [1.0 / 255.0; 3]),
            1e-3,
        );
    }
}

#[test]
fn double_networks_are_cast_to_and_from() {
    let mut model = tiny();
    graph(&mut model).input = vec![value("pixels", DataType::Double, &[-1, 3, 4, 6])];
    graph(&mut model).output = vec![value("scores", DataType::Double, &[-1, 4])];
    let serving = serve(&model).unwrap();
    let nodes = decoded(&serving, None, BodyPrecision::Fp32)
        .graph
        .unwrap()
        .node;
    assert_eq!(
        (nodes[4].op_type(), walk::int(&nodes[4], "to")),
        ("Cast", Some(DataType::Double as i64))
    );
    assert_eq!(
        (
            nodes.last().unwrap().op_type(),
            walk::int(nodes.last().unwrap(), "to")
        ),
        ("Cast", Some(1))
    );
    assert!(
        serving
            .to_onnx(None, BodyPrecision::Fp16)
            .unwrap_err()
            .to_string()
            .contains("float64")
    );
}

#[test]
fn everything_else_in_the_file_is_kept() {
    let mut model = tiny();
    let opset = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.into()),
        version: Some(version),
    };
    model.opset_import.push(opset("com.example", 3));
    model.metadata_props = vec![StringStringEntryProto {
        key: Some("author".into()),
        value: Some("me".into()),
    }];
    model.doc_string = Some("notes".into());
    model.producer_name = Some("exporter".into());
    graph(&mut model).name = Some("net".into());
    // Old files list what is stored as inputs too.
    graph(&mut model)
        .input
        .push(value("fc.weight", DataType::Float, &[4, 3]));
    let mut found = decoded(&serve(&model).unwrap(), None, BodyPrecision::Fp32);
    found.graph = model.graph.clone();
    assert_eq!(found, model);
}

#[test]
fn inputs_that_are_not_images_are_refused() {
    let with = |elem: DataType, dims: &[i64]| {
        let mut model = tiny();
        graph(&mut model).input = vec![value("pixels", elem, dims)];
        refusal(&model)
    };
    assert!(with(DataType::Float, &[2, 28, 28]).contains("1 in place of 3 for gray images"));
    assert!(with(DataType::Float, &[-1, 4, 28, 28]).contains("[?,4,28,28]"));
    assert!(with(DataType::Float, &[-1, 12]).contains("[N,3,H,W] or [N,H,W,3]"));
    assert!(with(DataType::Float, &[-1, -1, 8, 8]).contains("3 colours"));
    assert!(with(DataType::Float, &[-1, 3, 8, 99999]).contains("1 to 8192"));
    assert!(with(DataType::Int8, &[-1, 3, 8, 8]).contains("element type int8"));

    let mut model = tiny();
    graph(&mut model)
        .input
        .push(value("mask", DataType::Float, &[-1, 4]));
    let error = refusal(&model);
    assert!(error.contains("2 inputs (`pixels`, `mask`)"), "{error}");
    graph(&mut model).input.clear();
    graph(&mut model)
        .initializer
        .push(floats("pixels", &[1, 3, 4, 6], &[0.0; 72]));
    assert!(refusal(&model).contains("no input"));
}

#[test]
fn outputs_that_are_not_scores_are_refused() {
    let with = |end: Option<NodeProto>, elem: DataType, dims: &[i64]| {
        let mut model = tiny();
        let name = end.as_ref().map_or("scores", |_| "out").to_owned();
        graph(&mut model).node.extend(end);
        graph(&mut model).output = vec![value(&name, elem, dims)];
        refusal(&model)
    };
    let hard = Some(node("HardSigmoid", &["scores"], "out"));
    assert!(with(hard, DataType::Float, &[-1, 4]).contains("is a HardSigmoid"));
    let top = Some(node("ArgMax", &["scores"], "out").with_int("axis", 0));
    assert!(with(top, DataType::Int64, &[1, 4]).contains("does not rank along the classes"));
    assert!(with(None, DataType::Float, &[-1, 4, 7, 7]).contains("[?,4,7,7]"));
    let softmax = Some(node("Softmax", &["scores"], "out"));
    assert!(with(softmax, DataType::Float, &[-1, 1]).contains("Softmax of one score"));

    let mut model = tiny();
    graph(&mut model).output.clear();
    assert!(refusal(&model).contains("no output"));
    graph(&mut model).output = vec![value("nothing", DataType::Float, &[-1, 4])];
    assert!(refusal(&model).contains("not computed"));
}

#[test]
fn files_that_are_not_for_inference_are_refused() {
    let mut model = tiny();
    model.opset_import[0].version = Some(6);
    let error = refusal(&model);
    assert!(
        error.contains("opset 6") && error.contains("7 or newer"),
        "{error}"
    );
    model.opset_import.clear();
    assert!(refusal(&model).contains("no opset"));

    let mut model = tiny();
    model.training_info.push(TrainingInfoProto::default());
    assert!(refusal(&model).contains("training"));

    let mut model = tiny();
    let weight = &mut graph(&mut model).initializer[0];
    weight.data_location = Some(DataLocation::External as i32);
    weight.external_data = vec![StringStringEntryProto {
        key: Some("location".into()),
        value: Some("w.bin".into()),
    }];
    let error = refusal(&model);
    assert!(
        error.contains("`fc.weight`") && error.contains("`w.bin`"),
        "{error}"
    );

    // Wherever it is: an engine would look for the file itself.
    let mut model = tiny();
    let outside = TensorProto {
        data_location: Some(DataLocation::External as i32),
        ..Default::default()
    };
    model.functions.push(FunctionProto {
        node: vec![node("Constant", &[], "c").with_tensor("value", outside.clone())],
        ..Default::default()
    });
    assert!(refusal(&model).contains("another file"));
    let mut model = tiny();
    let sparse = SparseTensorProto {
        values: Some(outside),
        ..Default::default()
    };
    graph(&mut model).node[0].attribute.push(AttributeProto {
        sparse_tensor: Some(sparse),
        ..Default::default()
    });
    assert!(refusal(&model).contains("another file"));

    let mut model = tiny();
    graph(&mut model).node[1].input[0] = "lost".into();
    let error = refusal(&model);
    assert!(
        error.contains("flat_node (Flatten)") && error.contains("`lost`"),
        "{error}"
    );

    let mut model = tiny();
    graph(&mut model).initializer[0].dims = vec![4, 4];
    assert!(refusal(&model).contains("`fc.weight`"));
}

/// [`tiny`] with bounds, shape arithmetic and a Resize.
fn with_arithmetic() -> ModelProto {
    let mut model = tiny();
    let two = floats("", &[], &[2.0]);
    graph(&mut model).node.splice(
        0..1,
        [
            node("Shape", &["pixels"], "shape"),
            node("Cast", &["shape"], "float_shape").with_int("to", 1),
            node("Constant", &[], "two").with_tensor("value", two),
            node("Mul", &["float_shape", "two"], "double_shape"),
            node("Div", &["double_shape", "float_shape"], "ratio"),
            node("Resize", &["pixels", "", "scales"], "large"),
            node("Gather", &["ratio", "index"], "factor").with_int("axis", 0),
            node("Mul", &["large", "factor"], "scaled"),
            node("Mul", &["scaled", "two"], "more"),
            node("Clip", &["more", "low", "high"], "clipped"),
            node("GlobalAveragePool", &["clipped"], "pooled"),
        ],
    );
    graph(&mut model).initializer.extend([
        floats("scales", &[4], &[1.0, 1.0, 2.0, 2.0]),
        floats("low", &[], &[f32::MIN]),
        floats("high", &[], &[6.0]),
        ints("index", &[1]),
    ]);
    graph(&mut model).value_info = vec![
        value("large", DataType::Float, &[-1, 3, 8, 12]),
        value("ratio", DataType::Float, &[4]),
        value("low", DataType::Float, &[]),
    ];
    model
}

#[test]
fn the_same_model_always_gives_the_same_file() {
    let file = || {
        serve(&with_arithmetic())
            .unwrap()
            .to_onnx(None, BodyPrecision::Bf16)
            .unwrap()
    };
    assert_eq!(file(), file());
}

/// What follows the key of each field at the top of a file.
fn first_fields(mut onnx: &[u8], count: usize) -> Vec<u32> {
    use prost::encoding::{DecodeContext, decode_key, skip_field};

    (0..count)
        .map(|_| {
            let (field, wire_type) = decode_key(&mut onnx).unwrap();
            skip_field(wire_type, field, &mut onnx, DecodeContext::default()).unwrap();
            field
        })
        .collect()
}

#[test]
fn the_first_three_fields_of_a_file_differ() {
    let mut model = tiny();
    model.opset_import.push(OperatorSetIdProto {
        domain: Some("com.microsoft".into()),
        version: Some(1),
    });
    let onnx = serve(&model)
        .unwrap()
        .to_onnx(None, BodyPrecision::Fp32)
        .unwrap();
    let mut fields = first_fields(&onnx, 3);
    fields.dedup();
    assert_eq!(fields.len(), 3, "OpenVINO reads no more than these");
}

#[test]
fn the_scores_before_a_ranking_are_served() {
    for (operator, elem) in [("TopK", DataType::Float), ("ArgMax", DataType::Int64)] {
        let mut model = tiny();
        let mut ranking = node(operator, &["scores", "three"], "best").with_int("axis", 1);
        if operator == "TopK" {
            ranking.output.push("ids".into());
            graph(&mut model).initializer.push(ints("three", &[3]));
            graph(&mut model)
                .output
                .push(value("ids", DataType::Int64, &[-1, 3]));
        } else {
            ranking.input.pop();
        }
        graph(&mut model).node.push(ranking);
        graph(&mut model).output[0] = value("best", elem, &[-1, 3]);
        let serving = serve(&model).unwrap();
        assert_eq!(serving.classes, CLASSES, "{operator}");
        assert_tiny(&serving);
    }

    let mut model = tiny();
    graph(&mut model).node[2] = node("Celu", &["flat"], "scores");
    graph(&mut model)
        .node
        .push(node("ArgMax", &["scores"], "best").with_int("axis", 1));
    graph(&mut model).output = vec![value("best", DataType::Int64, &[-1, 1])];
    let error = refusal(&model);
    assert!(
        error.contains("best_node (ArgMax)") && error.contains("not known"),
        "{error}"
    );
}
