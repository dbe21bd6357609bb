//! Fuzzes checkpoints in every format: PyTorch's zip archives and older pickles, and safetensors.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use resnet18_server::model::{
    self,
    checkpoint::{Checkpoint, ResNetOptions},
};

fuzz_target!(|file: &[u8]| {
    let Ok(checkpoint) = Checkpoint::from_bytes(Bytes::copy_from_slice(file)) else {
        return;
    };
    if let Ok(resnet) = checkpoint.into_resnet(&ResNetOptions::default()) {
        let onnx = Bytes::from(resnet.onnx.encode_to_vec());
        model::decode(&onnx).expect("an imported checkpoint is a valid ONNX file");
    }
});
