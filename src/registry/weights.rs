//! Remembers which files of weights belong to a model's file.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Mutex,
};

use crate::{model, sync::lock, watch::Stamp};

/// The most models that are remembered; then they are forgotten, and their files read again.
const MOST_KNOWN: usize = 1024;

/// The files of weights by model, so that a model's file that has not changed is not read for them
/// again.
#[derive(Debug, Default)]
pub struct WeightFiles(Mutex<HashMap<PathBuf, (Stamp, Vec<PathBuf>)>>);

impl WeightFiles {
    /// The files of weights that the model's file names now, whether they exist or not. Blocks on
    /// the file system.
    pub fn of(&self, model: &Path) -> Vec<PathBuf> {
        let stamp = Stamp::of([model]);
        if let Some((seen, files)) = lock(&self.0).get(model)
            && *seen == stamp
        {
            return files.clone();
        }
        // Not read under the lock, which a file system that stalls would hold for ever.
        let files: Vec<PathBuf> = model::locations(model)
            .iter()
            .filter_map(|location| model::weight_file(model, location).ok())
            .collect();

        let mut known = lock(&self.0);
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(model.to_owned(), (stamp, files.clone()));
        files
    }
}
