//! Transfer learning: a base model's backbone without its last layer, and its file with a new one.

use std::path::Path;

use bytes::Bytes;
use prost::Message;
use serde_json::{Map, Value};

use super::{
    BUNDLED, LinearLayer, Manifest, Model, ModelError, Overrides, UNKNOWN_LABEL, bundled_version,
    complete_with, decode, file_stem,
    graph::{self, Head},
    in_file,
    onnx::ModelProto,
    read_sidecar,
    sidecar::Sidecar,
};
use crate::answer::Activation;

/// A model whose last layer is to be trained again, on other classes.
pub struct Base {
    /// The network without the last layer. Its "logits" are the input features of that layer,
    /// `graph.classes` of them for each image; it has no labels.
    pub backbone: Model,
    model: ModelProto,
    head: Head,
    overrides: Overrides,
    sidecar: Sidecar,
}

/// The parts of a new model's manifest that differ from its base's.
#[derive(Clone, Debug)]
pub struct Description {
    pub name: String,
    /// Class names, in the order of the layer's rows. [`UNKNOWN_LABEL`] is the class
    /// for images that belong to none of the other classes.
    pub labels: Vec<String>,
    /// Record of the training, stored under the manifest's key `training`.
    pub training: Value,
}

/// The version of the model in an ONNX file and the record of its training, without loading it.
///
/// # Errors
/// A file that can't be read or is no ONNX model.
pub fn training_record(path: &Path) -> Result<(String, Option<Value>), ModelError> {
    in_file(path, |model, version| {
        let mut manifest = Manifest::read(&model)?;
        Ok((version, manifest.other.remove("training")))
    })
}

impl Base {
    /// Loads a base from an ONNX file. Labels in the `overrides` are ignored.
    ///
    /// # Errors
    /// As for [`Model::from_file`], and a network that does not end with a linear layer.
    pub fn from_file(path: &Path, overrides: &Overrides) -> Result<Self, ModelError> {
        let stem = file_stem(path);
        in_file(path, |model, version| {
            Self::load(model, version, overrides, &stem, Some(path))
        })
    }

    /// Loads the model that is built into the program as a base.
    ///
    /// # Errors
    /// As for [`Base::from_file`].
    pub fn bundled(overrides: &Overrides) -> Result<Self, ModelError> {
        let model = decode(&Bytes::from_static(BUNDLED))?;
        Self::load(model, bundled_version(), overrides, "model", None)
    }

    fn load(
        mut model: ModelProto,
        version: String,
        overrides: &Overrides,
        fallback_name: &str,
        path: Option<&Path>,
    ) -> Result<Self, ModelError> {
        // The labels beside the base name the classes of its last layer.
        let sidecar = Sidecar {
            labels: None,
            ..read_sidecar(path, &model)?
        };
        graph::modernize(&mut model)?;
        let output = overrides.output.clone().or(Manifest::read(&model)?.output);
        let head = Head::find(&model, output.as_deref())?;
        let to_features = Overrides {
            output: Some(head.from.clone()),
            ..overrides.clone()
        };
        let mut backbone = Model::from_proto(
            head.backbone(&model),
            version,
            &to_features,
            fallback_name,
            &sidecar,
            // Features have no labels; the file's labels name the classes of its last layer.
            |_, _| Ok(Vec::new()),
        )?;
        backbone.graph.features = true;
        Ok(Self {
            backbone,
            model,
            head,
            overrides: overrides.clone(),
            sidecar,
        })
    }

    /// The number of features that the last layer takes for each image.
    pub fn features(&self) -> usize {
        self.head.features
    }

    /// The rows of the last layer, `[classes, features]`: what its own classes look like to the
    /// base. `None` if they are not stored as floats.
    pub fn rows(&self) -> Option<Vec<f32>> {
        self.head.rows(&self.model)
    }

    /// The base's ONNX file with another last layer, and with a manifest that contains every
    /// setting that is needed to serve it.
    ///
    /// # Errors
    /// Weights that are not whole rows of features or that the file's element type cannot
    /// represent; a number of labels that differs from the number of rows.
    pub fn with_layer(
        &self,
        layer: &LinearLayer,
        description: Description,
    ) -> Result<Vec<u8>, ModelError> {
        let mut model = self.head.replace(&self.model, layer)?;
        // The layer is trained with softmax, whatever the base's scores were.
        let activation = (self.backbone.manifest.activation.is_some() || self.head.is_sigmoid)
            .then_some(Activation::Softmax);

        let Description {
            name,
            labels,
            training,
        } = description;
        // The new model records its base, because its licence may depend on it.
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
            activation,
            unknown_class: labels.iter().position(|label| label == UNKNOWN_LABEL),
            other,
            ..self.backbone.manifest.clone()
        }
        .write(&mut model);

        let overrides = Overrides {
            name: Some(name),
            labels: Some(labels),
            activation,
            ..self.overrides.clone()
        };
        complete_with(&mut model, &overrides, "model", None, &self.sidecar)?;
        Ok(model.encode_to_vec())
    }
}
