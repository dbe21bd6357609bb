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
            search,
            softmax_layer::{self, Example, SoftmaxLayer, TrainingSettings},
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
            if count < LEAST_EXAMPLES {
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
        let found = search::search(
            &examples,
            classes,
            TrainingSettings::DEFAULT,
            threads,
            |_| {},
        );
        let settings = found.ok_or(TeachError::Diverged)?.settings;

        let left_out = search::left_out(&examples, classes, settings);
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

        let mut layer = SoftmaxLayer::new(&examples, classes, settings);
        for _ in 0..settings.epochs {
            if !layer.epoch(&examples).is_finite() {
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
