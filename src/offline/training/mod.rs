//! A new last layer for a model, learned from folders of photos: the frozen network's features
//! once, then a softmax layer.

pub mod random;
pub mod search;
pub mod softmax_layer;
pub mod split;

use thiserror::Error;

use self::{
    random::{Purpose, Random},
    softmax_layer::Example,
};
use crate::offline::{
    Offline, OfflineError, Photo, Skipped, SortedOut, TooManyUnreadable,
    dataset::{Dataset, DatasetError, Labelled, quoted},
    sort_out,
};

/// Where `val` is missing, one photo in so many is kept for validation.
const KEPT: usize = 5;

/// Which photos to learn from and which ones to check with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The classes' names.
    pub classes: Vec<String>,
    /// What to learn from.
    pub train: Vec<Labelled>,
    /// What to check with; never learned from.
    pub val: Vec<Labelled>,
}

/// What the backbone makes of the photos of a [`Plan`].
#[derive(Clone, Debug, Default)]
pub struct Examples {
    /// What to learn from.
    pub train: Vec<Example>,
    /// What to check with.
    pub val: Vec<Example>,
    /// The photos of `val`, in its order.
    pub val_photos: Vec<Labelled>,
    /// Photos that can't be used.
    pub skipped: Vec<Skipped>,
}

/// Why there is nothing to learn from.
#[derive(Debug, Error)]
pub enum TrainingError {
    /// The backbone can't run.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// Too many photos can't be used.
    #[error(transparent)]
    Unreadable(#[from] TooManyUnreadable),
    /// None of the photos of a class can be used.
    #[error("no photo of {} can be used; replace the files that can't be read", quoted(.0))]
    Lost(Vec<String>),
}

impl Plan {
    /// Takes the photos as they are divided, or keeps every fifth of each class for validation, by
    /// chance.
    ///
    /// # Errors
    /// A class with one photo, of which none can be kept.
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
        let parts = split::parts(&classes, KEPT, &mut Random::new(seed, Purpose::Split));
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

    /// How many times the backbone has to run.
    pub fn images(&self, mirrored: bool) -> usize {
        self.train.len() * if mirrored { 2 } else { 1 } + self.val.len()
    }

    /// Runs the backbone on every photo, and with `mirrored` on the mirror images of those that are
    /// learned from. `progress` hears how many images are done.
    ///
    /// # Errors
    /// A backbone that fails; too many photos that can't be used, or all of a class.
    pub async fn examples(
        &self,
        backbone: &Offline,
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
        // Whatever makes a photo unusable was already said of it as it is.
        let mut mirrored = outputs.split_off(all.len()).into_iter().map(Result::ok);
        let SortedOut { usable, skipped } = sort_out(&all, outputs)?;

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
        let whole = |class: &usize| has(&examples.train, *class) && has(&examples.val, *class);
        let lost: Vec<String> = (0..self.classes.len())
            .filter(|class| !whole(class))
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
        }
    }

    #[test]
    fn a_fifth_of_each_class_is_kept_for_validation() {
        let plan = |seed| {
            Plan::new(
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
        let error = Plan::new(
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
