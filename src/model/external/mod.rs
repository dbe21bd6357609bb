//! Weights in files of their own beside the model, as PyTorch writes them by default.
//!
//! A tensor names its file, an offset and a length. The file must lie in the model's folder, or where
//! Hugging Face's cache keeps what that folder links to: what a model names is never read from
//! anywhere else. The names are found without decoding the model, so that a folder that is watched
//! costs little.

mod fill;
mod scan;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{BufReader, Cursor},
    path::{Component, Path, PathBuf},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use self::{
    fill::fill,
    scan::{MOST_FILES, names},
};
use super::{ModelError, decode, onnx::ModelProto};
use crate::{
    cache::hex,
    files::{self, ReadFailure},
};

/// Decodes the model whose file holds `onnx`, with the weights that lie beside the file. Returns the
/// SHA-256 of all of its files as well, in hexadecimal digits.
///
/// # Errors
/// As for [`decode`], and weights that are not in the model's folder or don't fit their tensors.
pub fn decode_file(onnx: &Bytes, path: &Path) -> Result<(ModelProto, String), ModelError> {
    let mut model = decode(onnx)?;
    let files = DataFiles::read(onnx, path, files::LARGEST_MODEL)?;
    let sha256 = combined(hex(&Sha256::digest(onnx)), &files.sha256);
    fill(&mut model, &files.contents, files::LARGEST_MODEL)?;
    Ok((model, sha256))
}

/// One SHA-256 for the model's file and its files of weights, each with its name; without such files
/// that of the model's file.
pub(crate) fn combined(model: String, weights: &[(String, String)]) -> String {
    if weights.is_empty() {
        return model;
    }
    let mut all = Sha256::new();
    all.update(model);
    for (location, sha256) in weights {
        all.update(format!("\n{}\n{location}\n{sha256}", location.len()));
    }
    hex(&all.finalize())
}

/// The files of weights that the model's file names, in a fixed order. A file that can't be read
/// names none: loading it says why.
pub(crate) fn locations(model: &Path) -> BTreeSet<String> {
    let Ok((file, bytes)) = files::open_regular(model) else {
        return BTreeSet::new();
    };
    if bytes > files::LARGEST_MODEL {
        return BTreeSet::new();
    }
    names(BufReader::<File>::new(file), bytes)
}

/// Where the file `location` of the model's weights should be, if that is in its folder by name.
///
/// # Errors
/// An absolute path, or one that leaves the folder.
pub(crate) fn weight_file(model: &Path, location: &str) -> Result<PathBuf, ModelError> {
    let relative = Path::new(location);
    let mut components = relative.components();
    let is_plain = components.all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if relative.file_name().is_none() || !is_plain || location.contains(['\\', '\0']) {
        return Err(refuse(
            location,
            "is not a file's name within the model's folder, and nothing else is read",
        ));
    }
    Ok(folder_of(model).join(relative))
}

/// The real path of the file `location` of the model's weights.
///
/// # Errors
/// A file that is missing or, by its name or by links, outside the model's folder and its part of
/// Hugging Face's cache.
pub(crate) fn find(model: &Path, location: &str) -> Result<PathBuf, ModelError> {
    let path = weight_file(model, location)?;
    let real = |path: &Path| {
        fs::canonicalize(path).map_err(|error| {
            let reason = ReadFailure::Io(error).to_string();
            refuse(location, &format!("is missing beside the model: {reason}"))
        })
    };
    let path = real(&path)?;
    let folder = real(folder_of(model))?;
    if !path.starts_with(&folder) && !is_blob_of(&folder, &path) {
        return Err(refuse(
            location,
            "is a link that leaves the model's folder, and nothing else is read",
        ));
    }
    Ok(path)
}

/// Whether a file is where Hugging Face's cache keeps what the snapshot in `folder` links to. A
/// snapshot is `models--OWNER--NAME/snapshots/REVISION`; beside `snapshots`, the folder `blobs` holds
/// the files of all revisions, each named after its hash.
fn is_blob_of(folder: &Path, file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str());
    let is_hash = name.is_some_and(|name| {
        matches!(name.len(), 40 | 64) && name.bytes().all(|digit| digit.is_ascii_hexdigit())
    });
    let entry = folder.ancestors().find_map(|snapshot| {
        let snapshots = snapshot.parent()?;
        let entry = snapshots.parent()?;
        let is_entry = entry.file_name()?.to_str()?.starts_with("models--");
        (is_entry && snapshots.file_name()? == "snapshots").then_some(entry)
    });
    is_hash && entry.is_some_and(|entry| file.parent() == Some(&entry.join("blobs")))
}

fn folder_of(model: &Path) -> &Path {
    model
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn refuse(location: &str, reason: &str) -> ModelError {
    ModelError::DataFile {
        location: location.to_owned(),
        reason: reason.to_owned(),
    }
}

/// The contents of a model's files of weights.
struct DataFiles {
    /// By location.
    contents: HashMap<String, Bytes>,
    /// Each location with its content's SHA-256, in a fixed order.
    sha256: Vec<(String, String)>,
}

impl DataFiles {
    /// Reads the files that the model `onnx` names, each once. Together with it they have at most
    /// `limit` bytes.
    fn read(onnx: &Bytes, path: &Path, limit: u64) -> Result<Self, ModelError> {
        let locations = names(Cursor::new(onnx), onnx.len() as u64);
        if locations.len() > MOST_FILES {
            return Err(ModelError::Bounds(format!(
                "keeps its weights in more than {MOST_FILES} files, the most that are read"
            )));
        }

        let mut left = limit.saturating_sub(onnx.len() as u64);
        let mut known: HashMap<PathBuf, (Bytes, String)> = HashMap::new();
        let mut files = Self {
            contents: HashMap::new(),
            sha256: Vec::new(),
        };
        for location in locations {
            let path = find(path, &location)?;
            let (content, sha256) = match known.get(&path) {
                Some(known) => known.clone(),
                None => {
                    let content: Bytes = read(&path, left)
                        .map_err(|reason| refuse(&location, &reason))?
                        .into();
                    left -= content.len() as u64;
                    let read = (content.clone(), hex(&Sha256::digest(&content)));
                    known.insert(path, read.clone());
                    read
                }
            };
            files.sha256.push((location.clone(), sha256));
            files.contents.insert(location, content);
        }
        Ok(files)
    }
}

fn read(path: &Path, left: u64) -> Result<Vec<u8>, String> {
    files::read_limited(path, left).map_err(|error| match error.reason {
        ReadFailure::TooLarge { .. } => format!(
            "makes the model larger than {} GiB altogether, the most that is read",
            files::LARGEST_MODEL >> 30
        ),
        reason => reason.to_string(),
    })
}
