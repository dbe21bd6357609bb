//! Teaching a running server new classes, by the service `Teacher` and by `resnet18 teach`.

use std::{
    fs,
    io::Cursor,
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

use resnet18_server::proto::{
    AddExamplesRequest, AddExamplesResponse, ClassifyRequest, Image, ListDatasetsRequest,
    RemoveExamplesRequest, TrainRequest, TrainResponse, teacher_client::TeacherClient,
};
use serde_json::Value;
use tonic::{Code, Status, transport::Channel};

use crate::common::{Server, data, resnet18, shared};

pub type Teacher = TeacherClient<Channel>;

pub async fn teacher(server: &Server) -> Teacher {
    TeacherClient::new(server.channel().await)
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A picture of stripes, checks or dots, in one of many colours and widths.
pub fn picture(class: &str, number: u32) -> Vec<u8> {
    let width = 6 + number % 5;
    let shade = 20 * (number % 8) as u8;
    let pixels = image::RgbImage::from_fn(96, 80, |x, y| {
        let on = match class {
            "stripes" => (x / width).is_multiple_of(2),
            "checks" => (x / width + y / width).is_multiple_of(2),
            _ => x % (2 * width) < 3 && y % (2 * width) < 3,
        };
        let light = if on { 250 - shade / 4 } else { 30 };
        image::Rgb([light, light.saturating_sub(shade), 255 - light])
    });
    let mut file = Cursor::new(Vec::new());
    pixels.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

pub fn example(dataset: &str, class: &str, image: Vec<u8>) -> AddExamplesRequest {
    AddExamplesRequest {
        dataset: dataset.into(),
        class: class.into(),
        image: image.into(),
    }
}

pub async fn add(
    teacher: &mut Teacher,
    examples: Vec<AddExamplesRequest>,
) -> Result<AddExamplesResponse, Status> {
    let examples = tokio_stream::iter(examples);
    teacher
        .add_examples(examples)
        .await
        .map(tonic::Response::into_inner)
}

pub async fn add_class(teacher: &mut Teacher, dataset: &str, class: &str, count: u32) {
    let examples = (0..count).map(|number| example(dataset, class, picture(class, number)));
    let added = add(teacher, examples.collect()).await.unwrap();
    assert_eq!((added.kept, added.refused), (count, 0), "{added:?}");
}

pub async fn train(teacher: &mut Teacher, dataset: &str) -> Result<TrainResponse, Status> {
    let request = TrainRequest {
        dataset: dataset.into(),
        reject_unknown: false,
    };
    teacher
        .train(request)
        .await
        .map(tonic::Response::into_inner)
}

/// The most probable class of a picture that was not learned from.
pub async fn label(server: &Server, model: &str, class: &str) -> Result<String, Status> {
    let request = ClassifyRequest {
        model: model.into(),
        image: Some(Image::encoded(picture(class, 43))),
        ..ClassifyRequest::default()
    };
    let mut client = server.client().await;
    let give_up = Instant::now() + Duration::from_secs(120);
    loop {
        match client.classify(request.clone()).await {
            Ok(answer) => return Ok(answer.into_inner().classifications[0].label.clone()),
            // A server is ready with its first model, and this may be the second.
            Err(status) if status.code() == Code::Unavailable && Instant::now() < give_up => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(status) => return Err(status),
        }
    }
}

pub fn run(arguments: &[&str]) -> Output {
    resnet18().args(arguments).output().unwrap()
}

/// Runs the program with `--json`, expects success, and returns what it printed.
pub fn result(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn classes_are_taught_served_at_once_and_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--engine", "embedded", "--teach", text(folder.path())];
    let server = Server::start(&flags);
    let mut teacher = teacher(&server).await;

    add_class(&mut teacher, "patterns", "checks", 10).await;
    let too_early = train(&mut teacher, "patterns").await.unwrap_err();
    assert_eq!(too_early.code(), Code::FailedPrecondition);
    assert!(too_early.message().contains("two classes"), "{too_early}");
    add_class(&mut teacher, "patterns", "stripes", 10).await;

    // What is there already, in another class, damaged, no picture.
    let mut damaged = picture("checks", 90);
    damaged.truncate(200);
    let added = add(
        &mut teacher,
        vec![
            example("patterns", "checks", picture("checks", 3)),
            example("patterns", "stripes", picture("checks", 3)),
            example("patterns", "stripes", damaged),
            example("patterns", "stripes", b"no picture".to_vec()),
        ],
    );
    let added = added.await.unwrap();
    assert_eq!((added.kept, added.known, added.refused), (0, 1, 3));
    let refused: Vec<u64> = added.refusals.iter().map(|refusal| refusal.index).collect();
    assert_eq!(refused, [1, 2, 3]);
    assert!(added.refusals[0].reason.contains("\"checks\" already"));

    let first = train(&mut teacher, "patterns").await.unwrap();
    assert_eq!((&first.model[..], first.examples), ("patterns", 20));
    assert!(first.accuracy >= 0.8, "{first:?}");
    let wrong = first
        .classes
        .iter()
        .map(|class| class.examples - class.right);
    assert_eq!(wrong.sum::<u32>() as usize, first.mistakes.len());
    for class in ["checks", "stripes"] {
        assert_eq!(label(&server, "patterns", class).await.unwrap(), class);
    }
    // The model that was there still answers those who name none.
    let mut client = server.client().await;
    let other = client.classify(ClassifyRequest {
        image: Some(crate::common::image(data("cat.jpg"))),
        ..ClassifyRequest::default()
    });
    assert_ne!(other.await.unwrap().into_inner().model, "patterns");

    drop(server);
    let server = Server::start(&flags);
    let mut teacher = self::teacher(&server).await;
    let listed = teacher
        .list_datasets(ListDatasetsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let [dataset] = &listed.datasets[..] else {
        panic!("{listed:?}");
    };
    let model = dataset.model.as_ref().unwrap();
    assert_eq!(model.version, first.model_version);
    assert!((model.accuracy - first.accuracy).abs() < 1e-3);
    assert_eq!(
        label(&server, "patterns", "checks").await.unwrap(),
        "checks"
    );

    // A third class, and a picture that was put into the folder by hand.
    add_class(&mut teacher, "patterns", "dots", 10).await;
    let by_hand = folder.path().join("patterns/train/dots/mine.png");
    fs::write(&by_hand, picture("dots", 77)).unwrap();
    fs::write(by_hand.with_file_name("torn.jpg"), "no picture").unwrap();
    let second = train(&mut teacher, "patterns").await.unwrap();
    assert_eq!(second.examples, 31);
    assert_eq!(second.skipped.len(), 1, "{second:?}");
    assert_eq!(second.skipped[0].example, "torn.jpg");
    assert_ne!(second.model_version, first.model_version);
    assert_eq!(label(&server, "patterns", "dots").await.unwrap(), "dots");
    fs::remove_file(by_hand.with_file_name("torn.jpg")).unwrap();

    // An ordinary dataset.
    let output = folder.path().join("trained elsewhere.out");
    let dataset = folder.path().join("patterns");
    let report = result(&["train", text(&dataset), "-o", text(&output)]);
    assert_eq!(report["labels"].as_array().unwrap().len(), 3);

    let request = |class: &str| RemoveExamplesRequest {
        dataset: "patterns".into(),
        class: class.into(),
        examples: Vec::new(),
    };
    let removed = teacher.remove_examples(request("checks")).await.unwrap();
    assert_eq!(removed.into_inner().removed, 10);
    let removed = teacher.remove_examples(request("")).await.unwrap();
    assert_eq!(removed.into_inner().removed, 21);
    assert!(!dataset.exists() && !folder.path().join("patterns.onnx").exists());
    let gone = label(&server, "patterns", "dots").await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    let gone = train(&mut teacher, "patterns").await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert_eq!(
        server.metric(
            "classifier_requests_total",
            &["\"RemoveExamples\"", "\"OK\""]
        ),
        2.0
    );
}

#[tokio::test]
async fn models_that_were_not_taught_here_are_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/resnet18-demo.onnx");
    let foreign = folder.path().join("foreign.onnx");
    fs::copy(&bundled, &foreign).unwrap();
    let flags = ["--engine", "embedded", "--teach", text(folder.path())];
    let server = Server::start(&flags);
    let mut teacher = teacher(&server).await;

    for name in ["foreign", "resnet18-demo"] {
        let added = add(&mut teacher, vec![example(name, "a", picture("dots", 1))]);
        let added = added.await.unwrap();
        let reason = &added.refusals[0].reason;
        assert!(reason.contains("not taught here"), "{reason}");
        // Nor by pictures that were put there by hand.
        for class in ["dots", "checks"] {
            let class_folder = folder.path().join(name).join("train").join(class);
            fs::create_dir_all(&class_folder).unwrap();
            for number in 0..3 {
                let file = class_folder.join(format!("{number}.png"));
                fs::write(file, picture(class, number)).unwrap();
            }
        }
        let error = train(&mut teacher, name).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{error}");
        let removed = teacher.remove_examples(RemoveExamplesRequest {
            dataset: name.into(),
            ..RemoveExamplesRequest::default()
        });
        assert_eq!(removed.await.unwrap().into_inner().removed, 6);
    }
    assert!(fs::read(foreign).unwrap() == fs::read(bundled).unwrap());
}

#[tokio::test]
async fn unsafe_names_and_pictures_beyond_limits_are_refused() {
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("taught");
    let server = Server::start(&[
        "--engine",
        "embedded",
        "--teach",
        text(&folder),
        "--teach-pictures",
        "2",
        "--teach-classes",
        "1",
        "--teach-datasets",
        "1",
    ]);
    let mut teacher = teacher(&server).await;
    let dots = |number| picture("dots", number);
    let added = add(
        &mut teacher,
        vec![
            example("../escape", "a", dots(0)),
            example("a", "../../escape", dots(0)),
            example("a", "", dots(0)),
            example("a", "one", dots(0)),
            example("a", "one", dots(1)),
            example("a", "one", dots(2)),
            example("a", "two", dots(2)),
            example("b", "one", dots(2)),
        ],
    );
    let added = added.await.unwrap();
    assert_eq!((added.kept, added.refused), (2, 6), "{added:?}");
    let reasons: Vec<&str> = added
        .refusals
        .iter()
        .map(|refusal| refusal.reason.as_str())
        .collect();
    for (reason, part) in reasons.iter().zip([
        "name of the dataset",
        "name of the class",
        "is empty",
        "--teach-pictures",
        "--teach-classes",
        "--teach-datasets",
    ]) {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    let entries: Vec<_> = fs::read_dir(outside.path()).unwrap().collect();
    assert_eq!(entries.len(), 1, "nothing was written outside");

    let error = train(&mut teacher, "../escape").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let error = teacher
        .remove_examples(RemoveExamplesRequest {
            dataset: "a".into(),
            class: "one".into(),
            examples: vec!["../../../x".into()],
        })
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn servers_are_taught_only_if_their_owner_says_so() {
    let server = Server::start(&["--engine", "embedded"]);
    let mut teacher = teacher(&server).await;
    let error = train(&mut teacher, "cups").await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert!(error.message().contains("--teach"), "{error}");
    let error = add(&mut teacher, Vec::new()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);

    let output = run(&["teach", "--list", "--server", &server.url()]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("--teach DIR"), "{error}");
    assert!(!error.contains("is this a resnet18 server"), "{error}");
    drop(server);

    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.txt");
    fs::write(&tokens, "shop 0123456789abcdef-shop\n").unwrap();
    let taught = folder.path().join("taught");
    let server = Server::start(&[
        "--engine",
        "embedded",
        "--teach",
        text(&taught),
        "--tokens",
        text(&tokens),
    ]);
    let mut teacher = self::teacher(&server).await;
    let error = train(&mut teacher, "cups").await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
}

#[test]
fn people_teach_from_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    for class in ["checks", "stripes"] {
        fs::create_dir_all(photos.join(class)).unwrap();
        for number in 0..8 {
            let file = photos.join(class).join(format!("{number}.png"));
            fs::write(file, picture(class, number)).unwrap();
        }
    }
    let taught = folder.path().join("taught");
    let server = Server::start(&["--engine", "embedded", "--teach", text(&taught)]);
    let url = server.url();
    let teach = |arguments: &[&str]| run(&[&["teach", "--server", &url], arguments].concat());

    let added = teach(&[
        "my patterns",
        "--class",
        "checks",
        text(&photos.join("checks")),
    ]);
    assert!(added.status.success(), "{added:?}");
    let printed = String::from_utf8_lossy(&added.stdout).into_owned();
    assert!(printed.contains("8 new photos of checks"), "{printed}");

    // A file that is no photo is named, and the others are kept.
    let torn = photos.join("torn.png");
    fs::write(&torn, "no picture").unwrap();
    let stripes = photos.join("stripes");
    let arguments = [
        "my patterns",
        "--class",
        "stripes",
        text(&torn),
        text(&stripes),
    ];
    let added = teach(&[&arguments[..], &["--json"]].concat());
    assert_eq!(added.status.code(), Some(1));
    let added: Value = serde_json::from_slice(&added.stdout).unwrap();
    assert_eq!(added["added"]["kept"], 8);
    assert_eq!(added["added"]["refused"][0]["file"], text(&torn));

    let trained = teach(&["my patterns", "--train"]);
    assert!(trained.status.success(), "{trained:?}");
    let printed = String::from_utf8_lossy(&trained.stdout).into_owned();
    for part in [
        "Actual, predicted",
        "Accuracy",
        "16 photos",
        "--model 'my patterns'",
    ] {
        assert!(printed.contains(part), "{part} is missing in\n{printed}");
    }
    let classified = result(&[
        "classify",
        "--server",
        &url,
        "--model",
        "my patterns",
        text(&stripes.join("3.png")),
    ]);
    assert_eq!(classified["classifications"][0]["label"], "stripes");

    let listed = result(&["teach", "--server", &url, "--list"]);
    let dataset = &listed["datasets"][0];
    assert_eq!(dataset["name"], "my patterns");
    assert_eq!(dataset["classes"][1]["photos"], 8);
    assert_eq!(dataset["model"]["photos"], 16);

    let removed = result(&["teach", "--server", &url, "my patterns", "--remove"]);
    assert_eq!(removed["removed"], 16);
    let wrong = teach(&["my patterns", "--class", "checks"]);
    assert_eq!(wrong.status.code(), Some(64));
}

/// The Teacher learns from the same features, in the same order and with the same seed.
#[test]
fn a_taught_model_is_the_one_that_train_makes_of_the_same_folders() {
    let Some(photos) = shared("dataset") else {
        return;
    };
    // The base runs once on each photo for the Teacher, and once more for `train` and `evaluate`, in
    // fp32 on an engine that is not fast. A part of the photos shows as well that both are the same.
    let folder = tempfile::tempdir().unwrap();
    let few = folder.path().join("few");
    for (part, count) in [("train", 12), ("val", 6)] {
        for class in ["hat", "pants", "shoes"] {
            let (from, to) = (photos.join(part).join(class), few.join(part).join(class));
            fs::create_dir_all(&to).unwrap();
            let mut names: Vec<_> = fs::read_dir(&from)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            for name in &names[..count] {
                fs::copy(from.join(name), to.join(name)).unwrap();
            }
        }
    }
    let taught = folder.path().join("taught");
    let server = Server::start(&["--engine", "embedded", "--teach", text(&taught)]);
    let url = server.url();
    for class in ["hat", "pants", "shoes"] {
        let arguments = ["teach", "clothes", "--server", &url, "--class", class];
        let added = result(&[&arguments[..], &[text(&few.join("train").join(class))]].concat());
        assert_eq!(added["added"]["kept"], 12, "{added}");
    }
    let trained = result(&["teach", "clothes", "--server", &url, "--train"]);
    drop(server);

    // The photos that were kept are the train part of a dataset.
    let dataset = taught.join("clothes");
    fs::rename(few.join("val"), dataset.join("val")).unwrap();
    let output = folder.path().join("clothes.onnx");
    let arguments = ["train", text(&dataset), "-o", text(&output)];
    let by_train = result(&[&arguments[..], &["--auto", "--engine", "embedded"]].concat());
    assert_eq!(by_train["labels"], trained["trained"]["labels"]);
    assert!(by_train["accuracy"].as_f64().unwrap() > 0.5, "{by_train}");
    let model = taught.join("clothes.onnx");
    let arguments = ["evaluate", text(&dataset), "--model", text(&model)];
    let by_teacher = result(&[&arguments[..], &["--engine", "embedded"]].concat());
    assert_eq!(by_teacher["top1"], by_train["accuracy"]);
    assert_eq!(
        by_teacher["confusions"],
        by_train["evaluation"]["confusions"]
    );
}
