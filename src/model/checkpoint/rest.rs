//! Checks that what a file holds beside a network's weights does not change what the network
//! computes.

use super::{
    CheckpointError,
    architecture::Conv,
    error::{list, unsupported},
    head::{self, Head},
    layout::Layout,
    tensor::Tensor,
    tensor_set::TensorSet,
};

/// Activations that a ResNet does not have.
const OTHER_ACTIVATIONS: [&str; 14] = [
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "Mish",
    "PReLU",
    "ReLU6",
    "SELU",
    "SiLU",
    "Sigmoid",
    "Tanh",
];
/// Most values of a tensor that is no weight of a layer, such as the mean of each channel.
const FEW: usize = 4;

/// Checks the attributes of a convolution, where the file has the whole module.
///
/// # Errors
/// Attributes other than those of the network that would be built.
pub(super) fn check_conv(set: &TensorSet, name: &str, conv: &Conv) -> Result<(), CheckpointError> {
    let expected = [
        ("stride", conv.stride as f64),
        ("dilation", 1.0),
        ("padding", (conv.size / 2) as f64),
    ];
    for (attribute, expected) in expected {
        let found = set.attribute(name, attribute).unwrap_or_default();
        if let Some(other) = found.iter().find(|found| **found != expected) {
            return Err(unsupported(format!(
                "has a {attribute} of {other} in `{name}`, where a ResNet has {expected}; export it \
                 to ONNX instead"
            )));
        }
    }
    Ok(())
}

/// Checks the classes of the modules that have no tensors, where the file has whole modules.
///
/// # Errors
/// An activation that is not a ReLU.
pub(super) fn check_modules(set: &TensorSet, layout: &Layout) -> Result<(), CheckpointError> {
    let other = set.modules.iter().find(|(name, module)| {
        name.starts_with(&layout.prefix) && OTHER_ACTIVATIONS.contains(&module.class.as_str())
    });
    match other {
        Some((name, module)) => Err(unsupported(format!(
            "has a {} in `{name}`, where a ResNet has a ReLU; export it to ONNX instead",
            module.class
        ))),
        None => Ok(()),
    }
}

/// Accounts for the tensors that were not used: those of training are left out, with a note where
/// that is worth one.
///
/// # Errors
/// Tensors that the network does not have and that may change what it computes.
pub(super) fn account(
    set: &TensorSet,
    layout: &Layout,
    others: &[Layout],
    used: &Head,
    architecture: &str,
) -> Result<Option<String>, CheckpointError> {
    let features = used.layers[0].inputs;
    let other_heads: Vec<Head> = Head::find(set, layout, features);
    let in_head = |head: &Head, name: &str| {
        name.strip_prefix(head.name())
            .is_some_and(|rest| rest.starts_with('.'))
    };
    let of_other_network = |name: &str| {
        others.iter().any(|other| {
            other.contains(set, name)
                || (!other.prefix.is_empty()
                    && !layout.prefix.starts_with(&other.prefix)
                    && name.starts_with(&other.prefix))
        })
    };

    let mut noted = Vec::new();
    let mut extra = Vec::new();
    for (name, tensor) in &set.tensors {
        if is_counter(name) || of_other_network(name) {
            continue;
        }
        if layout.contains(set, name) || in_head(used, name) {
            extra.push(name.clone());
        } else if other_heads.iter().any(|head| in_head(head, name)) {
            // The choice of the last layer has been noted.
        } else if is_harmless(name, tensor) {
            noted.push(name.clone());
        } else {
            extra.push(name.clone());
        }
    }
    if !extra.is_empty() {
        return Err(CheckpointError::Extra {
            architecture: architecture.to_owned(),
            tensors: extra,
        });
    }
    Ok((!noted.is_empty()).then(|| {
        let pixels = noted
            .iter()
            .any(|name| matches!(last(name), "mean" | "std"));
        let hint = if pixels {
            "; if images were normalized by the mean and std there, give them with --mean and --std"
        } else {
            ""
        };
        format!(
            "left out, as no part of the network: {}{hint}",
            list(&noted)
        )
    }))
}

/// Whether the tensor only counts: training steps, or operations as the tool thop does.
fn is_counter(name: &str) -> bool {
    matches!(
        last(name),
        "num_batches_tracked" | "n_averaged" | "total_ops" | "total_params"
    )
}

/// Whether the tensor is one of a loss or metric, of a second output, or too small to be a layer's.
fn is_harmless(name: &str, tensor: &Tensor) -> bool {
    !tensor.is_float()
        || tensor.len() <= FEW
        || head::is_training_only(name)
        || head::is_auxiliary(name)
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}
