//! Finding the learning rate, the weight decay and the number of epochs that suit the photos, by
//! cross-validation.
//!
//! Only what is learned from is looked at: the accuracy on the photos kept for validation stays an
//! honest one.

use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{
    random::{Purpose, Random},
    softmax_layer::{Example, Score, Settings, SoftmaxLayer, score},
    split,
};

/// Learning rates and weight decays that are tried, for features whose squares sum to 1; larger
/// features need smaller steps and as much more decay.
const LEARNING_RATES: [f32; 3] = [0.3, 1.0, 3.0];
const WEIGHT_DECAYS: [f32; 3] = [0.0, 5e-5, 5e-4];

/// Each part in turn is left out and predicted from the others; of many photos, a few parts tell
/// enough.
const PARTS: usize = 4;
const PHOTOS_TO_PREDICT: usize = 10_000;

/// The most epochs, and how many photos may be seen in all of them: many photos need fewer epochs.
const EPOCHS: std::ops::RangeInclusive<usize> = 8..=30;
const PHOTOS_TO_SEE: usize = 30_000;

/// What a search has found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// What to train with.
    pub settings: Settings,
    /// How they did on photos left out.
    pub score: Score,
    /// How many learning rates and weight decays were compared.
    pub tried: usize,
}

/// Tries settings on `threads` threads; what is not searched for is as in `settings`. `progress`
/// hears from these threads how much of the work is done, 0 to 1. `None` = no class has two photos,
/// so nothing can be left out.
pub fn search(
    train: &[&Example],
    classes: usize,
    settings: Settings,
    threads: NonZeroUsize,
    progress: impl Fn(f32) + Sync,
) -> Option<Found> {
    let of: Vec<usize> = train.iter().map(|example| example.class).collect();
    let largest = (0..classes)
        .map(|class| of.iter().filter(|of| **of == class).count())
        .max()
        .unwrap_or(0);
    if largest < 2 {
        return None;
    }
    let count = largest.min(PARTS);
    let assigned = split::parts(&of, count, &mut Random::new(settings.seed, Purpose::Folds));
    let used = (PHOTOS_TO_PREDICT / train.len()).clamp(1, count);
    let trials = candidates(train, settings);

    let tasks = trials.len() * used;
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let mut results = Vec::new();
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return results;
            }
            let (trial, part) = (task / used, task % used);
            let side = |left_out: bool| -> Vec<&Example> {
                let photos = train
                    .iter()
                    .zip(&assigned)
                    .filter(|(_, assigned)| (**assigned == part) == left_out);
                photos.map(|(example, _)| *example).collect()
            };
            results.push((
                task,
                curve(&side(false), &side(true), classes, trials[trial]),
            ));
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
            results
                .into_iter()
                .for_each(|(task, curve)| curves[task] = curve);
        }
    });

    let mut best: Option<Found> = None;
    for (settings, parts) in trials.iter().zip(curves.chunks(used)) {
        for epoch in 0..settings.epochs {
            let mean = |of: fn(&Score) -> f32| {
                parts.iter().map(|part| of(&part[epoch])).sum::<f32>() / used as f32
            };
            let score = Score {
                accuracy: mean(|score| score.accuracy),
                loss: mean(|score| score.loss),
            };
            // The loss tells settings apart that are right equally often.
            if score.loss.is_finite() && best.is_none_or(|best| score.loss < best.score.loss) {
                let settings = Settings {
                    epochs: epoch + 1,
                    ..*settings
                };
                best = Some(Found {
                    settings,
                    score,
                    tried: trials.len(),
                });
            }
        }
    }
    best
}

fn candidates(train: &[&Example], settings: Settings) -> Vec<Settings> {
    let squares = |example: &&Example| {
        example
            .features
            .iter()
            .map(|x| f64::from(x * x))
            .sum::<f64>()
    };
    let size = (train.iter().map(squares).sum::<f64>() / train.len() as f64).max(1e-12) as f32;
    let epochs = (PHOTOS_TO_SEE / train.len()).clamp(*EPOCHS.start(), *EPOCHS.end());
    let pairs = LEARNING_RATES.iter().flat_map(|rate| {
        WEIGHT_DECAYS
            .iter()
            .map(move |decay| (rate / size, decay * size))
    });
    pairs
        .map(|(rate, decay)| Settings {
            learning_rate: two_digits(rate),
            weight_decay: two_digits(decay),
            epochs,
            ..settings
        })
        .collect()
}

/// The number with two significant digits: what is shown can be given again as a flag, and does the
/// same.
fn two_digits(number: f32) -> f32 {
    format!("{number:.1e}").parse().unwrap_or(number)
}

/// How a layer that learns from `train` does on what was left out, after each epoch.
fn curve(
    train: &[&Example],
    left_out: &[&Example],
    classes: usize,
    settings: Settings,
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

    fn found(scale: f32, threads: usize) -> Found {
        let examples = examples(scale);
        let train: Vec<&Example> = examples.iter().collect();
        search(
            &train,
            2,
            Settings::ARTICLE,
            NonZeroUsize::new(threads).unwrap(),
            |_| {},
        )
        .unwrap()
    }

    #[test]
    fn the_same_is_found_on_any_number_of_threads() {
        assert_eq!(found(1.0, 1), found(1.0, 3));
    }

    #[test]
    fn what_tells_the_classes_apart_is_found() {
        let found = found(1.0, 2);
        assert!(found.score.accuracy > 0.7, "{found:?}");
        assert_eq!(found.tried, LEARNING_RATES.len() * WEIGHT_DECAYS.len());
    }

    #[test]
    fn larger_features_get_smaller_steps_and_more_decay() {
        let [small, large] = [1.0, 10.0].map(|scale| {
            let examples = examples(scale);
            candidates(&examples.iter().collect::<Vec<_>>(), Settings::ARTICLE)
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
            search(&train, 2, Settings::ARTICLE, NonZeroUsize::MIN, |_| {}),
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
