//! Finds the tensors in a pickle of `torch.save` or `torch.jit.save`, wherever they are: in dicts,
//! lists and tuples, and in the attributes of objects, which are read as data.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;

use super::{
    Checkpoint, CheckpointError,
    error::{damaged, list, unsupported},
    pickle::{Id, Pickle, Storage, Value},
    tensor::{Elem, Tensor},
    tensor_set::{Module, TensorSet},
};

/// Most containers that are looked into. A checkpoint with an optimizer has a few thousand.
const MAX_CONTAINERS: usize = 1 << 17;
/// Most tensors of a file.
const MAX_TENSORS: usize = 1 << 16;
/// Most entries that are remembered for error messages.
const MAX_OTHERS: usize = 1 << 12;
/// Deepest nesting that is looked into: modules within modules.
const MAX_DEPTH: usize = 32;
/// Longest name of a tensor with its path, in bytes; longer ones are no module's.
const MAX_NAME_LEN: usize = 512;
/// The attributes of modules that the network's computation depends on.
const ATTRIBUTES: [&str; 6] = [
    "stride",
    "padding",
    "dilation",
    "groups",
    "eps",
    "kernel_size",
];

/// Reads all tensors in `pickle`. `storage` returns the bytes of a storage.
///
/// # Errors
/// A pickle without tensors; tensors that do not fit their storages; errors of `storage`.
pub(super) fn read(
    pickle: &Pickle,
    storage: impl FnMut(&Storage) -> Result<Bytes, CheckpointError>,
) -> Result<Checkpoint, CheckpointError> {
    let mut reader = Reader {
        pickle,
        storage,
        sets: Vec::new(),
        seen: HashSet::new(),
        queue: VecDeque::new(),
        tensors: 0,
        others: 0,
    };
    reader.enqueue(pickle.root, Place::default())?;
    while let Some((id, place)) = reader.queue.pop_front() {
        reader.visit(id, place)?;
    }

    let mut sets = reader.sets;
    sets.retain(|set| !set.tensors.is_empty());
    if sets.is_empty() {
        return Err(no_tensors(pickle));
    }
    sets.iter_mut().for_each(TensorSet::apply_masks);
    Ok(Checkpoint { sets })
}

/// Where a container is.
#[derive(Clone, Default)]
struct Place {
    /// Its path in the file, with dots.
    path: String,
    /// The set that its tensors belong to, and its own name within that; `None` for a container that
    /// is not part of a module.
    within: Option<(usize, String)>,
    depth: usize,
}

impl Place {
    /// The place of the entry `key` of a container here.
    fn entry(&self, key: &str, within: Option<(usize, &str)>) -> Self {
        Self {
            path: joined(&self.path, key),
            within: within.map(|(set, name)| (set, joined(name, key))),
            depth: self.depth + 1,
        }
    }
}

struct Reader<'a, F> {
    pickle: &'a Pickle,
    storage: F,
    sets: Vec<TensorSet>,
    /// Containers that have been enqueued. Each is read at the first place where it is found, so that
    /// neither a container within itself nor one in many places takes long.
    seen: HashSet<Id>,
    queue: VecDeque<(Id, Place)>,
    tensors: usize,
    others: usize,
}

impl<F: FnMut(&Storage) -> Result<Bytes, CheckpointError>> Reader<'_, F> {
    fn enqueue(&mut self, id: Id, place: Place) -> Result<(), CheckpointError> {
        let container = matches!(
            self.pickle.get(id),
            Value::Dict(_) | Value::List(_) | Value::Tuple(_) | Value::Object(_)
        );
        if container
            && place.depth <= MAX_DEPTH
            && place.path.len() <= MAX_NAME_LEN
            && self.seen.insert(id)
        {
            if self.seen.len() > MAX_CONTAINERS {
                return Err(damaged(
                    "it has more entries than any checkpoint of weights",
                ));
            }
            self.queue.push_back((id, place));
        }
        Ok(())
    }

    fn visit(&mut self, id: Id, place: Place) -> Result<(), CheckpointError> {
        let pickle = self.pickle;
        match pickle.get(id) {
            Value::Dict(entries) => {
                let set = self.open(&place.path);
                for (key, value) in entries {
                    if let Some(key) = self.key(*key) {
                        self.entry(&key, *value, &place, (set, ""), false)?;
                    }
                }
            }
            Value::List(items) | Value::Tuple(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.enqueue(*item, place.entry(&index.to_string(), None))?;
                }
            }
            Value::Object(class) => {
                let Some(attributes) = pickle.attributes(id) else {
                    return Ok(());
                };
                let (set, name) = match &place.within {
                    Some((set, name)) => (*set, name.clone()),
                    None => (self.open(&place.path), String::new()),
                };
                self.object(class, attributes, &place, (set, &name))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads the attributes of an object, which is the module `name` of a set.
    fn object(
        &mut self,
        class: &str,
        attributes: Id,
        place: &Place,
        (set, name): (usize, &str),
    ) -> Result<(), CheckpointError> {
        let pickle = self.pickle;
        let class = class.rsplit('.').next().unwrap_or(class).to_owned();
        let numbers = ATTRIBUTES.iter().filter_map(|attribute| {
            let numbers = pickle.numbers(pickle.lookup(attributes, attribute)?);
            (!numbers.is_empty()).then(|| ((*attribute).to_owned(), numbers))
        });
        let module = Module {
            class,
            numbers: numbers.collect(),
        };
        self.sets[set].modules.insert(name.to_owned(), module);

        // `torch.nn.Module` keeps its tensors and modules in dicts of their own, and a TorchScript
        // program, as all other objects, among its attributes.
        let parts =
            ["_parameters", "_buffers", "_modules"].map(|part| pickle.lookup(attributes, part));
        let dicts: Vec<Id> = match parts {
            [Some(_), _, _] | [_, _, Some(_)] => parts.into_iter().flatten().collect(),
            _ => vec![attributes],
        };
        for dict in dicts {
            let Value::Dict(entries) = pickle.get(dict) else {
                continue;
            };
            for (key, value) in entries {
                if let Some(key) = pickle.text(*key) {
                    self.entry(key, *value, place, (set, name), true)?;
                }
            }
        }
        Ok(())
    }

    /// Reads the entry `key` of a container, which is the module `name` of a set. An object there is
    /// a module of the same set if the container is one too.
    fn entry(
        &mut self,
        key: &str,
        value: Id,
        place: &Place,
        (set, name): (usize, &str),
        module: bool,
    ) -> Result<(), CheckpointError> {
        let full = joined(name, key);
        if full.len() > MAX_NAME_LEN {
            return Ok(());
        }
        let pickle = self.pickle;
        if let Value::Tensor(view) = pickle.get(value) {
            self.tensors += 1;
            if self.tensors > MAX_TENSORS {
                return Err(damaged(
                    "it has more tensors than any checkpoint of weights",
                ));
            }
            let bytes = part(&view.storage, (self.storage)(&view.storage)?)?;
            let tensor = Tensor::new(&full, view.elem, view.layout.clone(), bytes)?;
            self.sets[set].tensors.insert(full, tensor);
            return Ok(());
        }

        if !module && self.others < MAX_OTHERS {
            self.others += 1;
            self.sets[set].others.insert(full, pickle.describe(value));
        }
        let is_object = matches!(pickle.get(value), Value::Object(_));
        self.enqueue(
            value,
            place.entry(key, (module && is_object).then_some((set, name))),
        )
    }

    /// A new set.
    fn open(&mut self, path: &str) -> usize {
        self.sets.push(TensorSet {
            path: path.to_owned(),
            ..TensorSet::default()
        });
        self.sets.len() - 1
    }

    /// A key as a part of a path.
    fn key(&self, id: Id) -> Option<String> {
        match self.pickle.get(id) {
            Value::Text(text) => Some(text.to_string()),
            Value::Int(number) => Some(number.to_string()),
            _ => None,
        }
    }
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// Why a pickle without tensors cannot be imported.
fn no_tensors(pickle: &Pickle) -> CheckpointError {
    let entries = match pickle.get(pickle.root) {
        Value::Dict(entries) => &entries[..],
        _ => &[],
    };
    let values = entries.iter().map(|(_, value)| *value);
    for id in [pickle.root].into_iter().chain(values) {
        if let Value::Object(name) = pickle.get(id) {
            return unsupported(format!(
                "contains a whole Python object (made by `{name}`) without tensors in its \
                 attributes; save its weights instead: `torch.save(model.state_dict(), PATH)`"
            ));
        }
    }

    if !matches!(pickle.get(pickle.root), Value::Dict(_)) {
        return unsupported(format!(
            "contains {}, not a state dict",
            pickle.describe(pickle.root)
        ));
    }
    let keys: Vec<String> = entries
        .iter()
        .filter_map(|(key, _)| pickle.text(*key).map(str::to_owned))
        .collect();
    if keys.is_empty() {
        return unsupported("contains no tensors");
    }
    unsupported(format!("contains no tensors, but {}", list(&keys)))
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
