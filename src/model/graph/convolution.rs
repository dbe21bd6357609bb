//! Writes linear layers as 1×1 convolutions, for engines that multiply no float32 matrices on some
//! hardware. The arithmetic is the same.

use super::{
    super::{
        onnx::{GraphProto, NodeProto},
        tensor,
    },
    LOGITS, ServingGraph, inspect, ints_attribute,
    walk::{self, Names, input, int, int_attribute, is, node},
};

/// A linear layer that can be written as a convolution.
struct Linear {
    /// The node's index.
    index: usize,
    /// Whether the weights are `[inputs, outputs]` and not `[outputs, inputs]`.
    transposes: bool,
    /// Whether the bias is one number for each output, as a convolution takes it.
    has_plain_bias: bool,
}

impl ServingGraph {
    /// The same network with linear layers, such as the last one of most classifiers, as 1×1
    /// convolutions. Products of other matrices stay.
    pub fn with_linear_layers_as_convolutions(&self) -> Self {
        let mut changed = self.clone();
        rewrite(changed.model.graph.get_or_insert_default());
        changed
    }
}

fn rewrite(graph: &mut GraphProto) {
    let layers: Vec<Linear> = (0..graph.node.len())
        .filter_map(|index| linear_layer(graph, index))
        .collect();
    if layers.is_empty() {
        return;
    }

    let mut names = Names::of(graph);
    let axes = names.free("convolution_axes");
    graph.initializer.push(tensor::int64s(&axes, &[2, 3]));
    // From the end, so that indices stay valid.
    for layer in layers.iter().rev() {
        let nodes = convolution(&graph.node[layer.index], layer, &axes, &mut names);
        graph.node.splice(layer.index..=layer.index, nodes);
    }
}

/// The nodes that compute the same as the linear layer `from`.
fn convolution(from: &NodeProto, layer: &Linear, axes: &str, names: &mut Names) -> Vec<NodeProto> {
    let output = &from.output[0];
    let mut free = |what: &str| names.free(&format!("{output}_{what}"));
    let mut nodes = Vec::new();
    let mut weights = from.input[1].clone();
    if layer.transposes {
        let transposed = free("transposed_weights");
        let perm = Some(ints_attribute("perm", &[1, 0]));
        nodes.push(node("Transpose", &[&weights], &transposed, perm));
        weights = transposed;
    }
    let [image, kernels, product] = ["image", "kernels", "product"].map(&mut free);
    nodes.push(node("Unsqueeze", &[&from.input[0], axes], &image, None));
    nodes.push(node("Unsqueeze", &[&weights, axes], &kernels, None));

    let bias = input(from, 2);
    let mut inputs = vec![image.as_str(), kernels.as_str()];
    inputs.extend(bias.filter(|_| layer.has_plain_bias));
    let mut convolution = node("Conv", &inputs, &product, None);
    // Their defaults depend on the kernels' shape, which not every engine knows when it needs them.
    for name in ["kernel_shape", "strides", "dilations"] {
        convolution.attribute.push(ints_attribute(name, &[1, 1]));
    }
    nodes.push(convolution);
    let flatten = |output: &str| {
        let axis = Some(int_attribute("axis", 1));
        node("Flatten", &[&product], output, axis)
    };
    match bias {
        Some(bias) if !layer.has_plain_bias => {
            let flat = free("flat");
            nodes.push(flatten(&flat));
            nodes.push(node("Add", &[&flat, bias], output, None));
        }
        _ => nodes.push(flatten(output)),
    }
    nodes
}

/// The linear layer at `index`, if the node is one: its input is a list of numbers for each image,
/// and its weights are stored.
fn linear_layer(graph: &GraphProto, index: usize) -> Option<Linear> {
    let node = &graph.node[index];
    let dims = inspect::weight_dims(graph, input(node, 1)?)?;
    let [rows, columns] = dims[..] else {
        return None;
    };
    if is(node, "MatMul") && is_flat(graph, node) {
        return Some(Linear {
            index,
            transposes: true,
            has_plain_bias: false,
        });
    }

    let plain = |name: &str| walk::attribute(node, name).is_none_or(|scale| scale.f() == 1.0);
    if !is(node, "Gemm")
        || int(node, "transA").unwrap_or(0) != 0
        || !plain("alpha")
        || !plain("beta")
    {
        return None;
    }
    let transposes = int(node, "transB").unwrap_or(0) == 0;
    let outputs = if transposes { columns } else { rows };
    Some(Linear {
        index,
        transposes,
        has_plain_bias: input(node, 2)
            .and_then(|bias| inspect::weight_dims(graph, bias))
            .is_some_and(|dims| dims == [outputs]),
    })
}

/// Whether the input of a MatMul is two-dimensional: it was flattened, or what is computed of it by
/// at most one addition are the logits.
fn is_flat(graph: &GraphProto, product: &NodeProto) -> bool {
    let flattened = input(product, 0)
        .and_then(|input| inspect::producer(graph, input))
        .is_some_and(|before| is(before, "Flatten") || is(before, "Gemm"));
    let output = &product.output[0];
    let adds = |node: &&NodeProto| is(node, "Add") && node.input.contains(output);
    flattened
        || output == LOGITS
        || graph
            .node
            .iter()
            .find(adds)
            .is_some_and(|sum| sum.output[0] == LOGITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Normalization,
        graph::BodyPrecision,
        onnx::ModelProto,
        testing::{
            self, BIAS, CLASSES, WEIGHT, assert_close, bytes, floats, run, tiny, tiny_images,
            tiny_logits,
        },
    };

    const IMAGENET: Normalization = Normalization::IMAGENET;

    /// Rewrites the model, and checks that it still computes the logits of [`tiny`]. Returns its
    /// operators.
    fn operators(model: &ModelProto) -> Vec<String> {
        let serving = ServingGraph::new(model.clone(), &IMAGENET.into(), None).unwrap();
        let changed = serving.with_linear_layers_as_convolutions();
        let onnx = changed.to_onnx(None, BodyPrecision::Fp32).unwrap();
        let logits = run(onnx, &tiny_images(), [2, 4, 6, 3]);
        let expected = tiny_logits(&tiny_images(), IMAGENET.mean, IMAGENET.std);
        assert_close(&logits, &expected, 1e-4);
        let nodes = changed.model.graph.unwrap().node;
        nodes.iter().map(|node| node.op_type().to_owned()).collect()
    }

    fn ends_with(operators: &[String], expected: &[&str]) -> bool {
        operators.len() >= expected.len()
            && operators[operators.len() - expected.len()..] == *expected
    }

    /// The weights of [`tiny`], one column for each class.
    fn columns() -> Vec<f32> {
        (0..3)
            .flat_map(|feature| WEIGHT.iter().skip(feature).step_by(3).copied())
            .collect()
    }

    #[test]
    fn a_gemm_becomes_a_convolution_with_its_bias() {
        let operators = operators(&tiny());
        let expected = ["Flatten", "Unsqueeze", "Unsqueeze", "Conv", "Flatten"];
        assert!(ends_with(&operators, &expected), "{operators:?}");
    }

    #[test]
    fn a_gemm_with_columns_of_weights_and_a_bias_of_two_dimensions_too() {
        let mut model = tiny();
        let graph = testing::graph(&mut model);
        graph.initializer[0] = floats("fc.weight", &[3, CLASSES as i64], &columns());
        graph.initializer[1] = floats("fc.bias", &[1, CLASSES as i64], &BIAS);
        graph.node.last_mut().unwrap().attribute.clear();
        let operators = operators(&model);
        let expected = [
            "Transpose",
            "Unsqueeze",
            "Unsqueeze",
            "Conv",
            "Flatten",
            "Add",
        ];
        assert!(ends_with(&operators, &expected), "{operators:?}");
    }

    #[test]
    fn a_matmul_of_features_too() {
        let mut model = tiny();
        let graph = testing::graph(&mut model);
        graph.initializer[0] = floats("fc.weight", &[3, CLASSES as i64], &columns());
        graph.node.pop();
        graph
            .node
            .push(testing::node("MatMul", &["flat", "fc.weight"], "product"));
        graph
            .node
            .push(testing::node("Add", &["product", "fc.bias"], "scores"));
        let operators = operators(&model);
        let expected = [
            "Transpose",
            "Unsqueeze",
            "Unsqueeze",
            "Conv",
            "Flatten",
            "Add",
        ];
        assert!(ends_with(&operators, &expected), "{operators:?}");
    }

    #[test]
    fn a_scaled_gemm_stays() {
        let mut model = tiny();
        let gemm = testing::graph(&mut model).node.last_mut().unwrap();
        let mut alpha = int_attribute("alpha", 0);
        alpha.r#type = Some(1);
        alpha.i = None;
        alpha.f = Some(2.0);
        gemm.attribute.push(alpha);
        let serving = ServingGraph::new(model, &IMAGENET.into(), None).unwrap();
        let changed = serving.with_linear_layers_as_convolutions();
        assert_eq!(bytes(&changed.model), bytes(&serving.model));
    }
}
