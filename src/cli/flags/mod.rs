//! Groups of flags that several subcommands share, or that are too long for the file of their
//! subcommand. Each group turns into a configuration of the code that does the work.

mod engine;
mod engine_choice;
mod image;
mod listen;
mod manifest;
mod quantization;
mod security;
mod server;
mod telemetry;
mod tensorrt;

pub use self::{
    engine::EngineFlags,
    engine_choice::EngineChoice,
    image::ImageFlags,
    listen::NetworkFlags,
    manifest::{ManifestFlags, PixelFlags},
    quantization::QuantizationFlags,
    security::SecurityFlags,
    server::{CredentialFlags, ServerFlags},
    telemetry::TelemetryFlags,
    tensorrt::{PlanFlags, TensorRtFlags},
};
