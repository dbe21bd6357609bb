//! Reads whole files, each with a limit on its size.
//!
//! Files that users or models name are read through here, so a wrong path, such as
//! `/dev/zero`, a named pipe that nobody writes to or a backup of many gigabytes, is an error
//! instead of exhausted memory or a wait without end.

#[cfg(feature = "server")]
mod stall;

#[cfg(feature = "server")]
use std::time::Duration;
use std::{
    fs::{File, FileType},
    io::{self, Read},
    path::{Path, PathBuf},
};

use thiserror::Error;

#[cfg(feature = "server")]
pub use self::stall::{READ_TIMEOUT, TimedFile, within};

/// Limit for a photo, in bytes.
#[cfg(feature = "server")]
pub const LARGEST_PHOTO: u64 = 256 << 20;

/// Limit for a small text file: labels, tokens, certificates and keys, in bytes.
#[cfg(feature = "server")]
pub const LARGEST_TEXT: u64 = 16 << 20;

/// Limit for a checkpoint, in bytes: more than twice a ResNet-200 with the state of its optimizer.
#[cfg(feature = "server")]
pub const LARGEST_CHECKPOINT: u64 = 4 << 30;

/// Limit for an ONNX file, in bytes: the most that one protobuf message can have.
#[cfg(feature = "server")]
pub const LARGEST_MODEL: u64 = 2 << 30;

/// The extensions of the images that the server reads, in lower case. They include those that
/// torchvision's `ImageFolder` takes.
const IMAGE_EXTENSIONS: [&str; 23] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "pnm", "ppm",
    "pgm", "pbm", "pam", "heic", "heif", "avif", "avifs", "qoi", "ico", "tga",
];

/// Whether a file in a folder is an image by its name: it has the extension of one and is not
/// hidden.
///
/// Folders of photos hold other files as well, such as annotations, `Thumbs.db` or the hidden
/// `._photo.jpg` that macOS leaves on foreign disks; those are no damaged photos.
pub fn has_image_name(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && has_image_extension(path)
}

/// Whether a file has the extension of an image.
pub fn has_image_extension(path: &Path) -> bool {
    let extension = path
        .extension()
        .map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|extension| IMAGE_EXTENSIONS.contains(&extension.as_str()))
}

/// A file that could not be read.
#[derive(Debug, Error)]
#[error("{}: {reason}", path.display())]
pub struct ReadError {
    /// The file.
    pub path: PathBuf,
    /// Why it could not be read; its text does not name the file.
    pub reason: ReadFailure,
}

/// Why a file could not be read.
#[derive(Debug, Error)]
pub enum ReadFailure {
    #[error("is a directory; name a file in it")]
    Directory,
    #[error("is {0}, and only regular files are read")]
    NotRegular(&'static str),
    #[error("larger than {}, the most that is read", size(*.limit))]
    TooLarge {
        /// In bytes.
        limit: u64,
    },
    #[cfg(feature = "server")]
    #[error(
        "the file system has not answered for {0:?}; if it is a network mount, see whether its \
         server is up"
    )]
    Stalled(Duration),
    #[cfg(feature = "server")]
    #[error(
        "not read, since too many earlier reads still wait for a file system that does not answer"
    )]
    Unresponsive,
    #[error("{}", describe(.0))]
    Io(#[source] io::Error),
}

impl ReadFailure {
    /// The kind of the operating system's error, or the one that it has for the same situation.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Directory => io::ErrorKind::IsADirectory,
            Self::NotRegular(_) => io::ErrorKind::InvalidInput,
            Self::TooLarge { .. } => io::ErrorKind::FileTooLarge,
            #[cfg(feature = "server")]
            Self::Stalled(_) | Self::Unresponsive => io::ErrorKind::TimedOut,
            Self::Io(error) => error.kind(),
        }
    }
}

impl From<ReadFailure> for io::Error {
    fn from(failure: ReadFailure) -> Self {
        match failure {
            ReadFailure::Io(error) => error,
            other => Self::new(other.kind(), other),
        }
    }
}

/// Reads a whole regular file of at most `limit` bytes. Never waits for a writer, and not for ever
/// for a file system that stalls.
///
/// # Errors
/// Anything but a regular file, a file that is larger, or one that the operating system can't read.
#[cfg(feature = "server")]
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    let read = || {
        let (file, bytes) = TimedFile::open(path, limit)?;
        read_to_end(file, bytes, limit)
    };
    read().map_err(|reason| ReadError {
        path: path.to_owned(),
        reason,
    })
}

/// Opens a regular file, and returns its size in bytes as well. Never waits for a writer.
///
/// # Errors
/// Anything but a regular file, or what the operating system reports.
#[cfg(feature = "server")]
pub fn open_regular(path: &Path) -> Result<(File, u64), ReadFailure> {
    // Looked at before it is opened, since opening a device can have an effect, and after, since
    // another file may have taken its place.
    let found = std::fs::metadata(path).map_err(ReadFailure::Io)?;
    check_regular(found.file_type())?;
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_NONBLOCK | libc::O_NOCTTY,
    );
    let file = options.open(path).map_err(ReadFailure::Io)?;
    let opened = file.metadata().map_err(ReadFailure::Io)?;
    check_regular(opened.file_type())?;
    Ok((file, opened.len()))
}

/// Reads a whole file of at most `limit` bytes on a thread for blocking work, for callers in
/// asynchronous code. It may be a pipe, such as a shell makes for `<(command)`.
///
/// # Errors
/// A directory, a file that is larger, or one that the operating system can't read.
pub async fn read_limited_async(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    let path = path.to_owned();
    let reading = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || read(&path, limit))
    };
    let read = reading
        .await
        .unwrap_or_else(|error| Err(ReadFailure::Io(io::Error::other(error))));
    read.map_err(|reason| ReadError { path, reason })
}

/// Reads at most `limit` bytes to the end of `reader`, which is expected to hold `expected` bytes.
///
/// # Errors
/// More than `limit` bytes, or what the reader reports.
pub fn read_to_end(reader: impl Read, expected: u64, limit: u64) -> Result<Vec<u8>, ReadFailure> {
    let mut content = Vec::new();
    // Reserving it at once saves the vector from growing. The byte more is for the attempt to read
    // beyond the end, which notices a file that is larger than its metadata say.
    let capacity = usize::try_from(expected.min(limit)).unwrap_or(usize::MAX);
    content
        .try_reserve_exact(capacity.saturating_add(1))
        .map_err(|error| ReadFailure::Io(io::Error::other(error)))?;

    reader
        .take(limit + 1)
        .read_to_end(&mut content)
        .map_err(ReadFailure::Io)?;
    if content.len() as u64 > limit {
        return Err(ReadFailure::TooLarge { limit });
    }
    Ok(content)
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ReadFailure> {
    let file = File::open(path).map_err(ReadFailure::Io)?;
    // The size is only known for plain files; devices and pipes have 0.
    let metadata = file.metadata().map_err(ReadFailure::Io)?;
    if metadata.is_dir() {
        return Err(ReadFailure::Directory);
    }
    if metadata.len() > limit {
        return Err(ReadFailure::TooLarge { limit });
    }
    read_to_end(file, metadata.len(), limit)
}

#[cfg(feature = "server")]
fn check_regular(found: FileType) -> Result<(), ReadFailure> {
    if found.is_file() {
        return Ok(());
    }
    if found.is_dir() {
        return Err(ReadFailure::Directory);
    }
    Err(ReadFailure::NotRegular(kind_of(found)))
}

#[cfg(all(feature = "server", unix))]
fn kind_of(found: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;

    if found.is_fifo() {
        "a named pipe"
    } else if found.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(all(feature = "server", not(unix)))]
fn kind_of(_: FileType) -> &'static str {
    "something else"
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".into(),
        io::ErrorKind::PermissionDenied => "no permission to read the file".into(),
        _ => format!("cannot be read: {error}"),
    }
}

/// A number of bytes in the largest unit that divides it.
fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in units {
        if bytes > 0 && bytes.trailing_zeros() >= shift {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_beyond_the_limit_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "four").unwrap();
        assert_eq!(read_limited(file.path(), 4).unwrap(), b"four");

        let error = read_limited(file.path(), 3).unwrap_err();
        assert!(matches!(error.reason, ReadFailure::TooLarge { limit: 3 }));
        let text = error.to_string();
        assert!(text.contains("larger than 3 bytes"), "{text}");
        assert!(text.starts_with(&*file.path().to_string_lossy()), "{text}");
    }

    #[test]
    fn images_are_told_by_their_names() {
        for image in [
            "a.jpg", "b.JPEG", "c.d.Tiff", "e.pam", "f.avif", "g.QOI", "h.ico", "i.tga",
        ] {
            assert!(has_image_name(Path::new(image)), "{image}");
        }
        for other in [
            "Thumbs.db",
            "desktop.ini",
            ".DS_Store",
            "._a.jpg",
            "a.jpg.xml",
            "jpg",
            "",
        ] {
            assert!(!has_image_name(Path::new(other)), "{other}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_regular_files_are_read_and_none_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let pipe = path("pipe");
        let made = std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap();
        assert!(made.success());
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        std::os::unix::fs::symlink(&pipe, path("link")).unwrap();

        for (file, words) in [
            (pipe, "a named pipe"),
            (path("link"), "a named pipe"),
            (path("socket"), "a socket"),
            ("/dev/zero".into(), "a device"),
        ] {
            let error = read_limited(&file, 1 << 20).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_device_without_an_end_is_refused() {
        let zeros = read_limited_async(Path::new("/dev/zero"), 1 << 20);
        let error = zeros.await.unwrap_err();
        assert!(error.to_string().contains("larger than 1 MiB"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_sparse_file_is_refused_by_its_size() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(3 << 30).unwrap();
        let error = read_limited(file.path(), LARGEST_MODEL).unwrap_err();
        assert!(error.to_string().contains("larger than 2 GiB"), "{error}");
    }

    #[tokio::test]
    async fn missing_files_and_directories_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("none");
        let error = read_limited_async(&missing, 1).await.unwrap_err();
        assert_eq!(error.reason.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().ends_with("none: no such file"), "{error}");

        let error = read_limited(folder.path(), 1).unwrap_err();
        assert!(matches!(error.reason, ReadFailure::Directory), "{error}");
    }
}
