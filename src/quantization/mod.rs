//! Quantisation: from a float model and a folder of photos to one whose layers compute in 8 bits.
//!
//! `photos` samples the folder, `calibration` watches the float network look at them, `ranges`
//! chooses what 8 bits should cover, `report` compares the answers. The rewriting itself is the
//! graph's: [`ServingGraph::quantized`].

mod at_start;
mod calibration;
mod photos;
mod ranges;
mod report;

use std::{collections::HashSet, io, path::PathBuf};

use self::calibration::Calibration;
pub use self::{
    at_start::AtStart,
    photos::{Photo, Photos},
    ranges::Estimator,
    report::{Accuracy, Comparison, LayerNoise, Report},
};
use crate::{
    engine::EngineError,
    model::{InputSize, Manifest, Model, ModelError, Quantization, ServingGraph},
};

/// Photos that single layers are judged by.
const PHOTOS_A_LAYER: usize = 4;
/// Photos that bias correction is judged by.
const PHOTOS_A_CHOICE: usize = 16;
/// Layers that the report names.
const WORST_LAYERS: usize = 5;

/// How to quantise.
#[derive(Clone, Debug)]
pub struct QuantizationConfig {
    /// Photos to calibrate with.
    pub photos: usize,
    /// How ranges are chosen.
    pub range: Estimator,
    /// Layers that stay float32, by name.
    pub keep_float: Vec<String>,
    /// How many of the worst layers stay float32 beside those.
    pub auto_keep: usize,
    /// Whether the report names the worst layers, which takes a while.
    pub judge_layers: bool,
    /// The least part of the photos with the same most probable class, 0 to 1.
    pub min_agreement: f64,
    /// CPU threads.
    pub threads: usize,
}

impl Default for QuantizationConfig {
    fn default() -> Self {
        Self {
            photos: 100,
            range: Estimator::MinMax,
            keep_float: Vec::new(),
            auto_keep: 0,
            judge_layers: true,
            min_agreement: 0.97,
            threads: 1,
        }
    }
}

/// A quantised model.
pub struct Quantized {
    /// As an ONNX file, which holds its labels and all that it is served with.
    pub onnx: Vec<u8>,
    /// How it was made and how good it is.
    pub report: Report,
}

/// Why a model was not quantised.
#[derive(Debug, thiserror::Error)]
pub enum QuantizationError {
    /// A folder can't be read.
    #[error("the photos in {} can't be read: {source}", path.display())]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Too few photos.
    #[error(
        "{}: has {found} photos that can be read ({skipped} other files); at least 8 are needed, and 100 to 500 of the \
         kind that the model will see are good", path.display()
    )]
    TooFewPhotos {
        /// Which folder.
        path: PathBuf,
        /// The photos in it.
        found: usize,
        /// Files that are no photos.
        skipped: usize,
    },
    /// There is no such layer.
    #[error("the model has no layer \"{layer}\" that could stay float; its layers are {}", layers.join(", "))]
    UnknownLayer {
        /// What was asked for.
        layer: String,
        /// What there is.
        layers: Vec<String>,
    },
    /// The model can't be quantised.
    #[error("the model {0}")]
    Model(#[from] ModelError),
    /// The embedded engine, which calibrates, can't run the model.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The answers changed too much.
    #[error(
        "the quantised model agrees with the float one, but for ties, on {:.1} % of {} photos only (at least {:.1} % are \
         asked for): it was not kept; leave the worst layers in float (--auto-keep 3, or --keep-float LAYER), give more photos, or \
         serve the float model", report.comparison.agreement_but_ties * 100.0, report.comparison.photos, min_agreement * 100.0
    )]
    Disagrees {
        /// All the figures.
        report: Box<Report>,
        /// What was asked for.
        min_agreement: f64,
    },
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The float network looks at photos.
    Calibrating,
    /// Single layers are judged.
    Judging,
    /// The answers are compared.
    Comparing,
}

/// Hears what is being done, how much of it is done, and how much that is in all.
pub type Progress<'a> = &'a (dyn Fn(Stage, usize, usize) + Sync);

/// Quantises `model`, whose float answers stay the measure.
///
/// # Errors
/// A model that can't be quantised or calibrated; one whose answers change too much.
pub fn quantize(
    model: &Model,
    photos: &Photos,
    config: &QuantizationConfig,
    progress: Progress,
) -> Result<Quantized, QuantizationError> {
    let float = model.graph.folded()?;
    let layers: Vec<String> = float.layers().into_iter().map(|layer| layer.name).collect();
    if let Some(unknown) = config.keep_float.iter().find(|name| !layers.contains(name)) {
        return Err(QuantizationError::UnknownLayer {
            layer: unknown.clone(),
            layers,
        });
    }
    let threads = config.threads;
    // Told before the long work begins.
    let all: HashSet<String> = layers.iter().cloned().collect();
    let calibrating = |done| progress(Stage::Calibrating, done, photos.calibration.len());
    let calibration = Calibration::run(&float, &photos.calibration, threads, &calibrating)?;
    let mut how = Quantization {
        ranges: calibration.ranges(config.range),
        means: calibration.means(),
        keep_float: config.keep_float.iter().cloned().collect(),
    };

    // Each layer alone: what it costs is not hidden by what the layers before it did.
    let few = &photos.calibration[..photos.calibration.len().min(PHOTOS_A_LAYER)];
    let reference = report::logits(&float, few, threads, &|_| {})?;
    let mut noises = Vec::new();
    let judging = config.judge_layers || config.auto_keep > 0;
    let judged = layers
        .iter()
        .filter(|layer| !how.keep_float.contains(*layer) && judging);
    for (done, layer) in judged.enumerate() {
        let keep_float = all
            .iter()
            .filter(|other| *other != layer)
            .cloned()
            .collect();
        let alone = float.quantized(&Quantization {
            keep_float,
            ..how.clone()
        })?;
        let snr_db = report::snr_db(&report::logits(&alone, few, threads, &|_| {})?, &reference);
        noises.push(LayerNoise {
            layer: layer.clone(),
            snr_db,
        });
        progress(Stage::Judging, done + 1, layers.len());
    }
    noises.sort_by(|a, b| a.snr_db.total_cmp(&b.snr_db));
    how.keep_float.extend(
        noises
            .drain(..config.auto_keep.min(noises.len()))
            .map(|noise| noise.layer),
    );
    noises.truncate(WORST_LAYERS);

    let (quantized, bias_correction) = better(&float, &mut how, photos, threads)?;
    let onnx = quantized.to_file(&manifest(model, config, photos, bias_correction, &how))?;

    // What is compared is what will be loaded.
    let total = 2 * photos.check.len();
    let comparing = |done| progress(Stage::Comparing, done, total);
    let expected = report::logits(&float, &photos.check, threads, &comparing)?;
    let loaded = Model::from_bytes(onnx.clone().into(), &Default::default())?;
    let actual = report::logits(&loaded.graph, &photos.check, threads, &|done| {
        comparing(photos.check.len() + done)
    })?;
    let mut kept_float: Vec<String> = how.keep_float.into_iter().collect();
    kept_float.sort();
    let report = Report {
        range: config.range,
        bias_correction,
        calibration_photos: photos.calibration.len(),
        layers: layers.len() - kept_float.len(),
        kept_float,
        worst_layers: noises,
        logits_snr_db: report::snr_db(&actual, &expected),
        comparison: Comparison::new(&photos.check, &actual, &expected),
    };
    if report.comparison.agreement_but_ties < config.min_agreement {
        return Err(QuantizationError::Disagrees {
            report: report.into(),
            min_agreement: config.min_agreement,
        });
    }
    Ok(Quantized { onnx, report })
}

/// The quantised network with or without corrected biases, whichever comes closer to the float one.
fn better(
    float: &ServingGraph,
    how: &mut Quantization,
    photos: &Photos,
    threads: usize,
) -> Result<(ServingGraph, bool), QuantizationError> {
    let some = &photos.calibration[..photos.calibration.len().min(PHOTOS_A_CHOICE)];
    let reference = report::logits(float, some, threads, &|_| {})?;
    let snr = |graph: &ServingGraph| {
        Ok::<_, EngineError>(report::snr_db(
            &report::logits(graph, some, threads, &|_| {})?,
            &reference,
        ))
    };
    let corrected = float.quantized(how)?;
    let plain = float.quantized(&Quantization {
        means: Default::default(),
        ..how.clone()
    })?;
    let (a, b) = (snr(&corrected)?, snr(&plain)?);
    tracing::debug!("logits with corrected biases {a:.1} dB, without {b:.1} dB");
    Ok(if a > b {
        (corrected, true)
    } else {
        (plain, false)
    })
}

/// All that the model is served with, and what was done to it.
fn manifest(
    model: &Model,
    config: &QuantizationConfig,
    photos: &Photos,
    bias_correction: bool,
    how: &Quantization,
) -> Manifest {
    let size = model
        .manifest
        .input
        .as_ref()
        .map_or_else(Default::default, |input| input.other.clone());
    let mut manifest = Manifest {
        name: Some(model.name.clone()),
        labels: Some(model.labels.to_vec()),
        input: Some(InputSize {
            height: model.geometry.height,
            width: model.geometry.width,
            other: size,
        }),
        resize_shorter_side: Some(model.geometry.resize_shorter_side),
        // The file takes pixels and normalises them itself.
        mean: None,
        std: None,
        other: model.manifest.other.clone(),
    };
    let mut kept: Vec<&String> = how.keep_float.iter().collect();
    kept.sort();
    manifest.other.insert(
        "quantization".into(),
        serde_json::json!({
            "from": model.version,
            "range": config.range,
            "bias_correction": bias_correction,
            "calibration_photos": photos.calibration.len(),
            "kept_float": kept,
        }),
    );
    manifest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Overrides, testing};

    /// The mean colours of an image decide, with these weights.
    fn model(weights: [f32; 12]) -> Model {
        let mut model = testing::tiny();
        let raw = |values: &[f32]| {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect::<Vec<u8>>()
        };
        let stored = &mut testing::graph(&mut model).initializer;
        stored[0].raw_data = Some(raw(&weights).into());
        stored[1].raw_data = Some(raw(&[0.0; 4]).into());
        let labels = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let overrides = Overrides {
            labels: Some(labels),
            ..Overrides::default()
        };
        Model::from_bytes(testing::bytes(&model), &overrides).unwrap()
    }

    /// Images of one colour each.
    fn photos(model: &Model) -> Photos {
        let photo = |index: usize| {
            let colour = [
                (index * 37 % 256) as u8,
                (index * 101 % 256) as u8,
                (index * 59 % 256) as u8,
            ];
            Photo {
                crop: colour.repeat(model.geometry.bytes() / 3),
                class: None,
            }
        };
        let [calibration, check] = [0..40, 40..80].map(|part| part.map(photo).collect());
        Photos {
            calibration,
            check,
            skipped: 0,
            digest: [0; 32],
        }
    }

    fn config() -> QuantizationConfig {
        QuantizationConfig {
            threads: 2,
            ..QuantizationConfig::default()
        }
    }

    #[test]
    fn a_good_result_is_a_model_with_the_same_answers() {
        let model = model([
            1.0, 0.5, -0.25, 0.0, 2.0, 1.0, -1.0, 0.125, 0.5, 0.75, -2.0, 4.0,
        ]);
        let seen = std::sync::Mutex::new(HashSet::new());
        let stages = |stage: Stage, _: usize, _: usize| {
            seen.lock().unwrap().insert(format!("{stage:?}"));
        };
        let quantized = quantize(&model, &photos(&model), &config(), &stages).unwrap();
        assert!(
            quantized.report.logits_snr_db > 30.0,
            "{:?}",
            quantized.report
        );
        assert_eq!(quantized.report.comparison.agreement_but_ties, 1.0);
        assert_eq!(
            (quantized.report.layers, quantized.report.worst_layers.len()),
            (1, 1)
        );
        assert_eq!(seen.into_inner().unwrap().len(), 3);
        let loaded = Model::from_bytes(quantized.onnx.into(), &Overrides::default()).unwrap();
        assert_eq!(
            (loaded.labels, loaded.geometry),
            (model.labels, model.geometry)
        );
    }

    #[test]
    fn a_bad_result_is_refused_with_its_figures() {
        // What tells the first two classes apart vanishes beside the large weights.
        let model = model([
            900.0, 2.0, 0.0, 900.0, -2.0, 0.0, -900.0, 0.0, 2.0, -900.0, 0.0, -2.0,
        ]);
        let photos = photos(&model);
        let error = quantize(&model, &photos, &config(), &|_, _, _| {})
            .err()
            .unwrap();
        let QuantizationError::Disagrees {
            report,
            min_agreement,
        } = &error
        else {
            panic!("{error}")
        };
        assert!(
            report.comparison.agreement_but_ties < 0.9 && *min_agreement == 0.97,
            "{report:?}"
        );
        assert!(error.to_string().contains("--auto-keep"), "{error}");
        let lenient = QuantizationConfig {
            min_agreement: 0.0,
            ..config()
        };
        assert!(quantize(&model, &photos, &lenient, &|_, _, _| {}).is_ok());
        let unknown = QuantizationConfig {
            keep_float: vec!["conv".into()],
            ..config()
        };
        let error = quantize(&model, &photos, &unknown, &|_, _, _| {})
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("\"conv\"") && error.contains("scores_node"),
            "{error}"
        );
    }

    #[test]
    fn a_kept_result_is_used_until_model_photos_or_settings_change() {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("photos");
        std::fs::create_dir(&images).unwrap();
        let write = |index: usize, colour: [u8; 3]| {
            image::RgbImage::from_pixel(8, 6, image::Rgb(colour))
                .save(images.join(format!("{index}.png")))
                .unwrap();
        };
        (0..12).for_each(|index| {
            write(
                index,
                [index as u8 * 20, 255 - index as u8 * 20, index as u8 * 7],
            )
        });
        let cache = crate::cache::PlanCache::open(&folder.path().join("cache"), 1 << 30).unwrap();
        let kept = || {
            std::fs::read_dir(cache.folder())
                .unwrap()
                .filter(|entry| {
                    entry
                        .as_ref()
                        .unwrap()
                        .path()
                        .extension()
                        .is_some_and(|e| e == "plan")
                })
                .count()
        };
        let mut at_start = AtStart {
            photos: images.clone(),
            preprocess: Default::default(),
            config: config(),
            cache: Some(cache.clone()),
        };
        let first = [
            1.0, 0.5, -0.25, 0.0, 2.0, 1.0, -1.0, 0.125, 0.5, 0.75, -2.0, 4.0,
        ];
        let apply = |at_start: &AtStart, weights| at_start.apply(model(weights)).unwrap();
        let quantized = apply(&at_start, first);
        assert!(quantized.graph.quantized);
        let version = quantized.version.clone();
        assert_eq!(
            at_start.apply(quantized).unwrap().version,
            version,
            "a quantised model stays as it is"
        );
        assert_eq!((apply(&at_start, first).version, kept()), (version, 1));
        let mut second = first;
        second[11] = 3.0;
        apply(&at_start, second);
        assert_eq!(kept(), 2);
        write(3, [9, 9, 9]);
        apply(&at_start, first);
        assert_eq!(kept(), 3);
        at_start.config.range = Estimator::Mse;
        apply(&at_start, first);
        assert_eq!(kept(), 4);
    }
}
