//! What the header of a PNM file says.

use std::io::Cursor;

use image::{ImageDecoder, codecs::pnm::PnmDecoder};

use super::{
    ImageError, ImageFormat,
    outline::{Outline, area},
};

/// The longest header that is read, comments included, in bytes.
const MAX_HEADER: usize = 4096;

/// Rejects a file whose header can be read, but is too long.
pub(super) fn check(encoded: &[u8]) -> Result<(), ImageError> {
    match outline(encoded) {
        Some(_) => Ok(()),
        None => Err(ImageError::Damaged {
            format: ImageFormat::Pnm,
            reason: format!("its header has more than {MAX_HEADER} bytes"),
        }),
    }
}

/// Reads the header; `None` if there is none within its first 4096 bytes.
pub(super) fn outline(encoded: &[u8]) -> Option<Outline> {
    let start = &encoded[..encoded.len().min(MAX_HEADER)];
    let decoder = PnmDecoder::new(Cursor::new(start)).ok()?;
    let (width, height) = decoder.dimensions();
    let bytes_per_pixel = u64::from(decoder.color_type().bytes_per_pixel());
    let bytes = area(width, height).saturating_mul(bytes_per_pixel);
    Some(Outline {
        width,
        height,
        bytes_per_pixel,
        working_bytes: 4 * u64::from(width) + 4096,
        // Numbers in text take longest for each of their bytes, and samples of an unusual range for
        // each of theirs.
        nanoseconds: (10 * encoded.len() as u64).saturating_add(bytes.saturating_mul(4)),
        ..Outline::default()
    })
}
