//! What can be shown of the GPU's side on any NVIDIA GPU, also where TensorRT does not run: that a card
//! is found or refused as documented, and that the lanes which serve copy, queue, wait, record graphs
//! and share memory as they should, with kernels of the test's own in TensorRT's place. `make
//! test-gpu-plumbing` runs it; `docs/gpu.md` says how to run it on another machine.
//!
//! Without arguments it runs on a simulated driver, then on the card, if there is one; with `card` on
//! the card alone. `kernels FOLDER` compiles the kernels into a folder, for a machine without NVRTC.
#![cfg(feature = "tensorrt")]
#![allow(unsafe_code)]

mod card;
#[path = "../../common/mod.rs"]
mod common;
mod kernels;
mod mix;
mod resnet;
mod simulated;

use std::{
    env, fs,
    path::Path,
    process::{Command, ExitCode},
};

use common::skipped;
use kernels::Nvrtc;

/// Set where there has to be a GPU: on the simulated driver.
const IS_SIMULATED: &str = "PLUMBING_SIMULATED";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        // This program stands for `resnet18` too, so that there is only one to carry elsewhere.
        Some("serve") => resnet18_server::cli::main(),
        Some("card") => card::check(),
        Some("lost") => card::lose(),
        Some("kernels") => compile(Path::new(&arguments[1])),
        _ => {
            let results = [compile_for_every_gpu(), simulate(), card::check()];
            let all = results.iter().all(|result| *result == ExitCode::SUCCESS);
            if all {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Compiles the kernels for every GPU that NVRTC knows.
fn compile_for_every_gpu() -> ExitCode {
    let folder = tempfile::tempdir().unwrap();
    compile(folder.path())
}

fn compile(folder: &Path) -> ExitCode {
    let Some(nvrtc) = Nvrtc::find() else {
        skipped("there is no NVRTC to compile kernels; `make nvrtc` fetches it");
        return ExitCode::SUCCESS;
    };
    // TensorRT knows no older ones.
    let mut targets = nvrtc.targets();
    targets.retain(|target| *target >= 75);
    for target in &targets {
        match nvrtc.compile(*target) {
            Ok(image) => fs::write(kernels::file(folder, *target), image).unwrap(),
            Err(log) => {
                println!("FAILED  compiling the kernels for {target}: {log}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("ok      NVRTC compiles the kernels, without a GPU, for {targets:?}");
    ExitCode::SUCCESS
}

/// Runs the checks on the simulated driver, in a process of its own: the driver is loaded once.
fn simulate() -> ExitCode {
    let folder = tempfile::tempdir().unwrap();
    if simulated::build(folder.path()).is_none() {
        skipped("there is no C compiler for the simulated driver");
        return ExitCode::SUCCESS;
    }
    let status = Command::new(env::current_exe().unwrap())
        .arg("card")
        .env("LD_LIBRARY_PATH", folder.path())
        .env(IS_SIMULATED, "1")
        .status()
        .unwrap();
    if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
