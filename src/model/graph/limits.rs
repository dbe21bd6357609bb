//! Finds nodes that an engine is known to compute wrongly, by the engine's own table.

use std::collections::HashMap;

use super::{
    super::{
        onnx::{GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto::DataType},
        tensor,
    },
    ServingGraph, fold, inspect, typing,
    walk::{self, attribute},
};

/// The most casts in a row that are looked through.
const CASTS: usize = 64;

/// Operators that an engine computes wrongly under a condition.
pub struct Limit {
    /// The operators, of the standard domain or of `com.microsoft`.
    pub operators: &'static [&'static str],
    /// Whether this node is affected.
    pub applies: fn(&Operation) -> bool,
    /// What is wrong, for the error message.
    pub reason: &'static str,
}

/// A node, as the conditions of [`Limit`]s see it.
pub struct Operation<'a> {
    node: &'a NodeProto,
    /// Element types, as far as they are known.
    elems: &'a HashMap<String, DataType>,
    stored: &'a HashMap<&'a str, &'a TensorProto>,
    producers: &'a HashMap<&'a str, &'a NodeProto>,
}

impl Operation<'_> {
    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        walk::int(self.node, name)
    }

    /// A text attribute; empty if it is absent.
    pub fn text(&self, name: &str) -> &[u8] {
        attribute(self.node, name).map_or(&[], |attribute| attribute.s())
    }

    /// An attribute of integers; empty if it is absent.
    pub fn ints(&self, name: &str) -> &[i64] {
        attribute(self.node, name).map_or(&[], |attribute| &attribute.ints)
    }

    /// The element type of an input; `Undefined` if it is absent or unknown.
    pub fn elem(&self, slot: usize) -> DataType {
        walk::input(self.node, slot)
            .and_then(|name| self.elems.get(name).copied())
            .unwrap_or(DataType::Undefined)
    }

    /// Whether an input is present.
    pub fn has(&self, slot: usize) -> bool {
        walk::input(self.node, slot).is_some()
    }

    /// Whether an input's values are stored in the file.
    pub fn is_stored(&self, slot: usize) -> bool {
        walk::input(self.node, slot).is_some_and(|name| self.stored.contains_key(name))
    }

    /// The floating-point values of an input that is stored in the file.
    pub fn stored_floats(&self, slot: usize) -> Option<Vec<f32>> {
        tensor::to_floats(self.stored.get(walk::input(self.node, slot)?)?).ok()
    }

    /// Whether a Resize that aligns corners has sizes, or scales that are whole numbers: ONNX divides
    /// by the size before it is rounded, and engines by the rounded one.
    pub fn has_whole_scales(&self) -> bool {
        self.text("coordinate_transformation_mode") != b"align_corners"
            || !self.has(2)
            || self
                .stored_floats(2)
                .is_some_and(|scales| scales.iter().all(|scale| scale.fract() == 0.0))
    }

    /// The operator that computes an input, looking through casts; empty if it is not computed.
    pub fn computed_by(&self, slot: usize) -> &str {
        let producer =
            |node, slot| walk::input(node, slot).and_then(|name| self.producers.get(name));
        let mut found = producer(self.node, slot);
        for _ in 0..CASTS {
            let Some(cast) = found.filter(|node| walk::is(node, "Cast")) else {
                break;
            };
            found = producer(cast, 0);
        }
        found.map_or("", |node| node.op_type())
    }
}

impl ServingGraph {
    /// The first node that is beyond the `limits`, with the reason; `None` if there is none.
    pub fn beyond(&self, limits: &[Limit]) -> Option<String> {
        first_beyond(&self.model, limits)
    }
}

/// As [`ServingGraph::beyond`], for any model that was rewritten.
pub(crate) fn first_beyond(model: &ModelProto, limits: &[Limit]) -> Option<String> {
    let graph = model.graph.as_ref()?;
    let mut elems = HashMap::new();
    in_graph(graph, limits, &mut elems)
}

fn in_graph(
    graph: &GraphProto,
    limits: &[Limit],
    elems: &mut HashMap<String, DataType>,
) -> Option<String> {
    elems.extend(source_elems(graph));
    let constants = graph
        .node
        .iter()
        .filter_map(|node| Some((node.output.first()?.as_str(), fold::constant(node)?)));
    let stored: HashMap<&str, &TensorProto> = graph
        .initializer
        .iter()
        .map(|tensor| (tensor.name(), tensor))
        .chain(constants)
        .collect();
    let producers: HashMap<&str, &NodeProto> = graph
        .node
        .iter()
        .flat_map(|node| node.output.iter().map(move |name| (name.as_str(), node)))
        .collect();

    for node in &graph.node {
        let operation = Operation {
            node,
            elems,
            stored: &stored,
            producers: &producers,
        };
        let known_domain = walk::is_standard(node) || node.domain() == "com.microsoft";
        let limit = limits.iter().find(|limit| {
            known_domain && limit.operators.contains(&node.op_type()) && (limit.applies)(&operation)
        });
        if let Some(limit) = limit {
            return Some(format!("node `{}`: {}", walk::describe(node), limit.reason));
        }
        for inner in walk::subgraphs(node) {
            if let Some(reason) = in_graph(inner, limits, &mut elems.clone()) {
                return Some(reason);
            }
        }
        let outputs = typing::output_elems(node, |name| {
            elems.get(name).copied().unwrap_or(DataType::Undefined)
        });
        elems.extend(outputs);
    }
    None
}

/// The element types of a graph's inputs and stored tensors. Halves count as float32, which they
/// become when the graph is written.
pub(super) fn source_elems(graph: &GraphProto) -> impl Iterator<Item = (String, DataType)> {
    let inputs = graph.input.iter().filter_map(|value| {
        let (elem, _) = inspect::tensor_type(value.r#type.as_ref())?;
        Some((value.name().to_owned(), elem))
    });
    let stored = graph
        .initializer
        .iter()
        .map(|stored| (stored.name().to_owned(), tensor::elem(stored)));
    inputs.chain(stored).map(|(name, elem)| {
        let elem = if tensor::is_half(elem) {
            DataType::Float
        } else {
            elem
        };
        (name, elem)
    })
}
