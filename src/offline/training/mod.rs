//! Transfer learning: trains a new last layer for a model on folders of photos.
//!
//! The backbone, which is the network without its last layer, stays frozen and runs once on each
//! photo. On its outputs, the features, a softmax regression (multinomial logistic regression) is
//! trained by stochastic gradient descent with momentum; see [`softmax_layer`]. Training only the
//! last layer needs no GPU and few photos, and features of networks trained on ImageNet are known
//! to suit it: Donahue et al., "DeCAF: A Deep Convolutional Activation Feature for Generic Visual
//! Recognition", ICML 2014; Kornblith, Shlens and Le, "Do Better ImageNet Models Transfer Better?",
//! CVPR 2019. [`search`] chooses the hyperparameters by k-fold cross-validation.

pub mod random;
pub mod search;
pub mod softmax_layer;
pub mod split;
pub mod stand_ins;

use thiserror::Error;

use self::{
    random::{Purpose, Random},
    softmax_layer::Example,
};
use crate::offline::{
    OfflineError, OfflineModel, Photo, SkippedPhoto, TooManyUnreadable, UsableOutputs,
    dataset::{Dataset, DatasetError, Labelled, quoted},
    separate_unusable,
};

/// Without a folder `val`, one photo in this many is kept for validation.
const VALIDATION_SPLIT: usize = 5;

/// Which photos to train with and which ones to validate with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainingPlan {
    /// The classes' names.
    pub classes: Vec<String>,
    pub train: Vec<Labelled>,
    /// None of these is in `train`.
    pub val: Vec<Labelled>,
}

/// The features of the photos of a [`TrainingPlan`].
#[derive(Clone, Debug, Default)]
pub struct Examples {
    pub train: Vec<Example>,
    pub val: Vec<Example>,
    /// The photos of `val`, in its order.
    pub val_photos: Vec<Labelled>,
    /// Photos that can't be used.
    pub skipped: Vec<SkippedPhoto>,
}

/// Why there are no examples to train with.
#[derive(Debug, Error)]
pub enum TrainingError {
    #[error(transparent)]
    OfflineModel(#[from] OfflineError),
    #[error(transparent)]
    Unreadable(#[from] TooManyUnreadable),
    /// Classes without a usable photo for training or for validation.
    #[error("no photo of {} can be used; replace the files that can't be read", quoted(.0))]
    Lost(Vec<String>),
}

impl TrainingPlan {
    /// Uses the dataset's division, or, if it has none, keeps a random fifth of each class for
    /// validation. `root` is the dataset's folder, for errors.
    ///
    /// # Errors
    /// [`DatasetError::TooFew`] for a class with one photo, which can't be divided.
    pub fn new(dataset: Dataset, seed: u64, root: &std::path::Path) -> Result<Self, DatasetError> {
        let Dataset { train, val } = dataset;
        if let Some(val) = val {
            return Ok(Self {
                classes: train.classes,
                train: train.photos,
                val: val.photos,
            });
        }

        let classes: Vec<usize> = train.photos.iter().map(|photo| photo.class).collect();
        let single = |class: &usize| classes.iter().filter(|of| *of == class).count() == 1;
        let too_few: Vec<String> = (0..train.classes.len())
            .filter(single)
            .map(|i| train.classes[i].clone())
            .collect();
        if !too_few.is_empty() {
            return Err(DatasetError::TooFew {
                path: root.to_owned(),
                classes: too_few,
            });
        }

        let parts = split::stratified(
            &classes,
            VALIDATION_SPLIT,
            &mut Random::new(seed, Purpose::Split),
        );
        let (val, rest): (Vec<_>, Vec<_>) = train
            .photos
            .into_iter()
            .zip(parts)
            .partition(|(_, part)| *part == 0);
        let photos =
            |part: Vec<(Labelled, usize)>| part.into_iter().map(|(photo, _)| photo).collect();
        Ok(Self {
            classes: train.classes,
            train: photos(rest),
            val: photos(val),
        })
    }

    /// How many times the backbone has to run; `mirrored` as for [`examples`](Self::examples).
    pub fn images(&self, mirrored: bool) -> usize {
        let mirror_images = if mirrored { self.train.len() } else { 0 };
        self.train.len() + mirror_images + self.val.len()
    }

    /// Runs the backbone on every photo, and if `mirrored` is set also on the mirror images of the
    /// photos in `train`. `progress` is called with the number of images done.
    ///
    /// # Errors
    /// A backbone that fails; more than 5 % of the photos that can't be used, or all of a class.
    pub async fn examples(
        &self,
        backbone: &OfflineModel,
        mirrored: bool,
        progress: impl FnMut(usize),
    ) -> Result<Examples, TrainingError> {
        let all: Vec<Labelled> = self.train.iter().chain(&self.val).cloned().collect();
        let mut images: Vec<Photo> = all
            .iter()
            .map(|photo| Photo {
                path: photo.path.clone(),
                mirrored: false,
            })
            .collect();
        if mirrored {
            images.extend(self.train.iter().map(|photo| Photo {
                path: photo.path.clone(),
                mirrored: true,
            }));
        }

        let mut outputs = backbone.run(&images, progress).await?;
        // A photo whose mirror image failed has failed itself too, which is reported.
        let mut mirrored = outputs.split_off(all.len()).into_iter().map(Result::ok);
        let UsableOutputs { usable, skipped } = separate_unusable(&all, outputs)?;

        let mirrors: Vec<Option<Vec<f32>>> = (0..self.train.len())
            .map(|_| mirrored.next().flatten())
            .collect();
        let mut examples = Examples {
            skipped,
            ..Default::default()
        };
        for (index, features) in usable {
            let class = all[index].class;
            if index < self.train.len() {
                examples.train.push(Example {
                    class,
                    features,
                    mirrored: mirrors[index].clone(),
                });
            } else {
                examples.val.push(Example {
                    class,
                    features,
                    mirrored: None,
                });
                examples.val_photos.push(all[index].clone());
            }
        }

        let has = |part: &[Example], class| part.iter().any(|example| example.class == class);
        let usable = |class: &usize| has(&examples.train, *class) && has(&examples.val, *class);
        let lost: Vec<String> = (0..self.classes.len())
            .filter(|class| !usable(class))
            .map(|class| self.classes[class].clone())
            .collect();
        if lost.is_empty() {
            Ok(examples)
        } else {
            Err(TrainingError::Lost(lost))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::offline::dataset::Folder;

    fn folder(counts: &[usize]) -> Folder {
        let photo = |class, i| Labelled {
            path: format!("{class}/{i}").into(),
            class,
        };
        Folder {
            classes: (0..counts.len()).map(|class| class.to_string()).collect(),
            photos: counts
                .iter()
                .enumerate()
                .flat_map(|(c, &n)| (0..n).map(move |i| photo(c, i)))
                .collect(),
            ignored: 0,
        }
    }

    #[test]
    fn a_fifth_of_each_class_is_kept_for_validation() {
        let plan = |seed| {
            TrainingPlan::new(
                Dataset {
                    train: folder(&[10, 20]),
                    val: None,
                },
                seed,
                Path::new("d"),
            )
            .unwrap()
        };
        let kept = |class| {
            plan(0)
                .val
                .iter()
                .filter(|photo| photo.class == class)
                .count()
        };
        assert_eq!((kept(0), kept(1), plan(0).train.len()), (2, 4, 24));
        assert!(
            plan(0)
                .val
                .iter()
                .all(|photo| !plan(0).train.contains(photo))
        );
        assert_eq!(plan(0), plan(0));
        assert_ne!(plan(0), plan(1));
    }

    #[test]
    fn a_class_of_one_photo_cannot_be_split() {
        let error = TrainingPlan::new(
            Dataset {
                train: folder(&[3, 1]),
                val: None,
            },
            0,
            Path::new("d"),
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("\"1\" has only one photo"), "{error}");
    }
}
