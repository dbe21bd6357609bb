//! Flags that several subcommands share, each group with what it turns into.

mod engine;
mod image;
mod manifest;
mod server;

pub use self::{engine::EngineFlags, image::ImageFlags, manifest::ManifestFlags, server::ServerFlags};
