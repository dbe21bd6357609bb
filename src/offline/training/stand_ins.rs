//! Synthetic examples of the unknown class, made from the rows of the base's last layer.
//!
//! A model that knows only its own classes calls every picture one of them, and is often sure of it:
//! its probabilities tell little about pictures of other things. But the base's last layer knows
//! other things. Each of its rows points to where the base sees one of its own classes, so that a row
//! can take the place of a picture of that class, as in Qi, Brown and Lowe, "Low-Shot Learning with
//! Imprinted Weights", CVPR 2018; and to learn from examples of other things is what Hendrycks,
//! Mazeika and Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR 2019, do with
//! pictures. The result is one more class of the same layer: nothing else changes in the model.

use super::softmax_layer::Example;
use crate::model::UNKNOWN_LABEL;

/// The most stand-ins; of bases with more classes, every second or third one is taken.
const MOST: usize = 512;

/// Adds the unknown class to the labels, if it is not one of them, and makes stand-ins for it from
/// the rows of a base's last layer, `[classes, features]`.
pub fn add_unknown_class(
    labels: &mut Vec<String>,
    rows: &[f32],
    train: &[Example],
) -> Vec<Example> {
    let known = labels.iter().position(|label| label == UNKNOWN_LABEL);
    let class = known.unwrap_or_else(|| {
        labels.push(UNKNOWN_LABEL.to_owned());
        labels.len() - 1
    });
    stand_ins(rows, train, class)
}

/// Makes stand-ins of the class `class` from the rows of a base's last layer, `[classes, features]`,
/// which get the typical length of the examples in `train`.
fn stand_ins(rows: &[f32], train: &[Example], class: usize) -> Vec<Example> {
    let Some(width) = train.first().map(|example| example.features.len()) else {
        return Vec::new();
    };
    let rows: Vec<&[f32]> = rows.chunks_exact(width).collect();
    let count = rows.len().max(1) as f32;
    // What all rows have in common tells the classes nothing.
    let mut mean = vec![0.0_f32; width];
    for row in &rows {
        for (mean, value) in mean.iter_mut().zip(*row) {
            *mean += value / count;
        }
    }
    let length = |features: &[f32]| features.iter().map(|x| x * x).sum::<f32>().sqrt();
    let typical = train
        .iter()
        .map(|example| length(&example.features))
        .sum::<f32>()
        / train.len() as f32;
    // Features after a ReLU are never negative.
    let has_negative = train
        .iter()
        .any(|example| example.features.iter().any(|x| *x < 0.0));

    let every = rows.len().div_ceil(MOST).max(1);
    rows.iter()
        .step_by(every)
        .filter_map(|row| {
            let difference = row.iter().zip(&mean).map(|(value, mean)| value - mean);
            let mut features: Vec<f32> = if has_negative {
                difference.collect()
            } else {
                difference.map(|x| x.max(0.0)).collect()
            };
            let scale = typical / length(&features);
            features.iter_mut().for_each(|x| *x *= scale);
            features.iter().all(|x| x.is_finite()).then_some(Example {
                class,
                features,
                mirrored: None,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(features: &[f32]) -> Example {
        Example {
            class: 0,
            features: features.into(),
            mirrored: None,
        }
    }

    #[test]
    fn each_row_becomes_an_example_of_the_usual_length() {
        let train = [example(&[3.0, 4.0]), example(&[0.0, 7.0])];
        // Their mean is [1, 1].
        let rows = [3.0, 1.0, 0.0, 3.0, 0.0, -1.0];
        let made = stand_ins(&rows, &train, 2);
        let features: Vec<_> = made.iter().map(|one| &one.features[..]).collect();
        // The third row is below the mean everywhere, where no feature of a picture can be.
        assert_eq!(features, [[6.0, 0.0], [0.0, 6.0]]);
        assert!(made.iter().all(|one| one.class == 2));
    }

    #[test]
    fn features_that_may_be_negative_stay_so() {
        let train = [example(&[-3.0, 4.0])];
        let made = stand_ins(&[0.0, 1.0, 0.0, -1.0], &train, 1);
        assert_eq!(made[1].features, [0.0, -5.0]);
    }

    #[test]
    fn the_class_is_added_once() {
        let train = [example(&[1.0])];
        let mut labels = vec!["cup".to_owned()];
        for _ in 0..2 {
            let made = add_unknown_class(&mut labels, &[1.0, -1.0], &train);
            assert!(made.iter().all(|one| one.class == 1));
            assert_eq!(labels, ["cup", UNKNOWN_LABEL]);
        }
    }

    #[test]
    fn there_is_a_limit() {
        let train = [example(&[1.0])];
        let rows: Vec<f32> = (0..1500).map(|i| i as f32).collect();
        assert_eq!(stand_ins(&rows, &train, 1).len(), 250);
        assert!(stand_ins(&rows, &[], 1).is_empty());
    }
}
