//! Several models in one server, and reloads of models whose files change.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use prost::Message as _;
use resnet18_server::{
    model::{
        Manifest,
        onnx::{ModelProto, tensor_proto::DataType},
    },
    proto::{
        ClassifyRequest, Frame, ListModelsRequest, Model, ModelState, StreamClassifyRequest,
        StreamConfig, stream_classify_request::Message, stream_classify_response::Outcome,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::common::{Server, config, data, image, request, resnet18};

/// Writes the bundled model with `prefix` before each of its labels.
fn write_model(path: &Path, prefix: &str) {
    write_changed(path, |model| {
        let mut manifest = Manifest::read(model).unwrap();
        for label in manifest.labels.as_mut().unwrap() {
            label.insert_str(0, prefix);
        }
        manifest.write(model);
    });
}

/// Writes a changed copy of the bundled model. The file at `path` is replaced atomically, as an
/// operator should do it.
fn write_changed(path: &Path, change: impl FnOnce(&mut ModelProto)) {
    let bundled =
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/resnet18-demo.onnx")).unwrap();
    let mut model = ModelProto::decode(&bundled[..]).unwrap();
    change(&mut model);

    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, model.encode_to_vec()).unwrap();
    fs::rename(unfinished, path).unwrap();
}

/// A folder with these models, each given by its file's name and the prefix of its labels.
fn folder(models: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, prefix) in models {
        write_model(&folder.path().join(format!("{name}.onnx")), prefix);
    }
    folder
}

/// A path as the value of a flag.
fn flag(path: impl Into<PathBuf>) -> String {
    path.into().display().to_string()
}

/// A request to classify a photo of a cat by this model.
fn ask(model: &str) -> ClassifyRequest {
    ClassifyRequest {
        model: model.into(),
        ..request(image(data("cat.jpg")))
    }
}

/// The model's first label for a photo of a cat.
async fn label(server: &Server, model: &str) -> Result<String, tonic::Status> {
    let answer = server
        .client()
        .await
        .classify(ask(model))
        .await?
        .into_inner();
    Ok(answer.classifications[0].label.clone())
}

async fn models(server: &Server) -> Vec<Model> {
    server
        .client()
        .await
        .list_models(ListModelsRequest {})
        .await
        .unwrap()
        .into_inner()
        .models
}

/// Repeats `ask` until it gives an answer.
async fn until<T>(what: &str, server: &Server, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(
            Instant::now() < give_up,
            "not within 120 s: {what}\n{}",
            server.log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn until_label(server: &Server, model: &str, wanted: &str) {
    until(&format!("{model} answers {wanted}"), server, async || {
        (label(server, model).await.ok()? == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn each_model_answers_by_its_name_and_the_default_without_one() {
    let folder = folder(&[("a", "old "), ("b", "new ")]);
    let models_flag = format!(
        "first={},{}",
        flag(folder.path().join("a.onnx")),
        flag(folder.path().join("b.onnx"))
    );
    let server = Server::start(&[
        "--model",
        &models_flag,
        "--default-model",
        "first",
        "--watch-interval",
        "0",
    ]);
    until_label(&server, "first", "old cat").await;
    // The second model has the name in its manifest.
    until_label(&server, "resnet18-demo", "new cat").await;
    assert_eq!(label(&server, "").await.unwrap(), "old cat");

    let unknown = label(&server, "third").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(
        unknown.message().contains("first, resnet18-demo"),
        "{unknown}"
    );

    let listed = models(&server).await;
    let names: Vec<_> = listed.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["first", "resnet18-demo"]);
    assert_ne!(listed[0].version, listed[1].version);
    assert!(
        listed
            .iter()
            .all(|model| model.state() == ModelState::Ready && model.problem.is_empty())
    );
    assert_eq!(listed[1].labels[16], "new cat");

    let mut health = HealthClient::new(server.channel().await);
    for name in names {
        let service = format!("resnet18.v1.Classifier/{name}");
        let status = health
            .check(HealthCheckRequest { service })
            .await
            .unwrap()
            .into_inner()
            .status();
        assert_eq!(status, ServingStatus::Serving);
    }

    let classified = |model| {
        server.metric(
            "classifier_requests_total",
            &[model, "\"Classify\"", "\"OK\""],
        )
    };
    assert!(classified("model=\"first\"") >= 2.0);
    assert!(classified("model=\"resnet18-demo\"") >= 1.0);
    assert_eq!(
        server.metric("classifier_model_ready", &["model=\"first\""]),
        1.0
    );
}

#[tokio::test]
async fn the_served_models_follow_the_files_of_a_folder() {
    let folder = folder(&[("birds", "old ")]);
    let server = Server::start(&[
        "--model-dir",
        &flag(folder.path()),
        "--watch-interval",
        "100ms",
    ]);
    assert_eq!(label(&server, "birds").await.unwrap(), "old cat");

    write_model(&folder.path().join("cats.onnx"), "tom");
    until_label(&server, "cats", "tomcat").await;
    assert_eq!(
        label(&server, "").await.unwrap(),
        "old cat",
        "a new file does not become the default"
    );

    write_model(&folder.path().join("birds.onnx"), "new ");
    until_label(&server, "birds", "new cat").await;

    fs::write(folder.path().join("birds.onnx"), "no longer a model").unwrap();
    let broken = until("the broken file is reported", &server, async || {
        models(&server)
            .await
            .into_iter()
            .find(|model| !model.problem.is_empty())
    })
    .await;
    assert_eq!(
        (broken.name.as_str(), broken.state()),
        ("birds", ModelState::Ready)
    );
    assert!(broken.problem.contains("ONNX"), "{}", broken.problem);
    assert_eq!(
        label(&server, "birds").await.unwrap(),
        "new cat",
        "the previous version is still served"
    );
    assert_eq!(
        server.metric("classifier_model_loads_total", &["\"birds\"", "\"failed\""]),
        1.0
    );
    assert_eq!(
        server.metric("classifier_model_loads_total", &["\"birds\"", "\"loaded\""]),
        2.0
    );
    assert!(
        server
            .log()
            .contains("the previous version is still served"),
        "{}",
        server.log()
    );

    write_model(&folder.path().join("birds.onnx"), "mended ");
    until_label(&server, "birds", "mended cat").await;
    assert!(
        models(&server)
            .await
            .iter()
            .all(|model| model.problem.is_empty())
    );

    fs::remove_file(folder.path().join("cats.onnx")).unwrap();
    until("the removed model is gone", &server, async || {
        label(&server, "cats")
            .await
            .is_err_and(|status| status.code() == Code::NotFound)
            .then_some(())
    })
    .await;
    let series = server.get("/metrics").1;
    assert!(series.contains("\"birds\"") && !series.contains("\"cats\""));

    write_model(&folder.path().join("cats.onnx"), "back ");
    until_label(&server, "cats", "back cat").await;
    let ready = ["model=\"cats\""];
    assert_eq!(server.metric("classifier_model_ready", &ready), 1.0);
}

#[tokio::test]
async fn weights_that_are_not_numbers_replace_nothing() {
    for engine in ["auto", "embedded"] {
        let folder = folder(&[("birds", "old ")]);
        let server = Server::start(&[
            "--engine",
            engine,
            "--model-dir",
            &flag(folder.path()),
            "--watch-interval",
            "100ms",
        ]);

        write_changed(&folder.path().join("birds.onnx"), |model| {
            let weights = &mut model.graph.as_mut().unwrap().initializer;
            let bias = weights.iter_mut().find(|tensor| tensor.dims.len() == 1);
            let bias = bias.expect("the network has a layer with a bias");
            let count = bias.dims[0] as usize;
            let not_a_number: &[u8] = match bias.data_type() {
                half if half == DataType::Float16 as i32 => &0x7e00_u16.to_le_bytes(),
                _ => &f32::NAN.to_le_bytes(),
            };
            bias.raw_data = Some(not_a_number.repeat(count).into());
        });
        let broken = until("the file is reported", &server, async || {
            let mut models = models(&server).await.into_iter();
            models.find(|model| !model.problem.is_empty())
        })
        .await;
        assert_eq!(broken.state(), ModelState::Ready);
        assert!(broken.problem.contains("finite"), "{}", broken.problem);
        assert_eq!(label(&server, "birds").await.unwrap(), "old cat");
        assert_eq!(
            server.metric("classifier_model_loads_total", &["\"birds\"", "\"failed\""]),
            1.0
        );
    }
}

#[tokio::test]
async fn a_folder_without_models_is_not_ready_until_one_is_added() {
    let folder = folder(&[]);
    fs::write(folder.path().join("broken.onnx"), "not a model").unwrap();
    fs::write(folder.path().join("notes.txt"), "no model file").unwrap();
    let server = Server::spawn(&[
        "--model-dir",
        &flag(folder.path()),
        "--watch-interval",
        "100ms",
    ]);
    until("the broken file is reported", &server, async || {
        models(&server)
            .await
            .into_iter()
            .find(|model| model.state() == ModelState::Failed)
    })
    .await;
    assert_eq!(
        (server.get("/healthz").0, server.get("/readyz").0),
        (200, 503)
    );
    let broken = label(&server, "broken").await.unwrap_err();
    assert_eq!(broken.code(), Code::FailedPrecondition, "{broken:?}");
    assert!(
        broken
            .message()
            .starts_with("the model \"broken\" could not be loaded: ")
            && broken.message().contains("ONNX"),
        "{broken:?}"
    );
    assert!(
        !broken.message().contains(&flag(folder.path())),
        "callers are not told where the folder is: {broken:?}"
    );
    let (_, reason) = server.get("/readyz");
    assert!(
        reason.contains("could be loaded") && reason.contains("ListModels"),
        "{reason}"
    );

    write_model(&folder.path().join("cats.onnx"), "tom");
    server.wait_until_ready();
    assert_eq!(label(&server, "cats").await.unwrap(), "tomcat");
}

#[tokio::test]
async fn a_folder_that_is_emptied_is_like_one_that_was_empty_at_the_start() {
    let empty = folder(&[]);
    let flags = |folder: &tempfile::TempDir| flag(folder.path());
    let empty_at_start =
        Server::spawn(&["--model-dir", &flags(&empty), "--watch-interval", "100ms"]);
    let unready = async |server: &Server| {
        let answer = until("it holds no model", server, async || {
            let (status, text) = server.get("/readyz");
            (status == 503 && text.contains("holds no model")).then_some(text)
        })
        .await;
        let refused = label(server, "").await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        assert!(refused.message().contains("holds no model"), "{refused:?}");
        assert_eq!(server.get("/healthz").0, 200);
        answer
    };
    unready(&empty_at_start).await;

    let filled = folder(&[("birds", "old "), ("cats", "tom")]);
    let server = Server::start(&["--model-dir", &flags(&filled), "--watch-interval", "100ms"]);
    until_label(&server, "cats", "tomcat").await;
    let birds = filled.path().join("birds.onnx");
    fs::remove_file(&birds).unwrap();
    let gone = until("the default is gone", &server, async || {
        label(&server, "").await.err()
    })
    .await;
    assert_eq!(gone.code(), Code::NotFound, "{gone:?}");
    assert_eq!(
        gone.message(),
        "the default model \"birds\" is not there any more; this server has: cats",
        "another model does not take its place"
    );
    assert_eq!(server.get("/readyz").0, 200);

    fs::remove_file(filled.path().join("cats.onnx")).unwrap();
    unready(&server).await;
    write_model(&birds, "new ");
    server.wait_until_ready();
    assert_eq!(label(&server, "").await.unwrap(), "new cat");
}

#[tokio::test]
async fn sighup_reloads_changed_models_at_once() {
    let folder = folder(&[("cats", "old ")]);
    let server = Server::start(&["--model-dir", &flag(folder.path()), "--watch-interval", "0"]);

    write_model(&folder.path().join("cats.onnx"), "new ");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        label(&server, "cats").await.unwrap(),
        "old cat",
        "without an interval and a signal nothing is reloaded"
    );

    server.signal("HUP");
    until_label(&server, "cats", "new cat").await;
}

/// The purpose of reloads: under load, callers see the new answers and not a single error.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_and_no_stream_fails_while_a_model_is_replaced() {
    let folder = folder(&[("cats", "0 ")]);
    let path = folder.path().join("cats.onnx");
    let server = Arc::new(Server::start(&[
        "--model-dir",
        &flag(folder.path()),
        "--watch-interval",
        "100ms",
    ]));

    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (server, stop, answered) = (
                Arc::clone(&server),
                Arc::clone(&stop),
                Arc::clone(&answered),
            );
            tokio::spawn(async move {
                let mut client = server.client().await;
                while !stop.load(Relaxed) {
                    let answer = client
                        .classify(ask(""))
                        .await
                        .expect("no request fails")
                        .into_inner();
                    assert!(answer.classifications[0].label.ends_with(" cat"));
                    answered.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();

    let (frames, receiver) = mpsc::channel::<StreamClassifyRequest>(1);
    frames
        .send(config(StreamConfig {
            model: "cats".into(),
            ..Default::default()
        }))
        .await
        .unwrap();
    let mut answers = server
        .client()
        .await
        .stream_classify(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    let mut next_label = async |id: u64| {
        let frame = Frame {
            id,
            captured_at: None,
            image: Some(image(data("cat.jpg"))),
            regions: Vec::new(),
        };
        frames
            .send(StreamClassifyRequest {
                message: Some(Message::Frame(frame)),
            })
            .await
            .unwrap();
        match answers
            .message()
            .await
            .expect("the stream does not fail")
            .unwrap()
            .outcome
            .unwrap()
        {
            Outcome::Result(result) => result.classifications[0].label.clone(),
            Outcome::Error(error) => panic!("{error:?}"),
        }
    };

    let mut id = 0;
    for version in 1..=3 {
        write_model(&path, &format!("{version} "));
        let give_up = Instant::now() + Duration::from_secs(120);
        while next_label(id).await != format!("{version} cat") {
            assert!(
                Instant::now() < give_up,
                "version {version} is not served:\n{}",
                server.log()
            );
            id += 1;
        }
    }

    stop.store(true, Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(answered.load(Relaxed) > 20, "only {answered:?} answers");
    let rejected = server.metric("classifier_rejected_total", &["\"cats\"", "\"queue_full\""]);
    assert_eq!(rejected, 0.0);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn reloads_do_not_leak_memory_or_threads() {
    let folder = folder(&[("cats", "")]);
    let path = folder.path().join("cats.onnx");
    let server = Server::start(&["--model-dir", &flag(folder.path()), "--watch-interval", "0"]);
    let loads = || server.metric("classifier_model_loads_total", &["\"cats\"", "\"loaded\""]);
    let reload = async |times: u32| {
        for _ in 0..times {
            let before = loads();
            fs::File::options()
                .append(true)
                .open(&path)
                .unwrap()
                .set_modified(SystemTime::now())
                .unwrap();
            server.signal("HUP");
            until("the model is loaded again", &server, async || {
                (loads() > before).then_some(())
            })
            .await;
        }
        // A worker drops the previous version a moment later.
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.usage()
    };

    let early = reload(5).await;
    let late = reload(15).await;

    // One version takes at least 60 MiB.
    assert!(
        late.memory_mib < early.memory_mib + 25,
        "after 5 reloads {early:?}, after 20 {late:?}"
    );
    assert!(
        late.threads <= early.threads + 2,
        "after 5 reloads {early:?}, after 20 {late:?}"
    );
}

#[test]
fn wrong_model_flags_end_the_program_before_it_binds() {
    let folder = folder(&[("a", ""), ("b", "")]);
    let [a, b] = ["a.onnx", "b.onnx"].map(|name| flag(folder.path().join(name)));
    let labels = flag(data("../../models/imagenet_classes.txt"));
    for (flags, reason) in [
        (
            vec!["--model", &a, "--model", &b],
            "two models are called \"resnet18-demo\"",
        ),
        (vec!["--model", "x=/nowhere.onnx"], "/nowhere.onnx"),
        (vec!["--model-dir", "/nowhere"], "no such folder"),
        (
            vec!["--model", &a, "--model-control", "explicit"],
            "needs --model-dir",
        ),
        (
            vec!["--model-dir", "/tmp", "--model", &a],
            "cannot be used with",
        ),
        (
            vec!["--model", &a, "--default-model", "other"],
            "the models are resnet18-demo",
        ),
        (
            vec!["--model", &format!("x={a},y={b}"), "--labels", &labels],
            "apply to one model",
        ),
    ] {
        let output = resnet18()
            .args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .args(&flags)
            .output()
            .expect("the program runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{flags:?}");
        assert!(
            stderr.contains(reason) && !stderr.contains("serving gRPC"),
            "{flags:?}: {stderr}"
        );
    }
}
