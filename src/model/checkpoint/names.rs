//! What torchvision, timm and Hugging Face call the tensors of a ResNet.

use super::Checkpoint;

/// A convolution of a ResNet, which a BatchNorm follows. Stages and all else count from 0.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// The first, on the image.
    Stem,
    /// One of a block.
    Block {
        stage: usize,
        block: usize,
        index: usize,
    },
    /// Beside a block, where it changes the size.
    Shortcut { stage: usize, block: usize },
}

/// How a checkpoint names its tensors.
#[derive(Clone, Debug)]
pub(super) enum Naming {
    /// torchvision's and timm's; `head` is the last layer's.
    Torchvision { head: String },
    /// Those of `transformers`; `prefix` is `resnet.`, or nothing where the last layer was left
    /// out.
    HuggingFace { prefix: &'static str },
}

impl Naming {
    /// The one that fits the names. A last layer in an `nn.Sequential`, as in `fc.1.weight`, is
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

    /// What the names of all tensors in a block begin with.
    pub(super) fn block(&self, stage: usize, block: usize) -> String {
        match self {
            Self::Torchvision { .. } => format!("layer{}.{block}.", stage + 1),
            Self::HuggingFace { prefix } => {
                format!("{prefix}encoder.stages.{stage}.layers.{block}.")
            }
        }
    }

    /// The names of a convolution and of the BatchNorm after it, without `.weight` and the like.
    pub(super) fn convolution(&self, place: Place) -> (String, String) {
        let within = match place {
            Place::Stem => String::new(),
            Place::Block { stage, block, .. } | Place::Shortcut { stage, block } => {
                self.block(stage, block)
            }
        };
        let hugging_face = |layer: String| {
            (
                format!("{layer}.convolution"),
                format!("{layer}.normalization"),
            )
        };
        match (self, place) {
            (Self::Torchvision { .. }, Place::Stem) => ("conv1".into(), "bn1".into()),
            (Self::Torchvision { .. }, Place::Block { index, .. }) => (
                format!("{within}conv{}", index + 1),
                format!("{within}bn{}", index + 1),
            ),
            (Self::Torchvision { .. }, Place::Shortcut { .. }) => (
                format!("{within}downsample.0"),
                format!("{within}downsample.1"),
            ),
            (Self::HuggingFace { prefix }, Place::Stem) => {
                hugging_face(format!("{prefix}embedder.embedder"))
            }
            (Self::HuggingFace { .. }, Place::Block { index, .. }) => {
                hugging_face(format!("{within}layer.{index}"))
            }
            (Self::HuggingFace { .. }, Place::Shortcut { .. }) => {
                hugging_face(format!("{within}shortcut"))
            }
        }
    }

    /// The last layer's name, without `.weight` and `.bias`.
    pub(super) fn head(&self) -> &str {
        match self {
            Self::Torchvision { head } => head,
            Self::HuggingFace { .. } => "classifier.1",
        }
    }
}

/// Takes off what all names begin with, such as the `module.` of `DataParallel`. Plain counters
/// beside it don't matter.
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

/// Whether the tensor only counts steps of the training.
pub(super) fn is_counter(name: &str) -> bool {
    name.ends_with("num_batches_tracked") || name == "n_averaged"
}
