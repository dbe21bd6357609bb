//! Untrusted bytes or a raw frame → an upright RGB8 crop at the model's input size.

use bytes::Bytes;

/// What a model wants to see: images scaled until the shorter side has `resize_shorter_side` pixels, then cropped to
/// `width` × `height` in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The crop's width, in pixels.
    pub width: u32,
    /// The crop's height, in pixels.
    pub height: u32,
    /// The shorter side after scaling, in pixels.
    pub resize_shorter_side: u32,
}

/// An image as it arrived.
#[derive(Clone, Debug)]
pub enum Source {
    /// The content of an image file.
    Encoded(Bytes),
    /// Uncompressed pixels.
    Raw(RawFrame),
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
