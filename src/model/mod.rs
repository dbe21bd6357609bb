//! Models: ONNX files with their manifest and labels, ready to be given to an engine.
//!
//! [`Model`] is the entry point. `graph` rewrites any ONNX classifier into a [`ServingGraph`],
//! `checkpoint` imports PyTorch and safetensors weights, `manifest` and `labels` describe a model,
//! and `base` replaces the last layer for transfer learning.

mod base;
pub mod checkpoint;
mod error;
mod external;
mod graph;
mod labels;
mod manifest;
mod sniff;
mod tensor;
mod wire;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};

pub(crate) use self::external::{beside, combined, find, locations};
#[cfg(test)]
pub(crate) use self::graph::{first_beyond, rewritten_bytes};
use self::onnx::ModelProto;
pub use self::{
    base::{Base, Description},
    error::ModelError,
    external::decode_file,
    graph::{
        ActivationRange, Batch, BodyPrecision, IMAGES, LOGITS, Layer, Limit, LinearLayer,
        Normalization, Operation, Quantization, ServingGraph,
    },
    labels::{imagenet, read_labels},
    manifest::{InputSize, Manifest},
};
use crate::{answer::Activation, cache::hex, files, image::Geometry};

/// The messages of `proto/onnx/onnx.proto`.
#[allow(missing_docs, clippy::all)]
pub mod onnx {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

/// Number of hexadecimal digits in a model's version.
pub(crate) const VERSION_DIGITS: usize = 12;

/// The model that is served when the user names none. A `static` rather than a `const`, so that the
/// program contains it only once.
static BUNDLED: &[u8] = include_bytes!("../../models/resnet18-demo.onnx");

/// Settings that the user gives for a model. Each field takes precedence over the file's manifest,
/// which takes precedence over the defaults.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub name: Option<String>,
    /// Class names, in the order of the logits.
    pub labels: Option<Vec<String>>,
    /// Mean of red, green and blue, on the scale where black is 0 and white is 1.
    pub mean: Option<[f32; 3]>,
    /// Standard deviation of red, green and blue, on the same scale.
    pub std: Option<[f32; 3]>,
    /// Length of the shorter side after scaling and before the crop, in pixels.
    pub resize_shorter_side: Option<u32>,
    /// The output with the scores, of a network that has several.
    pub output: Option<String>,
    /// How the scores become probabilities.
    pub activation: Option<Activation>,
}

/// A model that an engine can load.
#[derive(Clone, Debug)]
pub struct Model {
    /// The name that clients select it by.
    pub name: String,
    /// The first 12 hexadecimal digits of the SHA-256 of the file's content; where weights lie
    /// beside the file, their content is a part of it.
    pub version: String,
    /// Class names, one for each logit.
    pub labels: Arc<[String]>,
    /// How images are scaled and cropped before inference.
    pub geometry: Geometry,
    /// The normalization that callers are expected to have applied to tensors that they send;
    /// `None` for a network that takes integers and whose manifest gives no mean and deviation.
    pub normalization: Option<Normalization>,
    /// How logits become probabilities.
    pub activation: Activation,
    /// The network, from `uint8` pixels to logits.
    pub graph: ServingGraph,
    /// The manifest as it is stored in the file.
    pub manifest: Manifest,
}

impl Model {
    /// Loads a model from the content of an ONNX file. Without a name in `overrides` or the
    /// manifest, the model is called `model`.
    ///
    /// # Errors
    /// Content that is not an ONNX classifier of RGB images; settings or labels that do not fit it.
    pub fn from_bytes(onnx: Bytes, overrides: &Overrides) -> Result<Self, ModelError> {
        let model = decode(&onnx)?;
        Self::load(model, version(&onnx), overrides, "model", None)
    }

    /// Loads a model from an ONNX file.
    ///
    /// Without a name in `overrides` or the manifest, the model is named after the file. Without
    /// labels there, the labels are read from `NAME.labels.txt` beside `NAME.onnx`, if that exists.
    /// Weights may lie in files of their own in the model's folder.
    ///
    /// # Errors
    /// As for [`Model::from_bytes`], and a file that cannot be read.
    pub fn from_file(path: &Path, overrides: &Overrides) -> Result<Self, ModelError> {
        let stem = file_stem(path);
        in_file(path, |model, version| {
            let labels = labels_beside(path);
            Self::load(model, version, overrides, &stem, Some(&labels))
        })
    }

    /// Loads the model that is built into the program.
    ///
    /// # Errors
    /// As for [`Model::from_bytes`].
    pub fn bundled(overrides: &Overrides) -> Result<Self, ModelError> {
        Self::from_bytes(Bytes::from_static(BUNDLED), overrides)
    }

    fn load(
        model: ModelProto,
        version: String,
        overrides: &Overrides,
        fallback_name: &str,
        labels_beside: Option<&Path>,
    ) -> Result<Self, ModelError> {
        let labels = |graph: &ServingGraph, manifest: &Manifest| {
            choose_labels(graph, overrides, manifest, labels_beside)
        };
        Self::from_proto(model, version, overrides, fallback_name, labels)
    }

    fn from_proto(
        model: ModelProto,
        version: String,
        overrides: &Overrides,
        fallback_name: &str,
        labels: impl FnOnce(&ServingGraph, &Manifest) -> Result<Vec<String>, ModelError>,
    ) -> Result<Self, ModelError> {
        let manifest = Manifest::read(&model)?;
        let normalization = normalization(overrides, &manifest);
        let output = overrides.output.as_ref().or(manifest.output.as_ref());
        let graph = ServingGraph::new(
            model,
            &normalization,
            manifest.input.as_ref(),
            output.map(String::as_str),
        )?;
        if !graph.normalizes && (overrides.mean.is_some() || overrides.std.is_some()) {
            return Err(ModelError::Normalization(
                "the network takes integers and so gets the pixels from 0 to 255 as they are; \
                 leave mean and standard deviation out"
                    .into(),
            ));
        }

        let name = overrides
            .name
            .as_ref()
            .or(manifest.name.as_ref())
            .filter(|name| !name.is_empty())
            .map_or_else(|| fallback_name.to_owned(), Clone::clone);
        let labels = labels(&graph, &manifest)?;
        let normalization_is_known =
            graph.normalizes || (manifest.mean.is_some() && manifest.std.is_some());
        let resize_shorter_side = overrides
            .resize_shorter_side
            .or(manifest.resize_shorter_side);

        Ok(Self {
            name,
            version,
            labels: labels.into(),
            geometry: geometry(&graph, resize_shorter_side)?,
            normalization: normalization_is_known.then_some(normalization),
            activation: if graph.is_binary {
                graph.activation
            } else {
                overrides
                    .activation
                    .or(manifest.activation)
                    .unwrap_or(graph.activation)
            },
            graph,
            manifest,
        })
    }
}

/// Calls `work` with the model in the file and its version; any error names the file.
fn in_file<T>(
    path: &Path,
    work: impl FnOnce(ModelProto, String) -> Result<T, ModelError>,
) -> Result<T, ModelError> {
    let content = files::read_limited(path, files::LARGEST_MODEL)
        .map_err(|error| ModelError::Read(error.reason.into()));
    content
        .and_then(|onnx| {
            let (model, sha256) = decode_file(&onnx.into(), path)?;
            work(model, sha256[..VERSION_DIGITS].to_owned())
        })
        .map_err(|error| ModelError::File {
            path: path.to_owned(),
            source: Box::new(error),
        })
}

/// The default name of a model in this file: the file's name without its extension.
fn file_stem(path: &Path) -> String {
    path.file_stem()
        .map_or("model".into(), |stem| stem.to_string_lossy().into_owned())
}

/// A version that identifies the exact content: 12 hexadecimal digits of its SHA-256.
fn version(onnx: &[u8]) -> String {
    hex(&Sha256::digest(onnx))[..VERSION_DIGITS].to_owned()
}

/// Writes every setting that a model is served with into its manifest, so that the file can be
/// served without any other file.
///
/// `overrides` take precedence over the manifest; where neither has a value, the defaults of
/// [`Model::from_file`] are written. A model without a name is called `fallback_name`. `origin` is
/// the file that the model was read from: a file of labels may lie beside it.
///
/// # Errors
/// As for [`Model::from_bytes`].
pub fn complete(
    model: &mut ModelProto,
    overrides: &Overrides,
    fallback_name: &str,
    origin: Option<&Path>,
) -> Result<(), ModelError> {
    let beside = origin.map(labels_beside);
    let labels = |graph: &ServingGraph, manifest: &Manifest| {
        choose_labels(graph, overrides, manifest, beside.as_deref())
    };
    let served = Model::from_proto(
        model.clone(),
        String::new(),
        overrides,
        fallback_name,
        labels,
    )?;

    let manifest = served.manifest;
    // A network that normalizes by itself uses neither mean nor deviation.
    let normalization = served
        .graph
        .normalizes
        .then(|| normalization(overrides, &manifest));
    let other_input_keys = manifest
        .input
        .map_or_else(Default::default, |input| input.other);

    Manifest {
        name: Some(served.name),
        labels: Some(served.labels.to_vec()),
        input: Some(InputSize {
            height: served.geometry.height,
            width: served.geometry.width,
            other: other_input_keys,
        }),
        resize_shorter_side: Some(served.geometry.resize_shorter_side),
        mean: normalization
            .map(|normalization| normalization.mean)
            .or(manifest.mean),
        std: normalization
            .map(|normalization| normalization.std)
            .or(manifest.std),
        output: overrides.output.clone().or(manifest.output),
        // The file says so itself, unless somebody has said otherwise.
        activation: overrides.activation.or(manifest.activation),
        other: manifest.other,
    }
    .write(model);
    Ok(())
}

/// Decodes an ONNX file. Weights are shared with `onnx`, not copied. Those that lie in other files
/// are only read by [`decode_file`].
///
/// # Errors
/// Content that is not an ONNX model, or has more parts than are read.
pub fn decode(onnx: &Bytes) -> Result<ModelProto, ModelError> {
    wire::check(onnx)?;
    match ModelProto::decode(onnx.clone()) {
        Ok(model)
            if model
                .graph
                .as_ref()
                .is_some_and(|graph| !graph.node.is_empty()) =>
        {
            Ok(model)
        }
        _ => Err(ModelError::NotOnnx(sniff::looks_like(onnx).to_owned())),
    }
}

fn normalization(overrides: &Overrides, manifest: &Manifest) -> Normalization {
    Normalization {
        mean: overrides
            .mean
            .or(manifest.mean)
            .unwrap_or(Normalization::IMAGENET.mean),
        std: overrides
            .std
            .or(manifest.std)
            .unwrap_or(Normalization::IMAGENET.std),
    }
}

/// The path of the file of labels that belongs to the model file `path`.
pub(crate) fn labels_beside(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}.labels.txt"))
}

fn choose_labels(
    graph: &ServingGraph,
    overrides: &Overrides,
    manifest: &Manifest,
    beside: Option<&Path>,
) -> Result<Vec<String>, ModelError> {
    let classes = graph.classes;
    let (labels, origin) = if let Some(labels) = &overrides.labels {
        (labels.clone(), "was given".to_owned())
    } else if let Some(labels) = &manifest.labels {
        (labels.clone(), "its manifest holds".to_owned())
    } else if let Some(path) = beside.filter(|path| path.exists()) {
        (read_labels(path)?, format!("{} holds", path.display()))
    } else if let Some(labels) = &graph.labels {
        (labels.clone(), "its last node names".to_owned())
    } else if classes == 1000 {
        (imagenet(), String::new())
    } else {
        return Err(ModelError::NoLabels { classes });
    };
    if labels.len() != classes {
        return Err(ModelError::LabelCount {
            classes,
            labels: labels.len(),
            origin,
        });
    }
    Ok(labels)
}

/// The preprocessing geometry. Without `resize_shorter_side`, images are scaled in the ratio that
/// is usual for ImageNet: a shorter side of 256 for a crop of 224.
fn geometry(
    graph: &ServingGraph,
    resize_shorter_side: Option<u32>,
) -> Result<Geometry, ModelError> {
    let (width, height) = (graph.width, graph.height);
    let resize_shorter_side = resize_shorter_side.unwrap_or_else(|| {
        let usual = (f64::from(width.min(height)) * 256.0 / 224.0).round() as u32;
        usual.max(width).max(height)
    });
    if resize_shorter_side < width.max(height) {
        return Err(ModelError::Resize {
            resize_shorter_side,
            width,
            height,
        });
    }
    Ok(Geometry {
        width,
        height,
        resize_shorter_side,
    })
}
