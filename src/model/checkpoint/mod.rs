//! Checkpoints: the weights that PyTorch and Hugging Face save, and the networks that are made of
//! them.
//!
//! A file goes through one of three readers (`archive`, `legacy`, `safetensors`) and becomes a
//! [`Checkpoint`]: names and tensors, still in the bytes of the file. [`Checkpoint::into_resnet`]
//! makes an ONNX model of them.

mod archive;
mod error;
mod legacy;
mod names;
mod pickle;
mod resnet;
mod safetensors;
mod state_dict;
mod tensor;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;

use self::tensor::Tensor;
pub use self::{error::CheckpointError, resnet::ResNet};
use super::sniff;

/// What pickles begin with.
const PICKLE: u8 = 0x80;

/// The tensors of a checkpoint, by the names they have in the file.
#[derive(Debug)]
pub struct Checkpoint {
    tensors: BTreeMap<String, Tensor>,
    /// What stands among the tensors without being one: what it is.
    others: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Whether the content is a checkpoint's, sound or not.
    pub fn is_one(content: &[u8]) -> bool {
        is_zip(content) || content.first() == Some(&PICKLE) || sniff::is_safetensors(content)
    }

    /// Reads the content of a `.pth`, `.pt` or `.safetensors` file. The values stay where they are
    /// in `content`.
    ///
    /// Pickles are read as data; nothing in them is ever run.
    ///
    /// # Errors
    /// Content that is no checkpoint, is damaged, or holds no tensors that can be read without
    /// running its code.
    pub fn from_bytes(content: Bytes) -> Result<Self, CheckpointError> {
        if is_zip(&content) {
            archive::read(&content)
        } else if legacy::is_legacy(&content) {
            legacy::read(&content)
        } else if sniff::is_safetensors(&content) {
            safetensors::read(&content)
        } else if content.get(257..262) == Some(b"ustar") {
            Err(error::unsupported(
                "is a tar archive, as PyTorch wrote before 0.2; save it again with a newer one",
            ))
        } else if content.first() == Some(&PICKLE) {
            Err(error::unsupported(
                "is a Python pickle, but not one that `torch.save` writes",
            ))
        } else {
            Err(CheckpointError::Unknown(
                sniff::looks_like(&content).to_owned(),
            ))
        }
    }

    /// Makes a network of the tensors; their memory is given back meanwhile.
    ///
    /// # Errors
    /// Tensors that are not those of a ResNet: missing ones, others, wrong shapes, values that are
    /// no finite numbers.
    pub fn into_resnet(self) -> Result<ResNet, CheckpointError> {
        resnet::build(self)
    }
}

fn is_zip(content: &[u8]) -> bool {
    content.starts_with(b"PK\x03\x04")
}
