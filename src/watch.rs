//! Reloads configuration files, such as certificates, when they change while the server runs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::SystemTime,
};

use crate::sync::lock;

/// A fingerprint of files: a change of size, modification time or inode changes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp(Vec<Option<FileStamp>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FileStamp {
    bytes: u64,
    modified: SystemTime,
    inode: u64,
}

impl Stamp {
    /// The fingerprint of the files as they are now. Files may be missing.
    pub fn of<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> Self {
        Self(
            files
                .into_iter()
                .map(|path| FileStamp::of(path.as_ref()))
                .collect(),
        )
    }
}

impl FileStamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok()?,
            inode: inode(&metadata),
        })
    }
}

/// Distinguishes a file from another one that replaced it.
#[cfg(unix)]
fn inode(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &fs::Metadata) -> u64 {
    0
}

type Load<T> = Box<dyn Fn() -> Result<T, String> + Send + Sync>;

/// A value that is read from files, and read again when they change. If that fails, the error is
/// logged and the previous value stays.
pub struct Watched<T> {
    /// Names the value in the log, such as `the tokens`.
    what: &'static str,
    files: Vec<PathBuf>,
    load: Load<T>,
    current: RwLock<Arc<T>>,
    stamps: Mutex<Stamps>,
}

struct Stamps {
    /// The files at the last call of [`Watched::refresh`].
    seen: Stamp,
    /// The files when they were last read, successfully or not.
    tried: Stamp,
}

impl<T> Watched<T> {
    /// Reads the value for the first time.
    ///
    /// # Errors
    /// The error of `load`.
    pub fn new(
        what: &'static str,
        files: Vec<PathBuf>,
        load: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let stamp = Stamp::of(&files);
        let current = RwLock::new(Arc::new(load()?));

        Ok(Self {
            what,
            files,
            load: Box::new(load),
            current,
            stamps: Mutex::new(Stamps {
                seen: stamp.clone(),
                tried: stamp,
            }),
        })
    }

    /// The value that was last read successfully.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files again if they have changed and nobody seems to be writing them: they must be
    /// as they were at the previous call. Blocks on the file system.
    pub fn refresh(&self) {
        let stamp = Stamp::of(&self.files);
        let mut stamps = lock(&self.stamps);

        let is_settled = stamps.seen == stamp;
        stamps.seen = stamp.clone();
        if !is_settled || stamps.tried == stamp {
            return;
        }

        stamps.tried = stamp;
        match (self.load)() {
            Ok(new) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                tracing::info!("{} changed and were reloaded", self.what);
            }
            Err(error) => tracing::error!(
                "{} changed, but {error}; the previous ones remain in use",
                self.what
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_read_and_an_invalid_one_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        fs::write(&file, "1").unwrap();
        let load = {
            let file = file.clone();
            move || {
                fs::read_to_string(&file)
                    .map_err(|e| e.to_string())?
                    .parse::<u32>()
                    .map_err(|e| e.to_string())
            }
        };
        let watched = Watched::new("the numbers", vec![file.clone()], load).unwrap();
        let put = |text: &str| {
            // A new inode is noticed even within one tick of the file system's clock.
            let new = folder.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, &file).unwrap();
            let before = *watched.get();
            watched.refresh();
            assert_eq!(*watched.get(), before, "the file may still be written");
            watched.refresh();
            *watched.get()
        };
        assert_eq!(*watched.get(), 1);
        assert_eq!(put("22"), 22);
        assert_eq!(put("many"), 22);
        assert_eq!(put("3"), 3);
        fs::remove_file(&file).unwrap();
        watched.refresh();
        watched.refresh();
        assert_eq!(*watched.get(), 3);
    }
}
