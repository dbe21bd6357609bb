//! A model that another one is made from: its network without the last layer, and its file with a
//! new one.

use std::path::Path;

use bytes::Bytes;
use prost::Message;
use serde_json::{Map, Value};

use super::{
    BUNDLED, LinearLayer, Manifest, Model, ModelError, Overrides, complete, decode, file_stem,
    graph::Head, in_file, onnx::ModelProto, version,
};

/// A model whose last layer is to be learned anew, on other classes.
pub struct Base {
    /// The network without the last layer. Its "logits" are the features that the layer takes,
    /// `graph.classes` of them for an image; it has no labels.
    pub backbone: Model,
    model: ModelProto,
    head: Head,
    overrides: Overrides,
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
        let mut backbone = Model::from_proto(
            head.backbone(&model),
            version(onnx),
            overrides,
            fallback_name,
            // They are the base's classes, not the features'.
            |_, _| Ok(Vec::new()),
        )?;
        backbone.graph.features = true;
        Ok(Self {
            backbone,
            model,
            head,
            overrides: overrides.clone(),
        })
    }

    /// Features that the last layer takes for an image.
    pub fn features(&self) -> usize {
        self.head.features
    }

    /// The base's ONNX file with another last layer and a manifest that says everything that
    /// serving it takes.
    ///
    /// # Errors
    /// Weights that are no whole rows of features, or that the file's element type can't hold;
    /// labels that don't fit them.
    pub fn with_layer(
        &self,
        layer: &LinearLayer,
        description: Description,
    ) -> Result<Vec<u8>, ModelError> {
        let mut model = self.head.replace(&self.model, layer)?;
        let Description {
            name,
            labels,
            training,
        } = description;
        // Where the network comes from has to stay known: its licence may depend on it.
        let mut origin = self.backbone.manifest.other.clone();
        origin.insert("name".into(), self.backbone.name.as_str().into());
        origin.insert("version".into(), self.backbone.version.as_str().into());
        let other = Map::from_iter([
            ("training".to_owned(), training),
            ("base".to_owned(), origin.into()),
        ]);
        Manifest {
            name: None,
            labels: None,
            other,
            ..self.backbone.manifest.clone()
        }
        .write(&mut model);
        let overrides = Overrides {
            name: Some(name),
            labels: Some(labels),
            ..self.overrides.clone()
        };
        complete(&mut model, &overrides, "model", None)?;
        Ok(model.encode_to_vec())
    }
}
