//! Flags that several subcommands share, each group with what it turns into.

mod engine;
mod image;
mod manifest;

pub use self::{engine::EngineFlags, image::ImageFlags, manifest::ManifestFlags};
