//! Visits nodes together with the subgraphs in their attributes, builds nodes and renames tensors.

use std::collections::HashSet;

use super::super::onnx::{
    AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto::AttributeType,
};

/// Whether the node is this operator of the default domain.
pub(super) fn is(node: &NodeProto, op_type: &str) -> bool {
    is_standard(node) && node.op_type() == op_type
}

/// Whether the node is an operator of the default domain.
pub(super) fn is_standard(node: &NodeProto) -> bool {
    is_default_domain(node.domain())
}

/// Whether `domain` is one of the two names of the default domain.
pub(super) fn is_default_domain(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// The node for error messages: its name and operator.
pub(super) fn describe(node: &NodeProto) -> String {
    let name = match node.name() {
        "" => node.output.first().map_or("", String::as_str),
        name => name,
    };
    format!("{name} ({})", node.op_type())
}

pub(super) fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute
        .iter()
        .find(|attribute| attribute.name() == name)
}

pub(super) fn int(node: &NodeProto, name: &str) -> Option<i64> {
    attribute(node, name).map(AttributeProto::i)
}

/// The input at `index`; `None` if it is an optional one that is omitted.
pub(super) fn input(node: &NodeProto, index: usize) -> Option<&str> {
    node.input
        .get(index)
        .map(String::as_str)
        .filter(|name| !name.is_empty())
}

/// A node of the default domain, named after its output.
pub(in crate::model) fn node(
    op_type: &str,
    inputs: &[&str],
    output: &str,
    attribute: Option<AttributeProto>,
) -> NodeProto {
    NodeProto {
        op_type: Some(op_type.to_owned()),
        name: Some(output.to_owned()),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute: attribute.into_iter().collect(),
        ..Default::default()
    }
}

pub(in crate::model) fn int_attribute(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(value),
        ..Default::default()
    }
}

pub(in crate::model) fn ints_attribute(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Ints as i32),
        ints: values.to_vec(),
        ..Default::default()
    }
}

/// The graphs in the node's attributes.
pub(super) fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute
        .iter()
        .flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
}

/// Calls `visit` for each node, and for each one in subgraphs.
pub(super) fn each_node(nodes: &mut [NodeProto], visit: &mut impl FnMut(&mut NodeProto)) {
    for node in nodes {
        visit(node);
        for attribute in &mut node.attribute {
            for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                each_node(&mut graph.node, visit);
            }
        }
    }
}

/// Takes the name from each node whose name another one before it has: ONNX Runtime refuses models
/// in which two nodes have the same.
pub(super) fn drop_repeated_names(nodes: &mut [NodeProto]) {
    let mut names = HashSet::new();
    each_node(nodes, &mut |node| {
        if !node.name().is_empty() && !names.insert(node.name().to_owned()) {
            node.name = None;
        }
    });
}

/// Calls `visit` for each tensor of the graph: initializers and the values of attributes, in
/// subgraphs too.
pub(super) fn each_tensor<E>(
    graph: &GraphProto,
    visit: &mut impl FnMut(&TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    graph.initializer.iter().try_for_each(&mut *visit)?;
    for sparse in &graph.sparse_initializer {
        sparse
            .values
            .iter()
            .chain(&sparse.indices)
            .try_for_each(&mut *visit)?;
    }
    let attributes = graph.node.iter().flat_map(|node| &node.attribute);
    each_tensor_of(attributes, visit)
}

/// [`each_tensor`] for the values of attributes.
pub(super) fn each_tensor_of<'a, E>(
    attributes: impl Iterator<Item = &'a AttributeProto>,
    visit: &mut impl FnMut(&TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for attribute in attributes {
        let sparse = attribute
            .sparse_tensor
            .iter()
            .chain(&attribute.sparse_tensors);
        let sparse = sparse.flat_map(|sparse| sparse.values.iter().chain(&sparse.indices));
        let tensors = attribute.t.iter().chain(&attribute.tensors);
        tensors.chain(sparse).try_for_each(&mut *visit)?;
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            each_tensor(graph, visit)?;
        }
    }
    Ok(())
}

/// Every tensor that the node needs, including those that its subgraphs take from outside.
pub(super) fn uses(node: &NodeProto) -> Vec<&str> {
    fn collect<'a>(node: &'a NodeProto, names: &mut Vec<&'a str>) {
        names.extend(
            node.input
                .iter()
                .map(String::as_str)
                .filter(|name| !name.is_empty()),
        );
        for graph in subgraphs(node) {
            names.extend(graph.output.iter().map(|output| output.name()));
            graph.node.iter().for_each(|node| collect(node, names));
        }
    }
    let mut names = Vec::new();
    collect(node, &mut names);
    names
}

/// Every tensor that the node takes from the graph that it is in, or from one around that: its
/// inputs, and what its subgraphs use without defining it.
pub(super) fn taken(node: &NodeProto) -> Vec<&str> {
    let inputs = node.input.iter().map(String::as_str);
    let mut names: Vec<&str> = inputs.filter(|name| !name.is_empty()).collect();
    for graph in subgraphs(node) {
        let own: HashSet<&str> = own_names(graph).collect();
        let outputs = graph.output.iter().map(|output| output.name());
        let inner = graph.node.iter().flat_map(taken).chain(outputs);
        names.extend(inner.filter(|name| !own.contains(name)));
    }
    names
}

/// The tensors that the graph itself defines.
fn own_names(graph: &GraphProto) -> impl Iterator<Item = &str> {
    let sparse = graph.sparse_initializer.iter();
    let sparse = sparse.flat_map(|sparse| &sparse.values);
    let stored = graph.initializer.iter().chain(sparse);
    stored
        .map(|tensor| tensor.name())
        .chain(graph.input.iter().map(|input| input.name()))
        .chain(
            graph
                .node
                .iter()
                .flat_map(|node| &node.output)
                .map(String::as_str),
        )
}

/// Renames the tensor `from` to `to` wherever it is mentioned, in subgraphs too.
pub(super) fn rename(graph: &mut GraphProto, from: &str, to: &str) {
    let swap = |name: &mut String| {
        if name == from {
            to.clone_into(name);
        }
    };
    let swap_option = |name: &mut Option<String>| {
        if let Some(name) = name {
            swap(name);
        }
    };

    let sparse = graph
        .sparse_initializer
        .iter_mut()
        .flat_map(|sparse| &mut sparse.values);
    for tensor in graph.initializer.iter_mut().chain(sparse) {
        swap_option(&mut tensor.name);
    }
    for values in [&mut graph.input, &mut graph.output, &mut graph.value_info] {
        for value in values {
            swap_option(&mut value.name);
        }
    }
    for annotation in &mut graph.quantization_annotation {
        swap_option(&mut annotation.tensor_name);
    }
    for node in &mut graph.node {
        node.input.iter_mut().chain(&mut node.output).for_each(swap);
        for attribute in &mut node.attribute {
            for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                rename(graph, from, to);
            }
        }
    }
}

/// The names of a graph's tensors, for choosing names that are not taken.
#[derive(Default)]
pub(super) struct Names(HashSet<String>);

impl Names {
    pub(super) fn of(graph: &GraphProto) -> Self {
        let mut names = HashSet::new();
        collect_names(graph, &mut names);
        Self(names)
    }

    /// Takes note of the tensors of these nodes.
    pub(super) fn reserve_nodes(&mut self, nodes: &[NodeProto]) {
        for node in nodes {
            self.reserve(node.input.iter().chain(&node.output).map(String::as_str));
            subgraphs(node).for_each(|graph| collect_names(graph, &mut self.0));
        }
    }

    /// Takes note of these names.
    pub(super) fn reserve<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        self.0.extend(names.map(str::to_owned));
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// Reserves and returns `base`, or `base` with a number appended if that name is taken.
    pub(super) fn free(&mut self, base: &str) -> String {
        let mut name = base.to_owned();
        let mut number = 2;
        while !self.0.insert(name.clone()) {
            name = format!("{base}_{number}");
            number += 1;
        }
        name
    }
}

fn collect_names(graph: &GraphProto, names: &mut HashSet<String>) {
    names.extend(
        graph
            .initializer
            .iter()
            .map(|tensor| tensor.name().to_owned()),
    );
    names.extend(
        graph
            .input
            .iter()
            .chain(&graph.output)
            .map(|value| value.name().to_owned()),
    );
    for node in &graph.node {
        names.extend(node.input.iter().chain(&node.output).cloned());
        subgraphs(node).for_each(|graph| collect_names(graph, names));
    }
}
