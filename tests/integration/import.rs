//! `resnet18 import`: the command line, and the imported networks compared with PyTorch's answers.

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::Output,
};

use resnet18_server::{
    answer::softmax,
    engine::{self, Engine, EngineConfig, EngineKind, Lanes, Precision},
    model::{Model, Overrides},
};
use serde_json::Value;

use crate::common::{
    Checkpoint, Server, checkpoint, data, image, json, python, request, resnet18, shared,
    shared_turn, skipped, text, tiny_checkpoints, tiny_model::tiny_model,
};

fn import(checkpoint: &Path, flags: &[&str]) -> Output {
    resnet18()
        .arg("import")
        .arg(checkpoint)
        .args(flags)
        .output()
        .unwrap()
}

/// Imports into `folder`; returns the new file and the JSON report.
fn imported(checkpoint: &Path, folder: &Path, flags: &[&str]) -> (PathBuf, Value) {
    let output = folder.join("model.onnx");
    let result = import(
        checkpoint,
        &[&["--json", "--output", output.to_str().unwrap()], flags].concat(),
    );
    assert!(
        result.status.success(),
        "{}: {}",
        checkpoint.display(),
        text(&result.stderr)
    );
    (output, serde_json::from_slice(&result.stdout).unwrap())
}

/// An engine with one lane; `None`, with a visible message, if it can't start on this machine.
fn engine(model: &Model, kind: EngineKind, precision: Option<Precision>) -> Option<Lanes> {
    let config = EngineConfig {
        kind: Some(kind),
        precision,
        ..EngineConfig::new(NonZeroUsize::MIN)
    };
    match engine::start(&config, model) {
        Ok(lanes) => Some(lanes),
        Err(error) if kind == EngineKind::Embedded => panic!("{error}"),
        Err(error) => {
            skipped(&error.to_string());
            None
        }
    }
}

/// The engines that can start on this machine, in fp32.
fn exact_engines(model: &Model) -> impl Iterator<Item = Lanes> {
    [EngineKind::Embedded, EngineKind::OpenVino]
        .into_iter()
        .filter_map(|kind| engine(model, kind, Some(Precision::Fp32)))
}

/// The logits of an image file that has the network's input size.
fn logits(engine: &mut dyn Engine, crop: &Path, classes: usize) -> Vec<f32> {
    let pixels = image::open(crop).unwrap().to_rgb8();
    assert_eq!(pixels.dimensions(), (224, 224));
    let mut logits = vec![0.0; classes];
    engine.infer(pixels.as_raw(), 1, &mut logits).unwrap();
    logits
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn top_1(values: &[f32]) -> usize {
    (0..values.len())
        .max_by(|a, b| values[*a].total_cmp(&values[*b]))
        .unwrap()
}

#[test]
fn checkpoints_of_every_format_give_pytorchs_logits() {
    let (Some(models), Some(golden)) = (shared("models"), shared("golden")) else {
        return;
    };
    let _turn = shared_turn();
    let labels = models.join("labels.txt");
    let Value::Object(expected) = json(&golden.join("expected.json")) else {
        panic!("expected.json holds an object")
    };

    for (file, exact) in [
        ("resnet18-demo.pth", true),
        ("resnet18-demo-legacy-half.pth", false),
        ("resnet18-demo-hf-bf16.safetensors", false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (path, report) = imported(
            &models.join(file),
            folder.path(),
            &["--labels", labels.to_str().unwrap()],
        );
        assert_eq!(report["architecture"], "resnet18");
        assert_eq!(report["classes"], 106);
        assert_eq!(report["photo_of_a_cat"]["label"], "cat");

        let model = Model::from_file(&path, &Overrides::default()).unwrap();
        assert_eq!(model.name, "model");
        assert_eq!(model.labels[40], "face");

        let preferred = engine(&model, EngineKind::OpenVino, None);
        for mut lanes in exact_engines(&model).chain(preferred) {
            let (mut worst_logit, mut worst_probability) = (0_f32, 0_f32);
            for (name, expected) in &expected {
                let crop = golden.join(expected["crop"].as_str().unwrap());
                let expected: Vec<f32> =
                    serde_json::from_value(expected["logits"].clone()).unwrap();
                let actual = logits(&mut *lanes.narrow[0], &crop, 106);
                worst_logit = worst_logit.max(largest_difference(&actual, &expected));
                let off = largest_difference(&softmax(&actual), &softmax(&expected));
                assert!(
                    off < 0.02,
                    "{file} on {:?}: {name} is off by {off}",
                    lanes.info
                );
                worst_probability = worst_probability.max(off);

                assert_eq!(
                    top_1(&actual),
                    top_1(&expected),
                    "{file} on {:?}: {name}",
                    lanes.info
                );
            }

            let info = &lanes.info;
            eprintln!(
                "{file} on {} in {}: {} images, logits within {worst_logit:.5}, \
                 probabilities within {worst_probability:.5}",
                info.kind,
                info.precision,
                expected.len()
            );
            assert!(
                !exact || info.precision != Precision::Fp32 || worst_logit < 2e-3,
                "{file}: logits are off by up to {worst_logit}"
            );
        }
    }
}

#[test]
fn resnets_of_every_depth_give_pytorchs_logits() {
    let (Some(models), Some(golden), Some(python)) = (shared("models"), shared("golden"), python())
    else {
        return;
    };
    let _turn = shared_turn();
    let Value::Object(architectures) = json(&models.join("architectures.json")) else {
        panic!("architectures.json holds an object")
    };
    assert!(architectures.len() >= 5);

    let crop = golden.join("crops/cat_jpg.png");
    for architecture in architectures.keys() {
        let folder = tempfile::tempdir().unwrap();
        let Checkpoint {
            path,
            labels,
            logits: expected,
        } = checkpoint(&python, &models, architecture, folder.path());
        let (path, report) = imported(
            &path,
            folder.path(),
            &["--labels", labels.to_str().unwrap()],
        );
        assert_eq!(report["architecture"].as_str(), Some(architecture.as_str()));

        let model = Model::from_file(&path, &Overrides::default()).unwrap();
        let range = expected.iter().copied().fold(f32::MIN, f32::max)
            - expected.iter().copied().fold(f32::MAX, f32::min);
        for mut lanes in exact_engines(&model) {
            let actual = logits(&mut *lanes.narrow[0], &crop, expected.len());
            let off = largest_difference(&actual, &expected) / range;
            let engine = lanes.info.kind;
            eprintln!("{architecture} on {engine}: logits within {off:.6} of their range");
            assert!(
                off < 1e-3,
                "{architecture} on {engine}: logits are off by {off} of their range"
            );
        }
    }
}

#[tokio::test]
async fn an_imported_model_is_served_without_further_flags() {
    let Some(models) = shared("models") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let labels = models.join("labels.txt");
    let flags = [
        "--labels",
        labels.to_str().unwrap(),
        "--name",
        "things",
        "--resize",
        "240",
    ];
    let (path, report) = imported(&models.join("resnet18-demo.pth"), folder.path(), &flags);
    assert_eq!(report["name"], "things");
    assert_eq!(report["resize_shorter_side"], 240);

    let server = Server::start(&["--model", path.to_str().unwrap()]);
    let mut client = server.client().await;
    let answer = client
        .classify(request(image(data("cat.jpg"))))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.model, "things");
    assert_eq!(answer.classifications[0].label, "cat");
}

#[test]
fn without_json_a_table_shows_how_to_serve_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my model.onnx");
    let result = import(
        &data("../../models/resnet18-demo.onnx"),
        &["--output", path.to_str().unwrap()],
    );
    assert!(result.status.success(), "{}", text(&result.stderr));

    let table = text(&result.stdout);
    for part in [
        "106",
        "224×224",
        "MB",
        "cat (",
        &format!("resnet18 serve --model '{}'", path.display()),
    ] {
        assert!(table.contains(part), "{part:?} is not in:\n{table}");
    }
}

#[test]
fn an_imported_onnx_file_keeps_its_manifest_and_takes_in_flags() {
    let folder = tempfile::tempdir().unwrap();
    let bundled = data("../../models/resnet18-demo.onnx");
    let labels: Vec<String> = (0..106).map(|class| format!("thing {class}")).collect();
    let list = folder.path().join("list.txt");
    fs::write(&list, labels.join("\n")).unwrap();

    let flags = ["--labels", list.to_str().unwrap(), "--mean", "0.5,0.5,0.5"];
    let (path, report) = imported(&bundled, folder.path(), &flags);
    assert_eq!(report["name"], "resnet18-demo", "the file's own name stays");

    let (before, after) = [&bundled, &path]
        .map(|path| Model::from_file(path, &Overrides::default()).unwrap())
        .into();
    assert_eq!(after.labels[..], labels[..]);
    assert_eq!(after.manifest.mean, Some([0.5; 3]));
    assert_eq!(after.manifest.std, before.manifest.std);
    assert_eq!(after.manifest.other, before.manifest.other);
    assert_eq!(after.geometry, before.geometry);
}

#[test]
fn a_foreign_onnx_file_takes_in_the_labels_file_beside_it() {
    let Some(models) = shared("models") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let foreign = folder.path().join("lite.onnx");
    fs::copy(models.join("efficientnet-lite0.onnx"), &foreign).unwrap();
    let labels: Vec<String> = (0..1000).map(|class| format!("thing {class}")).collect();
    fs::write(folder.path().join("lite.labels.txt"), labels.join("\n")).unwrap();

    let elsewhere = tempfile::tempdir().unwrap();
    let (path, report) = imported(
        &foreign,
        elsewhere.path(),
        &["--mean", "0.498,0.498,0.498", "--std", "0.502,0.502,0.502"],
    );
    assert_eq!(report["photo_of_a_cat"]["label"], "thing 285", "{report}");
    assert!(report.get("architecture").is_none());

    let model = Model::from_file(&path, &Overrides::default()).unwrap();
    assert_eq!(model.labels[..], labels[..]);
    assert_eq!(model.manifest.mean, Some([0.498; 3]));
}

#[test]
fn a_failed_import_says_why_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let precious = tiny_model(1);
    let output = file("output.onnx", &precious);
    let few = file("few.txt", b"cat\ndog\n");
    let bundled = data("../../models/resnet18-demo.onnx");
    let (few, there) = (few.to_str().unwrap(), output.to_str().unwrap());
    for (checkpoint, flags, reason) in [
        (
            folder.path().join("no-such.pth"),
            &["--output", there][..],
            "no such file",
        ),
        (
            folder.path().to_owned(),
            &["--output", there],
            "is a directory",
        ),
        (file("empty.pth", b""), &["--output", there], "is empty"),
        (
            file("page.pth", b"<!doctype html>"),
            &["--output", there],
            "web page",
        ),
        (
            file("cut.pth", b"PK\x03\x04\x14\x00"),
            &["--output", there],
            "damaged or cut off",
        ),
        (
            file("pickle.pth", b"\x80\x02}q\x00."),
            &["--output", there],
            "pickle",
        ),
        (data("cat.jpg"), &["--output", there], "image"),
        (
            bundled.clone(),
            &["--output", there, "--labels", few],
            "has 106 classes, but was given 2 labels",
        ),
        (
            bundled.clone(),
            &["--output", there, "--labels", "/no/such.txt"],
            "/no/such.txt",
        ),
        (
            bundled.clone(),
            &["--output", there, "--resize", "100"],
            "224",
        ),
        (
            bundled.clone(),
            &["--output", folder.path().to_str().unwrap()],
            "is a directory",
        ),
        (
            bundled.clone(),
            &["--output", "/no/such/model.onnx"],
            "no folder /no/such",
        ),
    ] {
        let result = import(&checkpoint, flags);
        assert_eq!(result.status.code(), Some(1), "{flags:?}");
        let error = text(&result.stderr);
        assert!(
            error.contains(reason) && error.lines().count() == 1,
            "{flags:?}: {error}"
        );
    }

    let result = import(&bundled, &[]);
    assert_eq!(result.status.code(), Some(64));
    assert!(text(&result.stderr).contains("--output"));

    assert_eq!(fs::read(&output).unwrap(), precious);
    let temporary_files = fs::read_dir(folder.path()).unwrap().filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .ends_with(".tmp")
    });
    assert_eq!(temporary_files.count(), 0);
}

#[test]
fn a_checkpoint_without_labels_is_refused_with_the_number_of_lines_needed() {
    let Some(models) = shared("models") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model.onnx");
    let result = import(
        &models.join("resnet18-demo.pth"),
        &["--output", output.to_str().unwrap()],
    );
    assert_eq!(result.status.code(), Some(1));
    assert!(
        text(&result.stderr).contains("`--labels FILE` with 106 lines"),
        "{}",
        text(&result.stderr)
    );
    assert!(!output.exists());
}

#[test]
fn of_several_networks_the_average_is_imported_unless_a_key_says_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("several.safetensors");
    let labels = folder.path().join("labels.txt");
    let import = |networks: &[(&str, usize)], classes: usize, flags: &[&str]| {
        fs::write(&file, tiny_checkpoints(networks)).unwrap();
        fs::write(&labels, "thing\n".repeat(classes)).unwrap();
        let output = folder.path().join("out.onnx");
        let flags = [
            &[
                "--json",
                "--labels",
                labels.to_str().unwrap(),
                "--output",
                output.to_str().unwrap(),
            ],
            flags,
        ];
        import(&file, &flags.concat())
    };
    let with_average = [("model.", 3), ("model_ema.", 4)];
    let imported = import(&with_average, 4, &[]);
    let report: Value = serde_json::from_slice(&imported.stdout).unwrap();
    assert_eq!(report["classes"], 4);
    assert_eq!(report["input"]["width"], 32);
    let note = "the weights under `model_ema` were taken, the average of the weights";
    assert!(
        report["notes"][0].as_str().unwrap().starts_with(note),
        "{report}"
    );
    assert!(
        text(&imported.stderr).contains(note),
        "{}",
        text(&imported.stderr)
    );

    let imported = import(&with_average, 3, &["--key", "model"]);
    let report: Value = serde_json::from_slice(&imported.stdout).unwrap();
    assert_eq!(report["classes"], 3);

    let refused = import(&[("student.", 3), ("teacher.", 3)], 3, &[]);
    assert_eq!(refused.status.code(), Some(1));
    let error = text(&refused.stderr);
    assert!(
        error.contains("`student`, `teacher`; choose one of them with --key NAME"),
        "{error}"
    );
}
