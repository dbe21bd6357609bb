//! Another element type for the network: what is computed from the pixels gets it, and only that.
//!
//! Arithmetic on shapes (sizes for a Resize, the scale of an attention) stays float32, since 16
//! bits would round it, and is cast where it meets the images.

use std::collections::{HashMap, HashSet};

use super::{
    super::{
        ModelError,
        onnx::{
            GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto::DataType, type_proto,
        },
        tensor,
    },
    LOGITS,
    encode::Storage,
    fold::constant,
    tensor_attribute,
    walk::{self, Names, attribute, input, int, int_attribute, is, node},
};

/// Operators that take float32 only and so would need casts around them.
const FLOAT_ONLY: [&str; 6] = [
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "NonMaxSuppression",
    "MelWeightMatrix",
    "TfIdfVectorizer",
];
/// Operators whose types depend on other graphs or on sequences.
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
/// The opset in which quantisation learned 16-bit floats.
const HALF_QUANTIZATION_OPSET: i64 = 19;

/// The part of the graph that is to be typed: from node `first` on, which reads `input` of type
/// `elem`.
pub(super) struct Body<'a> {
    pub(super) input: &'a str,
    pub(super) elem: DataType,
    pub(super) first: usize,
}

/// What is known of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    /// The element type in the float32 graph.
    elem: DataType,
    /// Whether the values depend on the pixels.
    image: bool,
}

/// Who uses a float32 tensor that does not depend on the pixels.
#[derive(Default)]
struct Uses {
    /// Nodes and their inputs that need the new type.
    typed: Vec<(usize, usize)>,
    /// Whether another use needs float32.
    kept: bool,
    /// Whether a use is something else than a bound, which may become infinite.
    strict: bool,
}

/// Types the network in `elem`. Returns the stored tensors that have that type now; initializers
/// are still to be written so, constants already are.
pub(super) fn apply(
    model: &mut ModelProto,
    body: &Body,
    elem: DataType,
) -> Result<HashMap<String, Storage>, ModelError> {
    let opset = model
        .opset_import
        .iter()
        .find(|opset| walk::is_default_domain(opset.domain()));
    let opset = opset.map_or(0, |opset| opset.version());
    let graph = model.graph.get_or_insert_default();
    let mut known: HashMap<String, Known> = HashMap::new();
    for tensor in &graph.initializer {
        let stored = tensor::elem(tensor);
        let elem = if tensor::is_half(stored) {
            DataType::Float
        } else {
            stored
        };
        known.insert(tensor.name().to_owned(), Known { elem, image: false });
    }
    known.insert(
        body.input.to_owned(),
        Known {
            elem: body.elem,
            image: true,
        },
    );

    let mut uses: HashMap<String, Uses> = HashMap::new();
    for index in 0..graph.node.len() {
        if index < body.first {
            graph.node[index]
                .input
                .iter()
                .for_each(|name| uses.entry(name.clone()).or_default().kept = true);
            continue;
        }
        let image = visit(&graph.node[index], index, opset, elem, &known, &mut uses)?;
        let node = &mut graph.node[index];
        for (output, elem) in outputs(node, &known) {
            known.insert(output, Known { elem, image });
        }
        if image {
            retype(node, elem)?;
        }
    }

    let logits = known.get(LOGITS).copied();
    if logits
        != Some(Known {
            elem: DataType::Float,
            image: true,
        })
    {
        return Err(refusal(
            elem,
            LOGITS,
            "does not give float32 computed from the images",
        ));
    }
    let mut names = Names::of(graph);
    let mut typed = HashMap::new();
    let mut casts = Casts::default();
    convert_sources(graph, uses, elem, &mut names, &mut typed, &mut casts)?;

    for value in &mut graph.value_info {
        if (known.get(value.name()) == logits.as_ref() || typed.contains_key(value.name()))
            && let Some(type_proto::Value::TensorType(tensor)) =
                value.r#type.as_mut().and_then(|value| value.value.as_mut())
        {
            tensor.elem_type = Some(elem as i32);
        }
    }

    // The edges: float32 before and after.
    let to = |elem: DataType| Some(int_attribute("to", elem as i64));
    if body.elem == DataType::Float && body.first > 0 {
        let wide = names.free("preprocess_float");
        let last = &mut graph.node[body.first - 1];
        last.output = vec![wide.clone()];
        // The cast takes over the name too: nodes with the same name are refused by some engines.
        last.name = Some(wide.clone());
        casts.after(body.first - 1, node("Cast", &[&wide], body.input, to(elem)));
    }
    let narrow = names.free("network_logits");
    walk::rename(graph, LOGITS, &narrow);
    graph
        .output
        .iter_mut()
        .for_each(|output| output.name = Some(LOGITS.into()));
    casts.insert_into(&mut graph.node, body.first);
    graph
        .node
        .push(node("Cast", &[&narrow], LOGITS, to(DataType::Float)));
    Ok(typed)
}

/// Notes what the node uses. Returns whether its outputs depend on the pixels.
fn visit(
    node: &NodeProto,
    index: usize,
    opset: i64,
    elem: DataType,
    known: &HashMap<String, Known>,
    uses: &mut HashMap<String, Uses>,
) -> Result<bool, ModelError> {
    let all = walk::uses(node);
    let is_image = |name: &&str| known.get(*name).is_some_and(|known| known.image);
    let image = all.iter().any(is_image) && !is(node, "Shape") && !is(node, "Size");
    if !image {
        all.iter()
            .for_each(|name| uses.entry((*name).to_owned()).or_default().kept = true);
        return Ok(false);
    }
    let refuse = |reason: String| Err(refusal(elem, &walk::describe(node), &reason));
    if !walk::is_standard(node) {
        return refuse(format!(
            "is of the domain `{}`, whose types are not known here",
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
        .any(|known| known.image && known.elem == DataType::Float);
    if float_image && FLOAT_ONLY.contains(&node.op_type()) {
        return refuse("takes float32 only".into());
    }
    let quantizes = is(node, "QuantizeLinear") || is(node, "DequantizeLinear");
    if quantizes && opset < HALF_QUANTIZATION_OPSET {
        return refuse(format!(
            "takes float32 only before opset {HALF_QUANTIZATION_OPSET}, and the model has {opset}"
        ));
    }
    for (slot, name) in node
        .input
        .iter()
        .enumerate()
        .filter(|(_, name)| !name.is_empty())
    {
        match known.get(name) {
            None => {
                return refuse(format!(
                    "uses `{name}`, whose element type is not known here"
                ));
            }
            Some(Known {
                elem: DataType::Undefined,
                ..
            }) => {
                return refuse(format!(
                    "uses `{name}`, whose element type is not known here"
                ));
            }
            Some(Known {
                elem: DataType::Double,
                ..
            }) => return refuse(format!("uses `{name}`, which is float64")),
            Some(Known {
                elem: DataType::Float,
                image: false,
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

/// Inputs that ONNX wants as float32 whatever the images are.
fn stays_float(node: &NodeProto, slot: usize) -> bool {
    (is(node, "Resize") && slot > 0) || (is(node, "Dropout") && slot == 1)
}

/// The element types of the node's outputs in the float32 graph.
fn outputs(node: &NodeProto, known: &HashMap<String, Known>) -> Vec<(String, DataType)> {
    use DataType::{Bool, Float, Int32, Int64, Uint8, Undefined};
    let of = |slot: usize| {
        input(node, slot)
            .and_then(|name| known.get(name))
            .map_or(Undefined, |known| known.elem)
    };
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

/// Changes the types that a node on the images' way names itself.
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

/// Gives the float32 tensors that meet the images the new type: in place where nothing else needs
/// them, else by a cast.
fn convert_sources(
    graph: &mut GraphProto,
    uses: HashMap<String, Uses>,
    elem: DataType,
    names: &mut Names,
    typed: &mut HashMap<String, Storage>,
    casts: &mut Casts,
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
    let mut uses: Vec<(String, Uses)> = uses
        .into_iter()
        .filter(|(_, uses)| !uses.typed.is_empty())
        .collect();
    uses.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (
        name,
        Uses {
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
                    Storage {
                        elem,
                        overflow: !strict,
                    },
                );
                continue;
            }
            if let Some(source) = producer.map(|index| &mut graph.node[index])
                && fill(source, elem, !strict)?
            {
                typed.insert(
                    name,
                    Storage {
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

/// Changes the value of a `Constant` or `ConstantOfShape`. Returns whether the node is one.
fn fill(node: &mut NodeProto, elem: DataType, overflow: bool) -> Result<bool, ModelError> {
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
    // An attribute's tensor often has no name, and a refusal should say one.
    let own_name = value.name.take();
    value.name = node.output.first().cloned();
    let value = TensorProto {
        name: own_name,
        ..tensor::converted(&value, elem, overflow)?
    };
    node.attribute = vec![tensor_attribute("value", value)];
    Ok(true)
}

/// Casts that wait for their place, so that the indices of nodes stay right meanwhile.
#[derive(Default)]
struct Casts {
    first: Vec<NodeProto>,
    after: HashMap<usize, Vec<NodeProto>>,
}

impl Casts {
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
