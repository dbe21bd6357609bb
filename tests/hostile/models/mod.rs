//! Hostile models: files that crash libraries, compute without end or take all memory, and files
//! that are none. A model that can't be served is no other model's end.

mod dead_mount;

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use prost::Message as _;
use resnet18_server::{
    model::onnx::{
        AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto,
        TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
        attribute_proto::AttributeType,
        tensor_proto::{DataLocation, DataType},
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
    proto::{ClassifyRequest, ListModelsRequest, Model, ModelState},
};
use tonic::{Code, Request, Status};

use crate::{
    assert_discreet, cat,
    common::{Server, resnet18, shared, text, tiny_model::tiny_model},
};

/// The tiny model with its graph changed.
fn changed(change: impl FnOnce(&mut GraphProto)) -> Vec<u8> {
    let mut model = ModelProto::decode(&tiny_model(1)[..]).unwrap();
    change(model.graph.as_mut().unwrap());
    model.encode_to_vec()
}

fn node(op_type: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: Some(op_type.into()),
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: vec![output.into()],
        ..Default::default()
    }
}

/// The tiny model with these nodes in front, of which the last one makes the network's input.
fn behind(nodes: Vec<NodeProto>, stored: Vec<TensorProto>) -> Vec<u8> {
    changed(|graph| {
        let last = nodes.last().unwrap().output[0].clone();
        graph.node[0].input[0] = last;
        graph.node.splice(0..0, nodes);
        graph.initializer.extend(stored);
    })
}

fn integers(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        data_type: Some(DataType::Int64 as i32),
        dims: dims.to_vec(),
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

fn declared(name: &str, elem: DataType, dims: &[i64]) -> ValueInfoProto {
    let dim = |&dim: &i64| Dimension {
        value: Some(dimension::Value::DimValue(dim)),
        ..Default::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(elem as i32),
        shape: Some(TensorShapeProto {
            dim: dims.iter().map(dim).collect(),
        }),
    };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A loop over the image whose body changes nothing. `rounds` is the name of their number.
fn endless(rounds: &str) -> NodeProto {
    let (image, image_dims) = (DataType::Float, [1, 3, 32, 32]);
    let body = GraphProto {
        name: Some("body".into()),
        node: vec![
            node("Identity", &["go"], "go_on"),
            node("Relu", &["x"], "next_x"),
        ],
        input: vec![
            declared("round", DataType::Int64, &[]),
            declared("go", DataType::Bool, &[]),
            declared("x", image, &image_dims),
        ],
        output: vec![
            declared("go_on", DataType::Bool, &[]),
            declared("next_x", image, &image_dims),
        ],
        ..Default::default()
    };
    let mut node = node("Loop", &[rounds, "", "pixels"], "looped");
    node.attribute.push(AttributeProto {
        name: Some("body".into()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(body),
        ..Default::default()
    });
    node
}

/// A model that takes an age, in a way that is not seen before it runs.
fn slow() -> Vec<u8> {
    let rounds = node("Mul", &["many", "many"], "rounds");
    let many = integers("many", &[], &[1 << 15]);
    behind(vec![rounds, endless("rounds")], vec![many])
}

/// A model that needs 50 TB, in a way that is not seen before it runs.
pub fn large() -> Vec<u8> {
    let tile = node("Tile", &["pixels", "repeats"], "tiled");
    let repeats = integers("repeats", &[4], &[1, 1, 1 << 16, 1 << 16]);
    behind(vec![tile], vec![repeats])
}

/// A model whose functions each call the next one twice: 2^30 nodes.
fn doubling() -> Vec<u8> {
    let call = |level: usize, input: &str, output: &str| NodeProto {
        domain: Some("mine".into()),
        ..node(&format!("Level{level}"), &[input], output)
    };
    let mut model =
        ModelProto::decode(&behind(vec![call(0, "pixels", "made")], vec![])[..]).unwrap();
    model.functions = (0..30)
        .map(|level| FunctionProto {
            name: Some(format!("Level{level}")),
            domain: Some("mine".into()),
            input: vec!["x".into()],
            output: vec!["y".into()],
            node: match level {
                29 => vec![node("Relu", &["x"], "y")],
                _ => vec![call(level + 1, "x", "h"), call(level + 1, "h", "y")],
            },
            ..Default::default()
        })
        .collect();
    model.encode_to_vec()
}

/// Models by name, each with a part of the reason why it can't be served.
fn bombs() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let link = |index: usize| match index {
        0 => "pixels".to_owned(),
        index => format!("link{index}"),
    };
    let chain = (0..20_000).map(|index| node("Identity", &[&link(index)], &link(index + 1)));
    let rounds = integers("rounds", &[], &[1 << 40]);
    let batch = changed(|graph| {
        graph.input = vec![declared("pixels", DataType::Float, &[1 << 40, 3, 224, 224])];
        graph.output = vec![declared("scores", DataType::Float, &[1 << 40, 3])];
    });
    vec![
        ("b_batch", batch, "batches of exactly 1099511627776"),
        ("b_chain", behind(chain.collect(), vec![]), "20000 nodes"),
        (
            "b_circle",
            behind(vec![node("Identity", &["pixels"], "pixels")], vec![]),
            "exists already",
        ),
        (
            "b_conv",
            behind(vec![node("Conv", &["pixels"], "made")], vec![]),
            "has no input 2",
        ),
        (
            "b_loop",
            behind(vec![endless("rounds")], vec![rounds]),
            "1099511627776 times",
        ),
        ("b_functions", doubling(), "20000 nodes"),
        ("b_large", large(), "--model-memory"),
        ("b_slow", slow(), "--model-timeout"),
        ("b_text", b"not a model".to_vec(), "not an ONNX model"),
    ]
}

fn fifo(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.expect("mkfifo runs").success());
}

/// A path as the value of a flag.
fn flag(path: impl Into<PathBuf>) -> String {
    path.into().display().to_string()
}

/// A server of the models in a folder, which keeps what it remembers in `cache`.
pub fn serve(folder: &Path, cache: &Path, flags: &[&str]) -> Server {
    let (folder, cache) = (flag(folder), flag(cache));
    let mut all = vec![
        "--engine",
        "embedded",
        "--threads",
        "1",
        "--model-dir",
        &folder,
        "--engine-cache",
        &cache,
        "--watch-interval",
        "100ms",
        "--model-memory",
        "512",
    ];
    all.extend(flags);
    Server::start(&all)
}

async fn models(server: &Server) -> Vec<Model> {
    let mut client = server.client().await;
    let listed = client.list_models(ListModelsRequest {}).await.unwrap();
    listed.into_inner().models
}

/// The problem of this model, once there is one.
pub async fn problem(server: &Server, name: &str) -> String {
    let give_up = Instant::now() + Duration::from_secs(30);
    loop {
        let listed = models(server).await;
        let found = listed.iter().find(|model| model.name == name);
        if let Some(found) = found.filter(|model| !model.problem.is_empty()) {
            return found.problem.clone();
        }
        assert!(
            Instant::now() < give_up,
            "no problem of {name}\n{}",
            server.log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What the model makes of a photo.
pub async fn classify(server: &Server, model: &str, token: Option<&str>) -> Result<(), Status> {
    let mut request = Request::new(ClassifyRequest {
        model: model.into(),
        ..cat()
    });
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    server.client().await.classify(request).await.map(|_| ())
}

#[tokio::test]
async fn a_folder_with_bombs_serves_its_good_model_and_gives_the_reasons() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join("a_good.onnx"), tiny_model(1)).unwrap();
    for (name, onnx, _) in bombs() {
        fs::write(folder.path().join(format!("{name}.onnx")), onnx).unwrap();
    }
    let server = serve(folder.path(), cache.path(), &["--model-timeout", "3s"]);
    classify(&server, "a_good", None).await.unwrap();

    for (name, _, reason) in bombs() {
        let problem = problem(&server, name).await;
        assert!(problem.contains(reason), "{name}: {problem}");
        let status = classify(&server, name, None).await.unwrap_err();
        assert_eq!(
            status.code(),
            Code::FailedPrecondition,
            "{name}: {status:?}"
        );
        assert!(status.message().contains(reason), "{name}: {status:?}");
        assert_discreet(name, &status);
    }

    // A bomb that replaces a good model changes nothing for its callers.
    fs::write(folder.path().join("a_good.onnx"), large()).unwrap();
    let reason = problem(&server, "a_good").await;
    assert!(reason.contains("--model-memory"), "{reason}");
    classify(&server, "a_good", None).await.unwrap();
    assert!(
        server
            .log()
            .contains("the previous version is still served"),
        "{}",
        server.log()
    );
}

#[tokio::test]
async fn a_check_does_not_hold_up_callers_and_ends_with_the_server() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join("a_good.onnx"), tiny_model(1)).unwrap();
    let mut server = serve(folder.path(), cache.path(), &[]);
    fs::write(folder.path().join("slow.onnx"), slow()).unwrap();

    let give_up = Instant::now() + Duration::from_secs(20);
    let check = loop {
        if let [check] = children(server.pid())[..] {
            break check;
        }
        assert!(Instant::now() < give_up, "no check runs\n{}", server.log());
        classify(&server, "a_good", None).await.unwrap();
    };
    for _ in 0..5 {
        classify(&server, "a_good", None).await.unwrap();
    }
    assert!(Path::new(&format!("/proc/{check}")).exists());

    server.signal("KILL");
    assert!(server.wait(Duration::from_secs(10)).is_some());
    while is_running(check) {
        assert!(Instant::now() < give_up, "the check outlives its server");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The fields of `/proc/PID/stat` after the program's name: state, parent and so on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields[0] != "Z")
}

/// The processes that this one has started.
fn children(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&other| stat(other).is_some_and(|fields| fields[1] == pid.to_string()))
        .collect()
}

#[tokio::test]
async fn what_is_no_regular_file_or_too_large_is_a_reason() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name);
    fs::write(path("a_good.onnx"), tiny_model(1)).unwrap();
    fifo(&path("pipe.onnx"));
    symlink("/dev/zero", path("device.onnx")).unwrap();
    symlink("/nonexistent", path("nothing.onnx")).unwrap();
    fs::create_dir(path("directory.onnx")).unwrap();
    File::create(path("sparse.onnx"))
        .and_then(|file| file.set_len(3 << 30))
        .unwrap();
    fs::write(path("labels.onnx"), without_labels()).unwrap();
    fifo(&path("labels.labels.txt"));

    let server = serve(folder.path(), cache.path(), &[]);
    for (name, reason) in [
        ("pipe", "is a named pipe"),
        ("device", "is a device"),
        ("sparse", "larger than 2 GiB"),
        ("labels", "is a named pipe"),
    ] {
        let problem = problem(&server, name).await;
        assert!(problem.contains(reason), "{name}: {problem}");
    }
    let names: Vec<_> = models(&server)
        .await
        .into_iter()
        .map(|model| (model.name.clone(), model.state()))
        .collect();
    assert_eq!(names[0], ("a_good".to_owned(), ModelState::Ready));
    assert_eq!(names.len(), 5, "{names:?}");
    assert!(server.usage().peak_mib < 512, "{:?}", server.usage());
}

/// The tiny model with its weights in the file `location`.
fn with_weights_in(location: &str) -> Vec<u8> {
    let entry = |key: &str, value: &str| StringStringEntryProto {
        key: Some(key.into()),
        value: Some(value.into()),
    };
    changed(|graph| {
        let weights = &mut graph.initializer[0];
        weights.float_data.clear();
        weights.data_location = Some(DataLocation::External as i32);
        weights.external_data = vec![entry("location", location), entry("length", "36")];
    })
}

#[tokio::test]
async fn weights_are_read_from_regular_files_in_the_models_folder_only() {
    let (outside, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = outside.path().join("models");
    fs::create_dir(&folder).unwrap();
    fs::write(outside.path().join("secret"), [0; 36]).unwrap();
    let absolute = flag(outside.path().join("secret"));
    let path = |name: &str| folder.join(name);
    fs::write(path("a_good.onnx"), tiny_model(1)).unwrap();
    fifo(&path("pipe.data"));
    symlink("/dev/zero", path("device.data")).unwrap();
    symlink("../secret", path("link.data")).unwrap();
    fs::write(path("short.data"), [0; 35]).unwrap();
    fs::create_dir(path("directory.data")).unwrap();
    File::create(path("sparse.data"))
        .and_then(|file| file.set_len(3 << 30))
        .unwrap();

    let named = "within the model's folder";
    let cases = [
        ("up", "../secret", named),
        ("absolute", absolute.as_str(), named),
        ("pipe", "pipe.data", "is a named pipe"),
        ("device", "device.data", "leaves the model's folder"),
        ("link", "link.data", "leaves the model's folder"),
        ("short", "short.data", "but the file has 35"),
        ("directory", "directory.data", "is a directory"),
        ("sparse", "sparse.data", "larger than 2 GiB"),
        ("missing", "missing.data", "is missing beside the model"),
    ];
    for (name, location, _) in cases {
        fs::write(path(&format!("b_{name}.onnx")), with_weights_in(location)).unwrap();
    }
    let server = serve(&folder, cache.path(), &[]);
    for (name, _, reason) in cases {
        let name = format!("b_{name}");
        let problem = problem(&server, &name).await;
        assert!(problem.contains(reason), "{name}: {problem}");
    }
    classify(&server, "a_good", None).await.unwrap();
    assert!(server.usage().peak_mib < 512, "{:?}", server.usage());
}

fn without_labels() -> Vec<u8> {
    let mut model = ModelProto::decode(&tiny_model(1)[..]).unwrap();
    model.metadata_props.clear();
    model.encode_to_vec()
}

#[tokio::test]
async fn tokens_are_reloaded_whatever_the_other_files_are() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name);
    fs::write(path("a_good.onnx"), tiny_model(1)).unwrap();
    fs::write(path("labels.onnx"), without_labels()).unwrap();
    fifo(&path("labels.labels.txt"));
    let [old, new] = ["old-token-0123456789", "new-token-0123456789"];
    let replace = |make: &dyn Fn(&Path)| {
        make(&path("unfinished"));
        fs::rename(path("unfinished"), path("tokens")).unwrap();
    };
    let write = |tokens: &str| {
        let tokens = tokens.to_owned();
        replace(&move |path| fs::write(path, &tokens).unwrap());
    };
    write(&format!("a {old}\n"));
    let tokens = flag(path("tokens"));
    let server = serve(folder.path(), cache.path(), &["--tokens", &tokens]);
    classify(&server, "a_good", Some(old)).await.unwrap();

    // A pipe in place of the tokens is refused, and does not stop later reloads.
    replace(&fifo);
    let give_up = Instant::now() + Duration::from_secs(20);
    while !server.log().contains("is a named pipe, and only regular") {
        assert!(Instant::now() < give_up, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    classify(&server, "a_good", Some(old)).await.unwrap();

    write(&format!("a {new}\n"));
    while let Err(status) = classify(&server, "a_good", Some(new)).await {
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        assert!(Instant::now() < give_up, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let status = classify(&server, "a_good", Some(old)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
}

/// What the program says to these arguments, within a time in which a hanging one is told.
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command
        .args(["-s", "KILL", "20"])
        .arg(resnet18().get_program());
    command.args(arguments).output().expect("timeout runs")
}

#[test]
fn a_pipe_in_place_of_a_file_ends_the_start_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    fifo(&pipe);
    let pipe = flag(pipe);
    let model = flag(folder.path().join("tiny.onnx"));
    fs::write(&model, without_labels()).unwrap();

    for flags in [
        &["--model", &pipe][..],
        &["--model", &model, "--labels", &pipe],
        &["--tokens", &pipe],
        &["--tls-cert", &pipe, "--tls-key", &pipe],
    ] {
        let ports = ["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        let output = run(&[&ports, flags].concat());
        assert!(output.status.code().is_some(), "{flags:?}: it hangs");
        assert!(!output.status.success(), "{flags:?}");
        let errors = text(&output.stderr);
        assert!(errors.contains("is a named pipe"), "{flags:?}: {errors}");
    }
}

#[test]
fn a_listed_model_that_does_not_pass_ends_the_start_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let model = flag(folder.path().join("large.onnx"));
    fs::write(&model, large()).unwrap();
    let output = run(&[
        "serve",
        "--grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--engine",
        "embedded",
        "--model-memory",
        "512",
        "--model",
        &model,
    ]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let errors = text(&output.stderr);
    assert!(errors.contains("more than 512 MiB of memory"), "{errors}");
}

#[test]
fn a_model_that_has_passed_is_not_tried_again_at_the_next_start() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join("a_good.onnx"), tiny_model(1)).unwrap();
    for is_tried in [true, false] {
        let server = serve(folder.path(), cache.path(), &["--log", "debug"]);
        assert_eq!(
            server.log().contains("checked in a process of its own"),
            is_tried,
            "{}",
            server.log()
        );
    }
}

#[test]
fn check_says_what_becomes_of_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| flag(folder.path().join(name));
    fs::write(path("good.onnx"), tiny_model(1)).unwrap();
    fs::write(path("large.onnx"), large()).unwrap();
    let check = |model: &str, flags: &[&str]| {
        let arguments = ["check", model, "--engine", "embedded", "--threads", "1"];
        let output = run(&[&arguments, flags].concat());
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };

    let (status, printed, _) = check(&path("good.onnx"), &[]);
    assert_eq!(status, Some(0));
    assert!(
        printed.contains("3 classes, runs on embedded rten"),
        "{printed}"
    );
    let (status, printed, _) = check(&path("good.onnx"), &["--json"]);
    assert_eq!(status, Some(0));
    let json: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(json["passed"], true, "{json}");
    assert_eq!(
        (&json["classes"], &json["precision"]),
        (&3.into(), &"fp32".into())
    );

    let few = &["--model-memory", "512"][..];
    let (status, _, errors) = check(&path("large.onnx"), few);
    assert_eq!(status, Some(1));
    assert!(errors.contains("more than 512 MiB of memory"), "{errors}");
    let (status, printed, _) = check(&path("large.onnx"), &[few, &["--json"]].concat());
    assert_eq!(status, Some(1));
    let json: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(json["passed"], false, "{json}");
    assert!(
        json["problem"].as_str().unwrap().contains("512 MiB"),
        "{json}"
    );
}

#[test]
fn bombs_that_others_made_have_a_reason_on_every_engine() {
    let Some(folder) = shared("cases/bombs") else {
        return;
    };
    let mut tried = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "onnx") {
            continue;
        }
        for engine in ["auto", "embedded", "openvino"] {
            let output = run(&["check", &flag(&path), "--engine", engine]);
            let errors = text(&output.stderr);
            assert_eq!(
                output.status.code(),
                Some(1),
                "{path:?}, {engine}: {errors}"
            );
            assert!(!errors.contains("SIG"), "{path:?}, {engine}: {errors}");
            tried += 1;
        }
    }
    assert!(tried >= 15, "only {tried}");
}
