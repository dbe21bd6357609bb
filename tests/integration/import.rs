//! `resnet18 import` as a person runs it, and the networks that it makes against PyTorch's answers.

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::Output,
};

use crate::common::{
    Checkpoint, Server, checkpoint, data, json, python, resnet18, shared, skipped,
};
use resnet18_server::{
    answer::softmax,
    engine::{self, Engine, EngineConfig, EngineKind, Lanes, Precision},
    model::{Model, Overrides},
};
use serde_json::Value;

fn import(checkpoint: &Path, flags: &[&str]) -> Output {
    resnet18()
        .arg("import")
        .arg(checkpoint)
        .args(flags)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Imports into `folder`; gives the new file and the report.
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

/// Every engine that starts here, with the arithmetic it is to use.
fn engines(model: &Model) -> Vec<Lanes> {
    [
        (EngineKind::Embedded, Some(Precision::Fp32)),
        (EngineKind::OpenVino, Some(Precision::Fp32)),
        (EngineKind::OpenVino, None),
    ]
    .into_iter()
    .filter_map(|(kind, precision)| {
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
    })
    .collect()
}

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
fn checkpoints_of_every_kind_have_pytorchs_logits() {
    let (Some(models), Some(golden)) = (shared("models"), shared("golden")) else {
        return;
    };
    let labels = models.join("labels.txt");
    let Value::Object(expected) = json(&golden.join("expected.json")) else {
        panic!()
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
        assert_eq!(
            (report["architecture"].as_str(), report["classes"].as_u64()),
            (Some("resnet18"), Some(106))
        );
        assert_eq!(report["photo_of_a_cat"]["label"], "cat");
        let model = Model::from_file(&path, &Overrides::default()).unwrap();
        assert_eq!(
            (model.name.as_str(), model.labels[40].as_str()),
            ("model", "face")
        );
        for mut lanes in engines(&model) {
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
                "{file} on {} in {}: {} images, logits within {worst_logit:.5}, probabilities within {worst_probability:.5}",
                info.kind,
                info.precision,
                expected.len()
            );
            assert!(
                !exact || info.precision != Precision::Fp32 || worst_logit < 2e-3,
                "{worst_logit}"
            );
        }
    }
}

#[test]
fn resnets_of_every_depth_have_pytorchs_logits() {
    let (Some(models), Some(golden), Some(python)) = (shared("models"), shared("golden"), python())
    else {
        return;
    };
    let Value::Object(architectures) = json(&models.join("architectures.json")) else {
        panic!()
    };
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
        for mut lanes in engines(&model) {
            let actual = logits(&mut *lanes.narrow[0], &crop, expected.len());
            let off = largest_difference(&actual, &expected) / range;
            eprintln!(
                "{architecture} on {} in {}: logits within {off:.6} of their range",
                lanes.info.kind, lanes.info.precision
            );
            assert!(
                lanes.info.precision != Precision::Fp32 || off < 1e-3,
                "{architecture}: {off}"
            );
        }
    }
    assert!(architectures.len() >= 5);
}

#[tokio::test]
async fn what_was_imported_is_served_without_flags() {
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
    assert_eq!(
        (
            report["name"].as_str(),
            report["resize_shorter_side"].as_u64()
        ),
        (Some("things"), Some(240))
    );

    let server = Server::start(&["--model", path.to_str().unwrap()]);
    let mut client = server.client().await;
    let answer = client
        .classify(crate::common::request(crate::common::image(data(
            "cat.jpg",
        ))))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (
            answer.model.as_str(),
            answer.classifications[0].label.as_str()
        ),
        ("things", "cat")
    );
}

#[test]
fn people_read_a_table_that_says_how_to_go_on() {
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
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[test]
fn an_onnx_file_keeps_everything_and_takes_in_what_lies_beside_it() {
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
    assert_eq!(
        (after.manifest.mean, after.manifest.std),
        (Some([0.5; 3]), before.manifest.std)
    );
    assert_eq!(after.manifest.other, before.manifest.other);
    assert_eq!(after.geometry, before.geometry);
}

#[test]
fn a_foreign_onnx_file_takes_in_the_labels_beside_it() {
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
    assert_eq!(
        (model.labels[..].to_vec(), model.manifest.mean),
        (labels, Some([0.498; 3]))
    );
}

#[test]
fn what_cannot_be_imported_is_refused_with_the_reason_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let output = file("output.onnx", b"precious");
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
    assert_eq!(fs::read(&output).unwrap(), b"precious");
    let left = fs::read_dir(folder.path()).unwrap().filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .ends_with(".tmp")
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn a_checkpoint_without_labels_is_refused_with_the_number_of_lines() {
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
