//! What ONNX Runtime accepts and computes differently from ONNX, as its operators' own tests show.
//! What it does not accept it refuses by itself.

use crate::model::Limit;

pub(super) const LIMITS: &[Limit] = &[Limit {
    operators: &["Resize"],
    applies: |node| !node.has_whole_scales(),
    reason: "it computes align_corners with scales that are not whole numbers differently",
}];
