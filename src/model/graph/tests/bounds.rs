//! Files that ask for too much, and graphs that engines crash on.

use super::*;
use crate::model::onnx::{AttributeProto, attribute_proto::AttributeType};

/// [`tiny`] with these nodes before its first.
fn after(nodes: Vec<NodeProto>) -> ModelProto {
    let mut model = tiny();
    let last = nodes.last().map(|node| node.output[0].clone());
    graph(&mut model).node.splice(0..0, nodes.clone());
    graph(&mut model).node[nodes.len()].input[0] = last.unwrap();
    model
}

/// Identities one after another, the first of which takes the image.
fn chain(length: usize) -> Vec<NodeProto> {
    let name = |index: usize| match index {
        0 => "pixels".to_owned(),
        index => format!("link{index}"),
    };
    (0..length)
        .map(|index| node("Identity", &[&name(index)], &name(index + 1)))
        .collect()
}

fn subgraph(name: &str, graph: GraphProto) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(graph),
        ..Default::default()
    }
}

fn loop_of(rounds: i64) -> ModelProto {
    let mut body = node("Loop", &["rounds", "", "pixels"], "looped");
    body.attribute.push(subgraph(
        "body",
        GraphProto {
            node: vec![
                node("Identity", &["on"], "on_again"),
                node("Relu", &["x"], "x_again"),
            ],
            input: vec![
                value("round", DataType::Int64, &[]),
                value("on", DataType::Bool, &[]),
                value("x", DataType::Float, &[-1, 3, 4, 6]),
            ],
            output: vec![
                value("on_again", DataType::Bool, &[]),
                value("x_again", DataType::Float, &[-1, 3, 4, 6]),
            ],
            ..Default::default()
        },
    ));
    let mut model = after(vec![body]);
    graph(&mut model)
        .initializer
        .push(ints("rounds", &[rounds]));
    model
}

#[test]
fn a_tensor_that_is_produced_twice_is_refused() {
    let cycle = after(vec![node("Identity", &["pixels"], "pixels")]);
    let reason = refusal(&cycle);
    assert!(
        reason.contains("`pixels`, which exists already"),
        "{reason}"
    );

    // Nodes that use each other's outputs.
    let reason = refusal(&after(vec![
        node("Relu", &["b"], "a"),
        node("Relu", &["a"], "b"),
    ]));
    assert!(
        reason.contains("a_node (Relu)`: needs its own output, by way of `b_node (Relu)`"),
        "{reason}"
    );
    let reason = refusal(&after(vec![
        node("Relu", &["pixels"], "a"),
        node("Add", &["a", "b"], "b"),
    ]));
    assert!(
        reason.contains("b_node (Add)`: uses its own output"),
        "{reason}"
    );
    let reason = refusal(&after(vec![node("Relu", &["nowhere"], "a")]));
    assert!(reason.contains("`nowhere`, which no node"), "{reason}");

    let mut stored = after(vec![node("Relu", &["pixels"], "fc.bias")]);
    graph(&mut stored).node[1].input[0] = "pixels".into();
    let reason = refusal(&stored);
    assert!(
        reason.contains("`fc.bias`, which exists already"),
        "{reason}"
    );
}

#[test]
fn an_input_that_the_operator_needs_must_be_there() {
    for (op_type, inputs, missing) in [
        ("Conv", &["pixels"][..], "no input 2"),
        ("Conv", &["pixels", ""], "no input 2"),
        ("Relu", &[], "no input 1"),
        ("Where", &["pixels", "pixels"], "no input 3"),
        ("BatchNormalization", &["pixels", "fc.bias"], "no input 3"),
    ] {
        let reason = refusal(&after(vec![node(op_type, inputs, "made")]));
        assert!(reason.contains(missing), "{op_type}: {reason}");
        assert!(reason.contains(op_type), "{reason}");
    }
    // Operators of other domains have rules of their own.
    let mut own = node("Conv", &["pixels"], "made");
    own.domain = Some("example".into());
    assert!(serve(&after(vec![own])).is_ok());
}

#[test]
fn long_chains_are_followed_up_to_the_limit() {
    assert!(serve(&after(chain(3_000))).is_ok());
    let reason = refusal(&after(chain(15_000)));
    assert!(reason.contains("more than 4000 operators"), "{reason}");
    let reason = refusal(&after(chain(20_000)));
    assert!(reason.contains("more than 20000 nodes"), "{reason}");

    // The shape of a weight is not looked for without end.
    let mut model = tiny();
    let mut nodes = chain(3_000);
    nodes[0].input[0] = "fc.weight".into();
    graph(&mut model).node.splice(0..0, nodes);
    graph(&mut model).node.last_mut().unwrap().input[1] = "link3000".into();
    assert_eq!(serve(&model).unwrap().classes, CLASSES);
}

#[test]
fn transposed_weights_keep_the_order_of_their_transpositions() {
    let mut model = tiny();
    graph(&mut model)
        .initializer
        .push(floats("w", &[2, 3, 5], &[0.0; 30]));
    graph(&mut model).node.extend([
        node("Transpose", &["w"], "a").with_ints("perm", &[1, 2, 0]),
        node("Cast", &["a"], "b"),
        node("Transpose", &["b"], "c").with_ints("perm", &[0, 2, 1]),
        node("Transpose", &["c"], "d"),
    ]);
    let dims = |name| inspect::weight_dims(model.graph.as_ref().unwrap(), name);
    assert_eq!(dims("a"), Some(vec![3, 5, 2]));
    assert_eq!(dims("c"), Some(vec![3, 2, 5]));
    assert_eq!(dims("d"), Some(vec![5, 2, 3]));
}

#[test]
fn a_loop_ends_in_time() {
    assert!(serve(&loop_of(3)).is_ok());
    let reason = refusal(&loop_of(1 << 40));
    assert!(reason.contains("1099511627776 times"), "{reason}");
}

#[test]
fn subgraphs_are_few_and_in_order() {
    let nested = |depth: usize| {
        let mut inner = GraphProto {
            node: vec![node("Relu", &["pixels"], "inner")],
            output: vec![value("inner", DataType::Float, &[-1, 3, 4, 6])],
            ..Default::default()
        };
        for level in 0..depth {
            let name = format!("level{level}");
            let mut choice = node("If", &["condition"], &name);
            choice
                .attribute
                .push(subgraph("then_branch", inner.clone()));
            choice.attribute.push(subgraph(
                "else_branch",
                GraphProto {
                    node: vec![node("Identity", &["pixels"], "same")],
                    output: vec![value("same", DataType::Float, &[-1, 3, 4, 6])],
                    ..Default::default()
                },
            ));
            inner = GraphProto {
                node: vec![choice],
                output: vec![value(&name, DataType::Float, &[-1, 3, 4, 6])],
                ..Default::default()
            };
        }
        let mut model = after(inner.node);
        let condition = TensorProto {
            name: Some("condition".into()),
            data_type: Some(DataType::Bool as i32),
            raw_data: Some(vec![1].into()),
            ..Default::default()
        };
        graph(&mut model).initializer.push(condition);
        model
    };
    assert!(serve(&nested(3)).is_ok());
    let reason = refusal(&nested(20));
    assert!(reason.contains("graphs within each other"), "{reason}");

    let mut lost = nested(1);
    let branch = graph(&mut lost).node[0].attribute[0].g.as_mut().unwrap();
    branch.node[0].input[0] = "nowhere".into();
    let reason = refusal(&lost);
    assert!(reason.contains("`nowhere`, which no node"), "{reason}");
}

#[test]
fn batches_inputs_dimensions_and_classes_have_a_limit() {
    let with_input = |dims: &[i64]| {
        let mut model = tiny();
        graph(&mut model).input = vec![value("pixels", DataType::Float, dims)];
        model
    };
    assert!(serve(&with_input(&[1024, 3, 4, 6])).is_ok());
    let reason = refusal(&with_input(&[1 << 40, 3, 224, 224]));
    assert!(
        reason.contains("batches of exactly 1099511627776"),
        "{reason}"
    );
    let reason = refusal(&with_input(&[1000, 3, 4096, 4096]));
    assert!(reason.contains("bytes of images at once"), "{reason}");

    let mut model = tiny();
    graph(&mut model).initializer[1].dims = vec![1 << 40];
    let reason = refusal(&model);
    assert!(reason.contains("dimension 1099511627776"), "{reason}");

    let mut model = tiny();
    graph(&mut model).output = vec![value("scores", DataType::Float, &[-1, 1 << 40])];
    let reason = refusal(&model);
    assert!(reason.contains("1048576 is the most"), "{reason}");
}
