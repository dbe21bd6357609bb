//! Flags that several subcommands share, each group with what it turns into.

mod engine;
mod engine_choice;
mod image;
mod listen;
mod manifest;
mod quantization;
mod server;
mod telemetry;
mod tensorrt;

pub use self::{
    engine::EngineFlags,
    engine_choice::EngineChoice,
    image::ImageFlags,
    listen::{NetworkFlags, SecurityFlags},
    manifest::{ManifestFlags, PixelFlags},
    quantization::QuantizationFlags,
    server::{CredentialFlags, ServerFlags},
    telemetry::TelemetryFlags,
    tensorrt::{PlanFlags, TensorRtFlags},
};
