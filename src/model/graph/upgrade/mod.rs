//! Upgrades operators of older versions to what they mean in opset 13, step by step as ONNX's
//! changelog has it. What is rewritten and run afterwards knows the newer versions only.
//!
//! Each step is a function for one operator and the version that changed it. Where the functions of
//! a model have other versions than the model, all of it gets the newest one.

mod attributes;
mod later;
mod normalization;
mod resize;
mod shapes;
mod softmax;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use self::shapes::Shapes;
use super::{
    super::{
        ModelError,
        onnx::{
            FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
            tensor_proto::DataType,
        },
        tensor,
    },
    fold, tensor_attribute,
    walk::{self, Names},
};

/// The oldest version of the standard operators that is upgraded.
pub(super) const OLDEST_OPSET: i64 = 7;
/// The version that the rest of the code knows, or a newer one.
const NEEDED_OPSET: i64 = 13;
/// The IR version that goes with [`NEEDED_OPSET`].
const NEEDED_IR: i64 = 7;
/// The largest stored tensor whose values are looked at, in values.
const SMALL: i64 = 64;

type Apply = fn(&mut Upgrading, NodeProto) -> Result<NodeProto, ModelError>;

/// What becomes of an operator's nodes at a version.
struct Step {
    operator: &'static str,
    version: i64,
    apply: Apply,
}

const fn step(operator: &'static str, version: i64, apply: Apply) -> Step {
    Step {
        operator,
        version,
        apply,
    }
}

const STEPS: &[Step] = &[
    step("BatchNormalization", 9, normalization::spatial),
    step("BatchNormalization", 14, normalization::running_statistics),
    step("Clip", 11, attributes::clip),
    step("Dropout", 10, attributes::dropout_mask),
    step("Dropout", 12, attributes::dropout),
    step("GridSample", 20, later::grid_sample),
    step("GroupNormalization", 21, later::refuse),
    step("DFT", 20, later::refuse),
    step("Hardmax", 13, softmax::last_axis),
    step("LogSoftmax", 13, softmax::last_axis),
    step("Pad", 11, attributes::pad),
    step("ReduceL1", 18, attributes::axes),
    step("ReduceL2", 18, attributes::axes),
    step("ReduceLogSum", 18, attributes::axes),
    step("ReduceLogSumExp", 18, attributes::axes),
    step("ReduceMax", 18, attributes::axes),
    step("ReduceMean", 18, attributes::axes),
    step("ReduceMin", 18, attributes::axes),
    step("ReduceProd", 18, attributes::axes),
    step("ReduceSum", 13, attributes::axes),
    step("ReduceSumSquare", 18, attributes::axes),
    step("Resize", 11, resize::resize),
    step("Resize", 13, resize::half_pixels),
    step("RoiAlign", 16, later::roi_align),
    step("Scan", 9, later::refuse),
    step("Scatter", 11, attributes::scatter),
    step("Slice", 10, attributes::slice),
    step("Softmax", 13, softmax::last_axis),
    step("Split", 13, attributes::split),
    step("Split", 18, later::split),
    step("Squeeze", 13, attributes::axes),
    step("TopK", 10, attributes::top_k),
    step("Unsqueeze", 13, attributes::axes),
    step("Upsample", 9, resize::scales),
    step("Upsample", 10, resize::upsample),
];

/// Operators that opset 13 has as the versions 7 to 12 had them: what changed since were the types
/// they take, what may be left out, or the words.
const AS_BEFORE: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "AveragePool",
    "BitShift",
    "Cast",
    "Ceil",
    "Celu",
    "Compress",
    "Concat",
    "ConcatFromSequence",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "CumSum",
    "DepthToSpace",
    "DequantizeLinear",
    "Det",
    "Div",
    "DynamicQuantizeLinear",
    "Einsum",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "EyeLike",
    "Flatten",
    "Floor",
    "GRU",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gemm",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "Identity",
    "If",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LRN",
    "LSTM",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Loop",
    "LpNormalization",
    "LpPool",
    "MatMul",
    "MatMulInteger",
    "Max",
    "MaxPool",
    "MaxRoiPool",
    "MaxUnpool",
    "Mean",
    "MeanVarianceNormalization",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "NonMaxSuppression",
    "NonZero",
    "Not",
    "OneHot",
    "Or",
    "PRelu",
    "Pow",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
    "RNN",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Range",
    "Reciprocal",
    "Relu",
    "Reshape",
    "ReverseSequence",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "Shape",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Size",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "SplitToSequence",
    "Sqrt",
    "Sub",
    "Sum",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Tile",
    "Transpose",
    "Unique",
    "Where",
    "Xor",
];

/// Upgrades the model and its functions to the newest version that one of them has, and at least to
/// opset 13.
///
/// # Errors
/// A version before opset 7, or an operator that can't be upgraded.
pub(super) fn upgrade(model: &mut ModelProto) -> Result<(), ModelError> {
    let from = default_opset(&model.opset_import).ok_or(ModelError::NoOpset)?;
    let own = |function: &FunctionProto| default_opset(&function.opset_import).unwrap_or(from);
    let versions = || model.functions.iter().map(own).chain([from]);
    if let Some(found) = versions().find(|&version| version < OLDEST_OPSET) {
        return Err(ModelError::Opset { found });
    }
    let to = versions().fold(NEEDED_OPSET, i64::max);

    for function in &mut model.functions {
        let from = own(function);
        if from == to {
            continue;
        }
        let mut names = Names::default();
        let inputs = function.input.iter().chain(&function.output);
        names.reserve(inputs.map(String::as_str));
        names.reserve_nodes(&function.node);
        let outputs = function.output.iter().map(String::as_str).collect();
        let shapes = Shapes::default();
        function.node = Versions { from, to }.nodes(
            std::mem::take(&mut function.node),
            outputs,
            shapes,
            HashMap::new(),
            &mut names,
        )?;
    }

    if from == to {
        return Ok(());
    }
    let graph = model.graph.get_or_insert_default();
    let mut names = Names::of(graph);
    Versions { from, to }.graph(graph, true, &mut names)?;
    for opset in &mut model.opset_import {
        if walk::is_default_domain(opset.domain()) {
            opset.version = Some(to);
        }
    }
    model.ir_version = model.ir_version.max(Some(NEEDED_IR));
    Ok(())
}

/// The version of the standard operators.
pub(super) fn default_opset(imports: &[OperatorSetIdProto]) -> Option<i64> {
    let mut imports = imports.iter();
    let found = imports.find(|opset| walk::is_default_domain(opset.domain()));
    found.map(|opset| opset.version())
}

/// The version that nodes have, and the one that they get.
#[derive(Clone, Copy)]
struct Versions {
    from: i64,
    to: i64,
}

impl Versions {
    /// Upgrades a graph. Only in the main one are the shapes known.
    fn graph(
        self,
        graph: &mut GraphProto,
        is_main: bool,
        names: &mut Names,
    ) -> Result<(), ModelError> {
        let shapes = if is_main {
            Shapes::of(graph)
        } else {
            Shapes::default()
        };
        let outputs = graph.output.iter().map(|output| output.name()).collect();
        let small = graph.initializer.iter().filter(|stored| is_small(stored));
        let stored = small
            .map(|stored| (stored.name().to_owned(), stored.clone()))
            .collect();
        graph.node = self.nodes(
            std::mem::take(&mut graph.node),
            outputs,
            shapes,
            stored,
            names,
        )?;
        Ok(())
    }

    /// The nodes of a graph with the tensors `outputs`, upgraded.
    fn nodes(
        self,
        nodes: Vec<NodeProto>,
        outputs: HashSet<&str>,
        mut shapes: Shapes,
        mut stored: HashMap<String, TensorProto>,
        names: &mut Names,
    ) -> Result<Vec<NodeProto>, ModelError> {
        let used: HashSet<String> = nodes
            .iter()
            .flat_map(walk::uses)
            .chain(outputs)
            .map(str::to_owned)
            .collect();
        let mut upgraded = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            for attribute in &mut node.attribute {
                for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    self.graph(graph, false, names)?;
                }
            }
            shapes.record(&node, &stored);
            if let Some(value) = fold::constant(&node).filter(|value| is_small(value)) {
                stored.insert(node.output[0].clone(), value.clone());
            }
            if !walk::is_standard(&node) {
                upgraded.push(node);
                continue;
            }

            let mut upgrading = Upgrading {
                from: self.from,
                names: &mut *names,
                shapes: &shapes,
                stored: &stored,
                used: &used,
                before: Vec::new(),
                after: Vec::new(),
            };
            let node = upgrading.all_steps(node, self.to)?;
            upgraded.append(&mut upgrading.before);
            upgraded.push(node);
            upgraded.append(&mut upgrading.after);
        }
        Ok(upgraded)
    }
}

fn is_small(tensor: &TensorProto) -> bool {
    let values = tensor
        .dims
        .iter()
        .try_fold(1_i64, |all, &dim| all.checked_mul(dim));
    values.is_some_and(|values| (0..=SMALL).contains(&values))
}

/// One node that is upgraded, with what is known around it.
struct Upgrading<'a> {
    from: i64,
    names: &'a mut Names,
    shapes: &'a Shapes,
    /// Small tensors that are stored, by name.
    stored: &'a HashMap<String, TensorProto>,
    /// The tensors that something uses.
    used: &'a HashSet<String>,
    /// Nodes that go before and after it.
    before: Vec<NodeProto>,
    after: Vec<NodeProto>,
}

impl Upgrading<'_> {
    fn all_steps(&mut self, mut node: NodeProto, to: i64) -> Result<NodeProto, ModelError> {
        let known = |node: &NodeProto| {
            AS_BEFORE.contains(&node.op_type())
                || STEPS.iter().any(|step| step.operator == node.op_type())
        };
        if self.from < NEEDED_OPSET && !known(&node) {
            return Err(self.refuse(&node, "is not among the operators that are upgraded"));
        }
        for version in self.from + 1..=to.min(self.last_version()) {
            let mut steps = STEPS.iter();
            let step =
                steps.find(|step| step.version == version && step.operator == node.op_type());
            if let Some(step) = step {
                node = (step.apply)(self, node)?;
            }
        }
        Ok(node)
    }

    /// The version of the last step of all.
    fn last_version(&self) -> i64 {
        STEPS.iter().map(|step| step.version).max().unwrap_or(0)
    }

    fn refuse(&self, node: &NodeProto, reason: &str) -> ModelError {
        ModelError::Node {
            node: walk::describe(node),
            reason: format!(
                "{reason}, and it is of opset {}; export the model with opset 13 or newer",
                self.from
            ),
        }
    }

    /// Stores a tensor before the node, and returns its name.
    fn constant(&mut self, node: &NodeProto, what: &str, value: TensorProto) -> String {
        let output = node.output.first().map_or("", String::as_str);
        let name = self.names.free(&format!("{output}_{what}"));
        let value = tensor_attribute("value", value);
        self.before
            .push(walk::node("Constant", &[], &name, Some(value)));
        name
    }

    /// A stored tensor of integers before the node.
    fn integers(&mut self, node: &NodeProto, what: &str, values: &[i64]) -> String {
        self.constant(node, what, integers(values))
    }

    /// A stored number of the type of the node's first input before the node.
    fn number(&mut self, node: &NodeProto, what: &str, value: f32) -> String {
        let elem = walk::input(node, 0).map_or(DataType::Undefined, |name| self.shapes.elem(name));
        let value = match elem {
            DataType::Double => TensorProto {
                data_type: Some(elem as i32),
                raw_data: Some(f64::from(value).to_le_bytes().to_vec().into()),
                ..Default::default()
            },
            DataType::Int32 => TensorProto {
                data_type: Some(elem as i32),
                raw_data: Some((value as i32).to_le_bytes().to_vec().into()),
                ..Default::default()
            },
            DataType::Int64 => TensorProto {
                data_type: Some(elem as i32),
                raw_data: Some((value as i64).to_le_bytes().to_vec().into()),
                ..Default::default()
            },
            // 16-bit floats become 32-bit ones later, this one with them.
            _ => tensor::floats("", &[], &[value]),
        };
        self.constant(node, what, value)
    }

    /// A name that is not taken for something about the node's first output.
    fn free(&mut self, node: &NodeProto, what: &str) -> String {
        let output = node.output.first().map_or("", String::as_str);
        self.names.free(&format!("{output}_{what}"))
    }

    fn is_used(&self, name: &str) -> bool {
        !name.is_empty() && self.used.contains(name)
    }
}

/// A list of integers.
fn integers(values: &[i64]) -> TensorProto {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    TensorProto {
        data_type: Some(DataType::Int64 as i32),
        dims: vec![values.len() as i64],
        raw_data: Some(bytes.collect::<Vec<u8>>().into()),
        ..Default::default()
    }
}

/// The integers of a stored tensor.
fn stored_integers(tensor: &TensorProto) -> Option<Vec<i64>> {
    if tensor::elem(tensor) != DataType::Int64 {
        return None;
    }
    match &tensor.raw_data {
        Some(raw) => {
            let (values, rest) = raw.as_chunks::<8>();
            let values = values.iter().map(|bytes| i64::from_le_bytes(*bytes));
            rest.is_empty().then(|| values.collect())
        }
        None => Some(tensor.int64_data.clone()),
    }
}

/// Removes an attribute of integers and returns it; `None` if it is absent or empty.
fn take_integers(node: &mut NodeProto, name: &str) -> Option<Vec<i64>> {
    let index = node
        .attribute
        .iter()
        .position(|found| found.name() == name)?;
    let values = node.attribute.remove(index).ints;
    Some(values).filter(|values| !values.is_empty())
}

/// Sets the node's input at `slot`; those before it that are absent are left out.
fn set_input(node: &mut NodeProto, slot: usize, name: String) {
    if node.input.len() <= slot {
        node.input.resize(slot + 1, String::new());
    }
    node.input[slot] = name;
}
