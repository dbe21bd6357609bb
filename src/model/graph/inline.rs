//! Replaces the calls of a model's local functions by the functions' nodes.
//!
//! Not every engine knows functions. What the calls come to is counted while they are replaced, so
//! that functions that call each other can't fill the memory.

use std::collections::HashMap;

use prost::Message as _;

use super::{
    super::{
        ModelError,
        onnx::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto},
    },
    bounds::MOST_NODES,
    walk::{self, Names, is_default_domain, node},
};

/// The most functions that are open within each other.
const MOST_OPEN: usize = 32;
/// The most attributes, tensors and declarations that all calls come to.
const MOST_PARTS: usize = 1_000_000;
/// The most bytes that all calls come to, without the weights, which are shared.
const MOST_BYTES: usize = 64 << 20;

/// Replaces all calls of the model's functions, within subgraphs too, and removes the functions.
///
/// # Errors
/// Functions that call themselves, calls that don't fit their function, or more nodes than are
/// read.
pub(super) fn inline(model: &mut ModelProto) -> Result<(), ModelError> {
    let functions = std::mem::take(&mut model.functions);
    let Some(graph) = model.graph.as_mut().filter(|_| !functions.is_empty()) else {
        return Ok(());
    };
    let mut inlining = Inlining {
        functions: &functions,
        known: (0..functions.len())
            .map(|index| (identity(&functions[index]), index))
            .collect(),
        names: Names::of(graph),
        open: Vec::new(),
        calls: 0,
        nodes: 0,
        parts: 0,
        bytes: 0,
    };
    graph.node = inlining.expanded(std::mem::take(&mut graph.node))?;

    for opset in functions.iter().flat_map(|function| &function.opset_import) {
        let mut known = model.opset_import.iter();
        let is_known = is_default_domain(opset.domain())
            || known.any(|known| known.domain() == opset.domain());
        if !is_known {
            model.opset_import.push(opset.clone());
        }
    }
    Ok(())
}

/// The domain, name and overload that a call selects a function by.
type Identity<'a> = (&'a str, &'a str, &'a str);

fn identity(function: &FunctionProto) -> Identity<'_> {
    let domain = function.domain();
    (domain_name(domain), function.name(), function.overload())
}

fn called(node: &NodeProto) -> Identity<'_> {
    (domain_name(node.domain()), node.op_type(), node.overload())
}

fn domain_name(domain: &str) -> &str {
    if is_default_domain(domain) {
        ""
    } else {
        domain
    }
}

struct Inlining<'a> {
    functions: &'a [FunctionProto],
    /// The index of each function.
    known: HashMap<Identity<'a>, usize>,
    names: Names,
    /// The functions whose nodes are being replaced, the outermost first.
    open: Vec<usize>,
    /// The number of calls so far.
    calls: usize,
    /// What they have come to.
    nodes: usize,
    parts: usize,
    bytes: usize,
}

impl Inlining<'_> {
    /// The nodes with the calls among them replaced.
    fn expanded(&mut self, nodes: Vec<NodeProto>) -> Result<Vec<NodeProto>, ModelError> {
        let mut expanded = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            for attribute in &mut node.attribute {
                for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    graph.node = self.expanded(std::mem::take(&mut graph.node))?;
                }
            }
            let Some(&index) = self.known.get(&called(&node)) else {
                expanded.push(node);
                continue;
            };
            if self.open.contains(&index) {
                return refuse(&node, "is a function that calls itself".into());
            }
            if self.open.len() >= MOST_OPEN {
                let reason = format!(
                    "is a function within {MOST_OPEN} others, and no more are open within each other"
                );
                return refuse(&node, reason);
            }
            let functions = self.functions;
            let body = self.body(&node, &functions[index])?;
            self.open.push(index);
            expanded.extend(self.expanded(body)?);
            self.open.pop();
        }
        Ok(expanded)
    }

    /// The nodes of the function, with the tensors and attributes of this call of it.
    fn body(
        &mut self,
        call: &NodeProto,
        function: &FunctionProto,
    ) -> Result<Vec<NodeProto>, ModelError> {
        let (inputs, outputs) = (function.input.len(), function.output.len());
        if call.input.len() > inputs || call.output.len() > outputs {
            let reason = format!(
                "has {} inputs and {} outputs, but the function takes {inputs} and gives {outputs}",
                call.input.len(),
                call.output.len()
            );
            return refuse(call, reason);
        }
        self.count(call)?;

        let prefix = match (call.name(), call.output.first()) {
            ("", Some(output)) => output,
            (name, _) => name,
        };
        self.calls += 1;
        let mut scope = Scope {
            renamed: HashMap::new(),
            prefix: format!("{prefix}/{}", self.calls),
            names: &mut self.names,
        };
        for (slot, name) in function.input.iter().enumerate() {
            let given = call.input.get(slot).cloned().unwrap_or_default();
            scope.renamed.insert(name.clone(), given);
        }
        let mut nodes = Vec::with_capacity(function.node.len());
        for (slot, name) in function.output.iter().enumerate() {
            let wanted = call.output.get(slot).filter(|name| !name.is_empty());
            match (wanted, scope.renamed.get(name)) {
                (Some(wanted), None) => {
                    scope.renamed.insert(name.clone(), wanted.clone());
                }
                // What a function gives may be what it takes, or the same twice.
                (Some(wanted), Some(given)) => {
                    nodes.push(node("Identity", &[given], wanted, None));
                }
                (None, _) => {}
            }
        }

        for inner in &function.node {
            self.nodes += 1;
            if self.nodes > MOST_NODES {
                return Err(too_many("nodes", MOST_NODES));
            }
            let mut inner = inner.clone();
            scope.rename(&mut inner);
            nodes.push(inner);
        }
        let mut filled = Vec::with_capacity(nodes.len());
        for mut inner in nodes {
            self.attributes(&mut inner, call, function)?;
            self.count(&inner)?;
            filled.push(inner);
        }
        Ok(filled)
    }

    /// Replaces attributes that refer to one of the call by that, or by the function's default.
    fn attributes(
        &mut self,
        node: &mut NodeProto,
        call: &NodeProto,
        function: &FunctionProto,
    ) -> Result<(), ModelError> {
        let mut attributes = Vec::with_capacity(node.attribute.len());
        for mut attribute in std::mem::take(&mut node.attribute) {
            if attribute.ref_attr_name().is_empty() {
                for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    for inner in &mut graph.node {
                        self.attributes(inner, call, function)?;
                    }
                }
                attributes.push(attribute);
                continue;
            }
            let wanted = attribute.ref_attr_name();
            let given = walk::attribute(call, wanted);
            let mut defaults = function.attribute_proto.iter();
            let value = given.or_else(|| defaults.find(|default| default.name() == wanted));
            if let Some(value) = value {
                self.bytes += value.encoded_len().saturating_sub(attribute_weights(value));
                if self.bytes > MOST_BYTES {
                    return Err(too_many("bytes in calls of functions", MOST_BYTES));
                }
                attributes.push(AttributeProto {
                    name: attribute.name.take(),
                    ..value.clone()
                });
            }
        }
        node.attribute = attributes;
        Ok(())
    }

    /// Counts a node with all that it holds.
    fn count(&mut self, node: &NodeProto) -> Result<(), ModelError> {
        let (nodes, parts) = size(node);
        self.nodes += nodes;
        self.parts += parts;
        self.bytes += node.encoded_len().saturating_sub(weights(node));
        for (found, limit, what) in [
            (self.nodes, MOST_NODES, "nodes"),
            (self.parts, MOST_PARTS, "parts in calls of functions"),
            (self.bytes, MOST_BYTES, "bytes in calls of functions"),
        ] {
            if found > limit {
                return Err(too_many(what, limit));
            }
        }
        Ok(())
    }
}

fn refuse<T>(node: &NodeProto, reason: String) -> Result<T, ModelError> {
    Err(ModelError::Node {
        node: walk::describe(node),
        reason,
    })
}

fn too_many(what: &str, limit: usize) -> ModelError {
    ModelError::Bounds(format!(
        "has more than {limit} {what}, the most that are read"
    ))
}

/// How many nodes there are within a node, and how many attributes, tensors and declarations.
fn size(node: &NodeProto) -> (usize, usize) {
    let mut nodes = 0;
    let mut parts = node.input.len() + node.output.len() + node.attribute.len();
    for attribute in &node.attribute {
        parts += attribute.tensors.len() + attribute.sparse_tensors.len();
        parts += attribute.type_protos.len() + attribute.strings.len();
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            parts += graph.initializer.len() + graph.sparse_initializer.len();
            parts += graph.input.len() + graph.output.len() + graph.value_info.len();
            for node in &graph.node {
                let (inner, inner_parts) = size(node);
                nodes += 1 + inner;
                parts += inner_parts;
            }
        }
    }
    (nodes, parts)
}

/// The bytes of all tensors within a node that clones share.
fn weights(node: &NodeProto) -> usize {
    node.attribute.iter().map(attribute_weights).sum()
}

fn attribute_weights(attribute: &AttributeProto) -> usize {
    let raw = |tensor: &TensorProto| tensor.raw_data().len();
    let own: usize = attribute.t.iter().chain(&attribute.tensors).map(raw).sum();
    let graphs = attribute.g.iter().chain(&attribute.graphs);
    let within = |graph: &GraphProto| -> usize {
        let stored: usize = graph.initializer.iter().map(raw).sum();
        stored + graph.node.iter().map(weights).sum::<usize>()
    };
    own + graphs.map(within).sum::<usize>()
}

/// The names of tensors during one call.
struct Scope<'a> {
    /// By their names in the function. An input that the call omits has an empty name.
    renamed: HashMap<String, String>,
    prefix: String,
    names: &'a mut Names,
}

impl Scope<'_> {
    fn rename(&mut self, node: &mut NodeProto) {
        if !node.name().is_empty() {
            node.name = Some(format!("{}/{}", self.prefix, node.name()));
        }
        for name in node.input.iter_mut().chain(&mut node.output) {
            self.swap(name);
        }
        for attribute in &mut node.attribute {
            for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                self.rename_graph(graph);
            }
        }
    }

    fn rename_graph(&mut self, graph: &mut GraphProto) {
        let sparse = graph.sparse_initializer.iter_mut();
        let sparse = sparse.flat_map(|sparse| &mut sparse.values);
        for tensor in graph.initializer.iter_mut().chain(sparse) {
            self.swap(tensor.name.get_or_insert_default());
        }
        for values in [&mut graph.input, &mut graph.output, &mut graph.value_info] {
            for value in values {
                self.swap(value.name.get_or_insert_default());
            }
        }
        graph.quantization_annotation.clear();
        for node in &mut graph.node {
            self.rename(node);
        }
    }

    fn swap(&mut self, name: &mut String) {
        if name.is_empty() {
            return;
        }
        if let Some(renamed) = self.renamed.get(name) {
            renamed.clone_into(name);
            return;
        }
        let free = self.names.free(&format!("{}/{name}", self.prefix));
        self.renamed
            .insert(std::mem::replace(name, free.clone()), free);
    }
}
