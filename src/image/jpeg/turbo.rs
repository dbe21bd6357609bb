//! Gray and colour JPEGs by libjpeg-turbo: what Pillow decodes with, to the bit.

use turbojpeg::{Decompressor, Image, PixelFormat};

use crate::image::pixels::{Layout, Pixels};

/// Decodes into `pixels`, whose size, layout and buffer have been set.
pub(super) fn decode(pixels: &mut Pixels, encoded: &[u8]) -> Result<(), turbojpeg::Error> {
    let (width, height) = (pixels.width as usize, pixels.height as usize);
    let image = Image {
        pitch: width * pixels.layout.channels(),
        pixels: &mut pixels.data[..],
        width,
        height,
        format: if pixels.layout == Layout::Gray {
            PixelFormat::GRAY
        } else {
            PixelFormat::RGB
        },
    };
    Decompressor::new()?.decompress(encoded, image)
}
