//! What decoding a TIFF file needs, by its directory.

use super::{
    chunks::Grid,
    compression::{Compression, MAX_WINDOW},
    directory::{Directory, tag},
};
use crate::image::outline::{Outline, area};

/// Reads the directory; `None` if it does not describe an image.
pub(in crate::image) fn outline(encoded: &[u8]) -> Option<Outline> {
    let directory = Directory::read(encoded).ok()?;
    let number = |tag, default| match directory.number(tag) {
        Ok(number) => Some(number.unwrap_or(default)),
        Err(_) => None,
    };
    let width = u32::try_from(directory.number(tag::IMAGE_WIDTH).ok()??).ok()?;
    let height = u32::try_from(directory.number(tag::IMAGE_LENGTH).ok()??).ok()?;
    let samples = number(tag::SAMPLES_PER_PIXEL, 1)?.clamp(1, super::MAX_SAMPLES);
    let bits = number(tag::BITS_PER_SAMPLE, 1)?.min(64);
    let planar = samples > 1 && number(tag::PLANAR_CONFIGURATION, 1)? == 2;
    let photometric = number(tag::PHOTOMETRIC_INTERPRETATION, 0)?;
    let compression = Compression::of(&directory).ok()?;
    if width == 0 || height == 0 {
        return None;
    }
    let planes = if planar { samples } else { 1 };
    let grid = Grid::read(&directory, width, height, planes as usize).ok()?;

    let is_gray = matches!(photometric, 0 | 1);
    let channels = match (is_gray, planar) {
        (true, false) => 1,
        // Planes are collected before they are converted, up to four of them.
        (true, true) => samples.min(2),
        (false, false) => 3,
        (false, true) => samples.clamp(3, 4),
    };
    let pixels = area(width, height);
    // Tiles may be larger than the picture.
    let part_width = u64::from(grid.width);
    let stored = part_width
        .saturating_mul(grid.across())
        .saturating_mul(height.into())
        .saturating_mul(samples);
    let row = part_width.saturating_mul(samples * bits).div_ceil(8);
    let part_height = u64::from(grid.stated_height.min(height)).next_multiple_of(16);
    let part = part_width
        .saturating_mul(part_height)
        .saturating_mul(samples);
    // Of JPEG data a part is decoded at once, and perhaps its coefficients of two bytes; and
    // Zstandard keeps a window of what it has decompressed.
    let (working, per_sample) = match compression {
        Compression::Jpeg => (part.saturating_mul(8), 20),
        Compression::Zstandard => {
            let window = (part.saturating_mul(bits) / 8).min(MAX_WINDOW);
            (window + (256 << 10), 8)
        }
        Compression::None | Compression::PackBits => (0, 4),
        Compression::Ccitt(_) => (8 * u64::from(width), 30),
        Compression::Lzw | Compression::Deflate => (128 << 10, 12),
    };
    let per_part = if compression == Compression::Jpeg {
        NANOSECONDS_PER_JPEG
    } else {
        NANOSECONDS_PER_PART
    };
    let parts = grid
        .across()
        .saturating_mul(grid.down())
        .saturating_mul(planes);
    Some(Outline {
        width,
        height,
        bytes_per_pixel: channels,
        // A part may be copied with the bits of its bytes reversed, or with tables before it.
        working_bytes: working
            .saturating_add(encoded.len() as u64)
            .saturating_add(row.saturating_mul(8))
            .saturating_add(64 << 10),
        nanoseconds: stored
            .saturating_mul(per_sample)
            .saturating_add(4 * pixels * channels)
            .saturating_add(parts.saturating_mul(per_part))
            .saturating_add(5 * encoded.len() as u64),
        ..Outline::default()
    })
}

/// What a strip or a tile costs, however small it is.
const NANOSECONDS_PER_PART: u64 = 3000;
/// What it costs if it is a JPEG image, with tables.
const NANOSECONDS_PER_JPEG: u64 = 50_000;
