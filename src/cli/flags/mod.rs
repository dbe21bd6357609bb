//! Flags that several subcommands share, each group with what it turns into.

mod engine;
mod image;
mod manifest;
mod tensorrt;

pub use self::{
    engine::EngineFlags,
    image::ImageFlags,
    manifest::ManifestFlags,
    tensorrt::{PlanFlags, TensorRtFlags},
};
