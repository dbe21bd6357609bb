//! Learning a last layer from features, with the settings and the accuracy that cross-validation
//! finds.

use std::num::NonZeroUsize;

use super::TeachError;
use crate::{
    answer,
    model::LinearLayer,
    offline::{
        evaluation::{Case, Evaluation},
        training::{
            search::{self, Material as Photos},
            softmax_layer::{self, Example, SoftmaxLayer, TrainingSettings},
            stand_ins::add_unknown_class,
        },
    },
};

/// The fewest pictures of a class: one to learn from while the other is left out.
pub const LEAST_EXAMPLES: usize = 2;

/// A picture that can't be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    pub class: String,
    pub file: String,
    pub reason: String,
}

/// What is learned from.
#[derive(Debug, Default)]
pub struct Material {
    /// The classes' names, in their order.
    pub labels: Vec<String>,
    /// In the order of their classes and names.
    pub examples: Vec<Example>,
    /// The name of each one's file.
    pub files: Vec<String>,
    /// Examples of the unknown class that are no pictures.
    pub stand_ins: Vec<Example>,
    pub skipped: Vec<Skipped>,
}

/// What was learned.
#[derive(Debug)]
pub struct Lesson {
    pub settings: TrainingSettings,
    /// Learned from all pictures.
    pub layer: LinearLayer,
    /// Of layers that were learned without the pictures that they classify.
    pub evaluation: Evaluation,
}

impl Material {
    /// Adds the class for everything else, and stand-ins for pictures of it from the rows of the
    /// base's last layer.
    pub fn reject_unknown(&mut self, rows: &[f32]) {
        self.stand_ins = add_unknown_class(&mut self.labels, rows, &self.examples);
    }

    /// Whether there is enough to learn from.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self) -> Result<(), TeachError> {
        if self.labels.len() < 2 {
            return Err(TeachError::TooFew(format!(
                "there {}; a classifier needs at least two classes",
                match &self.labels[..] {
                    [] => "are no classes".to_owned(),
                    [one, ..] => format!("is one class, \"{one}\""),
                }
            )));
        }
        for (class, label) in self.labels.iter().enumerate() {
            let of_class = |example: &&Example| example.class == class;
            let count = self.examples.iter().filter(of_class).count();
            let has_stand_ins = self.stand_ins.iter().any(|example| example.class == class);
            if count < LEAST_EXAMPLES && !has_stand_ins {
                return Err(TeachError::TooFew(format!(
                    "\"{label}\" has {count} usable pictures; each class needs at least \
                     {LEAST_EXAMPLES}"
                )));
            }
        }
        Ok(())
    }

    /// Learns a layer as `resnet18 train --auto` does. This computes for a while.
    ///
    /// # Errors
    /// Too little to learn from, or a training that diverges.
    pub fn learn(&self, threads: NonZeroUsize) -> Result<Lesson, TeachError> {
        self.check()?;
        let classes = self.labels.len();
        let examples: Vec<&Example> = self.examples.iter().collect();
        let photos = Photos {
            train: &examples,
            stand_ins: &self.stand_ins,
            classes,
        };
        let found = search::search(photos, TrainingSettings::DEFAULT, threads, |_| {});
        let settings = found.ok_or(TeachError::Diverged)?.settings;

        let left_out = search::left_out(photos, settings);
        let cases: Vec<Case> = self
            .files
            .iter()
            .zip(&self.examples)
            .zip(left_out)
            .map(|((file, example), logits)| Case {
                file: file.clone(),
                class: example.class,
                probabilities: answer::softmax(&logits),
            })
            .collect();

        let all: Vec<&Example> = examples.iter().copied().chain(&self.stand_ins).collect();
        let mut layer = SoftmaxLayer::new(&all, classes, settings);
        for _ in 0..settings.epochs {
            if !layer.epoch(&all).is_finite() {
                return Err(TeachError::Diverged);
            }
        }
        let finite = softmax_layer::score(layer.layer(), &examples)
            .loss
            .is_finite();
        if !finite {
            return Err(TeachError::Diverged);
        }
        Ok(Lesson {
            settings,
            layer: layer.layer().clone(),
            evaluation: Evaluation::new(&self.labels, &cases),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn material(counts: &[usize]) -> Material {
        let mut material = Material {
            labels: (0..counts.len()).map(|class| format!("c{class}")).collect(),
            ..Material::default()
        };
        for (class, &count) in counts.iter().enumerate() {
            for i in 0..count {
                let mut features = vec![0.1 * i as f32; 4];
                features[class] += 3.0;
                material.files.push(format!("{class}-{i}.jpg"));
                material.examples.push(Example {
                    class,
                    features,
                    mirrored: None,
                });
            }
        }
        material
    }

    #[test]
    fn a_layer_is_learned_and_judged_by_pictures_that_it_did_not_see() {
        let mut material = material(&[10, 10]);
        // A picture in the wrong class, which no layer can know.
        material.examples[0].features = material.examples[12].features.clone();
        let threads = NonZeroUsize::new(2).unwrap();
        let lesson = material.learn(threads).unwrap();
        assert_eq!(lesson.evaluation.photos, 20);
        let wrong: Vec<_> = lesson
            .evaluation
            .mistakes
            .iter()
            .map(|mistake| (mistake.file.as_str(), mistake.predicted.as_str()))
            .collect();
        assert_eq!(wrong, [("0-0.jpg", "c1")]);
        assert!((lesson.evaluation.top1 - 0.95).abs() < 1e-9);
        assert_eq!(lesson.layer, material.learn(threads).unwrap().layer);
    }

    #[test]
    fn other_things_are_rejected_without_pictures_of_them() {
        let mut material = material(&[10, 10]);
        // Two classes of the base: one like the first class here, one that is not taught.
        let rows = [1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 1.0, -1.0];
        material.reject_unknown(&rows);
        assert_eq!(material.labels, ["c0", "c1", "nothing of these"]);
        let lesson = material.learn(NonZeroUsize::MIN).unwrap();
        assert_eq!(lesson.evaluation.photos, 20, "stand-ins are not counted");
        assert_eq!(lesson.layer.bias.len(), 3);
        let class = |features: &[f32]| {
            let logits = softmax_layer::logits(&lesson.layer, features);
            answer::top_k(&answer::softmax(&logits), 1, 0.0)[0].class_id
        };
        assert_eq!(class(&[0.1, 0.1, 3.0, 0.1]), 2);
        assert_eq!(class(&[0.1, 3.0, 0.1, 0.1]), 1);

        // One class is enough then: it, or not.
        let mut one = self::material(&[5]);
        one.reject_unknown(&rows);
        assert!(one.learn(NonZeroUsize::MIN).is_ok());
    }

    #[test]
    fn too_little_to_learn_from_is_said() {
        for (counts, reason) in [
            (&[][..], "no classes"),
            (&[5], "one class, \"c0\""),
            (&[5, 1], "\"c1\" has 1 usable pictures"),
        ] {
            let error = material(counts).learn(NonZeroUsize::MIN).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
