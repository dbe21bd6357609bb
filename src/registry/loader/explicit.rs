//! Loading and unloading the models of a folder as callers request.

use std::{convert::Infallible, sync::Arc};

use tokio::sync::Notify;

use super::{Loader, MAX_MODELS};
use crate::registry::{
    control::{Action, Command, Commands, ControlError},
    weights::WeightFiles,
};

impl Loader {
    /// Loads and unloads models as callers request, and nothing else.
    pub(super) async fn serve_commands(
        &self,
        mut commands: Commands,
        reload: &Notify,
        weights: &Arc<WeightFiles>,
    ) -> Infallible {
        loop {
            let command = tokio::select! {
                command = commands.next() => command,
                () = reload.notified() => {
                    tracing::warn!(
                        "the models' files are left alone: with --model-control explicit, only \
                         RepositoryModelLoad and RepositoryModelUnload change what is served"
                    );
                    continue;
                }
            };
            let Command {
                action,
                model,
                done,
            } = command;
            let outcome = match action {
                Action::Load => self.load_by_name(&model, weights).await,
                Action::Unload => self.unload(&model),
                Action::Taught => self.load_taught(&model, weights).await,
            };
            // The caller may have gone.
            let _ = done.send(outcome);
        }
    }

    /// Loads the model whose file has this name.
    pub(super) async fn load_by_name(
        &self,
        name: &str,
        weights: &Arc<WeightFiles>,
    ) -> Result<(), ControlError> {
        let found = match self.find(weights).await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!("{error}");
                return Err(ControlError::Unavailable);
            }
        };
        let no_file = || ControlError::NoFile(name.chars().take(100).collect());
        let mut models = found.into_iter().map(|(model, _)| model);
        let model = models
            .find(|model| model.name == name)
            .ok_or_else(no_file)?;
        let is_full = self.registry.list().len() >= MAX_MODELS;
        // Unloaded models are listed as long as no other one needs their place.
        if self.registry.find(name).is_err() && is_full && !self.registry.remove_unloaded() {
            return Err(ControlError::TooMany(MAX_MODELS));
        }
        match self.load(&model, false).await {
            Ok(false) if self.registry.find(name).is_err() => Err(no_file()),
            Ok(false) => Ok(()),
            Ok(true) => {
                self.report_whether_any_is_served();
                let problem = self
                    .registry
                    .find(name)
                    .ok()
                    .and_then(|entry| entry.problem);
                Err(ControlError::Failed {
                    name: name.to_owned(),
                    reason: problem
                        .as_deref()
                        .unwrap_or("its file was removed")
                        .to_owned(),
                })
            }
            Err(error) => {
                tracing::error!(model = name, "{error}");
                Err(ControlError::Unavailable)
            }
        }
    }

    /// Stops serving a model at a caller's request.
    fn unload(&self, name: &str) -> Result<(), ControlError> {
        if !self.registry.unload(name) {
            return Err(ControlError::Unknown(name.chars().take(100).collect()));
        }
        tracing::info!(model = name, "unloaded by a caller: no longer served");
        self.report_whether_any_is_served();
        Ok(())
    }
}
