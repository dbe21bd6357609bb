//! The server through gRPC's library for Node and through Connect's.

use std::{path::Path, process::Command};

use crate::common::{Server, data, node, python, succeed};

/// Runs the clients, and returns the lines that they print.
fn run_clients(server: &Server, with_http: bool) -> Option<String> {
    let (node, python) = (node()?, python()?);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let proto = root.join("proto/resnet18/v1/classifier.proto");
    let folder = tempfile::tempdir().unwrap();
    let descriptors = folder.path().join("classifier.bin");
    let compiled = Command::new(python)
        .args(["-m", "grpc_tools.protoc", "--include_imports", "-I"])
        .arg(root.join("proto"))
        .arg(format!("--descriptor_set_out={}", descriptors.display()))
        .arg(&proto)
        .status()
        .expect("protoc runs");
    assert!(compiled.success());

    let mut clients = Command::new(node);
    clients
        .arg(root.join("tests/node/clients.mjs"))
        .args([&proto, &descriptors, &data("cat.jpg")])
        .arg(&server.grpc);
    if with_http {
        clients.arg(format!("http://{}", server.http));
    }
    Some(succeed(&mut clients, &[server]))
}

#[test]
fn grpc_js_and_connect_classify_and_stream() {
    let server = Server::start(&["--rest"]);
    let Some(lines) = run_clients(&server, true) else {
        return;
    };
    let expected = "grpc-js ok\nconnect over gRPC ok\nconnect over gRPC-Web ok\n";
    assert_eq!(lines, expected);
}

#[test]
fn grpc_js_calls_through_a_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", folder.path().join("grpc.sock").display());
    let server = Server::start(&["--grpc", &socket]);
    let Some(lines) = run_clients(&server, false) else {
        return;
    };
    assert_eq!(lines, "grpc-js ok\n");
}
