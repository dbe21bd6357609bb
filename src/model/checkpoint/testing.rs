//! Writes small checkpoints in every format for tests.

use std::io::{Cursor, Write};

use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// A tensor to be saved: a view of the storage with the index `storage`.
#[derive(Clone)]
pub(super) struct Saved {
    pub(super) name: String,
    /// The class of its storage, such as `FloatStorage`.
    pub(super) class: &'static str,
    pub(super) storage: usize,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// Two tensors of float32: a transposed one, and one that shares its storage.
pub(super) fn small() -> (Vec<Saved>, Vec<Vec<f32>>) {
    let saved = |name: &str, offset, shape: &[usize], strides: &[usize]| Saved {
        name: name.into(),
        class: "FloatStorage",
        storage: 0,
        offset,
        shape: shape.into(),
        strides: strides.into(),
    };
    let tensors = vec![
        saved("conv.weight", 0, &[3, 2], &[1, 3]),
        saved("conv.bias", 4, &[3], &[1]),
    ];
    (tensors, vec![vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
}

/// What [`small`] holds, by name.
pub(super) const SMALL: [(&str, &[f64]); 2] = [
    ("conv.bias", &[4.0, 5.0, 6.0]),
    ("conv.weight", &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]),
];

pub(super) fn text(text: &str) -> Vec<u8> {
    [
        b"X",
        &(text.len() as u32).to_le_bytes()[..],
        text.as_bytes(),
    ]
    .concat()
}

pub(super) fn number(number: usize) -> Vec<u8> {
    [b"J", &(number as u32).to_le_bytes()[..]].concat()
}

pub(super) fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &items.concat()[..], b"t"].concat()
}

pub(super) fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into()
}

pub(super) fn reduce(callee: Vec<u8>, arguments: &[Vec<u8>]) -> Vec<u8> {
    [callee, tuple(arguments), b"R".into()].concat()
}

pub(super) fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries: Vec<u8> = entries
        .iter()
        .flat_map(|(key, value)| [text(key), value.clone()].concat())
        .collect();
    [b"}(", &entries[..], b"u"].concat()
}

pub(super) fn pickle(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02", value, b"."].concat()
}

/// A tensor as PyTorch pickles it. `part` is appended to the persistent id of its storage, as in
/// the older format.
pub(super) fn tensor(saved: &Saved, storages: &[Vec<f32>], part: &[Vec<u8>]) -> Vec<u8> {
    let numbers =
        |numbers: &[usize]| tuple(&numbers.iter().map(|n| number(*n)).collect::<Vec<_>>());
    // A number of 64 bits has the size of two values.
    let values = if saved.class == "LongStorage" { 2 } else { 1 };
    let id = [
        text("storage"),
        global("torch", saved.class),
        text(&saved.storage.to_string()),
        text("cpu"),
        number(storages[saved.storage].len() / values),
    ];
    let storage = [tuple(&[&id, part].concat()), b"Q".into()].concat();
    let hooks = reduce(global("collections", "OrderedDict"), &[]);
    let arguments = [
        storage,
        number(saved.offset),
        numbers(&saved.shape),
        numbers(&saved.strides),
        b"\x89".into(),
        hooks,
    ];
    reduce(global("torch._utils", "_rebuild_tensor_v2"), &arguments)
}

/// A state dict as PyTorch pickles it; for `part` see [`tensor`].
pub(super) fn state_dict(tensors: &[Saved], storages: &[Vec<f32>], part: &[Vec<u8>]) -> Vec<u8> {
    let entries: Vec<_> = tensors
        .iter()
        .map(|saved| (saved.name.as_str(), tensor(saved, storages, part)))
        .collect();
    dict(&entries)
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// A zip archive of `files`, in the folder `archive`.
pub(super) fn archive(files: &[(&str, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(
            format!("archive/{name}"),
            SimpleFileOptions::default().compression_method(method),
        )
        .unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A file as `torch.save` writes it since PyTorch 1.6. `value` is the pickled argument.
pub(super) fn zip_of(value: &[u8], storages: &[Vec<f32>], method: CompressionMethod) -> Vec<u8> {
    let names: Vec<String> = (0..storages.len())
        .map(|number| format!("data/{number}"))
        .collect();
    let mut files = vec![
        ("data.pkl", pickle(value)),
        ("byteorder", b"little".into()),
        ("version", b"3\n".into()),
    ];
    files.extend(
        names
            .iter()
            .map(String::as_str)
            .zip(storages.iter().map(|values| bytes(values))),
    );
    archive(&files, method)
}

/// A file as `torch.save` wrote it before PyTorch 1.6.
pub(super) fn legacy_of(value: &[u8], storages: &[Vec<f32>]) -> Vec<u8> {
    let magic = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
    let system = dict(&[
        ("protocol_version", number(1001)),
        ("little_endian", b"\x88".into()),
    ]);
    let keys: Vec<u8> = (0..storages.len())
        .flat_map(|number| text(&number.to_string()))
        .collect();
    let keys = [b"](", &keys[..], b"e"].concat();
    let pickles = [magic, &number(1001)[..], &system, value, &keys]
        .map(pickle)
        .concat();
    let storages = storages
        .iter()
        .flat_map(|values| [values.len().to_le_bytes().to_vec(), bytes(values)].concat());
    pickles.into_iter().chain(storages).collect()
}

/// A safetensors file of a header and the values behind it.
pub(super) fn safetensors_of(header: &serde_json::Value, values: &[f32]) -> Vec<u8> {
    let header = header.to_string();
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        &bytes(values),
    ]
    .concat()
}

/// [`small`] in every format.
pub(super) fn every_format() -> [(&'static str, Vec<u8>); 4] {
    let (tensors, storages) = small();
    let header = serde_json::json!({
        "__metadata__": { "format": "pt" },
        "conv.weight": { "dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24] },
        "conv.bias": { "dtype": "F32", "shape": [3], "data_offsets": [24, 36] },
    });
    let value = state_dict(&tensors, &storages, &[]);
    let values = [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 4.0, 5.0, 6.0];
    [
        ("zip", zip_of(&value, &storages, CompressionMethod::Stored)),
        (
            "deflated zip",
            zip_of(&value, &storages, CompressionMethod::Deflated),
        ),
        (
            "legacy",
            legacy_of(&state_dict(&tensors, &storages, &[b"N".into()]), &storages),
        ),
        ("safetensors", safetensors_of(&header, &values)),
    ]
}
