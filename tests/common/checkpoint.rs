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
