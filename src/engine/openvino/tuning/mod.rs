//! Chooses the precision and the largest batch by measuring, where nobody has set them.

mod batch;
mod choice;
mod lanes;
mod measure;
mod precision;

use std::fmt::Display;

use serde::{Serialize, de::DeserializeOwned};

use self::{choice::Measured, measure::MeasureError};
use super::library;
use crate::{
    cache::CacheKey,
    engine::{EngineConfig, Tuning, processor},
    model::Model,
};

/// The configuration with the precision and the largest batch that suit `model`.
pub(super) fn tuned(config: &EngineConfig, model: &Model) -> EngineConfig {
    let mut config = config.clone();
    config.openvino.float = precision::fastest(&config, model);
    config.openvino.batch = batch::largest(&config, model);
    config
}

/// What an earlier start has kept under the first key, else what `measure` measures now, if it may,
/// else what is kept under the other keys; and when it was measured. `None` if there are no figures.
///
/// An empty list is kept where there is nothing to measure, or where it takes too long.
fn measured<T: Serialize + DeserializeOwned>(
    config: &EngineConfig,
    model: &Model,
    keys: &[CacheKey],
    is_complete: &dyn Fn(&[Measured<T>]) -> bool,
    measure: &dyn Fn() -> Result<Vec<Measured<T>>, MeasureError>,
) -> Option<(Vec<Measured<T>>, &'static str)> {
    let kept = |key: &CacheKey| {
        let findings = config.findings.as_ref()?;
        let kept = findings.get::<Vec<Measured<T>>>(key);
        kept.filter(|measured| measured.is_empty() || is_complete(measured))
    };
    let keep = |key: &CacheKey, found: &Vec<Measured<T>>| {
        if let Some(findings) = &config.findings {
            findings.put(key, found);
        }
    };
    let (own, others) = keys.split_first()?;
    match kept(own) {
        Some(found) if !found.is_empty() => return Some((found, "measured at an earlier start")),
        None if config.openvino.tuning == Tuning::Measured => match measure() {
            Ok(found) => {
                for key in keys {
                    keep(key, &found);
                }
                if !found.is_empty() {
                    return Some((found, "measured now"));
                }
            }
            Err(MeasureError::TooSlow) => {
                tracing::info!(
                    model = model.name,
                    "using the default settings, because measuring was given up: {}",
                    MeasureError::TooSlow
                );
                // The next start would wait as long for the same result.
                keep(own, &Vec::new());
            }
            // An engine that fails says so when it is loaded.
            Err(MeasureError::Engine(error)) => tracing::debug!("not measured: {error}"),
        },
        _ => {}
    }
    let mut others = others.iter().filter_map(kept);
    let found = others.find(|found| !found.is_empty())?;
    Some((found, "measured for another model"))
}

/// What all figures depend on, whatever the model.
fn key(kind: &str, config: &EngineConfig) -> CacheKey {
    CacheKey::new([
        ("kind", kind.to_owned()),
        ("program", env!("CARGO_PKG_VERSION").to_owned()),
        (
            "library",
            library::stamp(config.openvino.library.as_deref()),
        ),
        ("processor", processor::identity()),
        ("threads", config.threads.to_string()),
    ])
}

/// The rate of each case, for the log.
fn rates<T: Display>(measured: &[Measured<T>]) -> String {
    let rates: Vec<String> = measured
        .iter()
        .map(|found| format!("{}: {:.0}", found.case, found.best()))
        .collect();
    rates.join(", ")
}
