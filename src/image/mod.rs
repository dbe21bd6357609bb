//! Preprocessing: turns untrusted image files and raw frames into upright RGB8 crops at the model's
//! input size.
//!
//! [`Preprocessor`] is the entry point. An image file is identified ([`ImageFormat`]), checked
//! against the limits of [`PreprocessConfig`], and decoded to [`Pixels`]; [`Resizer`] then scales,
//! crops and turns the pixels upright in one pass. Where rows can be scaled as they are decoded, no
//! picture is in memory whole. What takes too long is abandoned, and `estimate` tells before what
//! an image will cost. All errors are [`ImageError`]s.

mod bmp;
mod budget;
mod convolution;
mod crop;
mod crop_plan;
mod decode;
mod error;
mod estimate;
mod geometry;
mod gif;
mod guard;
mod heif;
mod ico;
mod jpeg;
mod orientation;
mod outline;
mod pixels;
mod png;
mod pnm;
mod qoi;
mod raw;
mod region;
mod resize;
mod rows;
mod sampling;
mod simd;
mod sniff;
mod source_view;
mod task_group;
#[cfg(test)]
mod tests;
mod tga;
mod tiff;
mod webp;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

#[cfg(unix)]
pub use self::heif::av1::{decode_av1, decode_av1_with};
use self::{budget::Budget, guard::guarded, jpeg::Needed, rows::Decoded, task_group::Help};
pub use self::{
    crop::Crop,
    decode::decode,
    error::ImageError,
    estimate::{Estimate, estimate},
    geometry::{Filter, Fit, Geometry},
    orientation::Orientation,
    pixels::{PixelLayout, Pixels},
    region::{Region, RegionError, RegionUnit},
    resize::Resizer,
    sniff::{ImageFormat, is_image_file},
    task_group::{Assist, Helpers},
};
use crate::metrics;

/// An image as a caller sent it.
#[derive(Clone, Debug)]
pub enum Source {
    /// The content of an image file.
    Encoded(Bytes),
    /// Uncompressed pixels.
    Raw(RawFrame),
    /// A crop that the caller prepared; it needs no decoding.
    Crop(Crop),
}

impl Source {
    /// The size of the image as it was sent, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Encoded(bytes) => bytes.len(),
            Self::Raw(frame) => frame.data.len(),
            Self::Crop(Crop::Pixels(data) | Crop::Normalized { values: data, .. }) => data.len(),
        }
    }
}

/// An uncompressed image, such as a frame of a video.
#[derive(Clone, Debug)]
pub struct RawFrame {
    pub format: PixelFormat,
    pub width: u32,
    pub height: u32,
    /// Bytes from the start of one row to the start of the next; 0 means that rows are packed.
    pub stride: u32,
    /// Plane after plane, the rows of each from top to bottom.
    pub data: Bytes,
}

/// The memory format of a [`RawFrame`]'s pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelFormat {
    Rgb8,
    Bgr8,
    Rgba8,
    Bgra8,
    Gray8,
    /// A plane of luma, then one of interleaved Cb and Cr at half the width and height.
    Nv12,
    /// A plane of luma, then one of Cb and one of Cr, both at half the width and height.
    I420,
}

/// What to do about the orientation in an image's EXIF metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Exif {
    /// Turn the image upright, as image viewers do.
    #[default]
    Apply,
    /// Use the pixels as they are stored, as Pillow does by default.
    Ignore,
}

/// Whether large JPEGs are scaled down while they are decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum JpegScaling {
    /// Always decode at full size; answers are exactly those for the whole image.
    #[default]
    Off,
    /// Decode at a half, a quarter or an eighth of the size, as long as the shorter side keeps at
    /// least twice the pixels that the resizer needs.
    Auto,
}

impl JpegScaling {
    /// The smallest shorter side to decode to, for an image that will then be resized to a shorter
    /// side of `resized` pixels; `None` means full size.
    fn min_shorter_side(self, resized: u32) -> Option<u32> {
        match self {
            Self::Off => None,
            Self::Auto => resized.checked_mul(2),
        }
    }
}

/// The preprocessing settings that do not depend on the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreprocessConfig {
    /// Whether images are turned upright.
    pub exif: Exif,
    /// The most pixels (width times height) that an image may have. Larger images are rejected by
    /// their headers, before memory is reserved for them.
    pub max_pixels: u64,
    /// The memory that decoding an image may take, in bytes, as its headers tell.
    pub max_memory: u64,
    /// Whether large JPEGs are scaled down while they are decoded.
    pub jpeg_scaling: JpegScaling,
    /// The CPU time that decoding an image may take before it is abandoned.
    pub max_decode_time: Duration,
}

impl Default for PreprocessConfig {
    fn default() -> Self {
        Self {
            exif: Exif::Apply,
            max_pixels: 64_000_000,
            max_memory: u64::MAX,
            jpeg_scaling: JpegScaling::Off,
            max_decode_time: Duration::from_secs(10),
        }
    }
}

impl PreprocessConfig {
    /// The most pixels of a row or a column. Every row costs some time, however short it is.
    const MAX_SIDE: u32 = 1_000_000;

    /// The memory that a decoder may reserve, in bytes: enough for the largest accepted image in
    /// the widest pixel type (16-bit RGBA), and for the decoder's own tables.
    fn max_decoded_bytes(&self) -> u64 {
        const BYTES_PER_PIXEL: u64 = 8;
        const TABLES: u64 = 16 << 20;
        self.max_pixels
            .saturating_mul(BYTES_PER_PIXEL)
            .saturating_add(TABLES)
    }

    fn check_size(&self, width: u32, height: u32) -> Result<(), ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::ZeroSize { width, height });
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(ImageError::TooManyPixels {
                width,
                height,
                max_pixels: self.max_pixels,
            });
        }
        if width.max(height) > Self::MAX_SIDE {
            return Err(ImageError::SideTooLong {
                width,
                height,
                max_side: Self::MAX_SIDE,
            });
        }
        Ok(())
    }
}

/// Compresses a crop as JPEG and decompresses it, if the network is to see that, unless the caller has
/// prepared the crop.
fn recompress(source: &Source, geometry: &Geometry, crop: &mut [u8]) {
    if let Some(quality) = geometry.recompress
        && !matches!(source, Source::Crop(_))
    {
        jpeg::recompress(crop, geometry.width as usize, quality);
    }
}

/// Makes crops of images. Its buffers are reused, so every worker thread should have its own.
#[derive(Debug)]
pub struct Preprocessor {
    config: PreprocessConfig,
    pixels: Pixels,
    /// A region of them.
    part: Pixels,
    resizer: Resizer,
    /// Other threads that may help with an image.
    helpers: Option<Arc<dyn Helpers>>,
    /// The CPU time that they have spent on the last one.
    helped: Duration,
}

impl Preprocessor {
    /// Buffers larger than this, in bytes, are freed after the image instead of kept for the next
    /// one. 16 megapixels of RGB fit.
    const MAX_KEPT_MEMORY: usize = 56 << 20;

    pub fn new(config: PreprocessConfig) -> Self {
        Self {
            config,
            pixels: Pixels::default(),
            part: Pixels::default(),
            resizer: Resizer::default(),
            helpers: None,
            helped: Duration::ZERO,
        }
    }

    /// Has other threads help with images while they have nothing else to do. The crops are the
    /// same.
    pub fn with_helpers(mut self, helpers: Arc<dyn Helpers>) -> Self {
        self.helpers = Some(helpers);
        self
    }

    /// The CPU time that other threads have spent on the last image.
    pub fn helped(&self) -> Duration {
        self.helped
    }

    /// Writes the upright crop of `source` as `geometry.height` x `geometry.width` x 3 bytes of
    /// RGB8.
    ///
    /// # Errors
    /// An [`ImageError`] that says why the image cannot be used. The content of `crop` is
    /// unspecified then, and the preprocessor is ready for the next image.
    pub fn crop(
        &mut self,
        source: &Source,
        geometry: &Geometry,
        crop: &mut [u8],
    ) -> Result<(), ImageError> {
        self.guard(source, |this| {
            this.crop_unguarded(source, geometry, crop)?;
            recompress(source, geometry, crop);
            Ok(())
        })
    }

    /// Decodes `source` once, and writes the crop of each of its `regions`, as [`Self::crop`] would
    /// write that of the region as an image of its own, into the one of `crops` in its place.
    ///
    /// # Errors
    /// As for [`Self::crop`], and [`ImageError::Region`].
    pub fn crop_regions(
        &mut self,
        source: &Source,
        regions: &[Region],
        geometry: &Geometry,
        crops: &mut [Vec<u8>],
    ) -> Result<(), ImageError> {
        self.guard(source, |this| {
            this.crop_regions_unguarded(source, regions, geometry, crops)?;
            for crop in &mut *crops {
                recompress(source, geometry, crop);
            }
            Ok(())
        })
    }

    /// Runs what decodes and crops `source`.
    fn guard(
        &mut self,
        source: &Source,
        work: impl FnOnce(&mut Self) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let format = match source {
            Source::Encoded(encoded) => ImageFormat::of(encoded),
            Source::Raw(_) | Source::Crop(_) => None,
        };
        self.helped = Duration::ZERO;
        let result = guarded(format, || work(self));

        let memory =
            self.pixels.data.capacity() + self.part.data.capacity() + self.resizer.memory();
        if result.is_none() || memory > Self::MAX_KEPT_MEMORY {
            *self = Self {
                helpers: self.helpers.take(),
                helped: self.helped,
                ..Self::new(self.config)
            };
        }
        if matches!(result, Some(Err(ImageError::TookTooLong { .. }))) {
            metrics::decode_timed_out();
        }
        result.unwrap_or(Err(ImageError::DecoderPanic))
    }

    /// Returns how many bytes decoding may take beyond what it needs.
    fn check_memory(
        &self,
        source: &Source,
        regions: &[Region],
        geometry: &Geometry,
    ) -> Result<u64, ImageError> {
        let limit = self.config.max_memory;
        if limit == u64::MAX {
            return Ok(limit);
        }
        let Estimate {
            memory_bytes,
            pixels,
            ..
        } = estimate(source, regions, self.config, geometry);
        // An image with too many pixels is rejected for those.
        if memory_bytes > limit && pixels <= self.config.max_pixels {
            return Err(ImageError::AboveMemory {
                bytes: memory_bytes,
                limit,
            });
        }
        Ok(limit.saturating_sub(memory_bytes))
    }

    fn crop_unguarded(
        &mut self,
        source: &Source,
        geometry: &Geometry,
        crop: &mut [u8],
    ) -> Result<(), ImageError> {
        let spare = self.check_memory(source, &[], geometry)?;
        let budget = Budget::new(&self.config);
        match source {
            Source::Encoded(encoded) => {
                let min_shorter_side = self
                    .config
                    .jpeg_scaling
                    .min_shorter_side(geometry.needed_shorter_side());
                let needed = Needed {
                    min_shorter_side,
                    crop: Some(geometry),
                    help: Help::of(self.helpers.as_ref(), encoded, spare),
                };
                let resizer = Some(&mut self.resizer);
                let decoded = self
                    .pixels
                    .decode_for_crop(encoded, &budget, needed, resizer);
                self.helped = budget.helped();
                match decoded? {
                    Decoded::Pixels => self.resizer.crop(&self.pixels, geometry, crop),
                    Decoded::Scaled(plan) => self.resizer.finish(&plan, self.pixels.layout, crop),
                }
            }
            Source::Raw(frame) => {
                self.config.check_size(frame.width, frame.height)?;
                raw::crop(
                    frame,
                    geometry,
                    &budget,
                    &mut self.pixels.data,
                    &mut self.resizer,
                    crop,
                )
            }
            Source::Crop(prepared) => crop::write(prepared, geometry, crop),
        }
    }

    fn crop_regions_unguarded(
        &mut self,
        source: &Source,
        regions: &[Region],
        geometry: &Geometry,
        crops: &mut [Vec<u8>],
    ) -> Result<(), ImageError> {
        let spare = self.check_memory(source, regions, geometry)?;
        let budget = Budget::new(&self.config);
        match source {
            // Whole and at its full size, whatever is cut out of it.
            Source::Encoded(encoded) => {
                let whole = Needed {
                    help: Help::of(self.helpers.as_ref(), encoded, spare),
                    ..Needed::default()
                };
                let decoded = self.pixels.decode_for_crop(encoded, &budget, whole, None);
                self.helped = budget.helped();
                decoded?;
            }
            Source::Raw(frame) => {
                self.config.check_size(frame.width, frame.height)?;
                raw::decode(frame, &budget, &mut self.pixels)?;
            }
            Source::Crop(_) => return Err(ImageError::RegionsOfCrop),
        }
        let parts = Region::resolve_all(regions, self.pixels.upright_size())?;
        for (part, crop) in parts.into_iter().zip(crops) {
            budget.check()?;
            self.pixels.cut(part, &mut self.part);
            self.resizer.crop(&self.part, geometry, crop)?;
        }
        Ok(())
    }
}
