//! Preprocessing as the authors of a model mean it: settings in flags, in the manifest and beside
//! the file, on every engine, in a real server and in every command.

use std::{fs, num::NonZeroUsize, path::Path, process::Output};

use prost::Message;
use resnet18_server::{
    engine::{self, EngineConfig, EngineError, EngineKind, Precision},
    image::{Filter, Fit, PreprocessConfig, Preprocessor, Source},
    model::{
        ChannelOrder, Interpolation, Model, Overrides, Preset, Scale,
        onnx::{ModelProto, StringStringEntryProto, tensor_proto::DataType},
    },
    proto::{PixelFormat, RawFrame, image},
};
use serde_json::Value;

use crate::common::{
    Server, data, image as photo, request, resnet18, shared, skipped, text,
    tiny_model::{Shape, tiny_model_of},
};

/// Pixels of two colours, 32×32: the upper half one, the lower half the other.
const COLOURS: [[u8; 3]; 2] = [[200, 100, 50], [10, 250, 30]];

fn pixels() -> Vec<u8> {
    COLOURS
        .iter()
        .flat_map(|colour| colour.repeat(32 * 16))
        .collect()
}

/// The means of red, green and blue.
fn means() -> [f32; 3] {
    std::array::from_fn(|colour| {
        COLOURS
            .iter()
            .map(|pixel| f32::from(pixel[colour]))
            .sum::<f32>()
            / 2.0
    })
}

/// The mean of Pillow's luma.
fn luma() -> f32 {
    let luma = |&[red, green, blue]: &[u8; 3]| {
        (u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000) >> 16
    };
    COLOURS.iter().map(luma).sum::<u32>() as f32 / 2.0
}

fn labels(count: usize) -> Option<Vec<String>> {
    Some((0..count).map(|class| format!("class {class}")).collect())
}

/// The logits of one image on an engine; `None` if the engine is not there.
fn logits(kind: EngineKind, model: &Model) -> Option<Vec<f32>> {
    let config = EngineConfig {
        kind: Some(kind),
        precision: Some(Precision::Fp32),
        ..EngineConfig::new(NonZeroUsize::MIN)
    };
    let mut lanes = match engine::start(&config, model) {
        Ok(lanes) => lanes,
        Err(EngineError::Unavailable { .. }) if kind == EngineKind::OpenVino => {
            skipped("there is no OpenVINO; `make openvino` fetches it");
            return None;
        }
        Err(error) => panic!("{kind}: {error}"),
    };
    let batch = lanes.info.max_batch;
    let mut logits = vec![0.0; batch * model.graph.classes];
    lanes.narrow[0]
        .infer(&pixels().repeat(batch), batch, &mut logits)
        .unwrap();
    logits.truncate(model.graph.classes);
    Some(logits)
}

fn assert_logits(name: &str, onnx: &[u8], overrides: Overrides, expected: &[f32]) {
    let overrides = Overrides {
        labels: labels(expected.len()),
        ..overrides
    };
    let model = Model::from_bytes(onnx.to_vec().into(), &overrides)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    for kind in [EngineKind::Embedded, EngineKind::OpenVino] {
        let Some(logits) = logits(kind, &model) else {
            continue;
        };
        let worst = logits
            .iter()
            .zip(expected)
            .map(|(found, expected)| (found - expected).abs() / expected.abs().max(1.0))
            .fold(0.0, f32::max);
        assert!(
            logits.len() == expected.len() && worst < 1e-3,
            "{name} on {kind}: {logits:?} instead of {expected:?}"
        );
    }
}

#[test]
fn networks_get_their_own_colours_scale_and_shape_on_every_engine() {
    let [red, green, blue] = means();
    let unit = Overrides {
        mean: Some([0.0; 3]),
        std: Some([1.0; 3]),
        ..Overrides::default()
    };
    let with = |shape: Shape| tiny_model_of(1, shape);

    let expected = [red, green, blue].map(|mean| mean / 255.0);
    assert_logits("RGB", &with(Shape::Nchw), unit.clone(), &expected);
    assert_logits("channels last", &with(Shape::Nhwc), unit.clone(), &expected);
    assert_logits("no batch", &with(Shape::Chw), unit.clone(), &expected);
    assert_logits(
        "BGR",
        &with(Shape::Nchw),
        Overrides {
            channels: Some(ChannelOrder::Bgr),
            ..unit
        },
        &[blue, green, red].map(|mean| mean / 255.0),
    );
    assert_logits(
        "0 to 255",
        &with(Shape::Nchw),
        Overrides {
            scale: Some(Scale::Byte),
            ..Overrides::default()
        },
        &[red, green, blue],
    );

    // Gray is found by the shape.
    for shape in [Shape::GrayNchw, Shape::GrayNhwc, Shape::GrayNhw] {
        let gray = luma() / 255.0;
        assert_logits(
            "gray",
            &with(shape),
            Overrides::default(),
            &[gray, gray * 2.0, gray * 3.0],
        );
    }

    assert_logits(
        "Keras's caffe",
        &with(Shape::Nhwc),
        Overrides {
            preset: Some(Preset::KerasCaffe),
            ..Overrides::default()
        },
        &[blue - 103.939, green - 116.779, red - 123.68],
    );
    assert_logits(
        "Keras's tf",
        &with(Shape::Nhwc),
        Overrides {
            preset: Some(Preset::KerasTf),
            ..Overrides::default()
        },
        &[red, green, blue].map(|mean| mean / 127.5 - 1.0),
    );
    assert_logits(
        "Keras with a Rescaling layer inside",
        &with(Shape::Nhwc),
        Overrides {
            preset: Some(Preset::KerasTf),
            mean: Some([0.0; 3]),
            std: Some([1.0; 3]),
            ..Overrides::default()
        },
        &[red, green, blue],
    );
    assert_logits(
        "CLIP",
        &with(Shape::Nchw),
        Overrides {
            preset: Some(Preset::Clip),
            ..Overrides::default()
        },
        &[
            (red / 255.0 - 0.481_454_66) / 0.268_629_54,
            (green / 255.0 - 0.457_827_5) / 0.261_302_6,
            (blue / 255.0 - 0.408_210_73) / 0.275_777_1,
        ],
    );
}

fn loaded(overrides: Overrides) -> Model {
    let onnx = tiny_model_of(1, Shape::Nchw);
    Model::from_bytes(onnx.into(), &overrides).unwrap()
}

#[test]
fn presets_are_defaults_under_the_flags() {
    let preset = |preset| {
        loaded(Overrides {
            preset: Some(preset),
            ..Overrides::default()
        })
        .geometry
    };
    let summary = |preset_| {
        let geometry = preset(preset_);
        (geometry.fit, geometry.filter, geometry.resize_shorter_side)
    };
    assert_eq!(
        summary(Preset::Torchvision),
        (Fit::Crop, Filter::Bilinear, 37)
    );
    assert_eq!(summary(Preset::Timm), (Fit::Crop, Filter::Bicubic, 36));
    assert_eq!(
        summary(Preset::KerasCaffe),
        (Fit::Squash, Filter::Linear, 32)
    );
    assert_eq!(summary(Preset::KerasTf), (Fit::Squash, Filter::Linear, 32));
    assert_eq!(summary(Preset::YoloCls), (Fit::Crop, Filter::Bilinear, 32));
    assert_eq!(summary(Preset::Clip), (Fit::Crop, Filter::Bicubic, 32));
    assert_eq!(
        summary(Preset::Paddleclas),
        (Fit::CropRounded, Filter::Linear, 37)
    );

    let geometry = loaded(Overrides {
        preset: Some(Preset::KerasTf),
        fit: Some(Fit::Letterbox([0; 3])),
        interpolation: Some(Interpolation::Lanczos),
        ..Overrides::default()
    })
    .geometry;
    assert_eq!(
        (geometry.fit, geometry.filter),
        (Fit::Letterbox([0; 3]), Filter::Lanczos)
    );
}

#[test]
fn settings_that_contradict_each_other_are_rejected() {
    let refusal = |overrides: Overrides| {
        let onnx = tiny_model_of(1, Shape::Nchw);
        Model::from_bytes(onnx.into(), &overrides)
            .unwrap_err()
            .to_string()
    };
    for (overrides, hint) in [
        (
            Overrides {
                fit: Some(Fit::Letterbox([0; 3])),
                resize_shorter_side: Some(40),
                ..Overrides::default()
            },
            "--resize",
        ),
        (
            Overrides {
                fit: Some(Fit::Squash),
                resize_shorter_side: Some(31),
                ..Overrides::default()
            },
            "32 or more",
        ),
        (
            Overrides {
                input_size: Some([32, 31]),
                ..Overrides::default()
            },
            "--input-size",
        ),
        (
            Overrides {
                mean: Some([124.0, 116.0, 104.0]),
                ..Overrides::default()
            },
            "--scale 255",
        ),
        (
            Overrides {
                scale: Some(Scale::Byte),
                mean: Some([0.485, 0.456, 0.406]),
                ..Overrides::default()
            },
            "--scale 1",
        ),
    ] {
        let error = refusal(overrides);
        assert!(error.contains(hint), "{hint}: {error}");
    }
}

fn run(arguments: &[&str]) -> Output {
    resnet18().args(arguments).output().unwrap()
}

fn import(model: &Path, output: &Path, flags: &[&str]) -> Output {
    let fixed = [
        "import",
        model.to_str().unwrap(),
        "--output",
        output.to_str().unwrap(),
        "--json",
        "--force",
    ];
    run(&[&fixed, flags].concat())
}

fn imported(model: &Path, flags: &[&str]) -> Model {
    let output = model.with_file_name("imported.out");
    let done = import(model, &output, flags);
    assert!(done.status.success(), "{}", text(&done.stderr));
    // Nothing beside the finished file is needed.
    Model::from_bytes(fs::read(&output).unwrap().into(), &Overrides::default()).unwrap()
}

#[test]
fn import_writes_every_setting_into_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.onnx");
    fs::write(&path, tiny_model_of(1, Shape::Nchw)).unwrap();
    let flags = [
        "--preset",
        "keras-caffe",
        "--fit",
        "letterbox:7f0080",
        "--interpolation",
        "area",
    ];
    let output = path.with_file_name("out.onnx");
    let done = import(&path, &output, &flags);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["fit"], "letterbox:7f0080");
    assert_eq!(report["interpolation"], "area");
    assert_eq!(report["channels"], "bgr");

    let model = Model::from_file(&output, &Overrides::default()).unwrap();
    let overrides = Overrides {
        preset: Some(Preset::KerasCaffe),
        fit: Some(Fit::Letterbox([127, 0, 128])),
        interpolation: Some(Interpolation::Area),
        ..Overrides::default()
    };
    let expected = Model::from_file(&path, &overrides).unwrap();
    assert_eq!(model.geometry, expected.geometry);
    assert_eq!(model.normalization, expected.normalization);
    assert_eq!(model.graph.channels, ChannelOrder::Bgr);
    assert_eq!(model.manifest.scale, Some(Scale::Byte));
    assert_eq!(model.manifest.mean, Some([123.68, 116.779, 103.939]));

    // What is usual is not written at all.
    let plain = imported(&path, &[]).manifest;
    assert_eq!(
        (plain.scale, plain.fit, plain.interpolation, plain.channels),
        (None, None, None, None)
    );
}

#[test]
fn an_open_size_is_never_guessed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("open.onnx");
    fs::write(&path, tiny_model_of(1, Shape::OpenNchw)).unwrap();
    let name = path.to_str().unwrap();
    let photos = data("photos");
    let photos = photos.to_str().unwrap();
    for class in ["red", "green"] {
        for number in 0..3 {
            let photo = folder.path().join(format!("train/{class}/{number}.jpg"));
            fs::create_dir_all(photo.parent().unwrap()).unwrap();
            fs::copy(data("cat_gray.jpg"), photo).unwrap();
        }
    }
    let classes = folder.path().to_str().unwrap();
    let labelled = folder.path().join("train");
    let labelled = labelled.to_str().unwrap();
    let output = folder.path().join("out.onnx");
    let output = output.to_str().unwrap();
    for arguments in [
        vec![
            "serve",
            "--model",
            name,
            "--grpc",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
        ],
        vec!["import", name, "--output", output],
        vec!["train", classes, "--base", name, "--output", output],
        vec!["evaluate", labelled, "--model", name],
        vec![
            "quantize",
            name,
            "--calibration",
            photos,
            "--output",
            output,
        ],
        vec!["check", name],
    ] {
        let done = run(&arguments);
        assert!(!done.status.success(), "{arguments:?}");
        let said = text(&done.stderr) + &text(&done.stdout);
        assert!(said.contains("--input-size"), "{arguments:?}: {said}");
    }

    let model = imported(&path, &["--input-size", "48x32"]);
    assert_eq!((model.geometry.width, model.geometry.height), (48, 32));
}

#[test]
fn files_beside_a_model_complete_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    fs::write(&path, tiny_model_of(1, Shape::OpenNchw)).unwrap();
    let file = |name: &str, content: &str| fs::write(folder.path().join(name), content).unwrap();
    file(
        "preprocessor_config.json",
        r#"{"do_resize": true, "size": {"height": 40, "width": 40}, "resample": 3,
            "do_rescale": true, "rescale_factor": 0.00392156862745098, "do_normalize": true,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
            "image_processor_type": "ViTImageProcessor"}"#,
    );
    file(
        "config.json",
        r#"{"id2label": {"0": "owl", "1": "wren", "2": "finch"}}"#,
    );
    let model = Model::from_file(&path, &Overrides::default()).unwrap();
    let geometry = model.geometry;
    assert_eq!(
        (geometry.width, geometry.fit, geometry.filter),
        (40, Fit::Squash, Filter::Bicubic)
    );
    assert_eq!(model.normalization.unwrap().mean, [0.5; 3]);
    // The file's manifest has labels of its own, and more weight.
    assert_eq!(&*model.labels, ["red", "green", "blue"]);
    assert_eq!(model.sources.len(), 2, "{:?}", model.sources);

    // Flags have more weight, and what `import` writes is complete.
    let model = imported(&path, &["--fit", "crop", "--mean", "0.25,0.25,0.25"]);
    assert_eq!(
        (
            model.geometry.fit,
            model.geometry.filter,
            model.geometry.width
        ),
        (Fit::Crop, Filter::Bicubic, 40)
    );
    let normalization = model.normalization.unwrap();
    assert_eq!(
        (normalization.mean, normalization.std),
        ([0.25; 3], [0.5; 3])
    );

    // Also if the new file lies beside the same settings.
    let beside = folder.path().join("model_new.onnx");
    let flags = ["--fit", "crop", "--interpolation", "bilinear"];
    let done = import(&path, &beside, &flags);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let geometry = Model::from_file(&beside, &Overrides::default())
        .unwrap()
        .geometry;
    assert_eq!(
        (geometry.fit, geometry.filter),
        (Fit::Crop, Filter::Bilinear)
    );
    fs::remove_file(&beside).unwrap();

    file("preprocessor_config.json", r#"{"size": 40, "resample": 5}"#);
    let error = Model::from_file(&path, &Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("preprocessor_config.json") && error.contains("\"resample\""),
        "{error}"
    );

    // Another model in the folder: the files belong to neither.
    fs::write(
        folder.path().join("other.onnx"),
        tiny_model_of(2, Shape::Nchw),
    )
    .unwrap();
    let error = Model::from_file(&path, &Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("--input-size"), "{error}");
}

#[test]
fn labels_and_sizes_in_ultralytics_metadata_are_taken() {
    let with_size = |size: &str| {
        let mut model = ModelProto::decode(tiny_model_of(1, Shape::OpenNchw).as_slice()).unwrap();
        model.metadata_props = [
            ("author", "Ultralytics"),
            ("task", "classify"),
            ("imgsz", size),
            ("names", r#"{0: 'owl', 1: "cock's comb", 2: 'wren'}"#),
        ]
        .map(|(key, value)| StringStringEntryProto {
            key: Some(key.into()),
            value: Some(value.into()),
        })
        .into();
        Model::from_bytes(model.encode_to_vec().into(), &Overrides::default())
    };
    let model = with_size("[64, 64]").unwrap();
    assert_eq!(&*model.labels, ["owl", "cock's comb", "wren"]);
    let geometry = model.geometry;
    assert_eq!(
        (geometry.width, geometry.resize_shorter_side, geometry.fit),
        (64, 64, Fit::Crop)
    );
    let normalization = model.normalization.unwrap();
    assert_eq!(
        (normalization.mean, normalization.std),
        ([0.0; 3], [1.0; 3])
    );
    assert_eq!(model.sources.len(), 2, "{:?}", model.sources);

    // Ultralytics scales each side by itself where they differ.
    let geometry = with_size("[48, 64]").unwrap().geometry;
    assert_eq!(
        (geometry.width, geometry.height, geometry.fit),
        (64, 48, Fit::Squash)
    );
    let error = with_size("large").unwrap_err().to_string();
    assert!(error.contains("imgsz"), "{error}");
}

#[tokio::test]
async fn a_server_scales_photos_and_frames_as_the_flags_say() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.onnx");
    fs::write(&path, tiny_model_of(1, Shape::Nchw)).unwrap();
    let server = Server::start(&[
        "--model",
        path.to_str().unwrap(),
        "--engine",
        "embedded",
        "--mean",
        "0",
        "--std",
        "1",
        "--channels",
        "bgr",
        "--fit",
        "letterbox:0000ff",
    ]);
    // Half of the crop is the blue of the padding, which is the network's first channel.
    let mut frame = RawFrame {
        format: PixelFormat::Rgb8.into(),
        width: 64,
        height: 32,
        stride: 0,
        data: [255, 0, 0].repeat(64 * 32).into(),
    };
    frame.data.truncate(64 * 32 * 3);
    let image = resnet18_server::proto::Image {
        source: Some(image::Source::Raw(frame)),
    };
    let answer = server
        .client()
        .await
        .classify(request(image))
        .await
        .unwrap()
        .into_inner();
    let probability = |label: &str| {
        let found = answer
            .classifications
            .iter()
            .find(|class| class.label == label);
        found.unwrap().probability
    };
    // Logits of 0.5, 0 and 0.5: the labels are those of RGB.
    let high = 0.5_f32.exp() / (2.0 * 0.5_f32.exp() + 1.0);
    for (label, expected) in [("red", high), ("blue", high), ("green", 1.0 - 2.0 * high)] {
        assert!(
            (probability(label) - expected).abs() < 1e-3,
            "{label}: {answer:?}"
        );
    }
    server
        .client()
        .await
        .classify(request(photo(data("cat.jpg"))))
        .await
        .unwrap();
}

#[test]
fn the_log_says_what_was_taken_from_where() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    fs::write(&path, tiny_model_of(1, Shape::OpenNchw)).unwrap();
    fs::write(
        folder.path().join("config.json"),
        r#"{"pretrained_cfg": {"input_size": [3, 48, 48], "crop_pct": 0.75, "interpolation": "bicubic"}}"#,
    )
    .unwrap();
    let server = Server::start(&["--model", path.to_str().unwrap(), "--engine", "embedded"]);
    let log = server.log();
    assert!(
        log.contains("preprocessing from config.json (pretrained_cfg)"),
        "{log}"
    );
    let listed = run(&["models", "--server", &server.url(), "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert!(
        listed.to_string().contains("\"resize_shorter_side\":64"),
        "{listed}"
    );
}

/// EfficientNet-Lite0 as its authors feed it: the shorter side at 256, bicubic, a crop of 224,
/// `(pixel - 127) / 128`. The probabilities were computed once by ONNX Runtime 1.32 on crops by
/// Pillow 13.0 of the photos in `tests/data/photos`; with bilinear filtering two of the seven have
/// another top-1.
const EFFICIENTNET: [(&str, [(usize, f32); 3]); 7] = [
    ("cat", [(282, 0.38794), (285, 0.34261), (281, 0.18092)]),
    ("dolphin", [(4, 0.15839), (150, 0.13802), (148, 0.12375)]),
    (
        "grand_piano",
        [(579, 0.96388), (736, 0.0068), (881, 0.00455)],
    ),
    ("leopard", [(293, 0.91683), (288, 0.02139), (276, 0.00243)]),
    ("pizza", [(963, 0.65677), (927, 0.08102), (964, 0.06779)]),
    (
        "sunflower",
        [(985, 0.93955), (883, 0.00661), (738, 0.00362)],
    ),
    ("umbrella", [(879, 0.89066), (672, 0.02356), (667, 0.00765)]),
];

#[test]
fn efficientnet_answers_as_its_authors_feed_it() {
    let Some(models) = shared("models") else {
        return;
    };
    let overrides = Overrides {
        preset: Some(Preset::Timm),
        scale: Some(Scale::Byte),
        mean: Some([127.0; 3]),
        std: Some([128.0; 3]),
        ..Overrides::default()
    };
    let model = Model::from_file(&models.join("efficientnet-lite0.onnx"), &overrides).unwrap();
    let config = EngineConfig {
        kind: Some(EngineKind::Embedded),
        ..EngineConfig::new(NonZeroUsize::MIN)
    };
    let mut lanes = engine::start(&config, &model).unwrap();
    let mut preprocessor = Preprocessor::new(PreprocessConfig::default());
    for (name, expected) in EFFICIENTNET {
        let encoded = fs::read(data(&format!("photos/{name}.jpg"))).unwrap();
        let mut crop = vec![0; model.geometry.bytes()];
        preprocessor
            .crop(&Source::Encoded(encoded.into()), &model.geometry, &mut crop)
            .unwrap();
        let batch = lanes.info.max_batch;
        let mut logits = vec![0.0; batch * model.graph.classes];
        lanes.narrow[0]
            .infer(&crop.repeat(batch), batch, &mut logits)
            .unwrap();
        let logits = &logits[..model.graph.classes];
        let probabilities = resnet18_server::answer::softmax(logits);
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        assert_eq!(best, Some(expected[0].0), "{name}");
        for (class, probability) in expected {
            let off = (probabilities[class] - probability).abs();
            assert!(off < 0.01, "{name}, class {class}: off by {off}");
        }
    }
}

#[test]
fn a_network_of_another_type_has_no_scale() {
    let mut model = ModelProto::decode(tiny_model_of(1, Shape::Nchw).as_slice()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let input = graph.input[0]
        .r#type
        .as_mut()
        .unwrap()
        .value
        .as_mut()
        .unwrap();
    let resnet18_server::model::onnx::type_proto::Value::TensorType(tensor) = input else {
        panic!("the input is a tensor");
    };
    tensor.elem_type = Some(DataType::Uint8 as i32);
    graph.node[0].op_type = Some("GlobalMaxPool".into());
    let overrides = Overrides {
        scale: Some(Scale::Byte),
        ..Overrides::default()
    };
    let error = Model::from_bytes(model.encode_to_vec().into(), &overrides)
        .unwrap_err()
        .to_string();
    assert!(error.contains("takes integers"), "{error}");
}
