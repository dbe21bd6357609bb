//! Upsample, and Resize, which took its place.

use super::{
    super::{
        super::{
            ModelError,
            onnx::{AttributeProto, NodeProto, attribute_proto::AttributeType},
            tensor,
        },
        walk::{attribute, input},
    },
    Upgrading, set_input,
};

fn text_attribute(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::String as i32),
        s: Some(value.to_owned().into()),
        ..Default::default()
    }
}

fn text<'a>(node: &'a NodeProto, name: &str) -> &'a [u8] {
    attribute(node, name).map_or(&[], |attribute| attribute.s())
}

/// Upsample 9: `scales` became the second input.
pub(super) fn scales(
    upgrading: &mut Upgrading,
    mut node: NodeProto,
) -> Result<NodeProto, ModelError> {
    let index = node
        .attribute
        .iter()
        .position(|found| found.name() == "scales");
    if let Some(index) = index {
        let scales = node.attribute.remove(index).floats;
        let value = tensor::floats("", &[scales.len() as i64], &scales);
        let name = upgrading.constant(&node, "scales", value);
        set_input(&mut node, 1, name);
    }
    Ok(node)
}

/// Upsample 10: the same under the name Resize.
pub(super) fn upsample(_: &mut Upgrading, mut node: NodeProto) -> Result<NodeProto, ModelError> {
    node.op_type = Some("Resize".into());
    Ok(node)
}

/// Resize 11: `roi` became the second input, and `coordinate_transformation_mode` was added. Version
/// 10 always used what is now `asymmetric`; its mode `nearest` rounded down where the image grows and
/// up where it shrinks.
pub(super) fn resize(
    upgrading: &mut Upgrading,
    mut node: NodeProto,
) -> Result<NodeProto, ModelError> {
    let Some(scales) = input(&node, 1).map(str::to_owned) else {
        return Err(upgrading.refuse(&node, "has no scales"));
    };
    let linear = matches!(text(&node, "mode"), b"linear" | b"bilinear");
    node.attribute.clear();
    node.attribute.extend([
        text_attribute("mode", if linear { "linear" } else { "nearest" }),
        text_attribute("coordinate_transformation_mode", "asymmetric"),
    ]);
    node.input.truncate(1);
    set_input(&mut node, 2, scales.clone());
    if linear {
        return Ok(node);
    }

    let values = stored_floats(upgrading, &scales).unwrap_or_default();
    let (grows, shrinks) = (
        values.iter().any(|&scale| scale > 1.0),
        values.iter().any(|&scale| scale < 1.0),
    );
    let nearest = |mode| text_attribute("nearest_mode", mode);
    if !(grows && shrinks) {
        node.attribute
            .push(nearest(if shrinks { "ceil" } else { "floor" }));
        return Ok(node);
    }

    // Some dimensions grow and others shrink: one after the other.
    let parts: [Vec<f32>; 2] = [
        values.iter().map(|scale| scale.max(1.0)).collect(),
        values.iter().map(|scale| scale.min(1.0)).collect(),
    ];
    let larger = upgrading.free(&node, "larger");
    let [up, down] = parts.map(|scales| {
        let value = tensor::floats("", &[scales.len() as i64], &scales);
        upgrading.constant(&node, "scales", value)
    });
    let mut first = NodeProto {
        name: Some(larger.clone()),
        output: vec![larger.clone()],
        ..node.clone()
    };
    set_input(&mut first, 2, up);
    first.attribute.push(nearest("floor"));
    upgrading.before.push(first);
    node.input[0] = larger;
    set_input(&mut node, 2, down);
    node.attribute.push(nearest("ceil"));
    Ok(node)
}

/// The scales where they are stored, or a node before has just stored them.
fn stored_floats(upgrading: &Upgrading, name: &str) -> Option<Vec<f32>> {
    let mut made = upgrading.before.iter();
    let made = made.find(|node| node.output.first().is_some_and(|output| output == name));
    let made = made.and_then(super::fold::constant);
    tensor::to_floats(made.or_else(|| upgrading.stored.get(name))?).ok()
}

/// Resize 13: `tf_half_pixel_for_nn` went, which is `half_pixel` with another rounding.
pub(super) fn half_pixels(
    upgrading: &mut Upgrading,
    mut node: NodeProto,
) -> Result<NodeProto, ModelError> {
    if text(&node, "coordinate_transformation_mode") != b"tf_half_pixel_for_nn" {
        return Ok(node);
    }
    if text(&node, "nearest_mode") != b"floor" {
        return Err(upgrading.refuse(&node, "uses `tf_half_pixel_for_nn` with a `nearest_mode` other than `floor`, which is not supported"));
    }
    let changed = ["coordinate_transformation_mode", "nearest_mode"];
    node.attribute
        .retain(|attribute| !changed.contains(&attribute.name()));
    node.attribute.extend([
        text_attribute("coordinate_transformation_mode", "half_pixel"),
        text_attribute("nearest_mode", "round_prefer_ceil"),
    ]);
    Ok(node)
}
