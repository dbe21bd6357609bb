//! What `deploy/` says is what works: manifests fit the published schemas, and the server takes the
//! flags that they give it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::common::{Server, python, resnet18, skipped};

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name)
}

const MANIFESTS: [&str; 6] = [
    "kubernetes/server/autoscaling.yaml",
    "kubernetes/server/deployment.yaml",
    "kubernetes/server/disruption.yaml",
    "kubernetes/server/service.yaml",
    "kubernetes/kserve/example.yaml",
    "kubernetes/kserve/runtime.yaml",
];

/// The program of that name in the tests' Python environment; a visible word where it is not.
fn tool(name: &str) -> Option<PathBuf> {
    let path = python()?.with_file_name(name);
    if path.exists() {
        return Some(path);
    }
    skipped(&format!(
        "{name} is not installed; `make test-env` installs it"
    ));
    None
}

fn validate(files: &[PathBuf]) -> Option<Output> {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/python/test_manifests.py"
    );
    // The validator's own program stands for its package.
    let python = tool("kubernetes-validate")?.with_file_name("python");
    Some(
        Command::new(python)
            .arg(script)
            .args(files)
            .output()
            .unwrap(),
    )
}

#[test]
fn manifests_fit_the_published_schemas() {
    let Some(output) = validate(&MANIFESTS.map(deploy)) else {
        return;
    };
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stderr}");
    let kinds: Vec<&str> = stdout.lines().collect();
    let expected = [
        "HorizontalPodAutoscaler",
        "Deployment",
        "PodDisruptionBudget",
        "Service",
        "Service",
        "InferenceService",
        "ServingRuntime",
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn manifests_with_a_mistake_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mistakes = [
        (
            "kubernetes/server/deployment.yaml",
            "maxSurge",
            "maximumSurge",
            "maximumSurge",
        ),
        (
            "kubernetes/kserve/runtime.yaml",
            "containerPort: 8001",
            "containerPort: grpc",
            "containers[0].ports[0]",
        ),
        (
            "kubernetes/kserve/runtime.yaml",
            "multiModel",
            "manyModels",
            "manyModels",
        ),
        (
            "kubernetes/kserve/example.yaml",
            "  predictor:",
            "  transformer:",
            "lacks `predictor`",
        ),
    ];
    let files: Vec<PathBuf> = (0..mistakes.len())
        .map(|n| folder.path().join(format!("{n}.yaml")))
        .collect();
    for ((name, right, wrong, _), file) in mistakes.iter().zip(&files) {
        let text = std::fs::read_to_string(deploy(name)).unwrap();
        assert!(text.contains(right), "{name}: {right}");
        std::fs::write(file, text.replace(right, wrong)).unwrap();
    }
    let Some(output) = validate(&files) else {
        return;
    };
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(!output.status.success() && stdout.is_empty(), "{stdout}");
    assert_eq!(stderr.lines().count(), mistakes.len(), "{stderr}");
    for ((name, _, wrong, hint), line) in mistakes.iter().zip(stderr.lines()) {
        assert!(line.contains(hint), "{name}: {wrong}: {line}");
    }
}

/// The flags that a manifest gives to the server.
fn flags(manifest: &str) -> Vec<String> {
    let text = std::fs::read_to_string(deploy(manifest)).unwrap();
    let flags = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- --"));
    flags.map(|flag| format!("--{flag}")).collect()
}

#[test]
fn the_server_runs_with_the_flags_of_the_deployment() {
    let flags = flags("kubernetes/server/deployment.yaml");
    // Here it listens on ports of its own, and its log is read by people.
    let other = |flag: &&str| {
        !["--grpc=", "--http=", "--log-format="]
            .iter()
            .any(|own| flag.starts_with(own))
    };
    let flags: Vec<&str> = flags.iter().map(String::as_str).filter(other).collect();
    assert!(flags.len() >= 5, "{flags:?}");
    let server = Server::start(&flags);
    assert_eq!(server.get("/healthz").0, 200);
}

#[test]
fn kserves_folder_of_models_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/resnet18-demo.onnx");
    std::fs::copy(bundled, folder.path().join("flowers.onnx")).unwrap();
    let flags = flags("kubernetes/kserve/runtime.yaml");
    let models = flags
        .iter()
        .find(|flag| flag.starts_with("--model-dir="))
        .unwrap();
    let models = models.replace("/mnt/models", folder.path().to_str().unwrap());
    let server = Server::start(&[&models]);
    assert_eq!(
        server.metric("classifier_model_ready", &["model=\"flowers\""]),
        1.0
    );
}

/// Every flag of every manifest, and of the image's health check.
#[test]
fn every_flag_exists() {
    for manifest in MANIFESTS {
        let output = resnet18()
            .arg("serve")
            .args(flags(manifest))
            .arg("--help")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{manifest}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let dockerfile = std::fs::read_to_string(deploy("Dockerfile")).unwrap();
    let check = dockerfile
        .lines()
        .find_map(|line| line.trim().strip_prefix("CMD "))
        .unwrap();
    let check: Vec<String> = serde_json::from_str(check).unwrap();
    let output = resnet18().args(&check[1..]).arg("--help").output().unwrap();
    assert!(
        check[0] == "resnet18" && output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for (name, _) in dockerfile
        .split("RESNET18_")
        .skip(1)
        .filter_map(|rest| rest.split_once('='))
    {
        let help = resnet18().args(["serve", "--help"]).output().unwrap();
        assert!(
            String::from_utf8_lossy(&help.stdout).contains(&format!("RESNET18_{name}=")),
            "RESNET18_{name}"
        );
    }
}

#[test]
fn pods_have_the_time_that_they_need_to_drain() {
    for (manifest, runtime) in [
        (
            "kubernetes/server/deployment.yaml",
            "kubernetes/server/deployment.yaml",
        ),
        (
            "kubernetes/kserve/example.yaml",
            "kubernetes/kserve/runtime.yaml",
        ),
    ] {
        let text = std::fs::read_to_string(deploy(manifest)).unwrap();
        let grace = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("terminationGracePeriodSeconds: "))
            .unwrap();
        let flags = flags(runtime);
        let seconds = |name: &str| -> u32 {
            let value = flags
                .iter()
                .find_map(|flag| flag.strip_prefix(name)?.strip_suffix('s'))
                .unwrap();
            value.parse().unwrap()
        };
        let drain = seconds("--drain-delay=") + seconds("--drain-timeout=");
        assert!(
            grace.parse::<u32>().unwrap() > drain,
            "{manifest}: {grace} s, but draining takes {drain} s"
        );
    }
}

#[test]
fn the_dockerfile_passes_its_linter() {
    let text = std::fs::read_to_string(deploy("Dockerfile")).unwrap();
    let toolchain = text
        .split("FROM rust:")
        .nth(1)
        .unwrap()
        .split('-')
        .next()
        .unwrap();
    assert_eq!(
        toolchain,
        env!("CARGO_PKG_RUST_VERSION"),
        "the image builds with the oldest Rust that is supported"
    );
    let Some(hadolint) = tool("hadolint") else {
        return;
    };
    let output = Command::new(hadolint)
        .arg("--no-color")
        .arg(deploy("Dockerfile"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// All Rust files of a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let found = entries.flat_map(|path| {
        if path.is_dir() {
            sources(&path)
        } else {
            vec![path]
        }
    });
    found
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

#[test]
fn the_image_is_built_from_all_that_the_program_includes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .canonicalize()
        .unwrap();
    let kept = include_str!("../../.dockerignore")
        .lines()
        .filter_map(|line| line.strip_prefix('!'));
    let kept: Vec<PathBuf> = kept.map(|path| root.join(path)).collect();
    kept.iter()
        .for_each(|path| assert!(path.exists(), ".dockerignore names {}", path.display()));
    let mut included = 0;
    for source in sources(&root.join("src")) {
        let text = std::fs::read_to_string(&source).unwrap();
        let names = text
            .split("include_bytes!(\"")
            .chain(text.split("include_str!(\""))
            .skip(1);
        for path in names
            .filter_map(|rest| rest.split('"').next())
            .filter(|name| name.starts_with("../"))
        {
            let path = source
                .with_file_name(path)
                .canonicalize()
                .unwrap_or_default();
            let reachable =
                kept.iter().any(|kept| path.starts_with(kept)) || path == root.join("README.md");
            assert!(
                reachable,
                "{} includes {}, which .dockerignore keeps out",
                source.display(),
                path.display()
            );
            included += 1;
        }
    }
    assert!(included >= 4, "{included}");
}
