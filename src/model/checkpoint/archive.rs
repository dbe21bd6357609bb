//! Reads the zip archive that `torch.save` and `torch.jit.save` write: a pickle, and a file for each
//! storage.

use std::{
    collections::HashMap,
    io::{Cursor, Read},
    rc::Rc,
};

use bytes::Bytes;
use zip::{CompressionMethod, ZipArchive, result::ZipError};

use super::{
    Checkpoint, CheckpointError,
    error::{damaged, unsupported},
    pickle::{Pickle, Storage},
    tensor::Elem,
    values,
};

/// Most times its own size that an archive may decompress to. Weights are hardly ever compressed
/// and do not compress well, so that a higher ratio is a decompression bomb.
const MAX_INFLATION: usize = 16;

pub(super) fn read(content: &Bytes) -> Result<Checkpoint, CheckpointError> {
    let mut archive = Archive::new(content)?;
    let pickle = Pickle::read(&archive.entry("data.pkl")?)?;
    let mut storages: HashMap<Rc<str>, Bytes> = HashMap::new();
    let read = values::read(&pickle, |storage| {
        if let Some(bytes) = storages.get(&storage.key) {
            return Ok(bytes.clone());
        }
        let bytes = archive.entry(&format!("data/{}", storage.key))?;
        check_len(storage, bytes.len())?;
        storages.insert(Rc::clone(&storage.key), bytes.clone());
        Ok(bytes)
    });
    match read {
        Err(CheckpointError::Unsupported(_)) if archive.is_script() => Err(unsupported(
            "is a TorchScript program without weights among its attributes: freezing it has made \
             them constants of its code; save the module before that",
        )),
        read => read,
    }
}

/// Checks that a storage has as many bytes as the pickle says.
fn check_len(storage: &Storage, bytes: usize) -> Result<(), CheckpointError> {
    let value_size = storage.elem.map_or(1, Elem::size);
    if storage.len.checked_mul(value_size) != Some(bytes) {
        return Err(damaged(format!(
            "the storage {} should have {} values, but there are {bytes} bytes",
            storage.key, storage.len
        )));
    }
    Ok(())
}

struct Archive {
    content: Bytes,
    zip: ZipArchive<Cursor<Bytes>>,
    /// The folder of all entries, with a slash at the end; empty if there is none.
    folder: String,
    /// Number of bytes that further compressed entries may decompress to.
    allowance: usize,
}

impl Archive {
    fn new(content: &Bytes) -> Result<Self, CheckpointError> {
        let zip = ZipArchive::new(Cursor::new(content.clone())).map_err(broken)?;
        let folder = zip
            .file_names()
            .find_map(|name| name.strip_suffix("data.pkl"))
            .map(str::to_owned);
        let Some(folder) = folder.filter(|folder| folder.is_empty() || folder.ends_with('/'))
        else {
            return Err(unsupported(
                "is a zip archive without a `data.pkl`, so PyTorch did not write it",
            ));
        };

        let allowance = content.len().saturating_mul(MAX_INFLATION);
        let mut archive = Self {
            content: content.clone(),
            zip,
            folder,
            allowance,
        };
        let byteorder = format!("{}byteorder", archive.folder);
        if archive.zip.index_for_name(&byteorder).is_some()
            && archive.entry("byteorder")?.trim_ascii() != b"little"
        {
            return Err(unsupported(
                "was saved on a big-endian machine; save it again on a little-endian one",
            ));
        }
        Ok(archive)
    }

    /// Whether it is a TorchScript program, with its code beside the tensors. That is never read.
    fn is_script(&self) -> bool {
        let constants = format!("{}constants.pkl", self.folder);
        self.zip.index_for_name(&constants).is_some()
    }

    /// An entry's content. If the entry is not compressed, it is a view of the file.
    fn entry(&mut self, name: &str) -> Result<Bytes, CheckpointError> {
        let name = format!("{}{name}", self.folder);
        let mut entry = self.zip.by_name(&name).map_err(|error| match error {
            ZipError::FileNotFound => damaged(format!("the archive has no `{name}`")),
            error => broken(error),
        })?;

        let cut = || damaged(format!("`{name}` reaches beyond the end of the file"));
        let size = usize::try_from(entry.size()).map_err(|_| cut())?;
        if entry.compression() == CompressionMethod::Stored {
            let start = entry
                .data_start()
                .and_then(|start| usize::try_from(start).ok())
                .ok_or_else(cut)?;
            let end = start
                .checked_add(size)
                .filter(|end| *end <= self.content.len())
                .ok_or_else(cut)?;
            let bytes = self.content.slice(start..end);
            if crc32fast::hash(&bytes) != entry.crc32() {
                return Err(damaged(format!("the checksum of `{name}` is wrong")));
            }
            return Ok(bytes);
        }

        self.allowance = self.allowance.checked_sub(size).ok_or_else(|| {
            damaged(format!(
                "`{name}` would become {size} bytes, far more than the file has"
            ))
        })?;
        // One byte more than announced, to notice an entry that is longer.
        let mut bytes = Vec::new();
        entry
            .by_ref()
            .take(size as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| damaged(format!("`{name}`: {error}")))?;
        if bytes.len() != size {
            return Err(damaged(format!(
                "`{name}` has {} bytes instead of {size}",
                bytes.len()
            )));
        }
        Ok(bytes.into())
    }
}

fn broken(error: ZipError) -> CheckpointError {
    damaged(format!("the archive is broken ({error})"))
}
