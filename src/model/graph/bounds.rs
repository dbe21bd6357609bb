//! Limits of what a file may ask of the code that reads it, and the mistakes in graphs that engines
//! crash on. The limits are checked before anything is rewritten, and again when calls of functions
//! have been replaced and operators upgraded.

use std::collections::{HashMap, HashSet};

use super::{
    super::{
        ModelError,
        onnx::{GraphProto, ModelProto, NodeProto, TensorProto},
    },
    fold,
    walk::{self, input, is, is_standard},
};

/// The most nodes of a model, those in subgraphs and functions included: more than four times the
/// largest classifiers have after quantization.
pub(super) const MOST_NODES: usize = 20_000;
/// The most tensors of a graph that are stored or declared.
const MOST_TENSORS: usize = 100_000;
/// The most graphs within each other. The code that visits subgraphs calls itself for each.
const MOST_NESTED: usize = 8;
/// The most operators that follow one another. Engines call themselves for each of them, and so need
/// stack in proportion.
const LONGEST_CHAIN: usize = 4_000;
/// The largest dimension of a stored tensor.
const LARGEST_DIMENSION: i64 = i32::MAX as i64;
/// The most rounds of a loop whose number is stored.
const MOST_ROUNDS: i64 = 100_000;

/// Standard operators without a required input.
const NEEDS_NONE: [&str; 7] = [
    "Constant",
    "Loop",
    "Optional",
    "OptionalHasElement",
    "RandomNormal",
    "RandomUniform",
    "SequenceEmpty",
];
/// Standard operators that need their first two inputs.
const NEEDS_TWO: [&str; 47] = [
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "CastLike",
    "CenterCropPad",
    "Compress",
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "CumSum",
    "DequantizeLinear",
    "Div",
    "Equal",
    "Expand",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gemm",
    "Greater",
    "GreaterOrEqual",
    "GridSample",
    "LayerNormalization",
    "Less",
    "LessOrEqual",
    "MatMul",
    "MatMulInteger",
    "MaxRoiPool",
    "MaxUnpool",
    "Mod",
    "Mul",
    "NonMaxSuppression",
    "Or",
    "PRelu",
    "Pad",
    "Pow",
    "QuantizeLinear",
    "Reshape",
    "ReverseSequence",
    "STFT",
    "Sub",
    "Tile",
    "TopK",
    "Unsqueeze",
    "Xor",
];
/// Standard operators that need their first three inputs.
const NEEDS_THREE: [&str; 14] = [
    "Col2Im",
    "DeformConv",
    "GRU",
    "GroupNormalization",
    "InstanceNormalization",
    "LSTM",
    "OneHot",
    "RNN",
    "Range",
    "RoiAlign",
    "ScatterElements",
    "ScatterND",
    "Slice",
    "Where",
];

/// Rejects a model beyond the limits, as its file holds it.
pub(super) fn check_size(model: &ModelProto) -> Result<(), ModelError> {
    let Some(graph) = &model.graph else {
        return Ok(());
    };
    count(model, graph)?;

    let within = |nodes| <[NodeProto]>::iter(nodes).flat_map(walk::subgraphs);
    let mut graphs = vec![graph];
    graphs.extend(
        model
            .functions
            .iter()
            .flat_map(|function| within(&function.node)),
    );
    while let Some(graph) = graphs.pop() {
        graph.initializer.iter().try_for_each(check_dimensions)?;
        check_outputs(graph)?;
        graphs.extend(within(&graph.node));
    }
    Ok(())
}

/// Rejects a model that is beyond the limits now that its calls are replaced and its nodes upgraded
/// and in order, and one that no engine can be expected to survive.
pub(super) fn check(model: &ModelProto) -> Result<(), ModelError> {
    let Some(graph) = &model.graph else {
        return Ok(());
    };
    count(model, graph)?;

    let mut graphs = vec![graph];
    while let Some(graph) = graphs.pop() {
        check_outputs(graph)?;
        check_chains(graph)?;
        for node in &graph.node {
            check_inputs(node)?;
            check_rounds(graph, node)?;
            graphs.extend(walk::subgraphs(node));
        }
    }
    Ok(())
}

/// Rejects too many nodes, tensors or graphs within each other.
fn count(model: &ModelProto, graph: &GraphProto) -> Result<(), ModelError> {
    let beyond = |what: &str, limit: usize| {
        Err(ModelError::Bounds(format!(
            "has more than {limit} {what}, the most that are read"
        )))
    };
    let (mut nodes, mut tensors) = (0, 0);
    let mut graphs = vec![(graph, 1)];
    let mut add_nodes = |list: &'_ [NodeProto]| {
        nodes += list.len();
        nodes <= MOST_NODES
    };
    for function in &model.functions {
        if !add_nodes(&function.node) {
            return beyond("nodes", MOST_NODES);
        }
        let inner = function.node.iter().flat_map(walk::subgraphs);
        graphs.extend(inner.map(|graph| (graph, 2)));
    }
    while let Some((graph, depth)) = graphs.pop() {
        tensors += graph.initializer.len()
            + graph.sparse_initializer.len()
            + graph.input.len()
            + graph.output.len()
            + graph.value_info.len();
        if !add_nodes(&graph.node) {
            return beyond("nodes", MOST_NODES);
        }
        if tensors > MOST_TENSORS {
            return beyond("tensors", MOST_TENSORS);
        }
        if depth > MOST_NESTED {
            return beyond("graphs within each other", MOST_NESTED);
        }
        let inner = graph.node.iter().flat_map(walk::subgraphs);
        graphs.extend(inner.map(|graph| (graph, depth + 1)));
    }
    Ok(())
}

/// Rejects a node without an input that its operator can't do without.
fn check_inputs(node: &NodeProto) -> Result<(), ModelError> {
    if !is_standard(node) {
        return Ok(());
    }
    let one_of = |list: &[&str]| list.contains(&node.op_type());
    let needed = if one_of(&NEEDS_NONE) {
        0
    } else if one_of(&NEEDS_TWO) {
        2
    } else if one_of(&NEEDS_THREE) {
        3
    } else {
        match node.op_type() {
            "BatchNormalization" => 5,
            "QLinearConv" | "QLinearMatMul" => 8,
            _ => 1,
        }
    };
    match (0..needed).find(|&slot| input(node, slot).is_none()) {
        Some(slot) => Err(refuse(
            node,
            format!("has no input {}, and needs {needed}", slot + 1),
        )),
        None => Ok(()),
    }
}

/// Rejects two tensors with the same name in one graph, which is also how a graph can run in a
/// cycle although every node uses only what was produced before.
fn check_outputs(graph: &GraphProto) -> Result<(), ModelError> {
    let mut known: HashSet<&str> = graph
        .initializer
        .iter()
        .map(|tensor| tensor.name())
        .chain(graph.input.iter().map(|value| value.name()))
        .collect();
    for node in &graph.node {
        for name in node.output.iter().filter(|name| !name.is_empty()) {
            if !known.insert(name) {
                return Err(refuse(
                    node,
                    format!("produces the tensor `{name}`, which exists already"),
                ));
            }
        }
    }
    Ok(())
}

/// Rejects too many operators one after another.
fn check_chains(graph: &GraphProto) -> Result<(), ModelError> {
    let mut chains: HashMap<&str, usize> = HashMap::new();
    for node in &graph.node {
        let longest = walk::uses(node)
            .into_iter()
            .filter_map(|name| chains.get(name).copied())
            .max()
            .unwrap_or(0);
        if longest >= LONGEST_CHAIN {
            return Err(refuse(
                node,
                format!(
                    "comes after more than {LONGEST_CHAIN} operators one after another, the most \
                     that are run"
                ),
            ));
        }
        chains.extend(node.output.iter().map(|name| (name.as_str(), longest + 1)));
    }
    Ok(())
}

/// Rejects dimensions beyond what engines count with.
fn check_dimensions(tensor: &TensorProto) -> Result<(), ModelError> {
    match tensor.dims.iter().find(|&&dim| dim > LARGEST_DIMENSION) {
        Some(dim) => Err(super::super::error::tensor(
            tensor.name(),
            format!("has the dimension {dim}; {LARGEST_DIMENSION} is the largest that is read"),
        )),
        None => Ok(()),
    }
}

/// Rejects a loop that would not end in any useful time.
fn check_rounds(graph: &GraphProto, node: &NodeProto) -> Result<(), ModelError> {
    if !is(node, "Loop") {
        return Ok(());
    }
    let Some(name) = input(node, 0) else {
        return Ok(());
    };
    let stored = graph.initializer.iter().find(|found| found.name() == name);
    let constant = || {
        let mut producers = graph.node.iter();
        let producer = producers.find(|node| node.output.iter().any(|output| output == name))?;
        fold::constant(producer)
    };
    let rounds = stored.or_else(constant).and_then(first_integer);
    match rounds.filter(|&rounds| rounds > MOST_ROUNDS) {
        Some(rounds) => Err(refuse(
            node,
            format!("repeats its body {rounds} times; {MOST_ROUNDS} is the most that is run"),
        )),
        None => Ok(()),
    }
}

/// The first value of a tensor of 64-bit integers.
fn first_integer(tensor: &TensorProto) -> Option<i64> {
    match &tensor.raw_data {
        Some(raw) => raw.first_chunk().map(|bytes| i64::from_le_bytes(*bytes)),
        None => tensor.int64_data.first().copied(),
    }
}

fn refuse(node: &NodeProto, reason: String) -> ModelError {
    ModelError::Node {
        node: walk::describe(node),
        reason,
    }
}
