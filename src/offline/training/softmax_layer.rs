//! Softmax regression: a linear layer with softmax, trained by mini-batch stochastic gradient
//! descent (SGD) with momentum.
//!
//! The definitions are those of PyTorch's `torch.nn.Linear`, `torch.nn.CrossEntropyLoss` and
//! `torch.optim.SGD`, whose form of momentum, `v = momentum·v + gradient` and
//! `weight -= learning_rate·v`, goes back to Polyak, "Some methods of speeding up the convergence
//! of iteration methods" (1964), and is discussed in Sutskever et al., "On the importance of
//! initialization and momentum in deep learning", ICML 2013. Weight decay adds
//! `weight_decay·weight` to the gradient (L2 regularisation).
//!
//! The order of summation depends on nothing but the data, so equal runs give equal weights.

use super::random::{Purpose, Random};
use crate::{answer, model::LinearLayer};

/// The features of a photo, and its class.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The index of its class.
    pub class: usize,
    /// The backbone's output for the photo, `[features]`.
    pub features: Vec<f32>,
    /// The backbone's output for the mirror image, if that is used too: each epoch then uses one of
    /// the two, chosen at random.
    pub mirrored: Option<Vec<f32>>,
}

/// The hyperparameters of a training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingSettings {
    /// The factor by which a step follows the velocity.
    pub learning_rate: f32,
    /// The share of the velocity that a step keeps from the step before, 0 to 1.
    pub momentum: f32,
    /// The share of each weight that is added to its gradient.
    pub weight_decay: f32,
    /// The number of photos in a step.
    pub batch: usize,
    /// How often every photo is used.
    pub epochs: usize,
    /// Whether each photo is weighted by the inverse of its class's frequency, so that all classes
    /// have the same weight in the loss.
    pub balance: bool,
    /// The seed of the random numbers.
    pub seed: u64,
}

impl TrainingSettings {
    /// The settings that tutorials on transfer learning commonly use: learning rate 0.001,
    /// momentum 0.9, 10 epochs of batches of 32.
    pub const DEFAULT: Self = Self {
        learning_rate: 0.001,
        momentum: 0.9,
        weight_decay: 0.0,
        batch: 32,
        epochs: 10,
        balance: true,
        seed: 0,
    };

    /// The settings as a model's file records them. `auto` says whether cross-validation found them,
    /// `flip` whether mirror images were used.
    pub fn json(&self, auto: bool, flip: bool) -> serde_json::Value {
        // The digits of the float32, not those of the nearest float64.
        let number = |value: f32| value.to_string().parse::<f64>().unwrap_or(value.into());
        serde_json::json!({
            "learning_rate": number(self.learning_rate),
            "momentum": number(self.momentum),
            "weight_decay": number(self.weight_decay),
            "batch": self.batch,
            "epochs": self.epochs,
            "class_weights": if self.balance { "balanced" } else { "none" },
            "flip": flip,
            "seed": self.seed,
            "auto": auto,
        })
    }
}

/// A layer that is being trained.
#[derive(Clone, Debug)]
pub struct SoftmaxLayer {
    settings: TrainingSettings,
    /// The number of features of a photo.
    width: usize,
    layer: LinearLayer,
    velocity: LinearLayer,
    /// The weight of a photo in the loss, by class.
    class_weights: Vec<f32>,
    random: Random,
    /// The order in which the last epoch used the photos.
    order: Vec<usize>,
}

impl SoftmaxLayer {
    /// A layer with random weights for this many classes. The number of features is that of the
    /// examples, of which there must be at least one.
    ///
    /// The weights are uniform in ±1/√features, as those of `torch.nn.Linear`.
    pub fn new(train: &[&Example], classes: usize, settings: TrainingSettings) -> Self {
        let width = train[0].features.len();
        let mut counts = vec![0_usize; classes];
        for example in train {
            counts[example.class] += 1;
        }

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

    /// Trains on every example once, in a random order, and returns the mean loss. The examples
    /// must be those that the layer was created for.
    pub fn epoch(&mut self, train: &[&Example]) -> f32 {
        let mut order = std::mem::take(&mut self.order);
        self.random.shuffle(&mut order);

        let mut loss = 0.0;
        let mut weight = 0.0;
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

    /// Takes one step along the gradient of the batch's weighted mean loss. The batch is the
    /// features and the class of each photo. Returns the sums of the weighted losses and of the
    /// weights.
    fn step(&mut self, batch: &[(&[f32], usize)]) -> (f32, f32) {
        let classes = self.layer.bias.len();
        let width = self.width;
        let total: f32 = batch
            .iter()
            .map(|&(_, class)| self.class_weights[class])
            .sum();

        let mut loss = 0.0;
        // The gradient of the mean loss with respect to the logits, `[photo, class]`.
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

        let TrainingSettings {
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
            let bias = &mut self.layer.bias[class];
            let velocity = &mut self.velocity.bias[class];
            *velocity = momentum * *velocity + gradient + weight_decay * *bias;
            *bias -= learning_rate * *velocity;
        }
        (loss, total)
    }

    /// The layer as trained so far.
    pub fn layer(&self) -> &LinearLayer {
        &self.layer
    }
}

/// Raises a probability to the smallest positive number, so that it has a finite logarithm. NaN
/// stays NaN, which makes the loss NaN.
fn positive(probability: f32) -> f32 {
    if probability < f32::MIN_POSITIVE {
        f32::MIN_POSITIVE
    } else {
        probability
    }
}

/// The logits of a photo, `[classes]`.
pub fn logits(layer: &LinearLayer, features: &[f32]) -> Vec<f32> {
    let rows = layer.weight.chunks_exact(features.len());
    rows.zip(&layer.bias)
        .map(|(weights, bias)| dot(weights, features) + bias)
        .collect()
}

/// The accuracy and the loss of a layer on some examples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// The share of the examples whose class is the most probable one, 0 to 1.
    pub accuracy: f32,
    /// The mean cross-entropy: `-ln` of the true class's probability.
    pub loss: f32,
}

/// Evaluates a layer on examples, without their mirror images.
pub fn score(layer: &LinearLayer, examples: &[&Example]) -> Score {
    let mut right = 0;
    let mut loss = 0.0;
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

/// How many partial sums a dot product has.
const LANES: usize = 16;

/// The dot product, as several partial sums, which the compiler turns into SIMD instructions.
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

/// Adds `factor · values` to `sum`.
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
        let settings = TrainingSettings {
            learning_rate: 0.1,
            momentum: 0.5,
            weight_decay: 0.01,
            balance: false,
            ..TrainingSettings::DEFAULT
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
        let settings = TrainingSettings {
            learning_rate: 1e38,
            ..TrainingSettings::DEFAULT
        };
        let mut layer = SoftmaxLayer::new(&train.iter().collect::<Vec<_>>(), 2, settings);
        let train: Vec<&Example> = train.iter().collect();
        assert!((0..10).any(|_| !layer.epoch(&train).is_finite()));
    }

    #[test]
    fn separable_classes_are_learned() {
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
            TrainingSettings {
                learning_rate: 0.1,
                ..TrainingSettings::DEFAULT
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
    fn balanced_classes_have_equal_weight() {
        // The classes differ only in their frequency: balanced, both are equally likely.
        let train: Vec<Example> = (0..40)
            .map(|i| example(&[0.0], usize::from(i % 4 == 0)))
            .collect();
        let train: Vec<&Example> = train.iter().collect();
        let learn = |balance| {
            let settings = TrainingSettings {
                learning_rate: 0.01,
                batch: 40,
                balance,
                ..TrainingSettings::DEFAULT
            };
            let mut layer = SoftmaxLayer::new(&train, 2, settings);
            for _ in 0..400 {
                assert!(layer.epoch(&train).is_finite());
            }
            answer::softmax(&logits(layer.layer(), &[0.0]))[1]
        };
        assert!((learn(true) - 0.5).abs() < 0.01, "{}", learn(true));
        assert!((learn(false) - 0.25).abs() < 0.01, "{}", learn(false));
    }

    #[test]
    fn mirror_images_are_trained_on_too() {
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
            TrainingSettings {
                learning_rate: 0.1,
                batch: 2,
                ..TrainingSettings::DEFAULT
            },
        );
        for _ in 0..100 {
            assert!(layer.epoch(&train).is_finite());
        }
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
                TrainingSettings {
                    seed,
                    ..TrainingSettings::DEFAULT
                },
            );
            for _ in 0..3 {
                assert!(layer.epoch(&train).is_finite());
            }
            layer.layer().clone()
        };
        assert_eq!(learn(5), learn(5));
        assert_ne!(learn(5), learn(6));
    }

    #[test]
    fn a_dot_product_uses_every_number() {
        let a: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(dot(&a, &a), (0..37).map(|i| (i * i) as f32).sum::<f32>());
    }
}
