//! From a checkpoint's tensors to a network: the architecture is read from names and shapes,
//! BatchNorm is folded away.

use bytes::Bytes;

use super::{
    Checkpoint, CheckpointError,
    error::{self, list, unsupported},
    names::{self, Naming, Place},
    tensor::Tensor,
};
use crate::model::{
    graph::{int_attribute, ints_attribute, node, tensor_type},
    onnx::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
        tensor_proto::DataType,
    },
};

/// PyTorch's default, which every ResNet is trained with.
const EPSILON: f64 = 1e-5;
/// The images' height and width that ResNets are made for.
const IMAGE_SIZE: i64 = 224;
/// Channels of a BasicBlock, and within a Bottleneck of usual width, in each stage.
const CHANNELS: [usize; 4] = [64, 128, 256, 512];
const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

/// Whether blocks are bottlenecks, how many each stage has, and what the network is called.
const KNOWN: [(bool, [usize; 4], &str); 9] = [
    (false, [1, 1, 1, 1], "resnet10"),
    (false, [2, 2, 2, 2], "resnet18"),
    (false, [3, 4, 6, 3], "resnet34"),
    (true, [1, 1, 1, 1], "resnet14"),
    (true, [2, 2, 2, 2], "resnet26"),
    (true, [3, 4, 6, 3], "resnet50"),
    (true, [3, 4, 23, 3], "resnet101"),
    (true, [3, 8, 36, 3], "resnet152"),
    (true, [3, 24, 36, 3], "resnet200"),
];

/// A network made of a checkpoint.
#[derive(Debug)]
pub struct ResNet {
    /// torchvision's name for it, such as `resnet18`.
    pub architecture: String,
    /// The numbers that were learned, counted as PyTorch does.
    pub parameters: usize,
    /// Every BatchNorm has the statistics that it begins with: the network has never seen an image.
    pub untrained: bool,
    /// From `input`, `float32 [N, 3, 224, 224]`, to `logits`, `float32 [N, classes]`. It has no
    /// manifest.
    pub onnx: ModelProto,
}

pub(super) fn build(mut checkpoint: Checkpoint) -> Result<ResNet, CheckpointError> {
    names::strip_common_prefix(&mut checkpoint);
    let naming = Naming::detect(&checkpoint);
    let plan = Plan::detect(&checkpoint, &naming)?;
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
    let mut last = builder.conv(Place::Stem, &stem, "input")?;
    last = builder.relu(&last);
    let pool = [
        ("kernel_shape", &[3, 3][..]),
        ("pads", &[1; 4]),
        ("strides", &[2, 2]),
    ];
    last = builder.add(node("MaxPool", &[&last], "maxpool", None), &pool);
    let mut channels = stem.outputs;
    for (stage, blocks) in plan.blocks.into_iter().enumerate() {
        for block in 0..blocks {
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            let convs = plan.block(stage, channels, stride);
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
    builder.finish(plan.name(), classes)
}

/// What kind of ResNet it is.
struct Plan {
    bottleneck: bool,
    blocks: [usize; 4],
    /// Channels within the bottlenecks of the first stage; each further stage has twice as many.
    width: usize,
    groups: usize,
    known: &'static str,
}

impl Plan {
    fn detect(checkpoint: &Checkpoint, naming: &Naming) -> Result<Self, CheckpointError> {
        let weight = |place: Place| format!("{}.weight", naming.convolution(place).0);
        let shape = |name: &str| checkpoint.tensors.get(name).map(Tensor::shape);
        let (stem, first) = (
            weight(Place::Stem),
            Place::Block {
                stage: 0,
                block: 0,
                index: 0,
            },
        );
        if shape(&stem).is_none() && shape(&weight(first)).is_none() {
            let names: Vec<String> = checkpoint.tensors.keys().cloned().collect();
            return Err(unsupported(format!(
                "is no ResNet that torchvision, timm or Hugging Face makes: it has neither `{stem}` nor `{}`, but {}; \
                 export other networks to ONNX",
                weight(first),
                list(&names)
            )));
        }
        let bottleneck = shape(&weight(Place::Block {
            stage: 0,
            block: 0,
            index: 2,
        }))
        .is_some();
        let blocks = [0, 1, 2, 3].map(|stage| {
            let exists = |block: &usize| {
                let prefix = naming.block(stage, *block);
                checkpoint
                    .tensors
                    .keys()
                    .any(|name| name.starts_with(&prefix))
            };
            (0..100).rev().find(exists).map_or(0, |last| last + 1)
        });
        let known = nearest(bottleneck, blocks);
        for (stage, (found, expected)) in blocks.into_iter().zip(known.1).enumerate() {
            if found < expected {
                return Err(CheckpointError::Missing {
                    tensor: weight(Place::Block {
                        stage,
                        block: found,
                        index: 0,
                    }),
                    hint: format!(
                        "; stage {} has {found} blocks, but a {} has {expected}",
                        stage + 1,
                        known.2
                    ),
                });
            }
            if found > expected {
                let prefix = naming.block(stage, expected);
                let tensors = checkpoint
                    .tensors
                    .keys()
                    .filter(|name| name.starts_with(&prefix))
                    .cloned()
                    .collect();
                return Err(CheckpointError::Extra {
                    architecture: known.2.into(),
                    tensors,
                });
            }
        }
        let (mut width, mut groups) = (CHANNELS[0], 1);
        if bottleneck {
            let second = Place::Block {
                stage: 0,
                block: 0,
                index: 1,
            };
            if let Some([_, within, 3, 3]) = shape(&weight(second))
                && let Some([outputs, 64, 1, 1]) = shape(&weight(first))
                && *outputs > 0
                && outputs.is_multiple_of(*within)
            {
                (width, groups) = (*outputs, outputs / within);
            }
        }
        Ok(Self {
            bottleneck,
            blocks,
            width,
            groups,
            known: known.2,
        })
    }

    fn name(&self) -> String {
        match (self.groups, self.width) {
            (1, 64) => self.known.into(),
            (1, 128) => format!("wide_{}_2", self.known),
            (1, width) => format!("{} of width {width}", self.known),
            (groups, width) => format!(
                "{}_{groups}x{}d",
                self.known.replace("resnet", "resnext"),
                width / groups
            ),
        }
    }

    /// The convolutions of a stage's block on so many channels.
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

/// The known network that differs in the fewest blocks.
fn nearest(bottleneck: bool, blocks: [usize; 4]) -> (bool, [usize; 4], &'static str) {
    let difference = |known: [usize; 4]| {
        known
            .iter()
            .zip(blocks)
            .map(|(a, b)| a.abs_diff(b))
            .sum::<usize>()
    };
    let same_kind = KNOWN.into_iter().filter(|known| known.0 == bottleneck);
    same_kind
        .min_by_key(|known| difference(known.1))
        .unwrap_or(KNOWN[1])
}

/// A convolution without a bias.
struct Conv {
    outputs: usize,
    inputs: usize,
    /// The kernel's height and width.
    size: usize,
    stride: i64,
    groups: usize,
}

struct Builder {
    /// The tensors that have not been used yet.
    checkpoint: Checkpoint,
    naming: Naming,
    graph: GraphProto,
    parameters: usize,
    untrained: bool,
}

impl Builder {
    /// The values of a tensor, in f64, so that folding does not lose precision.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f64>, CheckpointError> {
        let Some(tensor) = self.checkpoint.tensors.remove(name) else {
            let hint = self.whereabouts(name);
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

    /// What may have become of a tensor that is not there.
    fn whereabouts(&self, name: &str) -> String {
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

    fn take_learned(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f64>, CheckpointError> {
        let values = self.take(name, shape)?;
        self.parameters += values.len();
        Ok(values)
    }

    /// A block: convolutions with ReLUs between them, added to what goes by.
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
                Place::Block {
                    stage,
                    block,
                    index,
                },
                conv,
                &last,
            )?;
        }
        let (inputs, outputs) = (convs[0].inputs, convs[convs.len() - 1].outputs);
        let beside = match stride != 1 || inputs != outputs {
            true => {
                let conv = Conv {
                    outputs,
                    inputs,
                    size: 1,
                    stride,
                    groups: 1,
                };
                self.conv(Place::Shortcut { stage, block }, &conv, input)?
            }
            false => input.to_owned(),
        };
        let name = format!("layer{}.{block}.add", stage + 1);
        last = self.add(node("Add", &[&last, &beside], &name, None), &[]);
        Ok(self.relu(&last))
    }

    /// A convolution with the BatchNorm after it folded in: `w · s` and `b - m · s`, where `s = γ /
    /// √(v + ε)`.
    fn conv(&mut self, place: Place, conv: &Conv, input: &str) -> Result<String, CheckpointError> {
        let Conv {
            outputs,
            inputs,
            size,
            stride,
            groups,
        } = *conv;
        let (convolution, normalization) = self.naming.convolution(place);
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
                format!("holds {negative}; a variance is never below 0"),
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

        // The network's own names are torchvision's, wherever the checkpoint is from.
        let (output, _) = Naming::Torchvision {
            head: String::new(),
        }
        .convolution(place);
        let (folded, bias) = (format!("{output}.weight"), format!("{output}.bias"));
        self.store(&folded, &shape, weight, &weight_name)?;
        self.store(&bias, &[outputs], shift, &of("bias"))?;
        let (size, pad) = (size as i64, size as i64 / 2);
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

    /// The last layer. Returns the number of classes, which the checkpoint decides.
    fn head(&mut self, features: usize, input: &str) -> Result<usize, CheckpointError> {
        let [weight, bias] =
            ["weight", "bias"].map(|part| format!("{}.{part}", self.naming.head()));
        let classes = match self.checkpoint.tensors.get(&weight).map(Tensor::shape) {
            Some([classes, inputs]) if *inputs == features && *classes > 0 => *classes,
            Some(shape) => {
                let reason = format!("has the shape {shape:?} instead of [classes, {features}]");
                return Err(error::tensor(&weight, reason));
            }
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

    /// Adds a node with more attributes. Returns the name of its output.
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

    /// Adds a float32 tensor; `source` is the tensor that is blamed for values that are too large.
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
                    "holds values too large for float32, once BatchNorm is folded in",
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
