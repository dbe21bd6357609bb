//! Image files named on the command line.

use std::{
    io::{self, Read},
    path::Path,
};

use bytes::Bytes;
use tonic::{Code, Status};

use crate::client::MAX_MESSAGE_BYTES;

/// Whether the name means standard input.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Reads a whole image file, or standard input for `-`; what is too large to be sent isn't read. A failure has the status
/// that a server would choose and says what is wrong with the file, without its name.
pub async fn read(path: &Path) -> Result<Bytes, Status> {
    let limit = MAX_MESSAGE_BYTES as u64;
    let too_large =
        || Status::invalid_argument(format!("larger than {} MiB, the most a message may hold", limit >> 20));
    let data = if is_stdin(path) {
        tokio::task::spawn_blocking(move || {
            let mut data = Vec::new();
            io::stdin().lock().take(limit + 1).read_to_end(&mut data).map(|_| data)
        })
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
    } else {
        match tokio::fs::metadata(path).await {
            Ok(metadata) if metadata.is_dir() => {
                return Err(Status::invalid_argument("is a directory; name the image files in it"));
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

fn unreadable(error: &io::Error) -> Status {
    let (code, message) = match error.kind() {
        io::ErrorKind::NotFound => (Code::NotFound, "no such file".to_owned()),
        io::ErrorKind::PermissionDenied => (Code::PermissionDenied, "no permission to read the file".to_owned()),
        _ => (Code::Unknown, format!("can't be read: {error}")),
    };
    Status::new(code, message)
}
