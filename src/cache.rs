//! A folder of what takes long to make from a model and can be made again: each entry under the
//! hash of all it depends on.
//!
//! An entry is a file of a header (a magic, what it was made from, the content's length and
//! SHA-256) and the content. Whatever does not fit its header or the wanted key is made again,
//! never trusted. What can't be written is used all the same, so that a read-only folder which came
//! with an image serves as well.

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
/// A header beyond this is not one of ours.
const MAX_HEADER: u32 = 1 << 16;
const EXTENSION: &str = "plan";
const UNFINISHED: &str = "tmp";
/// An unfinished file that is older has no writer any more.
const ABANDONED: Duration = Duration::from_secs(3600);

/// What an entry depends on, as names and values; the order counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    parts: Vec<(String, String)>,
}

impl Key {
    /// A key of these parts. The first one says what kind of thing is kept.
    pub fn new<'a>(parts: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        Self {
            parts: parts
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        }
    }

    /// The same with one part more.
    pub fn with(&self, name: &str, value: impl Into<String>) -> Self {
        let mut key = self.clone();
        key.parts.push((name.to_owned(), value.into()));
        key
    }

    /// The name of the entry's file, without a folder.
    pub fn file_name(&self) -> String {
        format!(
            "{}.{EXTENSION}",
            hex(&Sha256::digest(self.encode()))[..32].to_owned()
        )
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&self.parts).expect("pairs of strings are JSON")
    }

    /// The parts in which `other`, of the same kind, differs; `None` for another kind of thing.
    fn differences(&self, other: &Self) -> Option<Vec<String>> {
        let same_kind = self.parts.first() == other.parts.first()
            && self.parts.len() == other.parts.len()
            && self.parts.iter().zip(&other.parts).all(|(a, b)| a.0 == b.0);
        let differs = || self.parts.iter().zip(&other.parts).filter(|(a, b)| a != b);
        same_kind.then(|| {
            differs()
                .map(|(new, old)| format!("{} {} instead of {}", new.0, new.1, old.1))
                .collect()
        })
    }
}

/// Where something came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was there.
    Hit,
    /// It was made, for this reason.
    Miss(Miss),
}

/// Why something had to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// There is nothing like it.
    New,
    /// There is something of the same kind which differs in these parts, at the least.
    Changed(Vec<String>),
    /// The file is not whole.
    Damaged(String),
    /// The file was made for something else, and has been given this name.
    Foreign,
    /// What was kept could not be used.
    Rejected(String),
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::New => f.write_str("nothing is kept for it yet"),
            Self::Changed(parts) => {
                write!(f, "what is kept is for another one: {}", parts.join(", "))
            }
            Self::Damaged(how) => write!(f, "what is kept is damaged: {how}"),
            Self::Foreign => f.write_str("what is kept under its name was made for something else"),
            Self::Rejected(why) => write!(f, "what is kept can't be used: {why}"),
        }
    }
}

/// Why a folder can't be a cache.
#[derive(Debug, thiserror::Error)]
#[error("the cache {}: {source}", folder.display())]
pub struct CacheError {
    folder: PathBuf,
    source: io::Error,
}

/// A folder of entries, limited in size.
#[derive(Clone, Debug)]
pub struct PlanCache {
    folder: PathBuf,
    limit: u64,
}

impl PlanCache {
    /// The cache in `folder`, which is created where it is missing, of `limit` bytes at most.
    ///
    /// # Errors
    /// When there is no such folder and it can't be created.
    pub fn open(folder: &Path, limit: u64) -> Result<Self, CacheError> {
        match create_private(folder) {
            Err(source) if !folder.is_dir() => Err(CacheError {
                folder: folder.to_owned(),
                source,
            }),
            _ => Ok(Self {
                folder: folder.to_owned(),
                limit,
            }),
        }
    }

    /// The user's own cache folder, by the environment.
    pub fn default_folder() -> Option<PathBuf> {
        let from = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base = from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")));
        base.map(|base| base.join("resnet18"))
    }

    /// Where the entries lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is kept under `key`, or what `make` makes, which is then kept. If another process is
    /// making the same, its result is waited for and used.
    ///
    /// # Errors
    /// What `make` returns.
    pub fn get_or_make<E>(
        &self,
        key: &Key,
        make: impl FnOnce(&Miss) -> Result<Vec<u8>, E>,
    ) -> Result<(Vec<u8>, Origin), E> {
        if let Ok(content) = self.get(key) {
            return Ok((content, Origin::Hit));
        }
        // Held until the entry is in place. Without it two may make the same, which is only slower.
        let _lock = self.lock(key);
        let miss = match self.get(key) {
            Ok(content) => return Ok((content, Origin::Hit)),
            Err(miss) => miss,
        };
        let content = make(&miss)?;
        self.put(key, &content);
        Ok((content, Origin::Miss(miss)))
    }

    /// What is kept under `key`, checked.
    ///
    /// # Errors
    /// Why there is nothing to be used.
    pub fn get(&self, key: &Key) -> Result<Vec<u8>, Miss> {
        let path = self.path(key);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.nearest(key)),
            Err(error) => return Err(Miss::Damaged(error.to_string())),
        };
        let (found, content) = read(&mut file)?;
        if found != *key {
            return Err(Miss::Foreign);
        }
        // The time of its last use; in a folder that can't be written nothing is ever removed
        // either.
        let _ = file.set_modified(SystemTime::now());
        Ok(content)
    }

    /// Keeps `content` under `key`, in place of what was there. A failure is logged: what is not
    /// kept is made again.
    pub fn put(&self, key: &Key, content: &[u8]) {
        match self.write(key, content) {
            Ok(()) => {
                self.sweep();
                self.evict(&self.path(key));
            }
            Err(error) => {
                tracing::warn!(
                    "nothing can be kept in {}: {error}; it will be made again",
                    self.folder.display()
                );
            }
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(key.file_name())
    }

    /// Written beside its place and renamed, so that nobody sees a part of it.
    fn write(&self, key: &Key, content: &[u8]) -> io::Result<()> {
        let path = self.path(key);
        // Nobody else writes to it: other threads have other numbers, other processes other times
        // or ids.
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let number = NUMBER.fetch_add(1, Relaxed);
        let unfinished = path.with_extension(format!(
            "{}.{now}.{number}.{UNFINISHED}",
            std::process::id()
        ));
        let written = (|| {
            let mut file = File::create(&unfinished)?;
            let parts = key.encode();
            let length = u32::try_from(parts.len())
                .ok()
                .filter(|length| *length <= MAX_HEADER);
            file.write_all(MAGIC)?;
            file.write_all(&length.ok_or(io::ErrorKind::InvalidInput)?.to_le_bytes())?;
            file.write_all(&parts)?;
            file.write_all(&(content.len() as u64).to_le_bytes())?;
            file.write_all(&Sha256::digest(content))?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }

    /// Waits until nobody else makes what has this key. A few lock files serve for all keys and are
    /// never removed.
    fn lock(&self, key: &Key) -> Option<File> {
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
                tracing::info!("waiting for another process that makes the same");
                file.lock().ok()?;
            }
            Err(TryLockError::Error(_)) => return None,
        }
        Some(file)
    }

    fn entries(&self) -> Vec<PathBuf> {
        let paths = fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()));
        paths
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == EXTENSION)
            })
            .collect()
    }

    /// How `key` differs from the entry that is most like it.
    fn nearest(&self, key: &Key) -> Miss {
        let keys = self
            .entries()
            .into_iter()
            .filter_map(|path| Some(read_key(&mut File::open(path).ok()?).ok()?.0));
        let differences = keys
            .filter_map(|other| key.differences(&other))
            .min_by_key(Vec::len);
        differences
            .filter(|parts| !parts.is_empty())
            .map_or(Miss::New, Miss::Changed)
    }

    /// Removes what writers that died left behind.
    fn sweep(&self) {
        let paths = fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()));
        for path in paths.filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == UNFINISHED)
        }) {
            let age = fs::metadata(&path)
                .and_then(|metadata| metadata.modified())
                .map(|time| time.elapsed());
            if matches!(age, Ok(Ok(age)) if age > ABANDONED) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Removes what has not been used for longest until the rest is within the limit; never
    /// `newest`.
    fn evict(&self, newest: &Path) {
        let mut entries: Vec<_> = self
            .entries()
            .into_iter()
            .filter_map(|path| {
                let metadata = fs::metadata(&path).ok()?;
                Some((metadata.modified().ok()?, metadata.len(), path))
            })
            .collect();
        entries.sort();
        let mut total: u64 = entries.iter().map(|entry| entry.1).sum();
        for (_, size, path) in entries.iter().filter(|entry| entry.2 != newest) {
            if total <= self.limit {
                break;
            }
            if fs::remove_file(path).is_ok() {
                tracing::info!(
                    "removed {}, unused for longest, to stay within the cache's limit",
                    path.display()
                );
                total -= size;
            }
        }
    }
}

/// What is in an entry's file, and what it was made from.
fn read(file: &mut File) -> Result<(Key, Vec<u8>), Miss> {
    let (key, length, sha256) = read_key(file)?;
    let there = file.metadata().map_err(damaged)?.len();
    if length > there {
        return Err(Miss::Damaged("it ends too early".into()));
    }
    let mut content = Vec::with_capacity(length as usize);
    file.read_to_end(&mut content).map_err(damaged)?;
    match content.len() as u64 == length && Sha256::digest(&content)[..] == sha256 {
        true => Ok((key, content)),
        false => Err(Miss::Damaged("its checksum is wrong".into())),
    }
}

/// The header: the key, the content's length and its SHA-256.
fn read_key(file: &mut File) -> Result<(Key, u64, [u8; 32]), Miss> {
    fn array<const N: usize>(file: &mut File) -> Result<[u8; N], Miss> {
        let mut bytes = [0; N];
        file.read_exact(&mut bytes).map_err(damaged)?;
        Ok(bytes)
    }
    if array::<16>(file)? != *MAGIC {
        return Err(Miss::Damaged("it is no plan of this program".into()));
    }
    let length = u32::from_le_bytes(array(file)?);
    if length > MAX_HEADER {
        return Err(Miss::Damaged("its header is too long".into()));
    }
    let mut parts = vec![0; length as usize];
    file.read_exact(&mut parts).map_err(damaged)?;
    let parts = serde_json::from_slice(&parts)
        .map_err(|_| Miss::Damaged("its header can't be read".into()))?;
    Ok((
        Key { parts },
        u64::from_le_bytes(array(file)?),
        array(file)?,
    ))
}

fn damaged(error: io::Error) -> Miss {
    Miss::Damaged(match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early".into(),
        _ => error.to_string(),
    })
}

/// Nobody else may put files there: engines are programs.
fn create_private(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// The bytes as hexadecimal digits.
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

    fn cache(limit: u64) -> (tempfile::TempDir, PlanCache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = PlanCache::open(&folder.path().join("plans"), limit).unwrap();
        (folder, cache)
    }

    fn key(model: &str, batch: usize) -> Key {
        Key::new([
            ("kind", "test".into()),
            ("model", model.into()),
            ("batch", batch.to_string()),
        ])
    }

    fn get_or_make(cache: &PlanCache, key: &Key, content: &[u8]) -> (Vec<u8>, Origin) {
        cache
            .get_or_make(key, |_| Ok::<_, Infallible>(content.to_vec()))
            .unwrap()
    }

    #[test]
    fn what_was_made_once_is_found_again() {
        let (_folder, cache) = cache(1000);
        assert_eq!(
            get_or_make(&cache, &key("a", 1), b"plan"),
            (b"plan".to_vec(), Origin::Miss(Miss::New))
        );
        assert_eq!(
            get_or_make(&cache, &key("a", 1), b"other"),
            (b"plan".to_vec(), Origin::Hit)
        );
        let again = PlanCache::open(cache.folder(), 1000).unwrap();
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
        assert_eq!(miss, Miss::Changed(vec!["batch 16 instead of 8".into()]));
        let other = Key::new([
            ("kind", "other".into()),
            ("model", "a".into()),
            ("batch", "8".into()),
        ]);
        assert_eq!(cache.get(&other), Err(Miss::New));
    }

    #[test]
    fn every_damage_is_noticed_and_mended() {
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
                matches!(cache.get(&key("a", 1)), Err(Miss::Damaged(_))),
                "cut at {i}"
            );
        }
        fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
        let (content, origin) = get_or_make(&cache, &key("a", 1), b"plan");
        assert!(
            matches!(origin, Origin::Miss(Miss::Damaged(_))),
            "{origin:?}"
        );
        assert_eq!(
            (content, fs::read(&path).unwrap()),
            (b"plan".to_vec(), whole)
        );
    }

    #[test]
    fn a_renamed_entry_is_foreign() {
        let (_folder, cache) = cache(1000);
        get_or_make(&cache, &key("a", 1), b"plan");
        fs::rename(cache.path(&key("a", 1)), cache.path(&key("b", 1))).unwrap();
        assert_eq!(
            get_or_make(&cache, &key("b", 1), b"own"),
            (b"own".to_vec(), Origin::Miss(Miss::Foreign))
        );
        assert_eq!(cache.get(&key("b", 1)).unwrap(), b"own");
    }

    #[test]
    fn those_who_start_together_make_it_once() {
        let (_folder, cache) = cache(1000);
        let made = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let make = |_: &Miss| {
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
    fn what_was_used_longest_ago_gives_way() {
        // An entry is its content and a header of some 130 bytes.
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
        // Its use makes the oldest one the newest.
        cache.get(&key("a", 1)).unwrap();
        get_or_make(&cache, &key("d", 1), &[7; 300]);
        let kept = ["a", "b", "c", "d"].map(|name| cache.get(&key(name, 1)).is_ok());
        assert_eq!(kept, [true, false, true, true]);
        let total: u64 = cache
            .entries()
            .iter()
            .map(|path| fs::metadata(path).unwrap().len())
            .sum();
        assert!(total <= 1500, "{total}");
        // What alone is too large is kept nevertheless: it is being used.
        get_or_make(&cache, &key("e", 1), &[7; 2000]);
        assert!(cache.get(&key("e", 1)).is_ok());
        assert_eq!(cache.entries().len(), 1);
    }

    #[test]
    fn a_failure_to_make_keeps_nothing() {
        let (_folder, cache) = cache(1000);
        assert_eq!(cache.get_or_make(&key("a", 1), |_| Err("no")), Err("no"));
        assert!(cache.entries().is_empty());
    }

    #[test]
    fn what_cannot_be_kept_is_used_all_the_same() {
        let (_folder, cache) = cache(1000);
        fs::remove_dir_all(cache.folder()).unwrap();
        assert_eq!(get_or_make(&cache, &key("a", 1), b"plan").0, b"plan");
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(PlanCache::open(file.path(), 1000).is_err());
    }
}
