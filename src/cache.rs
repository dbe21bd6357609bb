//! A cache on disk for artifacts that are slow to make from a model and can be made again: TensorRT
//! plans, compiled kernels, int8 models, and the measurements and reference answers of earlier
//! starts.
//!
//! Each artifact is one file, named after the hash of its [`CacheKey`]: all inputs that it depends
//! on. The file has a header (magic, key, length and SHA-256 of the content) and the content. A
//! file whose header or content does not match is never used; the artifact is made again. Content
//! that can't be written is used all the same, so that a read-only folder that was shipped in a
//! container image serves as well.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use sha2::{Digest, Sha256};

const MAGIC: &[u8; 16] = b"resnet18 plan 1\n";

/// Longest key, in bytes; a header that states a longer one is damaged.
const MAX_KEY_LEN: u32 = 1 << 16;

/// Extension of complete files.
const EXTENSION: &str = "plan";

/// Extension of files that are being written.
const UNFINISHED: &str = "tmp";

/// Age at which an unfinished file no longer has a writer.
const ABANDONED: Duration = Duration::from_secs(3600);

/// All inputs that an artifact depends on, as names and values. Their order counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheKey {
    parts: Vec<(String, String)>,
}

impl CacheKey {
    /// Makes a key of these names and values. The first one says which kind of artifact this is.
    pub fn new<'a>(parts: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        let parts = parts
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        Self { parts }
    }

    /// Returns this key with one more part.
    pub fn with(&self, name: &str, value: impl Into<String>) -> Self {
        let mut key = self.clone();
        key.parts.push((name.to_owned(), value.into()));
        key
    }

    /// Name of the artifact's file, without its folder.
    pub fn file_name(&self) -> String {
        let hash = hex(&Sha256::digest(self.encode()));
        format!("{}.{EXTENSION}", &hash[..32])
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&self.parts).expect("pairs of strings are JSON")
    }

    /// The parts in which `other` differs; `None` if it is the key of another kind of artifact.
    fn differences(&self, other: &Self) -> Option<Vec<String>> {
        let same_kind = self.parts.first() == other.parts.first()
            && self.parts.len() == other.parts.len()
            && self.parts.iter().zip(&other.parts).all(|(a, b)| a.0 == b.0);
        if !same_kind {
            return None;
        }

        let differences = self
            .parts
            .iter()
            .zip(&other.parts)
            .filter(|(new, old)| new != old)
            .map(|(new, old)| format!("{} {} instead of {}", new.0, new.1, old.1));
        Some(differences.collect())
    }
}

/// Whether an artifact was in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was read from the cache.
    Hit,
    /// It had to be made, for this reason.
    Miss(MissReason),
}

/// Why an artifact had to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MissReason {
    /// The cache holds nothing similar.
    New,
    /// The most similar artifact of the same kind differs in these parts of its key.
    Changed(Vec<String>),
    /// The file is incomplete or corrupt.
    Damaged(String),
    /// The file was made for another key and renamed.
    Foreign,
    /// The artifact is intact, but its user can't use it.
    Rejected(String),
}

impl fmt::Display for MissReason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::New => f.write_str("there is no cached copy"),
            Self::Changed(parts) => write!(
                f,
                "the kept file was made for other settings: {}",
                parts.join(", ")
            ),
            Self::Damaged(reason) => write!(f, "the kept file is damaged: {reason}"),
            Self::Foreign => f.write_str("the kept file was made for something else and renamed"),
            Self::Rejected(reason) => write!(f, "the kept file can't be used: {reason}"),
        }
    }
}

/// Why a folder can't be used as a cache.
#[derive(Debug, thiserror::Error)]
#[error("the cache folder {} cannot be used: {source}", folder.display())]
pub struct CacheError {
    folder: PathBuf,
    source: io::Error,
}

/// A folder of artifacts, limited in size.
#[derive(Clone, Debug)]
pub struct ArtifactCache {
    folder: PathBuf,
    /// In bytes.
    limit: u64,
}

impl ArtifactCache {
    /// Opens the cache in `folder`, which is created if it is missing. It may hold up to `limit`
    /// bytes.
    ///
    /// # Errors
    /// If there is no such folder and it can't be created.
    pub fn open(folder: &Path, limit: u64) -> Result<Self, CacheError> {
        if let Err(source) = create_private(folder)
            && !folder.is_dir()
        {
            return Err(CacheError {
                folder: folder.to_owned(),
                source,
            });
        }
        Ok(Self {
            folder: folder.to_owned(),
            limit,
        })
    }

    /// `resnet18` in the user's cache folder: `$XDG_CACHE_HOME`, else `$HOME/.cache`.
    pub fn default_folder() -> Option<PathBuf> {
        let absolute_path = |variable| {
            std::env::var_os(variable)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base = match absolute_path("XDG_CACHE_HOME") {
            Some(cache) => cache,
            None => absolute_path("HOME")?.join(".cache"),
        };
        Some(base.join("resnet18"))
    }

    /// The folder of the files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Checks, by creating a file, that artifacts can be kept at all.
    ///
    /// # Errors
    /// Why they can't, such as a read-only folder.
    pub fn check_writable(&self) -> io::Result<()> {
        let probe = unfinished_path(&self.folder.join("probe"));
        File::create(&probe)?;
        fs::remove_file(probe)
    }

    /// Returns the artifact for `key`, or has `make` make it and keeps it. If another process is
    /// making the same, waits for it and uses its result.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn get_or_make<E>(
        &self,
        key: &CacheKey,
        make: impl FnOnce(&MissReason) -> Result<Vec<u8>, E>,
    ) -> Result<(Vec<u8>, Origin), E> {
        if let Ok(content) = self.get(key) {
            return Ok((content, Origin::Hit));
        }

        // Held until the file is in place. If locking fails, two processes may make the same,
        // which is only slower.
        let _lock = self.lock(key);
        let miss = match self.get(key) {
            Ok(content) => return Ok((content, Origin::Hit)),
            Err(miss) => miss,
        };
        let content = make(&miss)?;
        self.put(key, &content);
        Ok((content, Origin::Miss(miss)))
    }

    /// Returns the artifact for `key` after checking that it is intact.
    ///
    /// # Errors
    /// Why there is none that can be used.
    pub fn get(&self, key: &CacheKey) -> Result<Vec<u8>, MissReason> {
        let mut file = match File::open(self.path(key)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.nearest(key)),
            Err(error) => return Err(MissReason::Damaged(error.to_string())),
        };
        let (found, content) = read(&mut file)?;
        if found != *key {
            return Err(MissReason::Foreign);
        }

        // Records the last use, for `evict`. Where this fails the folder is read-only, and nothing
        // is ever evicted either.
        let _ = file.set_modified(SystemTime::now());
        Ok(content)
    }

    /// Keeps `content` under `key`, replacing what was there. A failure is only logged: the
    /// artifact will be made again.
    pub fn put(&self, key: &CacheKey, content: &[u8]) {
        match self.write(key, content) {
            Ok(()) => {
                self.remove_abandoned();
                self.evict(&self.path(key));
            }
            Err(error) => {
                tracing::warn!(
                    "cannot write to the cache {}: {error}; the next start has to make the artifact again",
                    self.folder.display()
                );
            }
        }
    }

    fn path(&self, key: &CacheKey) -> PathBuf {
        self.folder.join(key.file_name())
    }

    /// Writes to a temporary file and renames it, so that nobody sees an incomplete file.
    fn write(&self, key: &CacheKey, content: &[u8]) -> io::Result<()> {
        let path = self.path(key);
        let temporary = unfinished_path(&path);
        let written =
            write_file(&temporary, key, content).and_then(|()| fs::rename(&temporary, &path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Waits until no other process makes the artifact of this key. `None` if that can't be known.
    ///
    /// A few lock files serve all keys and are never removed.
    fn lock(&self, key: &CacheKey) -> Option<File> {
        let path = self.folder.join(format!("{}.lock", &key.file_name()[..1]));
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .ok()?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                tracing::info!("waiting for another process that is making the same artifact");
                file.lock().ok()?;
            }
            Err(TryLockError::Error(_)) => return None,
        }
        Some(file)
    }

    fn files_with_extension(&self, extension: &str) -> Vec<PathBuf> {
        fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|found| found == extension))
            .collect()
    }

    fn artifacts(&self) -> Vec<PathBuf> {
        self.files_with_extension(EXTENSION)
    }

    /// How `key` differs from that of the most similar artifact.
    fn nearest(&self, key: &CacheKey) -> MissReason {
        let nearest = self
            .artifacts()
            .into_iter()
            .filter_map(|path| read_header(&mut File::open(path).ok()?).ok())
            .filter_map(|header| key.differences(&header.key))
            .min_by_key(Vec::len);
        match nearest {
            Some(parts) if !parts.is_empty() => MissReason::Changed(parts),
            _ => MissReason::New,
        }
    }

    /// Removes temporary files whose writers died.
    fn remove_abandoned(&self) {
        for path in self.files_with_extension(UNFINISHED) {
            let age = fs::metadata(&path)
                .and_then(|metadata| metadata.modified())
                .map(|modified| modified.elapsed());
            if matches!(age, Ok(Ok(age)) if age > ABANDONED) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Removes the least recently used artifacts until the rest is within the limit, but never
    /// `newest`.
    fn evict(&self, newest: &Path) {
        let mut artifacts: Vec<Artifact> = self
            .artifacts()
            .into_iter()
            .filter_map(|path| {
                let metadata = fs::metadata(&path).ok()?;
                Some(Artifact {
                    last_used: metadata.modified().ok()?,
                    size: metadata.len(),
                    path,
                })
            })
            .collect();
        artifacts.sort();

        let mut total: u64 = artifacts.iter().map(|artifact| artifact.size).sum();
        for artifact in artifacts.iter().filter(|artifact| artifact.path != newest) {
            if total <= self.limit {
                break;
            }
            if fs::remove_file(&artifact.path).is_ok() {
                tracing::info!(
                    "removed {}, the least recently used file, to stay within the cache's limit",
                    artifact.path.display()
                );
                total -= artifact.size;
            }
        }
    }
}

/// A file in the cache. They sort by their last use, oldest first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Artifact {
    last_used: SystemTime,
    /// In bytes, with its header.
    size: u64,
    path: PathBuf,
}

/// The first part of an artifact's file.
struct Header {
    key: CacheKey,
    content_len: u64,
    sha256: [u8; 32],
}

/// A name for a temporary file beside `path` that no other thread or process uses: threads have
/// different numbers, processes different ids or, on different machines, start at different times.
fn unfinished_path(path: &Path) -> PathBuf {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);

    let process = std::process::id();
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    let number = NUMBER.fetch_add(1, Relaxed);
    path.with_extension(format!("{process}.{now}.{number}.{UNFINISHED}"))
}

fn write_file(path: &Path, key: &CacheKey, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    let key = key.encode();
    let key_len = u32::try_from(key.len())
        .ok()
        .filter(|len| *len <= MAX_KEY_LEN)
        .ok_or(io::ErrorKind::InvalidInput)?;

    file.write_all(MAGIC)?;
    file.write_all(&key_len.to_le_bytes())?;
    file.write_all(&key)?;
    file.write_all(&(content.len() as u64).to_le_bytes())?;
    file.write_all(&Sha256::digest(content))?;
    file.write_all(content)?;
    file.sync_all()
}

/// Reads and checks a whole file: its key and its content.
fn read(file: &mut File) -> Result<(CacheKey, Vec<u8>), MissReason> {
    let header = read_header(file)?;
    let file_len = file.metadata().map_err(damaged)?.len();
    if header.content_len > file_len {
        return Err(MissReason::Damaged("it ends too early".into()));
    }

    let mut content = Vec::with_capacity(header.content_len as usize);
    file.read_to_end(&mut content).map_err(damaged)?;
    if content.len() as u64 != header.content_len || Sha256::digest(&content)[..] != header.sha256 {
        return Err(MissReason::Damaged("its checksum is wrong".into()));
    }
    Ok((header.key, content))
}

fn read_header(file: &mut File) -> Result<Header, MissReason> {
    if read_array::<16>(file)? != *MAGIC {
        return Err(MissReason::Damaged(
            "it was not written by this program".into(),
        ));
    }

    let key_len = u32::from_le_bytes(read_array(file)?);
    if key_len > MAX_KEY_LEN {
        return Err(MissReason::Damaged("its header is too long".into()));
    }
    let mut key = vec![0; key_len as usize];
    file.read_exact(&mut key).map_err(damaged)?;
    let parts = serde_json::from_slice(&key)
        .map_err(|_| MissReason::Damaged("its header can't be read".into()))?;

    Ok(Header {
        key: CacheKey { parts },
        content_len: u64::from_le_bytes(read_array(file)?),
        sha256: read_array(file)?,
    })
}

fn read_array<const N: usize>(file: &mut File) -> Result<[u8; N], MissReason> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes).map_err(damaged)?;
    Ok(bytes)
}

fn damaged(error: io::Error) -> MissReason {
    MissReason::Damaged(match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early".into(),
        _ => error.to_string(),
    })
}

/// Creates a folder that only this user can access: a plan is code and a model decides, so nobody
/// else may put files there.
pub fn create_private(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;

    fn cache(limit: u64) -> (tempfile::TempDir, ArtifactCache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = ArtifactCache::open(&folder.path().join("plans"), limit).unwrap();
        (folder, cache)
    }

    fn key(model: &str, batch: usize) -> CacheKey {
        CacheKey::new([
            ("kind", "test".into()),
            ("model", model.into()),
            ("batch", batch.to_string()),
        ])
    }

    fn get_or_make(cache: &ArtifactCache, key: &CacheKey, content: &[u8]) -> (Vec<u8>, Origin) {
        cache
            .get_or_make(key, |_| Ok::<_, Infallible>(content.to_vec()))
            .unwrap()
    }

    #[test]
    fn what_was_made_once_is_found_again() {
        let (_folder, cache) = cache(1000);
        assert_eq!(
            get_or_make(&cache, &key("a", 1), b"plan"),
            (b"plan".to_vec(), Origin::Miss(MissReason::New))
        );
        assert_eq!(
            get_or_make(&cache, &key("a", 1), b"other"),
            (b"plan".to_vec(), Origin::Hit)
        );
        let again = ArtifactCache::open(cache.folder(), 1000).unwrap();
        assert_eq!(again.get(&key("a", 1)).unwrap(), b"plan");
    }

    #[test]
    fn another_key_misses_and_says_what_differs() {
        let (_folder, cache) = cache(1000);
        get_or_make(&cache, &key("a", 8), b"plan");
        get_or_make(&cache, &key("b", 1), b"plan");
        let Err(miss) = cache.get(&key("a", 16)) else {
            panic!()
        };
        assert_eq!(
            miss,
            MissReason::Changed(vec!["batch 16 instead of 8".into()])
        );
        let other = CacheKey::new([
            ("kind", "other".into()),
            ("model", "a".into()),
            ("batch", "8".into()),
        ]);
        assert_eq!(cache.get(&other), Err(MissReason::New));
    }

    #[test]
    fn every_kind_of_damage_is_noticed_and_repaired() {
        let (_folder, cache) = cache(1000);
        get_or_make(&cache, &key("a", 1), b"plan");
        let path = cache.path(&key("a", 1));
        let whole = fs::read(&path).unwrap();
        for i in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[i] ^= 1;
            fs::write(&path, &flipped).unwrap();
            assert!(cache.get(&key("a", 1)).is_err(), "byte {i}");
            fs::write(&path, &whole[..i]).unwrap();
            assert!(
                matches!(cache.get(&key("a", 1)), Err(MissReason::Damaged(_))),
                "cut at {i}"
            );
        }
        fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
        let (content, origin) = get_or_make(&cache, &key("a", 1), b"plan");
        assert!(
            matches!(origin, Origin::Miss(MissReason::Damaged(_))),
            "{origin:?}"
        );
        assert_eq!(
            (content, fs::read(&path).unwrap()),
            (b"plan".to_vec(), whole)
        );
    }

    #[test]
    fn a_renamed_file_is_foreign() {
        let (_folder, cache) = cache(1000);
        get_or_make(&cache, &key("a", 1), b"plan");
        fs::rename(cache.path(&key("a", 1)), cache.path(&key("b", 1))).unwrap();
        assert_eq!(
            get_or_make(&cache, &key("b", 1), b"own"),
            (b"own".to_vec(), Origin::Miss(MissReason::Foreign))
        );
        assert_eq!(cache.get(&key("b", 1)).unwrap(), b"own");
    }

    #[test]
    fn concurrent_callers_make_it_once() {
        let (_folder, cache) = cache(1000);
        let made = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let make = |_: &MissReason| {
                        made.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(50));
                        Ok::<_, Infallible>(b"plan".to_vec())
                    };
                    assert_eq!(cache.get_or_make(&key("a", 1), make).unwrap().0, b"plan");
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn the_least_recently_used_is_evicted() {
        // A file is its content and a header of some 130 bytes.
        let (_folder, cache) = cache(1500);
        for (name, seconds) in [("a", 30), ("b", 25), ("c", 20)] {
            get_or_make(&cache, &key(name, 1), &[7; 300]);
            let file = File::options()
                .write(true)
                .open(cache.path(&key(name, 1)))
                .unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
                .unwrap();
        }
        // Using the oldest one makes it the newest.
        cache.get(&key("a", 1)).unwrap();
        get_or_make(&cache, &key("d", 1), &[7; 300]);
        let kept = ["a", "b", "c", "d"].map(|name| cache.get(&key(name, 1)).is_ok());
        assert_eq!(kept, [true, false, true, true]);
        let total: u64 = cache
            .artifacts()
            .iter()
            .map(|path| fs::metadata(path).unwrap().len())
            .sum();
        assert!(total <= 1500, "{total}");
        // A file that alone is above the limit is kept, because it is being used.
        get_or_make(&cache, &key("e", 1), &[7; 2000]);
        assert!(cache.get(&key("e", 1)).is_ok());
        assert_eq!(cache.artifacts().len(), 1);
    }

    #[test]
    fn a_failure_to_make_keeps_nothing() {
        let (_folder, cache) = cache(1000);
        assert_eq!(cache.get_or_make(&key("a", 1), |_| Err("no")), Err("no"));
        assert!(cache.artifacts().is_empty());
    }

    #[test]
    fn content_that_cannot_be_kept_is_used_all_the_same() {
        let (_folder, cache) = cache(1000);
        fs::remove_dir_all(cache.folder()).unwrap();
        assert_eq!(get_or_make(&cache, &key("a", 1), b"plan").0, b"plan");
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(ArtifactCache::open(file.path(), 1000).is_err());
    }
}
