//! The models that are served, by name.

use std::sync::{Arc, OnceLock};

use crate::{engine::EngineInfo, image::Geometry, metrics::ModelMetrics, model::Model, scheduler::Scheduler};

/// A model under its name; its engine comes when it has been loaded.
pub struct Served {
    /// What callers call it.
    pub name: String,
    /// Names the model's exact content.
    pub version: String,
    /// In the order of the logits.
    pub labels: Arc<[String]>,
    /// What the network wants to see.
    pub geometry: Geometry,
    /// The model's metrics.
    pub metrics: Arc<ModelMetrics>,
    running: OnceLock<Running>,
}

/// A model that has been loaded.
pub struct Running {
    /// What runs it.
    pub engine: EngineInfo,
    /// Where its jobs go.
    pub scheduler: Scheduler,
}

/// There is no such model.
#[derive(Debug, thiserror::Error)]
#[error("there is no model \"{name}\"; this server has: {}", known.join(", "))]
pub struct UnknownModel {
    name: String,
    known: Vec<String>,
}

impl Served {
    /// A model that is about to be loaded.
    pub fn new(model: &Model) -> Self {
        Self {
            name: model.name.clone(),
            version: model.version.clone(),
            labels: Arc::clone(&model.labels),
            geometry: model.geometry,
            metrics: Arc::new(ModelMetrics::new(&model.name)),
            running: OnceLock::new(),
        }
    }

    /// The model has been loaded.
    pub fn start(&self, running: Running) {
        assert!(self.running.set(running).is_ok(), "a model is started once");
    }

    /// What runs it, once it has been loaded.
    pub fn running(&self) -> Option<&Running> {
        self.running.get()
    }
}

/// The models, the default one first.
pub struct Registry {
    models: Vec<Arc<Served>>,
}

impl Registry {
    /// A registry of one model.
    pub fn new(model: Served) -> Self {
        Self { models: vec![Arc::new(model)] }
    }

    /// The model of that name; an empty name means the default.
    ///
    /// # Errors
    /// [`UnknownModel`], which lists the models there are.
    pub fn find(&self, name: &str) -> Result<&Arc<Served>, UnknownModel> {
        let mut models = self.models.iter();
        let found = if name.is_empty() { models.next() } else { models.find(|model| model.name == name) };
        found.ok_or_else(|| UnknownModel {
            // A name can be as long as a message; the answer must not be.
            name: name.chars().take(100).collect(),
            known: self.models.iter().map(|model| model.name.clone()).collect(),
        })
    }

    /// All models.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.models.iter()
    }
}
