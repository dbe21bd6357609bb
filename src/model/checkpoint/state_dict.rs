//! Finds the state dict in a pickle of `torch.save`: at the top, or within the dict that a training
//! script saved.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    Checkpoint, CheckpointError,
    error::{damaged, list, unsupported},
    pickle::{Id, Pickle, Storage, Value},
    tensor::{Elem, Tensor},
};

/// Keys under which training scripts save the state dict.
const KEYS: [&str; 8] = [
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "weights",
    "params",
];

/// Reads the state dict in `pickle`. `storage` returns the bytes of a storage.
///
/// # Errors
/// A pickle without a state dict; tensors that do not fit their storages; errors of `storage`.
pub(super) fn read(
    pickle: &Pickle,
    mut storage: impl FnMut(&Storage) -> Result<Bytes, CheckpointError>,
) -> Result<Checkpoint, CheckpointError> {
    let mut tensors = BTreeMap::new();
    let mut others = BTreeMap::new();
    for (name, id) in find(pickle)? {
        match pickle.get(id) {
            Value::Tensor(view) => {
                let bytes = part(&view.storage, storage(&view.storage)?)?;
                let tensor = Tensor::new(name, view.elem, view.layout.clone(), bytes)?;
                tensors.insert(name.to_owned(), tensor);
            }
            _ => {
                others.insert(name.to_owned(), pickle.describe(id));
            }
        }
    }
    Ok(Checkpoint { tensors, others })
}

/// The entries of the state dict.
fn find(pickle: &Pickle) -> Result<Vec<(&str, Id)>, CheckpointError> {
    let mut place = pickle.root;
    // Some scripts nest the state dict in a dict within a dict, but not deeper.
    for _ in 0..3 {
        if let Value::Object(name) = pickle.get(place) {
            return Err(unsupported(format!(
                "contains a whole Python object (made by `{name}`), which only its own code can \
                 read; save its weights instead: `torch.save(model.state_dict(), PATH)`"
            )));
        }
        let holds = |id: &Id| matches!(pickle.get(*id), Value::Dict(_) | Value::Object(_));
        match KEYS
            .iter()
            .find_map(|key| pickle.lookup(place, key).filter(holds))
        {
            Some(inner) => place = inner,
            None => break,
        }
    }
    let Value::Dict(entries) = pickle.get(place) else {
        return Err(unsupported(format!(
            "contains {}, not a state dict",
            pickle.describe(place)
        )));
    };

    let entries: Vec<_> = entries
        .iter()
        .filter_map(|(key, value)| Some((pickle.text(*key)?, *value)))
        .collect();
    if entries
        .iter()
        .any(|(_, value)| matches!(pickle.get(*value), Value::Tensor(_)))
    {
        return Ok(entries);
    }

    let keys: Vec<String> = entries.iter().map(|(key, _)| (*key).to_owned()).collect();
    if keys.is_empty() {
        return Err(unsupported("contains no tensors"));
    }
    Err(unsupported(format!(
        "contains no tensors, but {}; the weights should be under `state_dict` or `model`",
        list(&keys)
    )))
}

/// The part of `bytes` that the storage covers: it may be a view of the one that was saved.
fn part(storage: &Storage, bytes: Bytes) -> Result<Bytes, CheckpointError> {
    let Some((first, len)) = storage.part else {
        return Ok(bytes);
    };
    let size = storage.elem.map_or(1, Elem::size);
    let range = first
        .checked_mul(size)
        .zip(first.checked_add(len).and_then(|end| end.checked_mul(size)));
    match range {
        Some((start, end)) if start <= end && end <= bytes.len() => Ok(bytes.slice(start..end)),
        _ => Err(damaged(format!(
            "the storage {} is shorter than a view of it",
            storage.key
        ))),
    }
}
