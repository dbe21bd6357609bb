//! Measures how close the answers of a quantized network are to those of the float network.

use serde::Serialize;

use super::{calibration::on_threads, photos::Photo, ranges::Estimator};
use crate::{
    answer::Activation,
    engine::{EngineError, embedded::Probe},
    model::ServingGraph,
};

/// A class with at least this fraction of the highest probability counts as tied with the most
/// probable class.
const TIE: f32 = 0.75;

/// How a model was quantized, and how close its answers are to the float model's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizationReport {
    /// How the ranges of activations were estimated.
    pub range: Estimator,
    /// Whether biases compensate the mean error of rounding the weights. They do if that brings the
    /// logits closer.
    pub bias_correction: bool,
    /// Number of photos used for calibration.
    pub calibration_photos: usize,
    /// Number of layers with 8-bit weights.
    pub layers: usize,
    /// Names of the layers that stay float32.
    pub kept_float: Vec<String>,
    /// The layers with the most noise, the worst first.
    pub worst_layers: Vec<LayerNoise>,
    /// The signal-to-noise ratio of the logits, in decibels.
    pub logits_snr_db: f64,
    pub comparison: Comparison,
}

/// The noise that quantizing a single layer adds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerNoise {
    pub layer: String,
    /// The signal-to-noise ratio of the logits when only this layer is quantized, in decibels.
    pub snr_db: f64,
}

/// The quantized network's answers compared with the float network's, on photos that were not used
/// for calibration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Number of photos.
    pub photos: usize,
    /// Fraction of the photos with the same most probable class.
    pub agreement: f64,
    /// The same fraction if a class with nearly the highest probability in the float network counts
    /// as the most probable one. On a photo that shows none of the classes the float network has no
    /// clear favourite, and rounding decides between several.
    pub agreement_but_ties: f64,
    /// Largest change of any class's probability.
    pub max_probability_change: f32,
    /// Mean over the photos of the change of the most probable class's probability.
    pub mean_probability_change: f32,
    /// Present if folders are named after classes of the model.
    pub accuracy: Option<Accuracy>,
}

/// Fractions of the labelled photos whose class is the most probable one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// Number of photos with a label.
    pub photos: usize,
    /// Of the float32 network.
    pub fp32: f64,
    /// Of the quantized network.
    pub int8: f64,
}

/// The logits of each photo, computed by the embedded engine.
pub(super) fn logits(
    graph: &ServingGraph,
    photos: &[Photo],
    threads: usize,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Vec<Vec<f32>>, EngineError> {
    let probe = Probe::load(graph, &[])?;
    let parts = on_threads(
        photos,
        threads,
        progress,
        |answers: &mut Vec<(usize, Vec<f32>)>, index, photo, pool| {
            answers.push((index, probe.run(&photo.crop, pool)?.swap_remove(0).values));
            Ok(())
        },
    )?;
    let mut answers: Vec<_> = parts.into_iter().flatten().collect();
    answers.sort_by_key(|(index, _)| *index);
    Ok(answers.into_iter().map(|(_, logits)| logits).collect())
}

/// The signal-to-noise ratio in decibels, of logits less their mean: a common shift of all logits
/// does not change the probabilities.
pub(super) fn snr_db(logits: &[Vec<f32>], reference: &[Vec<f32>]) -> f64 {
    let mut signal = 0.0;
    let mut noise = 0.0;
    for (logits, reference) in logits.iter().zip(reference) {
        let mean = |values: &[f32]| {
            values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64
        };
        let logits_mean = mean(logits);
        let reference_mean = mean(reference);
        for (value, reference) in logits.iter().zip(reference) {
            let value = f64::from(*value) - logits_mean;
            let reference = f64::from(*reference) - reference_mean;
            signal += reference * reference;
            noise += (value - reference) * (value - reference);
        }
    }
    // Finite even without any noise, because JSON has no infinity.
    (10.0 * (signal / noise.max(signal * 1e-12)).log10()).clamp(-120.0, 120.0)
}

impl Comparison {
    pub(super) fn new(
        photos: &[Photo],
        activation: Activation,
        logits: &[Vec<f32>],
        reference: &[Vec<f32>],
    ) -> Self {
        let mut comparison = Self {
            photos: photos.len(),
            agreement: 0.0,
            agreement_but_ties: 0.0,
            max_probability_change: 0.0,
            mean_probability_change: 0.0,
            accuracy: None,
        };
        let mut labelled = Accuracy {
            photos: 0,
            fp32: 0.0,
            int8: 0.0,
        };

        let count = photos.len().max(1) as f64;
        for ((photo, logits), reference) in photos.iter().zip(logits).zip(reference) {
            let actual = activation.probabilities(logits);
            let expected = activation.probabilities(reference);
            let top = largest(&actual);
            let expected_top = largest(&expected);

            let tied = expected[top] >= TIE * expected[expected_top]
                && actual.iter().all(|value| value.is_finite());
            comparison.agreement += f64::from(u8::from(top == expected_top));
            comparison.agreement_but_ties += f64::from(u8::from(tied));

            let changes = actual
                .iter()
                .zip(&expected)
                .map(|(a, b)| if a.is_nan() { 1.0 } else { (a - b).abs() });
            comparison.max_probability_change =
                changes.fold(comparison.max_probability_change, f32::max);

            let change = actual
                .get(expected_top)
                .zip(expected.get(expected_top))
                .map_or(1.0, |(a, b)| (a - b).abs());
            comparison.mean_probability_change += change / count as f32;

            if let Some(class) = photo.class {
                labelled.photos += 1;
                labelled.fp32 += f64::from(u8::from(expected_top == class));
                labelled.int8 += f64::from(u8::from(top == class));
            }
        }

        comparison.agreement /= count;
        comparison.agreement_but_ties /= count;
        if labelled.photos > 0 {
            labelled.fp32 /= labelled.photos as f64;
            labelled.int8 /= labelled.photos as f64;
            comparison.accuracy = Some(labelled);
        }
        comparison
    }
}

/// The index of the largest value.
fn largest(values: &[f32]) -> usize {
    values
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1))
        .map_or(0, |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photos(classes: &[Option<usize>]) -> Vec<Photo> {
        classes
            .iter()
            .map(|&class| Photo {
                crop: Vec::new(),
                class,
            })
            .collect()
    }

    #[test]
    fn answers_are_compared_photo_by_photo() {
        let reference = [
            vec![2.0, 0.0, 0.0],
            vec![0.0, 3.0, 0.0],
            vec![1.0, 1.1, 0.0],
            vec![0.0, 0.0, 9.0],
        ];
        let mut logits = reference.clone();
        logits[2] = vec![1.1, 1.0, 0.0];
        let comparison = Comparison::new(
            &photos(&[Some(0), Some(1), Some(1), None]),
            Activation::Softmax,
            &logits,
            &reference,
        );
        assert_eq!(
            (comparison.agreement, comparison.agreement_but_ties),
            (0.75, 1.0)
        );
        let accuracy = comparison.accuracy.unwrap();
        assert_eq!((accuracy.photos, accuracy.fp32), (3, 1.0));
        assert!((accuracy.int8 - 2.0 / 3.0).abs() < 1e-9);
        assert!(
            (0.01..0.1).contains(&comparison.max_probability_change),
            "{}",
            comparison.max_probability_change
        );
        assert_eq!(
            Comparison::new(
                &photos(&[None]),
                Activation::Softmax,
                &reference[..1],
                &reference[..1]
            )
            .accuracy,
            None
        );
    }

    #[test]
    fn another_answer_is_excused_only_where_the_float_network_was_torn() {
        let compare = |logits: &[f32], reference: &[f32]| {
            Comparison::new(
                &photos(&[None]),
                Activation::Softmax,
                &[logits.to_vec()],
                &[reference.to_vec()],
            )
            .agreement_but_ties
        };
        assert_eq!(compare(&[0.0, 0.1, -1.0], &[0.1, 0.0, -1.0]), 1.0);
        assert_eq!(compare(&[0.0, 0.1, -1.0], &[0.4, 0.0, -1.0]), 0.0);
        assert_eq!(
            compare(&[0.0, 0.1, 0.2], &[0.1, 0.0, -1.0]),
            0.0,
            "the third class was not among the likely ones"
        );
        assert_eq!(compare(&[f32::NAN; 3], &[0.0; 3]), 0.0);
    }

    #[test]
    fn noise_is_measured_against_the_spread_of_the_logits() {
        let reference = [vec![1.0, -1.0]];
        assert!((snr_db(&[vec![1.1, -1.1]], &reference) - 20.0).abs() < 1e-4);
        assert!(
            (snr_db(&[vec![6.0, 4.0]], &reference) - 120.0).abs() < 1e-4,
            "a common shift is no noise"
        );
        assert!(snr_db(&[vec![-1.0, 1.0]], &reference) < 0.0);
    }
}
