//! Softmax, LogSoftmax and Hardmax, which took all dimensions from `axis` on as one.

use super::{
    super::{
        super::{ModelError, onnx::NodeProto},
        walk::{self, input, int, int_attribute},
    },
    Upgrading,
};

/// Version 13: the operator works along one dimension, by default the last. Where several
/// were normalized together, they are flattened before, and the shape is restored after.
pub(super) fn last_axis(
    upgrading: &mut Upgrading,
    mut node: NodeProto,
) -> Result<NodeProto, ModelError> {
    let axis = int(&node, "axis").unwrap_or(1);
    node.attribute
        .retain(|attribute| attribute.name() != "axis");
    let (Some(input), Some(output)) = (input(&node, 0), node.output.first()) else {
        return Ok(node);
    };

    if let Some(dims) = upgrading.shapes.dims(input) {
        let rank = dims.len() as i64;
        let first = if axis < 0 { axis + rank } else { axis };
        let behind = usize::try_from(first)
            .ok()
            .and_then(|first| dims.get(first + 1..));
        if behind.is_some_and(|behind| behind.iter().all(|dim| *dim == Some(1))) {
            node.attribute.push(int_attribute("axis", axis));
            return Ok(node);
        }
    }
    if axis == -1 {
        node.attribute.push(int_attribute("axis", axis));
        return Ok(node);
    }

    let (input, output) = (input.to_owned(), output.clone());
    let [shape, flat, soft] = ["shape", "flat", "of_flat"].map(|what| upgrading.free(&node, what));
    let axis = int_attribute("axis", axis);
    upgrading
        .before
        .push(walk::node("Shape", &[&input], &shape, None));
    upgrading
        .before
        .push(walk::node("Flatten", &[&input], &flat, Some(axis)));
    upgrading
        .after
        .push(walk::node("Reshape", &[&soft, &shape], &output, None));
    node.input[0] = flat;
    node.output[0] = soft;
    node.attribute.push(int_attribute("axis", -1));
    Ok(node)
}
