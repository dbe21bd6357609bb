//! The errors of loading a model, each with what is wrong and how to correct it.

use std::{io, path::PathBuf};

use super::onnx::tensor_proto::DataType;

/// Why a model, its labels or its settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// `source` occurred while this file was loaded.
    #[error("{}: {source}", path.display())]
    File {
        path: PathBuf,
        source: Box<ModelError>,
    },
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
    /// The content is not an ONNX model.
    #[error("is not an ONNX model: {0}; an `.onnx` file is needed")]
    NotOnnx(String),
    /// The model was exported for an older operator set than the rewriting supports.
    #[error(
        "uses ONNX opset {found}, but 7 or newer is needed: export it again with a newer release of \
         the framework, or convert it (Python: \
         `onnx.save(onnx.version_converter.convert_version(onnx.load(PATH), 13), PATH)`)"
    )]
    Opset {
        /// Version of the default domain in the file.
        found: i64,
    },
    /// The file names no version of the standard operators.
    #[error(
        "names no opset for the default domain `ai.onnx`; `opset_import` must hold one, 7 or newer"
    )]
    NoOpset,
    /// The file contains a training step besides the network.
    #[error("holds training information (`training_info`); export the model for inference")]
    Training,
    /// Weights are stored in another file, and only the content of the model's is known.
    #[error(
        "keeps tensor `{tensor}` in another file, `{location}`, which is found beside a model that is \
         loaded by its path; or save the model with the weights inside (Python: \
         `onnx.save(onnx.load(PATH), PATH)`)"
    )]
    ExternalData {
        tensor: String,
        /// The file that should contain the tensor.
        location: String,
    },
    /// A file of weights that lies beside the model's can't be used.
    #[error("its file of weights `{location}` {reason}")]
    DataFile {
        /// The file's name in the model.
        location: String,
        reason: String,
    },
    /// A tensor is inconsistent or has a type that cannot be converted.
    #[error("tensor `{tensor}`: {reason}")]
    Tensor { tensor: String, reason: String },
    /// The graph is not well formed.
    #[error("node `{node}`: {reason}")]
    Node {
        /// The node's name, operator or first output.
        node: String,
        reason: String,
    },
    /// The file asks for more than is read of any.
    #[error("{0}")]
    Bounds(String),
    /// No input of the graph takes RGB images, or there are several inputs.
    #[error("{0}")]
    Input(String),
    /// No output of the graph is a list of scores, or it is ambiguous which one is.
    #[error("{0}")]
    Output(String),
    /// The manifest in the metadata is not valid.
    #[error("its manifest (metadata `resnet18.manifest`) is not valid: {0}")]
    Manifest(String),
    /// A file of labels does not contain one label on each line.
    #[error("{}: {reason}", path.display())]
    LabelFile { path: PathBuf, reason: String },
    /// The number of labels differs from the number of classes.
    #[error(
        "has {classes} classes, but {origin} {labels} labels; one label for each class is needed"
    )]
    LabelCount {
        /// Number of scores that the network gives for each image.
        classes: usize,
        labels: usize,
        /// Where the labels come from, with a verb, such as `its manifest holds`.
        origin: String,
    },
    /// Neither the user nor the file gives names for the classes.
    #[error(
        "has {classes} classes and does not name them: give `--labels FILE` with {classes} lines, \
         one label on each line, in the order of the classes"
    )]
    NoLabels {
        /// Number of scores that the network gives for each image.
        classes: usize,
    },
    /// A file beside the model, or the metadata of another project, asks for something that is not
    /// computed, or cannot be read.
    #[error("{file}: {reason}")]
    Sidecar {
        /// The file, in words.
        file: String,
        reason: String,
    },
    /// Settings of preprocessing contradict each other or the network.
    #[error("preprocessing: {0}")]
    Preprocessing(String),
    /// The mean or the standard deviation cannot be used.
    #[error("normalization: {0}")]
    Normalization(String),
    /// Scaled images would be smaller than the network's input.
    #[error(
        "`resize_shorter_side` is {resize_shorter_side}, but the network sees {width}×{height} \
         pixels: it must be {least} or more"
    )]
    Resize {
        /// The shorter side after scaling, in pixels.
        resize_shorter_side: u32,
        /// The input's width, in pixels.
        width: u32,
        /// The input's height, in pixels.
        height: u32,
        /// The least that can be used, in pixels.
        least: u32,
    },
    /// The graph was not exported for the requested batch size.
    #[error(
        "was exported for batches of exactly {fixed}, so it cannot serve {asked}; export it with a \
         dynamic batch"
    )]
    Batch {
        /// Batch size of the file, in images.
        fixed: usize,
        /// The requested batch, in words.
        asked: String,
    },
    /// The last layer cannot be replaced.
    #[error(
        "its last layer cannot be replaced: {0}; a linear layer (a Gemm, or a MatMul and an Add) \
         with stored weights, directly before the scores, is needed"
    )]
    Head(String),
    /// The layers cannot be quantized to 8 bits.
    #[error("{0}")]
    Quantization(String),
    /// The network cannot be converted to another element type.
    #[error(
        "cannot run in {}: node `{node}` {reason}",
        precision.as_str_name().to_ascii_lowercase()
    )]
    Typing {
        /// The requested element type.
        precision: DataType,
        /// The node's name, operator or first output.
        node: String,
        reason: String,
    },
}

impl ModelError {
    /// The message without the path of the file, for callers that must not learn it.
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

/// A [`ModelError::Tensor`].
pub(crate) fn tensor(name: &str, reason: impl Into<String>) -> ModelError {
    ModelError::Tensor {
        tensor: name.to_owned(),
        reason: reason.into(),
    }
}
