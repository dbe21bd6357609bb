//! Every dependency's licence is one that lets the program be given away as MIT or Apache-2.0.

use std::process::Command;

const DENY: &str = include_str!("../../deny.toml");

#[test]
fn every_dependency_may_be_shipped() {
    let (_, list) = DENY.split_once("allow = [").unwrap();
    let allowed: Vec<&str> = list
        .split(']')
        .next()
        .unwrap()
        .split('"')
        .skip(1)
        .step_by(2)
        .collect();
    // Only this platform's crates have been fetched.
    let version = Command::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .unwrap();
    let features = [
        (cfg!(feature = "tensorrt"), "tensorrt"),
        (cfg!(feature = "otlp"), "otlp"),
    ];
    let features: Vec<&str> = features
        .into_iter()
        .filter(|(on, _)| *on)
        .map(|(_, name)| name)
        .collect();
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--offline",
            "--locked",
            "--format-version",
            "1",
            "--filter-platform",
            host,
        ])
        .args(["--features", &features.join(",")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100);
    for package in packages {
        let licence = package["license"].as_str().unwrap_or("none");
        // Alternatives are separated by OR (formerly a slash); of each, all that AND joins must be
        // allowed.
        let alternatives = licence.replace(['(', ')'], "").replace('/', " OR ");
        let fits = |alternative: &str| {
            alternative
                .split(" AND ")
                .all(|id| allowed.contains(&id.trim()))
        };
        // `(A OR B) AND C`, flattened, needs only be looked at by hand once.
        let known = licence == "(MIT OR Apache-2.0) AND Unicode-3.0";
        assert!(
            known || alternatives.split(" OR ").any(fits),
            "{}: {licence}",
            package["name"]
        );
    }
}
