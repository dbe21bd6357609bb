//! Functions that the file brings along.

use super::*;

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto {
        domain: Some(domain.into()),
        version: Some(version),
    }
}

fn function(name: &str, inputs: &[&str], outputs: &[&str], nodes: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: Some(name.into()),
        domain: Some("mine".into()),
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: outputs.iter().map(|&name| name.into()).collect(),
        node: nodes,
        opset_import: vec![opset("", 17), opset("mine", 1)],
        ..Default::default()
    }
}

fn call(name: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        domain: Some("mine".into()),
        ..node(name, inputs, output)
    }
}

fn reference(name: &str, of: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        ref_attr_name: Some(of.into()),
        r#type: Some(kind as i32),
        ..Default::default()
    }
}

/// [`tiny`] whose last two nodes are calls: of a function that flattens, and of one that calls
/// another one.
fn with_functions() -> ModelProto {
    let mut model = tiny();
    model.opset_import.push(opset("mine", 1));
    let mut gemm = node("Gemm", &["x", "w", "b"], "y");
    gemm.attribute = vec![reference("transB", "transposed", AttributeType::Int)];
    let mut layer = function("Layer", &["x", "w", "b"], &["y"], vec![gemm]);
    layer.attribute = vec!["transposed".into()];
    let mut inner = call("Layer", &["h", "w", "b"], "y");
    inner.attribute = vec![reference("transposed", "turn", AttributeType::Int)];
    let mut head = function(
        "Head",
        &["x", "w", "b", "unused"],
        &["y"],
        // Names that the graph has as well, and an order that can't run.
        vec![
            inner,
            node("Identity", &["flat"], "h"),
            node("Relu", &["x"], "pooled"),
            node("Identity", &["x"], "flat"),
        ],
    );
    head.attribute_proto = vec![walk::int_attribute("turn", 1)];
    let flatten = function("Flat", &["x"], &["y"], vec![node("Flatten", &["x"], "y")]);
    model.functions = vec![head, flatten, layer];
    let top = graph(&mut model);
    top.node[1] = call("Flat", &["pooled"], "flat");
    top.node[2] = call("Head", &["flat", "fc.weight", "fc.bias"], "scores");
    model
}

#[test]
fn calls_are_replaced_by_the_nodes_of_their_functions() {
    let model = with_functions();
    assert_tiny(&serve(&model).unwrap());
    let rewritten = decoded(&serve(&model).unwrap(), None, BodyPrecision::Fp32);
    assert!(rewritten.functions.is_empty());
    let nodes = rewritten.graph.unwrap().node;
    assert!(nodes.iter().all(|node| node.domain().is_empty()));

    // The same function twice, once on what it gives itself.
    let mut twice = with_functions();
    let top = graph(&mut twice);
    top.node[1].output[0] = "once".into();
    top.node.push(call("Flat", &["once"], "flat"));
    assert_tiny(&serve(&twice).unwrap());
}

#[test]
fn attributes_of_the_call_come_before_defaults() {
    let mut model = with_functions();
    let columns: Vec<f32> = (0..12)
        .map(|index| WEIGHT[index % 4 * 3 + index / 4])
        .collect();
    set_weight(&mut model, floats("fc.weight", &[3, 4], &columns));
    graph(&mut model).node[2] =
        call("Head", &["flat", "fc.weight", "fc.bias"], "scores").with_int("turn", 0);
    assert_tiny(&serve(&model).unwrap());
}

#[test]
fn a_function_may_give_what_it_takes_and_be_called_in_a_subgraph() {
    let mut model = tiny();
    model.functions = vec![function("Same", &["x"], &["x"], vec![])];
    let branch = |name: &str| AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(GraphProto {
            name: Some(name.into()),
            node: vec![call("Same", &["pooled"], "inner")],
            output: vec![value("inner", DataType::Float, &[-1, 3, 1, 1])],
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut choice = node("If", &["condition"], "chosen");
    choice.attribute = vec![branch("then_branch"), branch("else_branch")];
    let top = graph(&mut model);
    top.initializer.push(TensorProto {
        name: Some("condition".into()),
        data_type: Some(DataType::Bool as i32),
        raw_data: Some(vec![1].into()),
        ..Default::default()
    });
    top.node[1] = node("Flatten", &["chosen"], "flat");
    top.node.push(choice);
    assert_tiny(&serve(&model).unwrap());
}

#[test]
fn functions_of_another_version_are_upgraded_with_the_model() {
    let mut model = with_functions();
    // A mean by the attribute of version 17 in a model of version 18, which has an input for it.
    model.opset_import[0].version = Some(18);
    let mean = node("ReduceMean", &["x"], "y")
        .with_ints("axes", &[2, 3])
        .with_int("keepdims", 1);
    model
        .functions
        .push(function("Pool", &["x"], &["y"], vec![mean]));
    graph(&mut model).node[0] = call("Pool", &["pixels"], "pooled");
    assert_tiny(&serve(&model).unwrap());
    // And the other way round.
    model.opset_import[0].version = Some(17);
    model.functions[3].node[0].attribute.remove(0);
    model.functions[3].node[0].input.push("axes".into());
    model.functions[3].node.insert(
        0,
        node("Constant", &[], "axes").with_tensor("value", ints("", &[2, 3])),
    );
    model.functions[3].opset_import[0].version = Some(18);
    assert_tiny(&serve(&model).unwrap());
}

#[test]
fn calls_that_do_not_end_are_refused() {
    let mut own = with_functions();
    own.functions[1].node[0] = call("Flat", &["x"], "y");
    let reason = refusal(&own);
    assert!(reason.contains("calls itself"), "{reason}");

    let mut ring = with_functions();
    ring.functions[2].node[0] = call("Head", &["x", "w", "b"], "y");
    let reason = refusal(&ring);
    assert!(reason.contains("calls itself"), "{reason}");

    let mut extra = with_functions();
    graph(&mut extra).node[1].input.push("pixels".into());
    let reason = refusal(&extra);
    assert!(reason.contains("has 2 inputs and 1 outputs"), "{reason}");
}

/// Functions each of which calls the next one twice; the last one is `last`.
fn doubling(depth: usize, last: Vec<NodeProto>) -> ModelProto {
    let mut model = tiny();
    let name = |level: usize| format!("Level{level}");
    model.functions = (0..depth)
        .map(|level| {
            let nodes = vec![
                call(&name(level + 1), &["x"], "h"),
                call(&name(level + 1), &["h"], "y"),
            ];
            function(&name(level), &["x"], &["y"], nodes)
        })
        .collect();
    model
        .functions
        .push(function(&name(depth), &["x"], &["y"], last));
    graph(&mut model).node[0].input[0] = "made".into();
    graph(&mut model)
        .node
        .push(call("Level0", &["pixels"], "made"));
    model
}

#[test]
fn what_calls_come_to_is_limited_before_it_is_made() {
    let identity = || vec![node("Identity", &["x"], "y")];
    assert_tiny(&serve(&doubling(5, identity())).unwrap());
    let reason = refusal(&doubling(30, identity()));
    assert!(reason.contains("more than 20000 nodes"), "{reason}");
    // Functions without nodes are counted as well.
    let reason = refusal(&doubling(30, vec![]));
    assert!(reason.contains("more than 20000 nodes"), "{reason}");
    let reason = refusal(&doubling(40, identity()));
    assert!(reason.contains("within 32 others"), "{reason}");

    // Values that each copy would hold on its own.
    let stored = TensorProto {
        int64_data: vec![1 << 60; 1 << 16],
        ..ints("", &[1 << 16])
    };
    let mut heavy = identity();
    heavy.push(node("Constant", &[], "c").with_tensor("value", stored));
    let reason = refusal(&doubling(10, heavy));
    assert!(reason.contains("bytes in calls of functions"), "{reason}");

    let mut many = identity();
    many[0].attribute = vec![AttributeProto::default(); 10_000];
    let reason = refusal(&doubling(10, many));
    assert!(reason.contains("parts in calls of functions"), "{reason}");

    // An attribute of the call that the function uses often.
    let mut inner = node("Identity", &["x"], "y");
    inner.attribute = vec![reference("values", "given", AttributeType::Ints)];
    let nodes = (0..1000).map(|index| NodeProto {
        output: vec![if index == 0 {
            "y".into()
        } else {
            format!("y{index}")
        }],
        ..inner.clone()
    });
    let mut model = tiny();
    model.functions = vec![function("Often", &["x"], &["y"], nodes.collect())];
    graph(&mut model).node[0].input[0] = "made".into();
    let often = call("Often", &["pixels"], "made").with_ints("given", &[1 << 60; 1 << 16]);
    graph(&mut model).node.push(often);
    let reason = refusal(&model);
    assert!(reason.contains("bytes in calls of functions"), "{reason}");
}
