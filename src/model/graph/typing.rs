//! Converts the network to a 16-bit element type: the tensors that are computed from the pixels,
//! and only those.
//!
//! Arithmetic on shapes (sizes for a Resize, the scale of an attention) stays float32, since 16
//! bits would round it, and is cast where it is combined with image data.

use std::collections::{HashMap, HashSet};

use super::{
    super::{
        ModelError,
        onnx::{
            GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto::DataType, type_proto,
        },
        tensor,
    },
    encode::InitializerFormat,
    fold::constant,
    tensor_attribute,
    walk::{self, Names, attribute, input, int, int_attribute, is, node},
};

/// Operators that take only float32 and so would need casts around them.
const FLOAT_ONLY: [&str; 6] = [
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "NonMaxSuppression",
    "MelWeightMatrix",
    "TfIdfVectorizer",
];
/// Operators whose types depend on subgraphs or on sequences.
const CONTROL: [&str; 9] = [
    "If",
    "Loop",
    "Scan",
    "SequenceMap",
    "SequenceConstruct",
    "SequenceAt",
    "SplitToSequence",
    "ConcatFromSequence",
    "Optional",
];
/// The opset since which QuantizeLinear and DequantizeLinear take 16-bit floats.
const HALF_QUANTIZATION_OPSET: i64 = 19;

/// The part of the graph that is converted: from node `first` on, which reads the tensor `input` of
/// type `elem`.
pub(super) struct NetworkBody<'a> {
    pub(super) input: &'a str,
    pub(super) elem: DataType,
    pub(super) first: usize,
}

/// The type of a tensor and where its values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TensorInfo {
    /// The element type in the float32 graph.
    elem: DataType,
    /// Whether the values depend on the pixels.
    is_image: bool,
}

/// What the network computes from the pixels.
const COMPUTED: TensorInfo = TensorInfo {
    elem: DataType::Float,
    is_image: true,
};

/// How a float32 tensor that does not depend on the pixels is used.
#[derive(Default)]
struct TensorUses {
    /// Uses that need the new type, as the index of the node and of its input.
    typed: Vec<(usize, usize)>,
    /// Whether another use needs float32.
    kept: bool,
    /// Whether a use other than the bound of a Clip needs the new type. Bounds may become infinite;
    /// other values must be in the range of the new type.
    strict: bool,
}

/// Converts the network to `elem`.
///
/// Returns the stored tensors that have the new type. Constants have already been converted;
/// initializers are to be converted when they are written.
pub(super) fn apply(
    model: &mut ModelProto,
    body: &NetworkBody,
    elem: DataType,
) -> Result<HashMap<String, InitializerFormat>, ModelError> {
    let opset = model
        .opset_import
        .iter()
        .find(|opset| walk::is_default_domain(opset.domain()));
    let opset = opset.map_or(0, |opset| opset.version());
    let graph = model.graph.get_or_insert_default();
    let mut known = stored_tensors(graph, body);
    let uses = retype_nodes(graph, body, opset, elem, &mut known)?;
    let results = float_results(graph, elem, &known)?;

    let mut names = Names::of(graph);
    let mut typed = HashMap::new();
    let mut casts = PendingCasts::default();
    convert_sources(graph, uses, elem, &mut names, &mut typed, &mut casts)?;

    for value in &mut graph.value_info {
        if (known.get(value.name()) == Some(&COMPUTED) || typed.contains_key(value.name()))
            && let Some(type_proto::Value::TensorType(tensor)) =
                value.r#type.as_mut().and_then(|value| value.value.as_mut())
        {
            tensor.elem_type = Some(elem as i32);
        }
    }
    cast_ends(graph, body, elem, &results, &mut names, casts);
    Ok(typed)
}

/// The tensors that the graph stores, and the network's input.
fn stored_tensors(graph: &GraphProto, body: &NetworkBody) -> HashMap<String, TensorInfo> {
    let mut known: HashMap<String, TensorInfo> = HashMap::new();
    for tensor in &graph.initializer {
        let stored = tensor::elem(tensor);
        let elem = if tensor::is_half(stored) {
            DataType::Float
        } else {
            stored
        };
        let info = TensorInfo {
            elem,
            is_image: false,
        };
        known.insert(tensor.name().to_owned(), info);
    }

    let input = TensorInfo {
        elem: body.elem,
        is_image: true,
    };
    known.insert(body.input.to_owned(), input);
    known
}

/// Converts the nodes that depend on the pixels to `elem`, and finds what each node gives and how
/// the other tensors are used.
fn retype_nodes(
    graph: &mut GraphProto,
    body: &NetworkBody,
    opset: i64,
    elem: DataType,
    known: &mut HashMap<String, TensorInfo>,
) -> Result<HashMap<String, TensorUses>, ModelError> {
    let mut uses: HashMap<String, TensorUses> = HashMap::new();
    for (index, node) in graph.node.iter_mut().enumerate() {
        if index < body.first {
            for name in &node.input {
                uses.entry(name.clone()).or_default().kept = true;
            }
            continue;
        }

        let is_image = record_uses(node, index, opset, elem, known, &mut uses)?;
        for (output, elem) in outputs(node, known) {
            known.insert(output, TensorInfo { elem, is_image });
        }
        if is_image {
            retype(node, elem)?;
        }
    }
    Ok(uses)
}

/// The names of the network's outputs, which must be float32 computed from the images.
fn float_results(
    graph: &GraphProto,
    elem: DataType,
    known: &HashMap<String, TensorInfo>,
) -> Result<Vec<String>, ModelError> {
    let results: Vec<String> = graph
        .output
        .iter()
        .map(|output| output.name().to_owned())
        .collect();
    let other = results
        .iter()
        .find(|name| known.get(*name) != Some(&COMPUTED));
    match other {
        Some(name) => Err(refusal(
            elem,
            name,
            "does not give float32 computed from the images",
        )),
        None => Ok(results),
    }
}

/// Casts the network's input to `elem` and its outputs from it: they are float32 before and after.
fn cast_ends(
    graph: &mut GraphProto,
    body: &NetworkBody,
    elem: DataType,
    results: &[String],
    names: &mut Names,
    mut casts: PendingCasts,
) {
    let to = |elem: DataType| Some(int_attribute("to", elem as i64));
    if body.elem == DataType::Float && body.first > 0 {
        let wide = names.free("preprocess_float");
        let last = &mut graph.node[body.first - 1];
        last.output = vec![wide.clone()];
        // Rename the node as well: some engines refuse two nodes with the same name.
        last.name = Some(wide.clone());
        casts.after(body.first - 1, node("Cast", &[&wide], body.input, to(elem)));
    }

    let mut narrow = Vec::new();
    for name in results {
        let free = names.free(&format!("network_{name}"));
        walk::rename(graph, name, &free);
        // Its node may have the name of the output, which the node behind it gets.
        for node in &mut graph.node {
            if node.name() == name {
                node.name = Some(free.clone());
            }
        }
        narrow.push(free);
    }
    for (output, name) in graph.output.iter_mut().zip(results) {
        output.name = Some(name.clone());
    }

    casts.insert_into(&mut graph.node, body.first);
    for (narrow, name) in narrow.iter().zip(results) {
        graph
            .node
            .push(node("Cast", &[narrow], name, to(DataType::Float)));
    }
}

/// Records what the node uses, in `uses`. Returns whether its outputs depend on the pixels.
fn record_uses(
    node: &NodeProto,
    index: usize,
    opset: i64,
    elem: DataType,
    known: &HashMap<String, TensorInfo>,
    uses: &mut HashMap<String, TensorUses>,
) -> Result<bool, ModelError> {
    let all = walk::uses(node);
    let reads_image = all
        .iter()
        .any(|name| known.get(*name).is_some_and(|info| info.is_image));
    if !reads_image || is(node, "Shape") || is(node, "Size") {
        for name in all {
            uses.entry(name.to_owned()).or_default().kept = true;
        }
        return Ok(false);
    }

    let refuse = |reason: String| Err(refusal(elem, &walk::describe(node), &reason));
    if !walk::is_standard(node) {
        return refuse(format!(
            "is of the domain `{}`, whose types are unknown",
            node.domain()
        ));
    }
    if CONTROL.contains(&node.op_type()) {
        return refuse("computes with the images in a subgraph or a sequence".into());
    }
    let float_image = node
        .input
        .iter()
        .filter_map(|name| known.get(name))
        .any(|info| info.is_image && info.elem == DataType::Float);
    if float_image && FLOAT_ONLY.contains(&node.op_type()) {
        return refuse("takes only float32".into());
    }
    let quantizes = is(node, "QuantizeLinear") || is(node, "DequantizeLinear");
    if quantizes && opset < HALF_QUANTIZATION_OPSET {
        return refuse(format!(
            "takes only float32 before opset {HALF_QUANTIZATION_OPSET}, and the model has {opset}"
        ));
    }
    for (slot, name) in node
        .input
        .iter()
        .enumerate()
        .filter(|(_, name)| !name.is_empty())
    {
        match known.get(name) {
            None
            | Some(TensorInfo {
                elem: DataType::Undefined,
                ..
            }) => {
                return refuse(format!("uses `{name}`, whose element type is unknown"));
            }
            Some(TensorInfo {
                elem: DataType::Double,
                ..
            }) => return refuse(format!("uses `{name}`, which is float64")),
            Some(TensorInfo {
                elem: DataType::Float,
                is_image: false,
            }) => {
                let uses = uses.entry(name.clone()).or_default();
                if stays_float(node, slot) {
                    uses.kept = true;
                } else {
                    uses.typed.push((index, slot));
                    uses.strict |= !(is(node, "Clip") && slot > 0);
                }
            }
            Some(_) => {}
        }
    }
    Ok(true)
}

/// Whether ONNX requires this input to be float32 regardless of the type of the images.
fn stays_float(node: &NodeProto, slot: usize) -> bool {
    (is(node, "Resize") && slot > 0) || (is(node, "Dropout") && slot == 1)
}

/// The element types of the node's outputs in the float32 graph.
fn outputs(node: &NodeProto, known: &HashMap<String, TensorInfo>) -> Vec<(String, DataType)> {
    output_elems(node, |name| {
        known
            .get(name)
            .map_or(DataType::Undefined, |info| info.elem)
    })
}

/// The element types of the node's outputs, if `elem_of` gives those of its inputs.
pub(super) fn output_elems(
    node: &NodeProto,
    elem_of: impl Fn(&str) -> DataType,
) -> Vec<(String, DataType)> {
    use DataType::{Bool, Float, Int32, Int64, Uint8, Undefined};
    let of = |slot: usize| input(node, slot).map_or(Undefined, &elem_of);
    let named = |name: &str| {
        int(node, name).and_then(|elem| DataType::try_from(i32::try_from(elem).ok()?).ok())
    };
    let value = || {
        attribute(node, "value")
            .and_then(|attribute| attribute.t.as_ref())
            .map(tensor::elem)
    };
    let (first, others) = if !walk::is_standard(node) {
        (Undefined, Undefined)
    } else {
        match node.op_type() {
            "Cast" => (named("to").unwrap_or(Undefined), Undefined),
            "CastLike" => (of(1), Undefined),
            "Shape" | "Size" | "NonZero" | "ArgMax" | "ArgMin" | "NonMaxSuppression" => {
                (Int64, Int64)
            }
            "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "And" | "Or"
            | "Xor" | "Not" | "IsNaN" | "IsInf" => (Bool, Bool),
            "Constant" => (
                value().unwrap_or(
                    if attribute(node, "value_int")
                        .or(attribute(node, "value_ints"))
                        .is_some()
                    {
                        Int64
                    } else {
                        Undefined
                    },
                ),
                Undefined,
            ),
            "ConstantOfShape" => (value().unwrap_or(Float), Undefined),
            "EyeLike" => (named("dtype").unwrap_or_else(|| of(0)), Undefined),
            "Where" => (of(1), Undefined),
            "OneHot" => (of(2), Undefined),
            "QuantizeLinear" => (
                input(node, 2).map_or_else(|| named("output_dtype").unwrap_or(Uint8), |_| of(2)),
                Undefined,
            ),
            "DequantizeLinear" => (of(1), Undefined),
            "ConvInteger" | "MatMulInteger" => (Int32, Int32),
            "QLinearConv" | "QLinearMatMul" => (of(7), Undefined),
            "TopK" | "MaxPool" | "Unique" => (of(0), Int64),
            "Dropout" => (of(0), Bool),
            "DynamicQuantizeLinear" => (Uint8, Undefined),
            "RandomNormal" | "RandomUniform" => (named("dtype").unwrap_or(Float), Undefined),
            op_type if CONTROL.contains(&op_type) => (Undefined, Undefined),
            _ => (of(0), of(0)),
        }
    };
    let named = node
        .output
        .iter()
        .enumerate()
        .filter(|(_, name)| !name.is_empty());
    named
        .map(|(index, name)| (name.clone(), if index == 0 { first } else { others }))
        .collect()
}

/// Changes the types that are given in attributes of a node that computes image data.
fn retype(node: &mut NodeProto, elem: DataType) -> Result<(), ModelError> {
    let casts = is(node, "Cast");
    let fills = is(node, "ConstantOfShape");
    for attribute in &mut node.attribute {
        if casts && attribute.name() == "to" && attribute.i() == DataType::Float as i64 {
            attribute.i = Some(elem as i64);
        }
        if fills
            && let Some(value) = attribute
                .t
                .as_mut()
                .filter(|value| tensor::elem(value) == DataType::Float)
        {
            *value = tensor::converted(value, elem, false)?;
        }
    }
    Ok(())
}

/// Converts the float32 tensors that are combined with image data: in place where no other use
/// needs float32, otherwise by a cast.
fn convert_sources(
    graph: &mut GraphProto,
    uses: HashMap<String, TensorUses>,
    elem: DataType,
    names: &mut Names,
    typed: &mut HashMap<String, InitializerFormat>,
    casts: &mut PendingCasts,
) -> Result<(), ModelError> {
    let stored: HashSet<String> = graph
        .initializer
        .iter()
        .map(|tensor| tensor.name().to_owned())
        .collect();
    let mut producers: HashMap<String, usize> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        producers.extend(node.output.iter().map(|name| (name.clone(), index)));
    }

    // Sorted, so that the same model always gives the same file.
    let mut uses: Vec<(String, TensorUses)> = uses
        .into_iter()
        .filter(|(_, uses)| !uses.typed.is_empty())
        .collect();
    uses.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (
        name,
        TensorUses {
            typed: slots,
            kept,
            strict,
        },
    ) in uses
    {
        let producer = producers.get(&name).copied();
        if !kept {
            if stored.contains(&name) {
                typed.insert(
                    name,
                    InitializerFormat {
                        elem,
                        overflow: !strict,
                    },
                );
                continue;
            }
            if let Some(source) = producer.map(|index| &mut graph.node[index])
                && convert_constant(source, elem, !strict)?
            {
                typed.insert(
                    name,
                    InitializerFormat {
                        elem,
                        overflow: !strict,
                    },
                );
                continue;
            }
        }

        let narrow = names.free(&format!(
            "{name}_{}",
            elem.as_str_name().to_ascii_lowercase()
        ));
        let cast = node(
            "Cast",
            &[&name],
            &narrow,
            Some(int_attribute("to", elem as i64)),
        );
        match producer {
            Some(index) => casts.after(index, cast),
            None => casts.first(cast),
        }
        for (index, slot) in slots {
            graph.node[index].input[slot].clone_from(&narrow);
        }
    }
    Ok(())
}

/// Converts the value of a `Constant` or `ConstantOfShape`. Returns whether the node is one.
fn convert_constant(
    node: &mut NodeProto,
    elem: DataType,
    overflow: bool,
) -> Result<bool, ModelError> {
    let mut value = if is(node, "ConstantOfShape") {
        match attribute(node, "value").and_then(|attribute| attribute.t.clone()) {
            Some(value) => value,
            None => tensor::floats("", &[1], &[0.0]),
        }
    } else if let Some(value) = constant(node) {
        value.clone()
    } else {
        return Ok(false);
    };
    // A tensor in an attribute often has no name, but an error message needs one.
    let own_name = value.name.take();
    value.name = node.output.first().cloned();
    let value = TensorProto {
        name: own_name,
        ..tensor::converted(&value, elem, overflow)?
    };
    node.attribute = vec![tensor_attribute("value", value)];
    Ok(true)
}

/// Casts that are inserted at the end, so that the indices of nodes stay valid until then.
#[derive(Default)]
struct PendingCasts {
    first: Vec<NodeProto>,
    after: HashMap<usize, Vec<NodeProto>>,
}

impl PendingCasts {
    fn first(&mut self, cast: NodeProto) {
        self.first.push(cast);
    }

    fn after(&mut self, index: usize, cast: NodeProto) {
        self.after.entry(index).or_default().push(cast);
    }

    fn insert_into(mut self, nodes: &mut Vec<NodeProto>, first: usize) {
        let mut all = Vec::with_capacity(nodes.len() + self.first.len() + self.after.len());
        for (index, node) in nodes.drain(..).enumerate() {
            if index == first {
                all.append(&mut self.first);
            }
            all.push(node);
            all.extend(self.after.remove(&index).into_iter().flatten());
        }
        *nodes = all;
    }
}

fn refusal(precision: DataType, node: &str, reason: &str) -> ModelError {
    ModelError::Typing {
        precision,
        node: node.to_owned(),
        reason: reason.to_owned(),
    }
}
