//! Tells the kind of ResNet by the names and shapes of its tensors.

use super::{
    CheckpointError,
    error::{self, unsupported},
    layout::{ConvNames, Layout},
    tensor_set::TensorSet,
};

/// Height and width of the images that ResNets are trained on.
const IMAGE_SIZE: u32 = 224;
/// The same for networks that do not reduce an image before their first stage.
const SMALL_IMAGE_SIZE: u32 = 32;
/// Channels of the first stage's BasicBlocks, and of its bottlenecks of the usual width.
const CHANNELS: usize = 64;

/// A published ResNet.
#[derive(Clone, Debug)]
struct KnownResNet {
    /// Number of blocks in each stage.
    blocks: Vec<usize>,
    name: String,
}

/// The published ResNets with bottlenecks, or without them, that have as many stages.
fn known(bottleneck: bool, stages: usize) -> Vec<KnownResNet> {
    let four: &[([usize; 4], &str)] = if bottleneck {
        &[
            ([1, 1, 1, 1], "resnet14"),
            ([2, 2, 2, 2], "resnet26"),
            ([3, 4, 6, 3], "resnet50"),
            ([3, 4, 23, 3], "resnet101"),
            ([3, 8, 36, 3], "resnet152"),
            ([3, 24, 36, 3], "resnet200"),
        ]
    } else {
        &[
            ([1, 1, 1, 1], "resnet10"),
            ([2, 2, 2, 2], "resnet18"),
            ([3, 4, 6, 3], "resnet34"),
        ]
    };
    if stages == 4 {
        return four
            .iter()
            .map(|(blocks, name)| KnownResNet {
                blocks: blocks.to_vec(),
                name: (*name).to_owned(),
            })
            .collect();
    }

    // Those for CIFAR have three stages of equally many blocks, and two layers besides.
    let layers = if bottleneck { 3 } else { 2 };
    (1..100)
        .map(|count| KnownResNet {
            blocks: vec![count; stages],
            name: format!("resnet{}", count * stages * layers + 2),
        })
        .collect()
}

/// A convolution without a bias.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conv {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// Height and width of the kernel.
    pub(super) size: usize,
    pub(super) stride: i64,
    pub(super) groups: usize,
}

/// The kind of ResNet that a set contains.
#[derive(Debug)]
pub(super) struct Architecture {
    bottleneck: bool,
    /// Number of blocks in each stage.
    pub(super) blocks: Vec<usize>,
    /// Channels of an image: 3, or 1 for gray ones.
    pub(super) inputs: usize,
    /// The convolutions before the first stage.
    pub(super) stem: Vec<(ConvNames, Conv)>,
    /// Whether a MaxPool follows them.
    pub(super) pooled: bool,
    /// Channels within the blocks of each stage.
    widths: Vec<usize>,
    /// Channels of the outputs of each stage.
    outputs: Vec<usize>,
    /// Groups of the 3×3 convolutions of bottlenecks.
    groups: usize,
    /// Whether the shortcuts average before their convolutions, as in ResNet-D.
    averaged: bool,
    /// The network of the usual width and without groups that has the same blocks.
    base_name: String,
}

impl Architecture {
    /// Detects the architecture by the names and shapes of the tensors.
    ///
    /// # Errors
    /// Tensors of another network; a number of blocks that no known ResNet has.
    pub(super) fn detect(set: &TensorSet, layout: &Layout) -> Result<Self, CheckpointError> {
        let shape = |stage, index| {
            let names = layout.convolution(stage, 0, index);
            set.shape(&format!("{}.weight", names.conv))
        };
        let (stem, pooled) = stem(set, layout)?;
        let inputs = stem[0].1.inputs;

        // A network that reduces the image at first has four stages, even if the last is missing.
        let stages = if pooled {
            layout.stages.max(4)
        } else {
            layout.stages
        };
        // Only a bottleneck has a third convolution.
        let bottleneck = (0..stages).any(|stage| shape(stage, 2).is_some());
        let blocks: Vec<usize> = (0..stages)
            .map(|stage| layout.count_blocks(set, stage))
            .collect();
        let known = nearest(bottleneck, &blocks);
        check_blocks(set, layout, &blocks, &known)?;

        let first = |shape: Option<&[usize]>| match shape {
            Some([outputs, _, _, _]) if *outputs > 0 => Some(*outputs),
            _ => None,
        };
        let usual = stem[stem.len() - 1].1.outputs;
        let widths: Vec<usize> = (0..stages)
            .map(|stage| first(shape(stage, 0)).unwrap_or(usual << stage))
            .collect();
        let outputs = (0..stages)
            .map(|stage| {
                if bottleneck {
                    first(shape(stage, 2)).unwrap_or(usual << (stage + 2))
                } else {
                    widths[stage]
                }
            })
            .collect();

        let groups = match shape(0, 1) {
            Some([_, inputs, 3, 3])
                if bottleneck && *inputs > 0 && widths[0].is_multiple_of(*inputs) =>
            {
                widths[0] / inputs
            }
            _ => 1,
        };
        if widths.iter().any(|width| !width.is_multiple_of(groups)) {
            return Err(unsupported(format!(
                "has stages of {widths:?} channels, which {groups} groups do not divide"
            )));
        }
        let averaged = (1..stages).any(|stage| {
            layout
                .shortcut(set, stage, 0)
                .is_some_and(|found| found.pooled)
        });
        Ok(Self {
            bottleneck,
            blocks,
            inputs,
            stem,
            pooled,
            widths,
            outputs,
            groups,
            averaged,
            base_name: known.name,
        })
    }

    /// Number of channels behind the stem.
    pub(super) fn stem_outputs(&self) -> usize {
        self.stem[self.stem.len() - 1].1.outputs
    }

    /// Height and width of the images that such networks are trained on.
    pub(super) fn usual_size(&self) -> (u32, u32) {
        let reduced = self.pooled || self.stem.iter().any(|(_, conv)| conv.stride > 1);
        let side = if reduced {
            IMAGE_SIZE
        } else {
            SMALL_IMAGE_SIZE
        };
        (side, side)
    }

    /// Height or width of what the first stage takes of an image of this height or width.
    pub(super) fn after_stem(&self, side: u64) -> u64 {
        let side = self.stem.iter().fold(side, |side, (_, conv)| {
            side.div_ceil(conv.stride.unsigned_abs().max(1))
        });
        if self.pooled { side.div_ceil(2) } else { side }
    }

    /// The name in torchvision or timm, or one formed in the same way.
    pub(super) fn name(&self) -> String {
        let base = &self.base_name;
        let width = self.widths[0];
        let usual_outputs = !self.bottleneck || self.outputs[0] == CHANNELS * 4;
        let name = match (self.groups, width) {
            (1, CHANNELS) if usual_outputs => base.clone(),
            (1, 128) if self.bottleneck && usual_outputs => format!("wide_{base}_2"),
            (1, width) => format!("{base} of width {width}"),
            (groups, width) => format!(
                "{}_{groups}x{}d",
                base.replace("resnet", "resnext"),
                width / groups
            ),
        };
        match (self.stem.len(), self.averaged) {
            (1, false) => name,
            (1, true) => format!("{name} with averaged shortcuts"),
            (_, false) => format!("{name}c"),
            // A stem of tiers is narrower at first.
            (_, true) if self.stem[0].1.outputs < self.stem[1].1.outputs => format!("{name}t"),
            (_, true) => format!("{name}d"),
        }
    }

    /// The convolutions of a block of the stage, which has `inputs` input channels.
    pub(super) fn block(&self, stage: usize, inputs: usize, stride: i64) -> Vec<Conv> {
        let (width, outputs) = (self.widths[stage], self.outputs[stage]);
        let conv = |inputs, outputs, size, stride, groups| Conv {
            outputs,
            inputs,
            size,
            stride,
            groups,
        };
        if self.bottleneck {
            vec![
                conv(inputs, width, 1, 1, 1),
                conv(width, width, 3, stride, self.groups),
                conv(width, outputs, 1, 1, 1),
            ]
        } else {
            vec![
                conv(inputs, width, 3, stride, 1),
                conv(width, outputs, 3, 1, 1),
            ]
        }
    }
}

/// The convolutions before the first stage, and whether a MaxPool follows them.
fn stem(
    set: &TensorSet,
    layout: &Layout,
) -> Result<(Vec<(ConvNames, Conv)>, bool), CheckpointError> {
    let names = layout.stem(set);
    let deep = names.len() > 1;
    let mut convs: Vec<(ConvNames, Conv)> = Vec::new();
    for names in names {
        let weight = format!("{}.weight", names.conv);
        let expected = if deep { "3, 3" } else { "7, 7" };
        let conv = match set.shape(&weight) {
            None => {
                let hint = set
                    .others
                    .get(&weight)
                    .map(|what| format!("; there it holds {what}"));
                return Err(CheckpointError::Missing {
                    tensor: weight,
                    hint: hint.unwrap_or_default(),
                });
            }
            Some(&[outputs, inputs, height, width])
                if height == width && outputs > 0 && (width == 3 || (width == 7 && !deep)) =>
            {
                Conv {
                    outputs,
                    inputs,
                    size: width,
                    stride: 1,
                    groups: 1,
                }
            }
            Some(shape) => {
                let reason = format!(
                    "has the shape {shape:?} instead of [channels, 3, {expected}]; kernels of 7×7, \
                     or 3×3 for small images, are supported"
                );
                return Err(error::tensor(&weight, reason));
            }
        };
        if let Some((_, previous)) = convs.last()
            && previous.outputs != conv.inputs
        {
            let reason = format!(
                "has {} input channels, but the convolution before it has {} outputs",
                conv.inputs, previous.outputs
            );
            return Err(error::tensor(&weight, reason));
        }
        convs.push((names, conv));
    }

    let inputs = convs[0].1.inputs;
    if !matches!(inputs, 1 | 3) {
        let weight = format!("{}.weight", convs[0].0.conv);
        return Err(error::tensor(
            &weight,
            format!("takes images of {inputs} channels; 3 (RGB) or 1 (gray) are supported"),
        ));
    }

    // A single convolution of 3×3 is that for small images, which are not reduced at first. A whole
    // module says so itself.
    let reduces = deep || convs[0].1.size == 7;
    let stride = match set.attribute(&convs[0].0.conv, "stride") {
        Some([stride, ..]) if *stride == 1.0 || *stride == 2.0 => *stride as i64,
        _ if reduces => 2,
        _ => 1,
    };
    convs[0].1.stride = stride;
    let class = |class: &str| {
        set.modules.iter().any(|(name, module)| {
            let beside = name.strip_prefix(&layout.prefix);
            module.class == class && beside.is_some_and(|name| name.starts_with("maxpool"))
        })
    };
    let pooled = (reduces && !class("Identity")) || class("MaxPool2d");
    Ok((convs, pooled))
}

/// The known network that differs in the fewest blocks.
fn nearest(bottleneck: bool, blocks: &[usize]) -> KnownResNet {
    let difference = |known: &KnownResNet| {
        let stages = known.blocks.iter().zip(blocks);
        stages.map(|(a, b)| a.abs_diff(*b)).sum::<usize>()
    };
    known(bottleneck, blocks.len())
        .into_iter()
        .min_by_key(difference)
        .expect("there are known networks of every number of stages")
}

/// Checks that each stage has as many blocks as in the network `known`.
fn check_blocks(
    set: &TensorSet,
    layout: &Layout,
    blocks: &[usize],
    known: &KnownResNet,
) -> Result<(), CheckpointError> {
    for (stage, (&found, &expected)) in blocks.iter().zip(&known.blocks).enumerate() {
        if found < expected {
            let names = layout.convolution(stage, found, 0);
            return Err(CheckpointError::Missing {
                tensor: format!("{}.weight", names.conv),
                hint: format!(
                    "; stage {} has {found} blocks, but a {} has {expected}",
                    stage + 1,
                    known.name
                ),
            });
        }
        if found > expected {
            let prefix = layout.block(stage, expected);
            let more = set.tensors.keys().filter(|name| name.starts_with(&prefix));
            return Err(CheckpointError::Extra {
                architecture: known.name.clone(),
                tensors: more.cloned().collect(),
            });
        }
    }
    Ok(())
}
