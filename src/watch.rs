//! Files that may change while the server runs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::SystemTime,
};

/// Tells whether files have changed: by their sizes, times and identities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp(Vec<Option<(u64, SystemTime, u64)>>);

impl Stamp {
    /// The files as they are now; one may be missing.
    pub fn of<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> Self {
        let one = |path: P| {
            let metadata = fs::metadata(path).ok()?;
            Some((
                metadata.len(),
                metadata.modified().ok()?,
                file_number(&metadata),
            ))
        };
        Self(files.into_iter().map(one).collect())
    }
}

/// Distinguishes a file from another that took its place.
#[cfg(unix)]
fn file_number(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn file_number(_: &fs::Metadata) -> u64 {
    0
}

type Load<T> = Box<dyn Fn() -> Result<T, String> + Send + Sync>;

/// What was read from files, read again when they change. A change that can't be read is logged and
/// changes nothing.
pub struct Watched<T> {
    /// What it is, for the log.
    what: &'static str,
    files: Vec<PathBuf>,
    load: Load<T>,
    current: RwLock<Arc<T>>,
    stamps: Mutex<Stamps>,
}

/// The files as they were at the last look, and when they were read.
struct Stamps {
    seen: Stamp,
    tried: Stamp,
}

impl<T> Watched<T> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// What `load` says.
    pub fn new(
        what: &'static str,
        files: Vec<PathBuf>,
        load: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let stamp = Stamp::of(&files);
        let stamps = Mutex::new(Stamps {
            seen: stamp.clone(),
            tried: stamp,
        });
        let current = RwLock::new(Arc::new(load()?));
        Ok(Self {
            what,
            files,
            load: Box::new(load),
            current,
            stamps,
        })
    }

    /// What was read last.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at the files, and reads them if they have changed and are at rest: as they were at the
    /// look before. Blocks on the file system.
    pub fn refresh(&self) {
        let stamp = Stamp::of(&self.files);
        let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        let rests = stamps.seen == stamp;
        stamps.seen = stamp.clone();
        if !rests || stamps.tried == stamp {
            return;
        }
        stamps.tried = stamp;
        match (self.load)() {
            Ok(new) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                tracing::info!("{} changed and were read again", self.what);
            }
            Err(error) => tracing::error!(
                "{} changed, but {error}; those before stay in force",
                self.what
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_read_and_a_bad_one_changes_nothing() {
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
            // Another file in its place: also within one tick of the file system's clock.
            let new = folder.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, &file).unwrap();
            let before = *watched.get();
            watched.refresh();
            assert_eq!(*watched.get(), before, "somebody may still write");
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
