//! Models as tools write them today: weights beside the file, old opsets, graphs in any order.

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use prost::Message as _;
use resnet18_server::{
    engine::{self, EngineConfig, EngineKind, Precision},
    model::{
        Model, Overrides,
        onnx::{ModelProto, StringStringEntryProto, tensor_proto::DataLocation},
    },
    proto::ListModelsRequest,
};
use serde_json::Value;

use crate::common::{
    Server, json, python, resnet18, shared, shared_turn, skipped, text, tiny_model::tiny_model,
};

/// Writes the tiny model to `path` with its weights in `NAME.data` beside it, as PyTorch does.
/// `red` is how much the first score counts.
fn write_divided(path: &Path, red: f32) {
    let mut model = ModelProto::decode(&tiny_model(1)[..]).unwrap();
    let weights = &mut model.graph.as_mut().unwrap().initializer[0];
    let mut values = std::mem::take(&mut weights.float_data);
    values[0] = red;
    let data = path.with_extension("onnx.data");
    let entry = |key: &str, value: String| StringStringEntryProto {
        key: Some(key.into()),
        value: Some(value),
    };
    weights.data_location = Some(DataLocation::External as i32);
    weights.external_data = vec![
        entry(
            "location",
            data.file_name().unwrap().to_str().unwrap().into(),
        ),
        entry("offset", "0".into()),
        entry("length", "36".into()),
    ];
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    replace(&data, &bytes);
    replace(path, &model.encode_to_vec());
}

/// Replaces a file atomically, and only if its content differs.
fn replace(path: &Path, content: &[u8]) {
    if fs::read(path).is_ok_and(|before| before == content) {
        return;
    }
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, content).unwrap();
    fs::rename(unfinished, path).unwrap();
}

async fn version(server: &Server) -> String {
    let listed = server
        .client()
        .await
        .list_models(ListModelsRequest {})
        .await;
    listed.unwrap().into_inner().models[0].version.clone()
}

#[tokio::test]
async fn weights_beside_a_model_are_a_part_of_its_version() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.onnx");
    write_divided(&path, 1.0);
    let models = folder.path().display().to_string();
    let server = Server::start(&[
        "--engine",
        "embedded",
        "--model-dir",
        &models,
        "--watch-interval",
        "100ms",
    ]);
    let first = version(&server).await;

    // Only the weights change.
    write_divided(&path, 2.0);
    let give_up = Instant::now() + Duration::from_secs(60);
    while version(&server).await == first {
        assert!(Instant::now() < give_up, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // Without them there is nothing to load, and what is loaded stays.
    let second = version(&server).await;
    fs::remove_file(path.with_extension("onnx.data")).unwrap();
    while !server.log().contains("`tiny.onnx.data` is missing") {
        assert!(Instant::now() < give_up, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(version(&server).await, second);
}

#[test]
fn import_makes_one_file_of_a_model_and_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.onnx");
    write_divided(&path, 3.0);
    let output = folder.path().join("whole.onnx");
    let import = |path: &Path| {
        resnet18()
            .arg("import")
            .arg(path)
            .arg("--output")
            .arg(&output)
            .output()
            .unwrap()
    };
    let imported = import(&path);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    let whole = ModelProto::decode(&fs::read(&output).unwrap()[..]).unwrap();
    let weights = &whole.graph.unwrap().initializer[0];
    assert_eq!(
        weights.raw_data().first_chunk(),
        Some(&3.0_f32.to_le_bytes())
    );
    assert!(weights.external_data.is_empty());

    fs::remove_file(path.with_extension("onnx.data")).unwrap();
    let refused = import(&path);
    let errors = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{errors}");
    assert!(errors.contains("`tiny.onnx.data` is missing"), "{errors}");
}

/// The logits of the model for an image, by each engine that can start here.
fn logits(model: &Model, images: &[u8]) -> Vec<(EngineKind, Vec<f32>)> {
    let kinds = [EngineKind::Embedded, EngineKind::OpenVino].into_iter();
    let answers = kinds.filter_map(|kind| {
        let config = EngineConfig {
            kind: Some(kind),
            precision: Some(Precision::Fp32),
            ..EngineConfig::new(NonZeroUsize::MIN)
        };
        let mut lanes = match engine::start(&config, model) {
            Ok(lanes) => lanes,
            Err(error @ engine::EngineError::Unavailable { .. }) => {
                skipped(&error.to_string());
                return None;
            }
            Err(error) => panic!("{}: {error}", model.name),
        };
        let mut logits = vec![0.0; model.graph.classes];
        lanes.narrow[0].infer(images, 1, &mut logits).unwrap();
        Some((kind, logits))
    });
    answers.collect()
}

#[test]
fn small_files_of_other_tools_have_onnxruntimes_answers() {
    let Some(folder) = shared("cases/onnx") else {
        return;
    };
    let _turn = shared_turn();
    let expected = json(&folder.join("expected.json"));
    let image = image::open(folder.join("px.png"))
        .unwrap()
        .to_rgb8()
        .into_raw();
    for name in ["control", "opset_9", "weights_beside"] {
        let path = folder.join(format!("models/{name}.onnx"));
        let model = Model::from_file(&path, &Overrides::default()).unwrap();
        let right: Vec<f32> = serde_json::from_value(expected[name].clone()).unwrap();
        for (engine, logits) in logits(&model, &image) {
            let found = resnet18_server::answer::softmax(&logits);
            let off = found.iter().zip(&right).map(|(a, b)| (a - b).abs());
            let off = off.fold(0.0, f32::max);
            assert!(off < 1e-3, "{name}, {engine}: off by {off}");
        }
    }
}

/// The Model Zoo's networks without their weights, which the package `onnx` brings along.
fn light_models() -> Option<Vec<PathBuf>> {
    let python = python()?;
    let script = "import onnx, os; print(os.path.dirname(onnx.__file__))";
    let output = Command::new(python).args(["-c", script]).output().unwrap();
    let folder = Path::new(text(&output.stdout).trim()).join("backend/test/data/light");
    let Ok(entries) = fs::read_dir(&folder) else {
        skipped("the tests' Python has no onnx with the Model Zoo's light graphs");
        return None;
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let models = paths.filter(|path| {
        path.extension()
            .is_some_and(|extension| extension == "onnx")
    });
    Some(models.collect())
}

#[test]
fn the_model_zoos_networks_are_served_as_they_are() {
    let Some(models) = light_models() else { return };
    let _turn = shared_turn();
    assert_eq!(models.len(), 9);
    for path in models {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let model = Model::from_file(&path, &Overrides::default());
        let model = model.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            (
                model.graph.classes,
                model.geometry.height,
                model.geometry.width
            ),
            (1000, 224, 224),
            "{name}"
        );
        if !["light_squeezenet", "light_shufflenet"].contains(&name.as_str()) {
            continue;
        }
        // Of those without hundreds of megabytes of weights. All weights of a layer are the same, and
        // so are the scores.
        for (engine, logits) in logits(&model, &vec![100; model.geometry.bytes()]) {
            let first = logits[0];
            let same = logits
                .iter()
                .all(|logit| (logit - first).abs() <= 1e-3 * first.abs());
            assert!(
                first.is_finite() && same,
                "{name}, {engine}: {:?}",
                &logits[..4]
            );
        }
    }
}

/// The report of `resnet18 check` in JSON.
fn check(path: &Path) -> Value {
    let output = resnet18()
        .args(["check", "--json", "--engine", "embedded", "--threads", "1"])
        .arg(path)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_check_and_a_server_mean_the_same_version() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.onnx");
    write_divided(&path, 1.0);
    let model = Model::from_file(&path, &Overrides::default()).unwrap();
    let report = check(&path);
    assert_eq!(report["version"], Value::from(model.version), "{report}");
}
