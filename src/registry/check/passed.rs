//! Remembers which files have passed, so that a server starts as quickly as without checks.

use std::{
    collections::HashSet,
    io::Read,
    path::Path,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use sha2::{Digest, Sha256};

use super::{CheckConfig, Report};
use crate::{
    cache::{ArtifactCache, CacheKey, hex},
    files::{self, ReadFailure},
    model::{self, VERSION_DIGITS, files_beside, labels_beside},
    registry::loader::ListedModel,
    sync::lock,
};

/// How much of a file is hashed at a time, in bytes.
const CHUNK: usize = 1 << 20;

/// The most files that are remembered in memory; then they are forgotten, and tried again.
const MOST_KNOWN: usize = 1024;

/// The files that have passed, in this process and, with a cache, in earlier ones. Clones share it.
#[derive(Clone, Debug)]
pub struct Passed {
    known: Arc<Mutex<HashSet<String>>>,
    cache: Option<ArtifactCache>,
    /// What the engine's answers depend on besides the flags, such as its library's version.
    engine: String,
}

/// All that an outcome depends on.
pub struct Identity {
    key: CacheKey,
    /// The model's version.
    pub version: String,
}

impl Passed {
    /// Remembers until the end of the process. `engine` describes the engine and its library.
    pub fn in_memory(engine: impl Into<String>) -> Self {
        Self {
            known: Arc::default(),
            cache: None,
            engine: engine.into(),
        }
    }

    /// Remembers in `cache` as well.
    pub fn in_cache(cache: ArtifactCache, engine: impl Into<String>) -> Self {
        Self {
            cache: Some(cache),
            ..Self::in_memory(engine)
        }
    }

    /// Reads the files that make up the model, a part at a time.
    ///
    /// # Errors
    /// If the model's file is no regular file, too large or can't be read.
    pub(super) fn identify(
        &self,
        check: &CheckConfig,
        model: &ListedModel,
        path: &Path,
    ) -> Result<Identity, ReadFailure> {
        let sha256 = hash_all(path)?;
        // Labels that can't be read are not remembered as others: loading the model refuses them.
        let text = |path: &Path| match hash(path, files::LARGEST_TEXT) {
            Ok(hash) => hash,
            Err(failure) => failure.to_string(),
        };
        let labels = text(&labels_beside(path));
        let beside = files_beside(path).map(|path| text(&path));
        let arguments: Vec<_> = check
            .arguments
            .iter()
            .map(|argument| argument.to_string_lossy())
            .collect();
        let key = CacheKey::new([
            ("artifact", "checked model".to_owned()),
            ("program", env!("CARGO_PKG_VERSION").to_owned()),
            ("build", stamp(&check.program)),
            ("engine", self.engine.clone()),
            ("arguments", arguments.join(" ")),
            ("model", sha256.clone()),
            ("labels", labels),
            ("beside", beside.join(" ")),
            (
                "settings",
                hex(&Sha256::digest(format!("{:?}", model.overrides))),
            ),
        ]);
        Ok(Identity {
            key,
            version: sha256[..VERSION_DIGITS].to_owned(),
        })
    }

    /// Whether these files have passed before.
    pub(super) fn contains(&self, identity: &Identity) -> bool {
        let name = identity.key.file_name();
        if lock(&self.known).contains(&name) {
            return true;
        }
        let kept = self.cache.as_ref().map(|cache| cache.get(&identity.key));
        let kept = matches!(kept, Some(Ok(_)));
        if kept {
            self.remember(identity);
        }
        kept
    }

    /// Remembers until the end of the process that these files have passed.
    pub(super) fn remember(&self, identity: &Identity) {
        let mut known = lock(&self.known);
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(identity.key.file_name());
    }

    /// Remembers that these files have passed.
    pub(super) fn insert(&self, identity: &Identity, report: &Report) {
        self.remember(identity);
        // Do not warn at every load about a cache folder that cannot be written.
        if let Some(cache) = &self.cache
            && cache.check_writable().is_ok()
        {
            cache.put(
                &identity.key,
                &serde_json::to_vec(report).unwrap_or_default(),
            );
        }
    }
}

/// The SHA-256 of a model's file and its files of weights, in hexadecimal digits.
fn hash_all(path: &Path) -> Result<String, ReadFailure> {
    let model = hash(path, files::LARGEST_MODEL)?;
    // Weights that can't be read are not remembered as others: loading the model refuses them.
    let weights: Vec<(String, String)> = model::locations(path)
        .into_iter()
        .map(|location| {
            let sha256 = match model::find(path, &location) {
                Ok(path) => hash(&path, files::LARGEST_MODEL).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            (location, sha256.unwrap_or_else(|reason| reason))
        })
        .collect();
    Ok(model::combined(model, &weights))
}

/// The SHA-256 of a file, in hexadecimal digits.
fn hash(path: &Path, limit: u64) -> Result<String, ReadFailure> {
    let (file, _) = files::TimedFile::open(path, limit)?;
    // One that grows while it is read is cut off, and then is not the file that was checked.
    let mut file = file.take(limit);
    let mut chunk = vec![0; CHUNK];
    let mut sha256 = Sha256::new();
    loop {
        match file.read(&mut chunk).map_err(ReadFailure::Io)? {
            0 => return Ok(hex(&sha256.finalize())),
            bytes => sha256.update(&chunk[..bytes]),
        }
    }
}

/// The size and time of a file, which differ from build to build.
fn stamp(path: &Path) -> String {
    let Ok(metadata) = std::fs::metadata(path) else {
        return String::new();
    };
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let age = modified.duration_since(SystemTime::UNIX_EPOCH);
    format!("{} {:?}", metadata.len(), age.unwrap_or_default())
}
