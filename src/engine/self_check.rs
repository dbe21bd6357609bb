//! Compares an engine's answers with those of another one in fp32, before it may serve.

use bytes::Bytes;

use super::{
    Engine, EngineConfig, EngineError, EngineInfo, EngineKind, Lanes, Precision,
    reference::{Reference, infer, infer_both, reference, renewed},
    side_by_side::side_by_side,
    warm_up::warm_up,
};
use crate::{
    answer::{self, Activation},
    image::{PreprocessConfig, Preprocessor, Source},
    model::Model,
};

/// Largest accepted difference of a probability from the reference's.
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

/// What becomes of an engine that answers differently from the reference in fp32.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OnDisagreement {
    /// It is refused.
    Refuse,
    /// It serves with a warning, because somebody chose it knowingly.
    Warn,
}

/// Loads an engine while the reference answers are computed, then compares all its lanes and warms
/// them up.
///
/// Where none of the `references` runs the model there is nothing to compare with, which becomes a
/// warning.
///
/// # Errors
/// Those of `load`, [`EngineError::NotFinite`], or [`EngineError::SelfCheck`] with the figures.
pub(super) fn load_checked(
    load: impl FnOnce() -> Result<Lanes, EngineError> + Send,
    config: &EngineConfig,
    references: &[EngineKind],
    model: &Model,
    on_disagreement: OnDisagreement,
) -> Result<Lanes, EngineError> {
    let crops = crops(model);
    let (reference, lanes) = std::thread::scope(|scope| {
        let reference = scope.spawn(|| reference(config, references, model, &crops));
        let lanes = load();
        let reference = reference
            .join()
            .expect("an engine reports errors instead of panicking");
        (reference, lanes)
    });

    let mut lanes = lanes?;
    let mut compare_with = |reference: Reference| {
        let compared = compare(&mut lanes, model, &crops, &reference);
        (reference, compared)
    };
    let mut compared = reference.map(&mut compare_with);
    // A cached reference must not reject an engine: it may be outdated, so it is computed anew.
    if let Ok((Reference { is_kept: true, .. }, Err(_))) = compared {
        compared = renewed(config, references, model, &crops).map(&mut compare_with);
    }

    let warning = match compared {
        Ok((reference, Ok(wrong_embeddings))) => {
            if let Some(reason) = wrong_embeddings {
                drop_embeddings(&mut lanes, model, &reference, &reason);
            }
            let has_run = lanes.info.sizes_to_check();
            warm_up(&mut lanes, model, &has_run)?;
            return Ok(lanes);
        }
        Ok((reference, Err(error))) => {
            if lanes.info.precision == Precision::Fp32 {
                check_finite(&mut lanes, model)?;
            }
            disagreement(error, reference.kind, on_disagreement)?
        }
        Err(error) => {
            check_finite(&mut lanes, model)?;
            format!("not compared with another engine: {error}")
        }
    };
    tracing::warn!(model = model.name, "{warning}");
    lanes.info.warnings.push(warning);
    warm_up(&mut lanes, model, &[])?;
    Ok(lanes)
}

/// The warning about an engine that disagrees with the reference in fp32, where that is no error.
fn disagreement(
    error: EngineError,
    reference: EngineKind,
    on_disagreement: OnDisagreement,
) -> Result<String, EngineError> {
    match error {
        EngineError::SelfCheck {
            kind,
            precision: Precision::Fp32,
            reason,
        } if on_disagreement == OnDisagreement::Warn => Ok(format!(
            "the {kind} and the {reference} engine disagree in fp32: {reason}"
        )),
        error => Err(error),
    }
}

/// Checks that the first lane's logits for the photos are finite numbers.
///
/// # Errors
/// [`EngineError::NotFinite`] if they are not.
pub(super) fn check_finite(lanes: &mut Lanes, model: &Model) -> Result<(), EngineError> {
    let kind = lanes.info.kind;
    let batch = if lanes.info.fixed_batch {
        lanes.info.max_batch
    } else {
        1
    };
    for crop in &crops(model) {
        let logits = infer(&mut *lanes.narrow[0], model, &vec![crop; batch])?;
        if logits.iter().flatten().any(|logit| !logit.is_finite()) {
            return Err(EngineError::NotFinite { kind });
        }
    }
    Ok(())
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

/// Gives no embeddings because they differ from the reference's, with a warning that stays.
fn drop_embeddings(lanes: &mut Lanes, model: &Model, reference: &Reference, reason: &str) {
    let warning = format!(
        "no embeddings are given: those of the {} engine differ from those of the {} engine: {reason}",
        lanes.info.kind, reference.kind
    );
    tracing::warn!(model = model.name, "{warning}");
    lanes.info.warnings.push(warning);
    lanes.info.embedding = None;
}

/// Compares every lane on every photo, alone and in batches of different photos, of each size that
/// has kernels of its own. Returns why the embeddings of a lane are wrong, if they are.
fn compare(
    lanes: &mut Lanes,
    model: &Model,
    crops: &[Vec<u8>],
    reference: &Reference,
) -> Result<Option<String>, EngineError> {
    let info = lanes.info.clone();
    let comparison = Comparison {
        batches: photo_batches(&info, crops.len()),
        info,
        model,
        crops,
        reference,
    };
    let mut compared = Vec::new();
    if let Some(wide) = &mut lanes.wide {
        compared.push(comparison.compare(&mut **wide)?);
    }
    if comparison.info.offloaded {
        for lane in &mut lanes.narrow {
            compared.push(comparison.compare(&mut **lane)?);
        }
    } else {
        let side_by_side = side_by_side(&mut lanes.narrow, |lane| comparison.compare(lane))?;
        compared.extend(side_by_side);
    }

    let worst = compared.iter().map(|lane| lane.worst).fold(0.0, f32::max);
    tracing::debug!(
        "self-check: within {worst:.4} of the {} engine's answers in fp32{}",
        reference.kind,
        if reference.is_kept {
            " from an earlier start"
        } else {
            ""
        }
    );
    Ok(compared.into_iter().find_map(|lane| lane.wrong_embeddings))
}

/// What the answers of each lane are compared with.
struct Comparison<'a> {
    info: EngineInfo,
    model: &'a Model,
    crops: &'a [Vec<u8>],
    /// Indices of photos; the first batch begins with the first photo.
    batches: Vec<Vec<usize>>,
    reference: &'a Reference,
}

/// A lane whose logits agree with the reference's.
struct Compared {
    /// The largest difference.
    worst: f32,
    /// How its embeddings differ, if they do.
    wrong_embeddings: Option<String>,
}

impl Comparison<'_> {
    fn compare(&self, lane: &mut dyn Engine) -> Result<Compared, EngineError> {
        let mut compared = Compared {
            worst: 0.0,
            wrong_embeddings: None,
        };
        for (index, photos) in self.batches.iter().enumerate() {
            let batch: Vec<_> = photos.iter().map(|&photo| &self.crops[photo]).collect();
            // One run gives both.
            let answers = match (self.info.embedding, &self.reference.embedding) {
                (Some(size), Some(expected)) if index == 0 => {
                    let (answers, problem) = self.with_embedding(lane, &batch, size, expected)?;
                    compared.wrong_embeddings = problem;
                    answers
                }
                _ => infer(lane, self.model, &batch)?,
            };
            for (answer, &photo) in answers.iter().zip(photos) {
                let difference = self.difference(answer, photo)?;
                compared.worst = compared.worst.max(difference);
            }
        }
        Ok(compared)
    }

    /// The logits of a batch that begins with the first photo, and what is wrong with the embedding
    /// of that, if something is.
    fn with_embedding(
        &self,
        lane: &mut dyn Engine,
        batch: &[&Vec<u8>],
        size: usize,
        expected: &[f32],
    ) -> Result<(Vec<Vec<f32>>, Option<String>), EngineError> {
        match infer_both(lane, self.model, size, batch) {
            Ok((answers, found)) => Ok((answers, features_difference(&found, expected).err())),
            Err(error) => Ok((infer(lane, self.model, batch)?, Some(error.to_string()))),
        }
    }

    /// How far an answer for a photo is from the reference's.
    fn difference(&self, answer: &[f32], photo: usize) -> Result<f32, EngineError> {
        let expected = &self.reference.logits[photo];
        let difference = if self.model.graph.features {
            features_difference(answer, expected)
        } else {
            let tolerance = match self.info.precision {
                Precision::Int8 => INT8_TOLERANCE,
                _ => TOLERANCE,
            };
            probabilities_difference(answer, expected, self.model.activation, tolerance)
        };
        difference.map_err(|reason| EngineError::SelfCheck {
            kind: self.info.kind,
            precision: self.info.precision,
            reason: format!(
                "{reason}{}",
                both_answers(self.info.kind, self.model, answer, self.reference, photo)
            ),
        })
    }
}

/// What both engines see on a photo, for the error message; empty for features.
fn both_answers(
    kind: EngineKind,
    model: &Model,
    logits: &[f32],
    reference: &Reference,
    photo: usize,
) -> String {
    if model.graph.features {
        return String::new();
    }
    let [actual, expected] = [logits, &reference.logits[photo]].map(|logits| {
        match answer::top_k(&model.activation.probabilities(logits), 1, 0.0)[..] {
            [best, ..] => format!("class {} with {:.3}", best.class_id, best.probability),
            [] => "no class".to_owned(),
        }
    });
    format!(" ({kind}: {actual}; {}: {expected})", reference.kind)
}

/// Batches of indices of photos: one batch of the smallest size that starts with each photo, then
/// one of each other size that is checked.
fn photo_batches(info: &EngineInfo, photos: usize) -> Vec<Vec<usize>> {
    let batch = |first: usize, n: usize| -> Vec<usize> {
        (first..first + n).map(|index| index % photos).collect()
    };
    let sizes = info.sizes_to_check();
    let mut batches: Vec<_> = (0..photos).map(|first| batch(first, sizes[0])).collect();
    batches.extend(sizes[1..].iter().map(|&size| batch(0, size)));
    batches
}

/// The largest difference of the probabilities of two answers.
///
/// # Errors
/// If the answers don't agree: the figures.
fn probabilities_difference(
    logits: &[f32],
    reference: &[f32],
    activation: Activation,
    tolerance: f32,
) -> Result<f32, String> {
    if logits.iter().any(|logit| !logit.is_finite()) {
        return Err("its logits are not finite numbers".into());
    }

    let actual = activation.probabilities(logits);
    let expected = activation.probabilities(reference);
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
    use std::num::NonZeroUsize;

    use super::*;
    use crate::{
        engine::{Results, embedded, onnxruntime, reference::references},
        model::{
            Overrides,
            onnx::ModelProto,
            testing::{CLASSES, bytes, graph, node, tiny},
        },
        testing::skipped,
    };

    /// Gives the same logits for every image.
    struct Constant([f32; CLASSES]);

    impl Engine for Constant {
        fn infer(&mut self, _: &[u8], _: usize, logits: &mut [f32]) -> Result<(), EngineError> {
            for row in logits.chunks_mut(CLASSES) {
                row.copy_from_slice(&self.0);
            }
            Ok(())
        }
    }

    fn lanes(logits: [f32; CLASSES]) -> Lanes {
        Lanes {
            info: EngineInfo {
                kind: EngineKind::OpenVino,
                version: "1".into(),
                precision: Precision::Fp32,
                device: "test".into(),
                max_batch: 1,
                fixed_batch: false,
                batch_sizes: Vec::new(),
                offloaded: false,
                embedding: None,
                warnings: Vec::new(),
            },
            wide: None,
            narrow: vec![Box::new(Constant(logits))],
            plans: Vec::new(),
        }
    }

    fn checked(
        load: impl FnOnce() -> Result<Lanes, EngineError> + Send,
        model: &Model,
        on_disagreement: OnDisagreement,
    ) -> Result<Lanes, EngineError> {
        let config = EngineConfig::new(NonZeroUsize::MIN);
        load_checked(
            load,
            &config,
            &[EngineKind::Embedded],
            model,
            on_disagreement,
        )
    }

    /// A model that the embedded engine refuses.
    fn beyond_the_embedded_engine() -> Model {
        let mut proto = tiny();
        let graph = graph(&mut proto);
        graph.node[2].output = vec!["gemm".into()];
        graph.node.push(node("Sign", &["gemm"], "scores"));
        model(&proto)
    }

    fn model(proto: &ModelProto) -> Model {
        let labels = Some((0..CLASSES).map(|class| class.to_string()).collect());
        let overrides = Overrides {
            labels,
            ..Default::default()
        };
        Model::from_bytes(bytes(proto), &overrides).unwrap()
    }

    #[test]
    fn engines_that_disagree_in_fp32_are_refused_with_both_figures() {
        let load = || Ok(lanes([0.0, 0.0, 9.0, 0.0]));
        let error = checked(load, &model(&tiny()), OnDisagreement::Refuse)
            .err()
            .unwrap();
        let EngineError::SelfCheck {
            precision, reason, ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(precision, Precision::Fp32);
        assert!(reason.contains("openvino: class 2 with"), "{reason}");
        assert!(reason.contains("embedded: class "), "{reason}");
    }

    #[test]
    fn an_engine_chosen_by_hand_serves_with_a_warning_that_stays() {
        let load = || Ok(lanes([0.0, 0.0, 9.0, 0.0]));
        let lanes = checked(load, &model(&tiny()), OnDisagreement::Warn).unwrap();
        let [warning] = &lanes.info.warnings[..] else {
            panic!("{:?}", lanes.info.warnings);
        };
        assert!(
            warning.contains("disagree") && warning.contains("class 2"),
            "{warning}"
        );
    }

    /// An engine that is right but for its embeddings.
    struct WrongEmbeddings(Box<dyn Engine>);

    impl Engine for WrongEmbeddings {
        fn infer(
            &mut self,
            images: &[u8],
            n: usize,
            logits: &mut [f32],
        ) -> Result<(), EngineError> {
            self.0.infer(images, n, logits)
        }

        fn infer_with_embeddings(
            &mut self,
            images: &[u8],
            n: usize,
            results: Results<'_>,
        ) -> Result<(), EngineError> {
            results.embeddings.reverse();
            self.0.infer(images, n, results.logits)
        }
    }

    #[test]
    fn embeddings_that_differ_are_not_given_and_a_warning_stays() {
        let model = model(&tiny());
        let config = EngineConfig::new(NonZeroUsize::MIN);
        let right = || embedded::load(&config, &model);
        let kept = checked(right, &model, OnDisagreement::Refuse).unwrap();
        assert_eq!(kept.info.embedding, Some(3));
        assert!(kept.info.warnings.is_empty());

        let wrong = || {
            let mut lanes = right()?;
            let wrap = |engine| -> Box<dyn Engine> { Box::new(WrongEmbeddings(engine)) };
            lanes.narrow = lanes.narrow.into_iter().map(wrap).collect();
            Ok(lanes)
        };
        let without = checked(wrong, &model, OnDisagreement::Refuse).unwrap();
        assert_eq!(without.info.embedding, None);
        let warning = &without.info.warnings[0];
        assert!(warning.contains("no embeddings are given"), "{warning}");
    }

    #[test]
    fn a_model_without_a_reference_serves_with_a_warning_that_stays() {
        let load = || Ok(lanes([0.0, 0.0, 9.0, 0.0]));
        let lanes = checked(load, &beyond_the_embedded_engine(), OnDisagreement::Refuse).unwrap();
        let warning = &lanes.info.warnings[0];
        assert!(
            warning.contains("not compared") && warning.contains("Sign"),
            "{warning}"
        );
    }

    #[test]
    fn onnx_runtime_is_the_reference_where_the_embedded_engine_can_not_be() {
        let config = EngineConfig::new(NonZeroUsize::MIN);
        if !onnxruntime::is_installed(&config) {
            skipped("there is no ONNX Runtime; `make onnxruntime` fetches it");
            return;
        }
        let load = || Ok(lanes([0.0, 0.0, 9.0, 0.0]));
        let error = load_checked(
            load,
            &config,
            &references(&config),
            &beyond_the_embedded_engine(),
            OnDisagreement::Refuse,
        );
        let error = error.err().unwrap().to_string();
        assert!(error.contains("onnxruntime: class"), "{error}");
    }

    #[test]
    fn logits_that_are_not_finite_never_serve() {
        let load = || Ok(lanes([0.0, f32::NAN, 0.0, 0.0]));
        let refused = checked(load, &model(&tiny()), OnDisagreement::Warn);
        assert!(matches!(refused, Err(EngineError::NotFinite { .. })));
        let load = || Ok(lanes([0.0, f32::INFINITY, 0.0, 0.0]));
        let refused = checked(load, &model(&tiny()), OnDisagreement::Refuse);
        assert!(matches!(refused, Err(EngineError::NotFinite { .. })));

        let mut damaged = tiny();
        let weights = f32::NAN.to_le_bytes().repeat(3 * CLASSES);
        graph(&mut damaged).initializer[0].raw_data = Some(weights.into());
        let config = EngineConfig {
            kind: Some(EngineKind::Embedded),
            ..EngineConfig::new(NonZeroUsize::MIN)
        };
        let error = crate::engine::start(&config, &model(&damaged))
            .err()
            .unwrap();
        assert!(error.to_string().contains("not finite"), "{error}");
    }

    #[test]
    fn every_size_that_is_compiled_is_checked() {
        let sizes = |fixed_batch, max_batch, batch_sizes: &[usize]| {
            let info = EngineInfo {
                fixed_batch,
                max_batch,
                batch_sizes: batch_sizes.to_vec(),
                ..lanes([0.0; 4]).info
            };
            let batches = photo_batches(&info, 3);
            let lens: Vec<usize> = batches.iter().map(Vec::len).collect();
            (lens, info.sizes_to_warm_up())
        };
        assert_eq!(
            sizes(false, 8, &[1, 2, 4, 8]),
            (vec![1, 1, 1, 2, 4, 8], vec![1, 2, 4, 8])
        );
        assert_eq!(sizes(false, 3, &[]), (vec![1, 1, 1, 3], vec![1, 2, 3]));
        assert_eq!(sizes(false, 1, &[]), (vec![1, 1, 1], vec![1]));
        assert_eq!(sizes(true, 4, &[4]), (vec![4, 4, 4], vec![4]));
    }

    fn difference(logits: &[f32], reference: &[f32]) -> Result<f32, String> {
        probabilities_difference(logits, reference, Activation::Softmax, TOLERANCE)
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
