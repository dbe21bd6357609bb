//! A set of tensors that were saved together, and what else the file says of their modules.

use std::collections::BTreeMap;

use super::tensor::Tensor;

/// The tensors of one dict, or of one tree of modules, by their names in it.
#[derive(Debug, Default)]
pub(super) struct TensorSet {
    /// Where the set is in the file, such as `checkpoint.model`; empty for the whole file.
    pub(super) path: String,
    pub(super) tensors: BTreeMap<String, Tensor>,
    /// Entries that are not tensors, each with a description for error messages.
    pub(super) others: BTreeMap<String, String>,
    /// The modules by their names, where the file holds them rather than only their tensors.
    pub(super) modules: BTreeMap<String, Module>,
}

/// What is known of a module besides its tensors.
#[derive(Debug, Default)]
pub(super) struct Module {
    /// The name of its class, without the Python module that it is in.
    pub(super) class: String,
    /// Attributes that are numbers or tuples of them, such as `stride`.
    pub(super) numbers: BTreeMap<String, Vec<f64>>,
}

impl TensorSet {
    pub(super) fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        let mut set = Self {
            tensors,
            ..Self::default()
        };
        set.apply_masks();
        set
    }

    /// Replaces each pair `weight_orig` and `weight_mask`, which PyTorch's pruning makes, by the
    /// `weight` that it stands for.
    pub(super) fn apply_masks(&mut self) {
        let pruned: Vec<String> = self
            .tensors
            .keys()
            .filter_map(|name| name.strip_suffix("_mask"))
            .map(str::to_owned)
            .collect();
        for name in pruned {
            let (original, mask) = (format!("{name}_orig"), format!("{name}_mask"));
            let same_shape = |set: &Self| {
                set.tensors.get(&original).map(Tensor::shape)
                    == set.tensors.get(&mask).map(Tensor::shape)
            };
            if same_shape(self)
                && let Some(values) = self.tensors.remove(&original)
                && let Some(mask) = self.tensors.remove(&mask)
            {
                self.tensors.insert(name, values.masked(mask));
            }
        }
    }

    /// The shape of a tensor.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(Tensor::shape)
    }

    /// Whether any tensor has a name that starts with `prefix`.
    pub(super) fn has_any(&self, prefix: &str) -> bool {
        self.tensors
            .range(prefix.to_owned()..)
            .next()
            .is_some_and(|(name, _)| name.starts_with(prefix))
    }

    /// The numbers of an attribute of a module, if the file has them.
    pub(super) fn attribute(&self, module: &str, name: &str) -> Option<&[f64]> {
        let numbers = self.modules.get(module)?.numbers.get(name)?;
        Some(numbers)
    }
}
