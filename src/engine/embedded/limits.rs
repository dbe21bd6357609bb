//! What `rten` accepts and computes differently from ONNX, as its operators' own tests show. What
//! it does not accept it refuses by itself.

use crate::model::{Limit, onnx::tensor_proto::DataType};

pub(super) const LIMITS: &[Limit] = &[
    Limit {
        operators: &["ArgMax"],
        applies: |_| true,
        reason: "of equal values it takes the last one instead of the first one",
    },
    Limit {
        operators: &["Sign"],
        applies: |_| true,
        reason: "the sign of 0 is 1 there",
    },
    Limit {
        operators: &["Resize"],
        applies: |node| node.text("mode") == b"cubic",
        reason: "it interpolates linearly instead of cubically",
    },
    Limit {
        operators: &["Resize"],
        applies: |node| !node.has_whole_scales(),
        reason: "it computes align_corners with scales that are not whole numbers differently",
    },
    Limit {
        operators: &["ReduceMax", "ReduceMin"],
        applies: |node| node.elem(0) == DataType::Bool,
        reason: "it does not support the boolean type",
    },
    Limit {
        operators: &["Cast"],
        applies: |node| {
            node.int("to") == Some(DataType::Bool as i64) && node.elem(0) != DataType::Bool
        },
        reason: "it does not support the boolean type, and the type of the input is not known here",
    },
    Limit {
        operators: &["CastLike"],
        applies: |node| node.elem(1) == DataType::Bool && node.elem(0) != DataType::Bool,
        reason: "it does not support the boolean type",
    },
    Limit {
        operators: &[
            "Conv",
            "ConvInteger",
            "ConvTranspose",
            "MaxPool",
            "AveragePool",
        ],
        applies: |node| node.text("auto_pad") == b"SAME_LOWER",
        reason: "with auto_pad SAME_LOWER it pads as with SAME_UPPER, and the size of the \
                          input is not known here; export it with explicit pads",
    },
];
