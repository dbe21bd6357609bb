//! The height and width of tensors within a network, as far as they follow from its input's.

use std::collections::HashMap;

use super::{
    super::onnx::{GraphProto, NodeProto},
    inspect::{tensor_type, weight_dims},
    operators::auto_pad,
    walk::{attribute, input, int, is},
};

/// Operators that keep the size.
const SAME_SIZE: [&str; 27] = [
    "BatchNormalization",
    "Cast",
    "Clip",
    "DequantizeLinear",
    "Dropout",
    "DynamicQuantizeLinear",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LRN",
    "LeakyRelu",
    "Mish",
    "Neg",
    "PRelu",
    "QuantizeLinear",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Sqrt",
    "Tanh",
];

/// Whether the node moves a window over an image.
pub(super) fn is_windowed(node: &NodeProto) -> bool {
    [
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "QLinearConv",
        "MaxPool",
        "AveragePool",
    ]
    .iter()
    .any(|op| is(node, op))
}

/// The sizes of tensors `[N, channels, …]` without those two dimensions, where they are known.
pub(super) fn sizes(graph: &GraphProto) -> HashMap<String, Vec<i64>> {
    let mut sizes = HashMap::new();
    for value in &graph.input {
        if let Some((_, Some(dims))) = tensor_type(value.r#type.as_ref())
            && dims.len() > 2
            && let Some(size) = dims[2..].iter().copied().collect::<Option<Vec<i64>>>()
        {
            sizes.insert(value.name().to_owned(), size);
        }
    }
    for node in &graph.node {
        if let (Some(size), Some(output)) = (size_after(graph, node, &sizes), node.output.first()) {
            sizes.insert(output.clone(), size);
        }
    }
    sizes
}

fn size_after(
    graph: &GraphProto,
    node: &NodeProto,
    sizes: &HashMap<String, Vec<i64>>,
) -> Option<Vec<i64>> {
    let size = input(node, 0).and_then(|name| sizes.get(name));
    if is_windowed(node) && !is(node, "ConvTranspose") {
        return windows(graph, node, size?);
    }
    if is(node, "GlobalAveragePool") || is(node, "GlobalMaxPool") {
        return Some(vec![1; size?.len()]);
    }
    if SAME_SIZE.iter().any(|op| is(node, op)) {
        return size.cloned();
    }
    if ["Add", "Sub", "Mul", "Div", "Min", "Max", "Sum"]
        .iter()
        .any(|op| is(node, op))
    {
        return broadcast(graph, node, sizes);
    }
    if is(node, "Concat") && int(node, "axis") == Some(1) {
        let alike = node.input.iter().all(|name| sizes.get(name) == size);
        return size.filter(|_| alike).cloned();
    }
    None
}

/// The size that the inputs have in common. Stored ones without a height and width of their own
/// have none to add.
fn broadcast(
    graph: &GraphProto,
    node: &NodeProto,
    sizes: &HashMap<String, Vec<i64>>,
) -> Option<Vec<i64>> {
    let mut common: Option<Vec<i64>> = None;
    for name in &node.input {
        let size = match (sizes.get(name), weight_dims(graph, name)) {
            (Some(size), _) => size.clone(),
            (None, Some(dims)) if dims.iter().all(|&dim| dim == 1) => continue,
            (None, Some(dims)) if dims.len() > 2 => {
                let from = dims.len() - common.as_ref().map_or(2, Vec::len).min(dims.len());
                dims[from..].to_vec()
            }
            _ => return None,
        };
        common = Some(match common {
            None => size,
            Some(known) if known.len() == size.len() => {
                known.iter().zip(&size).map(|(a, b)| *a.max(b)).collect()
            }
            Some(_) => return None,
        });
    }
    common
}

/// How many windows there are along each axis.
fn windows(graph: &GraphProto, node: &NodeProto, size: &[i64]) -> Option<Vec<i64>> {
    let weights = if is(node, "QLinearConv") { 3 } else { 1 };
    let kernel = match attribute(node, "kernel_shape") {
        Some(kernel) => kernel.ints.clone(),
        None => weight_dims(graph, input(node, weights)?)?
            .get(2..)?
            .to_vec(),
    };
    if kernel.len() != size.len() {
        return None;
    }
    let ints = |name: &str, default: i64, len: usize| match attribute(node, name) {
        Some(attribute) if attribute.ints.len() == len => attribute.ints.clone(),
        _ => vec![default; len],
    };
    let strides = ints("strides", 1, kernel.len());
    let dilations = ints("dilations", 1, kernel.len());
    let pads = match auto_pad(node) {
        b"NOTSET" => ints("pads", 0, 2 * kernel.len()),
        b"VALID" => vec![0; 2 * kernel.len()],
        _ if are_plausible(size) && are_plausible(&strides) => {
            let count = |(size, stride): (&i64, &i64)| (size + stride - 1) / (*stride).max(1);
            return Some(size.iter().zip(&strides).map(count).collect());
        }
        _ => return None,
    };
    let ceil = int(node, "ceil_mode") == Some(1);
    if ![size, &kernel, &strides, &dilations, &pads]
        .iter()
        .all(|values| are_plausible(values))
    {
        return None;
    }
    (0..kernel.len())
        .map(|axis| {
            let padded = size[axis] + pads[axis] + pads[kernel.len() + axis];
            let free = padded - dilations[axis] * (kernel[axis] - 1) - 1;
            let stride = strides[axis];
            if free < 0 || stride < 1 {
                return None;
            }
            let steps = if ceil {
                (free + stride - 1) / stride
            } else {
                free / stride
            };
            // A last window must begin before the padding at the end.
            let behind = ceil && steps * stride >= size[axis] + pads[axis];
            Some(steps + 1 - i64::from(behind))
        })
        .collect()
}

/// The padding along each axis, both ends together, for as many windows as steps fit into the
/// `size`; `None` if that depends on a size that is not known.
pub(super) fn same_padding(node: &NodeProto, size: Option<&[i64]>) -> Option<Vec<i64>> {
    if is(node, "ConvTranspose") {
        return None;
    }
    let kernel = &attribute(node, "kernel_shape")?.ints;
    let strides = &attribute(node, "strides")?.ints;
    let dilations = attribute(node, "dilations").map(|dilations| &dilations.ints);
    let known = [
        Some(&kernel[..]),
        Some(strides),
        dilations.map(Vec::as_slice),
        size,
    ];
    if !known.into_iter().flatten().all(are_plausible) {
        return None;
    }
    (0..kernel.len())
        .map(|axis| {
            let dilation = dilations.map_or(Some(1), |dilations| dilations.get(axis).copied())?;
            let reach = dilation * (kernel[axis] - 1) + 1;
            match *strides.get(axis)? {
                1 => Some(reach - 1),
                stride if stride > 1 => {
                    let size = *size?.get(axis)?;
                    let windows = (size + stride - 1) / stride;
                    Some(((windows - 1) * stride + reach - size).max(0))
                }
                _ => None,
            }
        })
        .collect()
}

/// Whether arithmetic with these values can't overflow.
fn are_plausible(values: &[i64]) -> bool {
    values.iter().all(|value| (0..1 << 24).contains(value))
}
