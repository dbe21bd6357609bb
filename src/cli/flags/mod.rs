//! Groups of flags that several subcommands share, or that are too long for the file of their
//! subcommand. Each group turns into a configuration of the code that does the work.

mod connection;
mod engine;
mod engine_choice;
mod http;
mod hub;
mod image;
mod listen;
mod manifest;
mod model_check;
mod quantization;
mod security;
#[cfg(unix)]
mod socket;
mod teaching;
mod telemetry;
mod tensorrt;

pub use self::{
    connection::{ConnectionFlags, CredentialFlags, ServerFlags},
    engine::{ComputeFlags, EngineFlags, TuneFlags, arguments as engine_arguments},
    engine_choice::EngineChoice,
    http::HttpFlags,
    hub::HubFlags,
    image::ImageFlags,
    listen::NetworkFlags,
    manifest::{ManifestFlags, PixelFlags},
    model_check::{ModelCheckFlags, own_program, passed_on},
    quantization::QuantizationFlags,
    security::SecurityFlags,
    teaching::TeachingFlags,
    telemetry::TelemetryFlags,
    tensorrt::TensorRtFlags,
};
