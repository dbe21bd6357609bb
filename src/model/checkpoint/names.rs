//! The names that torchvision, timm and Hugging Face give to the tensors of a ResNet.

use super::Checkpoint;

/// A convolution of a ResNet and the BatchNorm after it, by its position. All indices count from 0.
#[derive(Clone, Copy, Debug)]
pub(super) enum ConvPosition {
    /// The first convolution, on the image.
    Stem,
    /// A convolution of a block.
    Block {
        stage: usize,
        block: usize,
        index: usize,
    },
    /// The projection on the shortcut of a block that changes the size.
    Shortcut { stage: usize, block: usize },
}

/// The naming scheme of a checkpoint.
#[derive(Clone, Debug)]
pub(super) enum Naming {
    /// That of torchvision and timm; `head` is the name of the last layer.
    Torchvision { head: String },
    /// That of `transformers`; `prefix` is `resnet.`, or empty for a model without its last layer.
    HuggingFace { prefix: &'static str },
}

impl Naming {
    /// Detects the scheme by the names. A last layer in an `nn.Sequential`, as in `fc.1.weight`, is
    /// found too.
    pub(super) fn detect(checkpoint: &Checkpoint) -> Self {
        let names = || checkpoint.tensors.keys().chain(checkpoint.others.keys());
        for prefix in ["resnet.", ""] {
            if names().any(|name| {
                name.strip_prefix(prefix)
                    .is_some_and(|name| name.starts_with("embedder.embedder."))
            }) {
                return Self::HuggingFace { prefix };
            }
        }

        let head = |name: &String| {
            let number = name.strip_prefix("fc.")?.strip_suffix(".weight")?;
            number
                .bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| format!("fc.{number}"))
        };
        let mut heads = names().filter_map(head);
        let head = heads.next().filter(|_| heads.next().is_none());
        Self::Torchvision {
            head: head.unwrap_or_else(|| "fc".into()),
        }
    }

    /// The prefix of the names of all tensors in a block.
    pub(super) fn block(&self, stage: usize, block: usize) -> String {
        match self {
            Self::Torchvision { .. } => format!("layer{}.{block}.", stage + 1),
            Self::HuggingFace { prefix } => {
                format!("{prefix}encoder.stages.{stage}.layers.{block}.")
            }
        }
    }

    /// The names of a convolution and of the BatchNorm after it, without `.weight` and the like.
    pub(super) fn convolution(&self, position: ConvPosition) -> (String, String) {
        let within = match position {
            ConvPosition::Stem => String::new(),
            ConvPosition::Block { stage, block, .. } | ConvPosition::Shortcut { stage, block } => {
                self.block(stage, block)
            }
        };
        let hugging_face = |layer: String| {
            (
                format!("{layer}.convolution"),
                format!("{layer}.normalization"),
            )
        };
        match (self, position) {
            (Self::Torchvision { .. }, ConvPosition::Stem) => ("conv1".into(), "bn1".into()),
            (Self::Torchvision { .. }, ConvPosition::Block { index, .. }) => (
                format!("{within}conv{}", index + 1),
                format!("{within}bn{}", index + 1),
            ),
            (Self::Torchvision { .. }, ConvPosition::Shortcut { .. }) => (
                format!("{within}downsample.0"),
                format!("{within}downsample.1"),
            ),
            (Self::HuggingFace { prefix }, ConvPosition::Stem) => {
                hugging_face(format!("{prefix}embedder.embedder"))
            }
            (Self::HuggingFace { .. }, ConvPosition::Block { index, .. }) => {
                hugging_face(format!("{within}layer.{index}"))
            }
            (Self::HuggingFace { .. }, ConvPosition::Shortcut { .. }) => {
                hugging_face(format!("{within}shortcut"))
            }
        }
    }

    /// The name of the last layer, without `.weight` and `.bias`.
    pub(super) fn head(&self) -> &str {
        match self {
            Self::Torchvision { head } => head,
            Self::HuggingFace { .. } => "classifier.1",
        }
    }
}

/// Removes prefixes that all names share, such as the `module.` of `DataParallel`. Step counters
/// may lack the prefix.
pub(super) fn strip_common_prefix(checkpoint: &mut Checkpoint) {
    loop {
        let names = || checkpoint.tensors.keys().filter(|name| !is_counter(name));
        let Some((prefix, _)) = names().next().and_then(|name| name.split_once('.')) else {
            return;
        };
        let prefix = format!("{prefix}.");
        if !names().all(|name| name.starts_with(&prefix)) {
            return;
        }
        let strip = |name: String| {
            name.strip_prefix(&prefix)
                .map_or(name.clone(), str::to_owned)
        };
        checkpoint.tensors = std::mem::take(&mut checkpoint.tensors)
            .into_iter()
            .map(|(name, tensor)| (strip(name), tensor))
            .collect();
        checkpoint.others = std::mem::take(&mut checkpoint.others)
            .into_iter()
            .map(|(name, what)| (strip(name), what))
            .collect();
    }
}

/// Whether the tensor only counts training steps.
pub(super) fn is_counter(name: &str) -> bool {
    name.ends_with("num_batches_tracked") || name == "n_averaged"
}
