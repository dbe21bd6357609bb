//! Gray and colour JPEGs by libjpeg-turbo: what Pillow decodes with, to the bit.

use turbojpeg::{Decompressor, Image, PixelFormat, ScalingFactor};

use super::{Header, Scale};
use crate::image::decode::{Layout, Pixels, resize_buffer};

/// Decodes into `pixels`, whose size, layout and buffer have been set.
pub(super) fn decode(pixels: &mut Pixels, encoded: &[u8]) -> Result<(), turbojpeg::Error> {
    decompress(&mut Decompressor::new()?, pixels, encoded)
}

/// Decodes into `pixels`, whose layout has been set; sets size and data.
pub(super) fn decode_scaled(
    pixels: &mut Pixels,
    encoded: &[u8],
    header: &Header,
    scale: Scale,
) -> Result<(), turbojpeg::Error> {
    let mut decompressor = Decompressor::new()?;
    decompressor.set_scaling_factor(match scale {
        Scale::Half => ScalingFactor::ONE_HALF,
        Scale::Quarter => ScalingFactor::ONE_QUARTER,
        Scale::Eighth => ScalingFactor::ONE_EIGHTH,
    })?;
    (pixels.width, pixels.height) = (scale.of(header.width), scale.of(header.height));
    resize_buffer(&mut pixels.data, pixels.width as usize * pixels.height as usize * pixels.layout.channels());
    decompress(&mut decompressor, pixels, encoded)
}

fn decompress(decompressor: &mut Decompressor, pixels: &mut Pixels, encoded: &[u8]) -> Result<(), turbojpeg::Error> {
    let (width, height) = (pixels.width as usize, pixels.height as usize);
    let image = Image {
        pitch: width * pixels.layout.channels(),
        pixels: &mut pixels.data[..],
        width,
        height,
        format: if pixels.layout == Layout::Gray { PixelFormat::GRAY } else { PixelFormat::RGB },
    };
    decompressor.decompress(encoded, image)
}
