//! Single requests: answers, options, bad input, and batches.

use std::time::Duration;

use resnet18_server::proto::{
    ClassifyRequest, ClassifyResponse, Image, ListModelsRequest, PixelFormat, RawFrame,
    image::Source,
};
use tonic::Code;

use super::{raw, request_cat};
use crate::common::{Server, data, image, request};

#[tokio::test]
async fn an_answer_has_labels_a_version_and_timing() {
    let server = Server::start(&[]);

    let answer = server
        .client()
        .await
        .classify(request_cat())
        .await
        .unwrap()
        .into_inner();

    assert_eq!(answer.model, "resnet18-demo");
    assert_eq!(answer.model_version.len(), 12);
    assert_eq!(answer.classifications.len(), 5);
    let first = &answer.classifications[0];
    assert_eq!(first.label, "cat");
    assert!(
        (first.probability - 0.70).abs() < 0.02,
        "{}",
        first.probability
    );
    assert!(
        answer
            .classifications
            .is_sorted_by(|a, b| a.probability >= b.probability)
    );

    let timing = answer.timing.unwrap();
    let seconds =
        |d: Option<prost_types::Duration>| Duration::try_from(d.unwrap()).unwrap().as_secs_f64();
    let parts = seconds(timing.decode) + seconds(timing.queue) + seconds(timing.inference);
    assert!(seconds(timing.decode) > 0.0 && seconds(timing.inference) > 0.0);
    assert!(
        parts <= seconds(timing.total),
        "the stages take {parts} s, but all of it {} s",
        seconds(timing.total)
    );
}

#[tokio::test]
async fn top_k_and_min_probability_limit_the_answer() {
    let server = Server::start(&[]);
    let mut client = server.client().await;
    let ask = |top_k, min_probability| ClassifyRequest {
        top_k,
        min_probability,
        ..request_cat()
    };
    let count =
        |answer: tonic::Response<ClassifyResponse>| answer.into_inner().classifications.len();

    assert_eq!(count(client.classify(ask(1, 0.0)).await.unwrap()), 1);
    assert_eq!(
        count(client.classify(ask(1_000_000, 0.0)).await.unwrap()),
        106
    );
    assert_eq!(count(client.classify(ask(0, 0.5)).await.unwrap()), 1);

    for wrong in [-0.1, 1.5, f32::NAN] {
        let status = client.classify(ask(5, wrong)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(
            status.message().contains("min_probability"),
            "{}",
            status.message()
        );
    }
}

#[tokio::test]
async fn bad_requests_are_refused_with_advice_and_the_next_one_is_served() {
    let server = Server::start(&["--max-message-mib", "1"]);
    let mut client = server.client().await;
    let encoded = |bytes: &[u8]| Image {
        source: Some(Source::Encoded(bytes.to_vec().into())),
    };
    let cat = std::fs::read(data("cat.jpg")).unwrap();
    let cases: Vec<(ClassifyRequest, Code, &str)> = vec![
        (
            ClassifyRequest::default(),
            Code::InvalidArgument,
            "image.encoded",
        ),
        (
            request(Image { source: None }),
            Code::InvalidArgument,
            "image.encoded",
        ),
        (request(encoded(b"")), Code::InvalidArgument, "empty"),
        (
            request(encoded(b"<html>not found</html>")),
            Code::InvalidArgument,
            "JPEG",
        ),
        (
            request(encoded(&cat[..cat.len() / 2])),
            Code::InvalidArgument,
            "JPEG",
        ),
        (
            request(raw(PixelFormat::Unspecified, 2, 2, 0, vec![0; 12])),
            Code::InvalidArgument,
            "RGB8",
        ),
        (
            request(raw(PixelFormat::Rgb8, 2, 2, 5, vec![0; 12])),
            Code::InvalidArgument,
            "stride",
        ),
        (
            request(raw(PixelFormat::Rgb8, 2, 2, 0, vec![0; 11])),
            Code::InvalidArgument,
            "12",
        ),
        (
            ClassifyRequest {
                model: "vgg".into(),
                ..request(encoded(&cat))
            },
            Code::NotFound,
            "resnet18-demo",
        ),
        (
            request(encoded(&vec![0; 2 << 20])),
            Code::OutOfRange,
            "at most 1048576 (its flag --max-message-mib)",
        ),
    ];

    for (request, code, hint) in cases {
        let status = client.classify(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(
            status.message().contains(hint),
            "{hint:?} is not in {:?}",
            status.message()
        );
        client
            .classify(request_cat())
            .await
            .expect("the next request is served");
    }

    let unknown_format = RawFrame {
        format: 99,
        width: 1,
        height: 1,
        stride: 0,
        data: vec![0; 3].into(),
    };
    let frame = Image {
        source: Some(Source::Raw(unknown_format)),
    };
    let status = client.classify(request(frame)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("99"), "{}", status.message());
}

#[tokio::test]
async fn raw_frames_are_classified_like_the_photo() {
    let server = Server::start(&[]);
    let crop = image::open(data("crops/cat_jpg.png")).unwrap().to_rgb8();
    let (width, height) = crop.dimensions();
    let stride = width * 3 + 13;
    let mut padded = Vec::new();
    for row in crop.as_raw().chunks_exact(width as usize * 3) {
        padded.extend(row.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]]));
        padded.extend([0xAA; 13]);
    }

    let mut client = server.client().await;
    let frame = raw(PixelFormat::Bgr8, width, height, stride, padded);
    let answer = client.classify(request(frame)).await.unwrap().into_inner();
    assert_eq!(answer.classifications[0].label, "cat");
}

#[tokio::test]
async fn a_long_error_message_is_cut_short() {
    let server = Server::start(&[]);
    let mut bytes = b"P7\n".to_vec();
    bytes.resize(1 << 20, b'A');
    let picture = Image {
        source: Some(Source::Encoded(bytes.into())),
    };
    let status = server
        .client()
        .await
        .classify(request(picture))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().chars().count() <= 501);
}

#[tokio::test]
async fn list_models_describes_the_model() {
    let server = Server::start(&["--engine", "embedded"]);
    let models = server
        .client()
        .await
        .list_models(ListModelsRequest {})
        .await
        .unwrap()
        .into_inner()
        .models;

    assert_eq!(models.len(), 1);
    let model = &models[0];
    assert_eq!(model.input_width, 224);
    assert_eq!(model.input_height, 224);
    assert_eq!(model.resize_shorter_side, 256);
    assert_eq!(model.labels.len(), 106);
    assert_eq!(model.labels[16], "cat");
    assert_eq!(model.engine, "embedded");
    assert_eq!(model.precision, "fp32");
}

#[tokio::test]
async fn batches_give_the_answers_of_single_images() {
    let server = Server::start(&["--max-batch", "4", "--max-queue-delay", "20ms"]);
    let client = server.client().await;
    let calls: Vec<_> = (0..24)
        .map(|i| {
            let mut client = client.clone();
            let (name, label) = if i % 2 == 0 {
                ("cat.jpg", "cat")
            } else {
                ("sunflower_q30.jpg", "sunflower")
            };
            tokio::spawn(async move {
                loop {
                    match client.classify(request(image(data(name)))).await {
                        Ok(answer) => {
                            return assert_eq!(answer.into_inner().classifications[0].label, label);
                        }
                        Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    let images = server.metric("classifier_batch_size_sum", &[]);
    let batches = server.metric("classifier_batch_size_count", &[]);
    assert_eq!(images, 24.0);
    assert!(batches < images, "{images} images in {batches} batches");
}
