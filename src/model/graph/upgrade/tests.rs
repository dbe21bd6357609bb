//! What becomes of each operator, on graphs of one node.

use super::*;
use crate::model::{
    onnx::{AttributeProto, attribute_proto::AttributeType},
    testing::{floats, graph, ints, model_of, node, tiny, value},
};

fn number(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Float as i32),
        f: Some(value),
        ..Default::default()
    }
}

fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::String as i32),
        s: Some(value.to_owned().into()),
        ..Default::default()
    }
}

fn with(mut node: NodeProto, attributes: &[AttributeProto]) -> NodeProto {
    node.attribute.extend_from_slice(attributes);
    node
}

/// A model of opset `from` with the nodes between `x`, `float32 [2, 3, 4, 6]`, and `y`.
fn model(from: i64, nodes: Vec<NodeProto>) -> ModelProto {
    let mut model = model_of(GraphProto {
        node: nodes,
        input: vec![value("x", DataType::Float, &[2, 3, 4, 6])],
        output: vec![value("y", DataType::Float, &[-1, -1, -1, -1])],
        ..Default::default()
    });
    model.ir_version = Some(3);
    model.opset_import[0].version = Some(from);
    model
}

/// One node a line: the operator, its inputs with the values of those that are stored, and its
/// attributes.
fn show(model: &ModelProto) -> Vec<String> {
    let graph = model.graph.as_ref().unwrap();
    let values = |tensor: &TensorProto| match stored_integers(tensor) {
        Some(values) => format!("{values:?}"),
        None => format!("{:?}", tensor::to_floats(tensor).unwrap()),
    };
    let stored: HashMap<&str, String> = graph
        .node
        .iter()
        .filter_map(|node| Some((node.output[0].as_str(), values(fold::constant(node)?))))
        .collect();
    let nodes = graph
        .node
        .iter()
        .filter(|node| fold::constant(node).is_none());
    nodes
        .map(|node| {
            let inputs = node.input.iter().map(|name| {
                let stored = stored.get(name.as_str());
                stored.map_or(name.as_str(), String::as_str)
            });
            let mut words: Vec<String> = vec![node.op_type().to_owned()];
            words.extend(inputs.map(|name| if name.is_empty() { "-" } else { name }.to_owned()));
            words.extend(node.attribute.iter().map(|attribute| {
                let value = match attribute.r#type() {
                    AttributeType::Int => attribute.i().to_string(),
                    AttributeType::Ints => format!("{:?}", attribute.ints),
                    AttributeType::Float => attribute.f().to_string(),
                    _ => String::from_utf8_lossy(attribute.s()).into_owned(),
                };
                format!("{}={value}", attribute.name())
            }));
            words.push("->".into());
            words.extend(node.output.iter().cloned());
            words.join(" ")
        })
        .collect()
}

fn upgraded(from: i64, nodes: Vec<NodeProto>) -> Vec<String> {
    let mut model = model(from, nodes);
    upgrade(&mut model).unwrap();
    assert_eq!(default_opset(&model.opset_import), Some(13));
    assert_eq!(model.ir_version, Some(7));
    show(&model)
}

fn one(from: i64, node: NodeProto) -> String {
    let [line] = &upgraded(from, vec![node])[..] else {
        panic!("one node is expected");
    };
    line.clone()
}

#[test]
fn axes_become_inputs() {
    for operator in ["ReduceSum", "Squeeze", "Unsqueeze"] {
        let before = node(operator, &["x"], "y").with_ints("axes", &[1, -1]);
        assert_eq!(one(11, before), format!("{operator} x [1, -1] -> y"));
        assert_eq!(
            one(7, node(operator, &["x"], "y")),
            format!("{operator} x -> y")
        );
    }
    let mean = node("ReduceMean", &["x"], "y").with_ints("axes", &[2]);
    assert_eq!(one(7, mean), "ReduceMean x axes=[2] -> y");
    let split = node("Split", &["x"], "y")
        .with_ints("split", &[1, 2])
        .with_int("axis", 1);
    assert_eq!(one(11, split), "Split x [1, 2] axis=1 -> y");
}

#[test]
fn slices_and_top_k_take_inputs() {
    let slice = node("Slice", &["x"], "y")
        .with_ints("starts", &[0, 1])
        .with_ints("ends", &[9, i64::MAX])
        .with_ints("axes", &[2, 3]);
    assert_eq!(
        one(9, slice),
        format!("Slice x [0, 1] [9, {}] [2, 3] -> y", i64::MAX)
    );
    let slice = node("Slice", &["x"], "y")
        .with_ints("starts", &[1, 2])
        .with_ints("ends", &[3, 4]);
    assert_eq!(one(7, slice), "Slice x [1, 2] [3, 4] [0, 1] -> y");
    let slice = node("Slice", &["x", "starts", "ends"], "y");
    assert_eq!(one(10, slice), "Slice x starts ends -> y");
    let best = node("TopK", &["x"], "y")
        .with_int("k", 5)
        .with_int("axis", 1);
    assert_eq!(one(8, best), "TopK x [5] axis=1 -> y");
}

#[test]
fn clips_and_pads_take_inputs() {
    let clip = |attributes: &[AttributeProto]| one(9, with(node("Clip", &["x"], "y"), attributes));
    assert_eq!(
        clip(&[number("min", 0.0), number("max", 6.0)]),
        "Clip x [0.0] [6.0] -> y"
    );
    assert_eq!(clip(&[number("max", 6.0)]), "Clip x - [6.0] -> y");
    assert_eq!(
        clip(&[number("min", f32::MIN), number("max", f32::MAX)]),
        "Clip x -> y"
    );

    let pad = node("Pad", &["x"], "y").with_ints("pads", &[0, 0, 1, 1, 0, 0, 2, 2]);
    assert_eq!(one(10, pad.clone()), "Pad x [0, 0, 1, 1, 0, 0, 2, 2] -> y");
    let reflect = with(pad.clone(), &[text("mode", "reflect")]);
    assert_eq!(
        one(7, reflect),
        "Pad x [0, 0, 1, 1, 0, 0, 2, 2] mode=reflect -> y"
    );
    let ones = with(pad, &[number("value", 1.5)]);
    assert_eq!(one(7, ones), "Pad x [0, 0, 1, 1, 0, 0, 2, 2] [1.5] -> y");

    // The bound has the type of the image.
    let mut double = model(
        9,
        vec![with(node("Clip", &["x"], "y"), &[number("min", 0.5)])],
    );
    graph(&mut double).input = vec![value("x", DataType::Double, &[1])];
    upgrade(&mut double).unwrap();
    let stored = fold::constant(&double.graph.unwrap().node[0])
        .unwrap()
        .clone();
    assert_eq!(tensor::elem(&stored), DataType::Double);
    assert_eq!(stored.raw_data(), 0.5_f64.to_le_bytes());
}

#[test]
fn dropouts_lose_their_ratio_and_masks_that_nothing_uses() {
    let mut dropout = with(node("Dropout", &["x"], "y"), &[number("ratio", 0.3)]);
    dropout.output.push("mask".into());
    assert_eq!(one(7, dropout.clone()), "Dropout x -> y");
    assert_eq!(one(10, dropout.clone()), "Dropout x -> y");
    assert_eq!(
        upgraded(7, vec![dropout.clone(), node("Relu", &["mask"], "z")]),
        [
            "Dropout x -> y y_mask",
            "Cast y_mask to=1 -> mask",
            "Relu mask -> z"
        ]
    );
    assert_eq!(
        upgraded(11, vec![dropout, node("Not", &["mask"], "z")]),
        ["Dropout x -> y mask", "Not mask -> z"]
    );
}

#[test]
fn softmax_takes_what_comes_after_its_axis_as_one() {
    for operator in ["Softmax", "LogSoftmax", "Hardmax"] {
        // The last dimension, by its number or from the end, and by default the second.
        let last = node(operator, &["x"], "y").with_int("axis", 3);
        assert_eq!(one(9, last), format!("{operator} x axis=3 -> y"));
        let last = node(operator, &["x"], "y").with_int("axis", -1);
        assert_eq!(one(11, last), format!("{operator} x axis=-1 -> y"));
        let flat = vec![node("Flatten", &["x"], "h"), node(operator, &["h"], "y")];
        assert_eq!(
            upgraded(7, flat),
            [
                "Flatten x -> h".to_owned(),
                format!("{operator} h axis=1 -> y")
            ]
        );
        let pooled = vec![
            node("GlobalAveragePool", &["x"], "h"),
            node(operator, &["h"], "y"),
        ];
        assert_eq!(upgraded(7, pooled)[1], format!("{operator} h axis=1 -> y"));

        for (axis, written) in [(None, 1), (Some(2), 2), (Some(-2), -2)] {
            let mut several = node(operator, &["x"], "y");
            several
                .attribute
                .extend(axis.map(|axis| walk::int_attribute("axis", axis)));
            assert_eq!(
                upgraded(11, vec![several]),
                [
                    "Shape x -> y_shape".to_owned(),
                    format!("Flatten x axis={written} -> y_flat"),
                    format!("{operator} y_flat axis=-1 -> y_of_flat"),
                    "Reshape y_of_flat y_shape -> y".to_owned(),
                ]
            );
        }
    }
    // Where the shape is not known, both are the same.
    let unknown = vec![node("NonZero", &["x"], "h"), node("Softmax", &["h"], "y")];
    assert_eq!(upgraded(9, unknown).len(), 5);
}

#[test]
fn what_is_scaled_keeps_where_its_pixels_come_from() {
    let scales = |values: &[f32]| AttributeProto {
        floats: values.to_vec(),
        ..number("scales", 0.0)
    };
    let upsample = |values: &[f32], mode: &str| {
        let before = node("Upsample", &["x"], "y");
        with(before, &[text("mode", mode), scales(values)])
    };
    assert_eq!(
        one(7, upsample(&[1.0, 1.0, 2.0, 2.0], "nearest")),
        "Resize x - [1.0, 1.0, 2.0, 2.0] mode=nearest coordinate_transformation_mode=asymmetric \
         nearest_mode=floor -> y"
    );
    assert_eq!(
        one(8, upsample(&[1.0, 1.0, 0.5, 0.5], "nearest")),
        "Resize x - [1.0, 1.0, 0.5, 0.5] mode=nearest coordinate_transformation_mode=asymmetric \
         nearest_mode=ceil -> y"
    );
    assert_eq!(
        one(7, upsample(&[1.0, 1.0, 2.0, 2.0], "linear")),
        "Resize x - [1.0, 1.0, 2.0, 2.0] mode=linear coordinate_transformation_mode=asymmetric -> y"
    );
    let both = upgraded(7, vec![upsample(&[1.0, 1.0, 2.0, 0.5], "nearest")]);
    assert!(
        both[0].starts_with("Resize x - [1.0, 1.0, 2.0, 1.0]"),
        "{both:?}"
    );
    assert!(
        both[1].starts_with("Resize y_larger - [1.0, 1.0, 1.0, 0.5]"),
        "{both:?}"
    );
    assert!(both[1].ends_with("nearest_mode=ceil -> y"), "{both:?}");

    let resize = node("Resize", &["x", "scales"], "y");
    assert_eq!(
        one(10, resize.clone()),
        "Resize x - scales mode=nearest coordinate_transformation_mode=asymmetric \
         nearest_mode=floor -> y"
    );
    let mut stored = model(10, vec![resize]);
    graph(&mut stored).initializer = vec![floats("scales", &[4], &[1.0, 1.0, 0.5, 0.5])];
    upgrade(&mut stored).unwrap();
    assert!(show(&stored)[0].contains("nearest_mode=ceil"));

    let mode = |mode: &str| {
        let attributes = [
            text("coordinate_transformation_mode", "tf_half_pixel_for_nn"),
            text("nearest_mode", mode),
        ];
        with(node("Resize", &["x", "", "scales"], "y"), &attributes)
    };
    assert_eq!(
        one(11, mode("floor")),
        "Resize x - scales coordinate_transformation_mode=half_pixel \
         nearest_mode=round_prefer_ceil -> y"
    );
    let error = upgrade(&mut model(11, vec![mode("ceil")]))
        .unwrap_err()
        .to_string();
    assert!(error.contains("tf_half_pixel_for_nn"), "{error}");
}

#[test]
fn normalization_of_each_place_becomes_arithmetic() {
    let inputs = ["x", "scale", "bias", "mean", "variance"];
    let plain = node("BatchNormalization", &inputs, "y").with_int("spatial", 1);
    assert_eq!(
        one(7, plain.clone()),
        "BatchNormalization x scale bias mean variance -> y"
    );
    let places = node("BatchNormalization", &inputs, "y").with_int("spatial", 0);
    assert_eq!(
        upgraded(8, vec![places]),
        [
            "Sub x mean -> y_centred",
            "Add variance [1e-5] -> y_sum",
            "Sqrt y_sum -> y_deviation",
            "Div y_centred y_deviation -> y_normal",
            "Mul y_normal scale -> y_scaled",
            "Add y_scaled bias -> y",
        ]
    );
    let mut training = plain;
    training.output.push("mean_of_batch".into());
    assert!(one(7, training.clone()).ends_with("-> y"));
    let nodes = vec![training, node("Relu", &["mean_of_batch"], "z")];
    let error = upgrade(&mut model(7, nodes)).unwrap_err().to_string();
    assert!(
        error.contains("as in training") && error.contains("opset 7"),
        "{error}"
    );
}

#[test]
fn what_means_the_same_stays() {
    assert_eq!(
        one(9, node("Scatter", &["x", "i", "u"], "y")),
        "ScatterElements x i u -> y"
    );
    for operator in ["Conv", "PRelu", "Gather", "MaxPool", "Cast", "Loop"] {
        assert_eq!(
            one(7, node(operator, &["x", "w"], "y")),
            format!("{operator} x w -> y")
        );
    }
    // Operators of other domains have versions of their own.
    let mut own = node("Clip", &["x"], "y");
    own.domain = Some("example".into());
    assert_eq!(one(7, own), "Clip x -> y");
}

#[test]
fn nodes_in_subgraphs_are_upgraded_too() {
    let mut choice = node("If", &["condition"], "y");
    choice.attribute.push(AttributeProto {
        name: Some("then_branch".into()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(GraphProto {
            node: vec![node("Squeeze", &["x"], "inner").with_ints("axes", &[0])],
            output: vec![value("inner", DataType::Float, &[-1])],
            ..Default::default()
        }),
        ..Default::default()
    });
    let mut model = model(11, vec![choice]);
    upgrade(&mut model).unwrap();
    let inner = model.graph.unwrap().node[0].attribute[0].g.clone().unwrap();
    let inner = model_of(inner);
    assert_eq!(show(&inner), ["Squeeze x [0] -> inner"]);
}

#[test]
fn what_is_too_old_or_unknown_is_refused_by_its_name() {
    let error = |from: i64, operator: &str| {
        let mut model = model(from, vec![node(operator, &["x"], "y")]);
        upgrade(&mut model).unwrap_err().to_string()
    };
    assert!(error(6, "Relu").contains("opset 6, but 7 or newer"));
    for (from, operator) in [(8, "Scan"), (7, "ImageScaler"), (12, "Gelu")] {
        let error = error(from, operator);
        assert!(error.contains(operator), "{error}");
        assert!(error.contains(&format!("of opset {from};")), "{error}");
    }
    // Nothing is looked at in a model that is new enough.
    let mut new = model(13, vec![node("Gelu", &["x"], "y")]);
    upgrade(&mut new).unwrap();
    assert_eq!(new.ir_version, Some(3));
}

#[test]
fn the_table_of_steps_names_each_operator_once() {
    let mut steps: Vec<_> = STEPS
        .iter()
        .map(|step| (step.operator, step.version))
        .collect();
    steps.sort_unstable();
    steps.dedup();
    assert_eq!(steps.len(), STEPS.len());
    assert!(AS_BEFORE.is_sorted());
    let twice = STEPS.iter().find(|step| AS_BEFORE.contains(&step.operator));
    assert_eq!(twice.map(|step| step.operator), None);
}

#[test]
fn shapes_follow_from_the_nodes() {
    let mut model = model(
        9,
        vec![
            node("Conv", &["x", "w"], "a"),
            node("Relu", &["a"], "b"),
            node("GlobalMaxPool", &["b"], "c"),
            node("Squeeze", &["c"], "d").with_ints("axes", &[2, -1]),
            node("Unsqueeze", &["d"], "e").with_ints("axes", &[0, 3]),
            node("Transpose", &["e"], "f").with_ints("perm", &[3, 1, 2, 0]),
            node("Reshape", &["f", "shape"], "g"),
            node("Add", &["x", "row"], "h"),
            node("ReduceMean", &["h"], "i")
                .with_ints("axes", &[1])
                .with_int("keepdims", 0),
            node("Concat", &["x", "x"], "j").with_int("axis", 1),
            node("Gemm", &["d", "d"], "k"),
        ],
    );
    let top = graph(&mut model);
    top.initializer = vec![ints("shape", &[0, -1, 5]), floats("row", &[6], &[0.0; 6])];
    let mut shapes = Shapes::of(top);
    let stored = HashMap::from([("shape".to_owned(), ints("shape", &[0, -1, 5]))]);
    for node in &top.node {
        shapes.record(node, &stored);
    }
    for (name, dims) in [
        ("b", &[None; 4][..]),
        ("c", &[None, None, Some(1), Some(1)]),
        ("d", &[None, None]),
        ("e", &[Some(1), None, None, Some(1)]),
        ("f", &[Some(1), None, None, Some(1)]),
        ("g", &[None, None, Some(5)]),
        ("h", &[Some(2), Some(3), Some(4), Some(6)]),
        ("i", &[Some(2), Some(4), Some(6)]),
        ("j", &[Some(2), None, Some(4), Some(6)]),
        ("k", &[None, None]),
    ] {
        assert_eq!(shapes.dims(name), Some(dims), "{name}");
    }
}

#[test]
fn an_old_model_answers_as_a_new_one() {
    use crate::model::{
        graph::{BodyPrecision, Normalization, ServingGraph},
        testing::{assert_close, run, tiny_images, tiny_logits},
    };

    for opset in OLDEST_OPSET..NEEDED_OPSET {
        let mut model = tiny();
        model.opset_import[0].version = Some(opset);
        model.ir_version = Some(3);
        let top = graph(&mut model);
        top.node.push(node("Softmax", &["scores"], "out"));
        top.output = vec![value("out", DataType::Float, &[-1, 4])];
        for stored in top.initializer.clone() {
            top.input
                .push(value(stored.name(), DataType::Float, &stored.dims));
        }
        let normal = Normalization::IMAGENET;
        let serving = ServingGraph::new(model, &normal.into(), None).unwrap();
        let images = tiny_images();
        let onnx = serving.to_onnx(None, BodyPrecision::Fp32).unwrap();
        let logits = run(onnx, &images, [2, 4, 6, 3]);
        assert_close(
            &logits,
            &tiny_logits(&images, normal.mean, normal.std),
            1e-5,
        );
    }
}
