//! The ONNX graph and its rewriting, the manifest, the models that are served.

mod base;
pub mod checkpoint;
mod error;
mod graph;
mod labels;
mod manifest;
mod sniff;
mod tensor;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};

use self::onnx::ModelProto;
pub use self::{
    base::{Base, Description},
    error::ModelError,
    graph::{
        Batch, BodyPrecision, IMAGES, LOGITS, Layer, LinearLayer, Normalization, Quantization,
        Range, ServingGraph,
    },
    labels::{imagenet, read_labels},
    manifest::{InputSize, Manifest},
};
use crate::image::Geometry;

/// The messages of `proto/onnx/onnx.proto`.
#[allow(missing_docs, clippy::all)]
pub mod onnx {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

/// The model that is served when the user names none. A `static`, which is in the program once,
/// however often it is used.
static BUNDLED: &[u8] = include_bytes!("../../models/resnet18-demo.onnx");

/// What the user says about a model. Each field wins over the file's manifest, which wins over the
/// defaults.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// What the model is called.
    pub name: Option<String>,
    /// The classes' names, in the order of the logits.
    pub labels: Option<Vec<String>>,
    /// What is subtracted from red, green and blue, where black is 0 and white 1.
    pub mean: Option<[f32; 3]>,
    /// What the differences are divided by.
    pub std: Option<[f32; 3]>,
    /// The shorter side after scaling, before the crop, in pixels.
    pub resize_shorter_side: Option<u32>,
}

/// A model that is ready to be given to an engine.
#[derive(Clone, Debug)]
pub struct Model {
    /// What clients call it.
    pub name: String,
    /// The first 12 hexadecimal digits of the SHA-256 of the file's content.
    pub version: String,
    /// The classes' names, one for each logit.
    pub labels: Arc<[String]>,
    /// How images are scaled and cropped for it.
    pub geometry: Geometry,
    /// How callers may have normalised what they send; `None` for a network that takes integers and
    /// doesn't say.
    pub normalization: Option<Normalization>,
    /// The network, from pixels to logits.
    pub graph: ServingGraph,
    /// What the file says about itself.
    pub manifest: Manifest,
}

impl Model {
    /// A model from the content of an ONNX file. Without a name in `overrides` or the manifest it
    /// is called `model`.
    ///
    /// # Errors
    /// Content that is not an ONNX classifier of RGB images; settings or labels that do not fit it.
    pub fn from_bytes(onnx: Bytes, overrides: &Overrides) -> Result<Self, ModelError> {
        Self::load(onnx, overrides, "model", None)
    }

    /// A model from an ONNX file. Without a name in `overrides` or the manifest it is called as the
    /// file is, and without labels there it takes those of `NAME.labels.txt` beside `NAME.onnx`, if
    /// that exists.
    ///
    /// # Errors
    /// As for [`Model::from_bytes`], and a file that cannot be read.
    pub fn from_file(path: &Path, overrides: &Overrides) -> Result<Self, ModelError> {
        let stem = file_stem(path);
        in_file(path, |onnx| {
            Self::load(onnx, overrides, &stem, Some(&labels_beside(path)))
        })
    }

    /// The model that comes with the program.
    ///
    /// # Errors
    /// As for [`Model::from_bytes`].
    pub fn bundled(overrides: &Overrides) -> Result<Self, ModelError> {
        Self::from_bytes(Bytes::from_static(BUNDLED), overrides)
    }

    fn load(
        onnx: Bytes,
        overrides: &Overrides,
        fallback_name: &str,
        labels_beside: Option<&Path>,
    ) -> Result<Self, ModelError> {
        let labels = |classes, manifest: &Manifest| {
            choose_labels(classes, overrides, manifest, labels_beside)
        };
        Self::from_proto(
            decode(&onnx)?,
            version(&onnx),
            overrides,
            fallback_name,
            labels,
        )
    }

    fn from_proto(
        model: ModelProto,
        version: String,
        overrides: &Overrides,
        fallback_name: &str,
        labels: impl FnOnce(usize, &Manifest) -> Result<Vec<String>, ModelError>,
    ) -> Result<Self, ModelError> {
        let manifest = Manifest::read(&model)?;
        let normalization = normalization(overrides, &manifest);
        let graph = ServingGraph::new(model, &normalization, manifest.input.as_ref())?;
        if !graph.normalizes && (overrides.mean.is_some() || overrides.std.is_some()) {
            return Err(ModelError::Normalization(
                "the network takes integers and so gets the pixels from 0 to 255 as they are; leave mean and standard \
                 deviation out"
                    .into(),
            ));
        }
        Ok(Self {
            name: overrides
                .name
                .as_ref()
                .or(manifest.name.as_ref())
                .filter(|name| !name.is_empty())
                .map_or_else(|| fallback_name.to_owned(), Clone::clone),
            version,
            labels: labels(graph.classes, &manifest)?.into(),
            normalization: (graph.normalizes
                || (manifest.mean.is_some() && manifest.std.is_some()))
            .then_some(normalization),
            geometry: geometry(
                &graph,
                overrides
                    .resize_shorter_side
                    .or(manifest.resize_shorter_side),
            )?,
            graph,
            manifest,
        })
    }
}

/// Does something with the content of the file; an error says which file it was.
fn in_file<T>(
    path: &Path,
    work: impl FnOnce(Bytes) -> Result<T, ModelError>,
) -> Result<T, ModelError> {
    let content = fs::read(path).map_err(ModelError::Read);
    let named = |error| ModelError::File {
        path: path.to_owned(),
        source: Box::new(error),
    };
    content.and_then(|onnx| work(onnx.into())).map_err(named)
}

/// What a model in this file is called when nothing else gives it a name.
fn file_stem(path: &Path) -> String {
    path.file_stem()
        .map_or("model".into(), |stem| stem.to_string_lossy().into_owned())
}

/// Names the exact content.
fn version(onnx: &[u8]) -> String {
    Sha256::digest(onnx)
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Writes everything that a model is served with into its manifest, so that the file needs nothing
/// beside it.
///
/// `overrides` win over what the manifest says, and where neither says anything the defaults of
/// [`Model::from_file`] are written. Without a name it is called `fallback_name`. `origin` is the
/// file that the model is from: its labels may lie beside it.
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
    let labels = |classes, manifest: &Manifest| {
        choose_labels(classes, overrides, manifest, beside.as_deref())
    };
    let served = Model::from_proto(
        model.clone(),
        String::new(),
        overrides,
        fallback_name,
        labels,
    )?;
    let manifest = served.manifest;
    // A network that normalises by itself uses neither.
    let normalization = served
        .graph
        .normalizes
        .then(|| normalization(overrides, &manifest));
    let size = manifest
        .input
        .map_or_else(Default::default, |input| input.other);
    Manifest {
        name: Some(served.name),
        labels: Some(served.labels.to_vec()),
        input: Some(InputSize {
            height: served.geometry.height,
            width: served.geometry.width,
            other: size,
        }),
        resize_shorter_side: Some(served.geometry.resize_shorter_side),
        mean: normalization
            .map(|normalization| normalization.mean)
            .or(manifest.mean),
        std: normalization
            .map(|normalization| normalization.std)
            .or(manifest.std),
        other: manifest.other,
    }
    .write(model);
    Ok(())
}

/// Reads an ONNX file. Weights stay where they are in `onnx` and are shared, not copied.
///
/// # Errors
/// Content that is not an ONNX model.
pub fn decode(onnx: &Bytes) -> Result<ModelProto, ModelError> {
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

/// The file of labels that may lie beside a model's.
fn labels_beside(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}.labels.txt"))
}

fn choose_labels(
    classes: usize,
    overrides: &Overrides,
    manifest: &Manifest,
    beside: Option<&Path>,
) -> Result<Vec<String>, ModelError> {
    let (labels, origin) = if let Some(labels) = &overrides.labels {
        (labels.clone(), "was given".to_owned())
    } else if let Some(labels) = &manifest.labels {
        (labels.clone(), "its manifest holds".to_owned())
    } else if let Some(path) = beside.filter(|path| path.exists()) {
        (read_labels(path)?, format!("{} holds", path.display()))
    } else if classes == 1000 {
        (imagenet(), String::new())
    } else {
        return Err(ModelError::NoLabels { classes });
    };
    match labels.len() == classes {
        true => Ok(labels),
        false => Err(ModelError::LabelCount {
            classes,
            labels: labels.len(),
            origin,
        }),
    }
}

/// Images are scaled as for ImageNet, 256 for a crop of 224, unless `resize_shorter_side` says
/// otherwise.
fn geometry(
    graph: &ServingGraph,
    resize_shorter_side: Option<u32>,
) -> Result<Geometry, ModelError> {
    let (width, height) = (graph.width, graph.height);
    let usual =
        || ((f64::from(width.min(height)) * 256.0 / 224.0).round() as u32).max(width.max(height));
    let resize_shorter_side = resize_shorter_side.unwrap_or_else(usual);
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
