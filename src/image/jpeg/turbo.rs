//! Gray and colour JPEGs decoded by libjpeg-turbo, which Pillow uses too: the pixels are bit-exact.

use turbojpeg::{Decompressor, Image, PixelFormat};

use crate::image::pixels::{PixelLayout, Pixels};

/// Decodes into `pixels`, whose size, layout and buffer have been set.
pub(super) fn decode(pixels: &mut Pixels, encoded: &[u8]) -> Result<(), turbojpeg::Error> {
    let (width, height) = (pixels.width as usize, pixels.height as usize);
    let format = if pixels.layout == PixelLayout::Gray {
        PixelFormat::GRAY
    } else {
        PixelFormat::RGB
    };
    let image = Image {
        pitch: width * pixels.layout.channels(),
        pixels: &mut pixels.data[..],
        width,
        height,
        format,
    };
    Decompressor::new()?.decompress(encoded, image)
}
