//! Files named on the command line.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use bytes::Bytes;
use tonic::{Code, Status};

use crate::client::MAX_MESSAGE_BYTES;

/// Whether the name means standard input.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Reads a whole image file, or standard input for `-`; what is too large to be sent isn't read. A
/// failure has the status that a server would choose and says what is wrong with the file, without
/// its name.
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
    match data.map_err(|error| unreadable(&error))? {
        data if data.is_empty() => Err(Status::invalid_argument("is empty")),
        data if data.len() as u64 > limit => Err(too_large()),
        data => Ok(data.into()),
    }
}

/// Reads a whole file of at most `limit` bytes, or says why not.
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
    let mut content = Vec::new();
    // One byte more, because the size is only known for plain files. Reserving it all saves the
    // vector from growing.
    let expected = metadata.len().min(limit) as usize + 1;
    content
        .try_reserve_exact(expected)
        .map_err(|error| format!("can't be read: {error}"))?;
    file.take(limit + 1)
        .read_to_end(&mut content)
        .map_err(reason)?;
    match content.len() as u64 > limit {
        true => Err(format!(
            "larger than {} GiB, the most that is read",
            limit >> 30
        )),
        false => Ok(content),
    }
}

/// Refuses a file that can't be written, before the work whose result is to go there.
pub fn check_output(path: &Path) -> Result<(), String> {
    if path.is_dir() {
        return Err(format!(
            "{} is a directory; name the file to write",
            path.display()
        ));
    }
    match folder(path) {
        folder if folder.is_dir() => Ok(()),
        folder => Err(format!(
            "there is no folder {} to write {} into",
            folder.display(),
            path.display()
        )),
    }
}

/// Writes a file whole or not at all: under another name first, which is then changed.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or(io::ErrorKind::InvalidFilename)?
        .to_string_lossy();
    let unfinished = folder(path).join(format!(".{name}.{}.tmp", std::process::id()));
    let written = (|| {
        let mut file = File::create(&unfinished)?;
        file.write_all(content)?;
        // Else a crash of the machine could leave the name with nothing behind it.
        file.sync_all()?;
        fs::rename(&unfinished, path)
    })();
    written.inspect_err(|_| drop(fs::remove_file(&unfinished)))
}

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
