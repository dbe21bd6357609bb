//! The errors of importing a checkpoint, each with what is wrong and how to correct it.

/// Why a checkpoint cannot be imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The content is not a checkpoint.
    #[error("is not a checkpoint: {0}; a `.pth`, `.pt` or `.safetensors` file is needed")]
    Unknown(String),
    /// The file is inconsistent or ends too early.
    #[error("is damaged or cut off: {0}; fetch or save it again")]
    Damaged(String),
    /// The file is valid, but not a checkpoint of a supported kind.
    #[error("{0}")]
    Unsupported(String),
    /// A tensor has the wrong shape, type or values.
    #[error("tensor `{tensor}` {reason}")]
    Tensor {
        /// Name of the tensor in the file.
        tensor: String,
        reason: String,
    },
    /// A tensor that the network needs is missing.
    #[error("has no tensor `{tensor}`{hint}")]
    Missing {
        /// Name that the tensor would have in this file.
        tensor: String,
        /// A possible cause, beginning with `; `; may be empty.
        hint: String,
    },
    /// The file contains tensors that the network does not have.
    #[error(
        "contains tensors that a {architecture} does not have: {}; only plain ResNets \
         (torchvision's, timm's, Hugging Face's) can be imported",
        list(tensors)
    )]
    Extra {
        /// The network that the other tensors belong to.
        architecture: String,
        /// Names of the additional tensors in the file.
        tensors: Vec<String>,
    },
}

pub(super) fn damaged(reason: impl Into<String>) -> CheckpointError {
    CheckpointError::Damaged(reason.into())
}

pub(super) fn unsupported(reason: impl Into<String>) -> CheckpointError {
    CheckpointError::Unsupported(reason.into())
}

pub(super) fn tensor(name: &str, reason: impl Into<String>) -> CheckpointError {
    CheckpointError::Tensor {
        tensor: name.to_owned(),
        reason: reason.into(),
    }
}

/// The first few names and the number of others, for error messages.
pub(super) fn list(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<String> = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    let more = names.len().saturating_sub(SHOWN);
    let shown = shown.join(", ");
    if more > 0 {
        format!("{shown} and {more} more")
    } else {
        shown
    }
}
