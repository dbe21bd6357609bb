//! What the tests share: a real server process, requests, reference data and optional tools.
//!
//! Each test binary includes this module and uses a part of it, hence the `allow`.
#![allow(dead_code, unused_imports, missing_docs)]

use std::path::{Path, PathBuf};

use resnet18_server::proto::{
    ClassifyRequest, Image, StreamClassifyRequest, StreamConfig, image::Source,
    stream_classify_request::Message,
};

mod checkpoint;
#[cfg(target_os = "linux")]
pub mod http2;
mod server;
pub mod tiny_model;
mod tools;
mod turns;

pub use self::{
    checkpoint::{Checkpoint, checkpoint, tiny_checkpoint, tiny_checkpoints},
    server::{LogReader, Server, Usage, resnet18, resnet18_in_cgroup, resnet18_with_files},
    tools::{
        ffmpeg, grpcurl, heif_enc, node, openssl, passed, pillow, python, script, skipped, succeed,
        tritonclient,
    },
    turns::{exclusive, shared_turn},
};

/// The path of a file or folder in `tests/data`.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// A folder of `../shared`, the reference data beside the repository; `None`, with a visible
/// message, where the repository stands alone.
pub fn shared(folder: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared")
        .join(folder);
    if path.exists() {
        return Some(path);
    }

    skipped(&format!(
        "there is no ../shared/{folder} beside the project"
    ));
    None
}

/// The output of a program.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The parsed content of a JSON file.
pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The file at `path` as an encoded image of a request.
pub fn image(path: impl AsRef<Path>) -> Image {
    let path = path.as_ref();
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Image {
        source: Some(Source::Encoded(bytes.into())),
    }
}

/// A request to classify this image by the default model.
pub fn request(image: Image) -> ClassifyRequest {
    ClassifyRequest {
        image: Some(image),
        ..Default::default()
    }
}

/// The first message of a stream.
pub fn config(config: StreamConfig) -> StreamClassifyRequest {
    StreamClassifyRequest {
        message: Some(Message::Config(config)),
    }
}
