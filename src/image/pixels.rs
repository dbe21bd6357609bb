//! A decoded image and the layout of its pixels in memory.

use super::orientation::Orientation;

/// The channels of a pixel in memory order, one byte each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PixelLayout {
    Gray,
    GrayAlpha,
    #[default]
    Rgb,
    Bgr,
    Rgba,
    Bgra,
}

impl PixelLayout {
    /// The number of channels, which is also the number of bytes per pixel.
    pub fn channels(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::GrayAlpha => 2,
            Self::Rgb | Self::Bgr => 3,
            Self::Rgba | Self::Bgra => 4,
        }
    }

    /// The byte offsets of red, green and blue within a pixel. Gray counts as all three.
    pub(super) fn rgb_offsets(self) -> [usize; 3] {
        match self {
            Self::Gray | Self::GrayAlpha => [0, 0, 0],
            Self::Rgb | Self::Rgba => [0, 1, 2],
            Self::Bgr | Self::Bgra => [2, 1, 0],
        }
    }
}

/// A decoded image: packed rows from top to bottom, as stored in the file, that is, before its
/// EXIF orientation is applied.
#[derive(Clone, Debug, Default)]
pub struct Pixels {
    pub width: u32,
    pub height: u32,
    pub layout: PixelLayout,
    /// How the stored pixels relate to the upright image.
    pub orientation: Orientation,
    /// `height` x `width` x [`PixelLayout::channels`] bytes.
    pub data: Vec<u8>,
}

/// Sets the length of `buffer`; its content is unspecified afterwards.
pub(super) fn resize_buffer(buffer: &mut Vec<u8>, length: usize) {
    if buffer.capacity() < length {
        // Zeroed memory fresh from the operating system costs nothing until it is touched, whereas
        // growing the vector would copy the old content.
        *buffer = vec![0; length];
    } else {
        buffer.resize(length, 0);
    }
}
