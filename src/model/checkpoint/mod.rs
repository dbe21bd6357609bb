//! Imports checkpoints, the weights that PyTorch and Hugging Face save, as ONNX models.
//!
//! One of three readers (`archive`, `legacy`, `safetensors`) turns a file into a [`Checkpoint`]:
//! sets of names and tensors, which are views of the file's bytes. [`Checkpoint::into_resnet`] finds
//! the network among them (`layout`, `head`, `choice`) and builds an ONNX model (`architecture`,
//! `resnet`). All of a file's fields are untrusted: sizes are checked before anything is allocated.

mod architecture;
mod archive;
mod choice;
mod error;
mod head;
mod layout;
mod legacy;
mod pickle;
mod resnet;
mod rest;
mod safetensors;
mod tensor;
mod tensor_set;
mod values;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod variants;

use bytes::Bytes;

use self::tensor_set::TensorSet;
pub use self::{
    error::CheckpointError,
    resnet::{ResNet, ResNetOptions},
};
use super::sniff;

/// The first byte of a pickle: the opcode PROTO.
const PICKLE: u8 = 0x80;

/// The tensors of a checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// One for each dict of tensors and for each tree of modules, in the order of the file.
    sets: Vec<TensorSet>,
}

impl Checkpoint {
    /// Whether the content begins as a checkpoint does; it may still be damaged.
    pub fn is_checkpoint(content: &[u8]) -> bool {
        is_zip(content) || content.first() == Some(&PICKLE) || sniff::is_safetensors(content)
    }

    /// Reads the content of a `.pth`, `.pt` or `.safetensors` file. The values are shared with
    /// `content`, not copied.
    ///
    /// Pickles are read as data: no code in them is ever run.
    ///
    /// # Errors
    /// Content that is not a checkpoint, is damaged, or contains no tensors that can be read
    /// without running its code.
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

    /// Builds a network from the tensors, releasing them as they are used.
    ///
    /// # Errors
    /// Tensors that are not those of a ResNet: missing or additional ones, wrong shapes, values
    /// that are not finite; several networks of which none is the one to take.
    pub fn into_resnet(self, options: &ResNetOptions) -> Result<ResNet, CheckpointError> {
        resnet::build(self, options)
    }
}

fn is_zip(content: &[u8]) -> bool {
    content.starts_with(b"PK\x03\x04")
}
