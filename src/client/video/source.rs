//! The source of a video, parsed from what a user writes.

use std::{
    convert::Infallible,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::files::has_image_extension;

/// Where a video comes from.
///
/// It parses from `-` (standard input), `camera:NAME`, a URL, or the path of a file or folder:
///
/// ```
/// use resnet18_server::client::video::VideoSource;
///
/// let source: VideoSource = "rtsp://camera.lan/live".parse()?;
/// assert!(source.is_live());
/// # Ok::<(), std::convert::Infallible>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VideoSource {
    /// A video file, or an image, which is a video of one frame.
    File(PathBuf),
    /// A folder of images.
    Directory(PathBuf),
    /// A camera, by the platform's name for it: `/dev/video0` on Linux, an index on macOS, a name
    /// on Windows.
    Camera(String),
    /// A network stream that `ffmpeg` can open, such as `rtsp://` or `https://`.
    Url(String),
    /// Standard input, in any format that `ffmpeg` recognizes.
    Stdin,
}

impl VideoSource {
    /// Whether the source sets the pace, so that frames that are not read in time are lost or
    /// stale.
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Camera(_) | Self::Url(_) | Self::Stdin)
    }

    /// Whether the source is a camera or a URL, which may fall silent, fail and come back.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Camera(_) | Self::Url(_))
    }

    /// The file of a source that is a single image, by its name. A GIF may be animated, so it
    /// counts as a video.
    pub fn image(&self) -> Option<&Path> {
        let Self::File(path) = self else {
            return None;
        };
        let animated = path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("gif"));
        (has_image_extension(path) && !animated).then_some(path)
    }
}

impl FromStr for VideoSource {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "-" {
            Self::Stdin
        } else if let Some(camera) = text.strip_prefix("camera:") {
            let number = cfg!(target_os = "linux")
                && !camera.is_empty()
                && camera.bytes().all(|b| b.is_ascii_digit());
            Self::Camera(if number {
                format!("/dev/video{camera}")
            } else {
                camera.into()
            })
        } else if text.starts_with("/dev/video") {
            Self::Camera(text.into())
        } else if text.contains("://") {
            Self::Url(text.into())
        } else {
            let path = PathBuf::from(text);
            if path.is_dir() {
                Self::Directory(path)
            } else {
                Self::File(path)
            }
        })
    }
}

impl fmt::Display for VideoSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) | Self::Directory(path) => path.display().fmt(f),
            Self::Camera(name) => write!(f, "camera {name}"),
            Self::Url(url) => f.write_str(url),
            Self::Stdin => f.write_str("standard input"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::VideoSource::{self, *};

    #[test]
    fn images_are_told_from_videos() {
        for (path, image) in [
            ("a.JPG", true),
            ("b.png", true),
            (".c.png", true),
            ("c.gif", false),
            ("d.mp4", false),
            ("e", false),
        ] {
            assert_eq!(File(path.into()).image().is_some(), image, "{path}");
        }
    }

    #[test]
    fn sources_are_recognized_by_their_form() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().to_str().unwrap();
        for (text, expected) in [
            ("-", Stdin),
            ("/dev/video2", Camera("/dev/video2".into())),
            ("rtsp://cam.lan/live", Url("rtsp://cam.lan/live".into())),
            ("clips/a.mp4", File("clips/a.mp4".into())),
            (folder, Directory(folder.into())),
        ] {
            assert_eq!(text.parse::<VideoSource>().unwrap(), expected);
        }
        let camera = if cfg!(target_os = "linux") {
            "/dev/video0"
        } else {
            "0"
        };
        assert_eq!(
            "camera:0".parse::<VideoSource>().unwrap(),
            Camera(camera.into())
        );
    }
}
