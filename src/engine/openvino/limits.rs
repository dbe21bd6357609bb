//! What OpenVINO accepts and computes differently from ONNX, as its operators' own tests show. What
//! it does not accept it refuses by itself.

use crate::model::{Limit, Operation, onnx::tensor_proto::DataType};

const SMALL_TYPE: &str = "it wraps or overflows where a cast to a 4-bit or 8-bit float or a 4-bit \
                          integer saturates";
const WIDE_QUANTIZATION: &str = "it computes quantization to 16 bits wrongly; quantize to 8 bits, \
                                 or export the float model";
const WIDE_BITS: &str = "it computes bits of this integer type wrongly";

pub(super) const LIMITS: &[Limit] = &[
    Limit {
        operators: &["Resize"],
        applies: |node| node.int("antialias") == Some(1),
        reason: "it computes antialiasing wrongly; export the model without the resize, which this \
                 server does before the network",
    },
    Limit {
        operators: &["Resize"],
        applies: |node| node.int("exclude_outside") == Some(1),
        reason: "it computes exclude_outside wrongly",
    },
    Limit {
        operators: &["Resize"],
        applies: |node| !matches!(node.text("keep_aspect_ratio_policy"), b"" | b"stretch"),
        reason: "it ignores keep_aspect_ratio_policy",
    },
    Limit {
        operators: &["Resize"],
        applies: |node| !node.has_whole_scales(),
        reason: "it computes align_corners with scales that are not whole numbers differently",
    },
    Limit {
        operators: &["Dropout"],
        applies: |_| true,
        reason: "it computes a Dropout wrongly that trains or whose mask is used",
    },
    Limit {
        operators: &["MaxPool"],
        applies: |node| node.int("ceil_mode") == Some(1) && last_window_may_be_padding(node),
        reason: "with ceil_mode it keeps a last window that has only padding",
    },
    Limit {
        operators: &["SpaceToDepth"],
        applies: |node| node.text("mode") == b"CRD",
        reason: "it ignores the mode CRD",
    },
    Limit {
        operators: &["Tile"],
        applies: |node| !node.is_stored(1),
        reason: "it needs repeats that are stored in the file",
    },
    Limit {
        operators: &["TopK"],
        applies: |node| !node.is_stored(1),
        reason: "it orders equal values wrongly unless the count is stored in the file",
    },
    Limit {
        operators: &["Where"],
        applies: |node| (1..3).any(|slot| node.computed_by(slot) == "Softmax"),
        reason: "it drops the condition on a Softmax, and rows that are masked completely become \
                 NaN",
    },
    Limit {
        operators: &["Cast"],
        applies: |node| {
            let to = node.int("to").and_then(|to| i32::try_from(to).ok());
            to.and_then(|to| DataType::try_from(to).ok())
                .is_some_and(is_small)
        },
        reason: SMALL_TYPE,
    },
    Limit {
        operators: &["CastLike"],
        applies: |node| is_small(node.elem(1)),
        reason: SMALL_TYPE,
    },
    Limit {
        operators: &["QuantizeLinear"],
        applies: |node| {
            is_wide(node.elem(2))
                || node
                    .int("output_dtype")
                    .is_some_and(|elem| matches!(elem, 4 | 5))
        },
        reason: WIDE_QUANTIZATION,
    },
    Limit {
        operators: &["DequantizeLinear"],
        applies: |node| is_wide(node.elem(0)) || is_wide(node.elem(2)),
        reason: WIDE_QUANTIZATION,
    },
    Limit {
        operators: &["BitwiseNot", "BitwiseAnd", "BitwiseOr", "BitwiseXor"],
        applies: bits_are_wide,
        reason: WIDE_BITS,
    },
];

fn is_small(elem: DataType) -> bool {
    matches!(
        elem,
        DataType::Float8e4m3fn
            | DataType::Float8e4m3fnuz
            | DataType::Float8e5m2
            | DataType::Float8e5m2fnuz
            | DataType::Float4e2m1
            | DataType::Uint4
            | DataType::Int4
    ) || elem as i32 > DataType::Float4e2m1 as i32
}

fn is_wide(elem: DataType) -> bool {
    matches!(elem, DataType::Int16 | DataType::Uint16)
}

fn bits_are_wide(node: &Operation) -> bool {
    !matches!(
        node.elem(0),
        DataType::Uint8 | DataType::Int8 | DataType::Int32 | DataType::Int64
    )
}

/// Whether rounding up can add a window that starts behind the image: only if a stride and the
/// padding at the end are together larger than the kernel.
fn last_window_may_be_padding(node: &Operation) -> bool {
    let kernel = node.ints("kernel_shape");
    let (strides, pads) = (node.ints("strides"), node.ints("pads"));
    let dilations = node.ints("dilations");
    (0..kernel.len()).any(|axis| {
        let stride = strides.get(axis).copied().unwrap_or(1);
        let end = pads.get(kernel.len() + axis).copied().unwrap_or(0);
        let dilation = dilations.get(axis).copied().unwrap_or(1);
        stride.saturating_add(end)
            > dilation
                .saturating_mul(kernel[axis].saturating_sub(1))
                .saturating_add(1)
    })
}
