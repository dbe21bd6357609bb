//! Post-training quantization to int8 with a folder of photos: the program's reports and files, and
//! the accuracy afterwards.

use std::{fs, num::NonZeroUsize, path::Path, process::Output};

use resnet18_server::{
    engine::{EngineConfig, EngineKind, Precision},
    image::PreprocessConfig,
    model::{Model, Overrides},
    offline::{OfflineConfig, OfflineModel, Photo},
};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{Server, data, resnet18, shared, shared_turn, skipped, text};

fn run(arguments: &[&str]) -> Output {
    // Quantizing keeps the processor busy.
    let _turn = shared_turn();
    resnet18().args(arguments).output().unwrap()
}

/// A path as an argument of the program.
fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder tree with the repository's test images and one file that is no image.
fn photos() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("holiday/2024");
    fs::create_dir_all(&deep).unwrap();
    let mut count = 0;
    for root in [data(""), data("crops")] {
        for entry in fs::read_dir(root).unwrap() {
            let entry = entry.unwrap().path();
            let extension = entry.extension().and_then(|extension| extension.to_str());
            if let Some("jpg" | "png" | "webp") = extension {
                let name = entry.file_name().unwrap().display();
                fs::copy(&entry, deep.join(format!("{count}-{name}"))).unwrap();
                count += 1;
            }
        }
    }

    fs::write(folder.path().join("notes.txt"), "no image").unwrap();
    assert!(count >= 10, "{count} test images");
    folder
}

/// Quantizes the bundled model; returns the JSON report.
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

/// Whether OpenVINO computes int8 exactly here; otherwise a message says that its tests are skipped.
fn has_openvino() -> bool {
    #[cfg(target_arch = "x86_64")]
    if !(is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni")) {
        skipped("this processor has no VNNI: sums of 8-bit products saturate, so int8 is refused");
        return false;
    }
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
fn a_quantized_file_records_its_origin_and_is_served_in_int8() {
    let (photos, folder) = (photos(), tempfile::tempdir().unwrap());
    let output = folder.path().join("small.onnx");

    let report = quantize(
        photos.path(),
        &output,
        &["--calibration-photos", "8", "--min-agreement", "0"],
    );
    assert_eq!(report["layers"], 21);
    assert_eq!(report["calibration_photos"], 8);
    assert_eq!(
        (&report["skipped_files"], &report["ignored_files"]),
        (&1.into(), &1.into())
    );
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

    // A quantized model can't be quantized again.
    let again = run(&[
        "quantize",
        path(&output),
        "--calibration",
        path(photos.path()),
        "-o",
        path(&output),
        "--force",
    ]);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        text(&again.stderr).contains("quantized already"),
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
            text(&refused.stderr).contains("quantized to int8"),
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
fn a_server_quantizes_at_startup_and_caches_the_result() {
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
        "--min-agreement",
        "0.5",
        "--engine-cache",
        path(cache.path()),
    ];
    let start = || {
        let server = Server::start(&flags);
        assert_eq!(
            server.metric("classifier_engine_info", &["precision=\"int8\""]),
            1.0
        );
        server.log()
    };
    // The cache also holds what starts have found out, which is small.
    let cached_model = || {
        fs::read_dir(cache.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "plan"))
            .max_by_key(|path| path.metadata().unwrap().len())
    };

    let first = start();
    assert!(first.contains("quantizing to int8"), "{first}");

    let second = start();
    assert!(
        !second.contains("quantizing to int8") && second.contains("using the quantized model"),
        "{second}"
    );

    let file = cached_model().unwrap();
    let mut content = fs::read(&file).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&file, content).unwrap();
    let third = start();
    assert!(
        third.contains("damaged") && third.contains("quantizing to int8"),
        "{third}"
    );
}

#[test]
fn int8_needs_a_quantized_model_or_a_calibration_with_enough_photos() {
    let ports = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let serve = |flags: &[&str]| run(&[&["serve"], &ports[..], flags].concat());
    let float = serve(&["--precision", "int8"]);
    assert_eq!(float.status.code(), Some(1));
    assert!(
        text(&float.stderr).contains("resnet18 quantize"),
        "{}",
        text(&float.stderr)
    );

    let without_precision = serve(&["--calibration", "."]);
    assert_eq!(without_precision.status.code(), Some(64));

    let missing_folder = serve(&["--precision", "int8", "--calibration", "/nowhere"]);
    assert_eq!(missing_folder.status.code(), Some(64));

    let empty = tempfile::tempdir().unwrap();
    let output = empty.path().join("m.onnx");
    let too_few = run(&[
        "quantize",
        "--calibration",
        path(empty.path()),
        "-o",
        path(&output),
    ]);
    assert!(
        text(&too_few.stderr).contains("0 photos") && !output.exists(),
        "{}",
        text(&too_few.stderr)
    );

    let photos = photos();
    let unknown_layer = run(&[
        "quantize",
        "--calibration",
        path(photos.path()),
        "-o",
        path(&output),
        "--keep-float",
        "conv9",
    ]);
    let error = text(&unknown_layer.stderr);
    assert!(
        error.contains("conv9") && error.contains("/conv1/Conv"),
        "{error}"
    );
}

/// The README's accuracy figures: calibrated with photos of other classes, the bundled model is as
/// accurate as before.
#[tokio::test]
async fn int8_is_as_accurate_as_fp32_on_photos() {
    let (Some(calibration), Some(photos)) = (shared("dataset/train"), shared("photos")) else {
        return;
    };
    let _turn = shared_turn();
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
        let offline = OfflineModel::start(&config, model).unwrap();
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

    let classes: Vec<usize> = labelled.iter().map(|(class, _)| *class).collect();
    let fp32 = equal_part(&answers[0], &classes);
    let int8 = equal_part(&answers[1], &classes);
    let agreement = equal_part(&answers[0], &answers[1]);
    println!("top-1 {fp32:.4} in fp32, {int8:.4} in int8; they agree on {agreement:.4}");
    assert!(
        (fp32 - int8).abs() <= 0.007 && agreement >= 0.98,
        "top-1 {fp32} in fp32, {int8} in int8; they agree on {agreement}"
    );
}

/// The part of all places in which two lists of the same length are equal.
fn equal_part(a: &[usize], b: &[usize]) -> f64 {
    let equal = a.iter().zip(b).filter(|(a, b)| a == b).count();
    equal as f64 / a.len() as f64
}
