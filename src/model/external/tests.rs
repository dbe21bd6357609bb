//! Weights beside a model, in real folders.

use super::*;
use crate::model::{
    Model, Overrides,
    onnx::{
        AttributeProto, GraphProto, NodeProto, SparseTensorProto, StringStringEntryProto,
        TensorProto,
        tensor_proto::{DataLocation, DataType},
    },
    tensor,
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
    let files = DataFiles::read(&onnx, &path, 1 << 20).unwrap();
    let fill_up_to = |tensors: u64| {
        let mut model = decode(&onnx).unwrap();
        fill(&mut model, &files.contents, tensors * 48)
    };
    assert!(fill_up_to(5).is_ok());
    let error = fill_up_to(4).unwrap_err().to_string();
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
    let found = names(Cursor::new(&onnx), onnx.len() as u64);
    let expected = ["in_attribute", "in_function", "in_sparse", "in_subgraph"];
    assert!(found.iter().eq(expected.iter()), "{found:?}");
    for length in 0..onnx.len() {
        let cut = onnx.slice(..length);
        assert!(names(Cursor::new(&cut), length as u64).len() <= 4);
    }

    // Each of them is filled.
    let contents = expected
        .map(|name| (name.to_owned(), Bytes::from(vec![0; 48])))
        .into();
    let mut filled = decode(&onnx).unwrap();
    fill(&mut filled, &contents, 1 << 20).unwrap();
    let onnx = bytes(&filled);
    assert!(names(Cursor::new(&onnx), onnx.len() as u64).is_empty());
}

#[test]
fn content_without_a_folder_can_have_no_weights_outside() {
    let (onnx, _) = divided(external("tiny.data", "2", None));
    let error = Model::from_bytes(onnx, &Overrides::default()).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("`tiny.data`"), "{error}");
    assert!(error.contains("by its path"), "{error}");
}
