//! Programs that some tests need. Tests are skipped, with a visible message, where one is missing.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
};

use super::Server;

/// Prints that a test is skipped, directly to standard error: the test harness captures what
/// `eprintln!` prints in a passing test.
pub fn skipped(reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
}

/// Python with grpcio, which `make test-env` sets up.
pub fn python() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    if path.exists() {
        return Some(path);
    }

    skipped("there is no Python with grpcio; `make test-env` sets it up");
    None
}

/// A script of `tests/python`, to be run by this Python.
pub fn script(python: &Path, name: &str) -> Command {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    let mut command = Command::new(python);
    command.arg(folder.join(name));
    command
}

/// Runs a program that must succeed, and returns what it prints. If it fails, its errors and the logs of the
/// servers that it calls are shown.
pub fn succeed(command: &mut Command, servers: &[&Server]) -> String {
    let output = command.output().expect("the program can be started");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let logs: Vec<_> = servers.iter().map(|server| server.log()).collect();
        panic!("{stdout}{stderr}\nservers:\n{}", logs.join("\n"));
    }
    stdout
}

/// How many of its tests a script says have passed.
pub fn passed(stdout: &str) -> usize {
    stdout.lines().filter(|line| line.ends_with(" ok")).count()
}

/// The same Python, where tritonclient is installed too.
pub fn tritonclient() -> Option<PathBuf> {
    // Importing it takes seconds, and several tests ask.
    static INSTALLED: LazyLock<bool> = LazyLock::new(|| {
        python().is_some_and(|python| {
            let import = Command::new(python)
                .args(["-c", "import tritonclient.grpc"])
                .output();
            import.expect("Python runs").status.success()
        })
    });

    let python = python()?;
    if *INSTALLED {
        return Some(python);
    }

    skipped("there is no tritonclient in the tests' Python; `make test-env` sets it up");
    None
}

/// grpcurl, which `make test-env` sets up.
pub fn grpcurl() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/grpcurl");
    if path.exists() {
        return Some(path);
    }

    skipped("there is no grpcurl beside the tests' Python; `make test-env` sets it up");
    None
}

/// Node with gRPC's and Connect's libraries, which `make test-env` sets up.
pub fn node() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join(".venv/bin/node");
    if path.exists() && root.join("tests/node/node_modules/@grpc").exists() {
        return Some(path);
    }

    skipped("there is no Node with gRPC's libraries; `make test-env` sets it up");
    None
}

/// Whether openssl is installed.
pub fn openssl() -> bool {
    let found = Command::new("openssl")
        .arg("version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !found {
        skipped("openssl is not installed");
    }
    found
}

/// Whether libheif's encoder is installed, for HEVC and for AV1.
pub fn heif_enc() -> bool {
    let found = Command::new("heif-enc")
        .arg("--list-encoders")
        .output()
        .is_ok_and(|output| {
            let text = String::from_utf8_lossy(&output.stdout);
            text.contains("x265") && (text.contains("aom") || text.contains("svt"))
        });
    if !found {
        skipped("there is no heif-enc with encoders of HEVC and AV1 (Debian: libheif-examples)");
    }
    found
}

/// The same Python, where Pillow is installed too.
pub fn pillow() -> Option<PathBuf> {
    let python = python()?;
    let import = Command::new(&python)
        .args(["-c", "import numpy, PIL"])
        .output()
        .expect("Python runs");
    if import.status.success() {
        return Some(python);
    }

    skipped("there is no Pillow in the tests' Python; `make test-env` sets it up");
    None
}

/// Whether ffmpeg is installed.
pub fn ffmpeg() -> bool {
    let found = Command::new("ffmpeg")
        .arg("-version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !found {
        skipped("ffmpeg is not installed");
    }
    found
}
