//! Models: ONNX files with their manifest and labels, ready to be given to an engine.
//!
//! [`Model`] is the entry point. `graph` rewrites any ONNX classifier into a [`ServingGraph`],
//! `checkpoint` imports PyTorch and safetensors weights, `manifest`, `preprocessing`, `labels` and
//! `sidecar` describe a model, and `base` replaces the last layer for transfer learning.

mod base;
pub mod checkpoint;
mod error;
mod exports;
mod external;
mod graph;
mod image_processors;
mod labels;
mod manifest;
mod preprocessing;
mod sidecar;
mod sniff;
mod tensor;
mod wire;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};

pub(crate) use self::external::{combined, find, locations, weight_file};
#[cfg(test)]
pub(crate) use self::graph::{first_beyond, rewritten_bytes};
pub(crate) use self::sidecar::files_beside;
pub use self::{
    base::{Base, Description, training_record},
    error::ModelError,
    external::decode_file,
    graph::{
        ActivationRange, Batch, BodyPrecision, EMBEDDING, IMAGES, LOGITS, Layer, Limit,
        LinearLayer, Normalization, Operation, Quantization, Serving, ServingGraph,
    },
    labels::{UNKNOWN_LABEL, imagenet, read_labels},
    manifest::{InputSize, Manifest},
    preprocessing::{ChannelOrder, Interpolation, Preset, Scale},
};
use self::{
    onnx::ModelProto,
    preprocessing::{Preprocessing, Resize},
    sidecar::Sidecar,
};
use crate::{
    answer::Activation,
    cache::hex,
    files,
    image::{Filter, Fit, Geometry},
};

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

/// The file of the bundled model, which is part of the program's file.
pub(crate) fn bundled_file() -> &'static [u8] {
    BUNDLED
}

/// The version of the bundled model, which is the same whenever it is read.
fn bundled_version() -> String {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| version(BUNDLED)).clone()
}

/// Settings that the user gives for a model. Each field takes precedence over the file's manifest,
/// which takes precedence over the defaults.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub name: Option<String>,
    /// Class names, in the order of the logits.
    pub labels: Option<Vec<String>>,
    /// Mean of red, green and blue, on the scale where black is 0 and white is that of `scale`.
    pub mean: Option<[f32; 3]>,
    /// Standard deviation of red, green and blue, on the same scale.
    pub std: Option<[f32; 3]>,
    /// Length of the shorter side after scaling and before the crop, in pixels.
    pub resize_shorter_side: Option<u32>,
    /// Width and height of the images, for a network that leaves them open.
    pub input_size: Option<[u32; 2]>,
    /// The colours of the network's input.
    pub channels: Option<ChannelOrder>,
    /// The value of white in the network's input.
    pub scale: Option<Scale>,
    /// How images of other proportions are fitted.
    pub fit: Option<Fit>,
    /// The filter that scales.
    pub interpolation: Option<Interpolation>,
    /// Whether the filter covers all pixels of an image that is scaled down.
    pub antialias: Option<bool>,
    /// The quality of JPEG, 1 to 100, by which crops are compressed and decompressed.
    pub recompress: Option<u8>,
    /// What applies where the settings above are not given.
    pub preset: Option<Preset>,
    /// The output with the scores, of a network that has several.
    pub output: Option<String>,
    /// How the scores become probabilities.
    pub activation: Option<Activation>,
}

impl Overrides {
    fn preprocessing(&self) -> Preprocessing {
        let own = Preprocessing {
            input_size: self.input_size,
            channels: self.channels,
            scale: self.scale,
            mean: self.mean,
            std: self.std,
            fit: self.fit,
            interpolation: self.interpolation,
            antialias: self.antialias,
            resize: self.resize_shorter_side.map(Resize::Pixels),
            recompress: self.recompress,
        };
        match self.preset {
            Some(preset) => own.or(&preset.settings()),
            None => own,
        }
    }
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
    /// The class for images that belong to none of the other classes.
    pub unknown_class: Option<usize>,
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
    /// The output with the scores, if it was chosen by its name.
    output: Option<String>,
    /// What was taken from the files beside the model and from other projects' metadata, in words.
    pub sources: Vec<String>,
    /// The settings of preprocessing, from wherever they come.
    settings: Preprocessing,
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
    /// Files of Hugging Face and timm beside the model complete the settings, if the folder belongs
    /// to this model alone.
    ///
    /// # Errors
    /// As for [`Model::from_bytes`], and a file that cannot be read.
    pub fn from_file(path: &Path, overrides: &Overrides) -> Result<Self, ModelError> {
        let stem = file_stem(path);
        in_file(path, |model, version| {
            Self::load(model, version, overrides, &stem, Some(path))
        })
    }

    /// Loads the model that is built into the program.
    ///
    /// # Errors
    /// As for [`Model::from_bytes`].
    pub fn bundled(overrides: &Overrides) -> Result<Self, ModelError> {
        let model = decode(&Bytes::from_static(BUNDLED))?;
        Self::load(model, bundled_version(), overrides, "model", None)
    }

    fn load(
        model: ModelProto,
        version: String,
        overrides: &Overrides,
        fallback_name: &str,
        path: Option<&Path>,
    ) -> Result<Self, ModelError> {
        let sidecar = read_sidecar(path, &model)?;
        let labels = |graph: &ServingGraph, manifest: &Manifest| {
            choose_labels(graph, overrides, manifest, path, &sidecar)
        };
        Self::from_proto(model, version, overrides, fallback_name, &sidecar, labels)
    }

    fn from_proto(
        model: ModelProto,
        version: String,
        overrides: &Overrides,
        fallback_name: &str,
        sidecar: &Sidecar,
        labels: impl FnOnce(&ServingGraph, &Manifest) -> Result<Vec<String>, ModelError>,
    ) -> Result<Self, ModelError> {
        let manifest = Manifest::read(&model)?;
        let settings = overrides
            .preprocessing()
            .or(&manifest.preprocessing())
            .or(&sidecar.settings);
        let output = overrides.output.as_ref().or(manifest.output.as_ref());
        let graph = ServingGraph::new(model, &settings, output.map(String::as_str))?;
        let is_normalized =
            overrides.mean.is_some() || overrides.std.is_some() || overrides.scale.is_some();
        if !graph.normalizes && is_normalized {
            return Err(ModelError::Normalization(
                "the network takes integers and so gets the pixels from 0 to 255 as they are; \
                 leave mean, standard deviation and scale out"
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
        // Features have no labels, and are no classes.
        let unknown_class = if labels.is_empty() {
            None
        } else {
            manifest.unknown_class(labels.len())?
        };
        let normalization_is_known =
            graph.normalizes || (settings.mean.is_some() && settings.std.is_some());

        Ok(Self {
            name,
            version,
            labels: labels.into(),
            unknown_class,
            geometry: settings.geometry(graph.width, graph.height)?,
            normalization: normalization_is_known.then_some(graph.normalization),
            activation: if graph.is_binary {
                graph.activation
            } else {
                overrides
                    .activation
                    .or(manifest.activation)
                    .unwrap_or(graph.activation)
            },
            output: output.cloned(),
            graph,
            manifest,
            sources: sidecar.sources.clone(),
            settings,
        })
    }

    /// The manifest with every setting of preprocessing that the model is served with. What is
    /// usual, or found in the network, is left out, unless something beside the model might say
    /// otherwise.
    fn complete_manifest(&self) -> Manifest {
        let Geometry {
            width,
            height,
            resize_shorter_side,
            fit,
            filter,
            recompress,
        } = self.geometry;
        let input_keys = self.manifest.input.as_ref();
        let all = !self.sources.is_empty();
        let settings = &self.settings;
        // A network that normalizes by itself uses neither mean nor deviation.
        let values = match settings.normalization(self.graph.channels) {
            Ok(values) if self.graph.normalizes => Some(values),
            _ => None,
        };
        let scale = values.map(|values| values.scale).or(settings.scale);
        Manifest {
            name: Some(self.name.clone()),
            labels: Some(self.labels.to_vec()),
            input: Some(InputSize {
                height,
                width,
                other: input_keys.map_or_else(Default::default, |input| input.other.clone()),
            }),
            resize_shorter_side: match fit {
                Fit::Crop | Fit::CropRounded | Fit::Squash => Some(resize_shorter_side),
                Fit::Letterbox(_) | Fit::Line(_) => None,
            },
            mean: values.map(|values| values.mean).or(settings.mean),
            std: values.map(|values| values.std).or(settings.std),
            scale: scale.filter(|scale| *scale != Scale::Unit),
            channels: (all || self.graph.channels == ChannelOrder::Bgr)
                .then_some(self.graph.channels),
            fit: (all || fit != Fit::Crop).then_some(fit),
            interpolation: (all || filter != Filter::Bilinear)
                .then_some(settings.interpolation.unwrap_or_default()),
            antialias: (all || filter.is_without_antialiasing())
                .then_some(!filter.is_without_antialiasing()),
            recompress,
            output: self.output.clone(),
            // The file says so itself, unless somebody has said otherwise.
            activation: (self.activation != self.graph.activation
                || self.manifest.activation.is_some())
            .then_some(self.activation),
            unknown_class: self.unknown_class,
            other: self.manifest.other.clone(),
        }
    }

    /// The same for the file that holds the serving graph, which takes RGB pixels and normalizes.
    pub(crate) fn serving_manifest(&self) -> Manifest {
        Manifest {
            mean: None,
            std: None,
            scale: None,
            channels: (!self.sources.is_empty()).then_some(ChannelOrder::Rgb),
            // Its only output are logits.
            output: None,
            activation: (self.activation != Activation::default()).then_some(self.activation),
            ..self.complete_manifest()
        }
    }
}

/// What lies beside the file at `path`, and in the metadata of the model.
fn read_sidecar(path: Option<&Path>, model: &ModelProto) -> Result<Sidecar, ModelError> {
    path.map_or_else(|| Ok(Sidecar::default()), Sidecar::read)?
        .with_metadata(model)
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
/// the file that the model was read from: files that describe it may lie beside it. Returns what was
/// taken from these, in words.
///
/// # Errors
/// As for [`Model::from_bytes`].
pub fn complete(
    model: &mut ModelProto,
    overrides: &Overrides,
    fallback_name: &str,
    origin: Option<&Path>,
) -> Result<Vec<String>, ModelError> {
    let sidecar = read_sidecar(origin, model)?;
    complete_with(model, overrides, fallback_name, origin, &sidecar)
}

fn complete_with(
    model: &mut ModelProto,
    overrides: &Overrides,
    fallback_name: &str,
    origin: Option<&Path>,
    sidecar: &Sidecar,
) -> Result<Vec<String>, ModelError> {
    let labels = |graph: &ServingGraph, manifest: &Manifest| {
        choose_labels(graph, overrides, manifest, origin, sidecar)
    };
    let served = Model::from_proto(
        model.clone(),
        String::new(),
        overrides,
        fallback_name,
        sidecar,
        labels,
    )?;
    served.complete_manifest().write(model);
    Ok(served.sources)
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

/// The path of the file of labels that belongs to the model file `path`.
pub(crate) fn labels_beside(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}.labels.txt"))
}

fn choose_labels(
    graph: &ServingGraph,
    overrides: &Overrides,
    manifest: &Manifest,
    path: Option<&Path>,
    sidecar: &Sidecar,
) -> Result<Vec<String>, ModelError> {
    let classes = graph.classes;
    let file = path.map(labels_beside).filter(|path| path.exists());
    let (labels, origin) = if let Some(labels) = &overrides.labels {
        (labels.clone(), "was given".to_owned())
    } else if let Some(labels) = &manifest.labels {
        (labels.clone(), "its manifest holds".to_owned())
    } else if let Some(path) = file {
        (read_labels(&path)?, format!("{} holds", path.display()))
    } else if let Some(labels) = &sidecar.labels {
        labels.clone()
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
