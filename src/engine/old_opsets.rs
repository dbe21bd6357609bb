//! Tests that every available engine computes models of opsets 7 to 12 correctly after they are
//! upgraded. Each model has one operator that has changed since. `tests/python/old_opsets.py` writes them, with what they should answer.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use super::{
    EngineKind,
    conformance::{Numbers, python},
    embedded, openvino,
};
use crate::{
    model::{decode, onnx::tensor_proto::DataType, rewritten_bytes},
    testing::skipped,
};

/// How far a logit may be off, for each unit of its size.
const TOLERANCE: f64 = 1e-3;

/// Models with operators that the embedded engine has in no version, by the beginnings of their
/// names.
const NOT_EMBEDDED: [&str; 2] = ["depth_to_space", "hardmax"];

/// The logits that an engine computes, or why it refuses the model.
fn run(engine: EngineKind, path: &Path, x: &Numbers) -> Result<Vec<f64>, String> {
    let mut model = decode(&fs::read(path).unwrap().into()).unwrap();
    let onnx = rewritten_bytes(&mut model).map_err(|error| error.to_string())?;
    let inputs = [("x".to_owned(), x.clone())];
    let found = match engine {
        EngineKind::OpenVino => openvino::conformance::run(&model, &onnx, &inputs, &["logits"]),
        _ => embedded::conformance::run(&model, onnx, &inputs, &["logits"]),
    };
    Ok(found?[0].values())
}

#[test]
fn old_models_answer_as_numpy_does() {
    let Some(python) = python() else { return };
    let mut engines = vec![EngineKind::Embedded];
    if openvino::conformance::available() {
        engines.push(EngineKind::OpenVino);
    } else {
        skipped("there is no OpenVINO; `make openvino` fetches it");
    }
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/old_opsets.py");
    let written = Command::new(python).arg(script).arg(folder.path()).status();
    assert!(written.unwrap().success());
    let x = Numbers {
        elem: DataType::Float,
        shape: vec![1, 3, 16, 16],
        raw: fs::read(folder.path().join("x")).unwrap(),
    };
    let expected = fs::read(folder.path().join("expected.json")).unwrap();
    let expected: BTreeMap<String, Vec<f64>> = serde_json::from_slice(&expected).unwrap();
    assert!(expected.len() > 300, "only {}", expected.len());

    let mut wrong = Vec::new();
    for engine in engines {
        for (name, expected) in &expected {
            let path = folder.path().join(format!("{name}.onnx"));
            let is_missing = engine == EngineKind::Embedded
                && NOT_EMBEDDED.iter().any(|prefix| name.starts_with(prefix));
            match run(engine, &path, &x) {
                Ok(found) => {
                    let differ = |(found, expected): (&f64, &f64)| {
                        (found - expected).abs() > TOLERANCE * expected.abs().max(1.0)
                    };
                    if found.len() != expected.len() || found.iter().zip(expected).any(differ) {
                        wrong.push(format!(
                            "{engine}: {name}: {found:?} instead of {expected:?}"
                        ));
                    }
                }
                Err(_) if is_missing => {}
                Err(reason) => wrong.push(format!("{engine}: {name}: {reason}")),
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
