//! Evaluation: accuracy, precision and recall by class, confusions, and the agreement of two
//! engines.

use std::collections::HashMap;

use serde::Serialize;

use crate::answer;

/// A photo, its true class, and a model's prediction.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    pub file: String,
    /// The index of the true class.
    pub class: usize,
    /// The probability of each class, `[classes]`.
    pub probabilities: Vec<f32>,
}

/// The accuracy of a model on a set of photos.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The number of photos that were classified.
    pub photos: usize,
    /// The share of the photos whose most probable class is the true one, 0 to 1.
    pub top1: f64,
    /// The share of the photos whose true class is among the five most probable ones, 0 to 1.
    pub top5: f64,
    /// The classes that have photos, in the order of the labels.
    pub classes: Vec<ClassResult>,
    /// Pairs of classes that were confused, the most frequent first.
    pub confusions: Vec<Confusion>,
    /// The wrong predictions, the most confident first.
    pub mistakes: Vec<Mistake>,
}

/// The accuracy of a model on one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassResult {
    pub label: String,
    /// The number of photos of the class.
    pub photos: usize,
    /// How many of them were classified correctly.
    pub right: usize,
    /// `right / photos`.
    pub recall: f64,
    /// The share of the photos classified as this class that are of it; `None` if there are none.
    pub precision: Option<f64>,
}

/// How many photos of one class were classified as another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Confusion {
    /// The true class.
    pub label: String,
    /// The predicted class.
    pub predicted: String,
    /// The number of photos.
    pub photos: usize,
}

/// A wrong prediction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mistake {
    pub file: String,
    /// The true class.
    pub label: String,
    /// The predicted class.
    pub predicted: String,
    /// The probability of the predicted class, 0 to 1.
    pub probability: f32,
}

/// The agreement of two sets of predictions for the same photos.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// The number of photos that both sets have.
    pub photos: usize,
    /// The share of the photos with the same most probable class, 0 to 1.
    pub same_top1: f64,
    /// The largest absolute difference of a probability.
    pub largest_change: f32,
    /// The photo with that difference.
    pub changed_most: Option<String>,
    /// The photos with different most probable classes, the most confident predictions first.
    pub different: Vec<Difference>,
}

/// A photo for which two predictions differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    pub file: String,
    /// The true class.
    pub label: String,
    /// The two predicted classes and their probabilities.
    pub answers: [(String, f32); 2],
}

impl Evaluation {
    /// Evaluates predictions. `labels` are the classes' names; classes with the same name count as
    /// one.
    pub fn new(labels: &[String], cases: &[Case]) -> Self {
        let mut first = HashMap::new();
        // For each class the first one with the same name.
        let canonical: Vec<usize> = labels
            .iter()
            .enumerate()
            .map(|(i, label)| *first.entry(label).or_insert(i))
            .collect();

        let mut top1 = 0;
        let mut top5 = 0;
        let mut mistakes = Vec::new();
        // The number of photos by true and predicted class.
        let mut counts: HashMap<(usize, usize), usize> = HashMap::new();
        for case in cases {
            let class = canonical[case.class];
            let best = answer::top_k(&case.probabilities, 5, 0.0);
            top5 += usize::from(best.iter().any(|best| canonical[best.class_id] == class));
            let Some(best) = best.first() else { continue };
            let predicted = canonical[best.class_id];
            *counts.entry((class, predicted)).or_default() += 1;
            if predicted == class {
                top1 += 1;
            } else {
                mistakes.push(Mistake {
                    file: case.file.clone(),
                    label: labels[class].clone(),
                    predicted: labels[predicted].clone(),
                    probability: best.probability,
                });
            }
        }

        mistakes.sort_by(|a, b| {
            b.probability
                .total_cmp(&a.probability)
                .then_with(|| a.file.cmp(&b.file))
        });

        let sum = |part: &dyn Fn(usize, usize) -> bool| -> usize {
            counts
                .iter()
                .filter(|((class, predicted), _)| part(*class, *predicted))
                .map(|(_, count)| count)
                .sum()
        };
        let classes = (0..labels.len()).filter_map(|class| {
            let photos = sum(&|of, _| of == class);
            let right = counts.get(&(class, class)).copied().unwrap_or(0);
            let taken = sum(&|_, predicted| predicted == class);
            (photos > 0).then(|| ClassResult {
                label: labels[class].clone(),
                photos,
                right,
                recall: share(right, photos),
                precision: (taken > 0).then(|| share(right, taken)),
            })
        });

        let mut confusions: Vec<Confusion> = counts
            .iter()
            .filter(|((class, predicted), _)| class != predicted)
            .map(|((class, predicted), count)| Confusion {
                label: labels[*class].clone(),
                predicted: labels[*predicted].clone(),
                photos: *count,
            })
            .collect();
        confusions.sort_by(|a, b| {
            b.photos
                .cmp(&a.photos)
                .then_with(|| (&a.label, &a.predicted).cmp(&(&b.label, &b.predicted)))
        });

        Self {
            photos: cases.len(),
            top1: share(top1, cases.len()),
            top5: share(top5, cases.len()),
            classes: classes.collect(),
            confusions,
            mistakes,
        }
    }

    /// The confusion matrix over `labels`, `[true class][predicted class]`, in photos.
    pub fn matrix(&self, labels: &[String]) -> Vec<Vec<usize>> {
        let index = |label: &String| labels.iter().position(|other| other == label);
        let mut matrix = vec![vec![0; labels.len()]; labels.len()];
        for class in &self.classes {
            if let Some(at) = index(&class.label) {
                matrix[at][at] = class.right;
            }
        }
        for confusion in &self.confusions {
            if let (Some(row), Some(column)) =
                (index(&confusion.label), index(&confusion.predicted))
            {
                matrix[row][column] = confusion.photos;
            }
        }
        matrix
    }
}

impl Agreement {
    /// Compares predictions for the same photos, which are matched by their files. `labels` are the
    /// classes' names.
    pub fn new(labels: &[String], one: &[Case], other: &[Case]) -> Self {
        let others: HashMap<&str, &Case> = other
            .iter()
            .map(|case| (case.file.as_str(), case))
            .collect();
        let pairs: Vec<(&Case, &Case)> = one
            .iter()
            .filter_map(|case| Some((case, *others.get(case.file.as_str())?)))
            .collect();

        let best = |case: &Case| answer::top_k(&case.probabilities, 1, 0.0).first().copied();
        let mut different: Vec<Difference> = pairs
            .iter()
            .filter_map(|(a, b)| Some((*a, best(a)?, best(b)?)))
            .filter(|(_, a, b)| a.class_id != b.class_id)
            .map(|(case, a, b)| Difference {
                file: case.file.clone(),
                label: labels[case.class].clone(),
                answers: [a, b].map(|class| (labels[class.class_id].clone(), class.probability)),
            })
            .collect();
        let confidence =
            |difference: &Difference| difference.answers[0].1.max(difference.answers[1].1);
        different.sort_by(|a, b| {
            confidence(b)
                .total_cmp(&confidence(a))
                .then_with(|| a.file.cmp(&b.file))
        });

        let change = |(a, b): &(&Case, &Case)| {
            a.probabilities
                .iter()
                .zip(&b.probabilities)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max)
        };
        let most = pairs
            .iter()
            .map(|pair| (change(pair), pair.0))
            .max_by(|a, b| a.0.total_cmp(&b.0));

        Self {
            photos: pairs.len(),
            same_top1: share(pairs.len() - different.len(), pairs.len()),
            largest_change: most.map_or(0.0, |(change, _)| change),
            changed_most: most.map(|(_, case)| case.file.clone()),
            different,
        }
    }
}

fn share(part: usize, all: usize) -> f64 {
    if all == 0 {
        0.0
    } else {
        part as f64 / all as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn case(file: &str, class: usize, probabilities: &[f32]) -> Case {
        Case {
            file: file.into(),
            class,
            probabilities: probabilities.into(),
        }
    }

    #[test]
    fn right_and_wrong_answers_are_counted_by_class() {
        let labels = labels(&["cat", "dog", "owl"]);
        let cases = [
            case("1", 0, &[0.7, 0.2, 0.1]),
            case("2", 0, &[0.3, 0.6, 0.1]),
            case("3", 1, &[0.1, 0.8, 0.1]),
            case("4", 0, &[0.05, 0.9, 0.05]),
        ];
        let evaluation = Evaluation::new(&labels, &cases);
        assert_eq!(
            (evaluation.photos, evaluation.top1, evaluation.top5),
            (4, 0.5, 1.0)
        );
        let classes: Vec<_> = evaluation
            .classes
            .iter()
            .map(|c| (c.label.as_str(), c.photos, c.right))
            .collect();
        assert_eq!(
            classes,
            [("cat", 3, 1), ("dog", 1, 1)],
            "there is no photo of an owl"
        );
        assert_eq!(evaluation.classes[0].precision, Some(1.0));
        assert_eq!(evaluation.classes[1].precision, Some(1.0 / 3.0));
        assert_eq!(
            evaluation.matrix(&labels),
            [[1, 2, 0], [0, 1, 0], [0, 0, 0]]
        );
        let files: Vec<_> = evaluation
            .mistakes
            .iter()
            .map(|mistake| mistake.file.as_str())
            .collect();
        assert_eq!(files, ["4", "2"], "the most confident mistake comes first");
    }

    #[test]
    fn the_sixth_guess_does_not_count() {
        let labels = labels(&["a", "b", "c", "d", "e", "f"]);
        let cases = [
            case("1", 4, &[0.3, 0.2, 0.15, 0.14, 0.11, 0.1]),
            case("2", 5, &[0.3, 0.2, 0.15, 0.14, 0.11, 0.1]),
        ];
        let evaluation = Evaluation::new(&labels, &cases);
        assert_eq!((evaluation.top1, evaluation.top5), (0.0, 0.5));
    }

    #[test]
    fn classes_of_the_same_name_are_one() {
        let labels = labels(&["crane", "owl", "crane"]);
        let evaluation = Evaluation::new(&labels, &[case("1", 0, &[0.1, 0.2, 0.7])]);
        assert_eq!((evaluation.top1, evaluation.classes.len()), (1.0, 1));
    }

    #[test]
    fn agreement_finds_the_largest_change() {
        let one = [
            case("1", 0, &[0.6, 0.4]),
            case("2", 0, &[0.9, 0.1]),
            case("3", 0, &[0.5, 0.5]),
        ];
        let other = [case("1", 0, &[0.45, 0.55]), case("2", 0, &[0.89, 0.11])];
        let agreement = Agreement::new(&labels(&["cat", "dog"]), &one, &other);
        assert_eq!((agreement.photos, agreement.same_top1), (2, 0.5));
        assert!((agreement.largest_change - 0.15).abs() < 1e-6);
        assert_eq!(agreement.changed_most.as_deref(), Some("1"));
        let [
            Difference {
                file,
                label,
                answers,
            },
        ] = &agreement.different[..]
        else {
            panic!("{agreement:?}")
        };
        assert_eq!((file.as_str(), label.as_str()), ("1", "cat"));
        assert_eq!(
            answers,
            &[("cat".to_owned(), 0.6), ("dog".to_owned(), 0.55)]
        );
    }
}
