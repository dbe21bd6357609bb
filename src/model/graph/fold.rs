//! Gives the whole network one floating-point type: widens 16-bit floats to float32 and folds casts
//! of stored weights.

use std::collections::{HashMap, HashSet};

use super::{
    super::{
        ModelError,
        onnx::{
            AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto,
            tensor_proto::DataType, type_proto,
        },
        tensor,
    },
    walk::{self, attribute, each_node, int, is, uses},
};

/// Changes every 16-bit floating-point type in the model to float32.
///
/// Initializers of the main graph keep their bytes: from now on a 16-bit initializer stands for a
/// float32 one, and it is widened when the graph is written. So a model takes no more memory than
/// its file.
pub(super) fn widen(model: &mut ModelProto) -> Result<(), ModelError> {
    for function in &mut model.functions {
        widen_nodes(&mut function.node)?;
        function
            .value_info
            .iter_mut()
            .flat_map(|value| &mut value.r#type)
            .for_each(widen_type);
    }
    let Some(graph) = &mut model.graph else {
        return Ok(());
    };
    graph
        .initializer
        .iter_mut()
        .try_for_each(tensor::make_raw)?;
    widen_nodes(&mut graph.node)?;
    widen_values(graph);
    Ok(())
}

fn widen_nodes(nodes: &mut [NodeProto]) -> Result<(), ModelError> {
    for node in nodes {
        let standard = walk::is_standard(node);
        for attribute in &mut node.attribute {
            if standard
                && matches!(attribute.name(), "to" | "dtype" | "stash_type")
                && is_half(attribute.i())
            {
                attribute.i = Some(DataType::Float as i64);
            }
            widen_attribute(attribute)?;
        }
    }
    Ok(())
}

fn widen_attribute(attribute: &mut AttributeProto) -> Result<(), ModelError> {
    for value in attribute.t.iter_mut().chain(&mut attribute.tensors) {
        if tensor::is_half(tensor::elem(value)) {
            *value = tensor::converted(value, DataType::Float, false)?;
        }
    }
    attribute.tp.iter_mut().for_each(widen_type);
    for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
        for value in &mut graph.initializer {
            if tensor::is_half(tensor::elem(value)) {
                *value = tensor::converted(value, DataType::Float, false)?;
            }
        }
        widen_nodes(&mut graph.node)?;
        widen_values(graph);
    }
    Ok(())
}

fn widen_values(graph: &mut GraphProto) {
    for values in [&mut graph.input, &mut graph.output, &mut graph.value_info] {
        values
            .iter_mut()
            .flat_map(|value| &mut value.r#type)
            .for_each(widen_type);
    }
}

fn widen_type(value: &mut TypeProto) {
    if let Some(type_proto::Value::TensorType(tensor)) = &mut value.value
        && is_half(tensor.elem_type().into())
    {
        tensor.elem_type = Some(DataType::Float as i32);
    }
}

fn is_half(elem: i64) -> bool {
    elem == DataType::Float16 as i64 || elem == DataType::Bfloat16 as i64
}

/// Replaces `Cast(initializer)` and `Cast(Constant)` to float32 by an initializer with the name of
/// the cast's output.
pub(super) fn casts(graph: &mut GraphProto) -> Result<(), ModelError> {
    let stored: HashMap<String, usize> =
        index_by_name(graph.initializer.iter().map(|tensor| tensor.name()));
    let constants: HashMap<String, usize> =
        index_by_name(graph.node.iter().map(|node| match constant(node) {
            Some(_) => node.output[0].as_str(),
            None => "",
        }));
    let outputs: HashSet<String> = graph
        .output
        .iter()
        .map(|output| output.name().to_owned())
        .collect();

    let mut sources = HashSet::new();
    let mut folded = HashSet::new();
    for index in 0..graph.node.len() {
        let node = &graph.node[index];
        let ([source], [name]) = (&node.input[..], &node.output[..]) else {
            continue;
        };
        if !is(node, "Cast")
            || int(node, "to") != Some(DataType::Float as i64)
            || outputs.contains(name)
        {
            continue;
        }

        let value = match (stored.get(source), constants.get(source)) {
            (Some(&at), _) => graph.initializer[at].clone(),
            (None, Some(&at)) => constant(&graph.node[at]).cloned().unwrap_or_default(),
            (None, None) => continue,
        };
        let mut value = match tensor::elem(&value) {
            DataType::Double => tensor::converted(&value, DataType::Float, true)?,
            DataType::Float | DataType::Float16 | DataType::Bfloat16 => value,
            _ => continue,
        };
        tensor::make_raw(&mut value)?;

        value.name = Some(name.clone());
        sources.insert(source.clone());
        folded.insert(index);
        graph.initializer.push(value);
    }

    retain_indices(&mut graph.node, |index| !folded.contains(&index));
    let used: HashSet<&str> = graph.node.iter().flat_map(uses).collect();
    sources.retain(|name| !used.contains(name.as_str()) && !outputs.contains(name));
    graph
        .initializer
        .retain(|tensor| !sources.contains(tensor.name()));
    graph
        .node
        .retain(|node| constant(node).is_none() || !sources.contains(&node.output[0]));
    graph
        .value_info
        .retain(|value| !sources.contains(value.name()));
    Ok(())
}

/// The tensor of a `Constant` node.
pub(super) fn constant(node: &NodeProto) -> Option<&TensorProto> {
    if !is(node, "Constant") || node.output.len() != 1 {
        return None;
    }
    attribute(node, "value")?.t.as_ref()
}

/// Keeps the items at the indices for which `keep` returns true.
pub(super) fn retain_indices<T>(items: &mut Vec<T>, keep: impl Fn(usize) -> bool) {
    let mut index = 0;
    items.retain(|_| {
        index += 1;
        keep(index - 1)
    });
}

/// The index of each name that is not empty.
fn index_by_name<'a>(names: impl Iterator<Item = &'a str>) -> HashMap<String, usize> {
    names
        .enumerate()
        .filter(|(_, name)| !name.is_empty())
        .map(|(index, name)| (name.to_owned(), index))
        .collect()
}

/// Rewrites the floating-point values of `Constant` nodes as tensors, so that they have only one
/// representation.
pub(super) fn constants_as_tensors(graph: &mut GraphProto) {
    each_node(&mut graph.node, &mut |node| {
        if !is(node, "Constant") {
            return;
        }
        for attribute in &mut node.attribute {
            let (dims, values) = match attribute.name() {
                "value_float" => (vec![], vec![attribute.f()]),
                "value_floats" => (
                    vec![attribute.floats.len() as i64],
                    std::mem::take(&mut attribute.floats),
                ),
                _ => continue,
            };
            *attribute = super::tensor_attribute("value", tensor::floats("", &dims, &values));
        }
    });
}
