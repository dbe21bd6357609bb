//! The simulated driver of `driver.c`.

use std::{path::Path, process::Command};

/// Compiles it to `libcuda.so` in this folder; `None` if there is no C compiler.
pub fn build(folder: &Path) -> Option<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/plumbing/driver.c");
    let library = folder.join("libcuda.so");
    let compile = |options: &[&str]| {
        Command::new("cc")
            .args(options)
            .args([
                "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread", "-o",
            ])
            .args([&library, &source])
            .arg("-ldl")
            .status()
            .ok()
    };
    // The processor's own conversion of float16 is ten times as fast.
    if compile(&["-march=native"])?.success() {
        return Some(());
    }
    assert!(
        compile(&[])?.success(),
        "the simulated driver can't be compiled"
    );
    Some(())
}
