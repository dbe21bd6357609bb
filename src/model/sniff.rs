//! Recognizes common file formats by their first bytes, for error messages about wrong files.

/// A sentence about what `content`, which is not an ONNX model, looks like.
pub(super) fn looks_like(content: &[u8]) -> &'static str {
    let text = content.trim_ascii_start();
    let text = &text[..text.len().min(64)].to_ascii_lowercase();
    let has = |at: usize, magic: &[u8]| content.get(at..at + magic.len()) == Some(magic);
    if content.is_empty() {
        "it is empty"
    } else if has(0, b"PK\x03\x04") {
        "it looks like a zip archive, as PyTorch saves checkpoints (`.pth`, `.pt`), \
         which `resnet18 import` turns into ONNX"
    } else if content[0] == 0x80 && matches!(content.get(1), Some(2..=5)) {
        "it looks like a Python pickle, as PyTorch's older checkpoints are, \
         which `resnet18 import` turns into ONNX"
    } else if is_safetensors(content) {
        "it looks like a safetensors checkpoint, which `resnet18 import` turns into ONNX"
    } else if has(0, b"ftrt") || has(0, b"ptrt") {
        "it looks like a TensorRT engine"
    } else if has(4, b"TFL3") {
        "it looks like a TensorFlow Lite model"
    } else if has(0, b"\x89HDF") {
        "it looks like an HDF5 file, as Keras saves models (`.h5`)"
    } else if has(0, b"GGUF") {
        "it looks like a GGUF file"
    } else if has(0, b"\x1f\x8b") {
        "it looks like a gzip archive; unpack it first"
    } else if has(0, b"\xff\xd8\xff") || has(0, b"\x89PNG") {
        "it looks like an image"
    } else if text.starts_with(b"version https://git-lfs") {
        "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    } else if text.starts_with(b"<!doctype html") || text.starts_with(b"<html") {
        "it looks like a web page; was the download link a page?"
    } else if text.starts_with(b"<?xml") || text.starts_with(b"<net") {
        "it looks like XML, as OpenVINO saves models"
    } else if text.starts_with(b"{") {
        "it looks like JSON"
    } else if content[0] == 0x08 {
        "it begins like an ONNX model but is damaged or cut off"
    } else {
        "its format is unknown, or it is damaged or cut off"
    }
}

/// Whether `content` begins as a safetensors file: the length of a JSON header in 8 bytes, then the
/// header.
pub(super) fn is_safetensors(content: &[u8]) -> bool {
    content.first_chunk::<8>().is_some_and(|length| {
        usize::try_from(u64::from_le_bytes(*length)).is_ok_and(|length| length < content.len())
            && content.get(8) == Some(&b'{')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_mistakes_are_recognized() {
        for (content, kind) in [
            (&b""[..], "empty"),
            (b"PK\x03\x04....", "zip"),
            (b"\x80\x02}q\x00", "pickle"),
            (b"\x04\0\0\0\0\0\0\0{\"a\":1}", "safetensors"),
            (b"ftrt\x00\x00", "TensorRT"),
            (b"\x18\0\0\0TFL3", "TensorFlow Lite"),
            (b"\n <!DOCTYPE html><html>", "web page"),
            (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
            (b"\x08\x07\x12\xff", "damaged"),
            (b"hello", "unknown"),
        ] {
            assert!(
                looks_like(content).contains(kind),
                "{kind}: {}",
                looks_like(content)
            );
        }
    }
}
