//! The models that are served at this moment, by name.

pub mod check;
pub mod control;
pub mod loader;
mod weights;

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::watch;

use self::control::Controller;
use crate::{
    answer::{self, Activation},
    engine::EngineInfo,
    image::Geometry,
    metrics::{ModelMetrics, Rejection},
    model::{Model, Normalization},
    scheduler::Queue,
};

/// One version of a model, loaded and ready. A call that holds it can finish on it even after a
/// newer version was published.
pub struct Served {
    pub name: String,
    /// A hash of the model's content.
    pub version: String,
    /// The classes' names, in the order of the logits.
    pub labels: Arc<[String]>,
    /// The class for images that belong to none of the other classes.
    pub unknown_class: Option<usize>,
    /// How logits become probabilities.
    pub activation: Activation,
    /// The network's input.
    pub geometry: Geometry,
    /// How tensors of the Open Inference Protocol are normalized, if the model accepts those.
    pub normalization: Option<Normalization>,
    pub engine: EngineInfo,
    /// How many values an embedding has, or why there are none.
    pub embedding: Result<usize, String>,
    pub queue: Queue,
    /// The same for all versions of the model.
    pub metrics: Arc<ModelMetrics>,
}

impl Served {
    /// A model whose engines run behind `queue`.
    pub fn new(
        model: &Model,
        engine: EngineInfo,
        queue: Queue,
        metrics: Arc<ModelMetrics>,
    ) -> Self {
        let embedding = match (model.graph.embedding(), engine.embedding) {
            (Err(reason), _) => Err(reason.to_owned()),
            (Ok(_), None) => Err(format!("the {} engine gives none", engine.kind)),
            (Ok(_), Some(size)) => Ok(size),
        };
        Self {
            embedding,
            name: model.name.clone(),
            version: model.version.clone(),
            labels: Arc::clone(&model.labels),
            unknown_class: model.unknown_class,
            activation: model.activation,
            geometry: model.geometry,
            normalization: model.normalization,
            engine,
            queue,
            metrics,
        }
    }

    /// The label of a class in an answer; empty for the one that stands for none of the others.
    pub fn label(&self, class_id: usize) -> &str {
        answer::label(class_id, &self.labels, self.unknown_class)
    }
}

/// A model's entry in the registry.
#[derive(Clone)]
pub struct Entry {
    pub name: String,
    pub metrics: Arc<ModelMetrics>,
    /// The version that answers; `None` while the first one is being loaded, or after it failed.
    pub served: Option<Arc<Served>>,
    /// The error of loading the newest file, if that failed.
    pub problem: Option<Arc<str>>,
    /// Whether a caller unloaded it. Then nothing is served.
    pub unloaded: bool,
}

/// No model has that name, or the default model is gone.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", missing(name, *.is_default), alternatives(known))]
pub struct UnknownModel {
    name: String,
    /// Whether the call named no model.
    is_default: bool,
    known: Vec<String>,
}

fn missing(name: &str, is_default: bool) -> String {
    match (is_default, name) {
        (true, "") => "there is no default model".into(),
        (true, name) => format!("the default model \"{name}\" is not there any more"),
        (false, name) => format!("there is no model \"{name}\""),
    }
}

fn alternatives(known: &[String]) -> String {
    if known.is_empty() {
        "; this server has none at present".into()
    } else {
        format!("; this server has: {}", known.join(", "))
    }
}

/// The models by name, and the default among them.
pub struct Registry {
    models: RwLock<Models>,
    changed: watch::Sender<()>,
    controller: Controller,
}

#[derive(Default)]
struct Models {
    entries: Vec<Entry>,
    default: Option<String>,
}

impl Registry {
    /// An empty registry. `default` is the model that answers when a call names none; `None` means
    /// the first one announced.
    pub fn new(default: Option<String>) -> Self {
        Self::controlled(default, Controller::default())
    }

    /// The same, with models that callers load and unload through this `controller`.
    pub fn controlled(default: Option<String>, controller: Controller) -> Self {
        Self {
            controller,
            models: RwLock::new(Models {
                entries: Vec::new(),
                default,
            }),
            changed: watch::Sender::new(()),
        }
    }

    /// Through which callers load and unload models.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// Counts a rejection whose model is not known, for the default model.
    pub fn count_rejection(&self, reason: Rejection) {
        if let Ok(default) = self.find("") {
            default.metrics.rejected(reason);
        }
    }

    /// The model with that name; an empty name means the default.
    ///
    /// # Errors
    /// [`UnknownModel`], which lists the known models.
    pub fn find(&self, name: &str) -> Result<Entry, UnknownModel> {
        let models = self.read();
        let is_default = name.is_empty();
        let name = if is_default {
            models.default.as_deref().unwrap_or_default()
        } else {
            name
        };
        models
            .entries
            .iter()
            .find(|entry| entry.name == name)
            .cloned()
            .ok_or_else(|| UnknownModel {
                // A name can be as long as a message; the answer must not be.
                name: name.chars().take(100).collect(),
                is_default,
                known: models
                    .entries
                    .iter()
                    .map(|entry| entry.name.clone())
                    .collect(),
            })
    }

    /// How many models are served at this moment.
    pub fn serving(&self) -> usize {
        let entries = &self.read().entries;
        entries
            .iter()
            .filter(|entry| entry.served.is_some())
            .count()
    }

    /// The model that answers every call, if there is only one.
    pub fn only(&self) -> Option<Arc<Served>> {
        match self.read().entries.as_slice() {
            [only] => only.served.clone(),
            _ => None,
        }
    }

    /// All models, the default first.
    pub fn list(&self) -> Vec<Entry> {
        let models = self.read();
        let mut entries = models.entries.clone();
        entries.sort_by_key(|entry| models.default.as_ref() != Some(&entry.name));
        entries
    }

    /// Adds an entry for a model that is about to be loaded, and returns its metrics.
    pub fn announce(&self, name: &str) -> Arc<ModelMetrics> {
        let mut models = self.write();
        if let Some(entry) = models.entry(name) {
            return Arc::clone(&entry.metrics);
        }
        let metrics = Arc::new(ModelMetrics::new(name));
        let entry = Entry {
            name: name.to_owned(),
            metrics: Arc::clone(&metrics),
            served: None,
            problem: None,
            unloaded: false,
        };
        models.entries.push(entry);
        models.default.get_or_insert_with(|| name.to_owned());
        drop(models);
        self.changed.send_replace(());
        metrics
    }

    /// Makes `served` the version that answers from now on. Calls on the previous version finish on
    /// it.
    pub fn publish(&self, served: Served) {
        let mut models = self.write();
        let Some(entry) = models.entry(&served.name) else {
            return;
        };
        let old = entry.served.replace(Arc::new(served));
        entry.problem = None;
        entry.unloaded = false;
        drop(models);
        // This may be the last holder: drop its engines after the lock has been released.
        drop(old);
        self.changed.send_replace(());
    }

    /// Reports why the model's newest file can't be served. The previous version still is.
    pub fn report(&self, name: &str, problem: &str) {
        if let Some(entry) = self.write().entry(name) {
            entry.problem = Some(problem.into());
            entry.unloaded = false;
        }
        self.changed.send_replace(());
    }

    /// Stops serving a model until a version of it is published. Returns whether there is such a
    /// model.
    pub fn unload(&self, name: &str) -> bool {
        let mut models = self.write();
        let Some(entry) = models.entry(name) else {
            return false;
        };
        let old = entry.served.take();
        entry.problem = None;
        entry.unloaded = true;
        let metrics = Arc::clone(&entry.metrics);
        drop(models);
        // As above: this may drop its engines.
        drop(old);
        metrics.removed();
        self.changed.send_replace(());
        true
    }

    /// Removes the entry of one unloaded model. Returns whether there was one.
    pub fn remove_unloaded(&self) -> bool {
        let unloaded = self
            .read()
            .entries
            .iter()
            .find(|entry| entry.unloaded)
            .map(|entry| entry.name.clone());
        match unloaded {
            Some(name) => {
                self.remove(&name);
                true
            }
            None => false,
        }
    }

    /// Stops serving a model.
    pub fn remove(&self, name: &str) {
        let mut models = self.write();
        let removed: Vec<Entry> = models
            .entries
            .extract_if(.., |entry| entry.name == name)
            .collect();
        drop(models);
        for entry in removed {
            entry.metrics.removed();
        }
        self.changed.send_replace(());
    }

    /// A receiver that is notified of every change.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn read(&self) -> RwLockReadGuard<'_, Models> {
        self.models.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Models> {
        self.models.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Models {
    fn entry(&mut self, name: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(registry: &Registry) -> Vec<String> {
        registry
            .list()
            .into_iter()
            .map(|entry| entry.name)
            .collect()
    }

    #[test]
    fn the_first_model_is_the_default_unless_another_was_named() {
        let registry = Registry::new(None);
        registry.announce("cats");
        registry.announce("birds");
        assert_eq!(registry.find("").unwrap().name, "cats");
        assert_eq!(names(&registry), ["cats", "birds"]);

        let registry = Registry::new(Some("birds".into()));
        registry.announce("cats");
        registry.announce("birds");
        assert_eq!(registry.find("").unwrap().name, "birds");
        assert_eq!(names(&registry), ["birds", "cats"]);
    }

    #[test]
    fn an_unknown_name_is_answered_with_those_there_are() {
        let registry = Registry::new(None);
        registry.announce("cats");
        let error = registry.find("dogs").err().unwrap().to_string();
        assert!(error.contains("dogs") && error.contains("cats"), "{error}");
        assert!(
            registry
                .find(&"x".repeat(1000))
                .err()
                .unwrap()
                .to_string()
                .len()
                < 200
        );
    }

    #[test]
    fn unloaded_models_make_room_for_others_and_the_rest_stays() {
        let registry = Registry::new(None);
        for name in ["cats", "birds", "fish"] {
            registry.announce(name);
        }
        assert!(!registry.remove_unloaded());
        assert!(registry.unload("birds"));
        assert_eq!(names(&registry).len(), 3, "it is listed as unloaded");
        assert!(registry.remove_unloaded());
        assert_eq!(names(&registry), ["cats", "fish"]);
        assert!(!registry.remove_unloaded());
    }

    #[test]
    fn a_default_that_is_gone_is_not_replaced_by_another_model() {
        let registry = Registry::new(None);
        registry.announce("cats");
        registry.announce("birds");
        registry.remove("cats");
        let error = registry.find("").err().unwrap().to_string();
        assert_eq!(
            error,
            "the default model \"cats\" is not there any more; this server has: birds"
        );
        registry.remove("birds");
        let error = registry.find("birds").err().unwrap().to_string();
        assert_eq!(
            error,
            "there is no model \"birds\"; this server has none at present"
        );
    }

    #[test]
    fn a_problem_stays_until_the_model_is_gone() {
        let registry = Registry::new(None);
        let mut changes = registry.watch();
        registry.announce("cats");
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        registry.report("cats", "not an ONNX file");
        assert!(changes.has_changed().unwrap());
        assert_eq!(
            registry.find("cats").unwrap().problem.as_deref(),
            Some("not an ONNX file")
        );
        registry.announce("cats");
        assert!(
            registry.find("cats").unwrap().problem.is_some(),
            "announcing it again changes nothing"
        );
    }
}
