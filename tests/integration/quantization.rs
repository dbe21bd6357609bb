//! A folder of photos makes a model compute in 8 bits: the program does it, and the answers stay
//! what they were.

use std::{fs, num::NonZeroUsize, path::Path, process::Output};

use crate::common::{Server, data, resnet18, shared, skipped};
use resnet18_server::{
    engine::{EngineConfig, EngineKind, Precision},
    image::PreprocessConfig,
    model::{Model, Overrides},
    offline::{Offline, OfflineConfig, Photo},
};
use serde_json::Value;
use tempfile::TempDir;

fn run(arguments: &[&str]) -> Output {
    resnet18().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The project's own test images, in some depth, and a file that is none.
fn photos() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("holiday/2024");
    fs::create_dir_all(&deep).unwrap();
    let mut count = 0;
    for root in [data(""), data("crops")] {
        for entry in fs::read_dir(root).unwrap() {
            let entry = entry.unwrap().path();
            if entry.extension().is_some_and(|extension| {
                ["jpg", "png", "webp"]
                    .iter()
                    .any(|known| extension == *known)
            }) {
                fs::copy(
                    &entry,
                    deep.join(format!("{count}-{}", entry.file_name().unwrap().display())),
                )
                .unwrap();
                count += 1;
            }
        }
    }
    fs::write(folder.path().join("notes.txt"), "these are no pixels").unwrap();
    assert!(count >= 10, "{count} test images");
    folder
}

/// Quantises the bundled model with a few photos, whatever the result; the JSON line.
fn quantize(photos: &Path, output: &Path, flags: &[&str]) -> Value {
    let fixed = [
        "quantize",
        "--calibration",
        path(photos),
        "--output",
        path(output),
        "--json",
    ];
    let done = run(&[&fixed[..], flags].concat());
    assert!(done.status.success(), "{}", text(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

fn has_openvino() -> bool {
    let config = EngineConfig {
        kind: Some(EngineKind::OpenVino),
        ..EngineConfig::new(NonZeroUsize::MIN)
    };
    let started =
        resnet18_server::engine::start(&config, &Model::bundled(&Overrides::default()).unwrap());
    if started.is_err() {
        skipped("there is no OpenVINO; `make openvino` fetches it");
    }
    started.is_ok()
}

#[test]
fn a_quantised_file_says_what_it_is_and_is_served_in_int8() {
    let (photos, folder) = (photos(), tempfile::tempdir().unwrap());
    let output = folder.path().join("small.onnx");
    let report = quantize(
        photos.path(),
        &output,
        &["--calibration-photos", "8", "--min-agreement", "0"],
    );
    assert_eq!(report["layers"], 21);
    assert_eq!(report["calibration_photos"], 8);
    assert_eq!(report["skipped_files"], 1);
    assert!(report["logits_snr_db"].as_f64().unwrap() > 20.0, "{report}");
    assert_eq!(report["worst_layers"].as_array().unwrap().len(), 5);
    assert!(
        report["bytes"].as_u64().unwrap() * 3 < report["float_bytes"].as_u64().unwrap(),
        "{report}"
    );

    let bundled = Model::bundled(&Overrides::default()).unwrap();
    let model = Model::from_file(&output, &Overrides::default()).unwrap();
    assert!(model.graph.quantized);
    assert_eq!(
        (&model.name, &model.labels, model.geometry),
        (&bundled.name, &bundled.labels, bundled.geometry)
    );
    assert_eq!(model.manifest.other["quantization"]["range"], "min-max");
    assert_eq!(
        model.manifest.other["quantization"]["from"],
        bundled.version.as_str()
    );

    // It can't be quantised again.
    let again = run(&[
        "quantize",
        path(&output),
        "--calibration",
        path(photos.path()),
        "-o",
        path(&output),
    ]);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        text(&again.stderr).contains("quantised already"),
        "{}",
        text(&again.stderr)
    );

    if has_openvino() {
        let server = Server::start(&["--engine", "openvino", "--model", path(&output)]);
        assert_eq!(
            server.metric(
                "classifier_engine_info",
                &["precision=\"int8\"", "engine=\"openvino\""]
            ),
            1.0
        );
        let sunflower = |server: &Server| {
            let photo = data("sunflower_q30.jpg");
            let answer = run(&[
                "classify",
                "--server",
                &server.url(),
                "--json",
                path(&photo),
            ]);
            let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
            let best = &answer["classifications"][0];
            (
                best["label"].as_str().unwrap().to_owned(),
                best["probability"].as_f64().unwrap(),
            )
        };
        let (label, probability) = sunflower(&server);
        let (expected, in_float) = sunflower(&Server::start(&["--engine", "openvino"]));
        assert_eq!(label, expected);
        assert!(
            (probability - in_float).abs() < 0.1,
            "{probability} instead of {in_float}"
        );
        let refused = run(&[
            "serve",
            "--engine",
            "openvino",
            "--precision",
            "bf16",
            "--model",
            path(&output),
            "--grpc",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
        ]);
        assert!(
            text(&refused.stderr).contains("quantised to int8"),
            "{}",
            text(&refused.stderr)
        );
    }
    let server = Server::start(&["--engine", "embedded", "--model", path(&output)]);
    assert_eq!(
        server.metric(
            "classifier_engine_info",
            &["precision=\"fp32\"", "engine=\"embedded\""]
        ),
        1.0
    );
    assert!(
        server.log().contains("computes this int8 model in fp32"),
        "{}",
        server.log()
    );
}

#[test]
fn a_server_quantises_at_its_start_and_keeps_the_result() {
    if !has_openvino() {
        return;
    }
    let (photos, cache) = (photos(), tempfile::tempdir().unwrap());
    let flags = [
        "--precision",
        "int8",
        "--calibration",
        path(photos.path()),
        "--calibration-photos",
        "8",
    ];
    let flags = [
        &flags[..],
        &[
            "--min-agreement",
            "0.5",
            "--engine-cache",
            path(cache.path()),
        ],
    ]
    .concat();
    let start = || {
        let server = Server::start(&flags);
        assert_eq!(
            server.metric("classifier_engine_info", &["precision=\"int8\""]),
            1.0
        );
        server.log()
    };
    let kept = || {
        fs::read_dir(cache.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|e| e == "plan"))
    };
    let first = start();
    assert!(first.contains("quantising to int8"), "{first}");
    let second = start();
    assert!(
        !second.contains("quantising to int8") && second.contains("the quantised model is"),
        "{second}"
    );
    let file = kept().unwrap();
    let mut content = fs::read(&file).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&file, content).unwrap();
    let third = start();
    assert!(
        third.contains("damaged") && third.contains("quantising to int8"),
        "{third}"
    );
}

#[test]
fn int8_is_never_a_surprise() {
    let ports = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let serve = |flags: &[&str]| run(&[&["serve"], &ports[..], flags].concat());
    let float = serve(&["--precision", "int8"]);
    assert_eq!(float.status.code(), Some(1));
    assert!(
        text(&float.stderr).contains("resnet18 quantize"),
        "{}",
        text(&float.stderr)
    );
    let lonely = serve(&["--calibration", "."]);
    assert_eq!(lonely.status.code(), Some(64));
    let nowhere = serve(&["--precision", "int8", "--calibration", "/nowhere"]);
    assert_eq!(nowhere.status.code(), Some(64));
    // Calibration from the environment alone changes nothing.
    let empty = tempfile::tempdir().unwrap();
    let output = empty.path().join("m.onnx");
    let few = run(&[
        "quantize",
        "--calibration",
        path(empty.path()),
        "-o",
        path(&output),
    ]);
    assert!(
        text(&few.stderr).contains("0 photos") && !output.exists(),
        "{}",
        text(&few.stderr)
    );
    let photos = photos();
    let layer = run(&[
        "quantize",
        "--calibration",
        path(photos.path()),
        "-o",
        path(&output),
        "--keep-float",
        "conv9",
    ]);
    assert!(
        text(&layer.stderr).contains("conv9") && text(&layer.stderr).contains("/conv1/Conv"),
        "{}",
        text(&layer.stderr)
    );
}

/// The figures that the README gives: calibrated on photos of other classes, the bundled model is
/// as right as before.
#[tokio::test]
async fn answers_on_photos_stay_what_they_were() {
    let (Some(calibration), Some(photos)) = (shared("dataset/train"), shared("photos")) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("int8.onnx");
    let report = quantize(&calibration, &output, &["--calibration-photos", "100"]);
    println!("{report}");
    assert!(report["comparison"]["agreement_but_ties"].as_f64().unwrap() >= 0.97);

    let float = Model::bundled(&Overrides::default()).unwrap();
    let int8 = Model::from_file(&output, &Overrides::default()).unwrap();
    let mut labelled: Vec<(usize, Photo)> = Vec::new();
    for entry in fs::read_dir(&photos)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
    {
        let class = entry.file_name().unwrap().to_str().unwrap();
        let class = float
            .labels
            .iter()
            .position(|label| label == class)
            .unwrap();
        let files = fs::read_dir(&entry)
            .unwrap()
            .map(|file| file.unwrap().path());
        labelled.extend(files.map(|path| {
            (
                class,
                Photo {
                    path,
                    mirrored: false,
                },
            )
        }));
    }
    assert_eq!(labelled.len(), 300);
    let files: Vec<Photo> = labelled.iter().map(|(_, photo)| photo.clone()).collect();
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let mut answers = Vec::new();
    for (model, precision) in [(&float, Some(Precision::Fp32)), (&int8, None)] {
        let config = EngineConfig {
            precision,
            ..EngineConfig::new(threads)
        };
        let config = OfflineConfig {
            engine: config,
            preprocess: PreprocessConfig::default(),
        };
        let offline = Offline::start(&config, model).unwrap();
        println!("{} {}", offline.engine.kind, offline.engine.precision);
        let logits = offline.run(&files, |_| {}).await.unwrap();
        let best = |logits: Vec<f32>| {
            (0..logits.len())
                .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
                .unwrap()
        };
        answers.push(
            logits
                .into_iter()
                .map(|logits| best(logits.unwrap()))
                .collect::<Vec<usize>>(),
        );
    }
    let part = |right: &dyn Fn(usize) -> bool| {
        (0..300).filter(|&index| right(index)).count() as f64 / 300.0
    };
    let [fp32, int8] =
        [0, 1].map(|which| part(&|index| answers[which][index] == labelled[index].0));
    let agreement = part(&|index| answers[0][index] == answers[1][index]);
    println!("top-1 {fp32:.4} in fp32, {int8:.4} in int8; they agree on {agreement:.4}");
    assert!(
        (fp32 - int8).abs() <= 0.007 && agreement >= 0.98,
        "{fp32} {int8} {agreement}"
    );
}
