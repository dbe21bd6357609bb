//! Checkpoints with reproducible weights, and PyTorch's answers for them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::json;

/// A network's checkpoint, as PyTorch would save it, and PyTorch's logits for one image.
pub struct Checkpoint {
    /// A safetensors file.
    pub path: PathBuf,
    /// A text file with one label per line, one for each class.
    pub labels: PathBuf,
    /// PyTorch's logits for `golden/crops/cat_jpg.png`.
    pub logits: Vec<f32>,
}

/// Writes the checkpoint of one of the architectures in `models` (`../shared/models`) into
/// `folder`.
pub fn checkpoint(python: &Path, models: &Path, architecture: &str, folder: &Path) -> Checkpoint {
    let path = folder.join(format!("{architecture}.safetensors"));
    let script = Command::new(python)
        .arg(models.join("make_checkpoint.py"))
        .arg(architecture)
        .arg(&path)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("Python runs");
    assert!(
        script.status.success(),
        "make_checkpoint.py {architecture} failed: {}",
        String::from_utf8_lossy(&script.stderr)
    );

    let reference = json(&models.join("architectures.json"))[architecture]["logits"].clone();
    let logits: Vec<f32> = serde_json::from_value(reference).unwrap();

    let labels = folder.join("labels.txt");
    let names: String = (0..logits.len())
        .map(|class| format!("class {class}\n"))
        .collect();
    std::fs::write(&labels, names).unwrap();

    Checkpoint {
        path,
        labels,
        logits,
    }
}

/// A safetensors file of a ResNet10 of 4 channels for images of 32×32, by torchvision's names. Its
/// answer is always the last class.
pub fn tiny_checkpoint(classes: usize) -> Vec<u8> {
    tiny_checkpoints(&[("", classes)])
}

/// A file with several of these networks: what stands before the names of each, and its classes.
pub fn tiny_checkpoints(networks: &[(&str, usize)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut values: Vec<u8> = Vec::new();
    for (prefix, classes) in networks {
        for (name, shape) in tiny_network(*classes) {
            let start = values.len();
            for index in 0..shape.iter().product() {
                let value: f32 = match name.as_str() {
                    "fc.bias" if index == classes - 1 => 5.0,
                    "fc.weight" => 0.0,
                    _ => 0.5,
                };
                values.extend(value.to_le_bytes());
            }
            let entry = serde_json::json!({
                "dtype": "F32", "shape": shape, "data_offsets": [start, values.len()],
            });
            header.insert(format!("{prefix}{name}"), entry);
        }
    }
    let header = serde_json::Value::Object(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    [&length, header.as_bytes(), &values].concat()
}

/// The names and shapes of the tensors.
fn tiny_network(classes: usize) -> Vec<(String, Vec<usize>)> {
    let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
    let mut conv = |conv: &str, norm: &str, shape: [usize; 4]| {
        tensors.push((format!("{conv}.weight"), shape.into()));
        for part in ["weight", "bias", "running_mean", "running_var"] {
            tensors.push((format!("{norm}.{part}"), vec![shape[0]]));
        }
    };
    conv("conv1", "bn1", [4, 3, 3, 3]);
    let mut inputs = 4;
    for stage in 1..=4 {
        let outputs = 2 << stage;
        let at = format!("layer{stage}.0");
        for (number, inputs) in [(1, inputs), (2, outputs)] {
            let (weight, norm) = (format!("{at}.conv{number}"), format!("{at}.bn{number}"));
            conv(&weight, &norm, [outputs, inputs, 3, 3]);
        }
        if inputs != outputs {
            let (weight, norm) = (format!("{at}.downsample.0"), format!("{at}.downsample.1"));
            conv(&weight, &norm, [outputs, inputs, 1, 1]);
        }
        inputs = outputs;
    }
    tensors.push(("fc.weight".into(), vec![classes, inputs]));
    tensors.push(("fc.bias".into(), vec![classes]));
    tensors
}
