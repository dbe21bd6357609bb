//! A linear layer with softmax, trained by stochastic gradient descent with momentum.
//!
//! As `torch.nn.Linear`, `CrossEntropyLoss` and `torch.optim.SGD` define it. Sums are taken in an
//! order that does not depend on anything but the data, so the same run gives the same weights.

use super::random::{Purpose, Random};
use crate::{answer, model::LinearLayer};

/// A photo as the layer sees it, and what it shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Its class's index.
    pub class: usize,
    /// What the backbone makes of it.
    pub features: Vec<f32>,
    /// What it makes of its mirror image, where that is learned from too: one of the two is seen,
    /// at random.
    pub mirrored: Option<Vec<f32>>,
}

/// How to train.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// How far a step follows the gradient.
    pub learning_rate: f32,
    /// How much of the last step is in the next, 0 to 1.
    pub momentum: f32,
    /// How much of each weight is added to its gradient.
    pub weight_decay: f32,
    /// Photos in a step.
    pub batch: usize,
    /// How often every photo is seen.
    pub epochs: usize,
    /// Whether photos of rare classes count more, so that all classes count alike.
    pub balance: bool,
    /// Where the random numbers begin.
    pub seed: u64,
}

impl Settings {
    /// Those of the article that the server's users come from: learning rate 0.001, momentum 0.9,
    /// 10 epochs of batches of 32.
    pub const ARTICLE: Self = Self {
        learning_rate: 0.001,
        momentum: 0.9,
        weight_decay: 0.0,
        batch: 32,
        epochs: 10,
        balance: true,
        seed: 0,
    };
}

/// A layer that is being trained.
#[derive(Clone, Debug)]
pub struct SoftmaxLayer {
    settings: Settings,
    /// Features of a photo.
    width: usize,
    layer: LinearLayer,
    velocity: LinearLayer,
    /// How much a photo counts, by class.
    class_weights: Vec<f32>,
    random: Random,
    order: Vec<usize>,
}

impl SoftmaxLayer {
    /// A layer with random weights for so many classes and what the examples, of which there is at
    /// least one, look like.
    pub fn new(train: &[&Example], classes: usize, settings: Settings) -> Self {
        let width = train[0].features.len();
        let mut counts = vec![0_usize; classes];
        train.iter().for_each(|example| counts[example.class] += 1);
        let mut random = Random::new(settings.seed, Purpose::Weights);
        let bound = 1.0 / (width as f32).sqrt();
        let mut weights =
            |count: usize| -> Vec<f32> { (0..count).map(|_| random.symmetric() * bound).collect() };
        let layer = LinearLayer {
            weight: weights(classes * width),
            bias: weights(classes),
        };
        let mean = train.len() as f32 / classes as f32;
        let weight = |count: usize| {
            if settings.balance && count > 0 {
                mean / count as f32
            } else {
                1.0
            }
        };
        Self {
            settings,
            width,
            velocity: LinearLayer {
                weight: vec![0.0; classes * width],
                bias: vec![0.0; classes],
            },
            layer,
            class_weights: counts.into_iter().map(weight).collect(),
            random: Random::new(settings.seed, Purpose::Order),
            order: (0..train.len()).collect(),
        }
    }

    /// Learns from every example once, in a random order; they must be those it was made for.
    /// Returns the mean loss.
    pub fn epoch(&mut self, train: &[&Example]) -> f32 {
        let mut order = std::mem::take(&mut self.order);
        self.random.shuffle(&mut order);
        let (mut loss, mut weight) = (0.0, 0.0);
        for batch in order.chunks(self.settings.batch) {
            let photos: Vec<(&[f32], usize)> = batch
                .iter()
                .map(|&index| {
                    let example = train[index];
                    let features = match &example.mirrored {
                        Some(mirrored) if self.random.coin() => mirrored,
                        _ => &example.features,
                    };
                    (&features[..], example.class)
                })
                .collect();
            let (batch_loss, batch_weight) = self.step(&photos);
            loss += f64::from(batch_loss);
            weight += f64::from(batch_weight);
        }
        self.order = order;
        (loss / weight) as f32
    }

    /// One step along the gradient of the batch's mean loss. Returns the sum of the losses and of
    /// the photos' weights.
    fn step(&mut self, batch: &[(&[f32], usize)]) -> (f32, f32) {
        let (classes, width) = (self.layer.bias.len(), self.width);
        let total: f32 = batch
            .iter()
            .map(|&(_, class)| self.class_weights[class])
            .sum();
        let mut loss = 0.0;
        // What each photo's scores should change by, `[photo, class]`.
        let mut errors = Vec::with_capacity(batch.len() * classes);
        for &(features, class) in batch {
            let mut probabilities = answer::softmax(&logits(&self.layer, features));
            let weight = self.class_weights[class];
            loss -= weight * positive(probabilities[class]).ln();
            probabilities[class] -= 1.0;
            errors.extend(
                probabilities
                    .into_iter()
                    .map(|error| error * weight / total),
            );
        }
        let Settings {
            learning_rate,
            momentum,
            weight_decay,
            ..
        } = self.settings;
        let mut gradient = vec![0.0; width];
        let rows = self
            .layer
            .weight
            .chunks_exact_mut(width)
            .zip(self.velocity.weight.chunks_exact_mut(width));
        for (class, (weights, velocity)) in rows.enumerate() {
            gradient.fill(0.0);
            for (&(features, _), errors) in batch.iter().zip(errors.chunks_exact(classes)) {
                add_scaled(&mut gradient, errors[class], features);
            }
            for ((weight, velocity), gradient) in weights.iter_mut().zip(velocity).zip(&gradient) {
                *velocity = momentum * *velocity + gradient + weight_decay * *weight;
                *weight -= learning_rate * *velocity;
            }
            let gradient: f32 = errors.iter().skip(class).step_by(classes).sum();
            let (bias, velocity) = (&mut self.layer.bias[class], &mut self.velocity.bias[class]);
            *velocity = momentum * *velocity + gradient + weight_decay * *bias;
            *bias -= learning_rate * *velocity;
        }
        (loss, total)
    }

    /// What has been learned so far.
    pub fn layer(&self) -> &LinearLayer {
        &self.layer
    }
}

/// A probability that has a logarithm; one that is no number stays so, and is noticed in the loss.
fn positive(probability: f32) -> f32 {
    if probability < f32::MIN_POSITIVE {
        f32::MIN_POSITIVE
    } else {
        probability
    }
}

/// The scores of a photo.
pub fn logits(layer: &LinearLayer, features: &[f32]) -> Vec<f32> {
    let rows = layer.weight.chunks_exact(features.len());
    rows.zip(&layer.bias)
        .map(|(weights, bias)| dot(weights, features) + bias)
        .collect()
}

/// How well a layer does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// The share of examples whose class has the highest score, 0 to 1.
    pub accuracy: f32,
    /// The mean of `-ln(probability of the right class)`.
    pub loss: f32,
}

/// How well a layer does on these examples.
pub fn score(layer: &LinearLayer, examples: &[&Example]) -> Score {
    let (mut right, mut loss) = (0, 0.0);
    for example in examples {
        let probabilities = answer::softmax(&logits(layer, &example.features));
        let best = answer::top_k(&probabilities, 1, 0.0);
        right += usize::from(
            best.first()
                .is_some_and(|best| best.class_id == example.class),
        );
        loss -= f64::from(positive(probabilities[example.class]).ln());
    }
    let count = examples.len().max(1);
    Score {
        accuracy: right as f32 / count as f32,
        loss: (loss / count as f64) as f32,
    }
}

const LANES: usize = 16;

/// Σ a·b, in several sums side by side, which the processor computes at once.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// `sum += factor · values`.
fn add_scaled(sum: &mut [f32], factor: f32, values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += factor * value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(features: &[f32], class: usize) -> Example {
        Example {
            class,
            features: features.into(),
            mirrored: None,
        }
    }

    #[test]
    fn a_step_is_the_one_computed_by_hand() {
        let train = [
            example(&[1.0, 2.0], 0),
            example(&[3.0, -1.0], 1),
            example(&[0.0, 1.0], 1),
        ];
        let settings = Settings {
            learning_rate: 0.1,
            momentum: 0.5,
            weight_decay: 0.01,
            balance: false,
            ..Settings::ARTICLE
        };
        let mut layer = SoftmaxLayer::new(&train.each_ref(), 2, settings);
        layer.layer = LinearLayer {
            weight: vec![0.0, 0.0, 0.0, 1.0],
            bias: vec![0.0, 0.0],
        };
        let batch = train
            .each_ref()
            .map(|example| (&example.features[..], example.class));
        let (loss, weight) = layer.step(&batch);
        // The second class's scores are 2, -1 and 1, the first one's 0.
        let p = [2.0_f64, -1.0, 1.0].map(|score| 1.0 / (1.0 + (-score).exp()));
        let expected = -((1.0 - p[0]).ln() + p[1].ln() + p[2].ln());
        assert!((f64::from(loss) - expected).abs() < 1e-6 && weight == 3.0);
        // Errors of the second class; the first one's are their opposite.
        let e = [p[0], p[1] - 1.0, p[2] - 1.0].map(|error| error / 3.0);
        let gradient = [e[0] * 1.0 + e[1] * 3.0, e[0] * 2.0 - e[1] + e[2]];
        let found = &layer.layer;
        for (found, expected) in [
            (found.weight[0], 0.1 * gradient[0]),
            (found.weight[1], 0.1 * gradient[1]),
            (found.weight[2], -0.1 * gradient[0]),
            (found.weight[3], 1.0 - 0.1 * (gradient[1] + 0.01)),
            (found.bias[0], 0.1 * (e[0] + e[1] + e[2])),
            (found.bias[1], -0.1 * (e[0] + e[1] + e[2])),
        ] {
            assert!(
                (f64::from(found) - expected).abs() < 1e-6,
                "{found} instead of {expected}"
            );
        }
        // Without a gradient the next step is half of this one, and decay's.
        let moved = layer.layer.weight[0];
        layer.step(&[]);
        assert!((layer.layer.weight[0] - 1.5 * moved).abs() < 1e-4);
    }

    #[test]
    fn weights_that_grow_without_bounds_show_in_the_loss() {
        let train: Vec<Example> = (0..40).map(|i| example(&[i as f32, 1.0], i % 2)).collect();
        let settings = Settings {
            learning_rate: 1e38,
            ..Settings::ARTICLE
        };
        let mut layer = SoftmaxLayer::new(&train.iter().collect::<Vec<_>>(), 2, settings);
        let train: Vec<&Example> = train.iter().collect();
        assert!((0..10).any(|_| !layer.epoch(&train).is_finite()));
    }

    #[test]
    fn what_can_be_told_apart_is_learned() {
        let train: Vec<Example> = (0..60)
            .map(|i| {
                let mut features = vec![0.1 * (i % 7) as f32; 20];
                features[i % 3 * 5] += 1.0;
                example(&features, i % 3)
            })
            .collect();
        let train: Vec<&Example> = train.iter().collect();
        let mut layer = SoftmaxLayer::new(
            &train,
            3,
            Settings {
                learning_rate: 0.1,
                ..Settings::ARTICLE
            },
        );
        let losses: Vec<f32> = (0..40).map(|_| layer.epoch(&train)).collect();
        assert!(losses[39] < 0.2 * losses[0], "{losses:?}");
        let score = score(layer.layer(), &train);
        assert!(
            score.accuracy == 1.0 && score.loss < losses[38],
            "{score:?}"
        );
    }

    #[test]
    fn classes_of_any_size_count_alike() {
        // Nothing tells the classes apart but their frequency: balanced, both are equally likely.
        let train: Vec<Example> = (0..40)
            .map(|i| example(&[0.0], usize::from(i % 4 == 0)))
            .collect();
        let train: Vec<&Example> = train.iter().collect();
        let learn = |balance| {
            let settings = Settings {
                learning_rate: 0.01,
                batch: 40,
                balance,
                ..Settings::ARTICLE
            };
            let mut layer = SoftmaxLayer::new(&train, 2, settings);
            (0..400).for_each(|_| assert!(layer.epoch(&train).is_finite()));
            answer::softmax(&logits(layer.layer(), &[0.0]))[1]
        };
        assert!((learn(true) - 0.5).abs() < 0.01, "{}", learn(true));
        assert!((learn(false) - 0.25).abs() < 0.01, "{}", learn(false));
    }

    #[test]
    fn mirror_images_are_learned_from_too() {
        let both = Example {
            class: 1,
            features: vec![1.0, 0.0],
            mirrored: Some(vec![0.0, 1.0]),
        };
        let none = example(&[0.0, 0.0], 0);
        let train = [&both, &none];
        let mut layer = SoftmaxLayer::new(
            &train,
            2,
            Settings {
                learning_rate: 0.1,
                batch: 2,
                ..Settings::ARTICLE
            },
        );
        (0..100).for_each(|_| assert!(layer.epoch(&train).is_finite()));
        for features in [[1.0, 0.0], [0.0, 1.0]] {
            assert!(answer::softmax(&logits(layer.layer(), &features))[1] > 0.8);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_weights() {
        let row = |i: usize| -> Vec<f32> {
            (0..33)
                .map(|j| ((i * 31 + j * 17) % 13) as f32 * 0.1)
                .collect()
        };
        let train: Vec<Example> = (0..50).map(|i| example(&row(i), i % 4)).collect();
        let train: Vec<&Example> = train.iter().collect();
        let learn = |seed| {
            let mut layer = SoftmaxLayer::new(
                &train,
                4,
                Settings {
                    seed,
                    ..Settings::ARTICLE
                },
            );
            (0..3).for_each(|_| assert!(layer.epoch(&train).is_finite()));
            layer.layer().clone()
        };
        assert_eq!(learn(5), learn(5));
        assert_ne!(learn(5), learn(6));
    }

    #[test]
    fn a_dot_product_takes_every_number() {
        let a: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(dot(&a, &a), (0..37).map(|i| (i * i) as f32).sum::<f32>());
    }
}
