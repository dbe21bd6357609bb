//! The server through grpcio, with stubs generated from the proto: calls, health and reflection.

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
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);

    assert!(
        output.status.success(),
        "{stdout}{stderr}\nserver:\n{}",
        server.log()
    );
    let refused = server.metric("classifier_rejected_total", &["queue_full"]);
    assert!(refused > 0.0, "no call was refused and had to be retried");
    assert_eq!(
        stdout.lines().filter(|line| line.ends_with(" ok")).count(),
        8,
        "{stdout}"
    );
}
