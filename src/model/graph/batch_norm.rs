//! Folds BatchNorm into the convolution before it: at inference it only scales and shifts each
//! channel.

use std::collections::HashMap;

use super::{
    super::{
        ModelError,
        onnx::{GraphProto, NodeProto},
        tensor,
    },
    fold, inspect,
    walk::{self, Names, input, is},
};

/// The default of the ONNX attribute `epsilon`.
const EPSILON: f32 = 1e-5;

/// Folds every BatchNorm that is the only consumer of a convolution with stored weights. Others are
/// not changed.
pub(super) fn fold(graph: &mut GraphProto) -> Result<(), ModelError> {
    let mut names = Names::of(graph);
    let mut folded = Vec::new();
    for index in 0..graph.node.len() {
        let Some(FoldedConv {
            conv,
            weights,
            bias,
        }) = fold_one(graph, index)?
        else {
            continue;
        };
        let norm = &graph.node[index];
        let name = walk::describe(norm);
        let output = norm.output[0].clone();
        let dims = inspect::weight_dims(graph, &graph.node[conv].input[1]).unwrap_or_default();
        let [weights_name, bias_name] =
            ["weight", "bias"].map(|what| names.free(&format!("{name}.{what}")));
        graph
            .initializer
            .push(tensor::floats(&bias_name, &[bias.len() as i64], &bias));
        graph
            .initializer
            .push(tensor::floats(&weights_name, &dims, &weights));
        let conv = &mut graph.node[conv];
        conv.input.truncate(1);
        conv.input.extend([weights_name, bias_name]);
        conv.output[0] = output;
        folded.push(index);
    }
    fold::retain_indices(&mut graph.node, |index| !folded.contains(&index));
    Ok(())
}

/// A convolution with the BatchNorm after it folded in.
struct FoldedConv {
    /// The convolution's index in the graph.
    conv: usize,
    weights: Vec<f32>,
    bias: Vec<f32>,
}

/// Folds the BatchNorm at `index` into the convolution before it; `None` if that is not possible.
fn fold_one(graph: &GraphProto, index: usize) -> Result<Option<FoldedConv>, ModelError> {
    let norm = &graph.node[index];
    // In training mode the statistics are computed from each batch.
    if !is(norm, "BatchNormalization") || walk::int(norm, "training_mode") == Some(1) {
        return Ok(None);
    }
    let Some(conv) = graph.node[..index]
        .iter()
        .position(|node| is(node, "Conv") && input(norm, 0) == Some(&node.output[0]))
    else {
        return Ok(None);
    };
    if count_uses(graph, &graph.node[conv].output[0]) != 1 {
        return Ok(None);
    }

    let stored: HashMap<&str, _> = graph
        .initializer
        .iter()
        .map(|tensor| (tensor.name(), tensor))
        .collect();
    let values = |node: &NodeProto, slot: usize| {
        input(node, slot)
            .and_then(|name| stored.get(name))
            .map(|stored| tensor::to_floats(stored))
            .transpose()
    };

    let conv_node = &graph.node[conv];
    let (Some(mut weights), [Some(scale), Some(shift), Some(mean), Some(variance)]) = (
        values(conv_node, 1)?,
        [
            values(norm, 1)?,
            values(norm, 2)?,
            values(norm, 3)?,
            values(norm, 4)?,
        ],
    ) else {
        return Ok(None);
    };
    let bias = match input(conv_node, 2) {
        None => vec![0.0; scale.len()],
        Some(_) => match values(conv_node, 2)? {
            Some(bias) => bias,
            None => return Ok(None),
        },
    };

    let channels = scale.len();
    if channels == 0
        || [&shift, &mean, &variance, &bias]
            .iter()
            .any(|values| values.len() != channels)
        || weights.is_empty()
        || weights.len() % channels != 0
    {
        return Ok(None);
    }

    let epsilon = walk::attribute(norm, "epsilon").map_or(EPSILON, |attribute| attribute.f());
    let mut new_bias = Vec::with_capacity(channels);
    let filter = weights.len() / channels;
    for (channel, filter) in weights.chunks_exact_mut(filter).enumerate() {
        let factor = scale[channel] / (variance[channel] + epsilon).sqrt();
        filter.iter_mut().for_each(|weight| *weight *= factor);
        new_bias.push((bias[channel] - mean[channel]) * factor + shift[channel]);
    }

    Ok(Some(FoldedConv {
        conv,
        weights,
        bias: new_bias,
    }))
}

/// How often the tensor `name` is an input of a node or an output of the graph.
fn count_uses(graph: &GraphProto, name: &str) -> usize {
    let outputs = graph
        .output
        .iter()
        .filter(|output| output.name() == name)
        .count();
    graph
        .node
        .iter()
        .flat_map(walk::uses)
        .filter(|used| *used == name)
        .count()
        + outputs
}
