//! Reading and writing the files that are named on the command line.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use bytes::Bytes;
use tokio::task::spawn_blocking;
use tonic::{Code, Status};

use crate::{
    client::MAX_MESSAGE_BYTES,
    files::{ReadFailure, read_limited_async, read_to_end},
};

/// Whether the path is `-`, which stands for standard input.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Reads an image file, or standard input for `-`, up to the size that fits in a message.
///
/// A failure has the status code that a server would return; its message does not name the file.
pub async fn read(path: &Path) -> Result<Bytes, Status> {
    let limit = MAX_MESSAGE_BYTES as u64;
    let content = if is_stdin(path) {
        spawn_blocking(move || read_to_end(io::stdin().lock(), 0, limit))
            .await
            .unwrap_or_else(|error| Err(ReadFailure::Io(io::Error::other(error))))
    } else {
        read_limited_async(path, limit)
            .await
            .map_err(|error| error.reason)
    };

    match content {
        Ok(content) if content.is_empty() => Err(Status::invalid_argument("is empty")),
        Ok(content) => Ok(content.into()),
        Err(reason) => Err(Status::new(code(&reason), reason.to_string())),
    }
}

fn code(reason: &ReadFailure) -> Code {
    match reason.kind() {
        io::ErrorKind::NotFound => Code::NotFound,
        io::ErrorKind::PermissionDenied => Code::PermissionDenied,
        io::ErrorKind::IsADirectory | io::ErrorKind::FileTooLarge => Code::InvalidArgument,
        _ => Code::Unknown,
    }
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
