//! Weights in files of their own beside the model, as PyTorch writes them by default.
//!
//! A tensor names its file, an offset and a length. The file must lie in the model's folder, or where
//! Hugging Face's cache keeps what that folder links to: what a model names is never read from
//! anywhere else. The names are found without decoding the model, so
//! that a folder that is watched costs little.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{BufReader, Cursor, Read, Seek},
    path::{Component, Path, PathBuf},
};

use bytes::Bytes;
use prost::Message as _;
use sha2::{Digest, Sha256};

use super::{
    ModelError, decode, error,
    onnx::{
        AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto,
        StringStringEntryProto, TensorProto,
        tensor_proto::{DataLocation, DataType},
    },
    tensor,
    wire::{MOST_FIELDS, MOST_MESSAGES, Message},
};
use crate::{
    cache::hex,
    files::{self, ReadFailure},
};

/// The most files of weights that a model may have.
const MOST_FILES: usize = 4096;
/// The most messages within each other that are looked into; decoding refuses as many.
const MOST_WITHIN: usize = 128;
/// The longest entry of a tensor's `external_data` that is read, in bytes.
const LONGEST_ENTRY: u64 = 8 << 10;

/// Decodes the model whose file holds `onnx`, with the weights that lie beside the file. Returns the
/// SHA-256 of all of its files as well, in hexadecimal digits.
///
/// # Errors
/// As for [`decode`], and weights that are not in the model's folder or don't fit their tensors.
pub fn decode_file(onnx: &Bytes, path: &Path) -> Result<(ModelProto, String), ModelError> {
    let mut model = decode(onnx)?;
    let files = DataFiles::read(onnx, path, files::LARGEST_MODEL)?;
    let sha256 = combined(hex(&Sha256::digest(onnx)), &files.sha256);
    files.fill(&mut model)?;
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
    Scan::of(BufReader::<File>::new(file), bytes)
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
    /// The most bytes that all tensors together may have.
    limit: u64,
}

impl DataFiles {
    /// Reads the files that the model `onnx` names, each once. Together with it they have at most
    /// `limit` bytes.
    fn read(onnx: &Bytes, path: &Path, limit: u64) -> Result<Self, ModelError> {
        let names = Scan::of(Cursor::new(onnx), onnx.len() as u64);
        if names.len() > MOST_FILES {
            return Err(ModelError::Bounds(format!(
                "keeps its weights in more than {MOST_FILES} files, the most that are read"
            )));
        }

        let mut left = limit.saturating_sub(onnx.len() as u64);
        let mut known: HashMap<PathBuf, (Bytes, String)> = HashMap::new();
        let mut files = Self {
            contents: HashMap::new(),
            sha256: Vec::new(),
            limit,
        };
        for location in names {
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

    /// Gives the model's tensors the values that are in these files. Nothing is copied.
    fn fill(self, model: &mut ModelProto) -> Result<(), ModelError> {
        let mut filling = Filling {
            files: &self,
            bytes: 0,
        };
        for function in &mut model.functions {
            let defaults = function.attribute_proto.iter_mut();
            for attribute in defaults {
                filling.attribute(attribute)?;
            }
            filling.nodes(&mut function.node)?;
        }
        match &mut model.graph {
            Some(graph) => filling.graph(graph),
            None => Ok(()),
        }
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

/// Visits all tensors of a model.
struct Filling<'a> {
    files: &'a DataFiles,
    /// The bytes of the tensors so far.
    bytes: u64,
}

impl Filling<'_> {
    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), ModelError> {
        for tensor in &mut graph.initializer {
            self.tensor(tensor)?;
        }
        for sparse in &mut graph.sparse_initializer {
            self.sparse(sparse)?;
        }
        self.nodes(&mut graph.node)
    }

    fn nodes(&mut self, nodes: &mut [NodeProto]) -> Result<(), ModelError> {
        for attribute in nodes.iter_mut().flat_map(|node| &mut node.attribute) {
            self.attribute(attribute)?;
        }
        Ok(())
    }

    fn attribute(&mut self, attribute: &mut AttributeProto) -> Result<(), ModelError> {
        for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors) {
            self.tensor(tensor)?;
        }
        let sparse = attribute.sparse_tensor.iter_mut();
        for sparse in sparse.chain(&mut attribute.sparse_tensors) {
            self.sparse(sparse)?;
        }
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            self.graph(graph)?;
        }
        Ok(())
    }

    fn sparse(&mut self, sparse: &mut SparseTensorProto) -> Result<(), ModelError> {
        for tensor in sparse.values.iter_mut().chain(&mut sparse.indices) {
            self.tensor(tensor)?;
        }
        Ok(())
    }

    fn tensor(&mut self, tensor: &mut TensorProto) -> Result<(), ModelError> {
        if tensor.data_location() != DataLocation::External {
            return Ok(());
        }
        let wrong = |reason: String| Err(error::tensor(tensor.name(), reason));
        let Some(location) = entry(tensor, "location") else {
            return wrong("is stored in another file and does not name it".into());
        };
        let Some(content) = self.files.contents.get(location) else {
            return wrong(format!("is stored in `{location}` in an unusual way"));
        };
        let (Some(offset), Some(length)) = (number(tensor, "offset"), number(tensor, "length"))
        else {
            return wrong(format!(
                "its offset or its length in `{location}` is not a number of bytes"
            ));
        };

        let size = size(tensor)?;
        if let Some(length) = length.filter(|&length| length != size) {
            let elem = tensor::elem(tensor).as_str_name().to_ascii_lowercase();
            return wrong(format!(
                "has {length} bytes in `{location}`, but its shape {:?} of {elem} takes {size}",
                tensor.dims
            ));
        }
        let offset = offset.unwrap_or(0);
        let end = offset.checked_add(size);
        let Some(end) = end.filter(|&end| end <= content.len() as u64) else {
            return wrong(format!(
                "needs {size} bytes from byte {offset} of `{location}` on, but the file has {}",
                content.len()
            ));
        };
        // Tensors may share their bytes, and each is written on its own for an engine.
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.files.limit {
            return Err(ModelError::Bounds(format!(
                "has tensors that overlap in their files and together take more than {} bytes, \
                 the most that is read",
                self.files.limit
            )));
        }

        // Both are at most the length of a vector.
        let values = content.slice(offset as usize..end as usize);
        *tensor = TensorProto {
            dims: std::mem::take(&mut tensor.dims),
            data_type: tensor.data_type,
            name: tensor.name.take(),
            doc_string: tensor.doc_string.take(),
            metadata_props: std::mem::take(&mut tensor.metadata_props),
            raw_data: Some(values),
            ..Default::default()
        };
        Ok(())
    }
}

fn entry<'a>(tensor: &'a TensorProto, key: &str) -> Option<&'a str> {
    let mut entries = tensor.external_data.iter();
    entries
        .find(|entry| entry.key() == key)
        .map(|entry| entry.value())
}

/// A number among the tensor's entries: `Some(None)` if it is absent, `None` if it is none.
fn number(tensor: &TensorProto, key: &str) -> Option<Option<u64>> {
    match entry(tensor, key) {
        None => Some(None),
        Some(text) => text.trim().parse().ok().map(Some),
    }
}

/// The bytes that the tensor's values take by its shape and type.
fn size(tensor: &TensorProto) -> Result<u64, ModelError> {
    let values = tensor::len(tensor)? as u64;
    let bits = match tensor::elem(tensor) {
        DataType::Uint2 | DataType::Int2 => 2,
        DataType::Uint4 | DataType::Int4 | DataType::Float4e2m1 => 4,
        DataType::Uint8
        | DataType::Int8
        | DataType::Bool
        | DataType::Float8e4m3fn
        | DataType::Float8e4m3fnuz
        | DataType::Float8e5m2
        | DataType::Float8e5m2fnuz
        | DataType::Float8e8m0 => 8,
        DataType::Uint16 | DataType::Int16 | DataType::Float16 | DataType::Bfloat16 => 16,
        DataType::Uint32 | DataType::Int32 | DataType::Float => 32,
        DataType::Uint64 | DataType::Int64 | DataType::Double | DataType::Complex64 => 64,
        DataType::Complex128 => 128,
        elem => {
            let elem = elem.as_str_name().to_ascii_lowercase();
            let reason = format!("has the type {elem}, which can't be stored in another file");
            return Err(error::tensor(tensor.name(), reason));
        }
    };
    values
        .checked_mul(bits)
        .map(|bits| bits.div_ceil(8))
        .ok_or_else(|| {
            let reason = format!("the shape {:?} is impossible", tensor.dims);
            error::tensor(tensor.name(), reason)
        })
}

/// Goes through a model's file for the names of its files of weights, and skips everything else.
struct Scan<R> {
    reader: R,
    at: u64,
    found: BTreeSet<String>,
}

/// A message that has begun.
struct Open {
    message: Message,
    /// Where it ends.
    end: u64,
    /// Of a tensor: whether its values are stored in another file, and in which.
    external: bool,
    location: Option<String>,
}

impl Open {
    fn new(message: Message, end: u64) -> Self {
        Self {
            message,
            end,
            external: false,
            location: None,
        }
    }
}

impl<R: Read + Seek> Scan<R> {
    fn of(reader: R, length: u64) -> BTreeSet<String> {
        let mut scan = Self {
            reader,
            at: 0,
            found: BTreeSet::new(),
        };
        // A damaged file names what comes before the damage; decoding it says what is wrong.
        let _ = scan.run(length);
        scan.found
    }

    /// Goes on until the end, a damaged place or a limit. `None` means one of the latter two.
    fn run(&mut self, length: u64) -> Option<()> {
        let (mut messages, mut fields) = (0, 0);
        let mut open = vec![Open::new(Message::Model, length)];
        while let Some(last) = open.last_mut() {
            if self.at >= last.end {
                let closed = open.pop()?;
                if closed.external {
                    self.found.extend(closed.location);
                }
                if self.found.len() > MOST_FILES {
                    return None;
                }
                continue;
            }
            fields += 1;
            if messages > MOST_MESSAGES || fields > MOST_FIELDS {
                return None;
            }

            let key = self.varint()?;
            let is_tensor = last.message == Message::Tensor;
            match (key & 7, key >> 3) {
                (0, field) => {
                    let value = self.varint()?;
                    if is_tensor && field == 14 {
                        last.external = value == DataLocation::External as u64;
                    }
                }
                (1, _) => self.skip(8)?,
                (2, field) => {
                    let length = self.varint()?;
                    let end = self.at.checked_add(length)?;
                    if end > last.end {
                        return None;
                    }
                    let inner = last.message.inner(field);
                    messages += usize::from(inner.is_some());
                    match inner {
                        Some(_) if is_tensor && field == 13 => {
                            let entry = self.entry(length)?;
                            if last.location.is_none() {
                                last.location = entry;
                            }
                        }
                        Some(Message::Leaf) | None => self.skip(length)?,
                        Some(_) if open.len() >= MOST_WITHIN => return None,
                        Some(inner) => open.push(Open::new(inner, end)),
                    }
                }
                (5, _) => self.skip(4)?,
                _ => return None,
            }
        }
        Some(())
    }

    /// Reads an entry of `length` bytes: `Some(None)` if it is no location.
    fn entry(&mut self, length: u64) -> Option<Option<String>> {
        if length > LONGEST_ENTRY {
            self.skip(length)?;
            return Some(None);
        }
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes).ok()?;
        self.at += length;
        let entry = StringStringEntryProto::decode(&bytes[..]).ok()?;
        Some((entry.key() == "location").then(|| entry.value().to_owned()))
    }

    fn skip(&mut self, bytes: u64) -> Option<()> {
        self.reader.seek_relative(i64::try_from(bytes).ok()?).ok()?;
        self.at += bytes;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.reader.read_exact(&mut byte).ok()?;
            self.at += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Model, Overrides,
        testing::{WEIGHT, bytes, graph, tiny},
    };

    fn external(location: &str, offset: &str, length: Option<&str>) -> TensorProto {
        let entry = |key: &str, value: &str| StringStringEntryProto {
            key: Some(key.into()),
            value: Some(value.into()),
        };
        let mut entries = vec![entry("location", location), entry("offset", offset)];
        entries.extend(length.map(|length| entry("length", length)));
        TensorProto {
            name: Some("fc.weight".into()),
            data_type: Some(DataType::Float as i32),
            dims: vec![4, 3],
            external_data: entries,
            data_location: Some(DataLocation::External as i32),
            ..Default::default()
        }
    }

    /// The tiny model with its weights in `location`, and the bytes that belong there: two of
    /// padding, then the weights.
    fn divided(weight: TensorProto) -> (Bytes, Vec<u8>) {
        let mut model = tiny();
        graph(&mut model).initializer[0] = weight;
        let mut data = vec![9; 2];
        data.extend(WEIGHT.iter().flat_map(|value| value.to_le_bytes()));
        (bytes(&model), data)
    }

    /// A folder with the tiny model and its weights in `tiny.data`.
    fn folder(weight: TensorProto) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.onnx");
        let (onnx, data) = divided(weight);
        fs::write(&path, onnx).unwrap();
        fs::write(folder.path().join("tiny.data"), data).unwrap();
        (folder, path)
    }

    fn load(path: &Path) -> Result<Model, ModelError> {
        let overrides = Overrides {
            labels: Some(["a", "b", "c", "d"].map(str::to_owned).to_vec()),
            ..Overrides::default()
        };
        Model::from_file(path, &overrides)
    }

    fn refusal(path: &Path) -> String {
        load(path).unwrap_err().reason()
    }

    #[test]
    fn weights_beside_the_model_are_read_and_belong_to_its_version() {
        let (folder, path) = folder(external("tiny.data", "2", Some("48")));
        let onnx: Bytes = fs::read(&path).unwrap().into();
        let (model, _) = decode_file(&onnx, &path).unwrap();
        let mut whole = tiny();
        tensor::make_raw(&mut graph(&mut whole).initializer[0]).unwrap();
        assert_eq!(model, whole);

        let version = load(&path).unwrap().version;
        assert_eq!(version, load(&path).unwrap().version);
        let data = folder.path().join("tiny.data");
        let mut other = fs::read(&data).unwrap();
        other[2] ^= 1;
        fs::write(&data, other).unwrap();
        assert_ne!(version, load(&path).unwrap().version);

        assert!(locations(&path).contains("tiny.data"));
        assert_eq!(combined("abc".into(), &[]), "abc");
    }

    #[test]
    fn a_length_may_be_left_out_and_the_name_may_be_spelt_differently() {
        let (_folder, path) = folder(external("./tiny.data", "2", None));
        assert!(load(&path).is_ok());
    }

    #[test]
    fn only_names_within_the_folder_are_read() {
        for location in [
            "../tiny.data",
            "/etc/passwd",
            "weights/../../tiny.data",
            "..",
            ".",
            "",
            "a\\tiny.data",
        ] {
            let (_folder, path) = folder(external(location, "0", None));
            let reason = refusal(&path);
            assert!(reason.contains("within the model's folder"), "{reason}");
        }
        let (_folder, path) = folder(external("none.data", "0", None));
        let reason = refusal(&path);
        assert!(reason.contains("`none.data` is missing"), "{reason}");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_within_the_folder_only() {
        use std::os::unix::fs::symlink;

        let (folder, path) = folder(external("link.data", "2", None));
        let link = folder.path().join("link.data");
        symlink(folder.path().join("tiny.data"), &link).unwrap();
        assert!(load(&path).is_ok());

        let outside = tempfile::tempdir().unwrap();
        fs::copy(&link, outside.path().join("secret")).unwrap();
        fs::remove_file(&link).unwrap();
        symlink(outside.path().join("secret"), &link).unwrap();
        let reason = refusal(&path);
        assert!(reason.contains("leaves the model's folder"), "{reason}");
        assert!(!reason.contains("secret"), "{reason}");

        // A folder that is a link, with a plain name behind it.
        let (folder, path) = self::folder(external("sub/secret", "2", None));
        symlink(outside.path(), folder.path().join("sub")).unwrap();
        let reason = refusal(&path);
        assert!(reason.contains("leaves the model's folder"), "{reason}");
    }

    #[cfg(unix)]
    #[test]
    fn a_snapshot_of_hugging_faces_cache_links_to_its_blobs() {
        use std::os::unix::fs::symlink;

        let cache = tempfile::tempdir().unwrap();
        let (onnx, data) = divided(external("tiny.data", "2", None));
        let entry = |name: &str| {
            let entry = cache.path().join(name);
            fs::create_dir_all(entry.join("blobs")).unwrap();
            fs::create_dir_all(entry.join("snapshots/main/onnx")).unwrap();
            entry
        };
        // The model is a link as well, and lies in a folder of its repository.
        let snapshot = |entry: &Path, target: &str| {
            let folder = entry.join("snapshots/main/onnx");
            fs::write(entry.join("blobs").join("a".repeat(40)), &onnx).unwrap();
            for (name, target) in [
                ("model.onnx", format!("../../../blobs/{}", "a".repeat(40))),
                ("tiny.data", target.to_owned()),
            ] {
                let _ = fs::remove_file(folder.join(name));
                symlink(target, folder.join(name)).unwrap();
            }
            folder.join("model.onnx")
        };
        let hash = "0123456789abcdef".repeat(4);
        let ours = entry("models--owner--tiny");
        let other = entry("models--owner--other");
        let secret = cache.path().join("secret");
        for file in [
            ours.join("blobs").join(&hash),
            ours.join("blobs/secret"),
            ours.join(&hash),
            other.join("blobs").join(&hash),
            secret.clone(),
        ] {
            fs::write(file, &data).unwrap();
        }
        let path = snapshot(&ours, &format!("../../../blobs/{hash}"));
        assert!(load(&path).is_ok());
        assert!(locations(&path).contains("tiny.data"));

        // No other file, not another entry's, and no blob that is a link itself.
        symlink(&secret, ours.join("blobs").join("b".repeat(64))).unwrap();
        for target in [
            "../../../blobs/secret".to_owned(),
            format!("../../../{hash}"),
            format!("../../../../models--owner--other/blobs/{hash}"),
            "../../../../secret".to_owned(),
            format!("../../../blobs/{}", "b".repeat(64)),
        ] {
            let reason = refusal(&snapshot(&ours, &target));
            assert!(
                reason.contains("leaves the model's folder"),
                "{target}: {reason}"
            );
        }
        // A folder that only looks like one.
        let plain = entry("models-owner-tiny");
        fs::write(plain.join("blobs").join(&hash), &data).unwrap();
        let reason = refusal(&snapshot(&plain, &format!("../../../blobs/{hash}")));
        assert!(reason.contains("leaves the model's folder"), "{reason}");

        let pipe = "c".repeat(64);
        let made = std::process::Command::new("mkfifo")
            .arg(ours.join("blobs").join(&pipe))
            .status();
        assert!(made.unwrap().success());
        let reason = refusal(&snapshot(&ours, &format!("../../../blobs/{pipe}")));
        assert!(reason.contains("a named pipe"), "{reason}");
    }

    #[test]
    fn places_that_do_not_fit_the_file_or_the_tensor_are_refused() {
        for (offset, length, words) in [
            ("3", None, "needs 48 bytes from byte 3 of `tiny.data` on"),
            ("2", Some("44"), "has 44 bytes in `tiny.data`"),
            ("18446744073709551615", None, "but the file has 50"),
            ("18446744073709551616", None, "is not a number"),
            ("-1", None, "is not a number"),
            ("0x2", Some("48"), "is not a number"),
            ("2", Some(""), "is not a number"),
        ] {
            let (_folder, path) = folder(external("tiny.data", offset, length));
            let reason = refusal(&path);
            assert!(reason.contains(words), "{offset}: {reason}");
            assert!(reason.contains("`fc.weight`"), "{reason}");
        }
        let huge = TensorProto {
            dims: vec![1 << 20, 1 << 20],
            ..external("tiny.data", "0", None)
        };
        let (_folder, path) = folder(huge);
        let reason = refusal(&path);
        assert!(reason.contains("needs 4398046511104 bytes"), "{reason}");
        let text = TensorProto {
            data_type: Some(DataType::String as i32),
            ..external("tiny.data", "0", None)
        };
        let (_folder, path) = folder(text);
        assert!(refusal(&path).contains("has the type string"));
    }

    #[test]
    fn all_files_together_have_the_limit_of_a_model() {
        let (_folder, path) = folder(external("tiny.data", "2", None));
        let onnx: Bytes = fs::read(&path).unwrap().into();
        let total = onnx.len() as u64 + 50;
        assert!(DataFiles::read(&onnx, &path, total).is_ok());
        let error = DataFiles::read(&onnx, &path, total - 1).err().unwrap();
        let error = error.to_string();
        assert!(error.contains("larger than 2 GiB altogether"), "{error}");
    }

    #[test]
    fn tensors_that_overlap_count_each() {
        let mut model = tiny();
        let shared = external("tiny.data", "2", None);
        graph(&mut model).initializer = vec![shared; 5];
        let onnx = bytes(&model);
        let (_folder, path) = folder(external("tiny.data", "2", None));
        let fill = |tensors: u64| {
            let mut files = DataFiles::read(&onnx, &path, 1 << 20).unwrap();
            files.limit = tensors * 48;
            files.fill(&mut decode(&onnx).unwrap())
        };
        assert!(fill(5).is_ok());
        let error = fill(4).unwrap_err().to_string();
        assert!(error.contains("overlap"), "{error}");
    }

    #[test]
    fn names_are_found_wherever_tensors_are() {
        let named = |location: &str| external(location, "0", None);
        let mut model = tiny();
        let constant = |location: &str| AttributeProto {
            t: Some(named(location)),
            ..Default::default()
        };
        let mut inner = GraphProto {
            initializer: vec![named("in_subgraph")],
            ..Default::default()
        };
        inner.sparse_initializer.push(SparseTensorProto {
            values: Some(named("in_sparse")),
            ..Default::default()
        });
        let top = graph(&mut model);
        top.node[0].attribute.push(constant("in_attribute"));
        top.node[0].attribute.push(AttributeProto {
            g: Some(inner),
            ..Default::default()
        });
        model.functions.push(Default::default());
        model.functions[0].node = vec![NodeProto::default()];
        model.functions[0].node[0].attribute = vec![constant("in_function")];
        // One that is not stored outside, whatever it names.
        graph(&mut model).initializer[1].external_data = named("not_used").external_data;

        let onnx = bytes(&model);
        let found = Scan::of(Cursor::new(&onnx), onnx.len() as u64);
        let expected = ["in_attribute", "in_function", "in_sparse", "in_subgraph"];
        assert!(found.iter().eq(expected.iter()), "{found:?}");
        for length in 0..onnx.len() {
            let cut = onnx.slice(..length);
            assert!(Scan::of(Cursor::new(&cut), length as u64).len() <= 4);
        }

        // Each of them is filled.
        let files = DataFiles {
            contents: expected
                .map(|name| (name.to_owned(), Bytes::from(vec![0; 48])))
                .into(),
            sha256: Vec::new(),
            limit: 1 << 20,
        };
        let mut filled = decode(&onnx).unwrap();
        files.fill(&mut filled).unwrap();
        let onnx = bytes(&filled);
        assert!(Scan::of(Cursor::new(&onnx), onnx.len() as u64).is_empty());
    }

    #[test]
    fn content_without_a_folder_can_have_no_weights_outside() {
        let (onnx, _) = divided(external("tiny.data", "2", None));
        let error = Model::from_bytes(onnx, &Overrides::default()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("`tiny.data`"), "{error}");
        assert!(error.contains("by its path"), "{error}");
    }
}
