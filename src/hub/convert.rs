//! Converts a checkpoint to an ONNX file in the cache, once.

use std::path::{Path, PathBuf};

use prost::Message;

use super::{Found, HubError, write};
use crate::{
    files::{LARGEST_CHECKPOINT, read_limited},
    model::{
        self,
        checkpoint::{Checkpoint, ResNetOptions},
    },
};

/// The ONNX file of a checkpoint, with the settings that belong to it. It is named after the
/// checkpoint and this program's version, and made anew by a newer program.
pub(super) fn convert(found: &Found, folder: &Path) -> Result<PathBuf, HubError> {
    let name = if found.path.starts_with(folder) {
        found.path.strip_prefix(folder).unwrap_or(&found.path)
    } else {
        Path::new(found.path.file_name().unwrap_or_default())
    };
    let name = name.with_extension(concat!(env!("CARGO_PKG_VERSION"), ".onnx"));
    let onnx = folder.join(name);
    let program = std::env::current_exe();
    let is_current = program.is_ok_and(|program| is_newer(&onnx, &program));
    if is_current && is_newer(&onnx, &found.path) {
        return Ok(onnx);
    }

    let failed = |reason: String| HubError::Model {
        file: found.path.display().to_string(),
        reason,
    };
    let content = read_limited(&found.path, LARGEST_CHECKPOINT)
        .map_err(|error| failed(error.reason.to_string()))?;
    let network = Checkpoint::from_bytes(content.into())
        .and_then(|checkpoint| checkpoint.into_resnet(&ResNetOptions::default()))
        .map_err(|error| failed(error.to_string()))?;
    let mut proto = network.onnx;
    model::complete(&mut proto, &found.overrides, "model", Some(&found.path))
        .map_err(|error| failed(error.to_string()))?;
    let parent = onnx.parent().unwrap_or(folder);
    std::fs::create_dir_all(parent).map_err(|source| super::fetch::disk(parent, source))?;
    write(&onnx, &proto.encode_to_vec())?;
    Ok(onnx)
}

/// Whether the file is there and was written after `source`.
fn is_newer(path: &Path, source: &Path) -> bool {
    let written = |path: &Path| {
        path.metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
    };
    let (Some(file), Some(source)) = (written(path), written(source)) else {
        return false;
    };
    file >= source
}
