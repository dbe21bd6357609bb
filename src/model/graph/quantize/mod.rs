//! 8-bit integers for the layers that have weights: pairs of QuantizeLinear and DequantizeLinear
//! ("Q/DQ") around them, which engines fuse with the layers into integer arithmetic.
//!
//! Weights are `int8` with a scale for each output channel. Activations have one scale: `uint8`
//! where they are never negative, as after a Relu, else `int8`; 0 is always stored as 0. Biases
//! stay float32.

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
};

/// A layer that can be quantised: a Conv, Gemm or MatMul with stored weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The node's name in the file, or its output's.
    pub name: String,
    /// The tensor of activations that it reads.
    pub input: String,
    /// Whether the channels of that tensor are its second dimension; else its last.
    pub channels_second: bool,
}

/// The values that a tensor of activations can have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The largest absolute value that is told apart; larger ones become this.
    pub limit: f32,
    /// Whether there are negative values.
    pub signed: bool,
}

/// How to quantise a graph.
#[derive(Clone, Debug, Default)]
pub struct Quantization {
    /// The range of each of the [`ServingGraph::ranged_tensors`].
    pub ranges: HashMap<String, Range>,
    /// For each layer's input the mean of each channel: with them, biases make up for what the
    /// rounding of the weights changes on average. A layer without them is not corrected.
    pub means: HashMap<String, Vec<f32>>,
    /// The names of layers that stay float32.
    pub keep_float: HashSet<String>,
}

impl Range {
    fn elem(self) -> DataType {
        if self.signed {
            DataType::Int8
        } else {
            DataType::Uint8
        }
    }

    /// The value of one step.
    pub fn scale(self) -> f32 {
        let steps = if self.signed { 127.0 } else { 255.0 };
        // A tensor that is always 0 has no range; whatever its scale is, 0 stays 0.
        if self.limit > f32::MIN_POSITIVE * 256.0 {
            self.limit / steps
        } else {
            1.0
        }
    }
}

impl ServingGraph {
    /// The same network with every BatchNorm in the convolution before it, where that is possible.
    ///
    /// # Errors
    /// Weights that contradict their shape.
    pub fn folded(&self) -> Result<Self, ModelError> {
        let mut folded = self.clone();
        let graph = folded.model.graph.get_or_insert_default();
        batch_norm::fold(graph)?;
        remove_unused(graph);
        Ok(folded)
    }

    /// The layers that can be quantised, in the order of the computation.
    pub fn layers(&self) -> Vec<Layer> {
        let Some(graph) = &self.model.graph else {
            return Vec::new();
        };
        layers(graph).into_iter().map(|(_, layer)| layer).collect()
    }

    /// The tensors whose ranges [`Self::quantized`] needs, whichever layers stay float.
    pub fn ranged_tensors(&self) -> Vec<String> {
        let Some(graph) = &self.model.graph else {
            return Vec::new();
        };
        let mut tensors: Vec<String> = Points::of(graph, &HashSet::new())
            .0
            .into_iter()
            .map(|point| source(graph, &point.tensor).to_owned())
            .collect();
        let mut seen = HashSet::new();
        tensors.retain(|tensor| seen.insert(tensor.clone()));
        tensors
    }

    /// The graph as an ONNX file in float32 that also gives the tensors of these names, after the
    /// logits.
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
    /// No layer that can be quantised; a tensor without a range.
    pub fn quantized(&self, how: &Quantization) -> Result<Self, ModelError> {
        let mut quantized = self.clone();
        let graph = quantized.model.graph.get_or_insert_default();
        if self.quantized {
            return Err(ModelError::Quantization(
                "is quantised already; give the model that it was made of".into(),
            ));
        }
        if self.network_elem == DataType::Double {
            return Err(ModelError::Quantization(
                "computes in float64; export it in float32".into(),
            ));
        }
        let layers: Vec<_> = layers(graph)
            .into_iter()
            .filter(|(_, layer)| !how.keep_float.contains(&layer.name))
            .collect();
        if layers.is_empty() {
            let reason = "has no layer to quantise: no Conv, Gemm or MatMul with stored weights that may not stay float";
            return Err(ModelError::Quantization(reason.into()));
        }
        let points = Points::of(graph, &how.keep_float);
        let mut writer = Writer {
            names: Names::of(graph),
            before: HashMap::new(),
            after: HashMap::new(),
            first: Vec::new(),
        };
        for (index, layer) in &layers {
            writer.weights(graph, *index, how.means.get(&layer.input))?;
        }
        for point in points.0 {
            let root = source(graph, &point.tensor);
            let range = how.ranges.get(root).copied().ok_or_else(|| {
                ModelError::Quantization(format!("the range of the tensor `{root}` is not known"))
            })?;
            writer.activations(graph, &point, range);
        }
        writer.finish(graph, self.prologue);
        remove_unused(graph);
        quantized.quantized = true;
        Ok(quantized)
    }

    /// The size of a file of the network in float32, in bytes, nearly.
    pub fn size(&self) -> usize {
        let stored = self.model.graph.iter().flat_map(|graph| &graph.initializer);
        let size = |tensor| {
            let bytes = tensor::float_size(super::as_float(tensor).elem).unwrap_or(1);
            tensor::len(tensor)
                .unwrap_or_default()
                .saturating_mul(bytes)
        };
        stored.map(size).fold(0, usize::saturating_add)
    }

    /// The same network for engines that know no unsigned integers: steps of `int8` that reach as
    /// far.
    pub fn with_signed_activations(&self) -> Self {
        let mut signed = self.clone();
        signed_activations(signed.model.graph.get_or_insert_default());
        signed
    }
}

/// The nodes that are layers, by index.
fn layers(graph: &GraphProto) -> Vec<(usize, Layer)> {
    let stored: HashSet<&str> = initializer_names(graph).collect();
    let layer = |(index, node): (usize, &NodeProto)| {
        let is_layer = is(node, "Conv")
            || (is(node, "Gemm") && walk::int(node, "transA").unwrap_or(0) == 0)
            || is(node, "MatMul");
        let (activations, weights) = (input(node, 0)?, input(node, 1)?);
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
        (is_layer && computed && fits && stored.contains(weights)).then(|| {
            (
                index,
                Layer {
                    name,
                    input: activations.to_owned(),
                    channels_second: is(node, "Conv"),
                },
            )
        })
    };
    graph.node.iter().enumerate().filter_map(layer).collect()
}

/// A tensor that is quantised, and the inputs of nodes that then read it so.
struct Point {
    tensor: String,
    readers: Vec<(usize, usize)>,
}

/// All of them, in the order of the graph's nodes.
struct Points(Vec<Point>);

impl Points {
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
            // A residual addition is done by the convolution before it, if the other summand is
            // quantised too.
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
        // What picks values out of a quantised tensor can do so in 8 bits.
        let mut next = 0;
        while let Some(point) = points.0.get(next) {
            let producer = graph
                .node
                .iter()
                .position(|node| node.output.first() == Some(&point.tensor));
            if let Some(index) = producer.filter(|&index| picks_values(graph, &graph.node[index])) {
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
            None => self.0.push(Point {
                tensor: tensor.to_owned(),
                readers: vec![reader],
            }),
        }
    }
}

fn is_convolution(graph: &GraphProto, name: &str) -> bool {
    inspect::producer(graph, name).is_some_and(|node| is(node, "Conv"))
}

/// Whether the node's output has only values of its input, or 0.
fn picks_values(graph: &GraphProto, node: &NodeProto) -> bool {
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

/// The tensor that the values of `name` come from unchanged.
fn source<'a>(graph: &'a GraphProto, name: &'a str) -> &'a str {
    match inspect::producer(graph, name).filter(|node| picks_values(graph, node)) {
        Some(node) => source(graph, &node.input[0]),
        None => name,
    }
}

/// Writes nodes, which wait for their place so that the indices of nodes stay right meanwhile.
struct Writer {
    names: Names,
    first: Vec<NodeProto>,
    before: HashMap<usize, Vec<NodeProto>>,
    after: HashMap<usize, Vec<NodeProto>>,
}

impl Writer {
    /// Stores the weights of the layer at `index` in 8 bits; `means` are those of its input's
    /// channels.
    fn weights(
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
        let quantized = Weights::quantize(stored, axis)?;

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

    /// Puts a pair of Q and DQ between the tensor and its readers.
    fn activations(&mut self, graph: &mut GraphProto, point: &Point, range: Range) {
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

    fn finish(mut self, graph: &mut GraphProto, prologue: usize) {
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
struct Weights {
    dims: Vec<i64>,
    /// The axis of the output channels.
    axis: usize,
    /// `int8`.
    values: Vec<u8>,
    /// One for each output channel.
    scales: Vec<f32>,
    /// What rounding added to each value.
    errors: Vec<f32>,
}

impl Weights {
    fn quantize(stored: &TensorProto, axis: usize) -> Result<Self, ModelError> {
        let values = tensor::to_floats(stored)?;
        let wrong = || {
            ModelError::Quantization(format!(
                "the weights `{}` have the shape {:?}",
                stored.name(),
                stored.dims
            ))
        };
        let channels = stored
            .dims
            .get(axis)
            .and_then(|&dim| usize::try_from(dim).ok())
            .filter(|&dim| dim > 0);
        // Without values there may be any number of channels.
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
                Range {
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

/// The layer's bias less what the rounding of its weights adds on average; `None` where there is no
/// place for it.
fn corrected_bias(
    graph: &GraphProto,
    layer: &NodeProto,
    weights: &Weights,
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

fn bytes(name: &str, elem: DataType, dims: &[i64], values: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(elem as i32),
        dims: dims.to_vec(),
        raw_data: Some(values.into()),
        ..Default::default()
    }
}

/// Drops the stored tensors that no node reads any more.
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

/// Gives every pair of `uint8` whose zero point is 0 the type `int8`.
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
