//! Changes after opset 13, and versions that can't be upgraded.

use super::{
    super::{
        super::{
            ModelError,
            onnx::{AttributeProto, NodeProto, attribute_proto::AttributeType},
        },
        walk::{attribute, input, int_attribute},
    },
    Upgrading,
};

type Upgraded = Result<NodeProto, ModelError>;

/// Operators that mean something else since, in a way that is not rewritten.
pub(super) fn refuse(upgrading: &mut Upgrading, node: NodeProto) -> Upgraded {
    Err(upgrading.refuse(&node, "means something else in newer versions"))
}

/// RoiAlign 16: the default of where pixels are changed.
pub(super) fn roi_align(_: &mut Upgrading, mut node: NodeProto) -> Upgraded {
    if attribute(&node, "coordinate_transformation_mode").is_none() {
        node.attribute.push(AttributeProto {
            name: Some("coordinate_transformation_mode".into()),
            r#type: Some(AttributeType::String as i32),
            s: Some("output_half_pixel".into()),
            ..Default::default()
        });
    }
    Ok(node)
}

/// Split 18: equal parts need their number.
pub(super) fn split(_: &mut Upgrading, mut node: NodeProto) -> Upgraded {
    if input(&node, 1).is_none() && attribute(&node, "num_outputs").is_none() {
        let parts = node.output.len() as i64;
        node.attribute.push(int_attribute("num_outputs", parts));
    }
    Ok(node)
}

/// GridSample 20: two modes got other names.
pub(super) fn grid_sample(_: &mut Upgrading, mut node: NodeProto) -> Upgraded {
    let mode = match attribute(&node, "mode").map(AttributeProto::s) {
        None | Some(b"bilinear") => "linear",
        Some(b"bicubic") => "cubic",
        Some(_) => return Ok(node),
    };
    node.attribute
        .retain(|attribute| attribute.name() != "mode");
    node.attribute.push(AttributeProto {
        name: Some("mode".into()),
        r#type: Some(AttributeType::String as i32),
        s: Some(mode.into()),
        ..Default::default()
    });
    Ok(node)
}
