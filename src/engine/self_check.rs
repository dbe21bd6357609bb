//! Before an engine may serve, its answers are compared with the embedded fp32 engine's.

use std::num::NonZeroUsize;

use bytes::Bytes;

use super::{Engine, EngineConfig, EngineError, Lanes, embedded};
use crate::{
    answer,
    image::{PreprocessConfig, Preprocessor, Source},
    model::Model,
};

/// How far a probability may be from the embedded fp32 engine's.
pub const TOLERANCE: f32 = 0.05;

/// Small photos (see `tests/data/README.md`): two that most models are sure of, and the moon, which few are; where a model
/// is torn between classes, low precision shows first.
const PHOTOS: [&[u8]; 3] = [
    include_bytes!("../../tests/data/cat_lossy.webp"),
    include_bytes!("../../tests/data/sunflower_q30.jpg"),
    include_bytes!("../../tests/data/moon_16bit.png"),
];

/// Loads an engine while the reference answers are computed, then compares.
///
/// # Errors
/// What `load` returns, or [`EngineError::SelfCheck`] with the figures.
pub(super) fn load_checked(
    load: impl FnOnce() -> Result<Lanes, EngineError> + Send,
    model: &Model,
) -> Result<Lanes, EngineError> {
    let crops = crops(model);
    let (reference, lanes) = std::thread::scope(|scope| {
        let reference = scope.spawn(|| reference(model, &crops));
        let lanes = load();
        (reference.join().expect("the embedded engine reports errors instead of panicking"), lanes)
    });
    let mut lanes = lanes?;
    match reference {
        Ok(reference) => compare(&mut lanes, model, &crops, &reference)?,
        Err(error) => tracing::warn!("{error}; going on without the self-check against it"),
    }
    Ok(lanes)
}

fn crops(model: &Model) -> Vec<Vec<u8>> {
    let mut preprocessor = Preprocessor::new(PreprocessConfig::default());
    let crop = |photo: &'static [u8]| {
        let mut crop = vec![0; model.geometry.bytes()];
        preprocessor
            .crop(&Source::Encoded(Bytes::from_static(photo)), &model.geometry, &mut crop)
            .expect("the photos compiled into the program can be decoded");
        crop
    };
    PHOTOS.map(crop).into()
}

fn reference(model: &Model, crops: &[Vec<u8>]) -> Result<Vec<Vec<f32>>, EngineError> {
    let config = EngineConfig {
        kind: None,
        precision: None,
        openvino_lib: None,
        threads: NonZeroUsize::MIN,
        max_batch: NonZeroUsize::MIN,
    };
    let mut lanes = embedded::load(&config, model)?;
    let batch = lanes.info.max_batch;
    crops.iter().map(|crop| probabilities(&mut *lanes.narrow[0], batch, model, crop)).collect()
}

/// The class probabilities of one crop, computed in a batch of `batch` (the crop repeated).
fn probabilities(engine: &mut dyn Engine, batch: usize, model: &Model, crop: &[u8]) -> Result<Vec<f32>, EngineError> {
    let classes = model.graph.classes;
    let mut logits = vec![0.0; batch * classes];
    engine.infer(&crop.repeat(batch), batch, &mut logits)?;
    logits.truncate(classes);
    Ok(answer::softmax(&logits))
}

fn compare(lanes: &mut Lanes, model: &Model, crops: &[Vec<u8>], reference: &[Vec<f32>]) -> Result<(), EngineError> {
    let info = lanes.info.clone();
    let batch = info.max_batch;
    let mut worst = 0_f32;
    for (crop, expected) in crops.iter().zip(reference) {
        for lane in lanes.wide.iter_mut().chain(&mut lanes.narrow) {
            let actual = probabilities(&mut **lane, batch, model, crop)?;
            let difference = difference(&actual, expected).map_err(|reason| EngineError::SelfCheck {
                kind: info.kind,
                precision: info.precision,
                reason,
            })?;
            worst = worst.max(difference);
        }
    }
    tracing::debug!("self-check: probabilities within {worst:.4} of the embedded fp32 engine's");
    Ok(())
}

/// The largest difference of two answers, or why they don't agree.
fn difference(actual: &[f32], expected: &[f32]) -> Result<f32, String> {
    if actual.iter().any(|p| !p.is_finite()) {
        return Err("its answers are not finite numbers".into());
    }
    let worst = actual.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    if worst > TOLERANCE {
        return Err(format!("probabilities are off by up to {worst:.3} (allowed: {TOLERANCE})"));
    }
    // Where the first two are this close, rounding alone may swap them.
    let [top_actual, top_expected] = [actual, expected].map(|p| answer::top_k(p, 2, 0.0));
    let close = top_expected.get(1).is_some_and(|second| top_expected[0].probability - second.probability < TOLERANCE);
    if top_actual[0].class_id != top_expected[0].class_id && !close {
        return Err(format!(
            "the most probable class is {} instead of {}",
            top_actual[0].class_id, top_expected[0].class_id
        ));
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn small_differences_pass() {
        let worst = difference(&[0.71, 0.29], &[0.70, 0.30]).unwrap();
        assert!((worst - 0.01).abs() < 1e-6);
    }

    #[test]
    fn large_differences_are_refused_with_the_figures() {
        let reason = difference(&[0.6, 0.4], &[0.7, 0.3]).unwrap_err();
        assert!(reason.contains("0.100"), "{reason}");
    }

    #[test]
    fn another_top_1_is_refused_unless_it_was_a_tie() {
        assert!(difference(&[0.30, 0.34, 0.36], &[0.30, 0.37, 0.33]).is_ok());
        let reason = difference(&[0.445, 0.455, 0.10], &[0.48, 0.42, 0.10]).unwrap_err();
        assert!(reason.contains("class is 1 instead of 0"), "{reason}");
    }

    #[test]
    fn nan_is_refused() {
        assert!(difference(&[f32::NAN, 0.3], &[0.7, 0.3]).is_err());
    }
}
