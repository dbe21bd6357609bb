//! Finds a classifier's image input: its element type, layout and size.

use super::{
    super::{
        ChannelOrder, ModelError,
        onnx::{
            GraphProto, NodeProto, TypeProto, ValueInfoProto,
            tensor_proto::DataType,
            tensor_shape_proto::{Dimension, dimension},
            type_proto,
        },
    },
    Batch, Preprocessing, fold,
    walk::{self, is},
};

/// The largest side that is accepted, in pixels.
const LARGEST_SIDE: u32 = 8192;
/// The largest batch that a graph may fix, in images.
const LARGEST_BATCH: i64 = 1024;
/// The largest input that a graph may fix, in bytes: all images of a batch.
const LARGEST_INPUT: u64 = 1 << 30;
/// The longest chain of nodes that is followed from a weight to where it is stored.
const STEPS: usize = 64;

/// The order of an image tensor's dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImageLayout {
    Nchw,
    Nhwc,
}

/// The dimension of an image tensor that a network leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// None: it has four dimensions.
    Nothing,
    /// The batch: it takes one image.
    Batch,
    /// The channel of gray images.
    Channel,
}

/// The image input that the network was exported with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ImageInput {
    pub(super) name: String,
    pub(super) elem: DataType,
    pub(super) layout: ImageLayout,
    pub(super) channels: ChannelOrder,
    pub(super) missing: Missing,
    pub(super) height: u32,
    pub(super) width: u32,
    pub(super) batch: Batch,
    /// Whether the graph left the height or the width open.
    pub(super) any_size: bool,
}

/// Finds the image input. `settings` say what the graph leaves open.
pub(super) fn find_input(
    graph: &GraphProto,
    settings: &Preprocessing,
) -> Result<ImageInput, ModelError> {
    let value = only_input(graph)?;
    let name = value.name().to_owned();
    let wrong = |reason: String| ModelError::Input(format!("input `{name}` {reason}"));

    let (elem, dims) =
        tensor_type(value.r#type.as_ref()).ok_or_else(|| wrong("is not a tensor".into()))?;
    if !is_pixel(elem) {
        let elem = elem.as_str_name().to_ascii_lowercase();
        return Err(wrong(format!(
            "has the element type {elem}; float32, float16, double or uint8 images are needed"
        )));
    }

    let dims = dims.unwrap_or(vec![None; 4]);
    let ([batch, a, b, c], missing) = match dims[..] {
        [batch, a, b, c] => ([batch, a, b, c], Missing::Nothing),
        [a @ Some(1 | 3), b, c] => ([Some(1), a, b, c], Missing::Batch),
        [a, b, c @ Some(1 | 3)] => ([Some(1), a, b, c], Missing::Batch),
        [None, height, width] => ([None, height, width, Some(1)], Missing::Channel),
        _ => {
            return Err(wrong(format!(
                "has the shape {}; an image input is [N,3,H,W] or [N,H,W,3], with 1 in place of 3 \
                 for gray images",
                show(&dims)
            )));
        }
    };

    let (layout, count, height, width) = layout_of([a, b, c], first_conv_channels(graph, &name))
        .ok_or_else(|| {
            wrong(format!(
                "has the shape {}: no dimension is known to be the 3 colours, or the 1 of gray \
                 images; an image input is [N,3,H,W] or [N,H,W,3]",
                show(&dims)
            ))
        })?;
    let channels = match (count, settings.channels) {
        (1, None | Some(ChannelOrder::Gray)) => ChannelOrder::Gray,
        (3, None) => ChannelOrder::Rgb,
        (3, Some(order)) if order != ChannelOrder::Gray => order,
        (_, Some(order)) => {
            return Err(wrong(format!(
                "has the shape {} with {count} channel{}, but `--channels`, the manifest or a file \
                 beside the model says {}",
                show(&dims),
                if count == 1 { "" } else { "s" },
                order.name(),
            )));
        }
        (_, None) => ChannelOrder::Rgb,
    };

    let side = |what: &str, dim: Option<i64>, given: Option<u32>| match (dim, given) {
        (Some(dim), Some(given)) if dim != i64::from(given) => Err(wrong(format!(
            "has {what} {dim}, but `--input-size`, the manifest or a file beside the model says \
             {given}"
        ))),
        (Some(dim), _) => Ok(u32::try_from(dim).unwrap_or(u32::MAX)),
        (None, Some(given)) => Ok(given),
        (None, None) => Err(wrong(format!(
            "has the shape {}, which leaves {what} open; give the size that the network was \
             trained with, such as `--input-size 224x224`",
            show(&dims)
        ))),
    };
    let any_size = height.is_none() || width.is_none();
    let size = settings.input_size;
    let height = side("the height", height, size.map(|[_, height]| height))?;
    let width = side("the width", width, size.map(|[width, _]| width))?;
    check_limits(width, height, batch.unwrap_or(1)).map_err(wrong)?;
    let batch = match batch {
        Some(batch) => Batch::Fixed(batch as usize),
        None => Batch::Any,
    };

    Ok(ImageInput {
        name,
        elem,
        layout,
        channels,
        missing,
        height,
        width,
        batch,
        any_size,
    })
}

/// The layout of an input whose dimensions without the batch are these, with its number of channels,
/// its height and its width. Where the shape does not tell the colours, the input channels of the
/// first convolution do. `None` if they are not known.
fn layout_of(
    [a, b, c]: [Option<i64>; 3],
    channels: Option<i64>,
) -> Option<(ImageLayout, u32, Option<i64>, Option<i64>)> {
    Some(match (a, c, channels) {
        (Some(3), _, _) | (None, None, Some(3)) => (ImageLayout::Nchw, 3, b, c),
        (_, Some(3), _) if a != Some(1) => (ImageLayout::Nhwc, 3, a, b),
        (None, Some(_), Some(3)) => (ImageLayout::Nchw, 3, b, c),
        (Some(1), _, _) | (None, None, Some(1)) => (ImageLayout::Nchw, 1, b, c),
        (_, Some(1), _) => (ImageLayout::Nhwc, 1, a, b),
        (None, Some(_), Some(1)) => (ImageLayout::Nchw, 1, b, c),
        _ => return None,
    })
}

/// Whether images of this size, so many at once, are within the limits.
fn check_limits(width: u32, height: u32, images: i64) -> Result<(), String> {
    if !(1..=LARGEST_SIDE).contains(&height) || !(1..=LARGEST_SIDE).contains(&width) {
        return Err(format!(
            "takes {width}×{height} pixels; each side must be 1 to {LARGEST_SIDE}"
        ));
    }
    if images > LARGEST_BATCH {
        return Err(format!(
            "takes batches of exactly {images} images; {LARGEST_BATCH} is the most that is run"
        ));
    }
    let bytes = u64::from(width) * u64::from(height) * 3 * images as u64;
    if bytes > LARGEST_INPUT {
        return Err(format!(
            "takes {bytes} bytes of images at once; {LARGEST_INPUT} is the most that is run"
        ));
    }
    Ok(())
}

fn only_input(graph: &GraphProto) -> Result<&ValueInfoProto, ModelError> {
    match &graph.input[..] {
        [input] => Ok(input),
        [] => Err(ModelError::Input(
            "the graph has no input; one image input is needed".into(),
        )),
        inputs => Err(ModelError::Input(format!(
            "the graph has {} inputs ({}); exactly one, for images, is needed",
            inputs.len(),
            list(inputs.iter().map(|input| input.name()))
        ))),
    }
}

fn is_pixel(elem: DataType) -> bool {
    use DataType::{
        Bfloat16, Double, Float, Float16, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64,
    };
    matches!(
        elem,
        Float
            | Float16
            | Bfloat16
            | Double
            | Uint8
            | Uint16
            | Int16
            | Uint32
            | Int32
            | Uint64
            | Int64
    )
}

/// The number of input channels of the first convolution that the tensor `name` flows into.
fn first_conv_channels(graph: &GraphProto, name: &str) -> Option<i64> {
    const STEPS: usize = 8;
    let mut name = name;
    for _ in 0..STEPS {
        let node = graph
            .node
            .iter()
            .find(|node| walk::input(node, 0) == Some(name) && !is(node, "Shape"))?;
        if is(node, "Conv") {
            return weight_dims(graph, walk::input(node, 1)?)?.get(1).copied();
        }
        let passes = ["Cast", "Pad", "Identity", "Sub", "Add", "Mul", "Div"]
            .iter()
            .any(|op| is(node, op));
        name = node.output.first().filter(|_| passes)?;
    }
    None
}

/// The shape of a weight that is stored, or computed from a stored one by operators whose effect on
/// the shape is known.
pub(super) fn weight_dims(graph: &GraphProto, name: &str) -> Option<Vec<i64>> {
    let mut name = name;
    // The transpositions between the weight and where it is stored, the last one first.
    let mut transpositions = Vec::new();
    for _ in 0..STEPS {
        let stored = graph.initializer.iter().find(|found| found.name() == name);
        let node = match stored {
            Some(_) => None,
            None => Some(producer(graph, name)?),
        };
        if let Some(tensor) = stored.or_else(|| node.and_then(fold::constant)) {
            let dims = tensor.dims.clone();
            return transpositions.into_iter().rev().try_fold(dims, transposed);
        }

        let node = node?;
        let keeps_shape = ["Identity", "Cast", "DequantizeLinear", "QuantizeLinear"]
            .iter()
            .any(|op| is(node, op));
        if is(node, "Transpose") {
            transpositions.push(node);
        } else if !keeps_shape {
            return None;
        }
        name = walk::input(node, 0)?;
    }
    None
}

/// The shape that the Transpose `node` makes of `dims`.
fn transposed(dims: Vec<i64>, node: &NodeProto) -> Option<Vec<i64>> {
    let Some(perm) = walk::attribute(node, "perm") else {
        return Some(dims.into_iter().rev().collect());
    };
    let axes = perm.ints.iter();
    axes.map(|&axis| dims.get(usize::try_from(axis).ok()?).copied())
        .collect()
}

/// The node that produces the tensor `name`.
pub(super) fn producer<'a>(graph: &'a GraphProto, name: &str) -> Option<&'a NodeProto> {
    graph
        .node
        .iter()
        .find(|node| node.output.iter().any(|output| output == name))
}

/// A tensor's element type and dimensions. A dimension that is not fixed is `None`.
pub(super) fn tensor_type(
    value: Option<&TypeProto>,
) -> Option<(DataType, Option<Vec<Option<i64>>>)> {
    let type_proto::Value::TensorType(tensor) = value?.value.as_ref()? else {
        return None;
    };
    let dims = tensor
        .shape
        .as_ref()
        .map(|shape| shape.dim.iter().map(fixed).collect());
    Some((
        DataType::try_from(tensor.elem_type()).unwrap_or(DataType::Undefined),
        dims,
    ))
}

/// The dimension's size. Some exporters write 0 or -1 for a dimension that is not fixed.
fn fixed(dim: &Dimension) -> Option<i64> {
    match dim.value {
        Some(dimension::Value::DimValue(value)) if value > 0 => Some(value),
        _ => None,
    }
}

/// Dimensions for error messages, such as `[?,3,224,224]`.
pub(super) fn show(dims: &[Option<i64>]) -> String {
    let dims: Vec<String> = dims
        .iter()
        .map(|dim| dim.map_or("?".into(), |dim| dim.to_string()))
        .collect();
    format!("[{}]", dims.join(","))
}

/// Names for error messages, such as `` `a`, `b` ``.
pub(super) fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}
