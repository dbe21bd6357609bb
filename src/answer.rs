//! From logits to the classes of an answer: softmax or sigmoid, top-k, and smoothing over a video's
//! frames.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// How a model's logits become probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// One distribution over the classes, of which each image has exactly one.
    #[default]
    Softmax,
    /// Each class for itself: an image may have any number of them.
    Sigmoid,
}

impl Activation {
    /// The probabilities that `logits` stand for, one for each class.
    pub fn probabilities(self, logits: &[f32]) -> Vec<f32> {
        match self {
            Self::Softmax => softmax(logits),
            Self::Sigmoid => logits.iter().map(|&logit| sigmoid(logit)).collect(),
        }
    }
}

/// `1 / (1 + exp(-x))`. Large negative logits give 0, not a division of infinities.
fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// A class and its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Class {
    /// The index in the model's output.
    pub class_id: usize,
    /// From 0 to 1.
    pub probability: f32,
}

/// The label of a class in an answer: the model's own, or an empty string for the unknown class and
/// for classes without a label.
pub fn label(class_id: usize, labels: &[String], unknown_class: Option<usize>) -> &str {
    match labels.get(class_id) {
        Some(label) if unknown_class != Some(class_id) => label,
        _ => "",
    }
}

/// Turns logits into probabilities: `exp(x) / Σ exp`.
///
/// The largest logit is subtracted first, so that large logits do not overflow.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut probabilities: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();

    let sum: f32 = probabilities.iter().sum();
    for probability in &mut probabilities {
        *probability /= sum;
    }
    probabilities
}

/// Returns up to `k` classes with a probability of at least `min_probability`, the most probable
/// first. Equal probabilities are ordered by class index.
pub fn top_k(probabilities: &[f32], k: usize, min_probability: f32) -> Vec<Class> {
    top_k_of(probabilities, |_| true, k, min_probability)
}

/// Like [`top_k`], but only for classes that `accepts` returns true for. The probabilities are not
/// renormalized.
pub fn top_k_of(
    probabilities: &[f32],
    accepts: impl Fn(usize) -> bool,
    k: usize,
    min_probability: f32,
) -> Vec<Class> {
    let mut classes: Vec<Class> = probabilities
        .iter()
        .enumerate()
        .map(|(class_id, &probability)| Class {
            class_id,
            probability,
        })
        .filter(|class| class.probability >= min_probability && accepts(class.class_id))
        .collect();

    // A partial selection first: it is cheaper than to sort all classes for a small `k`.
    if k < classes.len() {
        if k > 0 {
            classes.select_nth_unstable_by(k - 1, most_probable_first);
        }
        classes.truncate(k);
    }

    classes.sort_unstable_by(most_probable_first);
    classes
}

fn most_probable_first(a: &Class, b: &Class) -> Ordering {
    b.probability
        .total_cmp(&a.probability)
        .then(a.class_id.cmp(&b.class_id))
}

/// The vector of length 1 in the same direction; a vector of zeros stays one.
pub fn normalized(vector: &[f32]) -> Vec<f32> {
    let square: f64 = vector.iter().map(|&value| f64::from(value).powi(2)).sum();
    if square == 0.0 {
        return vector.to_vec();
    }
    let scale = 1.0 / square.sqrt();
    let scaled = vector.iter().map(|&value| f64::from(value) * scale);
    scaled.map(|value| value as f32).collect()
}

/// An exponential moving average of the probabilities over the frames of a video.
///
/// The weight of a frame halves with every `half_life` seconds that pass. Frames may be unevenly
/// spaced in time.
#[derive(Debug)]
pub struct Smoothing {
    half_life: f64,
    mean: Vec<f32>,
}

impl Smoothing {
    /// `half_life` is in seconds; 0 or less turns smoothing off.
    pub fn new(half_life: f64) -> Self {
        Self {
            half_life,
            mean: Vec::new(),
        }
    }

    /// Adds the probabilities of a frame captured `elapsed` seconds after the previous one, and
    /// returns the updated mean.
    pub fn update(&mut self, probabilities: Vec<f32>, elapsed: f64) -> &[f32] {
        let is_first_frame = self.mean.len() != probabilities.len();
        if self.half_life <= 0.0 || is_first_frame {
            self.mean = probabilities;
            return &self.mean;
        }

        let keep = 0.5_f64.powf(elapsed.max(0.0) / self.half_life) as f32;
        for (mean, new) in self.mean.iter_mut().zip(probabilities) {
            *mean = *mean * keep + new * (1.0 - keep);
        }
        &self.mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_sums_to_one_even_for_huge_logits() {
        let p = softmax(&[1000.0, 1000.0, -1000.0]);
        assert_eq!(p, [0.5, 0.5, 0.0]);
        let p = softmax(&[0.0, 1.0, 2.0]);
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((p[2] - 0.665_241).abs() < 1e-5);
    }

    #[test]
    fn sigmoid_scores_each_class_for_itself() {
        let p = Activation::Sigmoid.probabilities(&[0.0, 3.0, -1000.0, 1000.0]);
        assert_eq!((p[0], p[2], p[3]), (0.5, 0.0, 1.0));
        assert!((p[1] - 0.952_574).abs() < 1e-6);
    }

    #[test]
    fn two_logits_of_which_one_is_zero_are_a_sigmoid() {
        let two = Activation::Softmax.probabilities(&[0.0, 1.5]);
        let one = Activation::Sigmoid.probabilities(&[1.5]);
        assert!((two[1] - one[0]).abs() < 1e-6);
    }

    #[test]
    fn top_k_is_sorted_limited_and_filtered() {
        let p = [0.1, 0.4, 0.1, 0.3, 0.1];
        let ids = |k, min| {
            top_k(&p, k, min)
                .iter()
                .map(|c| c.class_id)
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(3, 0.0), [1, 3, 0]);
        assert_eq!(ids(100, 0.0), [1, 3, 0, 2, 4]);
        assert_eq!(ids(100, 0.2), [1, 3]);
        assert_eq!(ids(0, 0.0), [0_usize; 0]);
    }

    #[test]
    fn classes_that_are_not_accepted_change_no_other_probability() {
        let p = [0.1, 0.4, 0.1, 0.3, 0.1];
        let found = top_k_of(&p, |class| class != 1, 2, 0.0);
        let found: Vec<_> = found
            .iter()
            .map(|class| (class.class_id, class.probability))
            .collect();
        assert_eq!(found, [(3, 0.3), (0, 0.1)]);
    }

    #[test]
    fn normalized_vectors_have_the_length_one() {
        assert_eq!(normalized(&[3.0, 0.0, -4.0]), [0.6, 0.0, -0.8]);
        assert_eq!(normalized(&[0.0, 0.0]), [0.0, 0.0]);
        let large = normalized(&[f32::MAX; 4]);
        assert_eq!(large, [0.5; 4]);
    }

    #[test]
    fn smoothing_halves_old_evidence_after_the_half_life() {
        let mut smoothing = Smoothing::new(2.0);
        assert_eq!(smoothing.update(vec![1.0, 0.0], 0.0), [1.0, 0.0]);
        assert_eq!(smoothing.update(vec![0.0, 1.0], 2.0), [0.5, 0.5]);
        assert_eq!(smoothing.update(vec![0.0, 1.0], 0.0), [0.5, 0.5]);
        let mean = smoothing.update(vec![0.0, 1.0], 4.0);
        assert!((mean[0] - 0.125).abs() < 1e-6);
    }

    #[test]
    fn without_smoothing_each_frame_is_returned_unchanged() {
        let mut smoothing = Smoothing::new(0.0);
        smoothing.update(vec![1.0, 0.0], 0.0);
        assert_eq!(smoothing.update(vec![0.0, 1.0], 0.1), [0.0, 1.0]);
    }
}
