//! A folder of images, read as a video.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{DEFAULT_FPS, VideoError, VideoOptions};
use crate::{
    client::MAX_MESSAGE_BYTES,
    files::{self, ReadError},
    proto::Image,
};

const EXTENSIONS: [&str; 11] = [
    "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "pnm", "ppm", "pgm",
];

/// The images of a folder in the order of their names; the files are sent as they are.
pub struct DirectoryFrames {
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
        for entry in fs::read_dir(folder).map_err(read_error)? {
            let path = entry.map_err(read_error)?.path();
            if is_image(&path) && path.is_file() {
                paths.push(path);
            }
        }
        if paths.is_empty() {
            return Err(VideoError::NoImages(folder.into()));
        }
        paths.sort();

        let pace = options.real_time.then(|| {
            let fps = options.fps.unwrap_or(DEFAULT_FPS);
            let mut pace = interval(Duration::from_secs_f64(1.0 / fps));
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pace
        });
        Ok(Self {
            paths,
            next: 0,
            repeat: options.repeat,
            pace,
        })
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

fn is_image(path: &Path) -> bool {
    let extension = path
        .extension()
        .map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
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
        for name in ["b.PNG", "a.jpg", "notes.txt", "c.webp"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        fs::create_dir(folder.path().join("d.jpg")).unwrap();
        for repeat in [false, true] {
            let mut directory =
                DirectoryFrames::open(folder.path(), &options(folder.path(), repeat)).unwrap();
            for expected in ["a.jpg", "b.PNG", "c.webp"] {
                let image = directory.next().await.unwrap().unwrap();
                assert_eq!(image, Image::encoded(expected));
            }
            assert_eq!(directory.next().await.unwrap().is_some(), repeat);
        }
    }

    #[test]
    fn a_folder_without_images_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let result = DirectoryFrames::open(folder.path(), &options(folder.path(), false));
        assert!(matches!(result, Err(VideoError::NoImages(_))));
    }
}
