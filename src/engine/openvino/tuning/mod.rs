//! Chooses the largest batch by measuring, where nobody has set it: which one is fastest depends on
//! the processor and on the network.

mod choice;
mod measure;

use std::{
    num::NonZeroUsize,
    sync::Barrier,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use self::{
    choice::{Measured, choose},
    measure::{MeasureError, Workload, measure},
};
use super::{library, load_narrow};
use crate::{
    cache::CacheKey,
    engine::{Engine, EngineConfig, EngineError, Tuning, processor, side_by_side::side_by_side},
    model::{Batch, Model},
};

/// The sizes to choose from. Larger ones were slower on all processors that were tried.
const BATCHES: [usize; 3] = [1, 2, 4];

/// What was measured, as it is kept for later starts.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Finding {
    measured: Vec<Measured>,
}

impl Finding {
    fn is_complete(&self) -> bool {
        self.measured.iter().map(|found| found.batch).eq(BATCHES)
    }
}

/// The largest batch to serve `model` with, where the model and the user leave it open.
pub(super) fn batch(config: &EngineConfig, model: &Model) -> NonZeroUsize {
    let default = config.openvino.batch;
    let is_open = model.graph.batch == Batch::Any && config.max_batch.is_none();
    if !is_open || config.openvino.tuning == Tuning::Off {
        return default;
    }
    let measure = || measure_lanes(config, model);
    decide(config, model, &measure)
}

/// As it was measured before, else as `measure` does it now, if it may.
fn decide(
    config: &EngineConfig,
    model: &Model,
    measure: &dyn Fn() -> Result<Vec<Measured>, MeasureError>,
) -> NonZeroUsize {
    let default = config.openvino.batch;
    let key = key(config, model);
    let kept = config.findings.as_ref();
    let kept = kept.and_then(|findings| findings.get::<Finding>(&key));
    let kept = kept.filter(Finding::is_complete);
    let (finding, when) = match kept {
        Some(finding) => (finding, "measured at an earlier start"),
        None if config.openvino.tuning != Tuning::Measured => return default,
        None => match measure() {
            Ok(measured) => {
                let finding = Finding { measured };
                if let Some(findings) = &config.findings {
                    findings.put(&key, &finding);
                }
                (finding, "measured now")
            }
            Err(error) => {
                // An engine that fails says so again when it is loaded.
                tracing::info!(
                    model = model.name,
                    "batches of up to {default}, which was not measured: {error}"
                );
                return default;
            }
        },
    };
    let chosen = choose(default.get(), &finding.measured);
    let rates: Vec<String> = finding
        .measured
        .iter()
        .map(|found| format!("{}: {:.0}", found.batch, found.best()))
        .collect();
    tracing::info!(
        model = model.name,
        "batches of up to {chosen}, {when} (images/s by batch: {})",
        rates.join(", ")
    );
    NonZeroUsize::new(chosen).unwrap_or(default)
}

/// All that the figures depend on.
fn key(config: &EngineConfig, model: &Model) -> CacheKey {
    key_on(processor::identity(), config, model)
}

fn key_on(processor: String, config: &EngineConfig, model: &Model) -> CacheKey {
    let precision = config.precision.map(|precision| precision.to_string());
    let geometry = &model.geometry;
    CacheKey::new([
        ("kind", "fastest batch".to_owned()),
        ("program", env!("CARGO_PKG_VERSION").to_owned()),
        (
            "library",
            library::stamp(config.openvino.library.as_deref()),
        ),
        ("processor", processor),
        ("threads", config.threads.to_string()),
        ("precision", precision.unwrap_or_else(|| "auto".to_owned())),
        ("model", model.version.clone()),
        ("input", format!("{}x{}", geometry.width, geometry.height)),
        ("batches", format!("{BATCHES:?}")),
    ])
}

/// Loads the narrow lanes that would serve, and measures them.
fn measure_lanes(config: &EngineConfig, model: &Model) -> Result<Vec<Measured>, MeasureError> {
    let started = Instant::now();
    let lanes = |batch| {
        let config = EngineConfig {
            max_batch: NonZeroUsize::new(batch),
            ..config.clone()
        };
        load_narrow(&config, model)
    };
    let largest = BATCHES[BATCHES.len() - 1];
    let mut workload = NarrowLanes {
        any: lanes(largest)?,
        single: Vec::new(),
        images: vec![128; largest * model.geometry.bytes()],
        classes: model.graph.classes,
    };
    // A network for which compiling alone takes this long has figures that take too long as well.
    if started.elapsed() > measure::LIMIT / 2 {
        return Err(MeasureError::TooSlow);
    }
    workload.single = lanes(1)?;
    measure(&mut workload, &BATCHES, started.elapsed())
}

/// The lanes of a network for any batch, and of one for single images, which has a static shape and
/// is faster for that.
struct NarrowLanes {
    any: Vec<Box<dyn Engine>>,
    single: Vec<Box<dyn Engine>>,
    /// As many as the largest batch has.
    images: Vec<u8>,
    classes: usize,
}

impl Workload for NarrowLanes {
    fn lanes(&self) -> usize {
        self.any.len()
    }

    fn time(&mut self, batch: usize, images: usize) -> Result<Duration, EngineError> {
        let lanes = match batch {
            1 => &mut self.single,
            _ => &mut self.any,
        };
        let pixels = &self.images[..self.images.len() / BATCHES[BATCHES.len() - 1] * batch];
        let begin = Barrier::new(lanes.len());
        let run = |lane: &mut dyn Engine| {
            let mut logits = vec![0.0; batch * self.classes];
            begin.wait();
            let started = Instant::now();
            for _ in 0..images / batch {
                lane.infer(pixels, batch, &mut logits)?;
            }
            Ok(started.elapsed())
        };
        let count = lanes.len() as u32;
        let times = side_by_side(lanes, run)?;
        Ok(times.iter().sum::<Duration>() / count)
    }
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
    fn rates(rates: [f64; 3]) -> Vec<Measured> {
        let measured = BATCHES.iter().zip(rates).map(|(&batch, rate)| Measured {
            batch,
            rounds: vec![rate; 3],
        });
        measured.collect()
    }

    /// The chosen batch, and how often was measured for it.
    fn decided(config: &EngineConfig, measured: [f64; 3]) -> (usize, u32) {
        let count = Cell::new(0);
        let measure = || {
            count.set(count.get() + 1);
            Ok(rates(measured))
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
        let usual = key(&config, &model());
        let mut others = vec![
            key_on("another processor".into(), &config, &model()),
            key_on(
                processor::identity(),
                &config,
                &Model {
                    version: "another".into(),
                    ..model()
                },
            ),
        ];
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libopenvino_c.so.1");
        std::fs::write(&library, "another").unwrap();
        let changes: [fn(&mut EngineConfig, &Path); 3] = [
            |config, _| config.precision = Some(Precision::Fp32),
            |config, _| config.threads = NonZeroUsize::new(7).unwrap(),
            |config, library| config.openvino.library = Some(library.to_owned()),
        ];
        for change in changes {
            let mut config = config.clone();
            change(&mut config, &library);
            others.push(key(&config, &model()));
        }
        for other in others {
            assert_ne!(other, usual);
        }
    }

    #[test]
    fn a_damaged_file_is_measured_again_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(Tuning::Measured, findings(folder.path()));
        assert_eq!(decided(&config, [100.0, 100.0, 120.0]), (4, 1));
        let file = folder.path().join(key(&config, &model()).file_name());
        let mut content = std::fs::read(&file).unwrap();
        *content.last_mut().unwrap() ^= 1;
        std::fs::write(&file, content).unwrap();
        assert_eq!(decided(&config, [120.0, 100.0, 100.0]), (1, 1));
        assert_eq!(decided(&config, [100.0, 100.0, 100.0]), (1, 0));

        // Intact, but of other batches.
        let partial = Finding {
            measured: rates([1.0, 2.0, 3.0]).split_off(1),
        };
        let findings = config.findings.as_ref().unwrap();
        findings.put(&key(&config, &model()), &partial);
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
        let too_slow = || Err(MeasureError::TooSlow);
        let failed = || Err(EngineKind::OpenVino.failed("as told").into());
        assert_eq!(decide(&config, &model(), &too_slow).get(), 2);
        assert_eq!(decide(&config, &model(), &failed).get(), 2);
        assert_eq!(decided(&config, [100.0, 100.0, 120.0]), (4, 1));
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
        assert_eq!(batch(&measured, &model()).get(), 4);

        let off = config(Tuning::Off, findings(folder.path()));
        assert_eq!(batch(&off, &model()).get(), 2);
        let set = EngineConfig {
            max_batch: NonZeroUsize::new(3),
            ..measured.clone()
        };
        assert_eq!(batch(&set, &model()).get(), 2, "which max_batch overrides");
        let mut fixed = model();
        fixed.graph.batch = Batch::Fixed(1);
        assert_eq!(
            batch(&measured, &fixed).get(),
            2,
            "which the model overrides"
        );
    }

    #[test]
    fn openvino_is_measured_and_serves_with_what_was_chosen() {
        if library::load(None).is_err() {
            skipped("there is no OpenVINO; `make openvino` fetches it");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let config = EngineConfig {
            kind: Some(EngineKind::OpenVino),
            ..config(Tuning::Measured, findings(folder.path()))
        };
        let measured = measure_lanes(&config, &model()).unwrap();
        assert!(Finding::is_complete(&Finding {
            measured: measured.clone()
        }));
        for found in measured {
            assert!(found.rounds.len() >= 3 && found.best() > 0.0, "{found:?}");
        }

        assert_eq!(decided(&config, [100.0, 100.0, 120.0]), (4, 1));
        let mut lanes = start(&config, &model()).unwrap();
        assert_eq!(lanes.info.max_batch, 4);
        let mut logits = vec![0.0; 4 * CLASSES];
        let images = vec![100; 4 * model().geometry.bytes()];
        lanes.narrow[0].infer(&images, 4, &mut logits).unwrap();
        assert!(logits.iter().all(|logit| logit.is_finite()));
    }
}
