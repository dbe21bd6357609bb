//! The serving graph: from any ONNX classifier to the one that every engine is given.

mod batch_norm;
mod encode;
mod fold;
mod head;
mod inspect;
mod quantize;
mod scores;
mod typing;
mod walk;

#[cfg(test)]
mod tests;

use std::{collections::HashSet, fmt};

pub(super) use self::head::Head;
pub use self::head::LinearLayer;
pub use self::quantize::{Layer, Quantization, Range};
pub(super) use self::walk::{int_attribute, ints_attribute, node};
use self::{
    encode::Storage,
    inspect::{Input, Layout},
    scores::Scores,
    walk::Names,
};
use super::{
    InputSize, Manifest, ModelError,
    onnx::{
        AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto,
        TypeProto, ValueInfoProto,
        attribute_proto::AttributeType,
        tensor_proto::DataType,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
    tensor,
};

/// The serving graph's input: `uint8 [N, height, width, 3]`, RGB.
pub const IMAGES: &str = "images";
/// The serving graph's output: `float32 [N, classes]`.
pub const LOGITS: &str = "logits";
/// The oldest version of the standard operators that is taken.
const OLDEST_OPSET: i64 = 13;
/// What a batch's dimension is called where it is open.
const ANY_BATCH: &str = "N";

/// How a pixel becomes what the network was trained on: `(value / 255 - mean) / std`, for red,
/// green and blue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    /// What is subtracted, where black is 0 and white 1.
    pub mean: [f32; 3],
    /// What the difference is divided by.
    pub std: [f32; 3],
}

impl Normalization {
    /// What networks trained on ImageNet usually expect.
    pub const IMAGENET: Self = Self {
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
    };

    fn check(&self) -> Result<(), ModelError> {
        let Self { mean, std } = self;
        let wrong = |reason: String| Err(ModelError::Normalization(reason));
        if mean.iter().any(|value| !value.is_finite()) {
            return wrong(format!("the mean {mean:?} must be three finite numbers"));
        }
        if std.iter().any(|value| !value.is_normal() || *value < 0.0) {
            return wrong(format!(
                "the standard deviation {std:?} must be three finite numbers above 0"
            ));
        }
        if mean.iter().chain(std).all(|value| *value > 1.0) {
            return wrong(format!(
                "the mean {mean:?} and the standard deviation {std:?} are for pixels from 0 to 255; divide them by 255"
            ));
        }
        Ok(())
    }
}

/// The images of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// As many as one likes.
    Any,
    /// Exactly this many.
    Fixed(usize),
}

/// The element type of the network between the normalisation and the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BodyPrecision {
    /// float32, as exported.
    Fp32,
    /// bfloat16: float32's range, 8 bits of precision.
    Bf16,
    /// float16: up to 65504, 11 bits of precision.
    Fp16,
}

/// A classifier with the input [`IMAGES`] and the output [`LOGITS`], which normalises in the graph.
///
/// Models that take integers normalise by themselves: they get the pixels from 0 to 255 as they
/// are, and a mean and a standard deviation in their manifest are not used.
#[derive(Clone)]
pub struct ServingGraph {
    /// Logits for an image.
    pub classes: usize,
    /// The images' height, in pixels.
    pub height: u32,
    /// The images' width, in pixels.
    pub width: u32,
    /// How many images a run may have.
    pub batch: Batch,
    /// Whether a Softmax or LogSoftmax at the end was removed.
    pub softmax: bool,
    /// Whether the graph normalises; not so where the network takes integers.
    pub normalizes: bool,
    /// Whether the numbers that come out are no logits but what a last layer would take (see
    /// [`Base`](super::Base)).
    pub features: bool,
    /// Whether layers compute with 8-bit integers.
    pub quantized: bool,
    /// The rewritten model. Initializers stored as halves mean float32.
    model: ModelProto,
    /// How many nodes at the start are ours.
    prologue: usize,
    /// What they make of the images: the network's input.
    network_input: String,
    network_elem: DataType,
}

impl ServingGraph {
    /// Rewrites `model`; `size` is for models that leave the images' height or width open.
    ///
    /// # Errors
    /// Whatever makes the model something else than a classifier of RGB images in one
    /// self-contained file.
    pub fn new(
        mut model: ModelProto,
        normalization: &Normalization,
        size: Option<&InputSize>,
    ) -> Result<Self, ModelError> {
        normalization.check()?;
        check_file(&model)?;
        fold::widen(&mut model)?;
        model.ir_version = model.ir_version.max(Some(4));
        let graph = model.graph.get_or_insert_default();
        // What is stored is not fed; old files list it as an input too.
        let stored: HashSet<String> = initializer_names(graph).map(str::to_owned).collect();
        graph.input.retain(|input| !stored.contains(input.name()));
        fold::constants_as_tensors(graph);
        fold::casts(graph)?;
        check_order(graph)?;

        let input = inspect::input(graph, size)?;
        let scores = scores::scores(graph)?;

        let last = take_scores(graph, &scores)?;
        let mut names = Names::of(graph);
        let network_input = names.free("network_input");
        walk::rename(graph, &input.name, &network_input);
        let last = free_reserved(graph, last, &mut names);
        finish(graph, &scores, last, &mut names);
        let prologue = begin(graph, &input, &network_input, normalization, &mut names);
        if input.batch == Batch::Any || input.any_size {
            forget_shapes(graph);
        }
        Ok(Self {
            classes: scores.classes,
            height: input.height,
            width: input.width,
            batch: input.batch,
            softmax: scores.softmax.is_some(),
            normalizes: input.elem == DataType::Float || input.elem == DataType::Double,
            features: false,
            quantized: model
                .graph
                .iter()
                .flat_map(|graph| &graph.node)
                .any(|node| walk::is(node, "QuantizeLinear")),
            model,
            prologue,
            network_input: if prologue > 0 {
                network_input
            } else {
                IMAGES.to_owned()
            },
            network_elem: input.elem,
        })
    }

    /// The graph as an ONNX file, for `batch` images a run (`None`: any number, the dimension `N`).
    ///
    /// # Errors
    /// A batch that the model is not made for; a network that cannot be given the element type.
    pub fn to_onnx(
        &self,
        batch: Option<usize>,
        precision: BodyPrecision,
    ) -> Result<Vec<u8>, ModelError> {
        if let Batch::Fixed(fixed) = self.batch
            && batch != Some(fixed)
        {
            let asked = batch.map_or("any number of images".to_owned(), |batch| {
                format!("batches of {batch}")
            });
            return Err(ModelError::Batch { fixed, asked });
        }
        let mut model = self.model.clone();
        let graph = model.graph.get_or_insert_default();
        let first = match batch {
            Some(batch) => dimension::Value::DimValue(batch as i64),
            None => dimension::Value::DimParam(ANY_BATCH.into()),
        };
        for value in graph.input.iter_mut().chain(&mut graph.output) {
            set_first_dimension(value, &first);
        }
        let elem = match precision {
            BodyPrecision::Fp32 => return encode::encode(model, as_float),
            BodyPrecision::Bf16 => DataType::Bfloat16,
            BodyPrecision::Fp16 => DataType::Float16,
        };
        let typed = typing::apply(
            &mut model,
            &typing::Body {
                input: &self.network_input,
                elem: self.network_elem,
                first: self.prologue,
            },
            elem,
        )?;
        encode::encode(model, |tensor| {
            typed
                .get(tensor.name())
                .copied()
                .unwrap_or_else(|| as_float(tensor))
        })
    }
}

impl ServingGraph {
    /// The graph as a file that can be served, with `manifest` in place of the one it came with.
    ///
    /// # Errors
    /// As for [`Self::to_onnx`].
    pub fn to_file(&self, manifest: &Manifest) -> Result<Vec<u8>, ModelError> {
        let mut file = self.clone();
        manifest.write(&mut file.model);
        let batch = match self.batch {
            Batch::Any => None,
            Batch::Fixed(batch) => Some(batch),
        };
        file.to_onnx(batch, BodyPrecision::Fp32)
    }
}

impl fmt::Debug for ServingGraph {
    /// Without the model, which is megabytes of weights.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServingGraph")
            .field("classes", &self.classes)
            .field("height", &self.height)
            .field("width", &self.width)
            .field("batch", &self.batch)
            .field("softmax", &self.softmax)
            .field("normalizes", &self.normalizes)
            .field("features", &self.features)
            .field("quantized", &self.quantized)
            .finish_non_exhaustive()
    }
}

/// Halves are written as float32, everything else as it is.
fn as_float(tensor: &TensorProto) -> Storage {
    let elem = tensor::elem(tensor);
    Storage {
        elem: if tensor::is_half(elem) {
            DataType::Float
        } else {
            elem
        },
        overflow: false,
    }
}

fn check_file(model: &ModelProto) -> Result<(), ModelError> {
    if !model.training_info.is_empty() {
        return Err(ModelError::Training);
    }
    let opset = model
        .opset_import
        .iter()
        .find(|opset| walk::is_default_domain(opset.domain()));
    match opset.map(|opset| opset.version()) {
        None => return Err(ModelError::NoOpset),
        Some(found) if found < OLDEST_OPSET => return Err(ModelError::Opset { found }),
        Some(_) => {}
    }
    model
        .graph
        .iter()
        .try_for_each(|graph| walk::each_tensor(graph, &mut tensor::refuse_external))
}

/// Refuses nodes that use what no node before them makes.
fn check_order(graph: &GraphProto) -> Result<(), ModelError> {
    let mut known: HashSet<&str> = initializer_names(graph)
        .chain(graph.input.iter().map(|input| input.name()))
        .collect();
    for node in &graph.node {
        if let Some(name) = node
            .input
            .iter()
            .find(|name| !name.is_empty() && !known.contains(name.as_str()))
        {
            return Err(ModelError::Node {
                node: walk::describe(node),
                reason: format!("uses the tensor `{name}`, which nothing before it makes"),
            });
        }
        known.extend(node.output.iter().map(String::as_str));
    }
    Ok(())
}

fn initializer_names(graph: &GraphProto) -> impl Iterator<Item = &str> {
    let sparse = graph
        .sparse_initializer
        .iter()
        .flat_map(|sparse| &sparse.values);
    graph
        .initializer
        .iter()
        .chain(sparse)
        .map(|tensor| tensor.name())
}

/// Removes the Softmax, the other outputs and the nodes that only they needed. Returns the scores'
/// tensor.
fn take_scores(graph: &mut GraphProto, scores: &Scores) -> Result<String, ModelError> {
    let mut last = scores.output.clone();
    if let Some(softmax) = &scores.softmax {
        if softmax.probabilities == last {
            last.clone_from(&softmax.logits);
        } else {
            let inputs = graph.node.iter_mut().flat_map(|node| &mut node.input);
            inputs
                .filter(|name| **name == softmax.probabilities)
                .for_each(|name| name.clone_from(&softmax.logits));
        }
    }
    if inspect::producer(graph, &last).is_none() {
        return Err(ModelError::Output(format!(
            "output `{}` is not computed from the images",
            scores.output
        )));
    }
    graph.output.retain(|output| output.name() == scores.output);
    keep_only(graph, HashSet::from([last.clone()]));
    Ok(last)
}

/// Removes what is not needed to compute the tensors `needed`.
fn keep_only(graph: &mut GraphProto, mut needed: HashSet<String>) {
    let keep: Vec<bool> = graph
        .node
        .iter()
        .rev()
        .map(|node| {
            let keep = node.output.iter().any(|output| needed.contains(output));
            if keep {
                needed.extend(walk::uses(node).into_iter().map(str::to_owned));
            }
            keep
        })
        .collect();
    let count = graph.node.len();
    let removed: HashSet<String> = graph
        .node
        .iter()
        .zip(keep.iter().rev())
        .filter(|(_, keep)| !**keep)
        .flat_map(|(node, _)| {
            walk::uses(node)
                .into_iter()
                .chain(node.output.iter().map(String::as_str))
        })
        .filter(|name| !needed.contains(*name))
        .map(str::to_owned)
        .collect();
    fold::retain_indices(&mut graph.node, |index| keep[count - 1 - index]);
    graph
        .initializer
        .retain(|tensor| !removed.contains(tensor.name()));
    graph
        .value_info
        .retain(|value| !removed.contains(value.name()));
}

/// Takes the serving graph's two names away from the network's tensors. Returns the new name of the
/// tensor `last`.
fn free_reserved(graph: &mut GraphProto, mut last: String, names: &mut Names) -> String {
    for reserved in [IMAGES, LOGITS] {
        if names.contains(reserved) {
            let free = names.free(&format!("network_{reserved}"));
            walk::rename(graph, reserved, &free);
            if last == reserved {
                last = free;
            }
        }
    }
    last
}

/// Gives the scores the name [`LOGITS`], the type float32 and the shape `[N, classes]`.
fn finish(graph: &mut GraphProto, scores: &Scores, mut last: String, names: &mut Names) {
    if !scores.flat {
        let flat = names.free("network_scores");
        graph.node.push(node(
            "Flatten",
            &[&last],
            &flat,
            Some(int_attribute("axis", 1)),
        ));
        last = flat;
    }
    if scores.elem == DataType::Double {
        let float = names.free("network_scores_float");
        graph.node.push(node(
            "Cast",
            &[&last],
            &float,
            Some(int_attribute("to", DataType::Float as i64)),
        ));
        last = float;
    }
    walk::rename(graph, &last, LOGITS);
    graph.value_info.retain(|value| value.name() != LOGITS);
    for output in &mut graph.output {
        output.name = Some(LOGITS.into());
        output.r#type = Some(tensor_type(DataType::Float, &[-1, scores.classes as i64]));
    }
}

/// Puts cast, transpose and normalisation in front of the network. Returns how many nodes they are.
fn begin(
    graph: &mut GraphProto,
    input: &Input,
    network_input: &str,
    normalization: &Normalization,
    names: &mut Names,
) -> usize {
    let cast = |elem: DataType| Some(("Cast", int_attribute("to", elem as i64), None));
    let to_nchw = (input.layout == Layout::Nchw)
        .then(|| ("Transpose", ints_attribute("perm", &[0, 3, 1, 2]), None));
    let steps = match input.elem {
        DataType::Float | DataType::Double => {
            let channels = match input.layout {
                Layout::Nchw => [1, 3, 1, 1],
                Layout::Nhwc => [1, 1, 1, 3],
            };
            let [scale, bias] =
                ["preprocess_scale", "preprocess_bias"].map(|name| names.free(name));
            let of = |formula: fn(f64, f64) -> f64| {
                let pairs = normalization.mean.iter().zip(normalization.std);
                pairs
                    .map(|(&mean, std)| formula(mean.into(), std.into()) as f32)
                    .collect::<Vec<_>>()
            };
            graph.initializer.push(tensor::floats(
                &scale,
                &channels,
                &of(|_, std| 1.0 / (255.0 * std)),
            ));
            graph.initializer.push(tensor::floats(
                &bias,
                &channels,
                &of(|mean, std| -mean / std),
            ));
            vec![
                cast(DataType::Float),
                to_nchw,
                Some(("Mul", AttributeProto::default(), Some(scale))),
                Some(("Add", AttributeProto::default(), Some(bias))),
                if input.elem == DataType::Double {
                    cast(DataType::Double)
                } else {
                    None
                },
            ]
        }
        // A cast to the same type would be one that TensorRT refuses.
        DataType::Uint8 => vec![to_nchw],
        elem => vec![cast(elem), to_nchw],
    };
    let steps: Vec<_> = steps.into_iter().flatten().collect();
    let count = steps.len();
    if count == 0 {
        walk::rename(graph, network_input, IMAGES);
    }
    let mut before = IMAGES.to_owned();
    let mut nodes: Vec<NodeProto> = Vec::with_capacity(count + graph.node.len());
    for (index, (op_type, attribute, operand)) in steps.into_iter().enumerate() {
        let output = match index + 1 == count {
            true => network_input.to_owned(),
            false => names.free(&format!("preprocess_{}", op_type.to_ascii_lowercase())),
        };
        let inputs: Vec<&str> = std::iter::once(before.as_str())
            .chain(operand.as_deref())
            .collect();
        nodes.push(node(
            op_type,
            &inputs,
            &output,
            Some(attribute).filter(|attribute| attribute.name.is_some()),
        ));
        before = output;
    }
    nodes.append(&mut graph.node);
    graph.node = nodes;
    for value in &mut graph.input {
        value.name = Some(IMAGES.into());
        value.r#type = Some(tensor_type(
            DataType::Uint8,
            &[-1, input.height.into(), input.width.into(), 3],
        ));
    }
    count
}

/// Drops the shapes declared for tensors within the network: they may tell of another batch or
/// size.
fn forget_shapes(graph: &mut GraphProto) {
    for value in graph
        .value_info
        .iter_mut()
        .filter_map(|value| value.r#type.as_mut()?.value.as_mut())
    {
        if let type_proto::Value::TensorType(tensor) = value {
            tensor.shape = None;
        }
    }
}

fn set_first_dimension(value: &mut ValueInfoProto, first: &dimension::Value) {
    if let Some(type_proto::Value::TensorType(tensor)) =
        value.r#type.as_mut().and_then(|value| value.value.as_mut())
        && let Some(dim) = tensor
            .shape
            .as_mut()
            .and_then(|shape| shape.dim.first_mut())
    {
        dim.value = Some(first.clone());
    }
}

/// The type of a tensor; a dimension of -1 is a batch of any size.
pub(super) fn tensor_type(elem: DataType, dims: &[i64]) -> TypeProto {
    let dim = |&dim: &i64| Dimension {
        denotation: None,
        value: Some(match dim {
            -1 => dimension::Value::DimParam(ANY_BATCH.into()),
            dim => dimension::Value::DimValue(dim),
        }),
    };
    let shape = TensorShapeProto {
        dim: dims.iter().map(dim).collect(),
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(elem as i32),
        shape: Some(shape),
    };
    TypeProto {
        denotation: None,
        value: Some(type_proto::Value::TensorType(tensor)),
    }
}

fn tensor_attribute(name: &str, value: TensorProto) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Tensor as i32),
        t: Some(value),
        ..Default::default()
    }
}
