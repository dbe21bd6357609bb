//! Why a model was refused: what is wrong with it and what would be right.

use std::{io, path::PathBuf};

use super::onnx::tensor_proto::DataType;

/// Why a model, its labels or its settings were refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The error within came up while this file was loaded.
    #[error("{}: {source}", path.display())]
    File {
        /// The model's file.
        path: PathBuf,
        /// What went wrong with it.
        source: Box<ModelError>,
    },
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
    /// The bytes are something else than an ONNX model.
    #[error("is not an ONNX model: {0}; an `.onnx` file is needed")]
    NotOnnx(String),
    /// The model was exported for operators older than those the engines are given.
    #[error(
        "uses ONNX opset {found}, but 13 or newer is needed: export it again with a newer opset \
         (PyTorch: `torch.onnx.export(…, opset_version=17)`) or convert it with `onnx.version_converter`"
    )]
    Opset {
        /// The version of the default domain that the file names.
        found: i64,
    },
    /// The file does not say which operators it means.
    #[error(
        "names no opset for the default domain `ai.onnx`; `opset_import` must hold one, 13 or newer"
    )]
    NoOpset,
    /// The file holds a training step beside the network.
    #[error("holds training information (`training_info`); export the model for inference")]
    Training,
    /// Weights lie in another file.
    #[error(
        "keeps tensor `{tensor}` outside, in `{location}`; a model must be one file: save it again with the weights \
         inside (Python: `onnx.save(onnx.load(PATH), PATH)`)"
    )]
    ExternalData {
        /// The tensor's name.
        tensor: String,
        /// The file that should hold it.
        location: String,
    },
    /// A tensor contradicts itself or has a type that cannot be converted.
    #[error("tensor `{tensor}`: {reason}")]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// The graph is not a well-formed one.
    #[error("node `{node}`: {reason}")]
    Node {
        /// The node's name, operator or first output.
        node: String,
        /// What is wrong.
        reason: String,
    },
    /// No input of the graph can take RGB images, or more than one has to be fed.
    #[error("{0}")]
    Input(String),
    /// No output of the graph is a list of scores, or it is unclear which one is.
    #[error("{0}")]
    Output(String),
    /// The manifest in the metadata is not what it should be.
    #[error("its manifest (metadata `resnet18.manifest`) is wrong: {0}")]
    Manifest(String),
    /// A file of labels is not one label a line.
    #[error("{}: {reason}", path.display())]
    LabelFile {
        /// The file of labels.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The number of labels is not the number of classes.
    #[error(
        "has {classes} classes, but {origin} {labels} labels; one label for each class is needed"
    )]
    LabelCount {
        /// How many scores the network gives for an image.
        classes: usize,
        /// How many labels there are.
        labels: usize,
        /// Where the labels come from, with a verb.
        origin: String,
    },
    /// Nothing says what the classes are called.
    #[error(
        "has {classes} classes and says nothing about their names: give `--labels FILE` with {classes} lines, one label \
         a line, in the order of the classes"
    )]
    NoLabels {
        /// How many scores the network gives for an image.
        classes: usize,
    },
    /// The mean or the standard deviation cannot be used.
    #[error("normalisation: {0}")]
    Normalization(String),
    /// Scaled images would be smaller than the network's input.
    #[error(
        "`resize_shorter_side` is {resize_shorter_side}, but the network sees {width}×{height} pixels: \
         it must be {} or more", width.max(height)
    )]
    Resize {
        /// The shorter side after scaling, in pixels.
        resize_shorter_side: u32,
        /// The input's width, in pixels.
        width: u32,
        /// The input's height, in pixels.
        height: u32,
    },
    /// A batch was asked for that the graph was not exported for.
    #[error(
        "was exported for batches of exactly {fixed}, so it cannot serve {asked}; export it with a dynamic batch"
    )]
    Batch {
        /// The batch that the file is made for, in images.
        fixed: usize,
        /// The batch that was asked for.
        asked: String,
    },
    /// The last layer can't be replaced by another one.
    #[error(
        "its last layer can't be replaced: {0}; a linear layer (a Gemm, or a MatMul and an Add) with stored weights, right \
         before the scores, is needed"
    )]
    Head(String),
    /// The network cannot be given 8-bit layers.
    #[error("{0}")]
    Quantization(String),
    /// The network cannot be given another element type.
    #[error("cannot run in {}: node `{node}` {reason}", precision.as_str_name().to_ascii_lowercase())]
    Typing {
        /// The element type that was asked for.
        precision: DataType,
        /// The node's name, operator or first output.
        node: String,
        /// What stands in the way.
        reason: String,
    },
}

impl ModelError {
    /// What is wrong, without where the file is.
    pub fn reason(&self) -> String {
        match self {
            Self::File { source, .. } => source.reason(),
            Self::LabelFile { path, reason } => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                format!("{name}: {reason}")
            }
            other => other.to_string(),
        }
    }
}

/// A tensor's refusal.
pub(crate) fn tensor(name: &str, reason: impl Into<String>) -> ModelError {
    ModelError::Tensor {
        tensor: name.to_owned(),
        reason: reason.into(),
    }
}
