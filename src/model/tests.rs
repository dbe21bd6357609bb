//! Tests of whole models: labels, settings, and logits against reference values.

use std::{collections::BTreeMap, fs, path::Path};

use prost::Message;
use serde_json::Value;

use super::{
    onnx::{ModelProto, StringStringEntryProto, tensor_proto::DataType},
    testing::{self, assert_close, bytes, graph, infer, tiny},
    *,
};
use crate::testing::shared;

fn names() -> Vec<String> {
    ["a", "b", "c", "d"].map(str::to_owned).to_vec()
}

fn labelled() -> Overrides {
    Overrides {
        labels: Some(names()),
        ..Default::default()
    }
}

fn with_manifest(json: &str) -> Bytes {
    let mut model = tiny();
    let (key, value) = (Some(Manifest::KEY.into()), Some(json.into()));
    model
        .metadata_props
        .push(StringStringEntryProto { key, value });
    bytes(&model)
}

fn refusal(model: &ModelProto, overrides: &Overrides) -> String {
    Model::from_bytes(bytes(model), overrides)
        .unwrap_err()
        .to_string()
}

#[test]
fn flags_win_over_the_manifest_and_that_over_defaults() {
    let json =
        r#"{"name":"birds","labels":["e","f","g","h"],"resize_shorter_side":9,"note":"kept"}"#;
    let model = Model::from_bytes(with_manifest(json), &Overrides::default()).unwrap();
    assert_eq!(
        (model.name.as_str(), model.labels.join("")),
        ("birds", "efgh".to_owned())
    );
    assert_eq!(model.geometry, Geometry::cropped(6, 4, 9));
    assert_eq!(model.manifest.other["note"], "kept");

    let overrides = Overrides {
        name: Some("owls".into()),
        resize_shorter_side: Some(12),
        ..labelled()
    };
    let model = Model::from_bytes(with_manifest(json), &overrides).unwrap();
    assert_eq!(
        (model.name.as_str(), model.labels.join("")),
        ("owls", "abcd".to_owned())
    );
    assert_eq!(model.geometry.resize_shorter_side, 12);

    let model = Model::from_bytes(bytes(&tiny()), &labelled()).unwrap();
    assert_eq!(
        (model.name.as_str(), model.geometry.resize_shorter_side),
        ("model", 6)
    );
    assert_eq!(model.version.len(), 12);
}

#[test]
fn a_file_gives_its_name_and_the_labels_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("garden.v2.onnx");
    fs::write(&path, bytes(&tiny())).unwrap();
    let error = Model::from_file(&path, &Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("garden.v2.onnx")
            && error.contains("--labels FILE")
            && error.contains("4 classes"),
        "{error}"
    );

    fs::write(folder.path().join("garden.v2.labels.txt"), "e\nf\ng\nh\n").unwrap();
    let model = Model::from_file(&path, &Overrides::default()).unwrap();
    assert_eq!(
        (model.name.as_str(), model.labels.join("")),
        ("garden.v2", "efgh".to_owned())
    );

    fs::write(folder.path().join("garden.v2.labels.txt"), "e\nf\n").unwrap();
    let error = Model::from_file(&path, &Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("has 4 classes, but")
            && error.contains("garden.v2.labels.txt holds 2 labels"),
        "{error}"
    );

    let missing = Model::from_file(Path::new("/no/such.onnx"), &Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(
        missing.starts_with("/no/such.onnx: cannot be read"),
        "{missing}"
    );
}

#[test]
fn a_completed_model_needs_no_other_files() {
    let mut model = decode(&with_manifest(
        r#"{"labels":["e","f","g","h"],"std":[0.5,0.5,0.5],"note":"kept"}"#,
    ))
    .unwrap();
    let overrides = Overrides {
        mean: Some([0.25; 3]),
        resize_shorter_side: Some(9),
        ..Default::default()
    };
    complete(&mut model, &overrides, "owls", None).unwrap();
    let served = Model::from_bytes(bytes(&model), &Overrides::default()).unwrap();
    assert_eq!(
        (served.name.as_str(), served.labels.join("")),
        ("owls", "efgh".to_owned())
    );
    assert_eq!(served.geometry, Geometry::cropped(6, 4, 9));
    let Manifest {
        mean, std, other, ..
    } = served.manifest;
    assert_eq!(
        (mean, std, &other["note"]),
        (Some([0.25; 3]), Some([0.5; 3]), &Value::from("kept"))
    );
}

#[test]
fn labels_must_be_as_many_as_the_classes() {
    let overrides = Overrides {
        labels: Some(vec!["cat".into()]),
        ..Default::default()
    };
    assert_eq!(
        refusal(&tiny(), &overrides),
        "has 4 classes, but was given 1 labels; one label for each class is needed"
    );
    let error = Model::from_bytes(with_manifest(r#"{"labels":["e"]}"#), &Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("its manifest holds 1 labels"), "{error}");
}

#[test]
fn a_thousand_classes_are_imagenets() {
    let mut model = tiny();
    graph(&mut model).initializer = vec![
        testing::floats("fc.weight", &[1000, 3], &[0.5; 3000]),
        testing::floats("fc.bias", &[1000], &[0.0; 1000]),
    ];
    graph(&mut model).output = vec![testing::value("scores", DataType::Float, &[-1, 1000])];
    let model = Model::from_bytes(bytes(&model), &Overrides::default()).unwrap();
    assert_eq!(
        (model.labels.len(), model.labels[0].as_str()),
        (1000, "tench")
    );
}

#[test]
fn settings_that_cannot_be_used_are_refused() {
    let with = |mean: Option<[f32; 3]>, std: Option<[f32; 3]>| Overrides {
        mean,
        std,
        ..labelled()
    };
    assert!(refusal(&tiny(), &with(Some([0.5, f32::NAN, 0.5]), None)).contains("finite"));
    assert!(refusal(&tiny(), &with(None, Some([0.5, 0.0, 0.5]))).contains("above 0"));
    assert!(
        refusal(
            &tiny(),
            &with(Some([123.7, 116.3, 103.5]), Some([58.4, 57.1, 57.4]))
        )
        .contains("divide them by 255")
    );
    let small = Overrides {
        resize_shorter_side: Some(5),
        ..labelled()
    };
    let error = refusal(&tiny(), &small);
    assert!(
        error.contains("is 5, but the network sees 6×4") && error.contains("6 or more"),
        "{error}"
    );

    let mut model = tiny();
    graph(&mut model).input = vec![testing::value("pixels", DataType::Uint8, &[-1, 3, 4, 6])];
    graph(&mut model).node.insert(
        0,
        testing::node("Cast", &["pixels"], "float").with_int("to", 1),
    );
    graph(&mut model).node[1].input[0] = "float".into();
    assert!(
        refusal(&model, &with(Some([0.5; 3]), None)).contains("pixels from 0 to 255 as they are")
    );
    assert!(Model::from_bytes(bytes(&model), &labelled()).is_ok());
}

#[test]
fn content_that_is_not_a_model_is_refused() {
    for (content, reason) in [
        (&b"PK\x03\x04"[..], "zip"),
        (b"", "empty"),
        (b"\x08\x08", "damaged"),
    ] {
        let error = Model::from_bytes(Bytes::copy_from_slice(content), &Overrides::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("is not an ONNX model") && error.contains(reason),
            "{error}"
        );
    }
    let cut = Bytes::from_static(&BUNDLED[..BUNDLED.len() / 2]);
    assert!(
        Model::from_bytes(cut, &Overrides::default())
            .unwrap_err()
            .to_string()
            .contains("damaged or cut off")
    );
}

#[test]
fn the_bundled_model_survives_decoding_and_encoding() {
    let model = ModelProto::decode(Bytes::from_static(BUNDLED)).unwrap();
    assert!(model.encode_to_vec() == BUNDLED, "bytes changed");
}

#[test]
fn the_bundled_model_shares_its_weights_with_the_program() {
    let model = decode(&Bytes::from_static(BUNDLED)).unwrap();
    let weights = model.graph.unwrap().initializer[0]
        .raw_data
        .clone()
        .unwrap();
    assert!(BUNDLED.as_ptr_range().contains(&weights.as_ptr()));
}

#[test]
fn the_bundled_model_has_the_documented_properties() {
    let model = Model::bundled(&Overrides::default()).unwrap();
    assert_eq!(
        (model.name.as_str(), model.labels.len(), model.graph.classes),
        ("resnet18-demo", 106, 106)
    );
    assert_eq!(model.geometry, Geometry::cropped(224, 224, 256));
    assert_eq!(model.graph.batch, Batch::Any);
    assert_eq!(model.activation, Activation::Softmax);

    let onnx = ModelProto::decode(
        model
            .graph
            .to_onnx(None, BodyPrecision::Fp32)
            .unwrap()
            .as_slice(),
    )
    .unwrap();
    assert!(Manifest::read(&onnx).unwrap() == model.manifest);
    let graph = onnx.graph.unwrap();
    assert_eq!(
        graph
            .node
            .iter()
            .filter(|node| node.op_type() == "Cast")
            .count(),
        1,
        "only the pixels are cast"
    );
    assert!(
        graph
            .initializer
            .iter()
            .all(|tensor| tensor.data_type() == DataType::Float as i32)
    );
}

/// The crops of `../shared/golden` and what is expected for them.
fn golden(expected: &str) -> Option<(Value, BTreeMap<String, Vec<u8>>)> {
    let folder = shared("golden")?;
    let read = |name: &str| {
        serde_json::from_slice::<Value>(&fs::read(folder.join(name)).unwrap()).unwrap()
    };
    let all = read("expected.json");
    let crops = all.as_object().unwrap().iter().map(|(name, entry)| {
        let crop = image::open(folder.join(entry["crop"].as_str().unwrap())).unwrap();
        (name.clone(), crop.into_rgb8().into_raw())
    });
    Some((read(expected), crops.collect()))
}

fn numbers(value: &Value) -> Vec<f32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|value| value.as_f64().unwrap() as f32)
        .collect()
}

/// The file's weights are stored in 16 bits and the reference's are not, so the file itself is up
/// to 0.0026 off.
const STORED_IN_HALF: f32 = 4e-3;

#[test]
fn the_bundled_model_gives_the_golden_logits() {
    let Some((expected, crops)) = golden("expected.json") else {
        return;
    };
    let model = Model::bundled(&Overrides::default()).unwrap();
    let engine =
        rten::Model::load(model.graph.to_onnx(None, BodyPrecision::Fp32).unwrap()).unwrap();
    let single =
        rten::Model::load(model.graph.to_onnx(Some(1), BodyPrecision::Fp32).unwrap()).unwrap();
    let crops: Vec<(String, Vec<u8>)> = crops.into_iter().step_by(3).collect();
    for pair in crops.chunks(2) {
        let images: Vec<u8> = pair.iter().flat_map(|(_, crop)| crop.clone()).collect();
        let logits = infer(&engine, &images, [pair.len(), 224, 224, 3]);
        for ((name, _), logits) in pair.iter().zip(logits.chunks(106)) {
            assert_close(logits, &numbers(&expected[name]["logits"]), STORED_IN_HALF);
        }
    }
    let (name, crop) = &crops[0];
    assert_close(
        &infer(&single, crop, [1, 224, 224, 3]),
        &numbers(&expected[name]["logits"]),
        STORED_IN_HALF,
    );
}

#[test]
fn rewriting_does_not_change_the_bundled_models_answers() {
    let pixels: Vec<u8> = (0..224 * 224 * 3)
        .map(|index: usize| (index * index / 977 % 256) as u8)
        .collect();
    let model = Model::bundled(&Overrides::default()).unwrap();
    let served = testing::run(
        model.graph.to_onnx(None, BodyPrecision::Fp32).unwrap(),
        &pixels,
        [1, 224, 224, 3],
    );

    let Normalization { mean, std } = Normalization::IMAGENET;
    let of =
        |colour: usize| move |&value: &u8| (f32::from(value) / 255.0 - mean[colour]) / std[colour];
    let planes = (0..3)
        .flat_map(|colour| pixels.iter().skip(colour).step_by(3).map(of(colour)))
        .collect::<Vec<_>>();
    let input = rten_tensor::Tensor::from_data(&[1, 3, 224, 224], planes);
    let plain = rten::Model::load_static_slice(BUNDLED).unwrap();
    let logits: rten_tensor::Tensor<f32> = plain
        .run_one(input.into(), None)
        .unwrap()
        .try_into()
        .unwrap();
    assert_close(&served, &rten_tensor::AsView::to_vec(&logits), 1e-4);
}

#[test]
fn another_exporters_network_gives_the_golden_answers() {
    let Some((expected, crops)) = golden("expected-efficientnet-lite0.json") else {
        return;
    };
    let overrides = Overrides {
        mean: Some([0.498; 3]),
        std: Some([0.502; 3]),
        ..Default::default()
    };
    let model = Model::from_file(
        &shared("models/efficientnet-lite0.onnx").unwrap(),
        &overrides,
    )
    .unwrap();
    assert_eq!(
        (model.name.as_str(), model.graph.classes),
        ("efficientnet-lite0", 1000)
    );
    for batch in [None, Some(1)] {
        let engine =
            rten::Model::load(model.graph.to_onnx(batch, BodyPrecision::Fp32).unwrap()).unwrap();
        for (name, crop) in crops.iter().step_by(12) {
            let logits = infer(&engine, crop, [1, 224, 224, 3]);
            let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
            for top in expected["top5"][name].as_array().unwrap() {
                let class = top[0].as_u64().unwrap() as usize;
                assert_eq!(top[1].as_str().unwrap(), model.labels[class]);
                assert_close(
                    &[logits[class].exp() / sum],
                    &[top[2].as_f64().unwrap() as f32],
                    1e-3,
                );
            }
        }
    }
}

/// Gives `base` a layer of three classes, and checks that the new file is that layer on the
/// backbone's features.
fn assert_layer_replaced(base: &Base, mean: [f32; 3]) {
    let features = base.features();
    let weight: Vec<f32> = (0..3 * features)
        .map(|i| ((i * 37 % 23) as f32 - 11.0) * 0.01)
        .collect();
    let layer = LinearLayer {
        weight,
        bias: vec![0.5, -0.25, 0.0],
    };
    let labels = ["x", "y", "z"].map(str::to_owned).to_vec();
    let training = serde_json::json!({ "validation_accuracy": 0.5 });
    let onnx = base
        .with_layer(
            &layer,
            Description {
                name: "mine".into(),
                labels,
                training,
            },
        )
        .unwrap();
    let model = Model::from_bytes(onnx.into(), &Overrides::default()).unwrap();
    assert_eq!(
        (model.name.as_str(), model.labels.join("")),
        ("mine", "xyz".to_owned())
    );
    assert_eq!(
        (model.geometry, model.manifest.mean),
        (base.backbone.geometry, Some(mean))
    );
    assert_eq!(model.manifest.other["training"]["validation_accuracy"], 0.5);
    assert_eq!(model.manifest.other["base"]["name"], base.backbone.name);

    let run = |graph: &ServingGraph| {
        let image: Vec<u8> = (0..224 * 224 * 3).map(|i| (i * 7919 % 251) as u8).collect();
        let engine =
            rten::Model::load(graph.to_onnx(Some(1), BodyPrecision::Fp32).unwrap()).unwrap();
        infer(&engine, &image, [1, 224, 224, 3])
    };
    let seen = run(&base.backbone.graph);
    let rows = layer.weight.chunks(features).zip(&layer.bias);
    let expected: Vec<f32> = rows
        .map(|(row, bias)| row.iter().zip(&seen).map(|(a, b)| a * b).sum::<f32>() + bias)
        .collect();
    assert_close(&run(&model.graph), &expected, 1e-3);
    assert!(base.backbone.graph.features && !model.graph.features);
}

#[test]
fn the_bundled_models_last_layer_can_be_replaced() {
    let base = Base::bundled(&Overrides::default()).unwrap();
    assert_eq!(base.features(), 512);
    assert_layer_replaced(&base, Normalization::IMAGENET.mean);
}

#[test]
fn another_exporters_last_layer_can_be_replaced_too() {
    let Some(path) = shared("models/efficientnet-lite0.onnx") else {
        return;
    };
    let overrides = Overrides {
        mean: Some([0.498; 3]),
        std: Some([0.502; 3]),
        ..Default::default()
    };
    let base = Base::from_file(&path, &overrides).unwrap();
    assert_eq!(base.features(), 1280);
    assert_layer_replaced(&base, [0.498; 3]);
}

#[test]
fn a_base_of_an_old_opset_with_a_function_is_cut_and_completed() {
    use crate::model::{
        onnx::{FunctionProto, OperatorSetIdProto},
        testing::node,
    };

    let mut model = testing::tiny();
    model.opset_import[0].version = Some(9);
    model.opset_import.push(OperatorSetIdProto {
        domain: Some("mine".into()),
        version: Some(1),
    });
    let linear = FunctionProto {
        name: Some("Linear".into()),
        domain: Some("mine".into()),
        input: ["x", "w", "b"].map(str::to_owned).to_vec(),
        output: vec!["y".into()],
        node: vec![node("Gemm", &["x", "w", "b"], "y").with_int("transB", 1)],
        ..Default::default()
    };
    model.functions.push(linear);
    let top = testing::graph(&mut model);
    let call = top.node.last_mut().unwrap();
    call.op_type = Some("Linear".into());
    call.domain = Some("mine".into());
    call.attribute.clear();

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.onnx");
    std::fs::write(&path, testing::bytes(&model)).unwrap();
    let base = Base::from_file(&path, &Overrides::default()).unwrap();
    assert_eq!(base.features(), 3);
    let layer = LinearLayer {
        weight: vec![0.5; 6],
        bias: vec![1.0; 2],
    };
    let description = Description {
        name: "new".into(),
        labels: vec!["a".into(), "b".into()],
        training: serde_json::Value::Null,
    };
    let file = base.with_layer(&layer, description).unwrap();
    let served = Model::from_bytes(file.clone().into(), &Overrides::default()).unwrap();
    assert_eq!(served.graph.classes, 2);
    let file = decode(&file.into()).unwrap();
    assert_eq!(file.opset_import[0].version, Some(13));
    assert!(file.functions.is_empty());
}

#[test]
fn what_training_services_export_is_served_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    fs::write(&path, bytes(&tiny())).unwrap();
    let file = |name: &str, content: &str| fs::write(folder.path().join(name), content).unwrap();
    let served = || Model::from_file(&path, &Overrides::default());

    file("labels.txt", "0 owl\n1 wren\n2 finch\n3 crow\n");
    assert_eq!(served().unwrap().labels.join(" "), "owl wren finch crow");
    file("labels.txt", "owl;wren;finch");
    let error = served().unwrap_err().to_string();
    assert!(error.contains("labels.txt holds 3 labels"), "{error}");
    file("labels.txt", "owl;wren;finch;crow\n");
    file(
        "nvinfer_config.txt",
        "offsets=103.939;116.779;123.68\nmodel-color-format=1\n",
    );
    let model = served().unwrap();
    assert_eq!(model.labels.join(" "), "owl wren finch crow");
    assert_eq!(model.graph.channels, ChannelOrder::Bgr);
    assert_eq!(model.geometry.fit, Fit::Squash);
    assert_eq!(model.sources.len(), 2, "{:?}", model.sources);
    file("nvinfer_config.txt", "offsets=1;2");
    let error = served().unwrap_err().to_string();
    assert!(error.contains("nvinfer_config.txt beside it"), "{error}");
    fs::remove_file(folder.path().join("nvinfer_config.txt")).unwrap();

    // A file of this name that is another's.
    file("metadata.json", "[1, 2");
    served().unwrap();
    file(
        "metadata.json",
        r#"{"packageName": "@teachablemachine/image", "labels": ["a", "b", "c", "d"]}"#,
    );
    // Its networks take squares, and this one does not.
    let overrides = Overrides {
        resize_shorter_side: Some(6),
        ..Overrides::default()
    };
    let model = Model::from_file(&path, &overrides).unwrap();
    assert_eq!(model.labels.join(""), "abcd");
    assert_eq!(model.geometry.filter, Filter::Lanczos);

    // Other models in the folder: whose labels they are is not known.
    fs::write(folder.path().join("other.onnx"), bytes(&tiny())).unwrap();
    let error = served().unwrap_err().to_string();
    assert!(error.contains("--labels FILE"), "{error}");
}

#[test]
fn onnxs_own_properties_of_images_are_followed() {
    let mut proto = tiny();
    proto.metadata_props = [
        ("Image.BitmapPixelFormat", "Bgr8"),
        ("Image.NominalPixelRange", "NominalRange_0_255"),
    ]
    .map(|(key, value)| onnx::StringStringEntryProto {
        key: Some(key.into()),
        value: Some(value.into()),
    })
    .into();
    let model = Model::from_bytes(bytes(&proto), &labelled()).unwrap();
    assert_eq!(model.graph.channels, ChannelOrder::Bgr);
    let normalization = model.normalization.unwrap();
    assert_eq!(normalization.mean, [0.0; 3]);
    assert_eq!(normalization.std, [1.0 / 255.0; 3]);
}

#[test]
fn a_new_layer_keeps_the_preprocessing_of_its_base() {
    let mean = [123.68, 116.779, 103.939];
    let overrides = Overrides {
        channels: Some(ChannelOrder::Bgr),
        scale: Some(Scale::Byte),
        mean: Some(mean),
        fit: Some(Fit::Letterbox([127, 0, 128])),
        interpolation: Some(Interpolation::Area),
        ..Default::default()
    };
    let base = Base::bundled(&overrides).unwrap();
    assert_eq!(base.backbone.geometry.filter, Filter::Area);
    assert_layer_replaced(&base, mean);
}

#[test]
fn the_class_for_everything_else_travels_in_the_file() {
    let base = Base::bundled(&Overrides::default()).unwrap();
    let taught = |base: &Base, labels: [&str; 2]| {
        let layer = LinearLayer {
            weight: vec![0.5; 2 * base.features()],
            bias: vec![0.0; 2],
        };
        let description = Description {
            name: "cups".into(),
            labels: labels.map(str::to_owned).to_vec(),
            training: Value::Null,
        };
        base.with_layer(&layer, description).unwrap()
    };
    let file = taught(&base, [UNKNOWN_LABEL, "cup"]);
    let model = Model::from_bytes(file.clone().into(), &Overrides::default()).unwrap();
    assert_eq!(model.unknown_class, Some(0));
    assert_eq!(model.serving_manifest().unknown_class, Some(0));

    // Of a model that is learned from this one it is no class any more.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cups.onnx");
    fs::write(&path, file).unwrap();
    let base = Base::from_file(&path, &Overrides::default()).unwrap();
    assert_eq!(base.backbone.unknown_class, None);
    let file = taught(&base, ["cup", "glass"]);
    let model = Model::from_bytes(file.into(), &Overrides::default()).unwrap();
    assert_eq!(model.unknown_class, None);
}

#[test]
fn a_class_for_everything_else_that_is_none_is_refused() {
    let with = |class: usize| {
        let json = format!(r#"{{"labels":["e","f","g","h"],"unknown_class":{class}}}"#);
        Model::from_bytes(with_manifest(&json), &Overrides::default())
    };
    assert_eq!(with(3).unwrap().unknown_class, Some(3));
    let error = with(4).unwrap_err().to_string();
    assert!(
        error.contains("resnet18.manifest") && error.contains("0 to 3"),
        "{error}"
    );
}
