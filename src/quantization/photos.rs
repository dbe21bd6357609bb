//! Photos to calibrate with and others to check the result: a sample of a folder.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::QuantizationError;
use crate::{
    image::{PreprocessConfig, Preprocessor, Source},
    model::Model,
};

/// Larger files are not read, in bytes.
const LARGEST_FILE: u64 = 64 << 20;
/// The most files that are looked at in a folder.
const MOST_FILES: usize = 1_000_000;
/// The most memory for crops, in bytes.
const CROPS: usize = 512 << 20;
/// Fewer photos tell nothing.
const FEWEST: usize = 8;

/// A photo, as the network sees it.
pub struct Photo {
    /// `uint8 [height, width, 3]`.
    pub crop: Vec<u8>,
    /// The class that its folder is named after, if it is one of the model's.
    pub class: Option<usize>,
}

/// A sample of a folder's photos.
pub struct Photos {
    /// Those to calibrate with.
    pub calibration: Vec<Photo>,
    /// Others, to check the result.
    pub check: Vec<Photo>,
    /// Files that are no image that can be read.
    pub skipped: usize,
    /// Names all of the photos and how they were divided.
    pub digest: [u8; 32],
}

impl Photos {
    /// Takes `calibration` photos and then up to as many others, at least a fifth of all, in an
    /// order that depends on the files' names alone; `progress` hears how many there are. Every
    /// file below `folder` is tried.
    ///
    /// # Errors
    /// A folder that can't be read; fewer than eight photos.
    pub fn sample(
        folder: &Path,
        calibration: usize,
        model: &Model,
        preprocess: PreprocessConfig,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self, QuantizationError> {
        let files =
            files(folder).map_err(|(path, source)| QuantizationError::Folder { path, source })?;
        let most = (CROPS / model.geometry.bytes().max(1)).max(FEWEST);
        let wanted = (2 * calibration).min(most).min(files.len());
        let mut preprocessor = Preprocessor::new(preprocess);
        let mut photos: Vec<Photo> = Vec::with_capacity(wanted);
        let mut hash = Sha256::new();
        let mut skipped = 0;
        for path in files {
            if photos.len() == wanted {
                break;
            }
            let mut crop = vec![0; model.geometry.bytes()];
            let read = read(&path).ok().filter(|content| {
                preprocessor
                    .crop(
                        &Source::Encoded(content.clone()),
                        &model.geometry,
                        &mut crop,
                    )
                    .is_ok()
            });
            let Some(content) = read else {
                skipped += 1;
                continue;
            };
            hash.update(Sha256::digest(&content));
            let of = path
                .parent()
                .and_then(Path::file_name)
                .map(|name| name.to_string_lossy().into_owned());
            let class = model
                .labels
                .iter()
                .position(|label| Some(label) == of.as_ref());
            photos.push(Photo { crop, class });
            progress(photos.len(), wanted);
        }
        if photos.len() < FEWEST {
            return Err(QuantizationError::TooFewPhotos {
                path: folder.to_owned(),
                found: photos.len(),
                skipped,
            });
        }
        let check = photos.split_off(calibration.min(photos.len() - photos.len().div_ceil(5)));
        hash.update((photos.len() as u64).to_le_bytes());
        Ok(Self {
            calibration: photos,
            check,
            skipped,
            digest: hash.finalize().into(),
        })
    }
}

fn read(path: &Path) -> io::Result<Bytes> {
    let mut content = Vec::new();
    File::open(path)?
        .take(LARGEST_FILE + 1)
        .read_to_end(&mut content)?;
    if content.len() as u64 > LARGEST_FILE {
        Err(io::ErrorKind::FileTooLarge.into())
    } else {
        Ok(content.into())
    }
}

/// Every file in any depth below `root`, without hidden ones, in a shuffled order that is always
/// the same.
fn files(root: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let mut folders = VecDeque::from([root.to_owned()]);
    let mut files = Vec::new();
    while let Some(folder) = folders.pop_front() {
        let failed = |error| (folder.clone(), error);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let kind = entry.file_type().map_err(failed)?;
            let path = entry.path();
            // A link to a folder may lead round in a circle.
            if kind.is_dir() {
                folders.push_back(path);
            } else if path.is_file() && files.len() < MOST_FILES {
                files.push(path);
            }
        }
    }
    files.sort_by_cached_key(|path| {
        let name = path.strip_prefix(root).unwrap_or(path);
        Sha256::digest(name.as_os_str().as_encoded_bytes())
    });
    Ok(files)
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
        let photos = sample(folder.path(), 12).unwrap();
        assert_eq!(
            (photos.calibration.len(), photos.check.len(), photos.skipped),
            (12, 8, 1)
        );
        let all = sample(folder.path(), 100).unwrap();
        assert_eq!((all.calibration.len(), all.check.len()), (16, 4));
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
