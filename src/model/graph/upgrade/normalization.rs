//! BatchNormalization.

use super::{
    super::{
        super::{ModelError, onnx::NodeProto, tensor},
        walk::{self, attribute, input, int},
    },
    Upgrading,
};

/// The default of `epsilon`.
const EPSILON: f32 = 1e-5;

/// BatchNormalization 9: `spatial` went. Where it was 0, each place of the image has a mean and a
/// deviation of its own, which takes arithmetic.
pub(super) fn spatial(
    upgrading: &mut Upgrading,
    mut node: NodeProto,
) -> Result<NodeProto, ModelError> {
    let spatial = int(&node, "spatial").unwrap_or(1);
    node.attribute
        .retain(|attribute| attribute.name() != "spatial");
    let outputs = node.output.len();
    if (1..outputs).any(|index| upgrading.is_used(&node.output[index])) {
        return Err(upgrading.refuse(&node, "gives statistics, as in training"));
    }
    node.output.truncate(1);
    if spatial != 0 {
        return Ok(node);
    }

    let inputs: Option<Vec<&str>> = (0..5).map(|slot| input(&node, slot)).collect();
    let (Some(inputs), Some(output)) = (inputs, node.output.first()) else {
        return Err(upgrading.refuse(&node, "lacks an input or its output"));
    };
    let [image, scale, bias, mean, variance] = [0, 1, 2, 3, 4].map(|slot| inputs[slot].to_owned());
    let output = output.clone();
    let epsilon = attribute(&node, "epsilon").map_or(EPSILON, |epsilon| epsilon.f());
    let epsilon = upgrading.constant(&node, "epsilon", tensor::floats("", &[], &[epsilon]));
    let names = ["centred", "sum", "deviation", "normal", "scaled"];
    let [centred, sum, deviation, normal, scaled] = names.map(|what| upgrading.free(&node, what));
    upgrading.before.extend([
        walk::node("Sub", &[&image, &mean], &centred, None),
        walk::node("Add", &[&variance, &epsilon], &sum, None),
        walk::node("Sqrt", &[&sum], &deviation, None),
        walk::node("Div", &[&centred, &deviation], &normal, None),
        walk::node("Mul", &[&normal, &scale], &scaled, None),
    ]);
    Ok(walk::node("Add", &[&scaled, &bias], &output, None))
}

/// BatchNormalization 14: two of the outputs went, which training uses.
pub(super) fn running_statistics(
    upgrading: &mut Upgrading,
    mut node: NodeProto,
) -> Result<NodeProto, ModelError> {
    let outputs = node.output.len();
    if (1..outputs).any(|index| upgrading.is_used(&node.output[index])) {
        return Err(upgrading.refuse(&node, "gives statistics, as in training"));
    }
    node.output.truncate(1);
    Ok(node)
}
