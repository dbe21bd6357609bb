//! Compares an engine's answers with those of the embedded fp32 engine, before it may serve.

use std::num::NonZeroUsize;

use bytes::Bytes;

use super::{Engine, EngineConfig, EngineError, EngineInfo, Lanes, Precision, embedded};
use crate::{
    answer,
    image::{PreprocessConfig, Preprocessor, Source},
    model::Model,
};

/// Largest accepted difference of a probability from the embedded fp32 engine's.
const TOLERANCE: f32 = 0.05;

/// The tolerance for a quantized model. The embedded engine computes it in fp32 and rounds where
/// the file says; engines that fuse layers round less often, so answers differ by steps of 8 bits.
const INT8_TOLERANCE: f32 = 0.1;

/// Largest accepted relative error of the logits or features (see [`relative_error`]).
const LOGITS_TOLERANCE: f32 = 0.2;

/// Small photos (see `tests/data/README.md`): two that most models are sure of, and the moon, of
/// which few are. Low precision shows first where a model is torn between classes.
const PHOTOS: [&[u8]; 3] = [
    include_bytes!("../../tests/data/cat_lossy.webp"),
    include_bytes!("../../tests/data/sunflower_q30.jpg"),
    include_bytes!("../../tests/data/moon_16bit.png"),
];

/// Loads an engine while the reference answers are computed, then compares all its lanes.
///
/// # Errors
/// Those of `load`, or [`EngineError::SelfCheck`] with the figures.
pub(super) fn load_checked(
    load: impl FnOnce() -> Result<Lanes, EngineError> + Send,
    model: &Model,
) -> Result<Lanes, EngineError> {
    let crops = crops(model);
    let (reference, lanes) = std::thread::scope(|scope| {
        let reference = scope.spawn(|| reference_logits(model, &crops));
        let lanes = load();
        let reference = reference
            .join()
            .expect("the embedded engine reports errors instead of panicking");
        (reference, lanes)
    });

    let mut lanes = lanes?;
    match reference {
        Ok(reference) => compare(&mut lanes, model, &crops, &reference)?,
        Err(error) => tracing::warn!("{error}; continuing without the self-check against it"),
    }
    Ok(lanes)
}

/// The photos as the model's input.
fn crops(model: &Model) -> Vec<Vec<u8>> {
    let mut preprocessor = Preprocessor::new(PreprocessConfig::default());
    let crop = |photo: &'static [u8]| {
        let mut crop = vec![0; model.geometry.bytes()];
        preprocessor
            .crop(
                &Source::Encoded(Bytes::from_static(photo)),
                &model.geometry,
                &mut crop,
            )
            .expect("the photos compiled into the program can be decoded");
        crop
    };
    PHOTOS.map(crop).into()
}

/// The embedded engine's logits for each crop.
fn reference_logits(model: &Model, crops: &[Vec<u8>]) -> Result<Vec<Vec<f32>>, EngineError> {
    let config = EngineConfig::new(NonZeroUsize::MIN);
    let mut lanes = embedded::load(&config, model)?;
    let batch = lanes.info.max_batch;
    crops
        .iter()
        .map(|crop| {
            let mut logits = infer(&mut *lanes.narrow[0], model, &vec![crop; batch])?;
            Ok(logits.swap_remove(0))
        })
        .collect()
}

/// The logits of each of the crops, computed in one call.
fn infer(
    engine: &mut dyn Engine,
    model: &Model,
    crops: &[&Vec<u8>],
) -> Result<Vec<Vec<f32>>, EngineError> {
    let classes = model.graph.classes;
    let images: Vec<u8> = crops.iter().flat_map(|crop| crop.iter().copied()).collect();
    let mut logits = vec![0.0; crops.len() * classes];
    engine.infer(&images, crops.len(), &mut logits)?;
    Ok(logits.chunks_exact(classes).map(<[f32]>::to_vec).collect())
}

/// Compares every lane on every photo, alone and in a full batch of different photos.
fn compare(
    lanes: &mut Lanes,
    model: &Model,
    crops: &[Vec<u8>],
    reference: &[Vec<f32>],
) -> Result<(), EngineError> {
    let info = lanes.info.clone();
    let tolerance = if info.precision == Precision::Int8 {
        INT8_TOLERANCE
    } else {
        TOLERANCE
    };

    let batches = photo_batches(&info, crops.len());
    let mut worst = 0_f32;
    for lane in lanes.wide.iter_mut().chain(&mut lanes.narrow) {
        for photos in &batches {
            let batch: Vec<_> = photos.iter().map(|&photo| &crops[photo]).collect();
            let answers = infer(&mut **lane, model, &batch)?;
            for (answer, &photo) in answers.iter().zip(photos) {
                let difference = if model.graph.features {
                    features_difference(answer, &reference[photo])
                } else {
                    probabilities_difference(answer, &reference[photo], tolerance)
                };
                let difference = difference.map_err(|reason| EngineError::SelfCheck {
                    kind: info.kind,
                    precision: info.precision,
                    reason,
                })?;
                worst = worst.max(difference);
            }
        }
    }
    tracing::debug!("self-check: within {worst:.4} of the embedded fp32 engine's answers");
    Ok(())
}

/// Batches of indices of photos: one batch of the smallest size that starts with each photo, then
/// one of the largest size.
fn photo_batches(info: &EngineInfo, photos: usize) -> Vec<Vec<usize>> {
    let batch = |first: usize, n: usize| -> Vec<usize> {
        (first..first + n).map(|index| index % photos).collect()
    };
    let smallest = if info.fixed_batch { info.max_batch } else { 1 };
    let mut batches: Vec<_> = (0..photos).map(|first| batch(first, smallest)).collect();
    if info.max_batch > smallest {
        batches.push(batch(0, info.max_batch));
    }
    batches
}

/// The largest difference of the probabilities of two answers.
///
/// # Errors
/// If the answers don't agree: the figures.
fn probabilities_difference(
    logits: &[f32],
    reference: &[f32],
    tolerance: f32,
) -> Result<f32, String> {
    if logits.iter().any(|logit| !logit.is_finite()) {
        return Err("its logits are not finite numbers".into());
    }

    let actual = answer::softmax(logits);
    let expected = answer::softmax(reference);
    let worst = actual
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    if worst > tolerance {
        return Err(format!(
            "probabilities are off by up to {worst:.3} (allowed: {tolerance})"
        ));
    }

    // Where a model is sure of nothing, small probabilities agree whatever the logits are.
    let off = relative_error(logits, reference);
    if off > LOGITS_TOLERANCE {
        return Err(format!(
            "logits are off by {off:.2} of their spread (allowed: {LOGITS_TOLERANCE})"
        ));
    }

    // Rounding alone may swap the first two classes if they are this close.
    let top_actual = answer::top_k(&actual, 1, 0.0);
    let top_expected = answer::top_k(&expected, 2, 0.0);
    let is_tie = top_expected
        .get(1)
        .is_some_and(|second| top_expected[0].probability - second.probability < tolerance);
    if top_actual[0].class_id != top_expected[0].class_id && !is_tie {
        return Err(format!(
            "the most probable class is {} instead of {}",
            top_actual[0].class_id, top_expected[0].class_id
        ));
    }
    Ok(worst)
}

/// The relative error of features, of which no probabilities can be made.
///
/// # Errors
/// If the features don't agree: the figures.
fn features_difference(features: &[f32], reference: &[f32]) -> Result<f32, String> {
    if features.iter().any(|feature| !feature.is_finite()) {
        return Err("its features are not finite numbers".into());
    }
    let off = relative_error(features, reference);
    if off > LOGITS_TOLERANCE {
        return Err(format!(
            "features are off by {off:.2} of their spread (allowed: {LOGITS_TOLERANCE})"
        ));
    }
    Ok(off)
}

/// ‖a − b‖ / ‖b‖, where `a` and `b` are the logits and the reference, each less its mean: softmax
/// does not see what all logits have in common.
fn relative_error(logits: &[f32], reference: &[f32]) -> f32 {
    let centred = |logits: &[f32]| -> Vec<f32> {
        let mean = logits.iter().sum::<f32>() / logits.len() as f32;
        logits.iter().map(|logit| logit - mean).collect()
    };
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();

    let a = centred(logits);
    let b = centred(reference);
    let spread = norm(&mut b.iter().copied());
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / spread.max(f32::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::{TOLERANCE, features_difference, probabilities_difference};

    fn difference(logits: &[f32], reference: &[f32]) -> Result<f32, String> {
        probabilities_difference(logits, reference, TOLERANCE)
    }

    /// Logits with these probabilities.
    fn logits(probabilities: [f32; 3]) -> [f32; 3] {
        probabilities.map(f32::ln)
    }

    #[test]
    fn small_differences_pass() {
        let worst = difference(&logits([0.71, 0.19, 0.10]), &logits([0.70, 0.20, 0.10])).unwrap();
        assert!((worst - 0.01).abs() < 1e-6);
    }

    #[test]
    fn large_differences_are_refused_with_the_figures() {
        let reason = difference(&logits([0.6, 0.3, 0.1]), &logits([0.7, 0.2, 0.1])).unwrap_err();
        assert!(reason.contains("0.100"), "{reason}");
    }

    #[test]
    fn another_top_1_is_refused_unless_it_was_a_tie() {
        assert!(difference(&logits([0.10, 0.44, 0.46]), &logits([0.10, 0.47, 0.43])).is_ok());
        let reason =
            difference(&logits([0.445, 0.455, 0.10]), &logits([0.48, 0.42, 0.10])).unwrap_err();
        assert!(reason.contains("class is 1 instead of 0"), "{reason}");
    }

    #[test]
    fn an_engine_that_answers_zeros_is_refused_however_unsure_the_model_is() {
        let reference: Vec<f32> = (0..100).map(|class| (class % 7) as f32 * 0.1).collect();
        let reason = difference(&[0.0; 100], &reference).unwrap_err();
        assert!(reason.contains("spread"), "{reason}");
    }

    #[test]
    fn features_are_compared_by_their_spread() {
        let reference = [0.0, 3.0, 30.0, 0.5];
        assert!(features_difference(&[0.01, 2.9, 30.4, 0.5], &reference).unwrap() < 0.05);
        let reason = features_difference(&[0.0, 3.0, 20.0, 0.5], &reference).unwrap_err();
        assert!(reason.contains("spread"), "{reason}");
    }

    #[test]
    fn nan_is_refused() {
        assert!(difference(&[f32::NAN, 0.3], &[0.7, 0.3]).is_err());
        assert!(features_difference(&[f32::NAN, 0.3], &[0.7, 0.3]).is_err());
    }
}
