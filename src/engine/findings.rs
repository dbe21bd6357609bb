//! What a start has measured or computed about a model and later starts reuse: the fastest batch,
//! and the answers of the reference.

use serde::{Serialize, de::DeserializeOwned};

use crate::cache::{ArtifactCache, CacheKey};

/// Where findings are kept, and whether new ones may be added.
#[derive(Clone, Debug)]
pub struct Findings {
    cache: ArtifactCache,
    read_only: bool,
}

impl Findings {
    /// Keeps findings in `cache`.
    pub fn new(cache: ArtifactCache) -> Self {
        Self {
            cache,
            read_only: false,
        }
    }

    /// The same, without adding any: models that come and go while a server runs would leave one
    /// file each.
    pub fn read_only(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            read_only: true,
        }
    }

    /// What was found under this key; `None` if there is nothing that can be read.
    pub(super) fn get<T: DeserializeOwned>(&self, key: &CacheKey) -> Option<T> {
        let content = self.cache.get(key).ok()?;
        serde_json::from_slice(&content).ok()
    }

    /// Keeps a finding for later starts, where that is possible.
    pub(super) fn put(&self, key: &CacheKey, finding: &impl Serialize) {
        // Do not warn at every start about a cache folder that cannot be written.
        if self.read_only || self.cache.check_writable().is_err() {
            return;
        }
        if let Ok(content) = serde_json::to_vec(finding) {
            self.cache.put(key, &content);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> CacheKey {
        CacheKey::new([("kind", "test".into())])
    }

    #[test]
    fn a_finding_is_read_back_unless_it_is_of_another_form() {
        let folder = tempfile::tempdir().unwrap();
        let findings = Findings::new(ArtifactCache::open(folder.path(), 1 << 20).unwrap());
        assert_eq!(findings.get::<Vec<f32>>(&key()), None);
        findings.put(&key(), &vec![0.1_f32, f32::MIN_POSITIVE, -3e38]);
        assert_eq!(
            findings.get::<Vec<f32>>(&key()),
            Some(vec![0.1, f32::MIN_POSITIVE, -3e38])
        );
        assert_eq!(findings.get::<String>(&key()), None);
    }

    #[test]
    fn nothing_is_added_where_that_is_not_wanted_or_not_possible() {
        let folder = tempfile::tempdir().unwrap();
        let findings = Findings::new(ArtifactCache::open(folder.path(), 1 << 20).unwrap());
        findings.read_only().put(&key(), &1);
        assert_eq!(findings.get::<u32>(&key()), None);
        findings.put(&key(), &2);
        assert_eq!(findings.read_only().get(&key()), Some(2));

        folder.close().unwrap();
        findings.put(&key(), &3);
        assert_eq!(findings.get::<u32>(&key()), None);
    }
}
