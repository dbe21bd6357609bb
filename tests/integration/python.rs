//! The server as Python services see it: grpcio with stubs generated from the proto, health,
//! reflection.

use std::process::Command;

use crate::common::{Server, python};

#[test]
fn grpcio_classifies_streams_checks_health_and_reflects() {
    let Some(python) = python() else { return };
    let server = Server::start(&[]);
    let output = Command::new(python)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/python/test_client.py"
        ))
        .arg(&server.grpc)
        .output()
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{stdout}{stderr}\nserver:\n{}",
        server.log()
    );
    let refused = server.metric("classifier_rejected_total", &["queue_full"]);
    assert!(refused > 0.0, "nobody had to come again");
    assert_eq!(
        stdout.lines().filter(|line| line.ends_with(" ok")).count(),
        7,
        "{stdout}"
    );
}
