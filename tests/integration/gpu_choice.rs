//! How `make run` chooses what an NVIDIA card needs (`deploy/gpu.sh`), with an `nvidia-smi` that says
//! what each test wants.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::common::{skipped, text};

/// A machine with a C++ compiler and libclang, and nothing of NVIDIA's.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        machine.add("usr/lib/llvm-14/lib/libclang.so.1", "");
        machine.add("bin/c++", "#!/bin/sh\n");
        for tool in ["head", "timeout"] {
            symlink(
                Path::new("/usr/bin").join(tool),
                machine.path("bin").join(tool),
            )
            .unwrap();
        }
        machine
    }

    /// A machine whose `nvidia-smi` prints these lines.
    fn with_cards(cards: &str) -> Self {
        let machine = Self::new();
        machine.add("bin/nvidia-smi", &format!("#!/bin/sh\necho '{cards}'\n"));
        machine
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn add(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// What the script prints, and what it says.
    fn choice(&self, gpu: &str) -> (String, String) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/gpu.sh");
        let output = Command::new("/bin/sh")
            .arg(script)
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("GPU_ROOT", self.0.path())
            .env("GPU", gpu)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = text(&output.stderr);
        (text(&output.stdout).trim().to_owned(), said)
    }
}

#[test]
fn the_feature_follows_the_compute_capability() {
    for (card, feature) in [
        ("7.5, Tesla T4", "tensorrt"),
        ("8.0, NVIDIA A100-SXM4-80GB", "tensorrt-enterprise"),
        ("8.6, NVIDIA GeForce RTX 3090", "tensorrt"),
        ("8.9, NVIDIA L4", "tensorrt"),
        ("9.0, NVIDIA H100 PCIe", "tensorrt-enterprise"),
        ("10.0, NVIDIA B200", "tensorrt-enterprise"),
        ("12.0, NVIDIA GeForce RTX 5090", "tensorrt"),
        ("12.1, NVIDIA GB10", "tensorrt"),
    ] {
        let (chosen, said) = Machine::with_cards(card).choice("auto");
        assert_eq!(chosen, feature, "{card}");
        let name = card.split_once(", ").unwrap().1;
        assert!(said.contains(name) && said.contains("GPU=off"), "{said}");
    }
}

#[test]
fn a_machine_without_a_driver_is_told_nothing() {
    let nothing = (String::new(), String::new());
    assert_eq!(Machine::new().choice("auto"), nothing);
    let bare = Machine::new();
    bare.remove("bin/c++");
    bare.remove("usr/lib/llvm-14/lib/libclang.so.1");
    assert_eq!(bare.choice("auto"), nothing);
    assert_eq!(Machine::with_cards("8.9, NVIDIA L4").choice("off"), nothing);
}

#[test]
fn cards_that_can_not_be_used_are_told_with_the_reason() {
    let (chosen, said) = Machine::with_cards("6.1, NVIDIA GeForce GTX 1080").choice("auto");
    assert_eq!(chosen, "");
    assert!(said.contains("GTX 1080") && said.contains("7.5"), "{said}");

    let failing = Machine::new();
    failing.add(
        "bin/nvidia-smi",
        "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not reach the driver.'\nexit 9\n",
    );
    let (chosen, said) = failing.choice("auto");
    assert_eq!(chosen, "");
    assert!(said.contains("could not reach the driver"), "{said}");

    let old = Machine::new();
    old.add(
        "bin/nvidia-smi",
        "#!/bin/sh\necho 'Field \"compute_cap\" is not a valid field to query.'\nexit 2\n",
    );
    assert!(old.choice("auto").1.contains("compute_cap"));

    let container = Machine::new();
    container.add("proc/driver/nvidia/version", "NVRM version: 570");
    let (chosen, said) = container.choice("auto");
    assert_eq!(chosen, "");
    assert!(said.contains("GPU=tensorrt"), "{said}");
}

#[test]
fn what_has_to_be_installed_to_build_is_named() {
    let machine = Machine::with_cards("8.9, NVIDIA L4");
    machine.remove("usr/lib/llvm-14/lib/libclang.so.1");
    let (chosen, said) = machine.choice("auto");
    assert_eq!(chosen, "");
    assert!(
        said.contains("apt-get install libclang-dev,")
            && said.contains("`make onnxruntime-gpu`")
            && said.contains("CPU"),
        "{said}"
    );
    machine.remove("bin/c++");
    assert!(machine.choice("auto").1.contains("libclang-dev g++,"));
}

#[test]
fn the_choice_can_be_made_by_hand() {
    for feature in ["tensorrt", "tensorrt-enterprise"] {
        let (chosen, said) = Machine::new().choice(feature);
        assert_eq!((chosen.as_str(), said.as_str()), (feature, ""));
    }
    let (chosen, said) = Machine::new().choice("yes");
    assert_eq!(chosen, "");
    assert!(said.contains("GPU=yes is unknown"), "{said}");
}

#[test]
fn wsl_is_found_and_a_second_card_of_another_kind_is_named() {
    let machine = Machine::new();
    machine.add(
        "usr/lib/wsl/lib/nvidia-smi",
        "#!/bin/sh\necho '8.9, NVIDIA GeForce RTX 4070'\necho '9.0, NVIDIA H100'\n",
    );
    let (chosen, said) = machine.choice("auto");
    assert_eq!(chosen, "tensorrt");
    assert!(said.contains("Not used: NVIDIA H100"), "{said}");
}

/// What `make run` would do with this machine's card.
fn dry_run(machine: &Machine, arguments: &[&str]) -> Option<Output> {
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("make")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["--dry-run", "--no-print-directory", "run"])
        .args(arguments)
        .env("PATH", format!("{}:{path}", machine.path("bin").display()))
        .env("GPU_ROOT", machine.0.path())
        .env_remove("GPU")
        .env_remove("MAKEFLAGS")
        .output();
    match output {
        Ok(output) => Some(output),
        Err(error) => {
            skipped(&format!("make does not start: {error}"));
            None
        }
    }
}

#[test]
fn make_run_uses_the_card_unless_it_is_told_not_to() {
    let last_line = |machine: &Machine, arguments: &[&str]| {
        let output = dry_run(machine, arguments)?;
        assert!(output.status.success(), "{}", text(&output.stderr));
        let stdout = text(&output.stdout);
        Some((
            stdout.lines().last().unwrap().to_owned(),
            stdout.contains("make --no-print-directory tensorrt"),
        ))
    };
    let with = |feature: &str| {
        format!(
            "cargo run --release {feature}-- serve --model torchvision:resnet18 --bundled-after 10s"
        )
    };
    let card = Machine::with_cards("8.9, NVIDIA L4");
    let Some((line, fetches)) = last_line(&card, &[]) else {
        return;
    };
    assert_eq!(line, with("--features tensorrt "));
    assert!(fetches, "the libraries are fetched first");
    assert_eq!(last_line(&card, &["GPU=off"]), Some((with(""), false)));
    let h100 = Machine::with_cards("9.0, NVIDIA H100");
    assert_eq!(
        last_line(&h100, &[]).unwrap().0,
        with("--features tensorrt-enterprise ")
    );
    if Path::new("/proc/driver/nvidia/version").exists() {
        skipped("there is an NVIDIA driver here");
        return;
    }
    assert_eq!(last_line(&Machine::new(), &[]), Some((with(""), false)));
}
