//! Loading and unloading models at a caller's request.

use super::names::resolve;
use crate::{
    grpc::call::{context::Context, record::CallRecord, status::CallError},
    inference::{RepositoryModelLoadRequest, RepositoryModelUnloadRequest},
    registry::control::Action,
    state::NotReady,
};

/// Loads a model, or the newest version of its file.
pub(super) async fn load(
    context: &Context,
    request: RepositoryModelLoadRequest,
    record: &CallRecord,
) -> Result<(), CallError> {
    // Triton's clients send these to replace what is in the repository.
    let replaces = |name: &&String| *name == "config" || name.starts_with("file:");
    if let Some(name) = request.parameters.keys().find(replaces) {
        let name: String = name.chars().take(100).collect();
        return Err(CallError::Invalid(format!(
            "the parameter `{name}` is not supported: a model and its settings are in its file; \
             put that into the server's folder and load it without parameters"
        )));
    }
    control(context, Action::Load, &request.model_name, record).await
}

/// Stops serving a model until it is loaded again.
pub(super) async fn unload(
    context: &Context,
    request: RepositoryModelUnloadRequest,
    record: &CallRecord,
) -> Result<(), CallError> {
    control(context, Action::Unload, &request.model_name, record).await
}

async fn control(
    context: &Context,
    action: Action,
    name: &str,
    record: &CallRecord,
) -> Result<(), CallError> {
    let registry = &context.registry;
    let (model, _) = resolve(registry, name);
    if let Ok(entry) = registry.find(model) {
        record.model(&entry.name, &entry.metrics);
    }
    match context.state.get().admits() {
        Ok(()) | Err(NotReady::NoModel(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(registry.controller().request(action, model).await?)
}
