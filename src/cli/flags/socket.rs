//! The gRPC port as a Unix domain socket: its permissions, and its file's removal at the end.

use std::{
    fmt, fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, RawMode},
    process::umask,
};
use tokio::net::UnixListener;

use crate::cli::CliError;

/// The file of a socket that this process has bound.
#[derive(Clone, Debug)]
pub struct BoundFile {
    path: PathBuf,
    identity: Identity,
}

/// What tells a file from a later one of the same name: its device, its inode, which a later file
/// may have again, and when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(u64, u64, i64, i64);

impl Identity {
    fn of(path: &Path) -> io::Result<Self> {
        let file = fs::symlink_metadata(path)?;
        Ok(Self(
            file.dev(),
            file.ino(),
            file.mtime(),
            file.mtime_nsec(),
        ))
    }
}

impl BoundFile {
    /// Removes the file, unless it is another server's by now.
    pub fn remove(&self) {
        let own = Identity::of(&self.path).is_ok_and(|now| now == self.identity);
        if own && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("{} can't be removed: {error}", self.path.display());
        }
    }
}

/// Binds a Unix domain socket with these permissions, and replaces one that a server left behind.
///
/// # Errors
/// When the path can't be used, or another program uses it.
pub fn bind(path: &Path, mode: Option<u32>) -> Result<(UnixListener, BoundFile), CliError> {
    let failed = |reason: &dyn fmt::Display| {
        CliError::Failed(format!(
            "can't listen on unix:{}: {reason}; choose another path with --grpc",
            path.display()
        ))
    };

    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(failed(
                &"a file of that name exists, and it is not a socket",
            ));
        }
        match UnixStream::connect(path) {
            Ok(_) => return Err(failed(&"another program uses it")),
            // No process listens: the socket was left behind by a server that was killed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(|error| failed(&error))?;
            }
            Err(error) => return Err(failed(&error)),
        }
    }

    let listener = with_mode(mode, || UnixListener::bind(path)).map_err(|error| failed(&error))?;
    let file = BoundFile {
        path: path.to_owned(),
        identity: Identity::of(path).map_err(|error| failed(&error))?,
    };
    Ok((listener, file))
}

/// Binds under a umask that leaves these permissions, so that the socket never has others. The
/// umask is the whole process's, which creates no other file at this time.
fn with_mode<T>(mode: Option<u32>, bind: impl FnOnce() -> T) -> T {
    let Some(mode) = mode else {
        return bind();
    };
    let before = umask(Mode::from_raw_mode((!mode & 0o777) as RawMode));
    let bound = bind();
    umask(before);
    bound
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_socket_has_its_permissions_and_goes_with_its_server_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grpc.sock");
        let permissions = || fs::symlink_metadata(&path).unwrap().mode() & 0o777;
        for mode in [0o660, 0o600, 0o666] {
            let (_listener, file) = bind(&path, Some(mode)).unwrap();
            assert_eq!(permissions(), mode);
            assert!(
                bind(&path, None)
                    .unwrap_err()
                    .to_string()
                    .contains("another program uses it")
            );
            file.remove();
            assert!(!path.exists());
        }

        let (listener, old) = bind(&path, None).unwrap();
        drop(listener);
        // The times of files have a resolution of a few milliseconds.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (_listener, new) = bind(&path, None).unwrap();
        old.remove();
        assert!(path.exists(), "it is another server's");
        new.remove();
        assert!(!path.exists());
    }
}
