//! Datasets: folders of photos, one folder for each class and named after it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::image::is_image_file;

/// One part of a dataset, for training or for validation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folder {
    /// The classes' names, sorted.
    pub classes: Vec<String>,
    /// The images in the classes' folders, sorted by class and name.
    pub photos: Vec<Labelled>,
    /// The number of other files there, such as annotations; hidden ones are not counted.
    pub ignored: usize,
}

/// A photo and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    pub path: PathBuf,
    /// The index of its class in [`Folder::classes`].
    pub class: usize,
}

/// Why a folder can't be used as a dataset.
#[derive(Debug, Error)]
pub enum DatasetError {
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{}: has no class folders; put the photos of each class into a folder of its name: {}",
        path.display(),
        layout(path)
    )]
    NoClasses { path: PathBuf },
    #[error(
        "{}: has one class, \"{class}\"; a classifier needs at least two, each in its own folder",
        path.display()
    )]
    OneClass { path: PathBuf, class: String },
    /// Classes without photos.
    #[error(
        "{}: there are no photos in {}; add some (they are known by their names, such as a.jpg), or \
         remove the folder",
        path.display(),
        quoted(classes)
    )]
    Empty { path: PathBuf, classes: Vec<String> },
    /// Classes with one photo, which can't be split into training and validation.
    #[error(
        "{}: {} has only one photo, so none can be kept for validation; add photos, or a folder \
         `val` beside `train`",
        path.display(),
        quoted(classes)
    )]
    TooFew { path: PathBuf, classes: Vec<String> },
    /// Training and validation have different classes.
    #[error(
        "{}: `train` and `val` must have the same classes: {}",
        path.display(),
        differences(only_train, only_val)
    )]
    Different {
        path: PathBuf,
        /// Classes that are missing in `val`.
        only_train: Vec<String>,
        /// Classes that are missing in `train`.
        only_val: Vec<String>,
    },
    /// There are only photos for validation.
    #[error(
        "{}: has a folder `val` but none called `train`; put the photos to train with into \
         `train/CLASS/`",
        path.display()
    )]
    NoTraining { path: PathBuf },
}

/// A dataset, divided into training and validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The photos to train with.
    pub train: Folder,
    /// The photos to validate with, of the same classes. `None` if the dataset isn't divided, so
    /// that a part of `train` must be kept for validation.
    pub val: Option<Folder>,
}

impl Dataset {
    /// Lists the photos in `root/train` and `root/val`, or, if there is neither, in `root` itself.
    ///
    /// # Errors
    /// Folders that can't be read, fewer than two classes, classes without photos, or different
    /// classes in `val` and `train`.
    pub fn read(root: &Path) -> Result<Self, DatasetError> {
        let [train, val] = ["train", "val"].map(|name| root.join(name));
        let train = match (train.is_dir(), val.is_dir()) {
            (true, _) => Folder::read(&train)?,
            (false, true) => {
                return Err(DatasetError::NoTraining {
                    path: root.to_owned(),
                });
            }
            (false, false) => Folder::read(root)?,
        };

        if let [class] = &train.classes[..] {
            return Err(DatasetError::OneClass {
                path: root.to_owned(),
                class: class.clone(),
            });
        }
        if !val.is_dir() {
            return Ok(Self { train, val: None });
        }

        let val = Folder::read(&val)?;
        let missing = |from: &Folder, other: &Folder| -> Vec<String> {
            from.classes
                .iter()
                .filter(|class| !other.classes.contains(class))
                .cloned()
                .collect()
        };
        let only_train = missing(&train, &val);
        let only_val = missing(&val, &train);
        if !only_train.is_empty() || !only_val.is_empty() {
            return Err(DatasetError::Different {
                path: root.to_owned(),
                only_train,
                only_val,
            });
        }

        Ok(Self {
            train,
            val: Some(val),
        })
    }

    /// The number of files in the classes' folders that are no images by their names.
    pub fn ignored(&self) -> usize {
        self.train.ignored + self.val.as_ref().map_or(0, |val| val.ignored)
    }
}

impl Folder {
    /// Lists the images in the folders in `root`. Hidden files and folders are ignored, and so are
    /// files directly in `root` and files that are no images by their names.
    ///
    /// # Errors
    /// A folder that can't be read, no classes, or classes without an image.
    pub fn read(root: &Path) -> Result<Self, DatasetError> {
        let mut folder = Self::default();
        let mut empty = Vec::new();
        for (class, path) in visible(root)? {
            if !path.is_dir() {
                continue;
            }

            let index = folder.classes.len();
            let before = folder.photos.len();
            for (_, path) in visible(&path)? {
                if !path.is_file() {
                    continue;
                }
                if is_image_file(&path) {
                    folder.photos.push(Labelled { path, class: index });
                } else {
                    folder.ignored += 1;
                }
            }
            if folder.photos.len() == before {
                empty.push(class.clone());
            }
            folder.classes.push(class);
        }

        if folder.classes.is_empty() {
            return Err(DatasetError::NoClasses {
                path: root.to_owned(),
            });
        }
        if !empty.is_empty() {
            return Err(DatasetError::Empty {
                path: root.to_owned(),
                classes: empty,
            });
        }
        Ok(folder)
    }
}

/// The entries of a folder that are not hidden, with their names, sorted by name.
fn visible(folder: &Path) -> Result<Vec<(String, PathBuf)>, DatasetError> {
    let failed = |source| DatasetError::Read {
        path: folder.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

fn layout(path: &Path) -> String {
    format!(
        "{0}/train/CLASS/photo.jpg and {0}/val/CLASS/photo.jpg",
        path.display()
    )
}

/// Names in quotes and separated by commas, for a message; up to ten are listed.
pub fn quoted(names: &[String]) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<String> = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("\"{name}\""))
        .collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn differences(only_train: &[String], only_val: &[String]) -> String {
    let part = |names: &[String], place: &str| match names {
        [] => None,
        names => Some(format!("{} only in `{place}`", quoted(names))),
    };
    [part(only_train, "train"), part(only_val, "val")]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if !file.ends_with('/') {
                fs::write(path, "").unwrap();
            } else {
                fs::create_dir_all(path).unwrap();
            }
        }
        root
    }

    fn refusal(files: &[&str]) -> String {
        let root = folder(files);
        Dataset::read(root.path()).unwrap_err().to_string()
    }

    #[test]
    fn classes_and_photos_are_sorted_and_hidden_files_left_out() {
        let root = folder(&[
            "README.md",
            "train/b/2.jpg",
            "train/b/1.jpg",
            "train/a/x.PNG",
            "train/a/x.xml",
            "train/a/Thumbs.db",
            "train/a/LICENSE",
            "train/a/._x.png",
            "train/.git/x.jpg",
        ]);
        let dataset = Dataset::read(root.path()).unwrap();
        assert_eq!(dataset.train.classes, ["a", "b"]);
        let names: Vec<_> = dataset
            .train
            .photos
            .iter()
            .map(|p| (p.class, p.path.file_name().unwrap()))
            .collect();
        assert_eq!(
            names,
            [
                (0, "x.PNG".as_ref()),
                (1, "1.jpg".as_ref()),
                (1, "2.jpg".as_ref())
            ]
        );
        assert!(dataset.val.is_none());
        assert_eq!(dataset.ignored(), 3);
    }

    #[test]
    fn photos_without_an_extension_are_known_by_their_first_bytes() {
        let root = folder(&["a/LICENSE", "a/1.jpg", "b/2.jpg"]);
        fs::write(root.path().join("b/photo"), b"\xff\xd8\xff\xe0").unwrap();
        let dataset = Dataset::read(root.path()).unwrap();
        assert_eq!((dataset.train.photos.len(), dataset.ignored()), (3, 1));
    }

    #[test]
    fn classes_may_lie_in_the_folder_itself() {
        let root = folder(&["a/1.jpg", "b/1.jpg"]);
        assert_eq!(
            Dataset::read(root.path()).unwrap().train.classes,
            ["a", "b"]
        );
    }

    #[test]
    fn unusable_folders_are_refused_with_the_reason() {
        for (files, reason) in [
            (&["README.md"][..], "no class folders"),
            (&["train/a/1.jpg"], "one class, \"a\""),
            (
                &["train/a/1.jpg", "train/b/", "train/c/"],
                "no photos in \"b\", \"c\"",
            ),
            (
                &[
                    "train/a/1.jpg",
                    "train/b/1.jpg",
                    "val/a/1.jpg",
                    "val/c/1.jpg",
                ],
                "\"b\" only in `train`, \"c\" only in `val`",
            ),
            (&["val/a/1.jpg", "val/b/1.jpg"], "none called `train`"),
            (&["a/1.jpg", "b/1.xml"], "no photos in \"b\""),
        ] {
            let error = refusal(files);
            assert!(error.contains(reason), "{files:?}: {error}");
        }
        assert!(
            Dataset::read(Path::new("/no/such"))
                .unwrap_err()
                .to_string()
                .contains("/no/such")
        );
    }
}
