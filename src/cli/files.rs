//! Reading and writing the files that are named on the command line.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use bytes::Bytes;
use tonic::{Code, Status};

use crate::client::MAX_MESSAGE_BYTES;

/// Whether the path is `-`, which stands for standard input.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Reads an image file, or standard input for `-`, up to the size that fits in a message.
///
/// A failure has the status code that a server would return; its message does not name the file.
pub async fn read(path: &Path) -> Result<Bytes, Status> {
    let limit = MAX_MESSAGE_BYTES as u64;
    let too_large = || {
        Status::invalid_argument(format!(
            "larger than {} MiB, the most a message may hold",
            limit >> 20
        ))
    };

    let data = if is_stdin(path) {
        tokio::task::spawn_blocking(move || {
            let mut data = Vec::new();
            io::stdin()
                .lock()
                .take(limit + 1)
                .read_to_end(&mut data)
                .map(|_| data)
        })
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
    } else {
        match tokio::fs::metadata(path).await {
            Ok(metadata) if metadata.is_dir() => {
                return Err(Status::invalid_argument(
                    "is a directory; name the image files in it",
                ));
            }
            Ok(metadata) if metadata.len() > limit => return Err(too_large()),
            Ok(_) => tokio::fs::read(path).await,
            Err(error) => Err(error),
        }
    };

    let data = data.map_err(|error| unreadable(&error))?;
    if data.is_empty() {
        return Err(Status::invalid_argument("is empty"));
    }
    if data.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(data.into())
}

/// Reads a file of at most `limit` bytes. The error's message does not name the file.
pub fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let reason = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "no permission to read the file".to_owned(),
        _ => format!("can't be read: {error}"),
    };

    let file = File::open(path).map_err(reason)?;
    let metadata = file.metadata().map_err(reason)?;
    if metadata.is_dir() {
        return Err("is a directory; name the file in it".into());
    }

    // Only regular files have a size; one byte more than the limit shows that a file exceeds it.
    // The memory is reserved at once, so that the vector need not grow.
    let mut content = Vec::new();
    let expected = metadata.len().min(limit) as usize + 1;
    content
        .try_reserve_exact(expected)
        .map_err(|error| format!("can't be read: {error}"))?;
    file.take(limit + 1)
        .read_to_end(&mut content)
        .map_err(reason)?;

    if content.len() as u64 > limit {
        return Err(format!("larger than the limit of {} GiB", limit >> 30));
    }
    Ok(content)
}

/// Checks that a file can be written at `path`, before the work that produces its content.
pub fn check_output(path: &Path) -> Result<(), String> {
    if path.is_dir() {
        return Err(format!(
            "{} is a directory; name the file to write",
            path.display()
        ));
    }
    let folder = folder(path);
    if !folder.is_dir() {
        return Err(format!(
            "there is no folder {} to write {} into",
            folder.display(),
            path.display()
        ));
    }
    Ok(())
}

/// Writes a file atomically: to a temporary file in the same folder, which is then renamed.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or(io::ErrorKind::InvalidFilename)?
        .to_string_lossy();
    let temporary = folder(path).join(format!(".{name}.{}.tmp", std::process::id()));

    let written = write_and_sync(&temporary, content).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_and_sync(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    // Without this, a crash of the machine after the renaming could leave an empty file.
    file.sync_all()
}

/// The folder that contains `path`.
fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn unreadable(error: &io::Error) -> Status {
    let (code, message) = match error.kind() {
        io::ErrorKind::NotFound => (Code::NotFound, "no such file".to_owned()),
        io::ErrorKind::PermissionDenied => (
            Code::PermissionDenied,
            "no permission to read the file".to_owned(),
        ),
        _ => (Code::Unknown, format!("can't be read: {error}")),
    };
    Status::new(code, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        fs::write(&path, "old").unwrap();
        write_atomically(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");

        let taken = folder.path().join("folder");
        fs::create_dir(&taken).unwrap();
        assert!(write_atomically(&taken, b"new").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn files_beyond_the_limit_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "four").unwrap();
        assert_eq!(read_at_most(file.path(), 4).unwrap(), b"four");
        assert!(
            read_at_most(file.path(), 3)
                .unwrap_err()
                .contains("larger than")
        );
        // A device has no size and no end.
        assert!(
            read_at_most(Path::new("/dev/zero"), 1 << 20)
                .unwrap_err()
                .contains("larger than")
        );
    }

    #[test]
    fn outputs_that_cannot_be_written_are_known_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_output(&folder.path().join("new.onnx")).is_ok());
        assert!(check_output(Path::new("new.onnx")).is_ok());
        assert!(
            check_output(folder.path())
                .unwrap_err()
                .contains("is a directory")
        );
        assert!(
            check_output(&folder.path().join("a/b.onnx"))
                .unwrap_err()
                .contains("there is no folder")
        );
    }
}
