//! A folder of images, or a single one, read as a video.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{DEFAULT_FPS, VideoError, VideoOptions};
use crate::{
    client::MAX_MESSAGE_BYTES,
    files::{self, ReadError, has_image_name},
    proto::Image,
};

/// The images of a folder in the order of their names; the files are sent as they are.
pub struct DirectoryFrames {
    /// The number of files of the folder that are no images by their names.
    pub ignored: usize,
    paths: Vec<PathBuf>,
    next: usize,
    repeat: bool,
    pace: Option<Interval>,
}

impl DirectoryFrames {
    /// Lists the images of a folder, by their extensions.
    pub fn open(folder: &Path, options: &VideoOptions) -> Result<Self, VideoError> {
        let read_error = |error| VideoError::Read {
            path: folder.into(),
            error,
        };
        let mut paths = Vec::new();
        let mut ignored = 0;
        for entry in fs::read_dir(folder).map_err(read_error)? {
            let entry = entry.map_err(read_error)?;
            let path = entry.path();
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if hidden || !path.is_file() {
                continue;
            }
            if has_image_name(&path) {
                paths.push(path);
            } else {
                ignored += 1;
            }
        }
        if paths.is_empty() {
            return Err(VideoError::NoImages(folder.into()));
        }
        paths.sort();
        Ok(Self {
            ignored,
            ..Self::new(paths, options)
        })
    }

    /// A single image, which is a video of one frame.
    pub fn single(image: &Path, options: &VideoOptions) -> Result<Self, VideoError> {
        if !image.exists() {
            return Err(VideoError::NotFound(image.into()));
        }
        Ok(Self::new(vec![image.into()], options))
    }

    fn new(paths: Vec<PathBuf>, options: &VideoOptions) -> Self {
        let pace = options.real_time.then(|| {
            let fps = options.fps.unwrap_or(DEFAULT_FPS);
            let mut pace = interval(Duration::from_secs_f64(1.0 / fps));
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pace
        });
        Self {
            ignored: 0,
            paths,
            next: 0,
            repeat: options.repeat,
            pace,
        }
    }

    /// Reads the next image; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Image>, VideoError> {
        if self.next == self.paths.len() && self.repeat {
            self.next = 0;
        }
        let Some(path) = self.paths.get(self.next) else {
            return Ok(None);
        };
        if let Some(pace) = &mut self.pace {
            pace.tick().await;
        }

        let content = files::read_limited_async(path, MAX_MESSAGE_BYTES as u64)
            .await
            .map_err(|ReadError { path, reason }| VideoError::Read {
                path,
                error: reason.into(),
            })?;
        self.next += 1;
        Ok(Some(Image::encoded(content)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::video::VideoSource;

    fn options(folder: &Path, repeat: bool) -> VideoOptions {
        VideoOptions {
            repeat,
            ..VideoOptions::new(VideoSource::Directory(folder.into()))
        }
    }

    #[tokio::test]
    async fn images_come_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.PNG", "a.jpg", "notes.txt", "c.webp", "._a.jpg"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        fs::create_dir(folder.path().join("d.jpg")).unwrap();
        for repeat in [false, true] {
            let mut directory =
                DirectoryFrames::open(folder.path(), &options(folder.path(), repeat)).unwrap();
            assert_eq!(directory.ignored, 1);
            for expected in ["a.jpg", "b.PNG", "c.webp"] {
                let image = directory.next().await.unwrap().unwrap();
                assert_eq!(image, Image::encoded(expected));
            }
            assert_eq!(directory.next().await.unwrap().is_some(), repeat);
        }
    }

    #[tokio::test]
    async fn a_single_image_is_one_frame_and_repeated_on_demand() {
        let image = tempfile::NamedTempFile::with_suffix(".jpg").unwrap();
        fs::write(image.path(), "photo").unwrap();
        for repeat in [false, true] {
            let options = options(image.path(), repeat);
            let mut frames = DirectoryFrames::single(image.path(), &options).unwrap();
            assert!(frames.next().await.unwrap().is_some());
            assert_eq!(frames.next().await.unwrap().is_some(), repeat);
        }
        let missing = DirectoryFrames::single(Path::new("/no.jpg"), &options(image.path(), true));
        assert!(matches!(missing, Err(VideoError::NotFound(_))));
    }

    #[test]
    fn a_folder_without_images_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let result = DirectoryFrames::open(folder.path(), &options(folder.path(), false));
        assert!(matches!(result, Err(VideoError::NoImages(_))));
    }
}
