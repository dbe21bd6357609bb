//! Hyperparameter search: the learning rate, the weight decay and the number of epochs, by a grid
//! search with stratified k-fold cross-validation.
//!
//! Each fold in turn is left out and predicted by a layer trained on the others; the setting with
//! the lowest mean loss wins. See Kohavi, "A Study of Cross-Validation and Bootstrap for Accuracy
//! Estimation and Model Selection", IJCAI 1995. Only photos to train with are used, so the accuracy
//! on the photos kept for validation stays unbiased.

use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{
    random::{Purpose, Random},
    softmax_layer::{Example, Score, SoftmaxLayer, TrainingSettings, logits, score},
    split,
};

/// The learning rates to try, for features whose squares sum to 1. For larger features they are
/// divided by that sum.
const LEARNING_RATES: [f32; 3] = [0.3, 1.0, 3.0];

/// The weight decays to try, for features whose squares sum to 1. For larger features they are
/// multiplied by that sum.
const WEIGHT_DECAYS: [f32; 3] = [0.0, 5e-5, 5e-4];

/// The number of folds.
const FOLDS: usize = 4;

/// Predicting this many photos is enough: with more photos, fewer folds are left out in turn.
const PHOTOS_TO_PREDICT: usize = 10_000;

/// The fewest and the most epochs to train.
const EPOCHS: std::ops::RangeInclusive<usize> = 8..=30;

/// How many photos all epochs together should see: with more photos, fewer epochs are needed.
const PHOTOS_TO_SEE: usize = 30_000;

/// The result of a search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SearchResult {
    /// The best settings.
    pub settings: TrainingSettings,
    /// Their mean score on the folds that were left out.
    pub score: Score,
    /// How many pairs of a learning rate and a weight decay were compared.
    pub tried: usize,
}

/// What is learned from.
#[derive(Clone, Copy, Debug)]
pub struct Material<'a> {
    /// One example for each photo.
    pub train: &'a [&'a Example],
    /// Examples that are no photos: they are learned from, but not left out and predicted.
    pub stand_ins: &'a [Example],
    /// How many classes there are.
    pub classes: usize,
}

/// Searches on `threads` threads; the settings that are not searched for are those of `settings`.
/// `progress` is called on these threads with the share of the work done, 0 to 1. Returns `None` if
/// no class has two photos, so that none can be left out.
pub fn search(
    material: Material,
    settings: TrainingSettings,
    threads: NonZeroUsize,
    progress: impl Fn(f32) + Sync,
) -> Option<SearchResult> {
    let Material { train, classes, .. } = material;
    let Folds { assigned, folds } = Folds::new(train, classes, settings.seed)?;
    let used = (PHOTOS_TO_PREDICT / train.len()).clamp(1, folds);
    let trials = candidates(train, settings);

    // A task is one trial with one fold left out.
    let tasks = trials.len() * used;
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let work = || {
        let mut results = Vec::new();
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return results;
            }
            let (trial, fold) = (task / used, task % used);
            let (left_out, mut others) = divided(train, &assigned, fold);
            others.extend(material.stand_ins);
            let scores = learning_curve(&others, &left_out, classes, trials[trial]);
            results.push((task, scores));
            progress((done.fetch_add(1, Ordering::Relaxed) + 1) as f32 / tasks as f32);
        }
    };

    let mut curves: Vec<Vec<Score>> = vec![Vec::new(); tasks];
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.get().min(tasks))
            .map(|_| scope.spawn(work))
            .collect();
        for worker in workers {
            let results = worker.join().expect("arithmetic does not panic");
            for (task, curve) in results {
                curves[task] = curve;
            }
        }
    });

    let mut best: Option<SearchResult> = None;
    for (settings, folds) in trials.iter().zip(curves.chunks(used)) {
        for epoch in 0..settings.epochs {
            let mean = |of: fn(&Score) -> f32| {
                folds.iter().map(|fold| of(&fold[epoch])).sum::<f32>() / used as f32
            };
            let score = Score {
                accuracy: mean(|score| score.accuracy),
                loss: mean(|score| score.loss),
            };
            // The loss distinguishes settings with equal accuracy.
            if score.loss.is_finite() && best.is_none_or(|best| score.loss < best.score.loss) {
                let settings = TrainingSettings {
                    epochs: epoch + 1,
                    ..*settings
                };
                best = Some(SearchResult {
                    settings,
                    score,
                    tried: trials.len(),
                });
            }
        }
    }
    best
}

/// The logits of each photo, by a layer that was trained with these settings on the folds of the
/// search that do not hold the photo. Empty if none can be left out.
pub fn left_out(material: Material, settings: TrainingSettings) -> Vec<Vec<f32>> {
    let Material { train, classes, .. } = material;
    let Some(Folds { assigned, folds }) = Folds::new(train, classes, settings.seed) else {
        return Vec::new();
    };
    let mut predicted = vec![Vec::new(); train.len()];
    for fold in 0..folds {
        let (_, mut others) = divided(train, &assigned, fold);
        others.extend(material.stand_ins);
        let mut layer = SoftmaxLayer::new(&others, classes, settings);
        for _ in 0..settings.epochs {
            layer.epoch(&others);
        }
        for photo in (0..train.len()).filter(|&photo| assigned[photo] == fold) {
            predicted[photo] = logits(layer.layer(), &train[photo].features);
        }
    }
    predicted
}

/// The photos of a fold, and the others.
fn divided<'a>(
    train: &[&'a Example],
    assigned: &[usize],
    fold: usize,
) -> (Vec<&'a Example>, Vec<&'a Example>) {
    let (fold, others): (Vec<_>, Vec<_>) = train
        .iter()
        .zip(assigned)
        .partition(|(_, assigned)| **assigned == fold);
    let examples =
        |part: Vec<(&&'a Example, &usize)>| part.into_iter().map(|(one, _)| *one).collect();
    (examples(fold), examples(others))
}

/// The folds of the photos.
struct Folds {
    /// That of each photo, `0..folds`.
    assigned: Vec<usize>,
    folds: usize,
}

impl Folds {
    /// `None` if no class has two photos.
    fn new(train: &[&Example], classes: usize, seed: u64) -> Option<Self> {
        let photo_classes: Vec<usize> = train.iter().map(|example| example.class).collect();
        let largest = (0..classes)
            .map(|class| photo_classes.iter().filter(|of| **of == class).count())
            .max()
            .unwrap_or(0);
        if largest < 2 {
            return None;
        }

        let folds = largest.min(FOLDS);
        let mut random = Random::new(seed, Purpose::Folds);
        Some(Self {
            assigned: split::stratified(&photo_classes, folds, &mut random),
            folds,
        })
    }
}

/// The settings to compare: all pairs of a learning rate and a weight decay, scaled to the
/// features.
fn candidates(train: &[&Example], settings: TrainingSettings) -> Vec<TrainingSettings> {
    let squared_length = |example: &&Example| {
        example
            .features
            .iter()
            .map(|x| f64::from(x * x))
            .sum::<f64>()
    };
    let size =
        (train.iter().map(squared_length).sum::<f64>() / train.len() as f64).max(1e-12) as f32;
    let epochs = (PHOTOS_TO_SEE / train.len()).clamp(*EPOCHS.start(), *EPOCHS.end());
    let pairs = LEARNING_RATES.iter().flat_map(|rate| {
        WEIGHT_DECAYS
            .iter()
            .map(move |decay| (rate / size, decay * size))
    });
    pairs
        .map(|(rate, decay)| TrainingSettings {
            learning_rate: two_digits(rate),
            weight_decay: two_digits(decay),
            epochs,
            ..settings
        })
        .collect()
}

/// Rounds to two significant digits, so that the printed settings, given as flags, repeat the run
/// exactly.
fn two_digits(number: f32) -> f32 {
    format!("{number:.1e}").parse().unwrap_or(number)
}

/// Trains a layer on `train` and returns its score on the photos left out, after each epoch.
fn learning_curve(
    train: &[&Example],
    left_out: &[&Example],
    classes: usize,
    settings: TrainingSettings,
) -> Vec<Score> {
    let mut layer = SoftmaxLayer::new(train, classes, settings);
    (0..settings.epochs)
        .map(|_| {
            layer.epoch(train);
            score(layer.layer(), left_out)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two noisy classes; `scale` makes the features larger or smaller.
    fn examples(scale: f32) -> Vec<Example> {
        let mut random = Random::new(1, Purpose::Order);
        let example = |i: usize| {
            let features = (0..6)
                .map(|j| scale * (random.symmetric() + if j == i % 2 { 0.5 } else { 0.0 }))
                .collect();
            Example {
                class: i % 2,
                features,
                mirrored: None,
            }
        };
        (0..60).map(example).collect()
    }

    fn found(scale: f32, threads: usize) -> SearchResult {
        let examples = examples(scale);
        let train: Vec<&Example> = examples.iter().collect();
        search(
            material(&train),
            TrainingSettings::DEFAULT,
            NonZeroUsize::new(threads).unwrap(),
            |_| {},
        )
        .unwrap()
    }

    fn material<'a>(train: &'a [&'a Example]) -> Material<'a> {
        Material {
            train,
            stand_ins: &[],
            classes: 2,
        }
    }

    #[test]
    fn stand_ins_are_learned_from_but_not_predicted() {
        let examples = examples(1.0);
        let train: Vec<&Example> = examples.iter().collect();
        // They look like the photos of the first class.
        let alike = examples.iter().filter(|example| example.class == 0);
        let stand_ins: Vec<Example> = alike
            .map(|example| Example {
                class: 2,
                ..example.clone()
            })
            .collect();
        let settings = TrainingSettings {
            learning_rate: 0.1,
            ..TrainingSettings::DEFAULT
        };
        let taken_for_them = |stand_ins: &[Example]| {
            let with = Material {
                stand_ins,
                classes: 3,
                ..material(&train)
            };
            let predicted = left_out(with, settings);
            assert_eq!(predicted.len(), train.len());
            let taken = |logits: &&Vec<f32>| logits[2] > logits[0].max(logits[1]);
            predicted.iter().filter(taken).count()
        };
        assert_eq!(taken_for_them(&[]), 0);
        let taken = taken_for_them(&stand_ins);
        assert!((5..45).contains(&taken), "{taken} of 60");
    }

    #[test]
    fn the_same_is_found_on_any_number_of_threads() {
        assert_eq!(found(1.0, 1), found(1.0, 3));
    }

    #[test]
    fn settings_that_separate_the_classes_are_found() {
        let found = found(1.0, 2);
        assert!(found.score.accuracy > 0.7, "{found:?}");
        assert_eq!(found.tried, LEARNING_RATES.len() * WEIGHT_DECAYS.len());
    }

    #[test]
    fn larger_features_get_smaller_steps_and_more_decay() {
        let [small, large] = [1.0, 10.0].map(|scale| {
            let examples = examples(scale);
            candidates(
                &examples.iter().collect::<Vec<_>>(),
                TrainingSettings::DEFAULT,
            )
        });
        for (small, large) in small.iter().zip(&large) {
            assert!((small.learning_rate / large.learning_rate - 100.0).abs() < 10.0);
            assert!(
                (small.weight_decay * 100.0 - large.weight_decay).abs() <= 0.1 * large.weight_decay
            );
        }
    }

    #[test]
    fn single_photos_cannot_be_left_out() {
        let examples = examples(1.0);
        let train: Vec<&Example> = examples.iter().take(2).collect();
        assert_eq!(
            search(
                material(&train),
                TrainingSettings::DEFAULT,
                NonZeroUsize::MIN,
                |_| {}
            ),
            None
        );
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(two_digits(0.005_024_68), 0.005);
        assert_eq!(two_digits(1234.0), 1200.0);
        assert_eq!(two_digits(0.0), 0.0);
    }
}
