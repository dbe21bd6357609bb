//! Compiles the protobuf definitions into Rust, without protoc.

use std::{env, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    // `make shuttle` sets this for this crate only: RUSTFLAGS would rebuild every dependency.
    println!("cargo::rustc-check-cfg=cfg(shuttle)");
    println!("cargo::rerun-if-env-changed=RESNET18_SHUTTLE");
    if env::var_os("RESNET18_SHUTTLE").is_some() {
        println!("cargo::rustc-cfg=shuttle");
    }

    let out = PathBuf::from(env::var("OUT_DIR")?);

    let contract = protox::compile(["resnet18/v1/classifier.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".resnet18.v1")
        .compile_fds(contract.clone())?;
    fs::write(out.join("classifier.bin"), contract.encode_to_vec())?;

    let protocol = protox::compile(["inference/grpc_service.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .bytes(".inference")
        .codec_path("crate::grpc::oip::codec::BoundedCodec")
        .compile_fds(protocol.clone())?;
    fs::write(out.join("inference.bin"), protocol.encode_to_vec())?;

    let onnx = protox::compile(["onnx/onnx.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        .bytes(".onnx.TensorProto.raw_data")
        .compile_fds(onnx)?;
    Ok(())
}
