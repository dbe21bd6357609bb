//! Builds an ONNX ResNet from a checkpoint's tensors: detects the architecture by names and shapes,
//! and folds BatchNorm into the convolutions.

use bytes::Bytes;

use super::{
    Checkpoint, CheckpointError,
    error::{self, list, unsupported},
    names::{self, ConvPosition, Naming},
    tensor::Tensor,
};
use crate::model::{
    graph::{int_attribute, ints_attribute, node, tensor_type},
    onnx::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
        tensor_proto::DataType,
    },
};

/// The epsilon of BatchNorm: PyTorch's default, which published ResNets are trained with.
const EPSILON: f64 = 1e-5;
/// Height and width of the images that ResNets are trained on.
const IMAGE_SIZE: i64 = 224;
/// Channels of the BasicBlocks of each stage, and of the bottlenecks of the usual width.
const CHANNELS: [usize; 4] = [64, 128, 256, 512];
const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

/// A published ResNet.
#[derive(Clone, Copy)]
struct KnownResNet {
    /// Whether its blocks are bottlenecks.
    bottleneck: bool,
    /// Number of blocks in each stage.
    blocks: [usize; 4],
    name: &'static str,
}

const fn known(bottleneck: bool, blocks: [usize; 4], name: &'static str) -> KnownResNet {
    KnownResNet {
        bottleneck,
        blocks,
        name,
    }
}

const RESNET18: KnownResNet = known(false, [2, 2, 2, 2], "resnet18");

const KNOWN: [KnownResNet; 9] = [
    known(false, [1, 1, 1, 1], "resnet10"),
    RESNET18,
    known(false, [3, 4, 6, 3], "resnet34"),
    known(true, [1, 1, 1, 1], "resnet14"),
    known(true, [2, 2, 2, 2], "resnet26"),
    known(true, [3, 4, 6, 3], "resnet50"),
    known(true, [3, 4, 23, 3], "resnet101"),
    known(true, [3, 8, 36, 3], "resnet152"),
    known(true, [3, 24, 36, 3], "resnet200"),
];

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
    /// The model, from `input`, `float32 [N, 3, 224, 224]`, to `logits`, `float32 [N, classes]`. It
    /// has no manifest.
    pub onnx: ModelProto,
}

/// Builds the network that the checkpoint's tensors belong to.
pub(super) fn build(mut checkpoint: Checkpoint) -> Result<ResNet, CheckpointError> {
    names::strip_common_prefix(&mut checkpoint);
    let naming = Naming::detect(&checkpoint);
    let architecture = Architecture::detect(&checkpoint, &naming)?;
    let mut builder = Builder {
        checkpoint,
        naming,
        graph: GraphProto::default(),
        parameters: 0,
        untrained: true,
    };

    let stem = Conv {
        outputs: 64,
        inputs: 3,
        size: 7,
        stride: 2,
        groups: 1,
    };
    let mut last = builder.conv(ConvPosition::Stem, &stem, "input")?;
    last = builder.relu(&last);
    let pool = [
        ("kernel_shape", &[3, 3][..]),
        ("pads", &[1; 4]),
        ("strides", &[2, 2]),
    ];
    last = builder.add(node("MaxPool", &[&last], "maxpool", None), &pool);

    let mut channels = stem.outputs;
    for (stage, blocks) in architecture.blocks.into_iter().enumerate() {
        for block in 0..blocks {
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            let convs = architecture.block(stage, channels, stride);
            last = builder.block(stage, block, &convs, stride, &last)?;
            channels = convs[convs.len() - 1].outputs;
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
    let classes = builder.head(channels, &flat)?;
    builder.finish(architecture.name(), classes)
}

/// The kind of ResNet that a checkpoint contains.
struct Architecture {
    bottleneck: bool,
    /// Number of blocks in each stage.
    blocks: [usize; 4],
    /// Channels within the bottlenecks of the first stage; each further stage has twice as many.
    width: usize,
    /// Groups of the 3×3 convolutions.
    groups: usize,
    /// The network of the usual width and without groups that has the same blocks.
    base_name: &'static str,
}

impl Architecture {
    /// Detects the architecture by the names and shapes of the tensors.
    ///
    /// # Errors
    /// Tensors of another network; a number of blocks that no known ResNet has.
    fn detect(checkpoint: &Checkpoint, naming: &Naming) -> Result<Self, CheckpointError> {
        let weight = |position| format!("{}.weight", naming.convolution(position).0);
        let shape = |name: &str| checkpoint.tensors.get(name).map(Tensor::shape);
        let of_first_block = |index| {
            weight(ConvPosition::Block {
                stage: 0,
                block: 0,
                index,
            })
        };

        let stem = weight(ConvPosition::Stem);
        let first = of_first_block(0);
        if shape(&stem).is_none() && shape(&first).is_none() {
            let names: Vec<String> = checkpoint.tensors.keys().cloned().collect();
            return Err(unsupported(format!(
                "is not a ResNet as torchvision, timm or Hugging Face makes it: \
                 it has neither `{stem}` nor `{first}`, but {}; export other networks to ONNX",
                list(&names)
            )));
        }

        // Only a bottleneck has a third convolution.
        let bottleneck = shape(&of_first_block(2)).is_some();
        let blocks = [0, 1, 2, 3].map(|stage| count_blocks(checkpoint, naming, stage));
        let known = nearest(bottleneck, blocks);
        check_blocks(checkpoint, naming, blocks, known)?;

        let (mut width, mut groups) = (CHANNELS[0], 1);
        if bottleneck
            && let Some([_, inputs_a_group, 3, 3]) = shape(&of_first_block(1))
            && let Some([outputs, 64, 1, 1]) = shape(&first)
            && *outputs > 0
            && outputs.is_multiple_of(*inputs_a_group)
        {
            width = *outputs;
            groups = outputs / inputs_a_group;
        }
        Ok(Self {
            bottleneck,
            blocks,
            width,
            groups,
            base_name: known.name,
        })
    }

    /// The name in torchvision, or one formed in the same way.
    fn name(&self) -> String {
        match (self.groups, self.width) {
            (1, 64) => self.base_name.into(),
            (1, 128) => format!("wide_{}_2", self.base_name),
            (1, width) => format!("{} of width {width}", self.base_name),
            (groups, width) => format!(
                "{}_{groups}x{}d",
                self.base_name.replace("resnet", "resnext"),
                width / groups
            ),
        }
    }

    /// The convolutions of a block of the stage, which has `inputs` input channels.
    fn block(&self, stage: usize, inputs: usize, stride: i64) -> Vec<Conv> {
        let channels = CHANNELS[stage];
        if !self.bottleneck {
            let conv = |inputs, stride| Conv {
                outputs: channels,
                inputs,
                size: 3,
                stride,
                groups: 1,
            };
            return vec![conv(inputs, stride), conv(channels, 1)];
        }
        let width = self.width << stage;
        vec![
            Conv {
                outputs: width,
                inputs,
                size: 1,
                stride: 1,
                groups: 1,
            },
            Conv {
                outputs: width,
                inputs: width,
                size: 3,
                stride,
                groups: self.groups,
            },
            Conv {
                outputs: channels * 4,
                inputs: width,
                size: 1,
                stride: 1,
                groups: 1,
            },
        ]
    }
}

/// Number of blocks of a stage: one more than the highest index that has a tensor.
fn count_blocks(checkpoint: &Checkpoint, naming: &Naming, stage: usize) -> usize {
    const MAX_BLOCKS: usize = 100;
    let exists = |block: &usize| {
        let prefix = naming.block(stage, *block);
        checkpoint
            .tensors
            .keys()
            .any(|name| name.starts_with(&prefix))
    };
    (0..MAX_BLOCKS)
        .rev()
        .find(exists)
        .map_or(0, |last| last + 1)
}

/// The known network that differs in the fewest blocks.
fn nearest(bottleneck: bool, blocks: [usize; 4]) -> KnownResNet {
    let difference = |known: &KnownResNet| {
        let stages = known.blocks.iter().zip(blocks);
        stages.map(|(a, b)| a.abs_diff(b)).sum::<usize>()
    };
    KNOWN
        .into_iter()
        .filter(|known| known.bottleneck == bottleneck)
        .min_by_key(difference)
        .unwrap_or(RESNET18)
}

/// Checks that each stage has as many blocks as in the network `known`.
fn check_blocks(
    checkpoint: &Checkpoint,
    naming: &Naming,
    blocks: [usize; 4],
    known: KnownResNet,
) -> Result<(), CheckpointError> {
    for (stage, (found, expected)) in blocks.into_iter().zip(known.blocks).enumerate() {
        if found < expected {
            let position = ConvPosition::Block {
                stage,
                block: found,
                index: 0,
            };
            return Err(CheckpointError::Missing {
                tensor: format!("{}.weight", naming.convolution(position).0),
                hint: format!(
                    "; stage {} has {found} blocks, but a {} has {expected}",
                    stage + 1,
                    known.name
                ),
            });
        }
        if found > expected {
            let prefix = naming.block(stage, expected);
            return Err(CheckpointError::Extra {
                architecture: known.name.into(),
                tensors: checkpoint
                    .tensors
                    .keys()
                    .filter(|name| name.starts_with(&prefix))
                    .cloned()
                    .collect(),
            });
        }
    }
    Ok(())
}

/// A convolution without a bias.
struct Conv {
    outputs: usize,
    inputs: usize,
    /// Height and width of the kernel.
    size: usize,
    stride: i64,
    groups: usize,
}

/// Builds the graph, taking tensors out of the checkpoint.
struct Builder {
    /// The tensors that have not been used yet.
    checkpoint: Checkpoint,
    naming: Naming,
    graph: GraphProto,
    parameters: usize,
    untrained: bool,
}

impl Builder {
    /// Takes a tensor's values out of the checkpoint, in f64, so that folding does not lose
    /// precision.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f64>, CheckpointError> {
        let Some(tensor) = self.checkpoint.tensors.remove(name) else {
            let hint = self.missing_hint(name);
            return Err(CheckpointError::Missing {
                tensor: name.into(),
                hint,
            });
        };
        if tensor.shape() != shape {
            return Err(error::tensor(
                name,
                format!("has the shape {:?} instead of {shape:?}", tensor.shape()),
            ));
        }
        tensor.values(name)
    }

    /// A hint about why a tensor is missing; may be empty.
    fn missing_hint(&self, name: &str) -> String {
        let Checkpoint { tensors, others } = &self.checkpoint;
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
        } else if layer.strip_suffix('.') == Some(self.naming.head()) {
            "; without its last layer it cannot classify".into()
        } else {
            String::new()
        }
    }

    /// As [`Self::take`], for a tensor that counts as learned parameters.
    fn take_learned(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f64>, CheckpointError> {
        let values = self.take(name, shape)?;
        self.parameters += values.len();
        Ok(values)
    }

    /// Adds a residual block: convolutions with ReLUs between them, added to the shortcut. Returns
    /// the name of its output.
    fn block(
        &mut self,
        stage: usize,
        block: usize,
        convs: &[Conv],
        stride: i64,
        input: &str,
    ) -> Result<String, CheckpointError> {
        let mut last = input.to_owned();
        for (index, conv) in convs.iter().enumerate() {
            if index > 0 {
                last = self.relu(&last);
            }
            last = self.conv(
                ConvPosition::Block {
                    stage,
                    block,
                    index,
                },
                conv,
                &last,
            )?;
        }

        let inputs = convs[0].inputs;
        let outputs = convs[convs.len() - 1].outputs;
        let shortcut = if stride != 1 || inputs != outputs {
            let conv = Conv {
                outputs,
                inputs,
                size: 1,
                stride,
                groups: 1,
            };
            self.conv(ConvPosition::Shortcut { stage, block }, &conv, input)?
        } else {
            input.to_owned()
        };

        let name = format!("layer{}.{block}.add", stage + 1);
        last = self.add(node("Add", &[&last, &shortcut], &name, None), &[]);
        Ok(self.relu(&last))
    }

    /// Adds a convolution with the BatchNorm after it folded in: weights `w · s` and bias `β - μ ·
    /// s`, where `s = γ / √(σ² + ε)`. Returns the name of its output.
    fn conv(
        &mut self,
        position: ConvPosition,
        conv: &Conv,
        input: &str,
    ) -> Result<String, CheckpointError> {
        let Conv {
            outputs,
            inputs,
            size,
            stride,
            groups,
        } = *conv;
        let (convolution, normalization) = self.naming.convolution(position);
        let shape = [outputs, inputs / groups, size, size];
        let weight_name = format!("{convolution}.weight");
        let mut weight = self.take_learned(&weight_name, &shape)?;
        let of = |part: &str| format!("{normalization}.{part}");
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
            .map(|(gamma, var)| gamma / (var + EPSILON).sqrt())
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

        // The network gets torchvision's names, wherever the checkpoint is from.
        let (output, _) = Naming::Torchvision {
            head: String::new(),
        }
        .convolution(position);
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
            node("Conv", &[input, &folded, &bias], &output, group),
            &attributes,
        ))
    }

    /// Adds the last layer. Returns the number of classes, which the checkpoint determines.
    fn head(&mut self, features: usize, input: &str) -> Result<usize, CheckpointError> {
        let [weight, bias] =
            ["weight", "bias"].map(|part| format!("{}.{part}", self.naming.head()));
        let classes = match self.checkpoint.tensors.get(&weight).map(Tensor::shape) {
            Some([classes, inputs]) if *inputs == features && *classes > 0 => *classes,
            Some(shape) => {
                let reason = format!("has the shape {shape:?} instead of [classes, {features}]");
                return Err(error::tensor(&weight, reason));
            }
            // `take_learned` reports that the tensor is missing.
            None => 0,
        };

        let values = self.take_learned(&weight, &[classes, features])?;
        self.store("fc.weight", &[classes, features], values, &weight)?;
        let values = self.take_learned(&bias, &[classes])?;
        self.store("fc.bias", &[classes], values, &bias)?;
        let transposed = Some(int_attribute("transB", 1));
        self.add(
            node(
                "Gemm",
                &[input, "fc.weight", "fc.bias"],
                "logits",
                transposed,
            ),
            &[],
        );
        Ok(classes)
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

    /// The finished model. Every tensor must have been used.
    fn finish(self, architecture: String, classes: usize) -> Result<ResNet, CheckpointError> {
        let left: Vec<String> = self
            .checkpoint
            .tensors
            .into_keys()
            .filter(|name| !names::is_counter(name))
            .collect();
        if !left.is_empty() {
            return Err(CheckpointError::Extra {
                architecture,
                tensors: left,
            });
        }

        let value = |name: &str, shape: &[i64]| ValueInfoProto {
            name: Some(name.into()),
            r#type: Some(tensor_type(DataType::Float, shape)),
            ..Default::default()
        };
        let graph = GraphProto {
            name: Some(architecture.clone()),
            input: vec![value("input", &[-1, 3, IMAGE_SIZE, IMAGE_SIZE])],
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
        Ok(ResNet {
            architecture,
            parameters: self.parameters,
            untrained: self.untrained,
            onnx,
        })
    }
}
