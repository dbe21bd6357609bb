//! An image-classification server over gRPC, for photos and live video, and its client.
//!
//! The program `resnet18` is built from this crate. A Rust program can use the crate in two ways:
//! as the [`client`] of a server, or to embed a [`server`].
//!
//! ```no_run
//! # #[cfg(feature = "client")]
//! # async fn classify() -> Result<(), Box<dyn std::error::Error>> {
//! use resnet18_server::proto::{
//!     ClassifyRequest, Image, classifier_client::ClassifierClient, image::Source,
//! };
//!
//! let mut classifier = ClassifierClient::connect("http://127.0.0.1:8001").await?;
//! let photo = std::fs::read("cat.jpg")?;
//! let request = ClassifyRequest {
//!     image: Some(Image { source: Some(Source::Encoded(photo.into())) }),
//!     ..Default::default()
//! };
//! let answer = classifier.classify(request).await?.into_inner();
//! println!("{}", answer.classifications[0].label);
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `server` | yes | [`server`] and the program `resnet18`; includes `client` |
//! | `top` | yes | the live dashboard of `resnet18 top` |
//! | `client` | with `server` | [`client`]; alone it compiles in a fraction of the time |
//! | `otlp` | no | traces for an OpenTelemetry collector |
//! | `tensorrt` | no | TensorRT on NVIDIA GPUs |
//! | `tensorrt-enterprise` | no | the same with the data-centre TensorRT |
//! | `turbojpeg` | no | libjpeg-turbo as the decoder of JPEG |
//!
//! # Layout
//!
//! An image travels `grpc → scheduler → image → engine`, its logits travel back through `answer`
//! to `grpc`. Each module owns one step and does not know the others' insides; no module uses one
//! that, through others, uses it. `docs/architecture.md` describes them.

// The public crate.
#[cfg(feature = "client")]
pub mod client;
pub mod inference;
pub mod proto;
#[cfg(feature = "server")]
pub mod server;

// Reachable for the program, its tests, benches and fuzz targets; no part of the public crate.
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod answer;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod budget;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod engine;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod grpc;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod hub;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod image;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod metrics;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod model;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod offline;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod state;

#[cfg(feature = "client")]
mod address;
#[cfg(feature = "server")]
mod cache;
#[cfg(feature = "server")]
mod certificate;
#[cfg(feature = "client")]
mod files;
#[cfg(feature = "server")]
mod http;
#[cfg(feature = "server")]
mod memory_limit;
#[cfg(feature = "server")]
mod quantization;
#[cfg(feature = "server")]
mod registry;
#[cfg(feature = "server")]
mod scheduler;
#[cfg(feature = "client")]
mod sync;
#[cfg(feature = "server")]
mod teaching;
#[cfg(feature = "server")]
mod telemetry;
#[cfg(test)]
mod testing;
#[cfg(feature = "server")]
mod watch;

/// The README's Rust code, compiled as a test.
#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../README.md")]
struct Readme;
