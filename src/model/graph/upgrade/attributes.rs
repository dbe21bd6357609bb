//! Operators whose attributes became inputs.

use super::{
    super::{
        super::{
            ModelError,
            onnx::{AttributeProto, NodeProto, tensor_proto::DataType},
        },
        walk::{self, attribute, int, int_attribute, ints_attribute},
    },
    Upgrading, set_input, take_integers,
};

type Upgraded = Result<NodeProto, ModelError>;

/// ReduceSum, Squeeze and Unsqueeze 13, the other reductions 18: `axes` became the second input.
pub(super) fn axes(upgrading: &mut Upgrading, mut node: NodeProto) -> Upgraded {
    if let Some(axes) = take_integers(&mut node, "axes") {
        let name = upgrading.integers(&node, "axes", &axes);
        set_input(&mut node, 1, name);
    }
    Ok(node)
}

/// Split 13: `split` became the second input.
pub(super) fn split(upgrading: &mut Upgrading, mut node: NodeProto) -> Upgraded {
    if let Some(sizes) = take_integers(&mut node, "split") {
        let name = upgrading.integers(&node, "split", &sizes);
        set_input(&mut node, 1, name);
    }
    Ok(node)
}

/// Slice 10: `starts`, `ends` and `axes` became inputs. Axes that were left out are written, since
/// not every engine takes all of them for the first ones.
pub(super) fn slice(upgrading: &mut Upgrading, mut node: NodeProto) -> Upgraded {
    if attribute(&node, "axes").is_none()
        && let Some(starts) = attribute(&node, "starts")
    {
        let axes: Vec<i64> = (0..starts.ints.len() as i64).collect();
        node.attribute.push(ints_attribute("axes", &axes));
    }
    for (slot, what) in [(1, "starts"), (2, "ends"), (3, "axes")] {
        if let Some(values) = take_integers(&mut node, what) {
            let name = upgrading.integers(&node, what, &values);
            set_input(&mut node, slot, name);
        }
    }
    Ok(node)
}

/// TopK 10: `k` became the second input.
pub(super) fn top_k(upgrading: &mut Upgrading, mut node: NodeProto) -> Upgraded {
    if let Some(k) = int(&node, "k") {
        let name = upgrading.integers(&node, "k", &[k]);
        set_input(&mut node, 1, name);
    }
    node.attribute.retain(|attribute| attribute.name() != "k");
    Ok(node)
}

/// Clip 11: `min` and `max` became inputs. Their defaults were the smallest and the largest float,
/// as absent inputs mean.
pub(super) fn clip(upgrading: &mut Upgrading, mut node: NodeProto) -> Upgraded {
    for (slot, what) in [(1, "min"), (2, "max")] {
        let bound = attribute(&node, what).map(AttributeProto::f);
        node.attribute.retain(|attribute| attribute.name() != what);
        if let Some(bound) = bound.filter(|bound| bound.abs() < f32::MAX) {
            let name = upgrading.number(&node, what, bound);
            set_input(&mut node, slot, name);
        }
    }
    Ok(node)
}

/// Pad 11: `pads` and `value` became inputs.
pub(super) fn pad(upgrading: &mut Upgrading, mut node: NodeProto) -> Upgraded {
    let value = attribute(&node, "value").map_or(0.0, AttributeProto::f);
    node.attribute
        .retain(|attribute| attribute.name() != "value");
    if let Some(pads) = take_integers(&mut node, "pads") {
        let name = upgrading.integers(&node, "pads", &pads);
        set_input(&mut node, 1, name);
    }
    if value != 0.0 {
        let name = upgrading.number(&node, "value", value);
        set_input(&mut node, 2, name);
    }
    Ok(node)
}

/// Dropout 10: the mask became boolean.
pub(super) fn dropout_mask(upgrading: &mut Upgrading, mut node: NodeProto) -> Upgraded {
    let Some(mask) = used_mask(upgrading, &mut node) else {
        return Ok(node);
    };
    let boolean = upgrading.free(&node, "mask");
    let elem = walk::input(&node, 0).map_or(DataType::Float, |name| upgrading.shapes.elem(name));
    let elem = match elem {
        DataType::Undefined => DataType::Float,
        elem => elem,
    };
    node.output[1].clone_from(&boolean);
    let to = int_attribute("to", elem as i64);
    upgrading
        .after
        .push(walk::node("Cast", &[&boolean], &mask, Some(to)));
    Ok(node)
}

/// Dropout 12: `ratio` became an input. It is of use in training only.
pub(super) fn dropout(upgrading: &mut Upgrading, mut node: NodeProto) -> Upgraded {
    node.attribute.clear();
    // The mask may have got another name in the step before.
    let renamed = !upgrading.after.is_empty();
    if !renamed {
        used_mask(upgrading, &mut node);
    }
    Ok(node)
}

/// The name of a Dropout's mask, if anything uses it. Otherwise the output is removed.
fn used_mask(upgrading: &Upgrading, node: &mut NodeProto) -> Option<String> {
    let mask = node
        .output
        .get(1)
        .filter(|mask| upgrading.is_used(mask))
        .cloned();
    if mask.is_none() {
        node.output.truncate(1);
    }
    mask
}

/// Scatter 11: the same under the name ScatterElements.
pub(super) fn scatter(_: &mut Upgrading, mut node: NodeProto) -> Upgraded {
    node.op_type = Some("ScatterElements".into());
    Ok(node)
}
