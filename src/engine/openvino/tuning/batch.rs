//! Chooses the largest batch by measuring the speed of 1, 2 and 4 images: which one is fastest depends
//! on the processor and on the network.

use std::{num::NonZeroUsize, time::Instant};

use super::{
    choice::{Measured, choose},
    key,
    lanes::NarrowLanes,
    measure::{self, MeasureError, measure},
    measured, rates,
};
use crate::{
    cache::CacheKey,
    engine::{EngineConfig, Tuning},
    model::{Batch, Model},
};

/// The sizes to choose from. Larger ones were slower on all processors that were tried.
const BATCHES: [usize; 3] = [1, 2, 4];

/// How much faster than the default another batch has to be, as a factor.
const LEAD: f64 = 1.03;

/// The largest batch to serve `model` with, where the model and the user leave it open.
pub(super) fn largest(config: &EngineConfig, model: &Model) -> NonZeroUsize {
    decide(config, model, &|| measure_lanes(config, model))
}

/// As it was measured before, else as `measure` does it now, if it may.
fn decide(
    config: &EngineConfig,
    model: &Model,
    measure: &dyn Fn() -> Result<Vec<Measured<usize>>, MeasureError>,
) -> NonZeroUsize {
    let default = config.openvino.batch;
    let is_open = model.graph.batch == Batch::Any && config.max_batch.is_none();
    // Where the default is 1, rounding must not depend on which images arrive together.
    if !is_open || default == NonZeroUsize::MIN || config.openvino.tuning == Tuning::Off {
        return default;
    }
    let is_complete = |measured: &[Measured<usize>]| {
        let cases = measured.iter().map(|found| found.case);
        cases.eq(BATCHES)
    };
    let keys = [batch_key(config, model)];
    let Some((measured, when)) = measured(config, model, &keys, &is_complete, measure) else {
        return default;
    };
    let chosen = choose(default.get(), LEAD, &measured);
    tracing::info!(
        model = model.name,
        "using batches of up to {chosen}, {when} (images/s: {})",
        rates(&measured)
    );
    NonZeroUsize::new(chosen).unwrap_or(default)
}

fn batch_key(config: &EngineConfig, model: &Model) -> CacheKey {
    let precision = config.precision.or(config.openvino.float);
    let precision = precision.map(|precision| precision.to_string());
    key("fastest batch", config)
        .with("precision", precision.unwrap_or_else(|| "auto".to_owned()))
        .with("model", &model.version)
        .with("input", format!("{:?}", model.geometry))
        .with("batches", format!("{BATCHES:?}"))
}

/// Loads the narrow lanes that would serve, and measures them.
fn measure_lanes(
    config: &EngineConfig,
    model: &Model,
) -> Result<Vec<Measured<usize>>, MeasureError> {
    let started = Instant::now();
    let up_to = |batch| EngineConfig {
        max_batch: NonZeroUsize::new(batch),
        ..config.clone()
    };
    let [single, others @ ..] = BATCHES;
    let mut lanes = NarrowLanes::new(model);
    lanes.add(&up_to(others[1]), model, others.map(|batch| (batch, batch)))?;
    // A network for which compiling alone takes this long has figures that take too long as well.
    if started.elapsed() > measure::LIMIT / 2 {
        return Err(MeasureError::TooSlow);
    }
    // For single images the network has a static shape, and is faster for that.
    lanes.add(&up_to(single), model, [(single, single)])?;
    measure(&mut lanes, &BATCHES, started.elapsed())
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, path::Path};

    use super::*;
    use crate::{
        cache::ArtifactCache,
        engine::{EngineKind, Findings, OpenVinoConfig, Precision, start},
        model::{
            Overrides,
            testing::{CLASSES, bytes, tiny},
        },
        testing::skipped,
    };

    fn model() -> Model {
        let overrides = Overrides {
            labels: Some((0..CLASSES).map(|class| class.to_string()).collect()),
            ..Default::default()
        };
        Model::from_bytes(bytes(&tiny()), &overrides).unwrap()
    }

    fn findings(folder: &Path) -> Option<Findings> {
        Some(Findings::new(ArtifactCache::open(folder, 1 << 20).unwrap()))
    }

    fn config(tuning: Tuning, findings: Option<Findings>) -> EngineConfig {
        let mut config = EngineConfig {
            findings,
            ..EngineConfig::new(NonZeroUsize::MIN)
        };
        config.openvino.batch = OpenVinoConfig::SERVING_BATCH;
        config.openvino.tuning = tuning;
        config
    }

    /// Images per second of batches of 1, 2 and 4.
    fn figures(rates: [f64; 3]) -> Vec<Measured<usize>> {
        let measured = BATCHES.iter().zip(rates).map(|(&case, rate)| Measured {
            case,
            rounds: vec![rate; 3],
        });
        measured.collect()
    }

    /// The chosen batch, and how often was measured for it.
    fn decided(config: &EngineConfig, measured: [f64; 3]) -> (usize, u32) {
        let count = Cell::new(0);
        let measure = || {
            count.set(count.get() + 1);
            Ok(figures(measured))
        };
        let chosen = decide(config, &model(), &measure);
        (chosen.get(), count.get())
    }

    #[test]
    fn what_one_start_has_measured_the_next_one_reads() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(Tuning::Measured, findings(folder.path()));
        assert_eq!(decided(&config, [100.0, 100.0, 120.0]), (4, 1));
        assert_eq!(decided(&config, [150.0, 100.0, 100.0]), (4, 0));

        // Other threads are another matter, as is everything in the key.
        let threads = EngineConfig {
            threads: NonZeroUsize::new(2).unwrap(),
            ..config.clone()
        };
        assert_eq!(decided(&threads, [150.0, 100.0, 100.0]), (1, 1));
        assert_eq!(decided(&config, [150.0, 100.0, 100.0]), (4, 0));
    }

    #[test]
    fn all_that_the_figures_depend_on_is_in_the_key() {
        let config = config(Tuning::Measured, None);
        let usual = batch_key(&config, &model());
        let mut another_model = model();
        another_model.version = "another".into();
        assert_ne!(batch_key(&config, &another_model), usual);

        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libopenvino_c.so.1");
        std::fs::write(&library, "another").unwrap();
        let changes: [fn(&mut EngineConfig, &Path); 4] = [
            |config, _| config.precision = Some(Precision::Fp32),
            |config, _| config.openvino.float = Some(Precision::Bf16),
            |config, _| config.threads = NonZeroUsize::new(7).unwrap(),
            |config, library| config.openvino.library = Some(library.to_owned()),
        ];
        for change in changes {
            let mut config = config.clone();
            change(&mut config, &library);
            assert_ne!(batch_key(&config, &model()), usual);
        }
    }

    #[test]
    fn a_damaged_file_is_measured_again_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(Tuning::Measured, findings(folder.path()));
        assert_eq!(decided(&config, [100.0, 100.0, 120.0]), (4, 1));
        let file = folder.path().join(batch_key(&config, &model()).file_name());
        let mut content = std::fs::read(&file).unwrap();
        *content.last_mut().unwrap() ^= 1;
        std::fs::write(&file, content).unwrap();
        assert_eq!(decided(&config, [120.0, 100.0, 100.0]), (1, 1));
        assert_eq!(decided(&config, [100.0, 100.0, 100.0]), (1, 0));

        // Intact, but of other batches.
        let partial = figures([1.0, 2.0, 3.0]).split_off(1);
        let findings = config.findings.as_ref().unwrap();
        findings.put(&batch_key(&config, &model()), &partial);
        assert_eq!(decided(&config, [100.0, 100.0, 100.0]), (2, 1));
    }

    #[test]
    fn without_a_folder_it_is_measured_each_time() {
        let config = config(Tuning::Measured, None);
        assert_eq!(decided(&config, [100.0, 100.0, 120.0]), (4, 1));
        assert_eq!(decided(&config, [120.0, 100.0, 100.0]), (1, 1));
    }

    #[test]
    fn a_measurement_that_fails_leaves_the_default_and_keeps_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(Tuning::Measured, findings(folder.path()));
        let failed = || Err(EngineKind::OpenVino.failed("as told").into());
        assert_eq!(decide(&config, &model(), &failed).get(), 2);
        assert_eq!(decided(&config, [100.0, 100.0, 120.0]), (4, 1));
    }

    #[test]
    fn what_is_too_slow_to_be_measured_is_not_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(Tuning::Measured, findings(folder.path()));
        let too_slow = || Err(MeasureError::TooSlow);
        assert_eq!(decide(&config, &model(), &too_slow).get(), 2);
        assert_eq!(decided(&config, [100.0, 100.0, 120.0]), (2, 0));
    }

    #[test]
    fn models_that_come_while_others_are_served_are_not_measured() {
        let folder = tempfile::tempdir().unwrap();
        let start = config(Tuning::Measured, findings(folder.path()));
        let later = start.while_serving();
        assert_eq!(decided(&later, [100.0, 100.0, 120.0]), (2, 0));
        assert_eq!(decided(&start, [100.0, 100.0, 120.0]), (4, 1));
        assert_eq!(decided(&later, [100.0, 100.0, 100.0]), (4, 0));
    }

    #[test]
    fn nothing_is_chosen_where_it_is_off_or_the_batch_is_set() {
        let folder = tempfile::tempdir().unwrap();
        let measured = config(Tuning::Measured, findings(folder.path()));
        assert_eq!(decided(&measured, [100.0, 100.0, 120.0]), (4, 1));
        assert_eq!(largest(&measured, &model()).get(), 4);

        let off = config(Tuning::Off, findings(folder.path()));
        assert_eq!(largest(&off, &model()).get(), 2);
        let set = EngineConfig {
            max_batch: NonZeroUsize::new(3),
            ..measured.clone()
        };
        assert_eq!(
            largest(&set, &model()).get(),
            2,
            "which max_batch overrides"
        );
        let mut fixed = model();
        fixed.graph.batch = Batch::Fixed(1);
        assert_eq!(
            largest(&measured, &fixed).get(),
            2,
            "which the model overrides"
        );
    }

    #[test]
    fn openvino_is_measured_and_serves_with_what_was_chosen() {
        if super::super::super::library::load(None).is_err() {
            skipped("there is no OpenVINO; `make openvino` fetches it");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let config = EngineConfig {
            kind: Some(EngineKind::OpenVino),
            ..config(Tuning::Measured, findings(folder.path()))
        };
        let measured = measure_lanes(&config, &model()).unwrap();
        assert!(measured.iter().map(|found| found.case).eq(BATCHES));
        for found in measured {
            assert!(found.rounds.len() >= 3 && found.best() > 0.0, "{found:?}");
        }

        // Under the key of the precision that is measured as well.
        let tuned = super::super::tuned(&config, &model());
        assert!(BATCHES.contains(&tuned.openvino.batch.get()));
        let kept = EngineConfig {
            openvino: OpenVinoConfig {
                float: tuned.openvino.float,
                ..config.openvino.clone()
            },
            ..config.clone()
        };
        let findings = config.findings.as_ref().unwrap();
        findings.put(&batch_key(&kept, &model()), &figures([100.0, 100.0, 120.0]));
        let mut lanes = start(&config, &model()).unwrap();
        assert_eq!(lanes.info.max_batch, 4);
        let mut logits = vec![0.0; 4 * CLASSES];
        let images = vec![100; 4 * model().geometry.bytes()];
        lanes.narrow[0].infer(&images, 4, &mut logits).unwrap();
        assert!(logits.iter().all(|logit| logit.is_finite()));
    }
}
