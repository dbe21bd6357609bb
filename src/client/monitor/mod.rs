//! The state of servers from outside: scrapes of their `/metrics` → rates, quantiles and gauges.

mod change;
mod exposition;
mod scrape;
mod snapshot;
#[cfg(test)]
pub mod testing;

pub use self::{
    change::{Change, Histogram},
    exposition::{ExpositionError, Families, Labels, MAX_BYTES, Problem, Series, parse},
    scrape::{MetricsAddress, Scrape, ScrapeError},
    snapshot::{EngineSnapshot, GpuSnapshot, Latencies, ModelSnapshot, Quantiles, Snapshot},
};
