//! The two names of every model: one takes encoded images, the other tensors of pixels.

use std::sync::Arc;

use super::versions;
use crate::{
    grpc::call::{context::Context, record::CallRecord, status::CallError},
    metrics::{
        ModelMetrics,
        statistics::{RequestKind, RequestStatistics},
    },
    registry::{Entry, Registry, Served},
};

/// The service's full name.
pub(in crate::grpc) const SERVICE: &str = "inference.GRPCInferenceService";
/// The suffix of the name that takes tensors.
const TENSOR: &str = "_tensor";

/// What callers send to a model under one of its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Encoded images, under the model's own name.
    Encoded,
    /// Cropped pixels, under its name with the suffix `_tensor`.
    Tensor,
}

impl Form {
    pub(super) fn name(self, model: &str) -> String {
        match self {
            Self::Encoded => model.to_owned(),
            Self::Tensor => format!("{model}{TENSOR}"),
        }
    }

    /// How the statistics count its requests.
    pub(super) fn kind(self) -> RequestKind {
        match self {
            Self::Encoded => RequestKind::Encoded,
            Self::Tensor => RequestKind::Tensor,
        }
    }

    pub(super) fn statistics(self, metrics: &ModelMetrics) -> &RequestStatistics {
        match self {
            Self::Encoded => &metrics.statistics.encoded,
            Self::Tensor => &metrics.statistics.tensor,
        }
    }
}

/// The metrics of the model with that name, if there is one.
pub(super) fn metrics(registry: &Registry, name: &str) -> Option<Arc<ModelMetrics>> {
    registry
        .find(resolve(registry, name).0)
        .ok()
        .map(|entry| entry.metrics)
}

/// The model's name in the registry, and what it takes under this name. A model that is itself
/// called `..._tensor` has precedence.
pub(super) fn resolve<'a>(registry: &Registry, name: &'a str) -> (&'a str, Form) {
    let known = |name: &str| !name.is_empty() && registry.find(name).is_ok();
    match name.strip_suffix(TENSOR) {
        Some(model) if known(model) && !known(name) => (model, Form::Tensor),
        _ => (name, Form::Encoded),
    }
}

/// All models under all their names.
pub(super) fn list(registry: &Registry) -> Vec<(String, Form, Entry)> {
    let entries = registry.list();
    let named = |entry: &Entry, form: Form| (form.name(&entry.name), form, entry.clone());
    let taken = |name: &str| entries.iter().any(|entry| entry.name == name);
    let tensors = entries
        .iter()
        .map(|entry| named(entry, Form::Tensor))
        .filter(|(name, ..)| !taken(name));
    entries
        .iter()
        .map(|entry| named(entry, Form::Encoded))
        .chain(tensors)
        .collect()
}

/// The model with that name, if it and the server are ready and it has this version.
pub(super) fn find(
    context: &Context,
    name: &str,
    version: &str,
    record: &CallRecord,
) -> Result<(Arc<Served>, Form), CallError> {
    let (model, form) = resolve(&context.registry, name);
    let served = context.model(model, record)?;
    if !has_version(&served, version) {
        let asked = version.chars().take(100).collect();
        return Err(CallError::Version {
            name: form.name(&served.name),
            asked,
            served: versions::number(&served.version),
        });
    }
    Ok((served, form))
}

/// Whether this is the version that was asked for.
pub(super) fn has_version(served: &Served, version: &str) -> bool {
    versions::matches(version, &served.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_found_under_both_names() {
        let registry = Registry::new(None);
        registry.announce("cats");
        assert_eq!(resolve(&registry, "cats"), ("cats", Form::Encoded));
        assert_eq!(resolve(&registry, "cats_tensor"), ("cats", Form::Tensor));
        assert_eq!(
            resolve(&registry, ""),
            ("", Form::Encoded),
            "the default model"
        );
        assert_eq!(resolve(&registry, "_tensor"), ("_tensor", Form::Encoded));
        assert_eq!(
            resolve(&registry, "dogs_tensor"),
            ("dogs_tensor", Form::Encoded)
        );
    }

    #[test]
    fn a_models_own_name_goes_first() {
        let registry = Registry::new(None);
        registry.announce("cats");
        registry.announce("cats_tensor");
        assert_eq!(
            resolve(&registry, "cats_tensor"),
            ("cats_tensor", Form::Encoded)
        );
        let names: Vec<String> = list(&registry).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["cats", "cats_tensor", "cats_tensor_tensor"]);
    }
}
