//! What is known of the shapes of tensors before a model is upgraded: the number of dimensions, and
//! which of them are 1. Some operators of older versions depend on that.

use std::collections::HashMap;

use super::{
    super::{
        super::onnx::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType},
        inspect::tensor_type,
        limits, typing,
        walk::{self, attribute, input, int},
    },
    stored_integers,
};

type Dims = Vec<Option<i64>>;

/// The most dimensions that are followed.
const MOST_DIMS: usize = 64;

/// Operators whose output has the shape of the first input.
const SAME_SHAPE: [&str; 41] = [
    "Abs",
    "BatchNormalization",
    "Cast",
    "Ceil",
    "Clip",
    "CumSum",
    "DequantizeLinear",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "HardSigmoid",
    "Hardmax",
    "Identity",
    "InstanceNormalization",
    "IsNaN",
    "LRN",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "MeanVarianceNormalization",
    "Neg",
    "Not",
    "PRelu",
    "QuantizeLinear",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Softmax",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Tanh",
    "ThresholdedRelu",
    "Celu",
];
/// Operators whose inputs are broadcast.
const BROADCAST: [&str; 9] = [
    "Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum",
];

/// The shapes and types of tensors, by name.
#[derive(Default)]
pub(super) struct Shapes {
    dims: HashMap<String, Dims>,
    elems: HashMap<String, DataType>,
}

impl Shapes {
    /// What the graph declares and stores.
    pub(super) fn of(graph: &GraphProto) -> Self {
        let mut shapes = Self {
            dims: HashMap::new(),
            elems: limits::source_elems(graph).collect(),
        };
        let declared = graph.value_info.iter().chain(&graph.output);
        for value in declared.chain(&graph.input) {
            if let Some((elem, dims)) = tensor_type(value.r#type.as_ref()) {
                shapes.elems.entry(value.name().to_owned()).or_insert(elem);
                if let Some(dims) = dims {
                    shapes.know(value.name(), dims);
                }
            }
        }
        for tensor in &graph.initializer {
            let dims = tensor.dims.iter().copied().map(Some).collect();
            shapes.know(tensor.name(), dims);
        }
        shapes
    }

    fn know(&mut self, name: &str, dims: Dims) {
        if dims.len() <= MOST_DIMS {
            self.dims.insert(name.to_owned(), dims);
        }
    }

    pub(super) fn dims(&self, name: &str) -> Option<&[Option<i64>]> {
        self.dims.get(name).map(Vec::as_slice)
    }

    pub(super) fn elem(&self, name: &str) -> DataType {
        self.elems.get(name).copied().unwrap_or(DataType::Undefined)
    }

    /// Adds what follows for the outputs of the node, which is of an older version.
    pub(super) fn record(&mut self, node: &NodeProto, stored: &HashMap<String, TensorProto>) {
        let elems = typing::output_elems(node, |name| self.elem(name));
        for (name, elem) in elems {
            self.elems.entry(name).or_insert(elem);
        }
        let Some(output) = node.output.first() else {
            return;
        };
        if walk::is_standard(node)
            && !self.dims.contains_key(output)
            && let Some(dims) = self.after(node, stored)
        {
            self.know(output, dims);
        }
    }

    fn after(&self, node: &NodeProto, stored: &HashMap<String, TensorProto>) -> Option<Dims> {
        let of = |slot: usize| input(node, slot).and_then(|name| self.dims(name));
        let op_type = node.op_type();
        if SAME_SHAPE.contains(&op_type) {
            return Some(of(0)?.to_vec());
        }
        if BROADCAST.contains(&op_type) {
            let shapes: Option<Vec<&[Option<i64>]>> = (0..node.input.len()).map(of).collect();
            return Some(broadcast(&shapes?));
        }
        let open = |rank: usize| vec![None; rank];
        match op_type {
            "Conv" | "ConvTranspose" | "MaxPool" | "AveragePool" | "LpPool" => {
                Some(open(of(0)?.len()))
            }
            "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => {
                let dims = of(0)?;
                let kept = dims.iter().take(2).copied();
                let ones = std::iter::repeat_n(Some(1), dims.len().saturating_sub(2));
                Some(kept.chain(ones).collect())
            }
            "Constant" => {
                let value = super::fold::constant(node)?;
                Some(value.dims.iter().copied().map(Some).collect())
            }
            "Flatten" | "Gemm" => Some(open(2)),
            "MatMul" => Some(open(of(0)?.len().max(of(1)?.len()))),
            "Reshape" => {
                let shape = stored_integers(stored.get(input(node, 1)?)?)?;
                // What is 0 is as before, what is -1 is open.
                Some(shape.iter().map(|&dim| (dim > 0).then_some(dim)).collect())
            }
            "Transpose" => {
                let dims = of(0)?;
                match attribute(node, "perm") {
                    None => Some(dims.iter().rev().copied().collect()),
                    Some(perm) => perm
                        .ints
                        .iter()
                        .map(|&axis| dims.get(usize::try_from(axis).ok()?).copied())
                        .collect(),
                }
            }
            "Concat" => {
                let mut dims = of(0)?.to_vec();
                let axis = position(int(node, "axis")?, dims.len())?;
                *dims.get_mut(axis)? = None;
                Some(dims)
            }
            "Squeeze" => {
                let dims = of(0)?;
                let axes = &attribute(node, "axes")?.ints;
                let axes = positions(axes, dims.len())?;
                let kept = (0..dims.len()).filter(|axis| !axes.contains(axis));
                Some(kept.map(|axis| dims[axis]).collect())
            }
            "Unsqueeze" => {
                let mut dims = of(0)?.to_vec();
                let axes = &attribute(node, "axes")?.ints;
                let mut axes = positions(axes, dims.len() + axes.len())?;
                axes.sort_unstable();
                for axis in axes {
                    if axis > dims.len() {
                        return None;
                    }
                    dims.insert(axis, Some(1));
                }
                Some(dims)
            }
            _ if op_type.starts_with("Reduce") || matches!(op_type, "ArgMax" | "ArgMin") => {
                let mut dims = of(0)?.to_vec();
                let axes = if op_type.starts_with("Arg") {
                    vec![position(int(node, "axis").unwrap_or(0), dims.len())?]
                } else {
                    match attribute(node, "axes") {
                        Some(axes) => positions(&axes.ints, dims.len())?,
                        None => (0..dims.len()).collect(),
                    }
                };
                if int(node, "keepdims").unwrap_or(1) == 0 {
                    let kept = (0..dims.len()).filter(|axis| !axes.contains(axis));
                    return Some(kept.map(|axis| dims[axis]).collect());
                }
                for axis in axes {
                    dims[axis] = Some(1);
                }
                Some(dims)
            }
            _ => None,
        }
    }
}

/// The axis counted from the first.
fn position(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 {
        axis.checked_add(rank as i64)?
    } else {
        axis
    };
    usize::try_from(axis).ok().filter(|&axis| axis < rank)
}

fn positions(axes: &[i64], rank: usize) -> Option<Vec<usize>> {
    if rank > MOST_DIMS {
        return None;
    }
    axes.iter().map(|&axis| position(axis, rank)).collect()
}

/// The shape of what is computed from tensors of these shapes.
fn broadcast(shapes: &[&[Option<i64>]]) -> Dims {
    let rank = shapes.iter().map(|dims| dims.len()).max().unwrap_or(0);
    let at = |dims: &[Option<i64>], axis: usize| -> Option<i64> {
        match (axis + dims.len()).checked_sub(rank) {
            Some(index) => dims[index],
            None => Some(1),
        }
    };
    (0..rank)
        .map(|axis| {
            let dims: Option<Vec<i64>> = shapes.iter().map(|dims| at(dims, axis)).collect();
            let dims = dims?;
            let mut wide = dims.iter().copied().filter(|&dim| dim != 1);
            Some(wide.next().unwrap_or(1))
        })
        .collect()
}
