//! Graphs whose nodes are in no order that they can run in.

use super::*;

/// Branches that use tensors of the graph around them.
fn branch(name: &str, nodes: Vec<NodeProto>) -> AttributeProto {
    let output = nodes[0].output[0].clone();
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(GraphProto {
            name: Some(name.into()),
            node: nodes,
            output: vec![value(&output, DataType::Float, &[-1, 3, 4, 6])],
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn nodes_in_any_order_are_sorted() {
    let mut model = tiny();
    graph(&mut model).node.reverse();
    assert_tiny(&serve(&model).unwrap());
}

#[test]
fn an_order_that_can_run_is_kept() {
    let mut model = tiny();
    let second = node("Relu", &["pixels"], "first_by_name");
    graph(&mut model).node.push(second);
    let before = model.clone();
    order::sort(graph(&mut model)).unwrap();
    assert_eq!(model, before);

    // What is moved goes where it is needed first, and nothing else moves.
    graph(&mut model).node.swap(0, 2);
    order::sort(graph(&mut model)).unwrap();
    let names: Vec<&str> = model
        .graph
        .as_ref()
        .unwrap()
        .node
        .iter()
        .map(|node| node.name())
        .collect();
    assert_eq!(
        names,
        [
            "pooled_node",
            "flat_node",
            "scores_node",
            "first_by_name_node"
        ]
    );
}

#[test]
fn subgraphs_are_sorted_and_what_they_use_comes_before() {
    let mut model = tiny();
    let mut choice = node("If", &["condition"], "chosen");
    // The inner name `same` is also that of a tensor outside, which depends on the choice.
    choice.attribute = vec![
        branch(
            "then_branch",
            vec![
                node("Neg", &["inner"], "then"),
                node("Neg", &["late"], "inner"),
            ],
        ),
        branch(
            "else_branch",
            vec![
                node("Identity", &["same"], "else"),
                node("Identity", &["late"], "same"),
            ],
        ),
    ];
    let condition = TensorProto {
        name: Some("condition".into()),
        data_type: Some(DataType::Bool as i32),
        raw_data: Some(vec![1].into()),
        ..Default::default()
    };
    let top = graph(&mut model);
    top.initializer.push(condition);
    top.node[0].input[0] = "same".into();
    top.node.extend([
        node("Identity", &["chosen"], "same"),
        choice,
        node("Identity", &["pixels"], "late"),
    ]);
    order::sort(top).unwrap();
    let names: Vec<&str> = top
        .node
        .iter()
        .map(|node| node.output[0].as_str())
        .collect();
    assert_eq!(
        names,
        ["late", "chosen", "same", "pooled", "flat", "scores"]
    );
    let inner: Vec<&str> = top.node[1].attribute[0]
        .g
        .as_ref()
        .unwrap()
        .node
        .iter()
        .map(|node| node.output[0].as_str())
        .collect();
    assert_eq!(inner, ["inner", "then"]);
}

#[test]
fn long_cycles_are_described_in_short() {
    let mut model = tiny();
    let name = |index: usize| format!("link{}", index % 1000);
    let links = (0..1000).map(|index| node("Relu", &[&name(index)], &name(index + 1)));
    graph(&mut model).node.extend(links);
    let reason = refusal(&model);
    assert!(reason.contains("needs its own output"), "{reason}");
    assert!(
        reason.contains("and others") && reason.len() < 400,
        "{reason}"
    );
}
