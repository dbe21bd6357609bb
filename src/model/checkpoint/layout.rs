//! Finds a ResNet among the tensors of a set by its structure: numbered stages of numbered blocks of
//! convolutions, whatever stands before their names.

use std::collections::{BTreeMap, BTreeSet};

use super::{head::Head, tensor::Tensor, tensor_set::TensorSet};

/// Fewest stages that make a ResNet: those for CIFAR have three.
const MIN_STAGES: usize = 3;
/// Most stages that are looked at.
const MAX_STAGES: usize = 8;

/// The stems, by the names of the convolutions and the BatchNorms after them: a plain one, a deep
/// one (ResNet-C, D and T), those of OpenMMLab, and the same as children of an `nn.Sequential`.
const STEMS: [&[(&str, &str)]; 7] = [
    &[("conv1", "bn1")],
    &[
        ("conv1.0", "conv1.1"),
        ("conv1.3", "conv1.4"),
        ("conv1.6", "bn1"),
    ],
    &[
        ("stem.0", "stem.1"),
        ("stem.3", "stem.4"),
        ("stem.6", "stem.7"),
    ],
    &[("0.0", "0.1"), ("0.3", "0.4"), ("0.6", "1")],
    &[("0", "1")],
    &[("stem.0", "stem.1")],
    &[(
        "embedder.embedder.convolution",
        "embedder.embedder.normalization",
    )],
];

/// The names of a convolution and of the BatchNorm after it, without `.weight` and the like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConvNames {
    pub(super) conv: String,
    pub(super) norm: String,
}

impl ConvNames {
    fn new(prefix: &str, conv: &str, norm: &str) -> Self {
        Self {
            conv: format!("{prefix}{conv}"),
            norm: format!("{prefix}{norm}"),
        }
    }
}

/// The shortcut of a block that changes the size.
#[derive(Clone, Debug)]
pub(super) struct Shortcut {
    pub(super) names: ConvNames,
    /// Whether the image is averaged before the convolution, which then has a stride of 1.
    pub(super) pooled: bool,
}

/// Where the tensors of a ResNet are within a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// What all names of the network start with, up to a dot; may be empty.
    pub(super) prefix: String,
    naming: Naming,
    /// Number of stages.
    pub(super) stages: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Naming {
    /// `{base}{first + stage}.{block}.conv1`, as torchvision, timm and OpenMMLab have it.
    Numbered { base: String, first: usize },
    /// That of `transformers`.
    HuggingFace,
}

impl Layout {
    /// All networks in the set.
    pub(super) fn find(set: &TensorSet) -> Vec<Self> {
        const HUGGING_FACE: &str = "encoder.stages.";
        let mut numbered: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        let mut hugging_face: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        for name in set.tensors.keys() {
            if let Some((base, stage)) = stage_of(name) {
                numbered.entry(base).or_default().insert(stage);
            }
            if let Some(at) = name.find(HUGGING_FACE)
                && (at == 0 || name[..at].ends_with('.'))
                && name.ends_with(".convolution.weight")
                && let Some(stage) = leading_number(&name[at + HUGGING_FACE.len()..])
            {
                hugging_face.entry(&name[..at]).or_default().insert(stage);
            }
        }

        let numbered = numbered.into_iter().filter_map(|(base, stages)| {
            let (first, stages) = run(&stages)?;
            let prefix = &base[..base.rfind('.').map_or(0, |dot| dot + 1)];
            let naming = Naming::Numbered {
                base: base.to_owned(),
                first,
            };
            Some((prefix, naming, stages))
        });
        let hugging_face = hugging_face.into_iter().filter_map(|(prefix, stages)| {
            let (first, stages) = run(&stages)?;
            (first == 0).then_some((prefix, Naming::HuggingFace, stages))
        });
        numbered
            .chain(hugging_face)
            .map(|(prefix, naming, stages)| Self {
                prefix: prefix.to_owned(),
                naming,
                stages,
            })
            .collect()
    }

    /// The prefix of the names of all tensors in a block.
    pub(super) fn block(&self, stage: usize, block: usize) -> String {
        format!("{}{block}.", self.stage(stage))
    }

    /// The prefix of the names of all tensors in a stage.
    pub(super) fn stage(&self, stage: usize) -> String {
        match &self.naming {
            Naming::Numbered { base, first } => format!("{base}{}.", first + stage),
            Naming::HuggingFace => format!("{}encoder.stages.{stage}.layers.", self.prefix),
        }
    }

    /// The convolution of a block with this index, from 0.
    pub(super) fn convolution(&self, stage: usize, block: usize, index: usize) -> ConvNames {
        let within = self.block(stage, block);
        match self.naming {
            Naming::Numbered { .. } => {
                let number = index + 1;
                ConvNames::new(&within, &format!("conv{number}"), &format!("bn{number}"))
            }
            Naming::HuggingFace => {
                let layer = format!("{within}layer.{index}.");
                ConvNames::new(&layer, "convolution", "normalization")
            }
        }
    }

    /// The shortcut of a block: the convolution that is none of its numbered ones.
    pub(super) fn shortcut(&self, set: &TensorSet, stage: usize, block: usize) -> Option<Shortcut> {
        let within = self.block(stage, block);
        if self.naming == Naming::HuggingFace {
            let names = self.default_shortcut(stage, block);
            return set
                .has_any(&format!("{}.", names.conv))
                .then_some(Shortcut {
                    names,
                    pooled: false,
                });
        }

        let inside = || {
            set.tensors
                .range(within.clone()..)
                .take_while(|(name, _)| name.starts_with(&within))
                .map(|(name, tensor)| (&name[within.len()..], tensor))
                .filter(|(name, _)| !is_numbered(name, "conv") && !is_numbered(name, "bn"))
        };
        let conv = inside().find_map(|(name, tensor)| {
            let module = name.strip_suffix(".weight")?;
            (module.contains('.') && tensor.shape().len() == 4).then_some(module)
        })?;
        let parent = &conv[..=conv.rfind('.')?];
        let index = conv[parent.len()..].parse::<usize>();
        let norm = inside()
            .find_map(|(name, _)| {
                let module = name.strip_suffix(".running_mean")?;
                module.starts_with(parent).then(|| module.to_owned())
            })
            .unwrap_or_else(|| match index {
                Ok(index) => format!("{parent}{}", index + 1),
                Err(_) => format!("{parent}bn"),
            });
        Some(Shortcut {
            names: ConvNames::new(&within, conv, &norm),
            pooled: index == Ok(1),
        })
    }

    /// The names that the shortcut of a block usually has.
    pub(super) fn default_shortcut(&self, stage: usize, block: usize) -> ConvNames {
        let within = self.block(stage, block);
        match self.naming {
            Naming::Numbered { .. } => ConvNames::new(&within, "downsample.0", "downsample.1"),
            Naming::HuggingFace => ConvNames::new(
                &format!("{within}shortcut."),
                "convolution",
                "normalization",
            ),
        }
    }

    /// The convolutions before the first stage: beside the stages, or where those are in a module of
    /// their own, beside that.
    pub(super) fn stem(&self, set: &TensorSet) -> Vec<ConvNames> {
        let outer = self.prefix.strip_suffix('.').map(|prefix| {
            let end = prefix.rfind('.').map_or(0, |dot| dot + 1);
            prefix[..end].to_owned()
        });
        for place in [Some(self.prefix.clone()), outer].into_iter().flatten() {
            let stem = STEMS.into_iter().find(|stem| {
                let last = stem[stem.len() - 1].0;
                set.shape(&format!("{place}{last}.weight")).is_some()
            });
            if let Some(stem) = stem {
                return stem
                    .iter()
                    .map(|(conv, norm)| ConvNames::new(&place, conv, norm))
                    .collect();
            }
        }
        let (conv, norm) = match self.naming {
            Naming::Numbered { .. } => STEMS[0][0],
            Naming::HuggingFace => STEMS[6][0],
        };
        vec![ConvNames::new(&self.prefix, conv, norm)]
    }

    /// The name that the last layer usually has.
    pub(super) fn default_head(&self) -> String {
        match self.naming {
            Naming::Numbered { .. } => format!("{}fc", self.prefix),
            Naming::HuggingFace => "classifier.1".into(),
        }
    }

    /// Number of blocks of a stage: one more than the highest index that has a tensor.
    pub(super) fn count_blocks(&self, set: &TensorSet, stage: usize) -> usize {
        const MAX_BLOCKS: usize = 100;
        (0..MAX_BLOCKS)
            .rev()
            .find(|block| set.has_any(&self.block(stage, *block)))
            .map_or(0, |last| last + 1)
    }

    /// The number of features behind the last stage, if its last convolution is there.
    pub(super) fn features(&self, set: &TensorSet) -> Option<usize> {
        let stage = self.stages - 1;
        let outputs = |index| {
            let names = self.convolution(stage, 0, index);
            set.shape(&format!("{}.weight", names.conv))
                .and_then(|shape| shape.first().copied())
        };
        outputs(2).or_else(|| outputs(1)).or_else(|| outputs(0))
    }

    /// Whether the tensor is one of the network without its last layer.
    pub(super) fn contains(&self, set: &TensorSet, name: &str) -> bool {
        let in_stage = match &self.naming {
            Naming::Numbered { .. } => {
                (0..self.stages).any(|stage| name.starts_with(&self.stage(stage)))
            }
            Naming::HuggingFace => name
                .strip_prefix(&self.prefix)
                .is_some_and(|name| name.starts_with("encoder.")),
        };
        let of = |module: &str| {
            name.strip_prefix(module)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        in_stage
            || self
                .stem(set)
                .iter()
                .any(|names| of(&names.conv) || of(&names.norm))
    }

    /// Whether both networks have the same values.
    pub(super) fn is_same(&self, set: &TensorSet, other: &Self, others: &TensorSet) -> bool {
        self.stages == other.stages
            && [0, self.stages - 1].into_iter().all(|stage| {
                let tensors = self
                    .first_weight(set, stage)
                    .zip(other.first_weight(others, stage));
                tensors.is_some_and(|(one, two)| one.is(two))
            })
    }

    /// The weight of the first convolution of a stage.
    fn first_weight<'a>(&self, set: &'a TensorSet, stage: usize) -> Option<&'a Tensor> {
        let names = self.convolution(stage, 0, 0);
        set.tensors.get(&format!("{}.weight", names.conv))
    }

    /// The heads that fit behind the last stage.
    pub(super) fn heads(&self, set: &TensorSet) -> Vec<Head> {
        self.features(set)
            .map(|features| Head::find(set, self, features))
            .unwrap_or_default()
    }
}

/// The base and number of the stage that a block's convolution is in: `model.layer` and 2 for
/// `model.layer2.0.conv1.weight`.
fn stage_of(name: &str) -> Option<(&str, usize)> {
    let (block, conv) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    if !is_numbered(conv, "conv") {
        return None;
    }
    let (stage, block) = block.rsplit_once('.')?;
    block.parse::<u8>().ok()?;
    let base = stage.trim_end_matches(|character: char| character.is_ascii_digit());
    let number = stage[base.len()..].parse::<u8>().ok()?;
    Some((base, number.into()))
}

/// Whether the name is, or starts with, that of a module such as `conv2`.
fn is_numbered(name: &str, word: &str) -> bool {
    let module = name.split('.').next().unwrap_or_default();
    matches!(module.strip_prefix(word), Some("1" | "2" | "3"))
}

fn leading_number(text: &str) -> Option<usize> {
    text.split('.').next()?.parse::<u8>().ok().map(usize::from)
}

/// The first number, and how many follow it without a gap, if they are as many as a ResNet has.
fn run(numbers: &BTreeSet<usize>) -> Option<(usize, usize)> {
    let first = *numbers.first()?;
    let count = (first..)
        .take_while(|number| numbers.contains(number))
        .count();
    (MIN_STAGES..=MAX_STAGES)
        .contains(&count)
        .then_some((first, count))
}
