//! Finding and reading the images that are named on the command line.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use tokio::task::spawn_blocking;
use tonic::{Code, Status};

use super::{CliError, output};
use crate::{
    client::{MAX_MESSAGE_BYTES, video::VideoError},
    files::{ReadFailure, has_image_name, read_limited_async, read_to_end},
};

/// Whether the path is `-`, which stands for standard input.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// The images that the arguments of a subcommand name.
#[derive(Debug, Default)]
pub struct Images {
    /// The files in the order of the arguments, those of a folder in the order of their paths.
    pub files: Vec<PathBuf>,
    /// Whether one of the arguments is a folder.
    pub has_folder: bool,
    /// The number of files in folders that are no images by their names.
    pub ignored: usize,
}

impl Images {
    /// Replaces each folder by the images in it, at any depth. Hidden files are left out.
    ///
    /// # Errors
    /// A folder that can't be read or holds no image files; standard input that is named twice.
    pub fn find(arguments: &[PathBuf]) -> Result<Self, CliError> {
        if arguments.iter().filter(|path| is_stdin(path)).count() > 1 {
            return Err(CliError::Usage(
                "standard input (-) can only be read once".into(),
            ));
        }

        let mut images = Self::default();
        for path in arguments {
            if is_stdin(path) || !path.is_dir() {
                images.files.push(path.clone());
                continue;
            }
            images.has_folder = true;
            let before = images.files.len();
            images.add_folder(path)?;
            if images.files.len() == before {
                let error = VideoError::NoImages(path.clone());
                return Err(CliError::Failed(error.to_string()));
            }
            images.files[before..].sort();
        }
        Ok(images)
    }

    fn add_folder(&mut self, root: &Path) -> Result<(), CliError> {
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            let failed = |error: io::Error| {
                CliError::Failed(format!("{}: cannot be read: {error}", folder.display()))
            };
            for entry in fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let path = entry.path();
                if entry.file_name().as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                // Links to folders are not followed, because they may form a cycle.
                if entry.file_type().map_err(failed)?.is_dir() {
                    folders.push(path);
                } else if !path.is_file() {
                    continue;
                } else if has_image_name(&path) {
                    self.files.push(path);
                } else {
                    self.ignored += 1;
                }
            }
        }
        Ok(())
    }
}

/// The name of an image for people.
pub fn name(path: &Path) -> String {
    if is_stdin(path) {
        "standard input".into()
    } else {
        output::escaped(&path.to_string_lossy()).into_owned()
    }
}

/// What is right instead, for a path that is a URL; `None` if it isn't one.
fn url_advice(path: &Path) -> Option<String> {
    let url = path.to_str()?;
    let (scheme, rest) = url.split_once("://")?;
    if scheme.is_empty() || !scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let quoted = output::quoted(url);
    Some(match scheme {
        "file" => format!("is a URL; write the path, {}", output::quoted(rest)),
        "http" | "https" | "ftp" => format!(
            "is a URL and no file; download it first, with `curl -O {quoted}`, or pipe it: `curl \
             -sS {quoted} | resnet18 classify -`"
        ),
        _ => "is a URL and no file; download it first".into(),
    })
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
        Err(reason) => {
            let code = code(&reason);
            let advice = url_advice(path).filter(|_| code == Code::NotFound);
            let message = advice.unwrap_or_else(|| reason.to_string());
            Err(Status::new(code, message))
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_replaced_by_their_images() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("b/c")).unwrap();
        fs::create_dir_all(at("empty")).unwrap();
        for name in ["b/2.jpg", "b/c/1.PNG", "a.jpg", "a.xml", ".hidden.jpg"] {
            fs::write(at(name), "").unwrap();
        }

        let images = Images::find(&["z.jpg".into(), root.path().into()]).unwrap();
        assert_eq!(
            images.files,
            ["z.jpg".into(), at("a.jpg"), at("b/2.jpg"), at("b/c/1.PNG")]
        );
        assert_eq!((images.has_folder, images.ignored), (true, 1));

        let error = Images::find(&[at("empty")]).unwrap_err().to_string();
        assert!(error.contains("holds no image files"), "{error}");
        assert!(Images::find(&["-".into(), "-".into()]).is_err());
    }

    #[test]
    fn urls_are_told_from_paths() {
        for (path, advice) in [
            (
                "https://host/a b.jpg",
                Some("curl -O 'https://host/a b.jpg'"),
            ),
            (
                "file:///photos/a.jpg",
                Some("write the path, /photos/a.jpg"),
            ),
            ("s3://bucket/a.jpg", Some("download it first")),
            ("photos/a.jpg", None),
            ("://a.jpg", None),
        ] {
            let found = url_advice(Path::new(path));
            assert_eq!(found.is_some(), advice.is_some(), "{path}");
            let found = found.unwrap_or_default();
            assert!(found.contains(advice.unwrap_or_default()), "{found}");
        }
    }
}
