//! A model that another one is made from: its network without the last layer, and its file with a new one.

use std::path::Path;

use bytes::Bytes;
use prost::Message;
use serde_json::Value;

use super::{
    BUNDLED, InputSize, LinearLayer, Manifest, Model, ModelError, Normalization, Overrides, decode, file_stem,
    graph::Head, in_file, onnx::ModelProto, version,
};

/// A model whose last layer is to be learned anew, on other classes.
pub struct Base {
    /// The network without the last layer. Its "logits" are the features that the layer takes, `graph.classes` of them
    /// for an image; it has no labels.
    pub backbone: Model,
    model: ModelProto,
    head: Head,
    normalization: Normalization,
}

/// What a new model says about itself beside what it has from its base.
#[derive(Clone, Debug)]
pub struct Description {
    /// What it is called.
    pub name: String,
    /// Its classes, in the order of the layer's rows.
    pub labels: Vec<String>,
    /// How it was trained.
    pub training: Value,
}

impl Base {
    /// The base in an ONNX file; of the `overrides`, labels are not needed.
    ///
    /// # Errors
    /// As for [`Model::from_file`], and a network that does not end with a linear layer.
    pub fn from_file(path: &Path, overrides: &Overrides) -> Result<Self, ModelError> {
        in_file(path, |onnx| Self::load(&onnx, overrides, &file_stem(path)))
    }

    /// The model that comes with the program as a base.
    ///
    /// # Errors
    /// As for [`Base::from_file`].
    pub fn bundled(overrides: &Overrides) -> Result<Self, ModelError> {
        Self::load(&Bytes::from_static(BUNDLED), overrides, "model")
    }

    fn load(onnx: &Bytes, overrides: &Overrides, fallback_name: &str) -> Result<Self, ModelError> {
        let model = decode(onnx)?;
        let head = Head::find(&model)?;
        let mut backbone = Model::assemble(
            head.backbone(&model),
            version(onnx),
            overrides,
            fallback_name,
            // They are the base's classes, not the features'.
            |_, _| Ok(Vec::new()),
        )?;
        backbone.graph.features = true;
        let usual = Normalization::IMAGENET;
        let normalization = Normalization {
            mean: overrides.mean.or(backbone.manifest.mean).unwrap_or(usual.mean),
            std: overrides.std.or(backbone.manifest.std).unwrap_or(usual.std),
        };
        Ok(Self { backbone, model, head, normalization })
    }

    /// Features that the last layer takes for an image.
    pub fn features(&self) -> usize {
        self.head.features
    }

    /// The base's ONNX file with another last layer and a manifest that says everything that serving it takes.
    ///
    /// # Errors
    /// Weights that are no whole rows of features, or that the file's element type can't hold.
    pub fn with_layer(&self, layer: &LinearLayer, description: Description) -> Result<Vec<u8>, ModelError> {
        let mut model = self.head.replace(&self.model, layer)?;
        let base = &self.backbone;
        let mut manifest = Manifest {
            name: Some(description.name),
            labels: Some(description.labels),
            input: Some(InputSize {
                height: base.geometry.height,
                width: base.geometry.width,
                other: base.manifest.input.as_ref().map(|input| input.other.clone()).unwrap_or_default(),
            }),
            resize_shorter_side: Some(base.geometry.resize_shorter_side),
            mean: base.graph.normalizes.then_some(self.normalization.mean),
            std: base.graph.normalizes.then_some(self.normalization.std),
            ..Default::default()
        };
        manifest.other.insert("training".into(), description.training);
        // Where the network comes from has to stay known: its licence may depend on it.
        let mut origin = base.manifest.other.clone();
        origin.insert("name".into(), base.name.as_str().into());
        origin.insert("version".into(), base.version.as_str().into());
        manifest.other.insert("base".into(), origin.into());
        manifest.write(&mut model);
        Ok(model.encode_to_vec())
    }
}
