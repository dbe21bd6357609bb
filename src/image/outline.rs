//! The size of a picture by its headers, and what decoding it takes.

use super::rows::band_rows;

/// The size of a picture, and what its decoder needs for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outline {
    /// The size of the picture, in pixels.
    pub width: u32,
    pub height: u32,
    /// The bytes of a decoded pixel.
    pub bytes_per_pixel: u64,
    /// What the decoder allocates beside the decoded pixels, in bytes.
    pub working_bytes: u64,
    /// The time of decoding.
    pub nanoseconds: u64,
    /// Whether rows are scaled as they are decoded, in bands, so that the picture is never in memory
    /// whole.
    pub by_rows: bool,
}

impl Outline {
    /// Width times height.
    pub fn pixels(&self) -> u64 {
        area(self.width, self.height)
    }

    /// The bytes that decoding and resizing allocate at their peak, the crop excluded.
    pub fn memory_bytes(&self) -> u64 {
        /// Crops are seldom wider than this, in pixels.
        const CROP_SIDE: u64 = 512;
        // Between its two passes the resizer keeps about as many rows as the shorter side has, each
        // as long as one of the crop.
        let shorter = u64::from(self.width.min(self.height));
        let narrowed = CROP_SIDE * shorter.max(CROP_SIDE) * self.bytes_per_pixel;
        let row = u64::from(self.width) * self.bytes_per_pixel;
        let rows = if self.by_rows {
            u64::from(self.height).min(band_rows(row as usize) as u64)
        } else {
            u64::from(self.height)
        };
        row.saturating_mul(rows)
            .saturating_add(self.working_bytes)
            .saturating_add(narrowed)
    }
}

/// Width times height. Of sizes that are too large for any limit it is less, so that it can be
/// multiplied by what a pixel costs.
pub(super) fn area(width: u32, height: u32) -> u64 {
    const MAX: u64 = 1 << 48;
    (u64::from(width) * u64::from(height)).min(MAX)
}
