//! Monitoring a server from outside: scrapes of its `/metrics`, and the rates, quantiles and gauges
//! derived from two of them.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use resnet18_server::client::monitor::{MetricsAddress, Scrape, Snapshot};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let address: MetricsAddress = "http://127.0.0.1:8002".parse()?;
//! let before = Scrape::take(&address).await?;
//! tokio::time::sleep(Duration::from_secs(5)).await;
//! let after = Scrape::take(&address).await?;
//!
//! for model in Snapshot::between(&before, &after).models {
//!     println!("{}: {:.1} images/s", model.name, model.images_per_second);
//! }
//! # Ok(())
//! # }
//! ```

mod change;
mod exposition;
mod scrape;
mod snapshot;
#[cfg(test)]
pub mod testing;

pub use self::{
    change::{Change, Histogram},
    exposition::{ExpositionError, Families, Labels, LineError, MAX_BYTES, Series, parse},
    scrape::{MetricsAddress, MetricsAddressError, Scrape, ScrapeError},
    snapshot::{EngineSnapshot, GpuSnapshot, ModelSnapshot, Quantiles, Snapshot, StageLatencies},
};
