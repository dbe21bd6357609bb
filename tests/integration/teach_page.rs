//! The tab Teach of the live page: its calls, who may make them, and the tab in a real browser.

use std::path::PathBuf;

use prost::Message;
use resnet18_server::proto::{
    AddExamplesRequest, AddExamplesResponse, FileChunk, GetExampleRequest, GetModelRequest,
    TrainRequest,
};
use tonic::Code;

use crate::{
    common::{Server, data, ffmpeg, passed, python, script, skipped, succeed},
    web::{Answer, framed, send},
};

const ADD: &str = "AddExamples";
const OWN: (&str, &str) = ("origin", "http://localhost");

/// Calls a method of the Teacher as the page does.
fn call(server: &Server, method: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let line = format!("POST /resnet18.v1.Teacher/{method}");
    let kind = ("content-type", "application/grpc-web+proto");
    send(server.http, &line, &[&[kind], headers].concat(), body)
}

fn photo(name: &str) -> Vec<u8> {
    std::fs::read(data("photos").join(name)).unwrap()
}

fn example(class: &str, photo: &str) -> AddExamplesRequest {
    AddExamplesRequest {
        dataset: "pets".into(),
        class: class.into(),
        image: self::photo(photo).into(),
    }
}

/// The content of a file that was answered in parts, and its size as each part says it.
fn file(answer: &Answer) -> Result<(Vec<u8>, u64), (Code, String)> {
    answer.call()?;
    let (mut content, mut size) = (Vec::new(), 0);
    let mut rest = &answer.body[..];
    while let [0, a, b, c, d, more @ ..] = rest {
        let (part, after) = more.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        let part = FileChunk::decode(part).unwrap();
        assert!(part.content.len() <= 256 << 10);
        content.extend_from_slice(&part.content);
        size = part.file_bytes;
        rest = after;
    }
    Ok((content, size))
}

fn state(server: &Server) -> serde_json::Value {
    serde_json::from_str(&server.get("/state").1).unwrap()
}

#[test]
fn the_page_teaches_by_grpc_web_and_fetches_what_it_taught() {
    let folder = tempfile::tempdir().unwrap();
    let flags = [
        "--engine",
        "embedded",
        "--teach",
        folder.path().to_str().unwrap(),
    ];
    let server = Server::start(&flags);
    assert_eq!(state(&server)["teach"], true);

    // Several pictures in the body of one call.
    let photos = [
        ("cat", "cat.jpg"),
        ("cat", "leopard.jpg"),
        ("food", "pizza.jpg"),
        ("food", "sunflower.jpg"),
        ("cat", "cat.jpg"),
        ("food", "cat.jpg"),
    ];
    let body = photos.map(|(class, photo)| framed(&example(class, photo)));
    let added = call(&server, ADD, &[OWN], &body.concat());
    let added = AddExamplesResponse::decode(added.call().unwrap()).unwrap();
    assert_eq!(
        (added.kept, added.known, added.refused),
        (4, 1, 1),
        "{added:?}"
    );
    assert_eq!(added.examples.len(), 5);
    assert_eq!(added.examples[0], added.examples[4]);

    let wanted = |class: &str, example: &str| GetExampleRequest {
        dataset: "pets".into(),
        class: class.into(),
        example: example.into(),
    };
    let get =
        |request: &GetExampleRequest| file(&call(&server, "GetExample", &[OWN], &framed(request)));
    let cat = photo("cat.jpg");
    let size = cat.len() as u64;
    assert_eq!(get(&wanted("cat", &added.examples[0])), Ok((cat, size)));
    for unknown in [
        wanted("food", &added.examples[0]),
        wanted("cat", "../../pets.onnx"),
        wanted("..", ""),
        wanted("", ""),
    ] {
        let (code, message) = get(&unknown).unwrap_err();
        assert_eq!(code, Code::NotFound, "{message}");
    }
    let elsewhere = GetExampleRequest {
        dataset: "../pets".into(),
        ..wanted("cat", "a.jpg")
    };
    assert_eq!(get(&elsewhere).unwrap_err().0, Code::InvalidArgument);

    let dataset = "pets".to_owned();
    let model = framed(&GetModelRequest {
        dataset: dataset.clone(),
    });
    let model = || file(&call(&server, "GetModel", &[OWN], &model));
    assert_eq!(model().unwrap_err().0, Code::NotFound);
    let train = call(
        &server,
        "Train",
        &[OWN],
        &framed(&TrainRequest {
            dataset,
            reject_unknown: false,
        }),
    );
    assert!(train.call().is_ok());
    let (onnx, size) = model().unwrap();
    assert_eq!(onnx.len() as u64, size);
    assert!(onnx == std::fs::read(folder.path().join("pets.onnx")).unwrap());
}

#[test]
fn only_the_pages_own_scripts_may_teach_and_only_where_teaching_is_on() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let body = framed(&example("cat", "cat.jpg"));
    let status = |server: &Server, headers: &[_]| call(server, ADD, headers, &body).status;

    let flags = ["--teach", folder, "--allow-origin", "https://app.example"];
    let server = Server::start(&flags);
    for headers in [
        &[("origin", "https://app.example")][..],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
        &[OWN, ("sec-fetch-site", "cross-site")],
    ] {
        assert_eq!(status(&server, headers), 403, "{headers:?}");
    }
    assert_eq!(status(&server, &[("host", "evil.example")]), 421);
    let no_form = [("content-type", "text/plain"), OWN];
    let line = "POST /resnet18.v1.Teacher/AddExamples";
    assert_eq!(send(server.http, line, &no_form, &body).status, 415);
    assert!(call(&server, ADD, &[OWN], &body).call().is_ok());

    let no_page = Server::start(&["--teach", folder, "--web", "off"]);
    assert_eq!(status(&no_page, &[OWN]), 404);
    let no_teacher = Server::start(&[]);
    assert_eq!(state(&no_teacher)["teach"], false);
    assert_eq!(status(&no_teacher, &[OWN]), 404);
}

#[test]
fn the_tab_works_in_a_browser() {
    let Some(python) = python() else { return };
    let browser = ["/usr/bin/chromium", "/usr/bin/chromedriver"];
    if browser.iter().any(|path| !PathBuf::from(path).exists()) {
        skipped("chromium and chromium-driver are not installed");
        return;
    }
    if !ffmpeg() {
        return;
    }
    const TOKEN: &str = "0123456789abcdef-page";
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("tokens"), format!("page {TOKEN}\n")).unwrap();
    let server = Server::start(&["--teach", &path("taught"), "--teach-pictures", "40"]);
    let guarded = Server::start(&["--teach", &path("guarded"), "--tokens", &path("tokens")]);

    let mut script = script(&python, "test_teach_page.py");
    script
        .args([format!("http://{}", server.http), server.pid().to_string()])
        .args([&format!("http://{}", guarded.http), TOKEN])
        .arg(folder.path())
        .env("SE_OFFLINE", "true");
    let stdout = succeed(&mut script, &[&server, &guarded]);
    assert_eq!(passed(&stdout), 10, "{stdout}");
}
