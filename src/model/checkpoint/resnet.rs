//! Builds an ONNX ResNet from a checkpoint's tensors: detects the architecture by their shapes, and
//! folds BatchNorm into the convolutions.

use bytes::Bytes;

use super::{
    Checkpoint, CheckpointError,
    architecture::{Architecture, Conv},
    choice::{self, Choice},
    error::{self, list, unsupported},
    head::Head,
    layout::{ConvNames, Layout},
    rest,
    tensor_set::TensorSet,
};
use crate::model::{
    graph::{int_attribute, ints_attribute, node, tensor_type},
    onnx::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
        tensor_proto::DataType,
    },
};

/// The epsilon of BatchNorm: PyTorch's default, which published ResNets are trained with. Whole
/// modules say their own.
const EPSILON: f64 = 1e-5;
/// Most parameters, as an ONNX file can have at most 2 GiB.
const MAX_PARAMETERS: usize = (2 << 30) / 4 - 1;
const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

/// What is imported of a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct ResNetOptions {
    /// The network to import of a file with several: the key that it is under, or the beginning or
    /// end of its path.
    pub key: Option<String>,
    /// Height and width of the images that the network takes. Without them, those that networks of
    /// its kind are trained on: 224×224, and 32×32 for a network that takes an image without
    /// reducing it, as for CIFAR.
    pub input_size: Option<(u32, u32)>,
}

/// A network built from a checkpoint.
#[derive(Debug)]
pub struct ResNet {
    /// The name in torchvision, such as `resnet18`.
    pub architecture: String,
    /// Number of learned parameters, counted as in PyTorch: without BatchNorm's statistics.
    pub parameters: usize,
    /// Whether every BatchNorm still has its initial statistics, so that the network was never
    /// trained.
    pub untrained: bool,
    /// What the user should know: which weights were taken, and which were left out.
    pub notes: Vec<String>,
    /// The model, from `input`, `float32 [N, channels, height, width]`, to `logits`,
    /// `float32 [N, classes]`. It has no manifest.
    pub onnx: ModelProto,
}

/// Builds the network that the checkpoint's tensors belong to.
pub(super) fn build(
    checkpoint: Checkpoint,
    options: &ResNetOptions,
) -> Result<ResNet, CheckpointError> {
    let Choice {
        set,
        layout,
        others,
        note,
    } = choice::choose(checkpoint.sets, options.key.as_deref())?;
    let architecture = Architecture::detect(&set, &layout)?;
    rest::check_modules(&set, &layout)?;
    let mut builder = Builder {
        set,
        layout,
        others,
        graph: GraphProto::default(),
        parameters: 0,
        untrained: true,
        notes: note.into_iter().collect(),
    };

    let mut last = builder.stem(&architecture)?;
    let size = options.input_size.unwrap_or(architecture.usual_size());
    let mut side = [size.0, size.1].map(|side| architecture.after_stem(side.into()));
    let mut channels = architecture.stem_outputs();
    for (stage, blocks) in architecture.blocks.iter().enumerate() {
        for block in 0..*blocks {
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            let convs = architecture.block(stage, channels, stride);
            let place = Block {
                stage,
                block,
                stride,
                odd: side.iter().any(|side| side % 2 == 1),
            };
            last = builder.block(&place, &convs, &last)?;
            channels = convs[convs.len() - 1].outputs;
            if stride == 2 {
                side = side.map(|side| side.div_ceil(2));
            }
        }
    }

    let pooled = builder.add(node("GlobalAveragePool", &[&last], "avgpool", None), &[]);
    let flat = builder.add(
        node(
            "Flatten",
            &[&pooled],
            "flatten",
            Some(int_attribute("axis", 1)),
        ),
        &[],
    );
    let head = builder.choose_head(channels)?;
    let classes = builder.head(&head, &flat)?;
    let left = rest::account(
        &builder.set,
        &builder.layout,
        &builder.others,
        &head,
        &architecture.name(),
    )?;
    builder.notes.extend(left);
    let input = [architecture.inputs as i64, size.0.into(), size.1.into()];
    Ok(builder.finish(architecture.name(), input, classes))
}

/// The place of a residual block.
struct Block {
    stage: usize,
    block: usize,
    stride: i64,
    /// Whether the height or width of what it takes is odd.
    odd: bool,
}

/// Builds the graph, taking tensors out of the set.
struct Builder {
    /// The tensors that have not been used yet.
    set: TensorSet,
    layout: Layout,
    /// Other networks in the same set.
    others: Vec<Layout>,
    graph: GraphProto,
    parameters: usize,
    untrained: bool,
    notes: Vec<String>,
}

impl Builder {
    /// Takes a tensor's values out of the set, in f64, so that folding does not lose precision.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f64>, CheckpointError> {
        let Some(tensor) = self.set.tensors.remove(name) else {
            return Err(self.missing(name));
        };
        if tensor.shape() != shape {
            return Err(error::tensor(
                name,
                format!("has the shape {:?} instead of {shape:?}", tensor.shape()),
            ));
        }
        tensor.values(name)
    }

    fn missing(&self, name: &str) -> CheckpointError {
        CheckpointError::Missing {
            tensor: name.into(),
            hint: self.missing_hint(name),
        }
    }

    /// A hint about why a tensor is missing; may be empty.
    fn missing_hint(&self, name: &str) -> String {
        let TensorSet {
            tensors, others, ..
        } = &self.set;
        let layer = &name[..=name.rfind('.').unwrap_or_default()];
        let similar: Vec<String> = tensors
            .keys()
            .chain(others.keys())
            .filter(|name| name.starts_with(layer))
            .cloned()
            .collect();
        if let Some(what) = others.get(name) {
            format!("; under that name it holds {what}")
        } else if !similar.is_empty() {
            format!("; of that layer there are only {}", list(&similar))
        } else if layer.strip_suffix('.') == Some(&self.layout.default_head()) {
            "; without its last layer it cannot classify".into()
        } else {
            String::new()
        }
    }

    /// As [`Self::take`], for a tensor that counts as learned parameters.
    fn take_learned(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f64>, CheckpointError> {
        let values = self.take(name, shape)?;
        self.parameters += values.len();
        if self.parameters > MAX_PARAMETERS {
            return Err(unsupported(format!(
                "has more than {MAX_PARAMETERS} parameters, as many as an ONNX file can hold"
            )));
        }
        Ok(values)
    }

    /// Adds the convolutions before the first stage, and the pooling after them.
    fn stem(&mut self, architecture: &Architecture) -> Result<String, CheckpointError> {
        let mut last = "input".to_owned();
        let count = architecture.stem.len();
        for (index, (names, conv)) in architecture.stem.iter().enumerate() {
            let output = match count {
                1 => "conv1".to_owned(),
                _ => format!("conv1.{}", index * 3),
            };
            last = self.conv(names, conv, &last, &output)?;
            last = self.relu(&last);
        }
        if !architecture.pooled {
            return Ok(last);
        }
        let pool = [
            ("kernel_shape", &[3, 3][..]),
            ("pads", &[1; 4]),
            ("strides", &[2, 2]),
        ];
        Ok(self.add(node("MaxPool", &[&last], "maxpool", None), &pool))
    }

    /// Adds a residual block: convolutions with ReLUs between them, added to the shortcut. Returns
    /// the name of its output.
    fn block(
        &mut self,
        place: &Block,
        convs: &[Conv],
        input: &str,
    ) -> Result<String, CheckpointError> {
        let Block {
            stage,
            block,
            stride,
            odd,
        } = *place;
        // The network gets torchvision's names, wherever the checkpoint is from.
        let within = format!("layer{}.{block}", stage + 1);
        let mut last = input.to_owned();
        for (index, conv) in convs.iter().enumerate() {
            if index > 0 {
                last = self.relu(&last);
            }
            let names = self.layout.convolution(stage, block, index);
            let output = format!("{within}.conv{}", index + 1);
            last = self.conv(&names, conv, &last, &output)?;
        }

        let inputs = convs[0].inputs;
        let outputs = convs[convs.len() - 1].outputs;
        let found = self.layout.shortcut(&self.set, stage, block);
        let pooled = found.as_ref().is_some_and(|found| found.pooled);
        let names = match found {
            Some(found) => Some(found.names),
            None if stride != 1 || inputs != outputs => {
                Some(self.layout.default_shortcut(stage, block))
            }
            None => None,
        };
        let mut shortcut = input.to_owned();
        if pooled && stride != 1 {
            // Only an odd side makes the last value the average of fewer.
            let ceil = odd.then(|| int_attribute("ceil_mode", 1));
            let attributes = [("kernel_shape", &[2, 2][..]), ("strides", &[2, 2])];
            let name = format!("{within}.downsample.avgpool");
            shortcut = self.add(node("AveragePool", &[&shortcut], &name, ceil), &attributes);
        }
        if let Some(names) = names {
            let conv = Conv {
                outputs,
                inputs,
                size: 1,
                stride: if pooled { 1 } else { stride },
                groups: 1,
            };
            shortcut = self.conv(&names, &conv, &shortcut, &format!("{within}.downsample.0"))?;
        }

        let name = format!("layer{}.{block}.add", stage + 1);
        last = self.add(node("Add", &[&last, &shortcut], &name, None), &[]);
        Ok(self.relu(&last))
    }

    /// Adds a convolution with the BatchNorm after it folded in: weights `w · s` and bias `β - μ ·
    /// s`, where `s = γ / √(σ² + ε)`. Returns the name of its output, `output`.
    fn conv(
        &mut self,
        names: &ConvNames,
        conv: &Conv,
        input: &str,
        output: &str,
    ) -> Result<String, CheckpointError> {
        let Conv {
            outputs,
            inputs,
            size,
            stride,
            groups,
        } = *conv;
        rest::check_conv(&self.set, &names.conv, conv)?;
        let epsilon = match self.set.attribute(&names.norm, "eps") {
            Some([epsilon]) if *epsilon > 0.0 => *epsilon,
            _ => EPSILON,
        };
        let shape = [outputs, inputs / groups, size, size];
        let weight_name = format!("{}.weight", names.conv);
        let mut weight = self.take_learned(&weight_name, &shape)?;
        let of = |part: &str| format!("{}.{part}", names.norm);
        let gamma = self.take_learned(&of("weight"), &[outputs])?;
        let beta = self.take_learned(&of("bias"), &[outputs])?;
        let mean = self.take(&of("running_mean"), &[outputs])?;
        let variance = self.take(&of("running_var"), &[outputs])?;
        if let Some(negative) = variance.iter().find(|variance| **variance < 0.0) {
            return Err(error::tensor(
                &of("running_var"),
                format!("contains {negative}; a variance is never below 0"),
            ));
        }
        self.untrained &= mean.iter().all(|mean| *mean == 0.0)
            && variance.iter().all(|variance| *variance == 1.0);

        let scale: Vec<f64> = gamma
            .iter()
            .zip(&variance)
            .map(|(gamma, var)| gamma / (var + epsilon).sqrt())
            .collect();
        for (kernel, scale) in weight
            .chunks_exact_mut(inputs / groups * size * size)
            .zip(&scale)
        {
            kernel.iter_mut().for_each(|weight| *weight *= scale);
        }
        let shift = beta
            .iter()
            .zip(&mean)
            .zip(&scale)
            .map(|((beta, mean), scale)| beta - mean * scale)
            .collect();

        let folded = format!("{output}.weight");
        let bias = format!("{output}.bias");
        self.store(&folded, &shape, weight, &weight_name)?;
        self.store(&bias, &[outputs], shift, &of("bias"))?;

        let size = size as i64;
        let pad = size / 2;
        let attributes = [
            ("kernel_shape", &[size; 2][..]),
            ("pads", &[pad; 4]),
            ("strides", &[stride; 2]),
        ];
        let group = Some(int_attribute("group", groups as i64));
        Ok(self.add(
            node("Conv", &[input, &folded, &bias], output, group),
            &attributes,
        ))
    }

    /// The last layer: the likeliest of those that fit.
    fn choose_head(&mut self, features: usize) -> Result<Head, CheckpointError> {
        let of_others = |head: &Head| {
            let mut prefixes = self.others.iter().map(|other| &other.prefix);
            prefixes.any(|prefix| {
                !self.layout.prefix.starts_with(prefix) && head.name().starts_with(prefix)
            })
        };
        let mut heads = Head::find(&self.set, &self.layout, features).into_iter();
        let Some(head) = heads.next() else {
            return Err(self.no_head(features));
        };
        let others: Vec<Head> = heads.filter(|head| !of_others(head)).collect();
        let rank = head.rank(&self.layout);
        if let Some(other) = others.iter().find(|other| other.rank(&self.layout) == rank) {
            return Err(unsupported(format!(
                "has several last layers, such as `{}` and `{}`, and nothing says which one \
                 classifies; save it without the others",
                head.name(),
                other.name()
            )));
        }
        for other in others {
            self.notes.push(format!(
                "the last layer is `{}`; `{}`, which has {} outputs, was left out",
                head.name(),
                other.name(),
                other.outputs()
            ));
        }
        Ok(head)
    }

    /// Why there is no last layer.
    fn no_head(&self, features: usize) -> CheckpointError {
        let usual = format!("{}.weight", self.layout.default_head());
        let wrong = self.set.tensors.iter().find(|(name, tensor)| {
            **name == usual || (tensor.shape().len() == 2 && name.ends_with("classifier.weight"))
        });
        match wrong {
            Some((name, tensor)) => error::tensor(
                name,
                format!(
                    "has the shape {:?} instead of [classes, {features}]",
                    tensor.shape()
                ),
            ),
            None => self.missing(&usual),
        }
    }

    /// Adds the last layer, or several with a ReLU between them. Returns the number of classes, which
    /// the checkpoint determines.
    fn head(&mut self, head: &Head, input: &str) -> Result<usize, CheckpointError> {
        let count = head.layers.len();
        let mut last = input.to_owned();
        for (index, layer) in head.layers.iter().enumerate() {
            let (name, output) = match count - index {
                1 => ("fc".to_owned(), "logits".to_owned()),
                _ => (format!("fc.{index}"), format!("fc.{index}")),
            };
            if index > 0 && self.relu_before(head, index)? {
                last = self.relu(&last);
            }

            let (inputs, outputs) = (layer.inputs, layer.outputs);
            let [weight, bias] = ["weight", "bias"].map(|part| format!("{}.{part}", layer.name));
            let shape = if layer.convolution {
                vec![outputs, inputs, 1, 1]
            } else {
                vec![outputs, inputs]
            };
            let values = self.take_learned(&weight, &shape)?;
            let [stored, stored_bias] = ["weight", "bias"].map(|part| format!("{name}.{part}"));
            self.store(&stored, &[outputs, inputs], values, &weight)?;
            let values = if self.set.tensors.contains_key(&bias) {
                self.take_learned(&bias, &[outputs])?
            } else {
                vec![0.0; outputs]
            };
            self.store(&stored_bias, &[outputs], values, &bias)?;
            let transposed = Some(int_attribute("transB", 1));
            last = self.add(
                node("Gemm", &[&last, &stored, &stored_bias], &output, transposed),
                &[],
            );
        }
        Ok(head.outputs())
    }

    /// Whether a ReLU is between a layer of the head and the one before. Where the file has only
    /// their tensors, it is where something without tensors is.
    fn relu_before(&mut self, head: &Head, layer: usize) -> Result<bool, CheckpointError> {
        if !head.has_gap_before(layer) {
            return Ok(false);
        }
        let modules: Vec<(String, Option<String>)> = head
            .between(layer)
            .into_iter()
            .map(|name| {
                let class = self
                    .set
                    .modules
                    .get(&name)
                    .map(|module| module.class.clone());
                (name, class)
            })
            .collect();
        if modules.iter().all(|(_, class)| class.is_none()) {
            self.notes.push(format!(
                "between `{}` and `{}`, a ReLU was assumed: the file does not say what is there",
                head.layers[layer - 1].name,
                head.layers[layer].name
            ));
            return Ok(true);
        }

        let mut relu = false;
        for (name, class) in modules {
            match class.as_deref() {
                Some("ReLU") => relu = true,
                Some("Dropout" | "Identity" | "Flatten") | None => {}
                Some(other) => {
                    return Err(unsupported(format!(
                        "has a {other} in its last layer, `{name}`; only ReLU is supported there"
                    )));
                }
            }
        }
        Ok(relu)
    }

    fn relu(&mut self, input: &str) -> String {
        self.add(node("Relu", &[input], &format!("{input}.relu"), None), &[])
    }

    /// Adds a node with additional attributes. Returns the name of its output.
    fn add(&mut self, mut node: NodeProto, attributes: &[(&str, &[i64])]) -> String {
        node.attribute.extend(
            attributes
                .iter()
                .map(|(name, values)| ints_attribute(name, values)),
        );
        let output = node.output[0].clone();
        self.graph.node.push(node);
        output
    }

    /// Stores a float32 tensor. An error about values that are too large names the tensor `source`.
    fn store(
        &mut self,
        name: &str,
        shape: &[usize],
        values: Vec<f64>,
        source: &str,
    ) -> Result<(), CheckpointError> {
        let mut raw = Vec::with_capacity(values.len() * 4);
        for value in values {
            let value = value as f32;
            if !value.is_finite() {
                return Err(error::tensor(
                    source,
                    "has values too large for float32 after BatchNorm is folded in",
                ));
            }
            raw.extend_from_slice(&value.to_le_bytes());
        }
        self.graph.initializer.push(TensorProto {
            name: Some(name.into()),
            data_type: Some(DataType::Float as i32),
            dims: shape.iter().map(|size| *size as i64).collect(),
            raw_data: Some(Bytes::from(raw)),
            ..Default::default()
        });
        Ok(())
    }

    /// The finished model, for images of `[channels, height, width]`.
    fn finish(self, architecture: String, input: [i64; 3], classes: usize) -> ResNet {
        let [channels, height, width] = input;
        let value = |name: &str, shape: &[i64]| ValueInfoProto {
            name: Some(name.into()),
            r#type: Some(tensor_type(DataType::Float, shape)),
            ..Default::default()
        };
        let graph = GraphProto {
            name: Some(architecture.clone()),
            input: vec![value("input", &[-1, channels, height, width])],
            output: vec![value("logits", &[-1, classes as i64])],
            ..self.graph
        };
        let onnx = ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some(env!("CARGO_PKG_NAME").into()),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
            opset_import: vec![OperatorSetIdProto {
                domain: None,
                version: Some(OPSET),
            }],
            graph: Some(graph),
            ..Default::default()
        };
        ResNet {
            architecture,
            parameters: self.parameters,
            untrained: self.untrained,
            notes: self.notes,
            onnx,
        }
    }
}
