//! Samples a folder of photos: some for calibration, and others for checking the result.

use std::{
    collections::VecDeque,
    fmt::Display,
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::QuantizationError;
use crate::{
    files::{LARGEST_PHOTO, read_limited},
    image::{PreprocessConfig, Preprocessor, Source, is_image_file},
    model::Model,
    offline::SkippedPhoto,
};

/// Most files of a folder that are considered.
const MAX_FILES: usize = 1_000_000;
/// Most memory for crops, in bytes.
const MAX_CROP_BYTES: usize = 512 << 20;
/// Least number of photos: fewer say nothing about the quality.
const MIN_PHOTOS: usize = 8;

/// A photo after scaling and cropping.
pub struct Photo {
    /// `uint8 [height, width, 3]`.
    pub crop: Vec<u8>,
    /// The class of the model that its folder is named after, if any.
    pub class: Option<usize>,
}

/// A sample of a folder's photos.
pub struct Photos {
    /// Photos for calibration.
    pub calibration: Vec<Photo>,
    /// Photos for checking the result.
    pub check: Vec<Photo>,
    /// Number of files that are no images by their names.
    pub ignored: usize,
    /// The images that can't be read.
    pub skipped: Vec<SkippedPhoto>,
    /// Hash of the photos and of how they were divided.
    pub digest: [u8; 32],
}

impl Photos {
    /// Samples up to `calibration` photos and up to as many others for the check, but at least a
    /// fifth of all, in a pseudorandom order that depends only on the files' names. Every image
    /// below `folder` is tried. `progress` is called with the number of photos read and their
    /// total.
    ///
    /// # Errors
    /// A folder that cannot be read; fewer than eight photos.
    pub fn sample(
        folder: &Path,
        calibration: usize,
        model: &Model,
        preprocess: PreprocessConfig,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self, QuantizationError> {
        let (files, ignored) =
            images(folder).map_err(|(path, source)| QuantizationError::Folder { path, source })?;
        let most = (MAX_CROP_BYTES / model.geometry.bytes().max(1)).max(MIN_PHOTOS);
        let wanted = (2 * calibration).min(most).min(files.len());

        let mut preprocessor = Preprocessor::new(preprocess);
        let mut photos: Vec<Photo> = Vec::with_capacity(wanted);
        let mut hash = Sha256::new();
        let mut skipped = Vec::new();
        for path in files {
            if photos.len() == wanted {
                break;
            }
            let mut crop = vec![0; model.geometry.bytes()];
            let content = match read_limited(&path, LARGEST_PHOTO) {
                Ok(content) => Bytes::from(content),
                Err(error) => {
                    skipped.push(skip(&path, &error.reason));
                    continue;
                }
            };
            let source = Source::Encoded(content.clone());
            if let Err(error) = preprocessor.crop(&source, &model.geometry, &mut crop) {
                skipped.push(skip(&path, &error));
                continue;
            }

            hash.update(Sha256::digest(&content));
            let folder_name = path
                .parent()
                .and_then(Path::file_name)
                .map(|name| name.to_string_lossy().into_owned());
            let class = model
                .labels
                .iter()
                .position(|label| Some(label) == folder_name.as_ref());
            photos.push(Photo { crop, class });
            progress(photos.len(), wanted);
        }
        if photos.len() < MIN_PHOTOS {
            return Err(QuantizationError::TooFewPhotos {
                path: folder.to_owned(),
                found: photos.len(),
                skipped: ignored + skipped.len(),
            });
        }

        let most_calibration = photos.len() - photos.len().div_ceil(5);
        let check = photos.split_off(calibration.min(most_calibration));
        hash.update((photos.len() as u64).to_le_bytes());
        Ok(Self {
            calibration: photos,
            check,
            ignored,
            skipped,
            digest: hash.finalize().into(),
        })
    }
}

fn skip(path: &Path, reason: &dyn Display) -> SkippedPhoto {
    SkippedPhoto {
        file: path.display().to_string(),
        reason: reason.to_string(),
    }
}

/// Every image at any depth below `root`, in an order that is pseudorandom but always the same, and
/// the number of files that are no images by their names. Hidden files are left out.
fn images(root: &Path) -> Result<(Vec<PathBuf>, usize), (PathBuf, io::Error)> {
    let mut folders = VecDeque::from([root.to_owned()]);
    let mut files = Vec::new();
    let mut ignored = 0;
    while let Some(folder) = folders.pop_front() {
        let failed = |error| (folder.clone(), error);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let kind = entry.file_type().map_err(failed)?;
            let path = entry.path();
            // Links to folders are not followed, because they may form a cycle.
            if kind.is_dir() {
                folders.push_back(path);
            } else if !path.is_file() {
                continue;
            } else if !is_image_file(&path) {
                ignored += 1;
            } else if files.len() < MAX_FILES {
                files.push(path);
            }
        }
    }
    files.sort_by_cached_key(|path| {
        let name = path.strip_prefix(root).unwrap_or(path);
        Sha256::digest(name.as_os_str().as_encoded_bytes())
    });
    Ok((files, ignored))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Overrides;

    const PHOTO: &[u8] = include_bytes!("../../tests/data/sunflower_q30.jpg");

    fn folder(photos: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for index in 0..photos {
            let class = folder.path().join(["any", "deep/er/sunflower"][index % 2]);
            fs::create_dir_all(&class).unwrap();
            fs::write(class.join(format!("{index}.jpg")), PHOTO).unwrap();
        }
        folder
    }

    fn sample(folder: &Path, calibration: usize) -> Result<Photos, QuantizationError> {
        let model = Model::bundled(&Overrides::default()).unwrap();
        Photos::sample(
            folder,
            calibration,
            &model,
            PreprocessConfig::default(),
            &|_, _| {},
        )
    }

    #[test]
    fn some_photos_are_always_kept_for_the_check() {
        let folder = folder(20);
        fs::write(folder.path().join("notes.txt"), "no photo").unwrap();
        fs::write(folder.path().join("torn.jpg"), &PHOTO[..40]).unwrap();
        let photos = sample(folder.path(), 12).unwrap();
        assert_eq!(
            (photos.calibration.len(), photos.check.len(), photos.ignored),
            (12, 8, 1)
        );
        assert!(photos.skipped.len() <= 1, "{:?}", photos.skipped);
        let all = sample(folder.path(), 100).unwrap();
        assert_eq!((all.calibration.len(), all.check.len()), (16, 4));
        assert!(all.skipped[0].file.ends_with("torn.jpg"));
        assert_ne!(photos.digest, all.digest);
        assert_eq!(
            photos.digest,
            sample(folder.path(), 12).unwrap().digest,
            "the order is always the same"
        );
        assert!(
            photos
                .calibration
                .iter()
                .chain(&photos.check)
                .any(|photo| photo.class.is_some())
        );
    }

    #[test]
    fn too_few_photos_are_refused_with_their_number() {
        let folder = folder(3);
        let error = sample(folder.path(), 100).err().unwrap().to_string();
        assert!(error.contains("3 photos"), "{error}");
        assert!(sample(&folder.path().join("none"), 100).is_err());
    }
}
