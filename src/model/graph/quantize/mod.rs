//! Quantizes layers with weights to 8-bit integers, by pairs of QuantizeLinear and DequantizeLinear
//! ("Q/DQ") around them that engines fuse with the layers into integer arithmetic.
//!
//! Weights are `int8` with one scale for each output channel. Activations have one scale for the
//! whole tensor: `uint8` where they are never negative, as after a Relu, otherwise `int8`. The
//! quantization is symmetric: 0 is always stored as 0. Biases stay float32.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use super::{
    super::{
        ModelError,
        onnx::{
            GraphProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, tensor_proto::DataType,
            type_proto,
        },
        tensor,
    },
    BodyPrecision, ServingGraph, batch_norm, fold, initializer_names, inspect,
    walk::{self, Names, input, int_attribute, is, node},
    widened_format,
};

/// A layer that can be quantized: a Conv, Gemm or MatMul with stored weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The node's name in the file; if it has none, the name of its output.
    pub name: String,
    /// The tensor of activations that it reads.
    pub input: String,
    /// Whether the channels are the second dimension of that tensor; otherwise they are the last.
    pub channels_second: bool,
}

/// The range of values that the 8 bits of a tensor of activations represent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationRange {
    /// The largest absolute value that is represented; larger ones are clipped to it.
    pub limit: f32,
    /// Whether there are negative values.
    pub signed: bool,
}

/// The parameters of quantizing a graph.
#[derive(Clone, Debug, Default)]
pub struct Quantization {
    /// The range of each of the [`ServingGraph::ranged_tensors`].
    pub ranges: HashMap<String, ActivationRange>,
    /// Mean of each channel of each layer's input, used for bias correction: the bias compensates
    /// the mean error that rounding the weights introduces. Layers without means are not corrected.
    pub means: HashMap<String, Vec<f32>>,
    /// Names of the layers that stay float32.
    pub keep_float: HashSet<String>,
}

impl ActivationRange {
    fn elem(self) -> DataType {
        if self.signed {
            DataType::Int8
        } else {
            DataType::Uint8
        }
    }

    /// The difference between two neighbouring quantized values.
    pub fn scale(self) -> f32 {
        let steps = if self.signed { 127.0 } else { 255.0 };
        // A tensor that is always 0 has no range; 0 is stored as 0 with any scale.
        if self.limit > f32::MIN_POSITIVE * 256.0 {
            self.limit / steps
        } else {
            1.0
        }
    }
}

impl ServingGraph {
    /// The same network with every BatchNorm folded into the convolution before it where possible.
    ///
    /// # Errors
    /// Weights whose number does not fit their shape.
    pub fn folded(&self) -> Result<Self, ModelError> {
        let mut folded = self.clone();
        let graph = folded.model.graph.get_or_insert_default();
        batch_norm::fold(graph)?;
        remove_unused(graph);
        Ok(folded)
    }

    /// The layers that can be quantized, in the order of the computation.
    pub fn layers(&self) -> Vec<Layer> {
        let Some(graph) = &self.model.graph else {
            return Vec::new();
        };
        layers(graph).into_iter().map(|(_, layer)| layer).collect()
    }

    /// The tensors whose ranges [`Self::quantized`] may need, whichever layers stay float32.
    pub fn ranged_tensors(&self) -> Vec<String> {
        let Some(graph) = &self.model.graph else {
            return Vec::new();
        };
        let mut tensors: Vec<String> = QuantizationPoints::of(graph, &HashSet::new())
            .0
            .into_iter()
            .map(|point| source(graph, &point.tensor).to_owned())
            .collect();
        let mut seen = HashSet::new();
        tensors.retain(|tensor| seen.insert(tensor.clone()));
        tensors
    }

    /// The graph as a float32 ONNX file with additional outputs after the logits: the tensors with
    /// these names.
    ///
    /// # Errors
    /// As for [`Self::to_onnx`].
    pub fn tapped(&self, batch: Option<usize>, tensors: &[String]) -> Result<Vec<u8>, ModelError> {
        let mut tapped = self.clone();
        let graph = tapped.model.graph.get_or_insert_default();
        let float = type_proto::Tensor {
            elem_type: Some(DataType::Float as i32),
            shape: None,
        };
        let float = TypeProto {
            denotation: None,
            value: Some(type_proto::Value::TensorType(float)),
        };
        let output = |name: &String| ValueInfoProto {
            name: Some(name.clone()),
            r#type: Some(float.clone()),
            ..Default::default()
        };
        graph.output.extend(tensors.iter().map(output));
        tapped.to_onnx(batch, BodyPrecision::Fp32)
    }

    /// The network with 8-bit layers.
    ///
    /// # Errors
    /// No layer that can be quantized; a tensor without a range; a graph that is already quantized.
    pub fn quantized(&self, parameters: &Quantization) -> Result<Self, ModelError> {
        let mut quantized = self.clone();
        let graph = quantized.model.graph.get_or_insert_default();
        if self.quantized {
            return Err(ModelError::Quantization(
                "is quantized already; give the model that it was made of".into(),
            ));
        }
        if self.network_elem == DataType::Double {
            return Err(ModelError::Quantization(
                "computes in float64; export it in float32".into(),
            ));
        }
        let layers: Vec<_> = layers(graph)
            .into_iter()
            .filter(|(_, layer)| !parameters.keep_float.contains(&layer.name))
            .collect();
        if layers.is_empty() {
            return Err(ModelError::Quantization(
                "has no layer to quantize: it has no Conv, Gemm or MatMul with stored weights \
                 besides those that stay float"
                    .into(),
            ));
        }

        let points = QuantizationPoints::of(graph, &parameters.keep_float);
        let mut rewriter = QdqRewriter {
            names: Names::of(graph),
            before: HashMap::new(),
            after: HashMap::new(),
            first: Vec::new(),
        };
        for (index, layer) in &layers {
            rewriter.quantize_weights(graph, *index, parameters.means.get(&layer.input))?;
        }
        for point in points.0 {
            let root = source(graph, &point.tensor);
            let range = parameters.ranges.get(root).copied().ok_or_else(|| {
                ModelError::Quantization(format!("the range of the tensor `{root}` is not known"))
            })?;
            rewriter.quantize_activations(graph, &point, range);
        }
        rewriter.insert_nodes(graph, self.prologue);
        remove_unused(graph);
        quantized.quantized = true;
        Ok(quantized)
    }

    /// The approximate size of the network as a float32 file, in bytes: that of its weights.
    pub fn size(&self) -> usize {
        let stored = self.model.graph.iter().flat_map(|graph| &graph.initializer);
        let size = |tensor| {
            let bytes = tensor::float_size(widened_format(tensor).elem).unwrap_or(1);
            tensor::len(tensor)
                .unwrap_or_default()
                .saturating_mul(bytes)
        };
        stored.map(size).fold(0, usize::saturating_add)
    }

    /// The same network for engines without unsigned integers: `uint8` activations become `int8`
    /// ones with the same limit, and so with half the resolution.
    pub fn with_signed_activations(&self) -> Self {
        let mut signed = self.clone();
        signed_activations(signed.model.graph.get_or_insert_default());
        signed
    }
}

/// The nodes that are layers that can be quantized, with their indices.
fn layers(graph: &GraphProto) -> Vec<(usize, Layer)> {
    let stored: HashSet<&str> = initializer_names(graph).collect();
    let layer = |(index, node): (usize, &NodeProto)| {
        let is_layer = is(node, "Conv")
            || (is(node, "Gemm") && walk::int(node, "transA").unwrap_or(0) == 0)
            || is(node, "MatMul");
        let activations = input(node, 0)?;
        let weights = input(node, 1)?;
        let computed = !stored.contains(activations)
            && inspect::producer(graph, activations)
                .is_none_or(|node| fold::constant(node).is_none());
        let rank = inspect::weight_dims(graph, weights).map_or(0, |dims| dims.len());
        let fits = if is(node, "Conv") {
            rank > 2
        } else {
            rank == 2
        };
        let name = match node.name() {
            "" => node.output.first()?.clone(),
            name => name.to_owned(),
        };
        if !is_layer || !computed || !fits || !stored.contains(weights) {
            return None;
        }
        let layer = Layer {
            name,
            input: activations.to_owned(),
            channels_second: is(node, "Conv"),
        };
        Some((index, layer))
    };
    graph.node.iter().enumerate().filter_map(layer).collect()
}

/// A tensor of activations that is quantized.
struct QuantizationPoint {
    tensor: String,
    /// The inputs that then read the quantized tensor, as the index of the node and of its input.
    readers: Vec<(usize, usize)>,
}

/// All quantized tensors of activations.
struct QuantizationPoints(Vec<QuantizationPoint>);

impl QuantizationPoints {
    fn of(graph: &GraphProto, keep_float: &HashSet<String>) -> Self {
        let mut points = Self(Vec::new());
        let layers: Vec<_> = layers(graph)
            .into_iter()
            .filter(|(_, layer)| !keep_float.contains(&layer.name))
            .collect();
        for (index, layer) in &layers {
            points.add(&layer.input, (*index, 0));
        }
        let quantized: HashSet<&str> = layers
            .iter()
            .map(|(index, _)| graph.node[*index].output[0].as_str())
            .collect();
        let stored: HashSet<&str> = initializer_names(graph).collect();
        for (index, node) in graph.node.iter().enumerate() {
            // Engines fuse a residual addition with the convolution before it, if the other summand
            // is quantized too.
            let [a, b] = &node.input[..] else { continue };
            let both_computed = !stored.contains(a.as_str()) && !stored.contains(b.as_str());
            if is(node, "Add")
                && both_computed
                && [a, b]
                    .iter()
                    .any(|name| is_convolution(graph, name) && quantized.contains(name.as_str()))
            {
                for (slot, name) in node.input.iter().enumerate() {
                    points.add(name, (index, slot));
                }
            }
        }

        // Operators that only select values of a quantized tensor can work on 8 bits.
        let mut next = 0;
        while let Some(point) = points.0.get(next) {
            let producer = graph
                .node
                .iter()
                .position(|node| node.output.first() == Some(&point.tensor));
            if let Some(index) = producer.filter(|&index| selects_values(graph, &graph.node[index]))
            {
                points.add(&graph.node[index].input[0], (index, 0));
            }
            next += 1;
        }
        points
    }

    fn add(&mut self, tensor: &str, reader: (usize, usize)) {
        match self.0.iter_mut().find(|point| point.tensor == tensor) {
            Some(point) if point.readers.contains(&reader) => {}
            Some(point) => point.readers.push(reader),
            None => self.0.push(QuantizationPoint {
                tensor: tensor.to_owned(),
                readers: vec![reader],
            }),
        }
    }
}

fn is_convolution(graph: &GraphProto, name: &str) -> bool {
    inspect::producer(graph, name).is_some_and(|node| is(node, "Conv"))
}

/// Whether every value of the node's output is a value of its input, or 0.
fn selects_values(graph: &GraphProto, node: &NodeProto) -> bool {
    let zero = |name: &str| {
        let stored = graph
            .initializer
            .iter()
            .find(|tensor| tensor.name() == name);
        let stored = stored.or_else(|| fold::constant(inspect::producer(graph, name)?));
        stored.is_some_and(|stored| {
            tensor::to_floats(stored).is_ok_and(|values| values.iter().all(|value| *value == 0.0))
        })
    };
    is(node, "MaxPool") && node.output.len() == 1
        || is(node, "Pad") && input(node, 2).is_none_or(zero)
}

/// The tensor from which the values of `name` are taken unchanged.
fn source<'a>(graph: &'a GraphProto, name: &'a str) -> &'a str {
    match inspect::producer(graph, name).filter(|node| selects_values(graph, node)) {
        Some(node) => source(graph, &node.input[0]),
        None => name,
    }
}

/// Adds Q/DQ nodes. They are inserted at the end, so that the indices of nodes stay valid until
/// then.
struct QdqRewriter {
    names: Names,
    /// Nodes to be inserted before the network, before a node and after a node.
    first: Vec<NodeProto>,
    before: HashMap<usize, Vec<NodeProto>>,
    after: HashMap<usize, Vec<NodeProto>>,
}

impl QdqRewriter {
    /// Stores the weights of the layer at `index` in 8 bits. `means` are the means of the channels
    /// of the layer's input.
    fn quantize_weights(
        &mut self,
        graph: &mut GraphProto,
        index: usize,
        means: Option<&Vec<f32>>,
    ) -> Result<(), ModelError> {
        let layer = &graph.node[index];
        let name = layer.input[1].clone();
        let axis = usize::from(!is(layer, "Conv") && walk::int(layer, "transB").unwrap_or(0) == 0);
        let stored = graph
            .initializer
            .iter()
            .find(|tensor| tensor.name() == name);
        let stored =
            stored.ok_or_else(|| ModelError::Quantization(format!("has no weights `{name}`")))?;
        let quantized = QuantizedWeights::new(stored, axis)?;

        if let Some(means) = means
            && let Some(bias) = corrected_bias(graph, &graph.node[index], &quantized, means)?
        {
            let bias_name = self.names.free(&format!("{name}_bias"));
            graph
                .initializer
                .push(tensor::floats(&bias_name, &[bias.len() as i64], &bias));
            let layer = &mut graph.node[index];
            layer.input.truncate(2);
            layer.input.push(bias_name);
        }

        let [int8, scale, zero, float] = ["int8", "scale", "zero_point", "dequantized"]
            .map(|what| self.names.free(&format!("{name}_{what}")));
        let channels = quantized.scales.len() as i64;
        graph.initializer.push(bytes(
            &int8,
            DataType::Int8,
            &quantized.dims,
            quantized.values,
        ));
        graph
            .initializer
            .push(tensor::floats(&scale, &[channels], &quantized.scales));
        graph.initializer.push(bytes(
            &zero,
            DataType::Int8,
            &[channels],
            vec![0; quantized.scales.len()],
        ));
        let dequantize = node(
            "DequantizeLinear",
            &[&int8, &scale, &zero],
            &float,
            Some(int_attribute("axis", axis as i64)),
        );
        self.before.entry(index).or_default().push(dequantize);
        graph.node[index].input[1] = float;
        Ok(())
    }

    /// Inserts a Q/DQ pair between the tensor and its readers.
    fn quantize_activations(
        &mut self,
        graph: &mut GraphProto,
        point: &QuantizationPoint,
        range: ActivationRange,
    ) {
        let tensor = &point.tensor;
        let [scale, zero, quantized, float] = ["scale", "zero_point", "quantized", "dequantized"]
            .map(|what| self.names.free(&format!("{tensor}_{what}")));
        graph
            .initializer
            .push(tensor::floats(&scale, &[], &[range.scale()]));
        graph
            .initializer
            .push(bytes(&zero, range.elem(), &[], vec![0]));
        let pair = [
            node("QuantizeLinear", &[tensor, &scale, &zero], &quantized, None),
            node(
                "DequantizeLinear",
                &[&quantized, &scale, &zero],
                &float,
                None,
            ),
        ];
        match graph
            .node
            .iter()
            .position(|node| node.output.contains(tensor))
        {
            Some(producer) => self.after.entry(producer).or_default().extend(pair),
            None => self.first.extend(pair),
        }
        for &(index, slot) in &point.readers {
            graph.node[index].input[slot].clone_from(&float);
        }
    }

    fn insert_nodes(mut self, graph: &mut GraphProto, prologue: usize) {
        let nodes = std::mem::take(&mut graph.node);
        for (index, node) in nodes.into_iter().enumerate() {
            if index == prologue {
                graph.node.append(&mut self.first);
            }
            graph
                .node
                .extend(self.before.remove(&index).into_iter().flatten());
            graph.node.push(node);
            graph
                .node
                .extend(self.after.remove(&index).into_iter().flatten());
        }
    }
}

/// Weights in 8 bits.
struct QuantizedWeights {
    dims: Vec<i64>,
    /// Axis of the output channels.
    axis: usize,
    /// The bytes of `int8` values.
    values: Vec<u8>,
    /// Scale of each output channel.
    scales: Vec<f32>,
    /// Rounding error of each value: the quantized value less the original one.
    errors: Vec<f32>,
}

impl QuantizedWeights {
    fn new(stored: &TensorProto, axis: usize) -> Result<Self, ModelError> {
        let values = tensor::to_floats(stored)?;
        let wrong = || {
            ModelError::Quantization(format!(
                "the weights `{}` have the shape {:?}, which cannot be quantized: every dimension must \
                 be at least 1",
                stored.name(),
                stored.dims
            ))
        };
        let channels = stored
            .dims
            .get(axis)
            .and_then(|&dim| usize::try_from(dim).ok())
            .filter(|&dim| dim > 0);
        // If another dimension is 0 there are no values, and the shape may claim any number of
        // channels: nothing is allocated for them.
        let channels = channels.filter(|_| !values.is_empty()).ok_or_else(wrong)?;
        let inner: usize = stored.dims[axis + 1..]
            .iter()
            .map(|&dim| dim as usize)
            .product();
        let channel = |index: usize| index / inner.max(1) % channels;
        let mut limits = vec![0_f32; channels];
        for (index, value) in values.iter().enumerate() {
            let limit = &mut limits[channel(index)];
            *limit = limit.max(value.abs());
        }
        let scales: Vec<f32> = limits
            .into_iter()
            .map(|limit| {
                ActivationRange {
                    limit,
                    signed: true,
                }
                .scale()
            })
            .collect();
        let steps = |(index, value): (usize, &f32)| {
            (value / scales[channel(index)])
                .round_ties_even()
                .clamp(-127.0, 127.0)
        };
        let steps: Vec<f32> = values.iter().enumerate().map(steps).collect();
        let errors = values
            .iter()
            .zip(&steps)
            .enumerate()
            .map(|(index, (value, steps))| steps * scales[channel(index)] - value);
        Ok(Self {
            dims: stored.dims.clone(),
            axis,
            errors: errors.collect(),
            values: steps.into_iter().map(|steps| steps as i8 as u8).collect(),
            scales,
        })
    }
}

/// The layer's bias less the mean error that the rounding of its weights adds to each output;
/// `None` for a layer that has no bias input or whose shapes do not fit.
fn corrected_bias(
    graph: &GraphProto,
    layer: &NodeProto,
    weights: &QuantizedWeights,
    means: &[f32],
) -> Result<Option<Vec<f32>>, ModelError> {
    let one =
        |name: &str| walk::attribute(layer, name).is_none_or(|attribute| attribute.f() == 1.0);
    if is(layer, "MatMul") || !one("alpha") || !one("beta") {
        return Ok(None);
    }
    let outputs = weights.scales.len();
    let mut bias = match input(layer, 2) {
        None => vec![0.0; outputs],
        Some(name) => match graph
            .initializer
            .iter()
            .find(|tensor| tensor.name() == name)
        {
            Some(stored) => tensor::to_floats(stored)?,
            None => return Ok(None),
        },
    };
    let groups = walk::int(layer, "group").unwrap_or(1).max(1) as usize;
    let inputs = weights.dims[1 - weights.axis] as usize;
    if bias.len() != outputs || !outputs.is_multiple_of(groups) || means.len() != inputs * groups {
        return Ok(None);
    }
    let kernel: usize = weights.dims[2..].iter().map(|&dim| dim as usize).product();
    for (output, bias) in bias.iter_mut().enumerate() {
        let group = output / (outputs / groups);
        let shift: f64 = (0..inputs)
            .map(|input| {
                let at = if weights.axis == 0 {
                    output * inputs + input
                } else {
                    input * outputs + output
                };
                let error: f32 = weights.errors[at * kernel..(at + 1) * kernel].iter().sum();
                f64::from(error) * f64::from(means[group * inputs + input])
            })
            .sum();
        *bias -= shift as f32;
    }
    Ok(Some(bias))
}

/// A tensor of 8-bit integers.
fn bytes(name: &str, elem: DataType, dims: &[i64], values: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(elem as i32),
        dims: dims.to_vec(),
        raw_data: Some(values.into()),
        ..Default::default()
    }
}

/// Removes the stored tensors that no node reads.
fn remove_unused(graph: &mut GraphProto) {
    let used: HashSet<&str> = graph.node.iter().flat_map(walk::uses).collect();
    let unused: HashSet<String> = graph
        .initializer
        .iter()
        .map(|tensor| tensor.name())
        .filter(|name| !used.contains(name))
        .map(str::to_owned)
        .collect();
    graph
        .initializer
        .retain(|tensor| !unused.contains(tensor.name()));
    graph
        .value_info
        .retain(|value| !unused.contains(value.name()));
}

/// Changes every `uint8` Q/DQ pair whose zero point is 0 to `int8`, and its scale accordingly.
fn signed_activations(graph: &mut GraphProto) {
    let is_unsigned =
        |tensor: &&TensorProto| tensor::elem(tensor) == DataType::Uint8 && tensor.raw_data() == [0];
    let zeros: HashSet<String> = graph
        .initializer
        .iter()
        .filter(is_unsigned)
        .map(|tensor| tensor.name().to_owned())
        .collect();
    let quantizes = graph.node.iter().filter(|node| is(node, "QuantizeLinear"));
    let pairs =
        quantizes.filter_map(|node| Some((input(node, 1)?.to_owned(), input(node, 2)?.to_owned())));
    let (scales, zeros): (HashSet<_>, HashSet<_>) =
        pairs.filter(|(_, zero)| zeros.contains(zero)).unzip();
    for stored in &mut graph.initializer {
        if zeros.contains(stored.name()) {
            stored.data_type = Some(DataType::Int8 as i32);
        } else if scales.contains(stored.name())
            && let Ok(values) = tensor::to_floats(stored)
        {
            let values: Vec<f32> = values.iter().map(|value| value * (255.0 / 127.0)).collect();
            *stored = tensor::floats(stored.name(), &stored.dims, &values);
        }
    }
}
