//! Reads the format that `torch.save` wrote before PyTorch 1.6: several pickles, then the storages.

use std::{collections::HashMap, rc::Rc};

use bytes::Bytes;

use super::{
    Checkpoint, CheckpointError, PICKLE,
    error::{damaged, unsupported},
    pickle::{Pickle, Value},
    tensor::Elem,
    values,
};

/// PyTorch's magic number, 0x1950a86a20f9469cfc6c, as pickled: LONG1, 10 bytes, little-endian.
const MAGIC: [u8; 12] = [
    0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19,
];
/// The version of the format, which PyTorch never changed.
const PROTOCOL: i64 = 1001;

/// Whether `content` begins with a pickle of the magic number.
pub(super) fn is_legacy(content: &[u8]) -> bool {
    content.first() == Some(&PICKLE)
        && content[..content.len().min(32)]
            .windows(MAGIC.len())
            .any(|part| part == MAGIC)
}

pub(super) fn read(content: &Bytes) -> Result<Checkpoint, CheckpointError> {
    let mut rest = content.clone();
    let mut next = || {
        let pickle = Pickle::read(&rest)?;
        let _ = rest.split_to(pickle.len);
        Ok::<_, CheckpointError>(pickle)
    };
    let _magic = next()?;
    let protocol = next()?;
    let system = next()?;
    let data = next()?;
    let keys = next()?;

    if !matches!(protocol.get(protocol.root), Value::Int(PROTOCOL)) {
        return Err(unsupported(
            "was written by an unknown version of torch.save",
        ));
    }
    let little_endian = system
        .lookup(system.root, "little_endian")
        .map(|id| system.get(id));
    if matches!(little_endian, Some(Value::Bool(false))) {
        return Err(unsupported(
            "was saved on a big-endian machine; save it again on a little-endian one",
        ));
    }

    let storages = storages(&data, &keys, rest)?;
    values::read(&data, |storage| {
        let bytes = storages.get(&storage.key).cloned();
        bytes.ok_or_else(|| {
            damaged(format!(
                "the values of the storage {} are missing",
                storage.key
            ))
        })
    })
}

/// Reads the storages that follow the pickles, in the order of `keys`. Before each is the number of
/// its values in 8 bytes.
fn storages(
    data: &Pickle,
    keys: &Pickle,
    mut rest: Bytes,
) -> Result<HashMap<Rc<str>, Bytes>, CheckpointError> {
    let Value::List(ids) = keys.get(keys.root) else {
        return Err(damaged("the list of storages is missing"));
    };
    let mut storages = HashMap::new();
    for id in ids {
        let storage = keys.text(*id).and_then(|key| data.storages.get(key));
        let storage = storage.ok_or_else(|| damaged("it lists a storage that no tensor uses"))?;

        let cut = || damaged(format!("the file ends before the storage {}", storage.key));
        let len = rest
            .first_chunk::<8>()
            .map(|len| u64::from_le_bytes(*len))
            .ok_or_else(cut)?;
        if usize::try_from(len) != Ok(storage.len) {
            return Err(damaged(format!(
                "the storage {} should have {} values, but has {len}",
                storage.key, storage.len
            )));
        }

        let size = storage.len.checked_mul(storage.elem.map_or(1, Elem::size));
        let end = size
            .and_then(|size| size.checked_add(8))
            .filter(|end| *end <= rest.len())
            .ok_or_else(cut)?;
        storages.insert(Rc::clone(&storage.key), rest.split_to(end).slice(8..));
    }
    Ok(storages)
}
