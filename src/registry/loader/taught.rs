//! Serving models at once that have just been taught, and no longer those that were removed.

use std::{collections::BTreeMap, sync::Arc};

use super::{Known, Loader};
use crate::registry::{
    control::{Command, ControlError},
    weights::WeightFiles,
};

impl Loader {
    /// Brings one taught model up to date between two scans of the files, and remembers its file as
    /// the next scan would.
    pub(super) async fn follow_taught(
        &self,
        command: Command,
        known: &mut BTreeMap<String, Known>,
        weights: &Arc<WeightFiles>,
    ) {
        let Command { model, done, .. } = command;
        // Before it is loaded: a file that changes meanwhile is found by the next scan.
        let stamp = match self.find(weights).await {
            Ok(found) => found
                .into_iter()
                .find(|(found, _)| found.name == model)
                .map(|(_, stamp)| stamp),
            Err(error) => {
                tracing::error!("{error}");
                let _ = done.send(Err(ControlError::Unavailable));
                return;
            }
        };
        let outcome = self.load_taught(&model, weights).await;
        if let Some(stamp) = stamp {
            let now = Known {
                seen: stamp.clone(),
                tried: stamp,
                failed: outcome.is_err(),
                missing: 0,
            };
            known.insert(model, now);
        } else {
            known.remove(&model);
        }
        // The caller may have gone.
        let _ = done.send(outcome);
    }

    /// Loads the taught model from its file, or stops serving it where there is none.
    pub(super) async fn load_taught(
        &self,
        name: &str,
        weights: &Arc<WeightFiles>,
    ) -> Result<(), ControlError> {
        match self.load_by_name(name, weights).await {
            Err(ControlError::NoFile(_)) => {
                self.registry.remove(name);
                self.report_whether_any_is_served();
                Ok(())
            }
            loaded => loaded,
        }
    }
}
