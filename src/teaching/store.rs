//! The pictures on the disk, `DIR/NAME/train/CLASS/HASH.jpg`: an ordinary dataset, within limits.
//!
//! The folder is the truth: what is there at the start is known, and pictures that somebody puts there
//! by hand are found when the dataset is listed or learned. Beside `train` lies `features`, with what
//! the base computes for each picture, which can be made again at any time.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use sha2::{Digest, Sha256};

use super::{TeachError, names};
use crate::{cache::hex, files::has_image_name, image::ImageFormat, sync::lock};

/// How many hexadecimal digits of a picture's hash are its name.
const HASH_DIGITS: usize = 32;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The size of all pictures, in bytes.
    pub bytes: u64,
    /// The pictures of a class.
    pub pictures: usize,
    /// The classes of a dataset.
    pub classes: usize,
    /// The datasets.
    pub datasets: usize,
}

/// The pictures of a class, by their names, with their sizes in bytes.
pub type ClassContent = BTreeMap<String, u64>;
/// The classes of a dataset, by their names.
pub type DatasetContent = BTreeMap<String, ClassContent>;

/// All datasets.
pub struct Store {
    folder: PathBuf,
    limits: Limits,
    contents: Mutex<Contents>,
}

#[derive(Default)]
struct Contents {
    datasets: BTreeMap<String, DatasetContent>,
    bytes: u64,
}

/// Where a picture belongs.
#[derive(Clone, Debug)]
struct Place {
    dataset: String,
    class: String,
    file: String,
}

/// A place for a picture, given up again unless the picture is kept.
pub struct Reserved {
    store: Arc<Store>,
    place: Place,
    bytes: u64,
    is_kept: bool,
}

/// What becomes of a picture before it is decoded.
pub enum Reservation {
    /// There is room for it.
    Room(Reserved),
    /// It is there already, under this name.
    Known(String),
    /// It is not kept, for this reason.
    Refused(String),
}

impl Store {
    /// Opens the folder, which is made if it is not there.
    ///
    /// # Errors
    /// If it can't be made, read or written.
    pub fn open(folder: &Path, limits: Limits) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let probe = temporary(&folder.join("probe"));
        fs::write(&probe, "")?;
        fs::remove_file(probe)?;

        let mut contents = Contents::default();
        for name in folders(folder)? {
            if folder.join(&name).join("train").is_dir() {
                let dataset = scan(&folder.join(&name))?;
                contents.bytes += size(&dataset);
                contents.datasets.insert(name, dataset);
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            limits,
            contents: Mutex::new(contents),
        })
    }

    /// The file of the model that is learned from a dataset.
    pub fn model(&self, dataset: &str) -> PathBuf {
        self.folder.join(format!("{dataset}.onnx"))
    }

    /// The names of all models in the folder.
    ///
    /// # Errors
    /// If the folder can't be read.
    pub fn models(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".onnx"));
            if let Some(name) = name.filter(|name| names::check("model", name).is_ok()) {
                found.push(name.to_owned());
            }
        }
        Ok(found)
    }

    /// The names of all datasets.
    pub fn names(&self) -> Vec<String> {
        lock(&self.contents).datasets.keys().cloned().collect()
    }

    /// The pictures of a dataset as they are on the disk now.
    ///
    /// # Errors
    /// An unknown dataset, or a folder that can't be read.
    pub fn dataset(&self, name: &str) -> Result<DatasetContent, TeachError> {
        names::check("dataset", name)?;
        let unknown = || TeachError::Unknown(format!("there is no dataset \"{name}\""));
        let folder = self.folder.join(name);
        // Held while the disk is read, so that no picture that is kept meanwhile is forgotten.
        let mut contents = lock(&self.contents);
        if !folder.join("train").is_dir() {
            if let Some(gone) = contents.datasets.remove(name) {
                contents.bytes -= size(&gone);
            }
            return Err(unknown());
        }
        let found = scan(&folder).map_err(TeachError::file(&folder))?;
        contents.bytes += size(&found);
        if let Some(before) = contents.datasets.insert(name.to_owned(), found.clone()) {
            contents.bytes -= size(&before);
        }
        Ok(found)
    }

    /// Where a picture of a dataset lies.
    pub fn path(&self, dataset: &str, class: &str, file: &str) -> PathBuf {
        self.folder
            .join(dataset)
            .join("train")
            .join(class)
            .join(file)
    }

    /// Where a picture lies that is known, or else is on the disk now.
    ///
    /// # Errors
    /// If there is nothing of that name.
    pub fn find(&self, dataset: &str, class: &str, file: &str) -> Result<PathBuf, TeachError> {
        let is_in = |found: &DatasetContent| {
            let pictures = found.get(class);
            pictures.is_some_and(|pictures| pictures.contains_key(file))
        };
        let is_known = lock(&self.contents)
            .datasets
            .get(dataset)
            .is_some_and(is_in);
        if is_known || is_in(&self.dataset(dataset)?) {
            return Ok(self.path(dataset, class, file));
        }
        let [class, file] = [class, file].map(|name| name.chars().take(100).collect::<String>());
        Err(TeachError::Unknown(format!(
            "\"{dataset}\" has no class \"{class}\" with a picture \"{file}\""
        )))
    }

    /// Makes room for a picture, by its content.
    ///
    /// # Errors
    /// Names that are not safe as paths.
    pub fn reserve(
        self: &Arc<Self>,
        dataset: &str,
        class: &str,
        content: &[u8],
    ) -> Result<Reservation, TeachError> {
        names::check("dataset", dataset)?;
        names::check("class", class)?;
        let Some(format) = ImageFormat::of(content) else {
            return Ok(Reservation::Refused(format!(
                "it is not an image; accepted are {}",
                ImageFormat::ACCEPTED
            )));
        };
        let hash = hash(content);
        let file = format!("{hash}.{}", extension(format));
        let bytes = content.len() as u64;

        let mut contents = lock(&self.contents);
        if let Some(known) = contents.datasets.get(dataset) {
            for (of, pictures) in known {
                if let Some(name) = pictures.keys().find(|name| stem(name) == hash) {
                    return Ok(if of == class {
                        Reservation::Known(name.clone())
                    } else {
                        Reservation::Refused(format!(
                            "the same picture is in the class \"{of}\" already"
                        ))
                    });
                }
            }
        }
        if let Some(reason) = self.limits.refuse(&contents, dataset, class, bytes) {
            return Ok(Reservation::Refused(reason));
        }
        let pictures = contents
            .datasets
            .entry(dataset.to_owned())
            .or_default()
            .entry(class.to_owned())
            .or_default();
        pictures.insert(file.clone(), bytes);
        contents.bytes += bytes;
        Ok(Reservation::Room(Reserved {
            store: Arc::clone(self),
            place: Place {
                dataset: dataset.to_owned(),
                class: class.to_owned(),
                file,
            },
            bytes,
            is_kept: false,
        }))
    }

    /// Removes pictures of a class, all of a class (`None`), or a whole dataset with its features.
    /// Files that are no pictures stay, and the folders that hold them.
    ///
    /// # Errors
    /// If there is nothing of that name, or a file can't be removed.
    pub fn remove(
        &self,
        dataset: &str,
        class: Option<&str>,
        pictures: &[String],
    ) -> Result<usize, TeachError> {
        let found = self.dataset(dataset)?;
        let mut doomed = Vec::new();
        match class {
            None => {
                for (class, pictures) in &found {
                    doomed.extend(pictures.keys().map(|file| (class.as_str(), file.as_str())));
                }
            }
            Some(class) => {
                let (class, content) = found.get_key_value(class).ok_or_else(|| {
                    TeachError::Unknown(format!("\"{dataset}\" has no class \"{class}\""))
                })?;
                // By the names that were found, so that no other path can be named.
                for picture in pictures {
                    let (file, _) = content.get_key_value(picture).ok_or_else(|| {
                        TeachError::Unknown(format!(
                            "\"{class}\" has no picture \"{}\"",
                            picture.chars().take(100).collect::<String>()
                        ))
                    })?;
                    doomed.push((class.as_str(), file.as_str()));
                }
                if pictures.is_empty() {
                    doomed.extend(content.keys().map(|file| (class.as_str(), file.as_str())));
                }
            }
        }
        let removed = doomed.len();
        for (class, file) in doomed {
            let path = self.path(dataset, class, file);
            fs::remove_file(&path).map_err(TeachError::file(&path))?;
        }

        let folder = self.folder.join(dataset);
        for class in folders(&folder.join("train")).unwrap_or_default() {
            // Those that still hold something stay.
            let _ = fs::remove_dir(folder.join("train").join(class));
        }
        if class.is_none() {
            let _ = fs::remove_dir_all(folder.join("features"));
        }
        let is_empty = fs::remove_dir(folder.join("train")).is_ok();
        if is_empty {
            let _ = fs::remove_dir_all(folder.join("features"));
            let _ = fs::remove_dir(&folder);
        }
        match self.dataset(dataset) {
            Ok(_) | Err(TeachError::Unknown(_)) => Ok(removed),
            Err(error) => Err(error),
        }
    }

    /// The features of a picture as they were kept, if there are as many as there should be.
    pub fn features(
        &self,
        dataset: &str,
        key: &str,
        hash: &str,
        length: usize,
    ) -> Option<Vec<f32>> {
        let bytes = fs::read(self.features_path(dataset, key, hash)).ok()?;
        let (values, rest) = bytes.as_chunks::<4>();
        let is_whole = values.len() == length && rest.is_empty();
        is_whole.then(|| {
            values
                .iter()
                .map(|value| f32::from_le_bytes(*value))
                .collect()
        })
    }

    /// Keeps the features of a picture. They can be computed again, so a failure is only logged.
    pub fn keep_features(&self, dataset: &str, key: &str, hash: &str, features: &[f32]) {
        let path = self.features_path(dataset, key, hash);
        let bytes: Vec<u8> = features.iter().flat_map(|x| x.to_le_bytes()).collect();
        if let Err(error) = write(&path, &bytes) {
            tracing::warn!("{}: can't be kept: {error}", path.display());
        }
    }

    /// Removes the features of pictures that are gone, and those of other bases.
    pub fn tidy_features(&self, dataset: &str, key: &str, hashes: &[String]) {
        let root = self.folder.join(dataset).join("features");
        for other in folders(&root).unwrap_or_default() {
            if other != key {
                let _ = fs::remove_dir_all(root.join(other));
            }
        }
        let current = root.join(key);
        for entry in fs::read_dir(&current).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if !hashes.iter().any(|hash| name == hash.as_str()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn features_path(&self, dataset: &str, key: &str, hash: &str) -> PathBuf {
        self.folder
            .join(dataset)
            .join("features")
            .join(key)
            .join(hash)
    }
}

impl Limits {
    /// Why there is no room for a picture of this size.
    fn refuse(
        &self,
        contents: &Contents,
        dataset: &str,
        class: &str,
        bytes: u64,
    ) -> Option<String> {
        let known = contents.datasets.get(dataset);
        let classes = known.map_or(0, BTreeMap::len);
        let pictures = known.and_then(|known| known.get(class));
        if known.is_none() && contents.datasets.len() >= self.datasets {
            return Some(format!(
                "there are {} datasets, the most that this server keeps (its flag --teach-datasets)",
                contents.datasets.len()
            ));
        }
        if pictures.is_none() && classes >= self.classes {
            return Some(format!(
                "\"{dataset}\" has {classes} classes, the most that a dataset may have (the server's \
                 flag --teach-classes)"
            ));
        }
        let count = pictures.map_or(0, BTreeMap::len);
        if count >= self.pictures {
            return Some(format!(
                "\"{class}\" has {count} pictures, the most that a class may have (the server's flag \
                 --teach-pictures)"
            ));
        }
        (contents.bytes.saturating_add(bytes) > self.bytes).then(|| {
            format!(
                "the pictures of all datasets would have more than {} MiB, the most that this server \
                 keeps (its flag --teach-mib)",
                self.bytes >> 20
            )
        })
    }
}

impl Reserved {
    /// The name of the picture's file.
    pub fn file(&self) -> &str {
        &self.place.file
    }

    /// The hash of the picture's content, which names its features.
    pub fn hash(&self) -> &str {
        stem(&self.place.file)
    }

    /// The dataset that it belongs to.
    pub fn dataset(&self) -> &str {
        &self.place.dataset
    }

    /// The store that holds the place.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Writes the picture.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn keep(mut self, content: &[u8]) -> Result<(), TeachError> {
        let Place {
            dataset,
            class,
            file,
        } = &self.place;
        let path = self.store.path(dataset, class, file);
        write(&path, content).map_err(TeachError::file(&path))?;
        self.is_kept = true;
        // The disk may have been read meanwhile, where the picture was not yet.
        let mut contents = lock(&self.store.contents);
        let classes = contents.datasets.entry(dataset.clone()).or_default();
        let pictures = classes.entry(class.clone()).or_default();
        if pictures.insert(file.clone(), self.bytes).is_none() {
            contents.bytes += self.bytes;
        }
        Ok(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let Place {
            dataset,
            class,
            file,
        } = &self.place;
        let mut contents = lock(&self.store.contents);
        let Some(classes) = contents.datasets.get_mut(dataset) else {
            return;
        };
        let Some(pictures) = classes.get_mut(class) else {
            return;
        };
        // The disk may have been read meanwhile, where the picture is not yet.
        let removed = pictures.remove(file).is_some();
        if pictures.is_empty() {
            classes.remove(class);
        }
        if classes.is_empty() {
            contents.datasets.remove(dataset);
        }
        if removed {
            contents.bytes -= self.bytes;
        }
    }
}

/// The hash of a picture's content, as its name holds it.
pub fn hash(content: &[u8]) -> String {
    hex(&Sha256::digest(content))[..HASH_DIGITS].to_owned()
}

/// The hash of a picture that was named by it; others were put there by hand.
pub fn hash_in_name(file: &str) -> Option<&str> {
    let stem = stem(file);
    let is_hash = stem.len() == HASH_DIGITS
        && stem
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_hash.then_some(stem)
}

fn stem(file: &str) -> &str {
    file.rsplit_once('.').map_or(file, |(stem, _)| stem)
}

fn extension(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "jpg",
        ImageFormat::Png => "png",
        ImageFormat::WebP => "webp",
        ImageFormat::Gif => "gif",
        ImageFormat::Bmp => "bmp",
        ImageFormat::Tiff => "tif",
        ImageFormat::Pnm => "pnm",
        ImageFormat::Heic => "heic",
        ImageFormat::Avif => "avif",
        ImageFormat::Qoi => "qoi",
        ImageFormat::Ico => "ico",
        ImageFormat::Tga => "tga",
    }
}

fn size(dataset: &DatasetContent) -> u64 {
    dataset.values().flat_map(BTreeMap::values).sum()
}

/// The pictures in `folder/train`, as `train` finds them.
fn scan(folder: &Path) -> io::Result<DatasetContent> {
    let root = folder.join("train");
    let mut found = DatasetContent::new();
    for class in folders(&root)? {
        let mut pictures = ClassContent::new();
        for entry in fs::read_dir(root.join(&class))? {
            let entry = entry?;
            let path = entry.path();
            let name = entry.file_name().into_string().ok();
            let Some(name) = name.filter(|_| has_image_name(&path)) else {
                continue;
            };
            let metadata = fs::metadata(&path)?;
            if metadata.is_file() {
                pictures.insert(name, metadata.len());
            }
        }
        if !pictures.is_empty() {
            found.insert(class, pictures);
        }
    }
    Ok(found)
}

/// The folders in a folder whose names are safe, which leaves hidden ones out.
fn folders(root: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string()
            && names::check("folder", &name).is_ok()
            && entry.path().is_dir()
        {
            found.push(name);
        }
    }
    Ok(found)
}

/// Writes a file whole or not at all, and the folders that lead to it.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = temporary(path);
    let written = fs::File::create(&temporary)
        .and_then(|mut file| {
            io::Write::write_all(&mut file, content)?;
            // Without this, a crash of the machine after the renaming could leave an empty file.
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn temporary(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.{number}.tmp", process::id()))
}
