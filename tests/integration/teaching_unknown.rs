//! A class for everything that is none of the others: how it is taught, answered and evaluated.

use std::{fs, path::Path};

use resnet18_server::proto::{
    ClassifyRequest, ClassifyResponse, Frame, Image, ListModelsRequest, StreamClassifyRequest,
    StreamConfig, TrainRequest, TrainResponse, stream_classify_request::Message,
    stream_classify_response::Outcome,
};
use serde_json::Value;
use tonic::Status;

use crate::{
    common::{Server, config, shared},
    teaching::{
        Teacher, add, add_class, example, label, picture, result, run, teacher, text, train,
    },
    web::send,
};

const UNKNOWN: &str = "nothing of these";

async fn classify(server: &Server, request: ClassifyRequest) -> Result<ClassifyResponse, Status> {
    let mut client = server.client().await;
    client
        .classify(request)
        .await
        .map(tonic::Response::into_inner)
}

fn request(model: &str, image: Vec<u8>) -> ClassifyRequest {
    ClassifyRequest {
        model: model.into(),
        image: Some(Image::encoded(image)),
        ..ClassifyRequest::default()
    }
}

fn labels(answer: &ClassifyResponse) -> Vec<&str> {
    let classes = answer.classifications.iter();
    classes.map(|class| class.label.as_str()).collect()
}

/// Asks for the classes of a picture of the class for everything else, in all ways.
async fn assert_answers(server: &Server, model: &str) {
    // It may not be loaded yet.
    label(server, model, "stripes").await.unwrap();
    let dots = picture("dots", 43);
    let answer = classify(server, request(model, dots.clone())).await;
    let answer = answer.unwrap();
    assert_eq!(
        (labels(&answer)[0], labels(&answer).len()),
        ("", 3),
        "{answer:?}"
    );
    assert!(labels(&answer).contains(&"checks"));
    let class_id = answer.classifications[0].class_id;
    let stripes = classify(server, request(model, picture("stripes", 43))).await;
    assert_eq!(labels(&stripes.unwrap())[0], "stripes");

    let mut client = server.client().await;
    let listed = client.list_models(ListModelsRequest {}).await.unwrap();
    let listed = listed.into_inner().models;
    let listed = listed.iter().find(|listed| listed.name == model).unwrap();
    assert_eq!(listed.unknown_class, Some(class_id));
    assert_eq!(listed.labels[class_id as usize], UNKNOWN);

    // Labels may be chosen as they are in the model, or as in answers.
    let filtered = async |allow: &[&str], deny: &[&str]| {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let request = ClassifyRequest {
            allow_labels: names(allow),
            deny_labels: names(deny),
            ..request(model, dots.clone())
        };
        let answer = classify(server, request).await.unwrap();
        let labels: Vec<String> = labels(&answer).into_iter().map(str::to_owned).collect();
        labels
    };
    assert_eq!(filtered(&["checks"], &[]).await, ["checks"]);
    assert_eq!(filtered(&["", "stripes"], &["stripes"]).await, [""]);
    for unknown in ["", UNKNOWN] {
        let others = filtered(&[], &[unknown]).await;
        assert!(
            others.len() == 2 && !others.contains(&String::new()),
            "{others:?}"
        );
    }
    let sure = ClassifyRequest {
        min_probability: 0.5,
        ..request(model, dots.clone())
    };
    assert_eq!(labels(&classify(server, sure).await.unwrap()), [""]);

    // Smoothed over the frames of a stream.
    let frame = |id, picture: Vec<u8>| StreamClassifyRequest {
        message: Some(Message::Frame(Frame {
            id,
            image: Some(Image::encoded(picture)),
            ..Frame::default()
        })),
    };
    let messages = vec![
        config(StreamConfig {
            model: model.into(),
            top_k: 1,
            smoothing: Some(prost_types::Duration {
                seconds: 1000,
                nanos: 0,
            }),
            ..StreamConfig::default()
        }),
        frame(0, dots.clone()),
        frame(1, picture("stripes", 43)),
    ];
    let mut answers = client
        .stream_classify(tokio_stream::iter(messages))
        .await
        .unwrap()
        .into_inner();
    for _ in 0..2 {
        let answer = answers.message().await.unwrap().unwrap();
        let Some(Outcome::Result(result)) = answer.outcome else {
            panic!("{answer:?}");
        };
        assert_eq!(
            result.classifications[0].label, "",
            "the first frame weighs more"
        );
    }

    let path = format!("POST /v1/classify?model={model}");
    let answer = send(server.http, &path, &[], &dots);
    let answer: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(answer["classifications"][0]["label"], "", "{answer}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dots.png");
    fs::write(&file, &dots).unwrap();
    let url = server.url();
    let arguments = ["classify", "--server", &url, "--model", model, text(&file)];
    let printed = run(&arguments);
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(printed.contains(UNKNOWN), "{printed}");
    assert_eq!(result(&arguments)["classifications"][0]["label"], "");
    let arguments = ["stream", "--server", &url, "--model", model, text(&file)];
    let printed = run(&arguments);
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(printed.contains(UNKNOWN), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_of_none_of_the_classes_get_an_empty_label() {
    let folder = tempfile::tempdir().unwrap();
    let taught = folder.path().join("taught");
    let flags = ["--engine", "embedded", "--teach", text(&taught)];
    let server = Server::start(&flags);
    let mut teacher = teacher(&server).await;
    for (class, shown) in [
        ("checks", "checks"),
        ("stripes", "stripes"),
        (UNKNOWN, "dots"),
    ] {
        let examples = (0..10).map(|number| example("patterns", class, picture(shown, number)));
        let added = add(&mut teacher, examples.collect()).await.unwrap();
        assert_eq!(added.kept, 10, "{added:?}");
    }
    let trained = train(&mut teacher, "patterns").await.unwrap();
    // It is judged like any other class.
    let judged: Vec<_> = trained
        .classes
        .iter()
        .map(|class| (class.class.as_str(), class.examples))
        .collect();
    assert_eq!(judged, [("checks", 10), (UNKNOWN, 10), ("stripes", 10)]);
    assert_answers(&server, "patterns").await;
    drop(server);

    let server = Server::start(&flags);
    assert_answers(&server, "patterns").await;
    drop(server);

    // The file alone, on a server that is not taught, and the same from the folder by `train`.
    let file = taught.join("patterns.onnx");
    let copy = folder.path().join("patterns.onnx");
    fs::copy(&file, &copy).unwrap();
    let dataset = taught.join("patterns");
    let by_train = folder.path().join("trained.onnx");
    let arguments = ["train", text(&dataset), "-o", text(&by_train), "--auto"];
    let report = result(&[&arguments[..], &["--engine", "embedded", "--name", "t"]].concat());
    assert_eq!(report["labels"][1], UNKNOWN);
    let flags = ["--model", text(&copy), "--model", text(&by_train)];
    let server = Server::start(&[&flags[..], &["--engine", "embedded"]].concat());
    assert_answers(&server, "patterns").await;
    assert_answers(&server, "t").await;
    let url = server.url();

    // A folder of that name holds what is to be taken for nothing.
    let val = folder.path().join("val");
    for (class, shown) in [("checks", "checks"), (UNKNOWN, "dots")] {
        fs::create_dir_all(val.join(class)).unwrap();
        for number in 20..24 {
            let file = val.join(class).join(format!("{number}.png"));
            fs::write(file, picture(shown, number)).unwrap();
        }
    }
    let by_file = result(&[
        "evaluate",
        text(&val),
        "--model",
        text(&copy),
        "--engine",
        "embedded",
    ]);
    let by_server = result(&[
        "evaluate",
        text(&val),
        "--server",
        &url,
        "--model",
        "patterns",
    ]);
    assert_eq!(by_file["classes"][1]["label"], UNKNOWN);
    assert_eq!(by_file["classes"][1]["photos"], 4);
    assert!(by_file["top1"].as_f64().unwrap() > 0.7, "{by_file}");
    assert_eq!(by_file["confusions"], by_server["confusions"]);
    drop(server);

    // In 8 bits it is the same class.
    let int8 = folder.path().join("int8.onnx");
    let photos = dataset.join("train");
    let arguments = ["quantize", text(&copy), "--calibration", text(&photos)];
    let flags = ["-o", text(&int8), "--min-agreement", "0.8"];
    result(&[&arguments[..], &flags].concat());
    let server = Server::start(&["--model", text(&int8), "--engine", "embedded"]);
    assert_answers(&server, "patterns").await;
}

/// How many of the pictures are called one of the classes.
async fn called(server: &Server, model: &str, pictures: &[Vec<u8>]) -> usize {
    let mut called = 0;
    for picture in pictures {
        let answer = classify(server, request(model, picture.clone()))
            .await
            .unwrap();
        called += usize::from(!labels(&answer)[0].is_empty());
    }
    called
}

/// The first photos of each folder.
fn photos(folders: impl Iterator<Item = std::path::PathBuf>, each: usize) -> Vec<Vec<u8>> {
    let mut folders: Vec<_> = folders.collect();
    folders.sort();
    let mut found = Vec::new();
    for folder in folders {
        let mut files: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        found.extend(files.iter().take(each).map(|file| fs::read(file).unwrap()));
    }
    found
}

async fn train_and_reject(teacher: &mut Teacher, dataset: &str) -> Result<TrainResponse, Status> {
    let request = TrainRequest {
        dataset: dataset.into(),
        reject_unknown: true,
    };
    teacher
        .train(request)
        .await
        .map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn other_things_are_rejected_without_pictures_of_them() {
    let (Some(clothes), Some(others)) = (shared("dataset"), shared("photos")) else {
        return;
    };
    let kinds = ["hat", "pants", "shoes"];
    let of = |part: &str, each| {
        let folders = kinds.map(|kind| clothes.join(part).join(kind));
        photos(folders.into_iter(), each)
    };
    let others = fs::read_dir(others)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let others = photos(others.filter(|path| path.is_dir()).take(24), 1);

    let folder = tempfile::tempdir().unwrap();
    let flags = ["--engine", "embedded", "--teach", text(folder.path())];
    let server = Server::start(&flags);
    let mut teacher = teacher(&server).await;
    let train_photos = of("train", 16);
    for (kind, photos) in kinds.iter().zip(train_photos.chunks(16)) {
        let examples = photos
            .iter()
            .map(|photo| example("clothes", kind, photo.clone()));
        let added = add(&mut teacher, examples.collect()).await.unwrap();
        assert_eq!(added.kept, 16, "{added:?}");
    }
    let known = of("val", 5);

    train(&mut teacher, "clothes").await.unwrap();
    assert_eq!(called(&server, "clothes", &others).await, others.len());
    assert_eq!(called(&server, "clothes", &known).await, known.len());

    let trained = train_and_reject(&mut teacher, "clothes").await.unwrap();
    assert_eq!(trained.examples, 48);
    let last = trained.classes.last().unwrap();
    assert_eq!((last.class.as_str(), last.examples), (UNKNOWN, 0));
    let (wrongly, rightly) = (
        called(&server, "clothes", &others).await,
        called(&server, "clothes", &known).await,
    );
    assert!(2 * wrongly <= others.len(), "{wrongly} of {}", others.len());
    assert!(
        5 * rightly >= 4 * known.len(),
        "{rightly} of {}",
        known.len()
    );

    // One class is enough: it, or something else. Pictures of something else may be there as well.
    add_class(&mut teacher, "one", "checks", 4).await;
    assert!(train(&mut teacher, "one").await.is_err());
    train_and_reject(&mut teacher, "one").await.unwrap();
    let dots = (0..4).map(|number| example("one", UNKNOWN, picture("dots", number)));
    add(&mut teacher, dots.collect()).await.unwrap();
    let trained = train_and_reject(&mut teacher, "one").await.unwrap();
    assert_eq!((trained.classes.len(), trained.examples), (2, 8));

    let output = folder.path().join("by train.out");
    let dataset = folder.path().join("clothes");
    let arguments = ["train", text(&dataset), "-o", text(&output)];
    let flags = ["--engine", "embedded", "--auto", "--reject-unknown"];
    let report = result(&[&arguments[..], &flags].concat());
    assert_eq!(report["labels"][3], UNKNOWN);
    let judged = report["evaluation"]["classes"].as_array().unwrap();
    assert_eq!(judged.len(), 3, "there is no photo of anything else");
    assert_eq!(report["confusion_matrix"].as_array().unwrap().len(), 4);
    assert!(Path::new(&output).exists());
}
