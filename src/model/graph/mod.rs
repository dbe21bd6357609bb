//! The serving graph: rewrites any ONNX classifier into the form that every engine loads.
//!
//! A serving graph takes `uint8` RGB pixels and returns float32 logits. [`ServingGraph::new`]
//! checks what the file asks for (`bounds`), puts nodes in order (`order`), upgrades old operators
//! (`upgrade`), replaces calls of functions (`inline`), widens 16-bit floats (`fold`), rewrites
//! what engines compute differently (`operators`), finds the image input (`inspect`) and the scores
//! (`scores`), puts cast, transpose and normalization in front, and removes a final Softmax or
//! Sigmoid. Further rewrites change the element type (`typing`), the precision of the layers
//! (`quantize`, `batch_norm`), the last layer (`head`) or the operator of linear layers
//! (`convolution`); `encode` writes the result. What an engine is still known to compute wrongly,
//! `limits` finds by the engine's table.

mod batch_norm;
mod bounds;
mod convolution;
mod embedding;
mod encode;
mod fold;
mod head;
mod inline;
mod inspect;
mod limits;
mod operators;
mod order;
mod quantize;
mod scores;
mod spatial;
mod typing;
mod upgrade;
mod walk;

#[cfg(test)]
mod tests;

use std::{collections::HashSet, fmt};

use prost::Message;
use sha2::{Digest, Sha256};

pub use self::embedding::Serving;
pub(super) use self::head::Head;
pub use self::head::LinearLayer;
#[cfg(test)]
pub(crate) use self::limits::first_beyond;
pub use self::limits::{Limit, Operation};
pub use self::quantize::{ActivationRange, Layer, Quantization};
pub(super) use self::walk::{int_attribute, ints_attribute, node};
use self::{
    embedding::Embedding,
    encode::InitializerFormat,
    inspect::{ImageInput, ImageLayout, Missing},
    scores::Scores,
    walk::Names,
};
use super::{
    ChannelOrder, Manifest, ModelError,
    onnx::{
        AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto,
        TypeProto, ValueInfoProto,
        attribute_proto::AttributeType,
        tensor_proto::DataType,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
    preprocessing::{Preprocessing, Values},
    tensor,
};
use crate::answer::Activation;

/// The serving graph's input: `uint8 [N, height, width, 3]`, RGB.
pub const IMAGES: &str = "images";
/// The serving graph's output: `float32 [N, classes]`.
pub const LOGITS: &str = "logits";
/// The serving graph's second output, where there is one: `float32 [N, features]`, what the last
/// linear layer reads.
pub const EMBEDDING: &str = "embedding";
/// The symbolic name of a batch dimension of any size.
const ANY_BATCH: &str = "N";

/// The normalization of pixels that the network was trained with: `(value / 255 - mean) / std`, for
/// red, green and blue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    /// Mean of each colour, on the scale where black is 0 and white is 1.
    pub mean: [f32; 3],
    /// Standard deviation of each colour, on the same scale.
    pub std: [f32; 3],
}

impl Normalization {
    /// The statistics of ImageNet, which most networks trained on it expect.
    pub const IMAGENET: Self = Self {
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
    };
}

/// The number of images in one run of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// Any number.
    Any,
    /// Exactly this many.
    Fixed(usize),
}

/// The element type of the network between the normalization and the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BodyPrecision {
    /// float32.
    Fp32,
    /// bfloat16: float32's range, 8 bits of precision.
    Bf16,
    /// float16: up to 65504, 11 bits of precision.
    Fp16,
}

/// A classifier with the input [`IMAGES`] and the output [`LOGITS`] that normalizes in the graph.
///
/// Networks that take integers normalize by themselves: they get the pixels from 0 to 255 as they
/// are, and a mean and a standard deviation in their manifest are not used.
#[derive(Clone)]
pub struct ServingGraph {
    /// Number of logits for each image. A network with a single score gets a second one, 0, in
    /// front of it.
    pub classes: usize,
    /// Height of the images, in pixels.
    pub height: u32,
    /// Width of the images, in pixels.
    pub width: u32,
    /// Number of images that a run may have.
    pub batch: Batch,
    /// How probabilities are made from the logits: as a final Softmax, LogSoftmax or Sigmoid did,
    /// which was removed.
    pub activation: Activation,
    /// Whether the network has a single score, for two classes.
    pub is_binary: bool,
    /// The classes' names, if they are in the graph itself.
    pub labels: Option<Vec<String>>,
    /// Whether the serving graph normalizes. It does not if the network takes integers.
    pub normalizes: bool,
    /// The normalization that the settings ask for.
    pub normalization: Normalization,
    /// The colours that the network takes. The serving graph takes RGB in any case.
    pub channels: ChannelOrder,
    /// Whether the outputs are not logits but the input features of a last layer (see
    /// [`Base`](super::Base)).
    pub features: bool,
    /// Whether layers compute with 8-bit integers.
    pub quantized: bool,
    /// What the last linear layer reads, or why there is nothing of the kind.
    embedding: Result<Embedding, String>,
    /// The rewritten model. Initializers that are stored in 16 bits stand for float32 ones: see
    /// [`fold::widen`].
    model: ModelProto,
    /// Number of nodes at the start that preprocess the images.
    prologue: usize,
    /// The tensor that the preprocessing produces: the original network's input.
    network_input: String,
    network_elem: DataType,
}

impl ServingGraph {
    /// Rewrites `model`. The `settings` say what the graph leaves open, and `output` is the name of
    /// the output with the scores, where it has several.
    ///
    /// # Errors
    /// A model that is not a classifier of images in one self-contained file; settings that do not
    /// fit it.
    pub(super) fn new(
        mut model: ModelProto,
        settings: &Preprocessing,
        output: Option<&str>,
    ) -> Result<Self, ModelError> {
        rewrite(&mut model)?;
        let graph = model.graph.get_or_insert_default();

        let labels = match output {
            None => scores::drop_ranking(graph)?,
            Some(_) => None,
        };
        let input = inspect::find_input(graph, settings)?;
        let values = settings.normalization(input.channels)?;
        if input.missing == Missing::Batch {
            add_batch_to_outputs(graph);
        }
        let scores = scores::find_scores(graph, output)?;
        let is_binary = scores.count == 1;
        let classes = scores.count.max(2);

        let last = cut_at_scores(graph, &scores)?;
        let mut names = Names::of(graph);
        let network_input = names.free("network_input");
        walk::rename(graph, &input.name, &network_input);
        let last = free_reserved(graph, last, &mut names);
        let embedding = Embedding::find(graph, &last);
        add_epilogue(graph, &scores, last, &mut names);
        let prologue = add_prologue(graph, &input, &network_input, &values, &mut names);
        if input.batch == Batch::Any || input.any_size {
            forget_shapes(graph);
        }

        Ok(Self {
            classes,
            height: input.height,
            width: input.width,
            batch: input.batch,
            activation: match &scores.ending {
                Some(ending) if !is_binary => ending.activation,
                _ => Activation::Softmax,
            },
            is_binary,
            labels,
            normalizes: input.elem == DataType::Float || input.elem == DataType::Double,
            normalization: values.on_unit_scale(),
            channels: input.channels,
            features: false,
            quantized: model
                .graph
                .iter()
                .flat_map(|graph| &graph.node)
                .any(|node| walk::is(node, "QuantizeLinear")),
            embedding,
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

    /// The graph as an ONNX file for runs of `batch` images; `None` means any number, written as
    /// the symbolic dimension `N`.
    ///
    /// # Errors
    /// A batch size that the model was not exported for; a network that cannot be converted to the
    /// element type.
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
            BodyPrecision::Fp32 => return encode::encode(model, widened_format),
            BodyPrecision::Bf16 => DataType::Bfloat16,
            BodyPrecision::Fp16 => DataType::Float16,
        };
        let typed = typing::apply(
            &mut model,
            &typing::NetworkBody {
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
                .unwrap_or_else(|| widened_format(tensor))
        })
    }

    /// The SHA-256 of all that the engines get to see, and so of all that answers depend on but for
    /// the engine.
    pub fn digest(&self) -> [u8; 32] {
        let mut sha256 = Sha256::new();
        let mut model = self.model.clone();
        let graph = model.graph.get_or_insert_default();
        // The weights one by one, as together they would be copied to be encoded.
        for tensor in &mut graph.initializer {
            match tensor.raw_data.take() {
                Some(raw) => {
                    sha256.update([1]);
                    sha256.update((raw.len() as u64).to_le_bytes());
                    sha256.update(&raw);
                }
                None => sha256.update([0]),
            }
        }
        sha256.update(format!("{:?} {}", self.embedding, self.features));
        sha256.update(model.encode_to_vec());
        sha256.finalize().into()
    }

    /// The graph as a file that can be served, with `manifest` in place of its own.
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
    /// Omits the model, which contains megabytes of weights.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServingGraph")
            .field("classes", &self.classes)
            .field("height", &self.height)
            .field("width", &self.width)
            .field("batch", &self.batch)
            .field("activation", &self.activation)
            .field("normalizes", &self.normalizes)
            .field("features", &self.features)
            .field("quantized", &self.quantized)
            .finish_non_exhaustive()
    }
}

/// Checks the file and rewrites what is written differently by different exporters, or computed
/// differently by different engines, whether or not it is a classifier.
fn rewrite(model: &mut ModelProto) -> Result<(), ModelError> {
    modernize(model)?;
    fold::widen(model)?;
    let graph = model.graph.get_or_insert_default();
    fold::constants_as_tensors(graph);
    fold::casts(graph)?;
    check_order(graph)?;
    walk::drop_repeated_names(&mut graph.node);
    operators::rewrite(graph);
    Ok(())
}

/// Checks the file and writes it in the one form that the rest of the code knows: with opset 13 or
/// newer, nodes in order, and no functions.
pub(super) fn modernize(model: &mut ModelProto) -> Result<(), ModelError> {
    check_file(model)?;
    bounds::check_size(model)?;
    order::sort(model.graph.get_or_insert_default())?;
    upgrade::upgrade(model)?;
    if !model.functions.is_empty() {
        inline::inline(model)?;
        order::sort(model.graph.get_or_insert_default())?;
    }
    bounds::check(model)?;

    // Since IR version 4, initializers need not be listed as inputs. Older files list them as well,
    // but they are not fed.
    model.ir_version = model.ir_version.max(Some(4));
    let graph = model.graph.get_or_insert_default();
    let stored: HashSet<String> = initializer_names(graph).map(str::to_owned).collect();
    graph.input.retain(|input| !stored.contains(input.name()));
    Ok(())
}

/// Rewrites a model that need not be a classifier as every serving graph is, and encodes it.
#[cfg(test)]
pub(crate) fn rewritten_bytes(model: &mut ModelProto) -> Result<Vec<u8>, ModelError> {
    rewrite(model)?;
    encode::encode(model.clone(), widened_format)
}

/// Writes 16-bit floats as float32 and other tensors unchanged.
fn widened_format(tensor: &TensorProto) -> InitializerFormat {
    let stored = tensor::elem(tensor);
    let elem = if tensor::is_half(stored) {
        DataType::Float
    } else {
        stored
    };
    InitializerFormat {
        elem,
        overflow: false,
    }
}

/// Rejects files that are made for training or whose weights are not there.
fn check_file(model: &ModelProto) -> Result<(), ModelError> {
    if !model.training_info.is_empty() {
        return Err(ModelError::Training);
    }
    for function in &model.functions {
        let attributes = function.node.iter().flat_map(|node| &node.attribute);
        let attributes = attributes.chain(&function.attribute_proto);
        walk::each_tensor_of(attributes, &mut tensor::refuse_external)?;
    }
    let mut graphs = model.graph.iter();
    graphs.try_for_each(|graph| walk::each_tensor(graph, &mut tensor::refuse_external))
}

/// Rejects nodes with an input that nothing before them produces, in subgraphs too.
fn check_order(graph: &GraphProto) -> Result<(), ModelError> {
    check_order_within(graph, &mut Vec::new())
}

/// [`check_order`] for a subgraph, which also uses the tensors of the graphs around it.
fn check_order_within<'a>(
    graph: &'a GraphProto,
    around: &mut Vec<HashSet<&'a str>>,
) -> Result<(), ModelError> {
    let mut known: HashSet<&str> = initializer_names(graph)
        .chain(graph.input.iter().map(|input| input.name()))
        .collect();
    for node in &graph.node {
        let is_known = |name: &str| {
            name.is_empty()
                || known.contains(name)
                || around.iter().any(|outer| outer.contains(name))
        };
        if let Some(name) = node.input.iter().find(|name| !is_known(name)) {
            return Err(ModelError::Node {
                node: walk::describe(node),
                reason: format!("uses the tensor `{name}`, which no node produces"),
            });
        }
        for inner in walk::subgraphs(node) {
            around.push(std::mem::take(&mut known));
            check_order_within(inner, around)?;
            known = around.pop().unwrap_or_default();
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

/// Removes the final activation, the other outputs and the nodes that only they need. Returns the name
/// of the tensor of scores.
fn cut_at_scores(graph: &mut GraphProto, scores: &Scores) -> Result<String, ModelError> {
    let mut last = scores.output.clone();
    if let Some(ending) = &scores.ending {
        if ending.probabilities == last {
            last.clone_from(&ending.logits);
        } else {
            let inputs = graph.node.iter_mut().flat_map(|node| &mut node.input);
            for name in inputs.filter(|name| **name == ending.probabilities) {
                name.clone_from(&ending.logits);
            }
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

/// Removes nodes and tensors that are not needed to compute the tensors `needed`.
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

/// Renames tensors of the network that have one of the serving graph's reserved names. Returns
/// the new name of the tensor `last`.
fn free_reserved(graph: &mut GraphProto, mut last: String, names: &mut Names) -> String {
    for reserved in [IMAGES, LOGITS, EMBEDDING] {
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

/// Gives the outputs of a network that takes one image without a batch the dimension of a batch of
/// one, where they are one list.
fn add_batch_to_outputs(graph: &mut GraphProto) {
    let mut names = Names::of(graph);
    let axes = names.free("batch_axes");
    let mut is_used = false;
    for index in 0..graph.output.len() {
        let name = graph.output[index].name().to_owned();
        let found = inspect::tensor_type(graph.output[index].r#type.as_ref());
        let Some((elem, Some(dims))) = found else {
            continue;
        };
        let [classes] = dims[..] else {
            continue;
        };
        // Along its only dimension, which becomes the last one.
        for node in &mut graph.node {
            if node.output.contains(&name)
                && (walk::is(node, "Softmax") || walk::is(node, "LogSoftmax"))
            {
                node.attribute = vec![int_attribute("axis", -1)];
            }
        }
        let batched = names.free(&format!("{name}_batched"));
        graph
            .node
            .push(node("Unsqueeze", &[&name, &axes], &batched, None));
        let output = &mut graph.output[index];
        output.name = Some(batched);
        output.r#type = Some(tensor_type(elem, &[1, classes.unwrap_or(-1)]));
        is_used = true;
    }
    if is_used {
        graph.initializer.push(tensor::int64s(&axes, &[0]));
    }
}

/// Gives the scores the name [`LOGITS`], the type float32 and the shape `[N, classes]`.
fn add_epilogue(graph: &mut GraphProto, scores: &Scores, mut last: String, names: &mut Names) {
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

    if scores.count == 1 {
        // The sigmoid of a score is the second probability of the softmax of 0 and the score.
        let [pair, both] = ["network_score_of", "network_both_scores"].map(|name| names.free(name));
        graph
            .initializer
            .push(tensor::floats(&pair, &[1, 2], &[0.0, 1.0]));
        graph.node.push(node("Mul", &[&last, &pair], &both, None));
        last = both;
    }

    let classes = scores.count.max(2) as i64;
    walk::rename(graph, &last, LOGITS);
    graph.value_info.retain(|value| value.name() != LOGITS);
    for output in &mut graph.output {
        output.name = Some(LOGITS.into());
        output.r#type = Some(tensor_type(DataType::Float, &[-1, classes]));
    }
}

/// A node of the prologue.
struct PrologueStep {
    op_type: &'static str,
    attribute: Option<AttributeProto>,
    /// The stored tensor that is the node's second input.
    operand: Option<String>,
}

impl PrologueStep {
    fn cast(elem: DataType) -> Self {
        Self {
            op_type: "Cast",
            attribute: Some(int_attribute("to", elem as i64)),
            operand: None,
        }
    }

    fn nhwc_to_nchw() -> Self {
        Self {
            op_type: "Transpose",
            attribute: Some(ints_attribute("perm", &[0, 3, 1, 2])),
            operand: None,
        }
    }

    fn squeeze(axes: String) -> Self {
        Self {
            op_type: "Squeeze",
            attribute: None,
            operand: Some(axes),
        }
    }

    fn arithmetic(op_type: &'static str, operand: String) -> Self {
        Self {
            op_type,
            attribute: None,
            operand: Some(operand),
        }
    }
}

/// Puts cast, transpose and normalization in front of the network. Returns the number of nodes that
/// were added.
fn add_prologue(
    graph: &mut GraphProto,
    input: &ImageInput,
    network_input: &str,
    values: &Values,
    names: &mut Names,
) -> usize {
    let steps = prologue_steps(graph, input, values, names);
    let count = steps.len();
    if count == 0 {
        walk::rename(graph, network_input, IMAGES);
    }

    let mut previous = IMAGES.to_owned();
    let mut nodes: Vec<NodeProto> = Vec::with_capacity(count + graph.node.len());
    for (index, step) in steps.into_iter().enumerate() {
        let output = if index + 1 == count {
            network_input.to_owned()
        } else {
            names.free(&format!("preprocess_{}", step.op_type.to_ascii_lowercase()))
        };
        let mut inputs = vec![previous.as_str()];
        inputs.extend(step.operand.as_deref());
        nodes.push(node(step.op_type, &inputs, &output, step.attribute));
        previous = output;
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

/// The steps from `uint8` NHWC images to the network's input. Stores the constants that they need.
fn prologue_steps(
    graph: &mut GraphProto,
    input: &ImageInput,
    values: &Values,
    names: &mut Names,
) -> Vec<PrologueStep> {
    let normalizes = matches!(input.elem, DataType::Float | DataType::Double);

    let mut steps = Vec::new();
    if normalizes || input.channels == ChannelOrder::Gray {
        steps.push(PrologueStep::cast(DataType::Float));
    } else if input.elem != DataType::Uint8 {
        // TensorRT refuses a cast of uint8 to uint8.
        steps.push(PrologueStep::cast(input.elem));
    }
    match input.channels {
        ChannelOrder::Rgb => {}
        ChannelOrder::Bgr => steps.push(reversing_step(graph, names)),
        ChannelOrder::Gray => steps.extend(gray_steps(graph, names)),
    }
    if !normalizes && input.channels == ChannelOrder::Gray {
        steps.push(PrologueStep::cast(input.elem));
    }
    if input.layout == ImageLayout::Nchw {
        steps.push(PrologueStep::nhwc_to_nchw());
    }
    if normalizes {
        steps.extend(normalizing_steps(graph, input, values, names));
    }
    if input.elem == DataType::Double {
        steps.push(PrologueStep::cast(DataType::Double));
    }

    let left_out = match input.missing {
        Missing::Nothing => return steps,
        Missing::Batch => 0,
        Missing::Channel => 3,
    };
    let axes = names.free("preprocess_left_out");
    graph.initializer.push(tensor::int64s(&axes, &[left_out]));
    steps.push(PrologueStep::squeeze(axes));
    steps
}

/// Turns red, green and blue into blue, green and red.
fn reversing_step(graph: &mut GraphProto, names: &mut Names) -> PrologueStep {
    let order = names.free("preprocess_order");
    graph.initializer.push(tensor::int64s(&order, &[2, 1, 0]));
    PrologueStep {
        op_type: "Gather",
        attribute: Some(int_attribute("axis", 3)),
        operand: Some(order),
    }
}

/// Turns red, green and blue into their luma, `(19595 R + 38470 G + 7471 B + 32768) / 65536` rounded
/// down: ITU-R BT.601 as Pillow rounds it. Every intermediate value is exact in float32.
fn gray_steps(graph: &mut GraphProto, names: &mut Names) -> [PrologueStep; 4] {
    const ONE: f32 = 65536.0;
    let [weights, axes, half] =
        ["preprocess_luma", "preprocess_colours", "preprocess_half"].map(|name| names.free(name));
    graph.initializer.extend([
        tensor::floats(
            &weights,
            &[1, 1, 1, 3],
            &[19595.0 / ONE, 38470.0 / ONE, 7471.0 / ONE],
        ),
        tensor::int64s(&axes, &[3]),
        tensor::floats(&half, &[1, 1, 1, 1], &[0.5]),
    ]);
    [
        PrologueStep::arithmetic("Mul", weights),
        PrologueStep {
            op_type: "ReduceSum",
            attribute: Some(int_attribute("keepdims", 1)),
            operand: Some(axes),
        },
        PrologueStep::arithmetic("Add", half),
        PrologueStep {
            op_type: "Floor",
            attribute: None,
            operand: None,
        },
    ]
}

/// Scales pixels and applies mean and deviation, as one multiplication and one addition.
fn normalizing_steps(
    graph: &mut GraphProto,
    input: &ImageInput,
    values: &Values,
    names: &mut Names,
) -> [PrologueStep; 2] {
    let count = input.channels.count();
    let dims = match input.layout {
        ImageLayout::Nchw => [1, count as i64, 1, 1],
        ImageLayout::Nhwc => [1, 1, 1, count as i64],
    };
    let mut factors = values.factors();
    if input.channels == ChannelOrder::Bgr {
        factors.reverse();
    }
    let (scales, biases): (Vec<f32>, Vec<f32>) = factors[..count].iter().copied().unzip();
    let [scale, bias] = ["preprocess_scale", "preprocess_bias"].map(|name| names.free(name));
    graph.initializer.extend([
        tensor::floats(&scale, &dims, &scales),
        tensor::floats(&bias, &dims, &biases),
    ]);
    [
        PrologueStep::arithmetic("Mul", scale),
        PrologueStep::arithmetic("Add", bias),
    ]
}

/// Drops the shapes declared for tensors within the network: they may be those of another batch or
/// image size.
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

/// The type of a tensor. A dimension of -1 is a batch of any size.
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
