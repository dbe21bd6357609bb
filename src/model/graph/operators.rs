//! Rewrites operators that engines compute differently, or only one of them at all, into forms that
//! all compute alike. None of it depends on the engine.

use std::collections::{HashMap, HashSet};

use super::{
    super::{
        onnx::{AttributeProto, GraphProto, NodeProto, TensorProto, tensor_proto::DataType},
        tensor,
    },
    fold,
    inspect::{self, weight_dims},
    limits, spatial, typing,
    walk::{self, Names, attribute, input, int, int_attribute, ints_attribute, is, node},
};

/// The most channels of an LRN that is rewritten: each makes a slice.
const MOST_CHANNELS: i64 = 15;

/// Rewrites the nodes of the main graph.
pub(super) fn rewrite(graph: &mut GraphProto) {
    wide_quantization(graph);
    microsoft_quantization(graph);
    let mut names = Names::of(graph);
    let mut elems: HashMap<String, DataType> = limits::source_elems(graph).collect();
    let sizes = spatial::sizes(graph);
    let mut nodes = Vec::with_capacity(graph.node.len());
    for index in 0..graph.node.len() {
        let mut next = graph.node[index].clone();
        if next.input.is_empty() || next.output.is_empty() {
            elems.extend(typing::output_elems(&next, |_| DataType::Undefined));
            nodes.push(next);
            continue;
        }
        let elem_of = |name: &str| elems.get(name).copied().unwrap_or(DataType::Undefined);
        let outputs = typing::output_elems(&next, elem_of);
        if is(&next, "Dropout") {
            forget_dropout(graph, &mut next);
        }
        if spatial::is_windowed(&next) {
            window_defaults(graph, &mut next);
            explicit_pads(&mut next, &sizes);
        }

        let elem = input(&next, 0).map_or(DataType::Undefined, elem_of);
        if is(&next, "Cast") && int(&next, "to") == Some(DataType::Bool as i64) {
            cast_to_bool(graph, next, elem, &mut names, &mut nodes);
        } else if is(&next, "ConvInteger") && (2..4).any(|slot| input(&next, slot).is_some()) {
            integer_convolution(graph, next, &mut names, &mut nodes);
        } else if is(&next, "MatMul") && is_vector(graph, input(&next, 1)) {
            matrix_by_vector(graph, next, &mut names, &mut nodes);
        } else if let Some(rank) = rank_of_response(&next, &sizes) {
            local_response(graph, next, rank, &mut names, &mut nodes);
        } else {
            nodes.push(next);
        }
        elems.extend(outputs);
    }
    graph.node = nodes;
}

/// At inference a Dropout changes nothing. Its mask is only of use in training.
fn forget_dropout(graph: &GraphProto, node: &mut NodeProto) {
    let trains = input(node, 2).is_some_and(|name| stored_bytes(graph, name) != Some(&[0]));
    let masks = node.output.get(1).is_some_and(|mask| !mask.is_empty());
    if !trains && !masks {
        node.op_type = Some("Identity".into());
        node.input.truncate(1);
        node.output.truncate(1);
        node.attribute.clear();
    }
}

/// The value of a stored boolean.
fn stored_bytes<'a>(graph: &'a GraphProto, name: &str) -> Option<&'a [u8]> {
    let stored = stored(graph, name)?;
    match &stored.raw_data {
        Some(raw) => Some(raw),
        None if stored.int32_data.iter().all(|&value| value == 0) => Some(&[0]),
        None => None,
    }
}

/// A tensor that an initializer or a `Constant` stores.
pub(super) fn stored<'a>(graph: &'a GraphProto, name: &str) -> Option<&'a TensorProto> {
    graph
        .initializer
        .iter()
        .find(|tensor| tensor.name() == name)
        .or_else(|| inspect::producer(graph, name).and_then(fold::constant))
}

/// Writes the attributes of a convolution or a pooling that ONNX lets be omitted.
fn window_defaults(graph: &GraphProto, node: &mut NodeProto) {
    let pools = node.op_type().ends_with("Pool");
    let weights = if is(node, "QLinearConv") { 3 } else { 1 };
    if !pools && attribute(node, "kernel_shape").is_none() {
        let dims = input(node, weights).and_then(|name| weight_dims(graph, name));
        if let Some(dims) = dims.filter(|dims| dims.len() > 2) {
            node.attribute
                .push(ints_attribute("kernel_shape", &dims[2..]));
        }
    }
    let Some(kernel) = attribute(node, "kernel_shape").map(|kernel| kernel.ints.len()) else {
        return;
    };

    let mut set = |name: &str, values: &[i64]| {
        if attribute(node, name).is_none_or(|attribute| attribute.ints.is_empty()) {
            node.attribute.retain(|attribute| attribute.name() != name);
            node.attribute.push(ints_attribute(name, values));
        }
    };
    set("strides", &vec![1; kernel]);
    if !pools {
        set("dilations", &vec![1; kernel]);
    }

    match auto_pad(node) {
        b"NOTSET" => {}
        b"VALID" => node
            .attribute
            .retain(|attribute| !matches!(attribute.name(), "auto_pad" | "pads")),
        _ => return,
    }
    if attribute(node, "pads").is_none() && attribute(node, "output_shape").is_none() {
        node.attribute
            .push(ints_attribute("pads", &vec![0; 2 * kernel]));
    }
}

pub(super) fn auto_pad(node: &NodeProto) -> &[u8] {
    attribute(node, "auto_pad").map_or(b"NOTSET", AttributeProto::s)
}

/// Replaces `SAME_UPPER` and `SAME_LOWER` by the padding that they mean for the size of the input,
/// where that is known, or for any size if the window moves by single steps.
fn explicit_pads(node: &mut NodeProto, sizes: &HashMap<String, Vec<i64>>) {
    let lower = match auto_pad(node) {
        b"SAME_LOWER" => true,
        b"SAME_UPPER" => false,
        _ => return,
    };
    let size = input(node, 0).and_then(|name| sizes.get(name));
    let Some(total) = spatial::same_padding(node, size.map(Vec::as_slice)) else {
        return;
    };
    let halves = total.iter().map(|total| total / 2);
    let rests = total.iter().map(|total| total - total / 2);
    let pads: Vec<i64> = if lower {
        rests.chain(halves).collect()
    } else {
        halves.chain(rests).collect()
    };
    node.attribute
        .retain(|attribute| !matches!(attribute.name(), "auto_pad" | "pads"));
    node.attribute.push(ints_attribute("pads", &pads));
}

/// Replaces a cast to bool with a comparison, because some engines have no boolean type: they would
/// keep values other than 0 and 1, or round 0.5 to 0.
fn cast_to_bool(
    graph: &mut GraphProto,
    cast: NodeProto,
    elem: DataType,
    names: &mut Names,
    nodes: &mut Vec<NodeProto>,
) {
    let zero = match elem {
        DataType::Float => tensor::floats("", &[], &[0.0]),
        DataType::Int32 | DataType::Int64 | DataType::Double => TensorProto {
            data_type: Some(elem as i32),
            raw_data: Some(vec![0; if elem == DataType::Int32 { 4 } else { 8 }].into()),
            ..Default::default()
        },
        _ => return nodes.push(cast),
    };
    let name = names.free(&format!("{}_zero", cast.output[0]));
    let equal = names.free(&format!("{}_is_zero", cast.output[0]));
    graph.initializer.push(TensorProto {
        name: Some(name.clone()),
        ..zero
    });
    nodes.push(node("Equal", &[&cast.input[0], &name], &equal, None));
    nodes.push(NodeProto {
        name: cast.name.clone(),
        ..node("Not", &[&equal], &cast.output[0], None)
    });
}

/// A convolution of integers that have a zero point, as one of floats: engines differ in what they
/// pad with. It is exact up to 24 bits.
fn integer_convolution(
    graph: &mut GraphProto,
    conv: NodeProto,
    names: &mut Names,
    nodes: &mut Vec<NodeProto>,
) {
    let output = conv.output[0].clone();
    let to = |elem: DataType| Some(int_attribute("to", elem as i64));
    let mut centred = |slot: usize| -> String {
        let value = &conv.input[slot];
        let float = names.free(&format!("{output}_float_{slot}"));
        nodes.push(node("Cast", &[value], &float, to(DataType::Float)));
        let Some(zero) = input(&conv, slot + 2) else {
            return float;
        };
        let mut zero = zero.to_owned();
        // One zero point for each filter.
        if let Some(found) = stored(graph, &zero)
            && let [filters] = found.dims[..]
            && filters > 1
        {
            let rank = weight_dims(graph, value).map_or(4, |dims| dims.len());
            let mut dims = vec![1; rank];
            dims[0] = filters;
            let name = names.free(&format!("{zero}_filters"));
            let reshaped = TensorProto {
                name: Some(name.clone()),
                dims,
                ..found.clone()
            };
            graph.initializer.push(reshaped);
            zero = name;
        }
        let [float_zero, centred] =
            ["zero", "centred"].map(|what| names.free(&format!("{output}_{what}_{slot}")));
        nodes.push(node("Cast", &[&zero], &float_zero, to(DataType::Float)));
        nodes.push(node("Sub", &[&float, &float_zero], &centred, None));
        centred
    };
    let (image, weights) = (centred(0), centred(1));
    let sum = names.free(&format!("{output}_float"));
    nodes.push(NodeProto {
        op_type: Some("Conv".into()),
        input: vec![image, weights],
        output: vec![sum.clone()],
        ..conv
    });
    nodes.push(node("Cast", &[&sum], &output, to(DataType::Int32)));
}

/// Whether a tensor is known to have one dimension.
fn is_vector(graph: &GraphProto, name: Option<&str>) -> bool {
    let Some(name) = name else { return false };
    let declared = graph.input.iter().find(|value| value.name() == name);
    let declared = declared
        .and_then(|value| inspect::tensor_type(value.r#type.as_ref())?.1)
        .map(|dims| dims.len());
    let rank = stored(graph, name).map(|tensor| tensor.dims.len());
    rank.or(declared) == Some(1)
}

/// A product with a vector as one with a matrix of one column.
fn matrix_by_vector(
    graph: &mut GraphProto,
    product: NodeProto,
    names: &mut Names,
    nodes: &mut Vec<NodeProto>,
) {
    let output = &product.output[0];
    let [axis, column, wide] =
        ["axis", "column", "wide"].map(|what| names.free(&format!("{output}_{what}")));
    graph.initializer.push(TensorProto {
        name: Some(axis.clone()),
        data_type: Some(DataType::Int64 as i32),
        dims: vec![1],
        raw_data: Some((-1_i64).to_le_bytes().to_vec().into()),
        ..Default::default()
    });
    nodes.push(node(
        "Unsqueeze",
        &[&product.input[1], &axis],
        &column,
        None,
    ));
    nodes.push(node("MatMul", &[&product.input[0], &column], &wide, None));
    nodes.push(node("Squeeze", &[&wide, &axis], output, None));
}

/// The number of dimensions of the image that an LRN normalizes, if it is rewritten.
fn rank_of_response(node: &NodeProto, sizes: &HashMap<String, Vec<i64>>) -> Option<usize> {
    let size = int(node, "size").filter(|size| (1..=MOST_CHANNELS).contains(size));
    let image = sizes.get(input(node, 0)?)?;
    (is(node, "LRN") && size.is_some()).then_some(image.len() + 2)
}

/// A normalization over neighbouring channels as arithmetic: not every engine has it. The sum over
/// the neighbours is one of slices.
fn local_response(
    graph: &mut GraphProto,
    response: NodeProto,
    rank: usize,
    names: &mut Names,
    nodes: &mut Vec<NodeProto>,
) {
    let (image, output) = (response.input[0].clone(), response.output[0].clone());
    let size = int(&response, "size").unwrap_or(1);
    let number = |name: &str, default: f32| {
        attribute(&response, name).map_or(default, |attribute| attribute.f())
    };
    let mut store = |what: &str, value: TensorProto, names: &mut Names| -> String {
        let name = names.free(&format!("{output}_{what}"));
        graph.initializer.push(TensorProto {
            name: Some(name.clone()),
            ..value
        });
        name
    };
    let scalar = |value: f32| tensor::floats("", &[], &[value]);
    let integers = |values: &[i64]| TensorProto {
        data_type: Some(DataType::Int64 as i32),
        dims: vec![values.len() as i64],
        raw_data: Some(
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        ),
        ..Default::default()
    };

    let mut pads = vec![0; 2 * rank];
    pads[1] = (size - 1) / 2;
    pads[rank + 1] = size - 1 - pads[1];
    let pads = store("pads", integers(&pads), names);
    let axis = store("axis", integers(&[1]), names);
    let [square, padded, sum, scaled, shifted, divisor] =
        ["square", "padded", "sum", "scaled", "shifted", "divisor"]
            .map(|what| names.free(&format!("{output}_{what}")));
    nodes.push(node("Mul", &[&image, &image], &square, None));
    nodes.push(node("Pad", &[&square, &pads], &padded, None));
    let mut neighbours = Vec::new();
    for first in 0..size {
        let end = match first + 1 - size {
            0 => i64::MAX,
            end => end,
        };
        let start = store("start", integers(&[first]), names);
        let end = store("end", integers(&[end]), names);
        let slice = names.free(&format!("{output}_neighbour"));
        nodes.push(node("Slice", &[&padded, &start, &end, &axis], &slice, None));
        neighbours.push(slice);
    }
    let inputs: Vec<&str> = neighbours.iter().map(String::as_str).collect();
    nodes.push(node("Sum", &inputs, &sum, None));

    let factor = store("factor", scalar(number("alpha", 1e-4) / size as f32), names);
    let bias = store("bias", scalar(number("bias", 1.0)), names);
    let power = store("power", scalar(number("beta", 0.75)), names);
    nodes.push(node("Mul", &[&sum, &factor], &scaled, None));
    nodes.push(node("Add", &[&scaled, &bias], &shifted, None));
    nodes.push(node("Pow", &[&shifted, &power], &divisor, None));
    nodes.push(NodeProto {
        name: response.name.clone(),
        ..node("Div", &[&image, &divisor], &output, None)
    });
}

fn is_quantizing(node: &NodeProto, op_type: &str) -> bool {
    node.op_type() == op_type
        && (walk::is_standard(node) || node.domain() == "com.microsoft")
        && int(node, "block_size").unwrap_or(0) == 0
}

/// The operators of `com.microsoft` that have become standard, as the standard ones.
fn microsoft_quantization(graph: &mut GraphProto) {
    let narrow = |name: Option<&str>| {
        let elem = name.and_then(|name| stored(graph, name)).map(tensor::elem);
        matches!(elem, Some(DataType::Int8 | DataType::Uint8))
    };
    let standard: Vec<bool> = graph
        .node
        .iter()
        .map(|node| {
            node.domain() == "com.microsoft"
                && (is_quantizing(node, "QuantizeLinear")
                    || is_quantizing(node, "DequantizeLinear"))
                && narrow(input(node, 2))
        })
        .collect();
    for (node, standard) in graph.node.iter_mut().zip(standard) {
        if standard {
            node.domain = None;
        }
    }
}

/// Quantization of a tensor to 16 bits and back as arithmetic on floats, which gives the same
/// numbers: engines have no such type, or compute it wrongly.
fn wide_quantization(graph: &mut GraphProto) {
    let mut names = Names::of(graph);
    let mut replaced: Vec<(usize, Vec<NodeProto>)> = Vec::new();
    let mut added = Vec::new();
    let mut readers_of: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        for name in walk::uses(node) {
            readers_of.entry(name).or_default().push(index);
        }
    }

    for (index, quantize) in graph.node.iter().enumerate() {
        if !is_quantizing(quantize, "QuantizeLinear") {
            continue;
        }
        let (Some(values), Some(scale), Some(zero)) =
            (input(quantize, 0), input(quantize, 1), input(quantize, 2))
        else {
            continue;
        };
        let Some(zero) = stored(graph, zero).and_then(wide_zero_point) else {
            continue;
        };
        let one_scale =
            stored(graph, scale).is_some_and(|scale| tensor::len(scale).is_ok_and(|len| len == 1));
        let Some(output) = quantize.output.first() else {
            continue;
        };
        let mut readers = readers_of.get(output.as_str()).cloned().unwrap_or_default();
        // A node may use a tensor twice.
        readers.dedup();
        let restored = readers.iter().all(|&reader| {
            let reader = &graph.node[reader];
            is_quantizing(reader, "DequantizeLinear")
                && input(reader, 0) == Some(output)
                && input(reader, 1).is_some()
                && !reader.output.is_empty()
                && input(reader, 2)
                    .and_then(|name| stored(graph, name))
                    .and_then(wide_zero_point)
                    == Some(zero)
        });
        let is_output = graph.output.iter().any(|value| value.name() == output);
        if !one_scale || !restored || is_output {
            continue;
        }

        let WideZeroPoint { zero, low, high } = zero;
        let [steps, rounded, lowest, highest] = ["steps", "rounded", "lowest", "highest"]
            .map(|what| names.free(&format!("{output}_{what}")));
        added.push(tensor::floats(&lowest, &[], &[(low - zero) as f32]));
        added.push(tensor::floats(&highest, &[], &[(high - zero) as f32]));
        replaced.push((
            index,
            vec![
                node("Div", &[values, scale], &steps, None),
                node("Round", &[&steps], &rounded, None),
                node("Clip", &[&rounded, &lowest, &highest], output, None),
            ],
        ));
        for reader in readers {
            let dequantize = &graph.node[reader];
            let restored = node(
                "Mul",
                &[output, &dequantize.input[1]],
                &dequantize.output[0],
                None,
            );
            replaced.push((reader, vec![restored]));
        }
    }

    // An engine without the type may refuse even a zero point that nothing uses any more.
    let zero_points: HashSet<String> = replaced
        .iter()
        .filter_map(|(index, _)| input(&graph.node[*index], 2).map(str::to_owned))
        .collect();
    let mut replaced: HashMap<usize, Vec<NodeProto>> = replaced.into_iter().collect();
    graph.node = std::mem::take(&mut graph.node)
        .into_iter()
        .enumerate()
        .flat_map(|(index, node)| replaced.remove(&index).unwrap_or_else(|| vec![node]))
        .collect();
    let used: HashSet<&str> = graph.node.iter().flat_map(walk::uses).collect();
    graph
        .initializer
        .retain(|stored| !zero_points.contains(stored.name()) || used.contains(stored.name()));
    graph.initializer.extend(added);
}

/// The zero point of a quantization to 16 bits, and the type's range.
#[derive(Clone, Copy, PartialEq)]
struct WideZeroPoint {
    zero: i32,
    low: i32,
    high: i32,
}

fn wide_zero_point(stored: &TensorProto) -> Option<WideZeroPoint> {
    let first = match stored.raw_data.as_deref() {
        Some(&[low, high]) => u16::from_le_bytes([low, high]),
        None if stored.int32_data.len() == 1 => stored.int32_data[0] as u16,
        _ => return None,
    };
    match tensor::elem(stored) {
        DataType::Int16 => Some(WideZeroPoint {
            zero: (first as i16).into(),
            low: i16::MIN.into(),
            high: i16::MAX.into(),
        }),
        DataType::Uint16 => Some(WideZeroPoint {
            zero: first.into(),
            low: 0,
            high: u16::MAX.into(),
        }),
        _ => None,
    }
}
