//! Files that callers fetch: pictures and models, read in parts of bounded size off the async threads.

use std::{
    io::{self, Read},
    path::PathBuf,
};

use bytes::Bytes;

use super::{TeachError, teacher::blocking};
use crate::files::{ReadFailure, TimedFile};

/// The size of a part, in bytes.
const PART: usize = 256 << 10;

/// A file that is being read. One that is replaced or removed meanwhile is read to its end.
pub struct Download {
    file: TimedFile,
    path: PathBuf,
    bytes: u64,
}

impl Download {
    /// Opens a file of at most `limit` bytes. This blocks the thread.
    ///
    /// # Errors
    /// If it is gone, too large, or can't be read.
    pub(super) fn open(path: PathBuf, limit: u64) -> Result<Self, TeachError> {
        match TimedFile::open(&path, limit) {
            Ok((file, bytes)) => Ok(Self { file, path, bytes }),
            Err(ReadFailure::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                Err(TeachError::Unknown("the file was removed".into()))
            }
            Err(ReadFailure::Io(error)) => Err(TeachError::file(path)(error)),
            Err(error) => Err(TeachError::file(path)(io::Error::other(error))),
        }
    }

    /// The size of the file when it was opened, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next part, and what is left; `None` at the end.
    ///
    /// # Errors
    /// If the file can't be read.
    pub async fn next(mut self) -> Result<Option<(Bytes, Self)>, TeachError> {
        blocking(move || {
            let mut part = Vec::with_capacity(PART);
            let read = (&mut self.file).take(PART as u64).read_to_end(&mut part);
            read.map_err(TeachError::file(&self.path))?;
            Ok((!part.is_empty()).then(|| (part.into(), self)))
        })
        .await?
    }
}
