//! Where the pictures of a class come from: photos, frames of videos, a camera.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use crate::{
    cli::{CliError, files, output, values},
    client::video::{VideoError, VideoOptions, VideoReader, VideoSource},
    files::has_image_name,
    image::ImageFormat,
    proto::image::Source,
};

/// How many pictures are read ahead.
pub(super) const READ_AHEAD: usize = 2;
/// The shorter side of a frame, in pixels: more than networks need, and small to keep.
const SHORTER_SIDE: u32 = 480;
/// The time in which people show the camera what it is to see.
const COUNTDOWN: Duration = Duration::from_secs(3);
/// How much of a file tells whether it is an image, in bytes.
const HEAD: u64 = 4096;

/// How frames become pictures.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct VideoFlags {
    /// Take pictures of the class with a camera (/dev/video0, camera:0), or from a video or a URL
    /// (rtsp://...) [default without a value: camera:0].
    #[arg(long, env = "RESNET18_TEACH_CAMERA", value_name = "CAMERA", requires = "class",
          conflicts_with = "remove", num_args = 0..=1, default_missing_value = "camera:0")]
    camera: Option<VideoSource>,
    /// How many pictures to take of a camera or a video; those of a video file are spread over it.
    #[arg(long, env = "RESNET18_TEACH_TAKE", value_name = "N", default_value = "20",
          value_parser = values::at_most::<1000>)]
    pictures: std::num::NonZeroUsize,
    /// How many frames of a camera or a video to look at per second.
    #[arg(long, env = "RESNET18_TEACH_FPS", value_name = "N", default_value = "5",
          value_parser = values::rate)]
    fps: f64,
    /// The ffmpeg program, which reads cameras and videos.
    #[arg(
        long,
        env = "RESNET18_TEACH_FFMPEG",
        value_name = "PATH",
        default_value = "ffmpeg"
    )]
    ffmpeg: PathBuf,
}

impl VideoFlags {
    pub fn has_camera(&self) -> bool {
        self.camera.is_some()
    }
}

/// A picture, or why there is none.
pub(super) struct Picture {
    /// Where it comes from, for people.
    pub name: String,
    pub content: Result<Bytes, String>,
}

/// What is read one after the other.
#[derive(Debug)]
pub(super) struct Pictures {
    photos: Vec<PathBuf>,
    videos: Vec<VideoSource>,
    flags: VideoFlags,
    /// Whether somebody looks at a terminal.
    countdown: bool,
}

impl Pictures {
    /// Tells photos from videos among the `files`, and adds the camera.
    pub fn new(files: Vec<PathBuf>, flags: VideoFlags, json: bool) -> Self {
        let mut photos = Vec::new();
        let mut videos = Vec::new();
        for path in files {
            match video(&path) {
                Some(video) => videos.push(video),
                None => photos.push(path),
            }
        }
        videos.extend(flags.camera.clone());
        Self {
            photos,
            videos,
            flags,
            countdown: !json && console::user_attended_stderr(),
        }
    }

    /// Reads all pictures and sends them, until nobody receives them any more.
    ///
    /// # Errors
    /// A camera or video that can't be read. Pictures before it have been sent.
    pub async fn send(self, sender: mpsc::Sender<Picture>) -> Result<(), CliError> {
        let bar = output::progress(self.photos.len(), "Photos");
        for path in &self.photos {
            let content = files::read(path).await;
            let picture = Picture {
                name: files::name(path),
                content: content.map_err(|status| status.message().to_owned()),
            };
            // The server has answered: it refuses the call.
            if sender.send(picture).await.is_err() {
                break;
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        for video in &self.videos {
            if sender.is_closed() {
                break;
            }
            self.send_frames(video, &sender).await?;
        }
        Ok(())
    }

    async fn send_frames(
        &self,
        source: &VideoSource,
        sender: &mpsc::Sender<Picture>,
    ) -> Result<(), CliError> {
        let wanted = self.flags.pictures.get();
        let mut reader = VideoReader::open(&VideoOptions {
            fps: Some(self.flags.fps),
            shorter_side: SHORTER_SIDE,
            jpeg: true,
            ffmpeg: self.flags.ffmpeg.clone(),
            ..VideoOptions::new(source.clone())
        })
        .await?;
        if source.is_live() && self.countdown {
            count_down(&mut reader).await?;
        }

        let bar = output::progress(wanted, "Pictures");
        let mut number = 0;
        let mut send = async |content: Bytes| {
            number += 1;
            let picture = Picture {
                name: format!(
                    "picture {number} of {}",
                    output::escaped(&source.to_string())
                ),
                content: Ok(content),
            };
            bar.inc(1);
            sender.send(picture).await.is_ok()
        };
        let mut spread = Spread::new(wanted);
        let mut sent = 0;
        while let Some(frame) = next(&mut reader).await? {
            if !source.is_live() {
                spread.add(frame);
                continue;
            }
            sent += 1;
            if !send(frame).await || sent == wanted {
                break;
            }
        }
        for frame in spread.finish() {
            sent += 1;
            if !send(frame).await {
                break;
            }
        }
        bar.finish_and_clear();
        if sent == 0 {
            return Err(CliError::Failed(format!("{source} holds no frame")));
        }
        Ok(())
    }
}

/// The video at this path; `None` for photos, and for what is neither.
fn video(path: &Path) -> Option<VideoSource> {
    let source: VideoSource = path
        .to_str()?
        .parse()
        .unwrap_or_else(|never| match never {});
    if let VideoSource::Camera(_) = source {
        return Some(source);
    }
    if files::is_stdin(path) || has_image_name(path) || !path.is_file() {
        return None;
    }
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(HEAD).read_to_end(&mut head))
        .ok()?;
    let is_video = !head.is_empty() && ImageFormat::of(&head).is_none();
    is_video.then(|| VideoSource::File(path.to_owned()))
}

/// The next frame as a file.
async fn next(reader: &mut VideoReader) -> Result<Option<Bytes>, VideoError> {
    loop {
        match reader.next().await? {
            None => return Ok(None),
            Some(frame) => {
                if let Some(Source::Encoded(file)) = frame.image.source {
                    return Ok(Some(file));
                }
            }
        }
    }
}

/// Counts the seconds down, and passes over the frames of that time.
async fn count_down(reader: &mut VideoReader) -> Result<(), VideoError> {
    let bar = ProgressBar::new_spinner()
        .with_style(ProgressStyle::with_template("{msg}").expect("the template is valid"));
    let end = Instant::now() + COUNTDOWN;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        bar.set_message(format!("Pictures in {} s", left.as_secs() + 1));
        tokio::select! {
            frame = next(reader) => if frame?.is_none() { break },
            () = sleep(left) => {}
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Frames that are spread evenly over a video of unknown length, of which few are kept at a time.
struct Spread {
    wanted: usize,
    /// One frame in this many is kept.
    every: usize,
    seen: usize,
    kept: Vec<Bytes>,
}

impl Spread {
    fn new(wanted: usize) -> Self {
        Self {
            wanted,
            every: 1,
            seen: 0,
            kept: Vec::new(),
        }
    }

    fn add(&mut self, frame: Bytes) {
        if self.seen.is_multiple_of(self.every) {
            if self.kept.len() == 2 * self.wanted {
                let mut index = 0;
                self.kept.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                self.every *= 2;
            }
            if self.seen.is_multiple_of(self.every) {
                self.kept.push(frame);
            }
        }
        self.seen += 1;
    }

    /// The frames that were wanted, or all if there are fewer.
    fn finish(self) -> Vec<Bytes> {
        let (count, wanted) = (self.kept.len(), self.wanted.min(self.kept.len()));
        (0..wanted)
            .map(|index| self.kept[index * count / wanted].clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn spread(wanted: usize, frames: u32) -> Vec<u32> {
        let mut spread = Spread::new(wanted);
        for number in 0..frames {
            spread.add(Bytes::copy_from_slice(&number.to_le_bytes()));
            assert!(spread.kept.len() <= 2 * wanted);
        }
        let number = |frame: &Bytes| u32::from_le_bytes(frame[..].try_into().unwrap());
        spread.finish().iter().map(number).collect()
    }

    #[test]
    fn pictures_are_spread_over_a_video() {
        assert_eq!(spread(4, 3), [0, 1, 2]);
        assert_eq!(spread(4, 8), [0, 2, 4, 6]);
        for frames in [9_u32, 100, 1000, 12_345] {
            let found = spread(10, frames);
            assert_eq!(found.len(), 10.min(frames as usize));
            let gaps: Vec<u32> = found.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let (least, most) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
            assert!(*most <= 2 * least, "{frames}: {found:?}");
            assert!(found[9.min(found.len() - 1)] >= frames / 2, "{found:?}");
        }
    }

    #[test]
    fn videos_are_told_from_photos() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let png = b"\x89PNG\r\n\x1a\n0000";
        for photo in [
            at("a.jpg", b"torn"),
            at("unnamed", png),
            at("empty.mp4", b""),
            "-".into(),
            "no such.mp4".into(),
            "https://host/a.jpg".into(),
        ] {
            assert_eq!(video(&photo), None, "{}", photo.display());
        }
        let clip = at("a.mp4", b"\0\0\0\x18ftypisom0000");
        assert_eq!(video(&clip), Some(VideoSource::File(clip.clone())));
        let camera = video(Path::new("camera:0"));
        assert!(matches!(camera, Some(VideoSource::Camera(_))));
    }
}
