//! Untrusted bytes or a raw frame → an upright RGB8 crop at the model's input size.

mod crop;
mod decode;
mod error;
mod jpeg;
mod orientation;
mod pixels;
mod raw;
mod resize;
mod sniff;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

pub use crop::Crop;
pub use decode::decode;
pub use error::ImageError;
pub use orientation::Orientation;
pub use pixels::{Layout, Pixels};
pub use resize::Resizer;
pub use sniff::Kind;

/// What a model wants to see: images scaled until the shorter side has `resize_shorter_side`
/// pixels, then cropped to `width` × `height` in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The crop's width, in pixels.
    pub width: u32,
    /// The crop's height, in pixels.
    pub height: u32,
    /// The shorter side after scaling, in pixels.
    pub resize_shorter_side: u32,
}

impl Geometry {
    /// The size of a crop, in bytes: height · width · 3.
    pub fn bytes(&self) -> usize {
        self.height as usize * self.width as usize * 3
    }

    /// Swaps left and right in a crop of this size.
    pub fn mirror(&self, crop: &mut [u8]) {
        for row in crop.chunks_exact_mut(self.width as usize * 3) {
            row.as_chunks_mut::<3>().0.reverse();
        }
    }
}

/// An image as it arrived.
#[derive(Clone, Debug)]
pub enum Source {
    /// The content of an image file.
    Encoded(Bytes),
    /// Uncompressed pixels.
    Raw(RawFrame),
    /// What needs no decoding.
    Crop(Crop),
}

impl Source {
    /// How large it is, as it came.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Encoded(bytes) => bytes.len(),
            Self::Raw(frame) => frame.data.len(),
            Self::Crop(Crop::Pixels(data) | Crop::Normalized { values: data, .. }) => data.len(),
        }
    }
}

/// Uncompressed pixels.
#[derive(Clone, Debug)]
pub struct RawFrame {
    /// How the pixels lie in `data`.
    pub format: PixelFormat,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Bytes from one row to the next; 0 = packed.
    pub stride: u32,
    /// The rows from top to bottom, plane after plane.
    pub data: Bytes,
}

/// How the pixels of a [`RawFrame`] lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PixelFormat {
    Rgb8,
    Bgr8,
    Rgba8,
    Bgra8,
    Gray8,
    Nv12,
    I420,
}

/// What to do about the orientation that EXIF gives an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exif {
    /// Turn the image upright, as viewers do.
    #[default]
    Apply,
    /// Take the pixels as they are stored, as Pillow does by itself.
    Ignore,
}

/// Whether large JPEGs are scaled down while they are decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JpegScaling {
    /// Never: the answers are exactly those of the whole image.
    #[default]
    Off,
    /// To a half, a quarter or an eighth, as long as the shorter side stays at least twice what is
    /// needed.
    Auto,
}

impl JpegScaling {
    /// The shorter side that is enough for an image which will be scaled to one of `needed` pixels;
    /// `None` = the whole.
    fn enough(self, needed: u32) -> Option<u32> {
        match self {
            Self::Off => None,
            Self::Auto => needed.checked_mul(2),
        }
    }
}

/// How images are preprocessed, whatever the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreprocessConfig {
    /// Whether images are turned upright.
    pub exif: Exif,
    /// Larger images are refused by their headers, before memory is reserved for them.
    pub max_pixels: u64,
    /// Whether large JPEGs are scaled down while they are decoded.
    pub jpeg_scaling: JpegScaling,
}

impl Default for PreprocessConfig {
    fn default() -> Self {
        Self {
            exif: Exif::Apply,
            max_pixels: 64_000_000,
            jpeg_scaling: JpegScaling::Off,
        }
    }
}

impl PreprocessConfig {
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
        Ok(())
    }
}

/// Makes crops of images. Its buffers are reused, so give every worker thread one of its own.
#[derive(Debug)]
pub struct Preprocessor {
    config: PreprocessConfig,
    pixels: Pixels,
    resizer: Resizer,
}

impl Preprocessor {
    /// Buffers larger than this, in bytes, are not kept for the next image; 16 megapixels of RGB
    /// fit.
    const KEPT_MEMORY: usize = 56 << 20;

    /// A preprocessor with empty buffers.
    pub fn new(config: PreprocessConfig) -> Self {
        Self {
            config,
            pixels: Pixels::default(),
            resizer: Resizer::default(),
        }
    }

    /// Writes the upright crop of `source` as `geometry.height` x `geometry.width` x 3 bytes of
    /// RGB8.
    ///
    /// # Errors
    /// Whatever makes the image unusable: see [`ImageError`]. Then the content of `crop` is
    /// unspecified, and the preprocessor ready for the next image.
    pub fn crop(
        &mut self,
        source: &Source,
        geometry: &Geometry,
        crop: &mut [u8],
    ) -> Result<(), ImageError> {
        // The decoders are memory-safe but not proven free of panics, and their input is anybody's.
        let result = catch_unwind(AssertUnwindSafe(|| {
            self.crop_unguarded(source, geometry, crop)
        }));
        let memory = self.pixels.data.capacity() + self.resizer.memory();
        if result.is_err() || memory > Self::KEPT_MEMORY {
            *self = Self::new(self.config);
        }
        result.unwrap_or(Err(ImageError::DecoderPanic))
    }

    fn crop_unguarded(
        &mut self,
        source: &Source,
        geometry: &Geometry,
        crop: &mut [u8],
    ) -> Result<(), ImageError> {
        match source {
            Source::Encoded(encoded) => {
                let enough = self
                    .config
                    .jpeg_scaling
                    .enough(geometry.resize_shorter_side);
                self.pixels.decode_at_least(encoded, &self.config, enough)?;
                self.resizer.crop(&self.pixels, geometry, crop)
            }
            Source::Raw(frame) => raw::crop(
                frame,
                &self.config,
                geometry,
                &mut self.pixels.data,
                &mut self.resizer,
                crop,
            ),
            Source::Crop(ready) => crop::write(ready, geometry, crop),
        }
    }
}
