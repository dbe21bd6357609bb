//! Which part of a stored image becomes a crop, and how: sizes and offsets by axis.
//!
//! Sizes, offsets and rounding follow torchvision's `Resize` and `CenterCrop` on Pillow images, and
//! Pillow's `ImageOps.pad`, so that crops are those that models are trained on.

use std::ops::Range;

use super::{
    Filter, Fit, Geometry, ImageError,
    orientation::Orientation,
    pixels::PixelLayout,
    sampling::{Sampling, Stretch},
};

/// The most memory that the rows of a squashed picture may take between the two passes, in bytes,
/// unless the picture has few rows.
const MOST_NARROWED_BYTES: u64 = 16 << 20;

/// The rows that every picture may have.
const FEW_ROWS: u32 = 1 << 14;

/// One axis of a crop: the stretch of the source that is scaled, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    /// The size of the source, in pixels.
    pub source: u32,
    /// The size of the source after scaling, in pixels.
    pub scaled: u64,
    /// Scaled pixels before the first one in the crop.
    pub offset: u64,
    /// Scaled pixels in the crop.
    pub length: u32,
    /// Pixels of padding in the crop before the first scaled one.
    pub padding: u32,
    /// Whether the source is read backwards.
    pub mirrored: bool,
}

impl Axis {
    /// Takes the middle of the scaled axis, as torchvision's `CenterCrop` does: halves are rounded
    /// to even, and an image smaller than the crop is padded.
    pub fn center(source: u32, scaled: u64, crop: u32) -> Self {
        match u32::try_from(scaled) {
            Ok(length) if length < crop => Self {
                source,
                scaled,
                offset: 0,
                length,
                padding: (crop - length) / 2,
                mirrored: false,
            },
            _ => {
                let offset = ((scaled - u64::from(crop)) as f64 / 2.0).round_ties_even() as u64;
                Self {
                    source,
                    scaled,
                    offset,
                    length: crop,
                    padding: 0,
                    mirrored: false,
                }
            }
        }
    }

    /// Takes the middle of the scaled axis as PaddleClas does: halves are rounded down.
    pub fn floored_center(source: u32, scaled: u64, crop: u32) -> Self {
        let center = Self::center(source, scaled, crop);
        Self {
            offset: scaled.saturating_sub(crop.into()) / 2,
            ..center
        }
    }

    /// Takes the whole scaled axis, and pads it behind.
    pub fn first(source: u32, scaled: u32) -> Self {
        Self {
            source,
            scaled: scaled.into(),
            offset: 0,
            length: scaled,
            padding: 0,
            mirrored: false,
        }
    }

    /// Takes the whole scaled axis, and pads it evenly, as Pillow's `ImageOps.pad` does: halves are
    /// rounded to even.
    pub fn padded(source: u32, scaled: u32, crop: u32) -> Self {
        Self {
            source,
            scaled: scaled.into(),
            offset: 0,
            length: scaled,
            padding: (f64::from(crop - scaled) / 2.0).round_ties_even() as u32,
            mirrored: false,
        }
    }

    /// The same stretch when the source is read backwards.
    pub fn mirrored(self) -> Self {
        Self {
            offset: self.scaled - self.offset - u64::from(self.length),
            mirrored: true,
            ..self
        }
    }

    pub fn to_stretch(self) -> Stretch {
        Stretch {
            source: self.source,
            scaled: self.scaled,
            offset: self.offset,
            length: self.length,
            mirrored: self.mirrored,
        }
    }

    /// The start and the length of the stretch, in source pixels.
    fn source_interval(&self) -> (f64, f64) {
        let to_source = |scaled: u64| {
            (u128::from(scaled) * u128::from(self.source)) as f64 / self.scaled as f64
        };
        let start = to_source(self.offset);
        let length = to_source(u64::from(self.length)).min(f64::from(self.source) - start);
        (start, length)
    }

    /// The source pixels that the stretch depends on, with a filter that reaches `support` pixels
    /// of the coarser side.
    pub fn region(&self, support: f64) -> Range<u32> {
        let (start, length) = self.source_interval();
        // One pixel more covers any rounding.
        let reach = (f64::from(self.source) / self.scaled as f64).max(1.0) * support + 1.0;
        let first = (start - reach).floor().max(0.0) as u32;
        let last = (start + length + reach).ceil().min(f64::from(self.source)) as u32;
        first..last
    }
}

/// Which part of a stored image becomes a crop, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct CropPlan {
    pub orientation: Orientation,
    pub crop_width: u32,
    pub crop_height: u32,
    pub filter: Filter,
    /// The colour beside the scaled pixels.
    pub padding: [u8; 3],
    /// The horizontal axis of the upright image.
    pub x: Axis,
    /// The vertical axis of the upright image.
    pub y: Axis,
    /// The same part of the image, along the rows as stored.
    pub column: Axis,
    /// The same part of the image, along the columns as stored.
    pub row: Axis,
}

impl CropPlan {
    /// `width` and `height` are those of the stored image, and not zero.
    ///
    /// # Errors
    /// [`ImageError::Geometry`], or [`ImageError::SideTooLong`] for a picture that is too high to be
    /// squashed.
    pub fn new(
        width: u32,
        height: u32,
        orientation: Orientation,
        geometry: &Geometry,
    ) -> Result<Self, ImageError> {
        let &Geometry {
            width: crop_width,
            height: crop_height,
            resize_shorter_side,
            fit,
            filter,
            recompress: _,
        } = geometry;
        if crop_width == 0 || crop_height == 0 || resize_shorter_side == 0 {
            return Err(ImageError::Geometry {
                width: crop_width,
                height: crop_height,
                resize_shorter_side,
            });
        }

        let (upright_width, upright_height) = if orientation.swapped {
            (height, width)
        } else {
            (width, height)
        };
        let (x, y) = match fit {
            Fit::Crop => {
                let shorter = upright_width.min(upright_height);
                let scale = |side: u32| {
                    // As in Python: the product is exact, and the quotient is rounded once.
                    let product = u64::from(resize_shorter_side) * u64::from(side);
                    (product as f64 / f64::from(shorter)) as u64
                };
                (
                    Axis::center(upright_width, scale(upright_width), crop_width),
                    Axis::center(upright_height, scale(upright_height), crop_height),
                )
            }
            Fit::CropRounded => {
                let shorter = upright_width.min(upright_height);
                let factor = f64::from(resize_shorter_side) / f64::from(shorter);
                let scale = |side: u32| (f64::from(side) * factor).round_ties_even() as u64;
                (
                    Axis::floored_center(upright_width, scale(upright_width), crop_width),
                    Axis::floored_center(upright_height, scale(upright_height), crop_height),
                )
            }
            Fit::Line(_) => {
                let proportion = f64::from(upright_width) / f64::from(upright_height);
                let scaled_width = (f64::from(crop_height) * proportion).ceil() as u32;
                (
                    Axis::first(upright_width, scaled_width.clamp(1, crop_width)),
                    Axis::first(upright_height, crop_height),
                )
            }
            Fit::Squash => {
                let shorter = u64::from(crop_width.min(crop_height));
                let scale = |side: u32| u64::from(side) * u64::from(resize_shorter_side) / shorter;
                (
                    Axis::center(upright_width, scale(crop_width), crop_width),
                    Axis::center(upright_height, scale(crop_height), crop_height),
                )
            }
            Fit::Letterbox(_) => {
                let (scaled_width, scaled_height) =
                    contained([upright_width, upright_height], [crop_width, crop_height]);
                (
                    Axis::padded(upright_width, scaled_width, crop_width),
                    Axis::padded(upright_height, scaled_height, crop_height),
                )
            }
        };

        let (mut column, mut row) = if orientation.swapped { (y, x) } else { (x, y) };
        if orientation.mirrored_x {
            column = column.mirrored();
        }
        if orientation.mirrored_y {
            row = row.mirrored();
        }

        let plan = Self {
            orientation,
            crop_width,
            crop_height,
            filter,
            padding: fit.padding(),
            x,
            y,
            column,
            row,
        };
        if matches!(fit, Fit::Line(_) | Fit::Squash) {
            plan.check_rows(upright_width, upright_height)?;
        }
        Ok(plan)
    }

    /// Rejects pictures of so many rows that squashing them would take much memory: all of them are
    /// kept at the width of the crop before the columns are scaled.
    fn check_rows(&self, upright_width: u32, upright_height: u32) -> Result<(), ImageError> {
        // Sampling begins with the rows as they are stored.
        let (rows, crop_width) = if self.orientation.swapped && self.sampling().is_some() {
            (upright_width, self.crop_height)
        } else {
            (upright_height, self.crop_width)
        };
        let row_bytes = 4 * u64::from(crop_width) * self.filter.bytes_between_passes() as u64;
        let most = u32::try_from(MOST_NARROWED_BYTES / row_bytes).unwrap_or(u32::MAX);
        let max_side = most.max(FEW_ROWS);
        if rows > max_side {
            return Err(ImageError::SideTooLong {
                width: upright_width,
                height: upright_height,
                max_side,
            });
        }
        Ok(())
    }

    /// The stored columns and rows that the crop depends on.
    pub fn region(&self) -> (Range<u32>, Range<u32>) {
        (self.column.region(self.filter.support()), self.rows())
    }

    /// The stored rows that the crop depends on.
    pub fn rows(&self) -> Range<u32> {
        self.row.region(self.filter.support())
    }

    /// The bytes of a row that has been scaled horizontally but not yet vertically.
    pub fn narrowed_row_bytes(&self, layout: PixelLayout) -> usize {
        self.column.length as usize * layout.channels() * self.filter.bytes_between_passes()
    }

    /// How pixels are sampled; `None` if the filter is one of `convolution`.
    pub fn sampling(&self) -> Option<Sampling> {
        let enlarges = |axis: &Axis| axis.scaled > u64::from(axis.source);
        match self.filter {
            Filter::Nearest => Some(Sampling::Nearest),
            Filter::Area if enlarges(&self.x) || enlarges(&self.y) => Some(Sampling::EnlargedArea),
            Filter::Area => Some(Sampling::Area),
            Filter::Cubic => Some(Sampling::Cubic),
            Filter::Lanczos4 => Some(Sampling::Lanczos4),
            Filter::Linear => Some(Sampling::Linear),
            Filter::Bilinear | Filter::Bicubic | Filter::Lanczos => None,
        }
    }

    /// Fills the crop with the colour of the padding.
    pub fn fill(&self, crop: &mut [u8]) {
        if self.padding == [0; 3] {
            crop.fill(0);
        } else {
            crop.as_chunks_mut::<3>().0.fill(self.padding);
        }
    }

    pub fn check_length(&self, crop: &[u8]) -> Result<(), ImageError> {
        let expected = u64::from(self.crop_width) * u64::from(self.crop_height) * 3;
        if crop.len() as u64 != expected {
            return Err(ImageError::CropLength {
                expected,
                got: crop.len() as u64,
            });
        }
        Ok(())
    }

    /// Whether rows are scaled before columns, and there are some.
    pub fn is_scaled_by_rows(&self) -> bool {
        let (columns, rows) = self.region();
        !self.orientation.swapped
            && self.column.length > 0
            && self.row.length > 0
            && !columns.is_empty()
            && !rows.is_empty()
    }

    /// Whether the scaled pixels are the crop, without turning or padding.
    pub fn needs_no_rearrangement(&self) -> bool {
        self.orientation == Orientation::default()
            && self.x.length == self.crop_width
            && self.y.length == self.crop_height
    }
}

/// The size to which a picture is scaled so that it just fits, as Pillow's `ImageOps.contain`
/// rounds it; no side is scaled to less than a pixel.
fn contained(picture: [u32; 2], crop: [u32; 2]) -> (u32, u32) {
    let [width, height] = picture.map(f64::from);
    let [crop_width, crop_height] = crop;
    let scaled = |part: f64, most: u32| {
        let rounded = (part * f64::from(most)).round_ties_even() as u32;
        rounded.max(1)
    };
    let (ratio, wanted) = (
        width / height,
        f64::from(crop_width) / f64::from(crop_height),
    );
    if ratio > wanted {
        (
            crop_width,
            scaled(height / width, crop_width).min(crop_height),
        )
    } else if ratio < wanted {
        (
            scaled(width / height, crop_height).min(crop_width),
            crop_height,
        )
    } else {
        (crop_width, crop_height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGENET: Geometry = Geometry::cropped(224, 224, 256);

    fn plan(width: u32, height: u32, geometry: &Geometry) -> CropPlan {
        CropPlan::new(width, height, Orientation::default(), geometry).unwrap()
    }

    #[test]
    fn the_rows_that_are_kept_for_squashing_are_limited() {
        let longest = |width, height, exif, filter| {
            let geometry = Geometry {
                fit: Fit::Squash,
                filter,
                ..IMAGENET
            };
            match CropPlan::new(width, height, Orientation::from_exif(exif), &geometry) {
                Err(ImageError::SideTooLong { max_side, .. }) => Some(max_side),
                plan => plan.map(|_| None).unwrap(),
            }
        };
        let (convolved, sampled) = (Filter::Bilinear, Filter::Linear);
        assert_eq!(longest(1, 18_725, 1, convolved), Some(18_724));
        assert_eq!(longest(1, 18_724, 1, convolved), None);
        assert_eq!(longest(1, 16_385, 1, sampled), Some(16_384));
        assert_eq!(longest(1, 16_384, 1, sampled), None);
        assert_eq!(longest(30_000, 1, 1, convolved), None);
        assert_eq!(longest(30_000, 1, 1, sampled), None);
        // Turned by a quarter.
        assert_eq!(longest(30_000, 1, 6, convolved), Some(18_724));
        assert_eq!(longest(30_000, 1, 6, sampled), None);
        assert_eq!(longest(1, 30_000, 6, convolved), None);
        assert_eq!(longest(1, 30_000, 6, sampled), Some(16_384));
    }

    #[test]
    fn the_longer_side_is_truncated_to_whole_pixels() {
        let plan = plan(500, 333, &IMAGENET);
        assert_eq!((plan.x.scaled, plan.y.scaled), (384, 256));
        assert_eq!((plan.x.offset, plan.y.offset), (80, 16));
    }

    #[test]
    fn halves_of_offsets_are_rounded_to_even() {
        assert_eq!(Axis::center(257, 257, 224).offset, 16);
        assert_eq!(Axis::center(259, 259, 224).offset, 18);
        assert_eq!(Axis::center(260, 260, 224).offset, 18);
    }

    #[test]
    fn extreme_shapes_need_only_a_few_source_pixels() {
        for (width, height) in [(1, 100_000), (100_000, 1), (u32::MAX, 1)] {
            let (columns, rows) = plan(width, height, &IMAGENET).region();
            assert!(
                columns.len() <= 8 && rows.len() <= 8,
                "{columns:?} {rows:?}"
            );
            assert!(columns.end <= width && rows.end <= height);
        }
    }
}
