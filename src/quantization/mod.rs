//! Post-training quantization: turns a float model and a folder of photos into an INT8 model.
//!
//! `photos` samples the folder, `calibration` records the activations of the float network on those
//! photos, `ranges` chooses the range that 8 bits cover, and `report` compares the answers of the
//! two models. [`ServingGraph::quantized`] rewrites the graph.

mod calibration;
mod photos;
mod ranges;
mod report;
mod startup;

use std::{collections::HashSet, io, path::PathBuf};

use self::{
    calibration::Calibration,
    report::{Comparison, LayerNoise},
};
pub use self::{
    photos::Photos, ranges::Estimator, report::QuantizationReport, startup::StartupQuantization,
};
use crate::{
    engine::EngineError,
    model::{Manifest, Model, ModelError, Quantization, ServingGraph},
};

/// Number of photos for measuring the noise of a single layer.
const LAYER_NOISE_PHOTOS: usize = 4;
/// Number of photos for choosing whether to correct biases.
const BIAS_CORRECTION_PHOTOS: usize = 16;
/// Number of layers that the report names.
const WORST_LAYERS: usize = 5;

/// The settings of a quantization.
#[derive(Clone, Debug)]
pub struct QuantizationConfig {
    /// Number of photos to calibrate with.
    pub photos: usize,
    /// How the ranges of activations are estimated.
    pub range: Estimator,
    /// Names of layers that stay float32.
    pub keep_float: Vec<String>,
    /// Number of further layers that stay float32: those with the most quantization noise.
    pub auto_keep: usize,
    /// Whether to measure each layer alone, so that the report names the worst. This takes a while.
    pub judge_layers: bool,
    /// Least agreement with the float model on the photos, apart from ties, from 0 to 1.
    pub min_agreement: f64,
    /// Number of CPU threads.
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

/// A quantized model.
pub struct Quantized {
    /// The model as an ONNX file, which contains its labels and every setting to serve it with.
    pub onnx: Vec<u8>,
    pub report: QuantizationReport,
}

/// Why a model could not be quantized.
#[derive(Debug, thiserror::Error)]
pub enum QuantizationError {
    #[error("the photos in {} cannot be read: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error(
        "{}: has {found} photos that can be read ({skipped} other files); at least 8 are needed; \
         100 to 500 of the kind that the model will see are recommended",
        path.display()
    )]
    TooFewPhotos {
        path: PathBuf,
        /// Number of readable photos in the folder.
        found: usize,
        /// Number of files that are not readable photos.
        skipped: usize,
    },
    #[error(
        "the model has no layer \"{layer}\" that could stay float; its layers are {}",
        layers.join(", ")
    )]
    UnknownLayer {
        /// The requested layer.
        layer: String,
        /// The layers of the model.
        layers: Vec<String>,
    },
    /// The model cannot be quantized.
    #[error("the model {0}")]
    Model(#[from] ModelError),
    /// The embedded engine, which runs the calibration, cannot run the model.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The answers of the quantized model differ too much.
    #[error(
        "apart from ties, the quantized model agrees with the float model on only {:.1} % of {} \
         photos (at least {:.1} % are required), so it was discarded; leave the worst layers in \
         float (--auto-keep 3, or --keep-float LAYER), give more photos, or serve the float model",
        report.comparison.agreement_but_ties * 100.0,
        report.comparison.photos,
        min_agreement * 100.0
    )]
    Disagrees {
        report: Box<QuantizationReport>,
        /// The required agreement, 0 to 1.
        min_agreement: f64,
    },
}

/// The stages of a quantization, for reporting progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantizationStage {
    /// The float network runs on the photos.
    Calibrating,
    /// The quantization noise of single layers is measured.
    Judging,
    /// The answers of the two networks are compared.
    Comparing,
}

/// Called with the current stage, the number of its steps that are done, and their total.
pub type QuantizationProgress<'a> = &'a (dyn Fn(QuantizationStage, usize, usize) + Sync);

/// Quantizes `model` and compares the result with it.
///
/// # Errors
/// A model that cannot be quantized or calibrated, or whose answers change too much.
pub fn quantize(
    model: &Model,
    photos: &Photos,
    config: &QuantizationConfig,
    progress: QuantizationProgress,
) -> Result<Quantized, QuantizationError> {
    let float = model.graph.folded()?;
    let layers: Vec<String> = float.layers().into_iter().map(|layer| layer.name).collect();
    // Check before the long work begins.
    if let Some(unknown) = config.keep_float.iter().find(|name| !layers.contains(name)) {
        return Err(QuantizationError::UnknownLayer {
            layer: unknown.clone(),
            layers,
        });
    }

    let calibrating = |done| {
        progress(
            QuantizationStage::Calibrating,
            done,
            photos.calibration.len(),
        );
    };
    let calibration = Calibration::run(&float, &photos.calibration, config.threads, &calibrating)?;
    let mut parameters = Quantization {
        ranges: calibration.ranges(config.range),
        means: calibration.means(),
        keep_float: config.keep_float.iter().cloned().collect(),
    };

    let mut noises = Vec::new();
    if config.judge_layers || config.auto_keep > 0 {
        noises = layer_noises(&float, &layers, &parameters, photos, config, progress)?;
    }
    let worst = noises.drain(..config.auto_keep.min(noises.len()));
    parameters.keep_float.extend(worst.map(|noise| noise.layer));
    noises.truncate(WORST_LAYERS);

    let (quantized, bias_correction) = choose_bias_correction(&float, &parameters, photos, config)?;
    let onnx = quantized.to_file(&manifest(
        model,
        config,
        photos,
        bias_correction,
        &parameters,
    ))?;

    // Compare the file as it will be loaded, not the graph that it was written from.
    let total = 2 * photos.check.len();
    let comparing = |done| progress(QuantizationStage::Comparing, done, total);
    let expected = report::logits(&float, &photos.check, config.threads, &comparing)?;
    let loaded = Model::from_bytes(onnx.clone().into(), &Default::default())?;
    let actual = report::logits(&loaded.graph, &photos.check, config.threads, &|done| {
        comparing(photos.check.len() + done);
    })?;

    let mut kept_float: Vec<String> = parameters.keep_float.into_iter().collect();
    kept_float.sort();
    let report = QuantizationReport {
        range: config.range,
        bias_correction,
        calibration_photos: photos.calibration.len(),
        layers: layers.len() - kept_float.len(),
        kept_float,
        worst_layers: noises,
        logits_snr_db: report::snr_db(&actual, &expected),
        comparison: Comparison::new(&photos.check, model.activation, &actual, &expected),
    };
    if report.comparison.agreement_but_ties < config.min_agreement {
        return Err(QuantizationError::Disagrees {
            report: report.into(),
            min_agreement: config.min_agreement,
        });
    }
    Ok(Quantized { onnx, report })
}

/// The noise of each layer that is to be quantized, the worst first.
///
/// Each layer is quantized alone, so that its noise is not hidden by that of the layers before it.
fn layer_noises(
    float: &ServingGraph,
    layers: &[String],
    parameters: &Quantization,
    photos: &Photos,
    config: &QuantizationConfig,
    progress: QuantizationProgress,
) -> Result<Vec<LayerNoise>, QuantizationError> {
    let sample = &photos.calibration[..photos.calibration.len().min(LAYER_NOISE_PHOTOS)];
    let reference = report::logits(float, sample, config.threads, &|_| {})?;

    let mut noises = Vec::new();
    let judged = layers
        .iter()
        .filter(|layer| !parameters.keep_float.contains(*layer));
    for (done, layer) in judged.enumerate() {
        let others: HashSet<String> = layers
            .iter()
            .filter(|other| *other != layer)
            .cloned()
            .collect();
        let alone = float.quantized(&Quantization {
            keep_float: others,
            ..parameters.clone()
        })?;
        let logits = report::logits(&alone, sample, config.threads, &|_| {})?;
        noises.push(LayerNoise {
            layer: layer.clone(),
            snr_db: report::snr_db(&logits, &reference),
        });
        progress(QuantizationStage::Judging, done + 1, layers.len());
    }
    noises.sort_by(|a, b| a.snr_db.total_cmp(&b.snr_db));
    Ok(noises)
}

/// The quantized network with or without bias correction, whichever is closer to the float network,
/// and whether its biases are corrected.
fn choose_bias_correction(
    float: &ServingGraph,
    parameters: &Quantization,
    photos: &Photos,
    config: &QuantizationConfig,
) -> Result<(ServingGraph, bool), QuantizationError> {
    let sample = &photos.calibration[..photos.calibration.len().min(BIAS_CORRECTION_PHOTOS)];
    let reference = report::logits(float, sample, config.threads, &|_| {})?;
    let snr_db = |graph: &ServingGraph| -> Result<f64, EngineError> {
        let logits = report::logits(graph, sample, config.threads, &|_| {})?;
        Ok(report::snr_db(&logits, &reference))
    };

    let corrected = float.quantized(parameters)?;
    let plain = float.quantized(&Quantization {
        means: Default::default(),
        ..parameters.clone()
    })?;
    let corrected_snr_db = snr_db(&corrected)?;
    let plain_snr_db = snr_db(&plain)?;
    tracing::debug!(
        "logits with corrected biases {corrected_snr_db:.1} dB, without {plain_snr_db:.1} dB"
    );

    if corrected_snr_db > plain_snr_db {
        Ok((corrected, true))
    } else {
        Ok((plain, false))
    }
}

/// The manifest of the quantized model: every setting to serve it with, and how it was made.
fn manifest(
    model: &Model,
    config: &QuantizationConfig,
    photos: &Photos,
    bias_correction: bool,
    parameters: &Quantization,
) -> Manifest {
    // The quantized file takes pixels and normalizes in the graph.
    let mut manifest = model.serving_manifest();

    let mut kept: Vec<&String> = parameters.keep_float.iter().collect();
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
    use super::photos::Photo;
    use super::*;
    use crate::{
        image::Fit,
        model::{ChannelOrder, Overrides, Preset, testing},
        testing::CapturedLog,
    };

    /// A model whose logits are these weights times the mean colours of an image.
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
            ignored: 0,
            skipped: Vec::new(),
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
    fn a_quantized_model_is_fed_as_the_float_one() {
        let mut onnx = testing::tiny();
        testing::graph(&mut onnx).initializer[1].raw_data = Some(vec![0; 16].into());
        let overrides = Overrides {
            labels: Some(["a", "b", "c", "d"].map(str::to_owned).to_vec()),
            channels: Some(ChannelOrder::Bgr),
            preset: Some(Preset::KerasTf),
            fit: Some(Fit::Letterbox([1, 2, 3])),
            ..Overrides::default()
        };
        let model = Model::from_bytes(testing::bytes(&onnx), &overrides).unwrap();
        let quantized = quantize(&model, &photos(&model), &config(), &|_, _, _| {}).unwrap();
        assert_eq!(quantized.report.comparison.agreement_but_ties, 1.0);
        let loaded = Model::from_bytes(quantized.onnx.into(), &Overrides::default()).unwrap();
        assert_eq!(loaded.geometry, model.geometry);
        // The file takes RGB, reverses it and normalizes in its graph.
        assert_eq!(loaded.graph.channels, ChannelOrder::Rgb);
        assert_eq!(
            (loaded.manifest.channels, loaded.manifest.scale),
            (None, None)
        );
    }

    #[test]
    fn a_good_result_is_a_model_with_the_same_answers() {
        let model = model([
            1.0, 0.5, -0.25, 0.0, 2.0, 1.0, -1.0, 0.125, 0.5, 0.75, -2.0, 4.0,
        ]);
        let seen = std::sync::Mutex::new(HashSet::new());
        let stages = |stage: QuantizationStage, _: usize, _: usize| {
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
        // The small weights, which distinguish the first two classes, are rounded to 0.
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
    fn a_cached_result_is_used_until_model_photos_or_settings_change() {
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
            );
        });
        let cache =
            crate::cache::ArtifactCache::open(&folder.path().join("cache"), 1 << 30).unwrap();
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
        let mut startup = StartupQuantization {
            photos: images.clone(),
            preprocess: Default::default(),
            config: config(),
            cache: Ok(cache.clone()),
        };
        let first = [
            1.0, 0.5, -0.25, 0.0, 2.0, 1.0, -1.0, 0.125, 0.5, 0.75, -2.0, 4.0,
        ];
        let apply = |startup: &StartupQuantization, weights| startup.apply(model(weights)).unwrap();
        let quantized = apply(&startup, first);
        assert!(quantized.graph.quantized);
        let version = quantized.version.clone();
        assert_eq!(
            startup.apply(quantized).unwrap().version,
            version,
            "a quantized model stays as it is"
        );
        assert_eq!((apply(&startup, first).version, kept()), (version, 1));
        let mut second = first;
        second[11] = 3.0;
        apply(&startup, second);
        assert_eq!(kept(), 2);
        write(3, [9, 9, 9]);
        apply(&startup, first);
        assert_eq!(kept(), 3);
        startup.config.range = Estimator::Mse;
        apply(&startup, first);
        assert_eq!(kept(), 4);
    }

    /// What `work` logs.
    fn log_of(work: impl FnOnce()) -> String {
        let subscriber = |log: CapturedLog| {
            tracing_subscriber::fmt()
                .with_ansi(false)
                .with_writer(move || log.clone())
                .finish()
        };
        crate::testing::log_of(subscriber, work)
    }

    #[test]
    fn the_log_says_once_and_truly_whether_the_result_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        for index in 0..12_u8 {
            image::RgbImage::from_pixel(8, 6, image::Rgb([index * 20, 255 - index * 20, 7]))
                .save(folder.path().join(format!("{index}.png")))
                .unwrap();
        }
        let cache = |name: &str| {
            crate::cache::ArtifactCache::open(&folder.path().join(name), 1 << 30).unwrap()
        };
        // A folder that is gone can't be written either, even by root.
        let gone = cache("gone");
        std::fs::remove_dir(gone.folder()).unwrap();

        for (cache, kept) in [
            (Ok(cache("cache")), true),
            (Err("there is no home folder".to_owned()), false),
            (Ok(gone), false),
        ] {
            let startup = StartupQuantization {
                photos: folder.path().to_owned(),
                preprocess: Default::default(),
                config: config(),
                cache,
            };
            let weights = [
                1.0, 0.5, -0.25, 0.0, 2.0, 1.0, -1.0, 0.125, 0.5, 0.75, -2.0, 4.0,
            ];
            let log = log_of(|| {
                startup.apply(model(weights)).unwrap();
            });
            let counts = ["will be kept in", "can't be kept"].map(|said| log.matches(said).count());
            assert_eq!(counts, if kept { [1, 0] } else { [0, 1] }, "{log}");
            assert!(!log.contains("cannot write to the cache"), "{log}");

            let again = log_of(|| {
                startup.apply(model(weights)).unwrap();
            });
            assert_eq!(again.contains("using the quantized model"), kept, "{again}");
        }
    }
}
