//! The size of a picture by its headers, and what decoding it takes.

use super::{Fit, Geometry, rows::band_rows};

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

    /// The bytes that decoding and resizing to this crop allocate at their peak, the crop excluded.
    pub fn memory_bytes(&self, geometry: &Geometry) -> u64 {
        let (shorter, longer) = (self.width.min(self.height), self.width.max(self.height));
        let crop = u64::from(geometry.width.max(geometry.height));
        // Between its two passes the resizer keeps the rows that the crop shows, or the columns of a
        // picture that is turned, each as long as one of the crop.
        let kept = match geometry.fit {
            Fit::Crop | Fit::CropRounded => {
                u64::from(shorter) * crop / u64::from(geometry.resize_shorter_side.max(1))
            }
            Fit::Squash | Fit::Letterbox(_) | Fit::Line(_) => longer.into(),
        };
        let narrowed = crop
            * kept.clamp(crop, u64::from(longer).max(crop))
            * self.bytes_per_pixel
            * geometry.filter.bytes_between_passes() as u64;
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
