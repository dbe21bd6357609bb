//! Chooses between half precision and fp32 for float models by measuring both: some processors
//! compute in half precision, but slower than in fp32.

use std::time::Instant;

use super::{
    super::{claimed_float, guessed_float},
    choice::{Measured, choose},
    key,
    lanes::NarrowLanes,
    measure::{self, MeasureError, measure},
    measured, rates,
};
use crate::{
    cache::CacheKey,
    engine::{EngineConfig, Precision, Tuning},
    model::{Batch, Model},
};

/// How much faster than half precision fp32 has to be, as a factor: it takes twice the memory.
const LEAD: f64 = 1.05;

/// The float format to serve `model` in where none is requested; `None` if that was not measured.
pub(super) fn fastest(config: &EngineConfig, model: &Model) -> Option<Precision> {
    decide(config, model, &|| measure_lanes(config, model))
}

/// As it was measured before, else as `measure` does it now, if it may.
fn decide(
    config: &EngineConfig,
    model: &Model,
    measure: &dyn Fn() -> Result<Vec<Measured<Precision>>, MeasureError>,
) -> Option<Precision> {
    let is_open = config.precision.is_none() && !model.graph.quantized;
    if !is_open || config.openvino.tuning == Tuning::Off {
        return None;
    }
    let is_complete = |measured: &[Measured<Precision>]| {
        let cases: Vec<Precision> = measured.iter().map(|found| found.case).collect();
        matches!(
            cases[..],
            [Precision::Bf16 | Precision::Fp16, Precision::Fp32]
        )
    };
    // What holds for one network usually holds for the others.
    let any_model = key("fastest precision", config);
    let keys = [precision_key(&any_model, model), any_model];
    let (measured, when) = measured(config, model, &keys, &is_complete, measure)?;
    let half = measured.first()?.case;
    let chosen = choose(half, LEAD, &measured);
    tracing::info!(
        model = model.name,
        "computing in {chosen}, {when} (images/s: {})",
        rates(&measured)
    );
    Some(chosen)
}

fn precision_key(any_model: &CacheKey, model: &Model) -> CacheKey {
    any_model
        .with("model", &model.version)
        .with("input", format!("{:?}", model.geometry))
}

/// Loads the narrow lanes in half precision and in fp32, and measures them. Nothing is measured where
/// the processor has no half precision.
fn measure_lanes(
    config: &EngineConfig,
    model: &Model,
) -> Result<Vec<Measured<Precision>>, MeasureError> {
    let started = Instant::now();
    let half = claimed_float(config)?;
    if half == Precision::Fp32 {
        return Ok(Vec::new());
    }
    let batch = match model.graph.batch {
        Batch::Fixed(n) => n,
        Batch::Any => config.max_batch.unwrap_or(config.openvino.batch).get(),
    };
    let mut lanes = NarrowLanes::new(model);
    let guess = guessed_float(half);
    let other = if guess == half { Precision::Fp32 } else { half };
    for precision in [guess, other] {
        let config = EngineConfig {
            precision: Some(precision),
            ..config.clone()
        };
        lanes.add(&config, model, [(precision, batch)])?;
        if started.elapsed() > measure::LIMIT / 2 {
            return Err(MeasureError::TooSlow);
        }
    }
    measure(&mut lanes, &[half, Precision::Fp32], started.elapsed())
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, num::NonZeroUsize, path::Path};

    use super::*;
    use crate::{
        cache::ArtifactCache,
        engine::Findings,
        model::{
            Overrides,
            testing::{CLASSES, bytes, tiny},
        },
    };

    fn model(version: &str) -> Model {
        let overrides = Overrides {
            labels: Some((0..CLASSES).map(|class| class.to_string()).collect()),
            ..Default::default()
        };
        let mut model = Model::from_bytes(bytes(&tiny()), &overrides).unwrap();
        model.version = version.into();
        model
    }

    fn config(tuning: Tuning, folder: &Path) -> EngineConfig {
        let mut config = EngineConfig {
            findings: Some(Findings::new(ArtifactCache::open(folder, 1 << 20).unwrap())),
            ..EngineConfig::new(NonZeroUsize::MIN)
        };
        config.openvino.tuning = tuning;
        config
    }

    /// The choice for this model where bf16 and fp32 have these rates, and how often was measured.
    fn decided(config: &EngineConfig, version: &str, rates: &[f64]) -> (Option<Precision>, u32) {
        let count = Cell::new(0);
        let measure = || {
            count.set(count.get() + 1);
            let cases = [Precision::Bf16, Precision::Fp32];
            let measured = cases.into_iter().zip(rates).map(|(case, &rate)| Measured {
                case,
                rounds: vec![rate; 3],
            });
            Ok(measured.collect())
        };
        let chosen = decide(config, &model(version), &measure);
        (chosen, count.get())
    }

    #[test]
    fn fp32_has_to_be_clearly_faster() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(Tuning::Measured, folder.path());
        assert_eq!(
            decided(&config, "a", &[45.0, 75.0]),
            (Some(Precision::Fp32), 1)
        );
        assert_eq!(
            decided(&config, "b", &[100.0, 104.0]),
            (Some(Precision::Bf16), 1)
        );
        assert_eq!(decided(&config, "c", &[]), (None, 1), "no half precision");
        assert_eq!(decided(&config, "c", &[]), (None, 0));
    }

    #[test]
    fn what_holds_for_one_network_is_assumed_of_those_that_are_not_measured() {
        let folder = tempfile::tempdir().unwrap();
        let start = config(Tuning::Measured, folder.path());
        let later = start.while_serving();
        assert_eq!(decided(&later, "a", &[1.0, 2.0]), (None, 0));
        assert_eq!(decided(&start, "a", &[1.0, 2.0]).0, Some(Precision::Fp32));
        assert_eq!(
            decided(&later, "b", &[2.0, 1.0]),
            (Some(Precision::Fp32), 0)
        );
        // At a start it is measured nevertheless.
        assert_eq!(
            decided(&start, "b", &[2.0, 1.0]),
            (Some(Precision::Bf16), 1)
        );
        assert_eq!(
            decided(&later, "a", &[2.0, 1.0]),
            (Some(Precision::Fp32), 0)
        );
    }

    #[test]
    fn a_network_that_is_too_slow_gets_the_same_at_every_start() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(Tuning::Measured, folder.path());
        assert_eq!(decided(&config, "a", &[1.0, 2.0]).0, Some(Precision::Fp32));
        let too_slow = || Err(MeasureError::TooSlow);
        for _ in 0..2 {
            let chosen = decide(&config, &model("b"), &too_slow);
            assert_eq!(chosen, Some(Precision::Fp32), "as for the other model");
        }
        assert_eq!(
            decided(&config, "b", &[2.0, 1.0]),
            (Some(Precision::Fp32), 0)
        );
    }

    #[test]
    fn nothing_is_decided_where_it_is_off_or_somebody_has_chosen() {
        let folder = tempfile::tempdir().unwrap();
        let off = config(Tuning::Off, folder.path());
        assert_eq!(decided(&off, "a", &[1.0, 2.0]), (None, 0));
        let chosen = EngineConfig {
            precision: Some(Precision::Bf16),
            ..config(Tuning::Measured, folder.path())
        };
        assert_eq!(decided(&chosen, "a", &[1.0, 2.0]), (None, 0));
    }
}
