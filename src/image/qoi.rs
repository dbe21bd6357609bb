//! What the header of a QOI file says.

use super::outline::{Outline, area};

/// Reads the header.
pub(super) fn outline(encoded: &[u8]) -> Option<Outline> {
    let side = |at: usize| Some(u32::from_be_bytes(*encoded.get(at..)?.first_chunk()?));
    let (width, height) = (side(4)?, side(8)?);
    Some(Outline {
        width,
        height,
        bytes_per_pixel: u64::from(*encoded.get(12)?).min(4),
        working_bytes: 4096,
        nanoseconds: 8 * area(width, height) + 4 * encoded.len() as u64,
        ..Outline::default()
    })
}
