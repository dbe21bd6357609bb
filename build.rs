//! Compiles the protobuf definitions into Rust, without protoc.

use std::{env, fs, path::PathBuf};

use prost::Message;
use tonic_prost_build::Builder;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    // `make shuttle` sets this for this crate only: RUSTFLAGS would rebuild every dependency.
    println!("cargo::rustc-check-cfg=cfg(shuttle)");
    println!("cargo::rerun-if-env-changed=RESNET18_SHUTTLE");
    if env::var_os("RESNET18_SHUTTLE").is_some() {
        println!("cargo::rustc-cfg=shuttle");
    }

    let out = PathBuf::from(env::var("OUT_DIR")?);
    let with_server = env::var_os("CARGO_FEATURE_SERVER").is_some();

    let contract = protox::compile(
        ["resnet18/v1/classifier.proto", "resnet18/v1/teacher.proto"],
        ["proto"],
    )?;
    fs::write(out.join("classifier.bin"), contract.encode_to_vec())?;
    builder().bytes(".resnet18.v1").compile_fds(contract)?;

    let protocol = protox::compile(["inference/grpc_service.proto"], ["proto"])?;
    fs::write(out.join("inference.bin"), protocol.encode_to_vec())?;
    builder()
        .build_server(false)
        .bytes(".inference")
        .compile_fds(protocol.clone())?;

    if with_server {
        // The service apart from the messages, since it reads them by a codec of its own.
        let server = out.join("server");
        fs::create_dir_all(&server)?;
        tonic_prost_build::configure()
            .build_client(false)
            .extern_path(".inference", "crate::inference")
            .codec_path("crate::grpc::oip::codec::BoundedCodec")
            .out_dir(server)
            .compile_fds(protocol)?;

        let health = protox::compile(["grpc/health/v1/health.proto"], ["proto"])?;
        fs::write(out.join("health.bin"), health.encode_to_vec())?;
        // The library has these messages, and a service without `List`.
        tonic_prost_build::configure()
            .build_client(false)
            .extern_path(
                ".grpc.health.v1.HealthCheckRequest",
                "::tonic_health::pb::HealthCheckRequest",
            )
            .extern_path(
                ".grpc.health.v1.HealthCheckResponse",
                "::tonic_health::pb::HealthCheckResponse",
            )
            .compile_fds(health)?;

        let onnx = protox::compile(["onnx/onnx.proto"], ["proto"])?;
        tonic_prost_build::configure()
            .build_client(false)
            .build_server(false)
            .bytes(".onnx.TensorProto.raw_data")
            .compile_fds(onnx)?;
    }
    Ok(())
}

/// Messages for everyone; clients and services for the crate's features of these names.
fn builder() -> Builder {
    tonic_prost_build::configure()
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
}
