//! Finds the last layer of a network: a linear layer behind its features, or several in a row.

use std::collections::BTreeMap;

use super::{layout::Layout, tensor_set::TensorSet};

/// Names that last layers usually have, below that of the network.
const USUAL: [&str; 10] = [
    "classifier",
    "head",
    "linear",
    "last_linear",
    "output",
    "cls",
    "logits",
    "head.fc",
    "classifier.fc",
    "out",
];
/// Words in the names of modules that only training uses.
const TRAINING_ONLY: [&str; 6] = [
    "loss",
    "criterion",
    "metric",
    "center",
    "arcface",
    "cosface",
];

/// Linear layers, of which each takes the outputs of the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The modules, without `.weight` and `.bias`.
    pub(super) layers: Vec<Linear>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Linear {
    pub(super) name: String,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// Whether it is a convolution of 1×1, whose weight has two dimensions more.
    pub(super) convolution: bool,
    /// Its index if it is a child of an `nn.Sequential`.
    index: Option<usize>,
}

impl Head {
    /// The heads that take `features` inputs, the likeliest one first.
    pub(super) fn find(set: &TensorSet, layout: &Layout, features: usize) -> Vec<Self> {
        let mut rows: BTreeMap<&str, Vec<Linear>> = BTreeMap::new();
        for (name, tensor) in &set.tensors {
            let Some(module) = name.strip_suffix(".weight") else {
                continue;
            };
            let (outputs, inputs, convolution) = match *tensor.shape() {
                [outputs, inputs] => (outputs, inputs, false),
                [outputs, inputs, 1, 1] => (outputs, inputs, true),
                _ => continue,
            };
            if outputs == 0 || is_training_only(module) || layout.contains(set, name) {
                continue;
            }
            // Children of an `nn.Sequential` form one row; any other layer is one by itself.
            let (row, index) = match module.rsplit_once('.') {
                Some((parent, index)) => match index.parse::<usize>() {
                    Ok(index) => (parent, Some(index)),
                    Err(_) => (module, None),
                },
                None => (module, module.parse().ok()),
            };
            rows.entry(row).or_default().push(Linear {
                name: module.to_owned(),
                outputs,
                inputs,
                convolution,
                index,
            });
        }

        let mut heads: Vec<Self> = rows
            .into_values()
            .filter_map(|mut layers| {
                layers.sort_by_key(|layer| layer.index);
                let fits = layers[0].inputs == features
                    && layers
                        .windows(2)
                        .all(|pair| pair[0].outputs == pair[1].inputs);
                fits.then_some(Self { layers })
            })
            .collect();
        heads.sort_by_key(|head| head.rank(layout));
        heads
    }

    /// The lower, the likelier the head is that which classifies: by its name, and then by how much of
    /// its path it shares with the network.
    pub(super) fn rank(&self, layout: &Layout) -> (usize, usize) {
        let name = self.name();
        let relative = name.strip_prefix(&layout.prefix).unwrap_or(name);
        let by_name = if is_auxiliary(name) {
            3
        } else if relative == "fc" || relative.starts_with("fc.") {
            0
        } else if USUAL.iter().any(|usual| relative.ends_with(usual)) {
            1
        } else {
            2
        };
        let parts = layout.prefix.split('.').count();
        let shared = name
            .split('.')
            .zip(layout.prefix.split('.'))
            .take_while(|(one, two)| one == two)
            .count();
        (by_name, parts - shared)
    }

    /// The name of the layer, or of the `nn.Sequential` of several.
    pub(super) fn name(&self) -> &str {
        let first = &self.layers[0];
        match first.name.rsplit_once('.') {
            Some((parent, _)) if first.index.is_some() => parent,
            _ => &first.name,
        }
    }

    /// Number of outputs.
    pub(super) fn outputs(&self) -> usize {
        self.layers[self.layers.len() - 1].outputs
    }

    /// Whether the `nn.Sequential` has other modules between this layer and the one before it.
    pub(super) fn has_gap_before(&self, layer: usize) -> bool {
        let index = |layer: usize| self.layers[layer].index;
        match (index(layer - 1), index(layer)) {
            (Some(before), Some(after)) => after > before + 1,
            _ => false,
        }
    }

    /// The children of the `nn.Sequential` between a layer and the one before, by name.
    pub(super) fn between(&self, layer: usize) -> Vec<String> {
        let indices = self.layers[layer - 1].index.zip(self.layers[layer].index);
        let Some((before, after)) = indices else {
            return Vec::new();
        };
        let parent = self.layers[0]
            .name
            .rsplit_once('.')
            .map(|(parent, _)| parent);
        (before + 1..after)
            .take(8)
            .map(|index| match parent {
                Some(parent) => format!("{parent}.{index}"),
                None => index.to_string(),
            })
            .collect()
    }
}

/// Whether a module of this name takes part in training only.
pub(super) fn is_training_only(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    TRAINING_ONLY.iter().any(|word| name.contains(word))
}

/// Whether a module of this name is a second output, for training.
pub(super) fn is_auxiliary(name: &str) -> bool {
    name.to_ascii_lowercase().contains("aux")
}
