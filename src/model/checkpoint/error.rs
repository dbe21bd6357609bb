//! Why a checkpoint was refused: what is wrong with it and what would be right.

/// Why a checkpoint was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The bytes are something else than a checkpoint.
    #[error("is not a checkpoint: {0}; a `.pth`, `.pt` or `.safetensors` file is needed")]
    Unknown(String),
    /// The file contradicts itself or ends too early.
    #[error("is damaged or cut off: {0}; fetch or save it again")]
    Damaged(String),
    /// The file is sound, but no checkpoint of a kind that is read here.
    #[error("{0}")]
    Unsupported(String),
    /// A tensor has the wrong shape, type or values.
    #[error("tensor `{tensor}` {reason}")]
    Tensor {
        /// The tensor's name in the file.
        tensor: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A tensor that the network needs is not there.
    #[error("has no tensor `{tensor}`{hint}")]
    Missing {
        /// The name that the tensor would have in this file.
        tensor: String,
        /// What may have happened to it; empty, or with what joins it to the sentence.
        hint: String,
    },
    /// Tensors are left over.
    #[error(
        "holds what a {architecture} does not have: {}; only plain ResNets (torchvision's, timm's, Hugging Face's) can be \
         imported",
        list(tensors)
    )]
    Extra {
        /// The network that the other tensors make.
        architecture: String,
        /// The names of the tensors in the file.
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

/// The first few names, and how many more there are.
pub(super) fn list(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<String> = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    let more = names.len().saturating_sub(SHOWN);
    shown.join(", ")
        + &if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        }
}
