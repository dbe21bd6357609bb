//! The ONNX graph and its rewriting, the manifest, the models that are served.

/// The messages of `proto/onnx/onnx.proto`.
#[allow(missing_docs, clippy::all)]
pub mod onnx {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}
