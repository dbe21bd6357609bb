//! More than one answer: embeddings, regions, several images in one call, and lists of labels.

use std::{io::Cursor, path::Path};

use ::image::{DynamicImage, ImageFormat, RgbImage};
use prost::Message;
use resnet18_server::{
    image::{PreprocessConfig, decode},
    model::{
        Manifest,
        onnx::{ModelProto, NodeProto},
    },
    proto::{
        Classification, ClassifyBatchRequest, ClassifyRequest, ClassifyResponse, Frame,
        FramePolicy, Image, ListModelsRequest, PixelFormat, Region, RegionUnit,
        StreamClassifyRequest, StreamClassifyResponse, StreamConfig, image_result,
        stream_classify_request::Message as Part, stream_classify_response::Outcome,
    },
};
use tonic::Code;

use super::{open, raw, request_cat};
use crate::common::{Server, config, data, image, request, tiny_model::tiny_model};

const DECODES: &str = "classifier_stage_duration_seconds_count";
const IMAGES: &str = "classifier_batch_size_sum";

/// One engine, which rounds alike whatever it computes beside.
fn exact() -> Server {
    Server::start(&["--engine", "embedded"])
}

fn pixels(left: u32, top: u32, width: u32, height: u32) -> Region {
    Region {
        left: left.into(),
        top: top.into(),
        width: width.into(),
        height: height.into(),
        unit: RegionUnit::Unspecified.into(),
    }
}

fn fractions(left: f64, top: f64, width: f64, height: f64) -> Region {
    Region {
        left,
        top,
        width,
        height,
        unit: RegionUnit::Fractions.into(),
    }
}

/// Labels and probabilities, to the last bit.
fn bits(classes: &[Classification]) -> Vec<(&str, u32)> {
    classes
        .iter()
        .map(|class| (&class.label[..], class.probability.to_bits()))
        .collect()
}

async fn classify(server: &Server, request: ClassifyRequest) -> ClassifyResponse {
    let answer = server.client().await.classify(request).await;
    answer.unwrap().into_inner()
}

async fn refused(server: &Server, request: ClassifyRequest) -> (Code, String) {
    let status = server.client().await.classify(request).await.unwrap_err();
    (status.code(), status.message().to_owned())
}

/// A photo's pixels, upright, as the server decodes them.
fn decoded(name: &str) -> RgbImage {
    let file = std::fs::read(data(name)).unwrap();
    let pixels = decode(&file, &PreprocessConfig::default()).unwrap();
    RgbImage::from_raw(pixels.width, pixels.height, pixels.data).unwrap()
}

/// A part of an image as a PNG.
fn png(whole: &DynamicImage, region: &Region) -> Image {
    let [left, top, width, height] =
        [region.left, region.top, region.width, region.height].map(|value| value as u32);
    let mut file = Cursor::new(Vec::new());
    whole
        .crop_imm(left, top, width, height)
        .write_to(&mut file, ImageFormat::Png)
        .unwrap();
    Image::encoded(file.into_inner())
}

/// [`tiny_model`], whose three scores are the mean red, green and blue, changed.
fn tiny(folder: &Path, change: impl FnOnce(&mut ModelProto)) -> String {
    let mut model = ModelProto::decode(&tiny_model(1)[..]).unwrap();
    Manifest {
        labels: Some(["red", "green", "blue"].map(Into::into).into()),
        mean: Some([0.0; 3]),
        std: Some([1.0; 3]),
        ..Default::default()
    }
    .write(&mut model);
    change(&mut model);
    let path = folder.join("tiny.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// 32 by 32 pixels of one colour.
fn colour(colour: [u8; 3]) -> Image {
    raw(PixelFormat::Rgb8, 32, 32, 0, colour.repeat(32 * 32))
}

#[tokio::test]
async fn an_embedding_comes_with_the_same_classes() {
    let server = exact();
    let plain = classify(&server, request_cat()).await;
    assert_eq!(plain.embedding, None);
    let with = |normalize_embedding| ClassifyRequest {
        want_embedding: true,
        normalize_embedding,
        ..request_cat()
    };
    let answer = classify(&server, with(false)).await;
    assert_eq!(bits(&answer.classifications), bits(&plain.classifications));
    let embedding = answer.embedding.unwrap().values;
    assert_eq!(embedding.len(), 512);
    // They follow a ReLU and an average.
    assert!(embedding.iter().all(|&value| value >= 0.0));
    assert!(embedding.iter().any(|&value| value > 0.1));

    let normalized = classify(&server, with(true))
        .await
        .embedding
        .unwrap()
        .values;
    let length: f32 = embedding
        .iter()
        .map(|value| value * value)
        .sum::<f32>()
        .sqrt();
    for (normalized, value) in normalized.iter().zip(&embedding) {
        assert!((normalized * length - value).abs() < 1e-4);
    }

    let models = server
        .client()
        .await
        .list_models(ListModelsRequest {})
        .await;
    assert_eq!(models.unwrap().into_inner().models[0].embedding_size, 512);
    let alone = ClassifyRequest {
        normalize_embedding: true,
        ..request_cat()
    };
    let (code, message) = refused(&server, alone).await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("want_embedding"), "{message}");
}

#[tokio::test]
async fn an_embedding_is_what_the_last_layer_reads() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = ClassifyRequest {
        want_embedding: true,
        ..request(colour([255, 51, 0]))
    };
    let path = tiny(folder.path(), |_| {});
    let server = Server::start(&["--model", &path]);
    let values = classify(&server, wanted.clone())
        .await
        .embedding
        .unwrap()
        .values;
    for (value, expected) in values.iter().zip([1.0, 0.2, 0.0]) {
        assert!((value - expected).abs() < 5e-3, "{values:?}");
    }

    // Scores that no linear layer computes.
    let path = tiny(folder.path(), |model| {
        let graph = model.graph.as_mut().unwrap();
        graph.node.push(NodeProto {
            op_type: Some("Relu".into()),
            input: vec!["scores".into()],
            output: vec!["out".into()],
            ..Default::default()
        });
        graph.output[0].name = Some("out".into());
    });
    let server = Server::start(&["--model", &path]);
    let (code, message) = refused(&server, wanted).await;
    assert_eq!(code, Code::FailedPrecondition);
    assert!(message.contains("Relu"), "{message}");
    let models = server
        .client()
        .await
        .list_models(ListModelsRequest {})
        .await;
    assert_eq!(models.unwrap().into_inner().models[0].embedding_size, 0);
}

#[tokio::test]
async fn sixty_four_regions_take_one_decode_and_have_the_answers_of_their_cut_outs() {
    let server = exact();
    let whole: DynamicImage = decoded("cat.jpg").into();
    let (width, height) = (whole.width(), whole.height());
    let regions: Vec<Region> = (0..64)
        .map(|index| {
            let (left, top) = (index % 8 * (width / 10), index / 8 * (height / 10));
            pixels(left, top, 20 + index, 24 + index / 3)
        })
        .collect();
    let before = |metric: &str, labels: &[&str]| server.metric(metric, labels);
    let decodes = before(DECODES, &["stage=\"decode\""]);
    let images = before(IMAGES, &[]);
    let answer = classify(
        &server,
        ClassifyRequest {
            top_k: 3,
            regions: regions.clone(),
            ..request_cat()
        },
    )
    .await;
    assert_eq!(server.metric(DECODES, &["stage=\"decode\""]) - decodes, 1.0);
    assert_eq!(server.metric(IMAGES, &[]) - images, 64.0);
    assert_eq!(server.metric("classifier_regions_total", &[]), 64.0);
    assert!(answer.classifications.is_empty() && answer.embedding.is_none());
    assert_eq!(answer.regions.len(), 64);

    for (region, found) in regions.iter().zip(&answer.regions).step_by(9) {
        let alone = ClassifyRequest {
            top_k: 3,
            ..request(png(&whole, region))
        };
        let alone = classify(&server, alone).await;
        assert_eq!(
            bits(&found.classifications),
            bits(&alone.classifications),
            "{region:?}"
        );
    }

    // The whole image is a region too, and has an embedding like any other.
    let whole = classify(
        &server,
        ClassifyRequest {
            regions: vec![fractions(0.0, 0.0, 1.0, 1.0)],
            want_embedding: true,
            ..request_cat()
        },
    )
    .await;
    let plain = classify(&server, request_cat()).await;
    assert_eq!(
        bits(&whole.regions[0].classifications),
        bits(&plain.classifications)
    );
    let embedding = whole.regions[0].embedding.as_ref().unwrap();
    assert_eq!(embedding.values.len(), 512);
}

#[tokio::test]
async fn wrong_regions_are_named() {
    let server = exact();
    let with = |regions: Vec<Region>| ClassifyRequest {
        regions,
        ..request_cat()
    };
    let good = pixels(0, 0, 10, 10);
    for (wrong, expected) in [
        (pixels(0, 0, 0, 10), "is empty"),
        (pixels(100_000, 0, 10, 10), "over the edge"),
        (fractions(0.5, 0.5, 0.75, 0.5), "at 1"),
        (fractions(-0.5, 0.5, 0.5, 0.5), "begins outside"),
        (fractions(f64::NAN, 0.5, 0.5, 0.5), "not a number"),
        (Region { unit: 9, ..good }, "unit 9"),
    ] {
        let (code, message) = refused(&server, with(vec![good, wrong])).await;
        assert_eq!(code, Code::InvalidArgument, "{message}");
        assert!(
            message.contains("region 2") && message.contains(expected),
            "{message}"
        );
    }
    let (code, message) = refused(&server, with(vec![good; 65])).await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(
        message.contains("65 regions") && message.contains("64"),
        "{message}"
    );
}

#[tokio::test]
async fn the_crops_of_regions_count_against_the_memory() {
    let server = Server::start(&["--engine", "embedded", "--max-memory", "32"]);
    let regions = |count| ClassifyRequest {
        regions: vec![pixels(0, 0, 10, 10); count],
        ..request_cat()
    };
    // 64 crops of 147 KiB are more than the quarter that one caller may have.
    let (code, message) = refused(&server, regions(64)).await;
    assert_eq!(code, Code::ResourceExhausted, "{message}");
    assert!(message.contains("--max-memory"), "{message}");
    assert_eq!(classify(&server, regions(8)).await.regions.len(), 8);
}

fn framed(id: u64, image: Image, regions: Vec<Region>) -> StreamClassifyRequest {
    StreamClassifyRequest {
        message: Some(Part::Frame(Frame {
            id,
            captured_at: None,
            image: Some(image),
            regions,
        })),
    }
}

#[tokio::test]
async fn regions_are_set_for_a_stream_or_for_a_frame() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny(folder.path(), |_| {});
    let server = Server::start(&["--model", &path, "--engine", "embedded"]);
    // Red on the left, blue on the right.
    let row = [[255, 0, 0].repeat(16), [0, 0, 255].repeat(16)].concat();
    let halves = || raw(PixelFormat::Rgb8, 32, 32, 0, row.repeat(32));
    let best = |answer: &StreamClassifyResponse| -> Vec<String> {
        match &answer.outcome {
            Some(Outcome::Result(result)) => result
                .regions
                .iter()
                .map(|region| region.classifications[0].label.clone())
                .collect(),
            other => panic!("{other:?}"),
        }
    };
    for policy in [FramePolicy::Every, FramePolicy::Latest] {
        let first = config(StreamConfig {
            top_k: 1,
            policy: policy.into(),
            regions: vec![pixels(0, 0, 16, 32), fractions(0.5, 0.0, 0.5, 1.0)],
            want_embedding: true,
            ..StreamConfig::default()
        });
        let (sender, mut answers) = open(&server, first).await;
        let own = vec![pixels(20, 3, 4, 4)];
        for (id, regions, expected) in [
            (1, Vec::new(), vec!["red", "blue"]),
            (2, own.clone(), vec!["blue"]),
            (3, Vec::new(), vec!["red", "blue"]),
        ] {
            sender.send(framed(id, halves(), regions)).await.unwrap();
            let answer = answers.message().await.unwrap().unwrap();
            assert_eq!(answer.frame_id, id);
            assert_eq!(best(&answer), expected);
            let Some(Outcome::Result(result)) = answer.outcome else {
                unreachable!()
            };
            let embedding = result.regions[0].embedding.as_ref().unwrap();
            assert_eq!(embedding.values.len(), 3);
        }
        // A wrong region fails its frame alone.
        let outside = vec![pixels(30, 0, 4, 4)];
        sender.send(framed(4, halves(), outside)).await.unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        let Some(Outcome::Error(error)) = answer.outcome else {
            panic!("{answer:?}")
        };
        assert_eq!(error.code, Code::InvalidArgument as i32);
        assert!(error.message.contains("region 1 of 1"), "{}", error.message);
        sender.send(framed(5, halves(), own)).await.unwrap();
        assert_eq!(best(&answers.message().await.unwrap().unwrap()), ["blue"]);
    }
}

#[tokio::test]
async fn each_image_of_a_batch_has_a_result_of_its_own() {
    let server = exact();
    let photos = ["cat.jpg", "sunflower_q30.jpg", "moon_16bit.png"];
    let mut images: Vec<Image> = photos.map(|name| image(data(name))).into();
    images.insert(1, Image::encoded(&b"no image"[..]));
    images.insert(3, Image { source: None });
    let batch = ClassifyBatchRequest {
        images,
        top_k: 3,
        want_embedding: true,
        ..Default::default()
    };
    let mut client = server.client().await;
    let answer = client
        .classify_batch(batch.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.model, "resnet18-demo");
    let mut good = photos.iter();
    for (place, result) in answer.results.into_iter().enumerate() {
        match result.outcome.unwrap() {
            image_result::Outcome::Result(result) => {
                let alone = ClassifyRequest {
                    top_k: 3,
                    ..request(image(data(good.next().unwrap())))
                };
                let alone = classify(&server, alone).await;
                assert_eq!(bits(&result.classifications), bits(&alone.classifications));
                assert_eq!(result.embedding.unwrap().values.len(), 512);
            }
            image_result::Outcome::Error(error) => {
                assert!([1, 3].contains(&place), "{place}: {}", error.message);
                assert_eq!(error.code, Code::InvalidArgument as i32);
                let expected = ["JPEG", "image.encoded"][place / 2];
                assert!(error.message.contains(expected), "{}", error.message);
            }
        }
    }
    assert_eq!(good.next(), None);
    let calls = ["method=\"ClassifyBatch\"", "code=\"OK\""];
    assert_eq!(server.metric("classifier_requests_total", &calls), 1.0);

    for (count, expected) in [(0, "0 images"), (65, "65 images")] {
        let wrong = ClassifyBatchRequest {
            images: vec![Image::encoded(&b"x"[..]); count],
            ..Default::default()
        };
        let status = client.classify_batch(wrong).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(expected), "{}", status.message());
    }
    let unknown = ClassifyBatchRequest {
        model: "other".into(),
        ..batch.clone()
    };
    let status = client.classify_batch(unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let bad_only = ClassifyBatchRequest {
        images: vec![Image::encoded(&b"x"[..]); 2],
        ..Default::default()
    };
    let answer = client.classify_batch(bad_only).await.unwrap().into_inner();
    assert_eq!(answer.results.len(), 2);
}

#[tokio::test]
async fn a_batch_counts_as_one_request_in_the_queue() {
    let server = Server::start(&[
        "--engine",
        "embedded",
        "--threads",
        "1",
        "--queue-capacity",
        "1",
    ]);
    let images = vec![image(data("cat.jpg")); 16];
    let batch = ClassifyBatchRequest {
        images,
        top_k: 1,
        ..Default::default()
    };
    let answer = server.client().await.classify_batch(batch).await;
    let results = answer.unwrap().into_inner().results;
    assert_eq!(results.len(), 16);
    for result in results {
        let Some(image_result::Outcome::Result(result)) = result.outcome else {
            panic!("{:?}", result.outcome)
        };
        assert_eq!(result.classifications[0].label, "cat");
    }
}

#[tokio::test]
async fn only_the_labels_that_are_asked_for_are_told_with_unchanged_probabilities() {
    let server = exact();
    let all = classify(
        &server,
        ClassifyRequest {
            top_k: 1000,
            ..request_cat()
        },
    )
    .await
    .classifications;
    let of = |label: &str| {
        let found = all.iter().find(|class| class.label == label).unwrap();
        (
            label.to_owned(),
            found.probability.to_bits(),
            found.class_id,
        )
    };
    let lists = |allow: &[&str], deny: &[&str]| ClassifyRequest {
        allow_labels: allow.iter().map(|&label| label.into()).collect(),
        deny_labels: deny.iter().map(|&label| label.into()).collect(),
        ..request_cat()
    };
    let told = |answer: ClassifyResponse| -> Vec<(String, u32, u32)> {
        let classes = answer.classifications.into_iter();
        classes
            .map(|class| (class.label, class.probability.to_bits(), class.class_id))
            .collect()
    };
    let (cat, sunflower) = (of("cat"), of("sunflower"));
    let index = sunflower.2.to_string();
    let answer = classify(&server, lists(&[&index, "cat"], &[])).await;
    assert_eq!(told(answer), [cat.clone(), sunflower.clone()]);
    let answer = classify(&server, lists(&["sunflower"], &[])).await;
    assert_eq!(told(answer), [sunflower]);
    let answer = classify(&server, lists(&[], &["cat"])).await;
    let told = told(answer);
    assert_eq!(told.len(), 5);
    assert_eq!(told[0].0, all[1].label);

    for (wrong, field) in [
        (lists(&["Cat"], &[]), "allow_labels"),
        (lists(&[], &["cat", "1000000"]), "deny_labels"),
    ] {
        let (code, message) = refused(&server, wrong).await;
        assert_eq!(code, Code::InvalidArgument);
        assert!(
            message.contains(field) && message.contains("neither a label nor an index"),
            "{message}"
        );
    }
}
