//! From logits to the classes that a caller sees.

use std::cmp::Ordering;

/// One class and how probable it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Class {
    /// The index in the model's output.
    pub class_id: usize,
    /// 0 to 1.
    pub probability: f32,
}

/// The probabilities of the classes: `exp(x) / Σ exp`, computed so that large logits don't
/// overflow.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut probabilities: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f32 = probabilities.iter().sum();
    probabilities.iter_mut().for_each(|p| *p /= sum);
    probabilities
}

/// The `k` most probable classes of at least `min_probability`, the most probable first; ties by
/// index.
pub fn top_k(probabilities: &[f32], k: usize, min_probability: f32) -> Vec<Class> {
    let mut classes: Vec<Class> = probabilities
        .iter()
        .enumerate()
        .map(|(class_id, &probability)| Class {
            class_id,
            probability,
        })
        .filter(|class| class.probability >= min_probability)
        .collect();
    let descending = |a: &Class, b: &Class| -> Ordering {
        b.probability
            .total_cmp(&a.probability)
            .then(a.class_id.cmp(&b.class_id))
    };
    if k < classes.len() {
        if k > 0 {
            classes.select_nth_unstable_by(k - 1, descending);
        }
        classes.truncate(k);
    }
    classes.sort_unstable_by(descending);
    classes
}

/// An exponential mean of the probabilities over the frames of a video.
///
/// After `half_life` seconds without new evidence a probability counts half; frames may be unevenly
/// spaced.
#[derive(Debug)]
pub struct Smoothing {
    half_life: f64,
    mean: Vec<f32>,
}

impl Smoothing {
    /// `half_life` in seconds; 0 or less = no smoothing.
    pub fn new(half_life: f64) -> Self {
        Self {
            half_life,
            mean: Vec::new(),
        }
    }

    /// Takes in the probabilities of a frame taken `elapsed` seconds after the one before, and
    /// returns the mean.
    pub fn update(&mut self, probabilities: Vec<f32>, elapsed: f64) -> &[f32] {
        if self.half_life <= 0.0 || self.mean.len() != probabilities.len() {
            self.mean = probabilities;
        } else {
            let keep = 0.5_f64.powf(elapsed.max(0.0) / self.half_life) as f32;
            for (mean, new) in self.mean.iter_mut().zip(probabilities) {
                *mean = *mean * keep + new * (1.0 - keep);
            }
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
    fn smoothing_halves_old_evidence_after_the_half_life() {
        let mut smoothing = Smoothing::new(2.0);
        assert_eq!(smoothing.update(vec![1.0, 0.0], 0.0), [1.0, 0.0]);
        assert_eq!(smoothing.update(vec![0.0, 1.0], 2.0), [0.5, 0.5]);
        assert_eq!(smoothing.update(vec![0.0, 1.0], 0.0), [0.5, 0.5]);
        let mean = smoothing.update(vec![0.0, 1.0], 4.0);
        assert!((mean[0] - 0.125).abs() < 1e-6);
    }

    #[test]
    fn no_smoothing_returns_each_frame_as_it_is() {
        let mut smoothing = Smoothing::new(0.0);
        smoothing.update(vec![1.0, 0.0], 0.0);
        assert_eq!(smoothing.update(vec![0.0, 1.0], 0.1), [0.0, 1.0]);
    }
}
