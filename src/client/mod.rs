//! A client for the server: classify images and video, generate load, and read its metrics.
//!
//! | Module | Purpose |
//! |---|---|
//! | this one | [`connect`] to a server, [`find_model`], [`classify`] one image, or [teach](connect_teacher) |
//! | [`retry`] | decide whether, and when, a failed request may be sent again |
//! | [`stream`] | classify a video frame by frame on one call, and reconnect |
//! | [`video`] | read frames from a file, a camera, a network stream or a folder of images |
//! | [`load`] | measure a server's throughput and latency |
//! | [`monitor`] | scrape a server's metrics and derive rates and quantiles from them |
//!
//! Everything here needs a running Tokio runtime with its I/O and time drivers enabled, which is
//! what `#[tokio::main]` starts. A [`Client`] is cheap to clone: clones share one connection, and
//! HTTP/2 carries their calls side by side.
//!
//! # Example
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use resnet18_server::{
//!     client,
//!     proto::{ClassifyRequest, Image},
//! };
//! use tokio::time::Instant;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut client = client::connect(&"http://127.0.0.1:8001".parse()?).await?;
//!
//! let request = ClassifyRequest {
//!     image: Some(Image::encoded(std::fs::read("cat.jpg")?)),
//!     top_k: 3,
//!     ..Default::default()
//! };
//! // A server that is full asks its callers to retry; the deadline covers all attempts.
//! let deadline = Instant::now() + Duration::from_secs(10);
//! let answer = client::classify_with_retries(&mut client, request, deadline).await?;
//!
//! for class in answer.response.classifications {
//!     println!("{:5.1} %  {}", class.probability * 100.0, class.label);
//! }
//! # Ok(())
//! # }
//! ```

mod classify;
mod connect;
mod credentials;
mod diagnosis;
mod error;
mod latency;
pub mod load;
pub mod monitor;
pub mod retry;
pub mod stream;
pub mod video;

pub use self::{
    classify::{
        ClassifyAnswer, classify, classify_with_retries, find_model, list_models, milliseconds,
        normalize_timeout,
    },
    connect::{Client, MAX_MESSAGE_BYTES, Server, Teacher, connect, connect_teacher},
    credentials::{Credentials, SendToken, Token},
    error::ClientError,
    latency::LatencySummary,
};
pub use crate::address::{AddressError, ServerAddress};
