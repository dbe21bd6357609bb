//! Training and evaluation, through the program and against the accuracy that PyTorch reaches.

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::Output,
};

use crate::common::{Server, data, json, resnet18, shared};
use resnet18_server::{
    engine::EngineConfig,
    image::PreprocessConfig,
    model::{Base, Overrides},
    offline::{
        OfflineConfig, OfflineModel,
        dataset::Dataset,
        training::{
            TrainingPlan, search,
            softmax_layer::{self, Example, SoftmaxLayer, TrainingSettings},
        },
    },
};
use serde_json::Value;
use tempfile::TempDir;

fn run(arguments: &[&str]) -> Output {
    // Training keeps the processor busy.
    let _turn = crate::common::shared_turn();
    resnet18().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs the program with `--json`, expects success, and returns what it printed.
fn result(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json"]].concat());
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        text(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs the program, expects failure, and returns its error message.
fn refusal(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{arguments:?}: {}",
        text(&output.stderr)
    );
    text(&output.stderr)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A dataset of stripes and checks in many colours and widths, which is easy to learn.
fn patterns(parts: &[(&str, u32)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for &(part, count) in parts {
        for (class, checked) in [("checks", true), ("stripes", false)] {
            let folder = root.path().join(part).join(class);
            fs::create_dir_all(&folder).unwrap();
            for number in 0..count {
                let width = 6 + number % 5;
                let shade = 40 * (number % 4) as u8;
                let picture = image::RgbImage::from_fn(96, 80, |x, y| {
                    let on = (x / width + if checked { y / width } else { 0 }) % 2 == 0;
                    let light = if on { 200 + shade / 4 } else { 30 };
                    image::Rgb([light, light.saturating_sub(shade), 255 - light])
                });
                picture
                    .save(folder.join(format!("{number:02}.png")))
                    .unwrap();
            }
        }
    }
    fs::write(root.path().join("README.md"), "not a class").unwrap();
    root
}

#[test]
fn a_folder_of_photos_becomes_a_model_that_serves() {
    let dataset = patterns(&[("train", 10), ("val", 5)]);
    let output = dataset.path().join("patterns.onnx");
    let (dataset, output) = (path(dataset.path()), path(&output));

    let report = result(&["train", dataset, "-o", output, "--auto", "--flip"]);
    assert_eq!(report["labels"], serde_json::json!(["checks", "stripes"]));
    assert_eq!(
        (
            report["train_photos"].as_u64(),
            report["val_photos"].as_u64()
        ),
        (Some(20), Some(10))
    );
    let accuracy = report["accuracy"].as_f64().unwrap();
    assert!(accuracy >= 0.8, "{report}");
    let matrix = report["confusion_matrix"].as_array().unwrap();
    let right: u64 = (0..2)
        .map(|class| matrix[class][class].as_u64().unwrap())
        .sum();
    assert_eq!(right as f64 / 10.0, accuracy);

    let server = Server::start(&["--model", output]);
    let here = result(&["evaluate", dataset, "--model", output]);
    let there = result(&["evaluate", dataset, "--server", &server.url()]);
    for report in [&here, &there] {
        assert_eq!(report["photos"], 10);
        assert!(
            (report["top1"].as_f64().unwrap() - accuracy).abs() < 0.11,
            "{report}"
        );
        assert_eq!(report["top5"], 1.0);
        assert_eq!(report["model"], "patterns");
    }
    assert_eq!(here["top1"], there["top1"]);
    assert_eq!(here["classes"], there["classes"]);
}

#[test]
fn the_same_seed_gives_the_same_file_and_people_see_how_it_goes() {
    let dataset = patterns(&[("train", 10)]);
    let train = |name: &str, seed: &str| -> (String, Vec<u8>) {
        let output = dataset.path().join(name);
        let arguments = [
            "train",
            path(dataset.path()),
            "-o",
            path(&output),
            "--name",
            "p",
            "--seed",
            seed,
        ];
        let done = run(&arguments);
        assert!(done.status.success(), "{}", text(&done.stderr));
        (text(&done.stdout), fs::read(output).unwrap())
    };
    let (seen, first) = train("a.onnx", "1");
    for expected in [
        "16 to train on, 4 for validation",
        "Epoch",
        "Actual, predicted",
        "Accuracy",
        "resnet18 serve --model",
    ] {
        assert!(seen.contains(expected), "{expected}: {seen}");
    }
    assert_eq!(train("b.onnx", "1").1, first);
    assert_ne!(train("c.onnx", "2").1, first);
}

#[test]
fn photos_that_cannot_be_read_are_skipped_and_too_many_are_an_error() {
    let dataset = patterns(&[("train", 10), ("val", 2)]);
    let output = dataset.path().join("m.onnx");
    fs::write(dataset.path().join("train/checks/page.jpg"), "not a photo").unwrap();
    let arguments = [
        "train",
        path(dataset.path()),
        "-o",
        path(&output),
        "--epochs",
        "1",
    ];
    let report = result(&arguments);
    assert_eq!(report["skipped"].as_array().unwrap().len(), 1);
    assert!(
        report["skipped"][0]["file"]
            .as_str()
            .unwrap()
            .ends_with("train/checks/page.jpg"),
        "{report}"
    );
    fs::remove_file(&output).unwrap();

    fs::write(
        dataset.path().join("train/stripes/broken.jpg"),
        b"\xff\xd8\xff",
    )
    .unwrap();
    let error = refusal(&arguments);
    assert!(
        error.contains("2 of 26") && error.contains("5 %") && error.contains("broken.jpg"),
        "{error}"
    );
    assert!(!output.exists());
}

/// Writes an annotation beside each photo, and what Windows and macOS leave in a folder.
fn add_other_files(dataset: &Path) -> u64 {
    let mut count = 0;
    for part in ["train", "val"] {
        for class in ["checks", "stripes"] {
            let folder = dataset.join(part).join(class);
            let names: Vec<PathBuf> = fs::read_dir(&folder)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            for photo in names {
                fs::write(photo.with_extension("xml"), "<annotation/>").unwrap();
                fs::write(photo.with_extension("json"), "{}").unwrap();
                count += 2;
            }
            for name in ["Thumbs.db", "desktop.ini"] {
                fs::write(folder.join(name), "other").unwrap();
                count += 1;
            }
            fs::write(folder.join(".DS_Store"), "hidden").unwrap();
        }
    }
    count
}

#[test]
fn files_that_are_no_images_by_their_names_are_ignored() {
    let dataset = patterns(&[("train", 6), ("val", 2)]);
    let others = add_other_files(dataset.path());
    let output = dataset.path().join("m.onnx");
    let train = [
        "train",
        path(dataset.path()),
        "-o",
        path(&output),
        "--epochs",
        "1",
    ];

    let report = result(&train);
    assert_eq!(
        (&report["train_photos"], &report["val_photos"]),
        (&12.into(), &4.into())
    );
    assert_eq!(report["ignored_files"], others);
    assert_eq!(report["skipped"], serde_json::json!([]));

    let evaluate = ["evaluate", path(dataset.path()), "--model", path(&output)];
    let report = result(&evaluate);
    // Only `val` is evaluated: four photos with two files each, and two files in each folder.
    assert_eq!(
        (&report["photos"], &report["ignored_files"]),
        (&4.into(), &12.into())
    );
    let said = text(&run(&evaluate).stderr);
    assert_eq!(said.matches("ignored 12 files").count(), 1, "{said}");
}

#[test]
fn what_cannot_be_learned_from_is_refused_with_the_reason() {
    let dataset = patterns(&[("train", 2)]);
    let train = |hint: &str| {
        let error = refusal(&[
            "train",
            path(dataset.path()),
            "-o",
            path(&dataset.path().join("m.onnx")),
        ]);
        assert!(error.contains(hint), "{hint}: {error}");
    };
    fs::create_dir_all(dataset.path().join("train/dots")).unwrap();
    train("no photos in \"dots\"");
    fs::copy(data("cat.jpg"), dataset.path().join("train/dots/1.jpg")).unwrap();
    train("only one photo");
    fs::create_dir_all(dataset.path().join("val/dots")).unwrap();
    fs::copy(data("cat.jpg"), dataset.path().join("val/dots/1.jpg")).unwrap();
    train("\"checks\", \"stripes\" only in `train`");
    for class in ["checks", "stripes"] {
        fs::remove_dir_all(dataset.path().join("train").join(class)).unwrap();
    }
    train("one class, \"dots\"");

    let output = dataset.path().join("no/such/m.onnx");
    let error = refusal(&["train", path(dataset.path()), "-o", path(&output)]);
    assert!(error.contains("no/such"), "{error}");
    let wrong = run(&["train", "d", "-o", "m.onnx", "--auto", "--epochs", "3"]);
    assert_eq!(wrong.status.code(), Some(64), "{}", text(&wrong.stderr));
}

#[test]
fn folders_that_are_no_labels_are_named() {
    let dataset = patterns(&[(".", 1)]);
    let error = refusal(&["evaluate", path(dataset.path())]);
    assert!(
        error.contains("\"checks\", \"stripes\"") && error.contains("106 classes"),
        "{error}"
    );
}

#[test]
fn another_exporters_network_can_be_a_base() {
    let Some(base) = shared("models/efficientnet-lite0.onnx") else {
        return;
    };
    let dataset = patterns(&[("train", 6), ("val", 4)]);
    let output = dataset.path().join("m.onnx");
    let flags = [
        "--base",
        path(&base),
        "--mean",
        "0.498,0.498,0.498",
        "--std",
        "0.502,0.502,0.502",
        "--auto",
    ];
    let report = result(
        &[
            &["train", path(dataset.path()), "-o", path(&output)][..],
            &flags,
        ]
        .concat(),
    );
    assert!(report["accuracy"].as_f64().unwrap() >= 0.75, "{report}");
    let evaluated = result(&["evaluate", path(dataset.path()), "--model", path(&output)]);
    assert!(
        (evaluated["top1"].as_f64().unwrap() - report["accuracy"].as_f64().unwrap()).abs() < 0.13,
        "{evaluated}"
    );
}

/// The default settings with several seeds, and those that `--auto` finds, on features that are
/// computed once.
#[tokio::test]
async fn accuracy_is_pytorchs() {
    let Some(root) = shared("dataset") else {
        return;
    };
    let reference = json(&root.join("reference.json"))["val_accuracy"]
        .as_f64()
        .unwrap();
    let base = Base::bundled(&Overrides::default()).unwrap();
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let engine = EngineConfig::new(threads);
    let config = OfflineConfig {
        engine,
        preprocess: PreprocessConfig::default(),
    };
    let backbone = OfflineModel::start(&config, &base.backbone).unwrap();
    let plan = TrainingPlan::new(Dataset::read(&root).unwrap(), 0, &root).unwrap();
    let examples = plan.examples(&backbone, false, |_| {}).await.unwrap();
    assert_eq!(
        (
            examples.train.len(),
            examples.val.len(),
            examples.skipped.len()
        ),
        (500, 186, 0)
    );

    let train: Vec<&Example> = examples.train.iter().collect();
    let val: Vec<&Example> = examples.val.iter().collect();
    let classes = plan.classes.len();
    let learn = |settings: TrainingSettings| {
        let mut layer = SoftmaxLayer::new(&train, classes, settings);
        for _ in 0..settings.epochs {
            assert!(layer.epoch(&train).is_finite());
        }
        f64::from(softmax_layer::score(layer.layer(), &val).accuracy)
    };
    // Five seeds differ by chance from five others by more than is to be shown here.
    let seeds: Vec<f64> = (0..20)
        .map(|seed| {
            learn(TrainingSettings {
                seed,
                ..TrainingSettings::DEFAULT
            })
        })
        .collect();
    let mean = seeds.iter().sum::<f64>() / seeds.len() as f64;
    println!("by seed {seeds:.4?}, mean {mean:.4}; PyTorch {reference}");
    assert!(
        (mean - reference).abs() <= 0.02,
        "{mean} by {seeds:?}, PyTorch {reference}"
    );

    let material = search::Material {
        train: &train,
        stand_ins: &[],
        classes,
    };
    let found = search::search(material, TrainingSettings::DEFAULT, threads, |_| {}).unwrap();
    let auto = learn(found.settings);
    println!("--auto {auto:.4} with {found:?}");
    assert!(auto >= 0.51, "{auto} with {found:?}");
}

#[test]
fn accuracy_on_labelled_photos_is_pytorchs_whatever_the_engine() {
    let Some(photos) = shared("photos") else {
        return;
    };
    let reference = json(&photos.join("reference.json"));
    let report = result(&["evaluate", path(&photos), "--compare", "embedded"]);
    assert_eq!(
        (report["photos"].as_u64(), &report["compared"]["photos"]),
        (Some(300), &report["photos"])
    );
    for name in ["top1", "top5"] {
        for found in [&report[name], &report["compared"][name]] {
            let (found, expected) = (found.as_f64().unwrap(), reference[name].as_f64().unwrap());
            assert!(
                (found - expected).abs() <= 0.007,
                "{name}: {found}, PyTorch {expected}"
            );
        }
    }
    assert!(
        report["compared"]["same_top1"].as_f64().unwrap() >= 0.99,
        "{}",
        report["compared"]
    );
}

/// The dataset's own accuracy, in process and through a server.
#[test]
fn a_server_is_right_as_often_as_the_engine_in_this_process() {
    let Some(root) = shared("dataset") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let output: PathBuf = folder.path().join("clothes.onnx");
    let trained = result(&["train", path(&root), "-o", path(&output)]);
    let server = Server::start(&["--model", path(&output)]);
    let here = result(&["evaluate", path(&root), "--model", path(&output)]);
    let there = result(&[
        "evaluate",
        path(&root),
        "--server",
        &server.url(),
        "--model",
        "clothes",
    ]);
    let [trained, here, there] =
        [&trained["accuracy"], &here["top1"], &there["top1"]].map(|share| share.as_f64().unwrap());
    // Rounding differs between the lanes of a server, so a photo at the border may fall to either
    // side.
    assert!(
        (here - there).abs() <= 0.006,
        "{here} in process, {there} by the server"
    );
    assert!(
        (trained - here).abs() <= 0.011,
        "{trained} in training, {here} afterwards"
    );
}
