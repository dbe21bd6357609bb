//! Files that a subcommand must not destroy: its own inputs, and files that are no models.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use crate::common::{data, resnet18, text, tiny_model::tiny_model};

/// A file that nobody wants to lose.
const WEIGHTS: &[u8] = b"weights that took a week to train";

fn run(arguments: &[&str]) -> Output {
    resnet18().args(arguments).output().unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs the program, and expects that it refuses to write with this reason.
fn refused(arguments: &[&str], reason: &str) {
    let output = run(arguments);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
    assert!(
        error.contains(reason) && error.contains("--force"),
        "{arguments:?}: {error}"
    );
}

/// A folder with a model of this program, a hard and a symbolic link to it, and foreign weights.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    fs::write(&model, tiny_model(1)).unwrap();
    fs::hard_link(&model, folder.path().join("hard.onnx")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(&model, folder.path().join("soft.onnx")).unwrap();
    fs::write(folder.path().join("weights.pth"), WEIGHTS).unwrap();
    (folder, model)
}

/// The arguments that quantize a model.
fn quantize<'a>(model: &'a str, photos: &'a str, output: &'a str) -> [&'a str; 6] {
    ["quantize", model, "--calibration", photos, "-o", output]
}

#[cfg(unix)]
#[test]
fn an_input_is_never_replaced_without_force() {
    let (folder, model) = folder();
    let photos = data("photos");
    let spelled = folder.path().join(".").join("model.onnx");
    let others = ["hard.onnx", "soft.onnx"].map(|name| folder.path().join(name));

    for output in [&model, &spelled, &others[0], &others[1]] {
        let (model, output) = (path(&model), path(output));
        let reason = "is the file to read from";
        refused(&["import", model, "-o", output], reason);
        refused(&quantize(model, path(&photos), output), reason);
        refused(
            &["train", path(&photos), "--base", model, "-o", output],
            reason,
        );
        assert_eq!(fs::read(output).unwrap(), tiny_model(1));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
}

#[test]
fn a_file_that_is_no_model_is_never_replaced_without_force() {
    let (folder, model) = folder();
    let weights = folder.path().join("weights.pth");
    let (model, output) = (path(&model), path(&weights));
    let photos = data("photos");
    let reason = "is no model that this program wrote";

    refused(&["import", model, "-o", output], reason);
    refused(&quantize(model, path(&photos), output), reason);
    refused(&["train", path(&photos), "-o", output], reason);
    assert_eq!(fs::read(&weights).unwrap(), WEIGHTS);

    // The labels are an input too.
    let labels = folder.path().join("labels.txt");
    fs::write(&labels, "red\ngreen\nblue\n").unwrap();
    let labels = path(&labels);
    refused(
        &["import", model, "--labels", labels, "-o", labels],
        "is the file to read from",
    );
}

#[test]
fn force_replaces_and_models_of_the_program_are_replaced_without_it() {
    let (folder, model) = folder();
    let weights = folder.path().join("weights.pth");
    let new = folder.path().join("new.onnx");

    for (output, flags) in [
        (&weights, &["--force"][..]),
        (&new, &[]),
        (&new, &[]),
        (&model, &["--force"]),
    ] {
        let arguments = [
            "import",
            path(&model),
            "-o",
            path(output),
            "--name",
            "named",
        ];
        let done = run(&[&arguments[..], flags].concat());
        assert!(done.status.success(), "{}", text(&done.stderr));
        let written = fs::read(output).unwrap();
        assert!(
            written.windows(5).any(|bytes| bytes == b"named"),
            "{}",
            output.display()
        );
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_that_cannot_be_written_is_known_before_the_work() {
    let (_folder, model) = folder();
    // Not even root can create files there.
    let output = "/proc/new.onnx";
    // The other arguments don't exist: they are not even looked at.
    for arguments in [
        &["import", path(&model), "-o", output][..],
        &["quantize", "--calibration", "/no/photos", "-o", output],
        &["train", "/no/photos", "-o", output],
    ] {
        let done = run(arguments);
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{arguments:?}");
        assert!(
            error.contains("/proc/new.onnx: cannot be written"),
            "{error}"
        );
    }
}
