//! Where the kernels that TensorRT-RTX compiles for a GPU are kept for the next start.

use std::sync::Mutex;

use sha2::{Digest, Sha256};

use crate::{
    cache::{ArtifactCache, CacheKey},
    sync::lock,
};

/// The kernels of one plan on one kind of GPU.
pub(super) struct KernelStore {
    cache: ArtifactCache,
    key: CacheKey,
    /// The digest of what was saved last. Kernels can change without a change of their total size.
    saved: Mutex<Option<[u8; 32]>>,
}

impl KernelStore {
    /// `saved` is what the cache holds under this `key` and TensorRT-RTX could read.
    pub(super) fn new(cache: ArtifactCache, key: CacheKey, saved: Option<&[u8]>) -> Self {
        Self {
            cache,
            key,
            saved: Mutex::new(saved.map(digest)),
        }
    }

    /// Saves the kernels, unless the same ones were saved before.
    pub(super) fn save(&self, kernels: &[u8]) {
        let digest = digest(kernels);
        let mut saved = lock(&self.saved);
        if *saved != Some(digest) {
            self.cache.put(&self.key, kernels);
            *saved = Some(digest);
        }
    }
}

fn digest(kernels: &[u8]) -> [u8; 32] {
    Sha256::digest(kernels).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_saved_whatever_their_length() {
        let folder = tempfile::tempdir().unwrap();
        let cache = ArtifactCache::open(folder.path(), 1 << 20).unwrap();
        let key = CacheKey::new([("kind", "kernels".to_owned())]);
        let store = KernelStore::new(cache.clone(), key.clone(), Some(b"one"));
        store.save(b"one");
        assert!(cache.get(&key).is_err(), "it is there already");
        store.save(b"two");
        assert_eq!(cache.get(&key).unwrap(), b"two");
        store.save(b"longer");
        assert_eq!(cache.get(&key).unwrap(), b"longer");
    }
}
