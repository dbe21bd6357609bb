//! A decoded image: how its pixels lie in memory.

use super::orientation::Orientation;

/// The channels of a pixel, in the order in which they lie in memory, a byte each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Layout {
    Gray,
    GrayAlpha,
    #[default]
    Rgb,
    Bgr,
    Rgba,
    Bgra,
}

impl Layout {
    /// Bytes a pixel.
    pub fn channels(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::GrayAlpha => 2,
            Self::Rgb | Self::Bgr => 3,
            Self::Rgba | Self::Bgra => 4,
        }
    }

    /// Where in a pixel red, green and blue are.
    pub(super) fn red_green_blue(self) -> [usize; 3] {
        match self {
            Self::Gray | Self::GrayAlpha => [0, 0, 0],
            Self::Rgb | Self::Rgba => [0, 1, 2],
            Self::Bgr | Self::Bgra => [2, 1, 0],
        }
    }
}

/// A decoded image: packed rows from top to bottom, not yet turned upright.
#[derive(Clone, Debug, Default)]
pub struct Pixels {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// How a pixel lies in `data`.
    pub layout: Layout,
    /// How to turn the image upright.
    pub orientation: Orientation,
    /// `height` x `width` x [`Layout::channels`] bytes.
    pub data: Vec<u8>,
}

/// Gives `buffer` a length, with any content.
pub(super) fn resize_buffer(buffer: &mut Vec<u8>, length: usize) {
    if buffer.capacity() < length {
        // Fresh zeroed memory costs nothing until it is used, unlike a copy of what was there.
        *buffer = vec![0; length];
    } else {
        buffer.resize(length, 0);
    }
}
