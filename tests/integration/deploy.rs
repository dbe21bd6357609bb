//! The files in `deploy/`: manifests match the published schemas, and the server accepts the flags
//! that they pass.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::common::{Server, python, resnet18, skipped, text};

/// The path of a file in `deploy/`.
fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name)
}

const MANIFESTS: [&str; 7] = [
    "kubernetes/server/autoscaling.yaml",
    "kubernetes/server/deployment.yaml",
    "kubernetes/server/disruption.yaml",
    "kubernetes/server/service.yaml",
    "kubernetes/kserve/example.yaml",
    "kubernetes/kserve/runtime.yaml",
    "kubernetes/kserve/runtime-gpu.yaml",
];

/// What the images are built by.
const DOCKERFILES: [&str; 2] = ["Dockerfile", "Dockerfile.gpu"];

/// A program of the tests' Python environment; `None`, with a visible message, where it is missing.
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

/// Runs the validator of manifests on these files.
fn validate(files: &[PathBuf]) -> Option<Output> {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/python/test_manifests.py"
    );
    // The program `kubernetes-validate` is installed together with the package that the script
    // uses.
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
fn the_unit_of_systemd_is_valid() {
    let unit = std::fs::read_to_string(deploy("systemd/resnet18.service")).unwrap();
    let program = env!("CARGO_BIN_EXE_resnet18");

    // What it sets are flags' variables, and it waits for the drain to end.
    let help = resnet18().args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let mut variables = 0;
    for line in unit.lines() {
        if let Some(setting) = line.strip_prefix("Environment=RESNET18_") {
            let name = setting.split('=').next().unwrap();
            assert!(help.contains(&format!("RESNET18_{name}")), "{line}");
            variables += 1;
        }
    }
    assert!(variables > 0);

    // It checks that the program exists.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resnet18.service");
    std::fs::write(&path, unit.replace("/usr/local/bin/resnet18", program)).unwrap();
    let Ok(output) = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&path)
        .output()
    else {
        skipped("systemd-analyze is not installed");
        return;
    };
    let said = text(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn manifests_match_the_published_schemas() {
    let Some(output) = validate(&MANIFESTS.map(deploy)) else {
        return;
    };
    assert!(output.status.success(), "{}", text(&output.stderr));

    let stdout = text(&output.stdout);
    let kinds: Vec<&str> = stdout.lines().collect();
    let expected = [
        "HorizontalPodAutoscaler",
        "Deployment",
        "PodDisruptionBudget",
        "Service",
        "Service",
        "InferenceService",
        "ServingRuntime",
        "ServingRuntime",
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn the_overlay_for_gpus_is_valid_and_changes_what_it_says() {
    let kubectl = Command::new("kubectl")
        .arg("kustomize")
        .arg(deploy("kubernetes/gpu"))
        .output();
    let Ok(output) = kubectl else {
        skipped("kubectl is not installed");
        return;
    };
    assert!(output.status.success(), "{}", text(&output.stderr));
    let manifests = text(&output.stdout);
    for changed in [
        "image: resnet18:0.1.0-gpu",
        "nvidia.com/gpu: 1",
        "name: RESNET18_ENGINE",
        "maxSurge: 0",
        "minReplicas: 1",
        // What stays.
        "- --drain-delay=5s",
        "readOnlyRootFilesystem: true",
    ] {
        assert!(manifests.contains(changed), "{changed}: {manifests}");
    }
    assert!(!manifests.contains("image: resnet18:0.1.0\n"));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gpu.yaml");
    std::fs::write(&file, manifests).unwrap();
    let Some(output) = validate(&[file]) else {
        return;
    };
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().count(), 5);
}

#[test]
fn compose_gives_the_server_the_gpus() {
    let Some(python) = tool("kubernetes-validate").map(|path| path.with_file_name("python")) else {
        return;
    };
    let script = "
import sys, yaml
base, gpu = (yaml.safe_load(open(path)) for path in sys.argv[1:])
changed = gpu['services']['resnet18']
assert set(gpu['services']) <= set(base['services'])
assert changed['gpus'] == 'all' and changed['build']['dockerfile'] == 'deploy/Dockerfile.gpu'
volumes = {volume.split(':')[0] for volume in changed['volumes']}
assert volumes == set(gpu['volumes']), volumes
";
    let output = Command::new(python)
        .args(["-c", script])
        .args(["compose.yaml", "compose.gpu.yaml"].map(deploy))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn manifests_with_a_mistake_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    // File, text to replace, its replacement, and what the error message has to name.
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
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(
        !output.status.success() && stdout.is_empty(),
        "accepted: {stdout}"
    );
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
    // The test's server chooses its ports, and its log has to be readable as text.
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

/// Those of the manifests, of the image's health check and of its environment variables.
#[test]
fn every_flag_in_deploy_exists() {
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
            text(&output.stderr)
        );
    }

    let help = resnet18().args(["serve", "--help"]).output().unwrap();
    let help = text(&help.stdout);
    let known = |name: &str| {
        assert!(
            help.contains(&format!("RESNET18_{name}=")),
            "`serve --help` does not name RESNET18_{name}"
        );
    };
    for dockerfile in DOCKERFILES {
        let dockerfile = std::fs::read_to_string(deploy(dockerfile)).unwrap();
        let check = dockerfile
            .lines()
            .find_map(|line| line.trim().strip_prefix("CMD "))
            .unwrap();
        let check: Vec<String> = serde_json::from_str(check).unwrap();
        let output = resnet18().args(&check[1..]).arg("--help").output().unwrap();
        assert!(
            check[0] == "resnet18" && output.status.success(),
            "{check:?}: {}",
            text(&output.stderr)
        );

        let variables = dockerfile.split("RESNET18_").skip(1);
        for (name, _) in variables.filter_map(|rest| rest.split_once('=')) {
            known(name);
        }
    }
    for (file, end) in [
        ("kubernetes/gpu/deployment.yaml", '\n'),
        ("compose.gpu.yaml", ':'),
    ] {
        let text = std::fs::read_to_string(deploy(file)).unwrap();
        let variables: Vec<_> = text.split("RESNET18_").skip(1).collect();
        assert_eq!(variables.len(), 1, "{file}");
        known(variables[0].split(end).next().unwrap());
    }
}

#[test]
fn pods_get_enough_time_to_drain() {
    for (manifest, runtime) in [
        (
            "kubernetes/server/deployment.yaml",
            "kubernetes/server/deployment.yaml",
        ),
        (
            "kubernetes/kserve/example.yaml",
            "kubernetes/kserve/runtime.yaml",
        ),
        (
            "kubernetes/kserve/example.yaml",
            "kubernetes/kserve/runtime-gpu.yaml",
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
            "{manifest} gives {grace} s, but draining takes up to {drain} s"
        );
    }
}

#[test]
fn the_dockerfiles_pass_their_linter() {
    for name in DOCKERFILES {
        let dockerfile = std::fs::read_to_string(deploy(name)).unwrap();
        let toolchain = dockerfile
            .split("FROM rust:")
            .nth(1)
            .unwrap()
            .split('-')
            .next()
            .unwrap();
        assert_eq!(
            toolchain,
            env!("CARGO_PKG_RUST_VERSION"),
            "the image builds with the oldest supported Rust"
        );

        let Some(hadolint) = tool("hadolint") else {
            return;
        };
        let output = Command::new(hadolint)
            .arg("--no-color")
            .arg(deploy(name))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stdout));
    }
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
fn the_image_is_built_from_all_files_that_the_program_includes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .canonicalize()
        .unwrap();
    let kept = include_str!("../../.dockerignore")
        .lines()
        .filter_map(|line| line.strip_prefix('!'));
    let kept: Vec<PathBuf> = kept.map(|path| root.join(path)).collect();
    for path in &kept {
        assert!(
            path.exists(),
            ".dockerignore names {}, which does not exist",
            path.display()
        );
    }

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
    assert!(included >= 4, "only {included} included files were found");

    // Cargo wants the files of all targets, also of those that it does not build.
    let metadata = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--offline",
            "--no-deps",
            "--format-version",
            "1",
        ])
        .current_dir(&root)
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let targets = metadata["packages"][0]["targets"].as_array().unwrap();
    assert!(targets.len() > 5, "{targets:?}");
    for target in targets {
        let path = Path::new(target["src_path"].as_str().unwrap());
        assert!(
            kept.iter().any(|kept| path.starts_with(kept)),
            ".dockerignore keeps out {}",
            path.display()
        );
    }
}
