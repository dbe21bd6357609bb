//! Heads other than one output of logits: activations, single scores, several outputs, and nodes
//! that rank or name the classes.

use super::*;
use crate::model::onnx::attribute_proto::AttributeType;

/// [`tiny`] with one score for each image instead of [`CLASSES`]: that of its second class.
fn one_score() -> ModelProto {
    let mut model = tiny();
    let graph = graph(&mut model);
    graph.initializer = vec![
        floats("fc.weight", &[1, 3], &WEIGHT[3..6]),
        floats("fc.bias", &[1], &BIAS[1..2]),
    ];
    graph.output = vec![value("scores", DataType::Float, &[-1, 1])];
    model
}

/// The logits that [`one_score`] is served with: 0, and its score.
fn two_logits() -> Vec<f32> {
    tiny_logits(&tiny_images(), PLAIN.mean, PLAIN.std)
        .chunks(CLASSES)
        .flat_map(|row| [0.0, row[1]])
        .collect()
}

fn logits(serving: &ServingGraph) -> Vec<f32> {
    let onnx = serving.to_onnx(None, BodyPrecision::Fp32).unwrap();
    run(onnx, &tiny_images(), [2, 4, 6, 3])
}

/// ONNX's ZipMap, which gives a map from the classes' names to the scores.
fn zip_map(scores: &str, output: &str) -> NodeProto {
    let mut node = node("ZipMap", &[scores], output);
    node.domain = Some("ai.onnx.ml".into());
    node.attribute.push(AttributeProto {
        name: Some("classlabels_strings".into()),
        r#type: Some(AttributeType::Strings as i32),
        strings: ["ant", "bee", "cat", "dog"]
            .map(|name| name.as_bytes().to_vec())
            .into(),
        ..Default::default()
    });
    node
}

#[test]
fn a_sigmoid_at_the_end_is_removed_and_remembered() {
    let mut model = tiny();
    graph(&mut model).node.extend([
        node("Sigmoid", &["scores"], "each"),
        node("Identity", &["each"], "out"),
    ]);
    graph(&mut model).output = vec![value("out", DataType::Float, &[-1, 4])];

    let serving = serve(&model).unwrap();
    assert_eq!(serving.activation, Activation::Sigmoid);
    assert_tiny(&serving);
}

#[test]
fn a_single_score_is_that_of_the_second_of_two_classes() {
    for (sigmoid, dims) in [
        (false, &[-1, 1][..]),
        (true, &[-1, 1]),
        (true, &[-1, 1, 1, 1]),
        (true, &[-1]),
    ] {
        let mut model = one_score();
        let mut last = "scores".to_owned();
        let graph = graph(&mut model);
        if sigmoid {
            graph.node.push(node("Sigmoid", &[&last], "probability"));
            last = "probability".into();
        }
        if dims.len() != 2 {
            graph.initializer.push(ints("dims", dims));
            graph.node.push(node("Reshape", &[&last, "dims"], "shaped"));
            last = "shaped".into();
        }
        graph.output = vec![value(&last, DataType::Float, dims)];

        let serving = serve(&model).unwrap();
        assert_eq!(
            (serving.classes, serving.activation, serving.is_binary),
            (2, Activation::Softmax, true)
        );
        assert_close(&logits(&serving), &two_logits(), 1e-4);
    }
}

#[test]
fn the_output_with_the_scores_can_be_chosen() {
    let mut model = tiny();
    graph(&mut model)
        .node
        .push(node("Neg", &["scores"], "opposite"));
    graph(&mut model).output = ["scores", "opposite"]
        .map(|name| value(name, DataType::Float, &[-1, 4]))
        .into();

    let serve = |output| ServingGraph::new(model.clone(), &PLAIN.into(), output);
    assert_tiny(&serve(Some("scores")).unwrap());
    let opposite = logits(&serve(Some("opposite")).unwrap());
    let expected = tiny_logits(&tiny_images(), PLAIN.mean, PLAIN.std);
    let expected: Vec<f32> = expected.iter().map(|logit| -logit).collect();
    assert_close(&opposite, &expected, 1e-4);

    let error = serve(None).unwrap_err().to_string();
    assert!(
        error.contains("--output-name: `scores`, `opposite`"),
        "{error}"
    );
    let error = serve(Some("other")).unwrap_err().to_string();
    assert!(
        error.contains("no output `other`; it has `scores`, `opposite`"),
        "{error}"
    );
}

#[test]
fn what_names_the_classes_is_cut_off_and_its_names_are_kept() {
    let mut model = tiny();
    let names = TensorProto {
        name: Some("names".into()),
        data_type: Some(DataType::String as i32),
        dims: vec![4],
        string_data: ["ant", "bee", "cat", "dog"]
            .map(|name| name.as_bytes().to_vec())
            .into(),
        ..Default::default()
    };
    let mut look_up = node("ArrayFeatureExtractor", &["names", "best"], "label");
    look_up.domain = Some("ai.onnx.ml".into());
    let graph_ = graph(&mut model);
    graph_.initializer.push(names);
    graph_.node.extend([
        node("Softmax", &["scores"], "probabilities").with_int("axis", 1),
        node("ArgMax", &["probabilities"], "best").with_int("axis", 1),
        look_up,
        zip_map("probabilities", "map"),
    ]);
    graph_.output = vec![
        value("label", DataType::String, &[-1, 1]),
        ValueInfoProto {
            name: Some("map".into()),
            ..Default::default()
        },
    ];
    model.opset_import.push(OperatorSetIdProto {
        domain: Some("ai.onnx.ml".into()),
        version: Some(3),
    });

    let serving = serve(&model).unwrap();
    assert_eq!(
        serving.labels.as_deref(),
        Some(&["ant", "bee", "cat", "dog"].map(str::to_owned)[..])
    );
    assert_eq!(serving.activation, Activation::Softmax);
    assert_tiny(&serving);
}
