//! Networks that end with something else than the logits of a single choice, on every engine.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use prost::Message;
use resnet18_server::{
    model::{
        Manifest,
        onnx::{ModelProto, NodeProto, tensor_shape_proto::dimension, type_proto},
    },
    proto::{ClassifyRequest, Image, PixelFormat, RawFrame, image::Source},
};
use tonic::Code;

use crate::common::{Server, resnet18, text, tiny_model::tiny_model};

/// The engines that can be here.
const ENGINES: [&str; 3] = ["openvino", "onnxruntime", "embedded"];

/// Changes [`tiny_model`], whose three scores are the mean red, green and blue of an image.
fn changed(labels: &[&str], change: impl FnOnce(&mut ModelProto)) -> Vec<u8> {
    let mut model = ModelProto::decode(&tiny_model(1)[..]).unwrap();
    Manifest {
        labels: Some(labels.iter().map(|&label| label.into()).collect()),
        mean: Some([0.0; 3]),
        std: Some([1.0; 3]),
        ..Default::default()
    }
    .write(&mut model);
    change(&mut model);
    model.encode_to_vec()
}

/// Adds a node that turns the scores into the output.
fn end_with(model: &mut ModelProto, op_type: &str) {
    let graph = model.graph.as_mut().unwrap();
    graph.node.push(NodeProto {
        op_type: Some(op_type.into()),
        input: vec!["scores".into()],
        output: vec!["out".into()],
        ..Default::default()
    });
    graph.output[0].name = Some("out".into());
}

/// Three independent classes.
fn multi_label() -> Vec<u8> {
    changed(&["red", "green", "blue"], |model| {
        end_with(model, "Sigmoid");
    })
}

/// One choice of three classes, whose log-probabilities it gives.
fn log_softmax() -> Vec<u8> {
    changed(&["red", "green", "blue"], |model| {
        end_with(model, "LogSoftmax");
    })
}

/// Whether an image is red: one score, which is the mean of red.
fn binary() -> Vec<u8> {
    changed(&["other", "red"], |model| {
        let graph = model.graph.as_mut().unwrap();
        graph.initializer[0].dims = vec![3, 1];
        graph.initializer[0].float_data = vec![1.0, 0.0, 0.0];
        let Some(type_proto::Value::TensorType(tensor)) =
            graph.output[0].r#type.as_mut().unwrap().value.as_mut()
        else {
            panic!("the output is no tensor");
        };
        tensor.shape.as_mut().unwrap().dim[1].value = Some(dimension::Value::DimValue(1));
        end_with(model, "Sigmoid");
    })
}

/// One image of a single colour, 255 red and 51 green, of which the models see 1 and 0.2.
fn orange(model: &str) -> ClassifyRequest {
    let frame = RawFrame {
        format: PixelFormat::Rgb8.into(),
        width: 32,
        height: 32,
        stride: 0,
        data: [255, 51, 0].repeat(32 * 32).into(),
    };
    ClassifyRequest {
        model: model.into(),
        image: Some(Image {
            source: Some(Source::Raw(frame)),
        }),
        ..Default::default()
    }
}

/// The model's answer, once it has been loaded.
async fn answer(server: &Server, model: &str) -> Vec<(String, f32)> {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        match server.client().await.classify(orange(model)).await {
            Ok(response) => {
                let classes = response.into_inner().classifications.into_iter();
                return classes
                    .map(|class| (class.label, class.probability))
                    .collect();
            }
            Err(status) if status.code() == Code::Unavailable && Instant::now() < give_up => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(status) => panic!("{status}\n{}", server.log()),
        }
    }
}

fn assert_answer(found: &[(String, f32)], expected: &[(&str, f64)]) {
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((label, probability), (expected_label, expected)) in found.iter().zip(expected) {
        assert_eq!(label, expected_label, "{found:?}");
        assert!(
            (f64::from(*probability) - expected).abs() < 1e-3,
            "{found:?}"
        );
    }
}

fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

fn is_here(engine: &str, model: &Path) -> bool {
    let output = resnet18()
        .args(["check", "--engine", engine])
        .arg(model)
        .output()
        .unwrap();
    let error = text(&output.stderr);
    if error.contains("library was not found") {
        println!("SKIPPED: {engine} is not here");
        return false;
    }
    assert!(output.status.success(), "{engine}: {error}");
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn independent_classes_and_single_scores_are_served_by_every_engine() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("colours.onnx"), multi_label()).unwrap();
    fs::write(at("red.onnx"), binary()).unwrap();
    fs::write(at("logarithms.onnx"), log_softmax()).unwrap();

    for engine in ENGINES {
        if !is_here(engine, &at("colours.onnx")) {
            continue;
        }
        let folder = folder.path().to_str().unwrap();
        let server = Server::start(&[
            "--model-dir",
            folder,
            "--engine",
            engine,
            "--precision",
            "fp32",
        ]);
        assert_answer(
            &answer(&server, "colours").await,
            &[
                ("red", sigmoid(1.0)),
                ("green", sigmoid(0.2)),
                ("blue", 0.5),
            ],
        );
        assert_answer(
            &answer(&server, "red").await,
            &[("red", sigmoid(1.0)), ("other", sigmoid(-1.0))],
        );
        let sum = 1_f64.exp() + 0.2_f64.exp() + 1.0;
        assert_answer(
            &answer(&server, "logarithms").await,
            &[
                ("red", 1_f64.exp() / sum),
                ("green", 0.2_f64.exp() / sum),
                ("blue", 1.0 / sum),
            ],
        );
        // Scores that are independent pass a threshold each for itself, and have embeddings too.
        let above = ClassifyRequest {
            min_probability: 0.52,
            want_embedding: true,
            ..orange("colours")
        };
        let above = server.client().await.classify(above).await;
        let above = above.unwrap().into_inner();
        assert_eq!(above.classifications.len(), 2, "{above:?}");
        assert_eq!(above.embedding.unwrap().values.len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_can_be_given_for_logits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("colours.onnx");
    fs::write(&path, changed(&["red", "green", "blue"], |_| {})).unwrap();
    let path = path.to_str().unwrap();

    let server = Server::start(&["--model", path, "--activation", "sigmoid"]);
    assert_answer(
        &answer(&server, "").await,
        &[
            ("red", sigmoid(1.0)),
            ("green", sigmoid(0.2)),
            ("blue", 0.5),
        ],
    );

    // `import` writes it into the file.
    let imported = folder.path().join("imported.onnx");
    let output = resnet18()
        .args(["import", path, "--activation", "sigmoid", "--output"])
        .arg(&imported)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let server = Server::start(&["--model", imported.to_str().unwrap()]);
    assert_eq!(answer(&server, "").await[2].1, 0.5);
}
