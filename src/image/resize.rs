//! Pixels → the upright crop: scaling, cropping, turning and reordering channels, of what the crop
//! needs and no more.

use std::ops::Range;

use fast_image_resize as fir;
use fir::images::{Image, ImageRef};
use fir::{FilterType, IntoImageView, PixelType, ResizeAlg, ResizeOptions};

use super::orientation::Orientation;
use super::pixels::{Layout, Pixels, resize_buffer};
use super::{Geometry, ImageError};

/// One axis of a crop: the stretch of the source that is scaled, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    /// The source's size, in pixels.
    source: u32,
    /// Its size after scaling, in pixels.
    scaled: u64,
    /// Scaled pixels before the first one in the crop.
    offset: u64,
    /// Scaled pixels in the crop.
    length: u32,
    /// Black pixels of the crop before the first scaled one.
    padding: u32,
}

impl Axis {
    /// Takes the middle of the scaled axis, as torchvision's `CenterCrop` does: halves round to
    /// even, and what is too small is padded.
    fn center(source: u32, scaled: u64, crop: u32) -> Self {
        match u32::try_from(scaled) {
            Ok(length) if length < crop => Self {
                source,
                scaled,
                offset: 0,
                length,
                padding: (crop - length) / 2,
            },
            _ => {
                let offset = ((scaled - u64::from(crop)) as f64 / 2.0).round_ties_even() as u64;
                Self {
                    source,
                    scaled,
                    offset,
                    length: crop,
                    padding: 0,
                }
            }
        }
    }

    fn mirrored(self) -> Self {
        Self {
            offset: self.scaled - self.offset - u64::from(self.length),
            ..self
        }
    }

    /// Where the stretch starts and how long it is, in source pixels.
    fn stretch(&self) -> (f64, f64) {
        let to_source = |scaled: u64| {
            (u128::from(scaled) * u128::from(self.source)) as f64 / self.scaled as f64
        };
        let start = to_source(self.offset);
        let length = to_source(u64::from(self.length)).min(f64::from(self.source) - start);
        (start, length)
    }

    /// The source pixels that the stretch depends on.
    fn region(&self) -> Range<u32> {
        let (start, length) = self.stretch();
        // A bilinear filter reaches one pixel of the coarser side; one more covers any rounding.
        let reach = (f64::from(self.source) / self.scaled as f64).max(1.0) + 1.0;
        let first = (start - reach).floor().max(0.0) as u32;
        let last = (start + length + reach).ceil().min(f64::from(self.source)) as u32;
        first..last
    }
}

/// How a crop comes out of a stored image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    orientation: Orientation,
    crop_width: u32,
    crop_height: u32,
    /// The upright axes.
    x: Axis,
    y: Axis,
    /// The same stretches along the stored axes.
    column: Axis,
    row: Axis,
}

impl Plan {
    /// `width` and `height` are those of the stored image; neither may be zero.
    pub(super) fn new(
        width: u32,
        height: u32,
        orientation: Orientation,
        geometry: &Geometry,
    ) -> Result<Self, ImageError> {
        let &Geometry {
            width: crop_width,
            height: crop_height,
            resize_shorter_side,
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
        let shorter = upright_width.min(upright_height);
        let scale = |side: u32| {
            // The product is exact and the quotient rounded once, as in Python.
            let product = u64::from(resize_shorter_side) * u64::from(side);
            (product as f64 / f64::from(shorter)) as u64
        };
        let x = Axis::center(upright_width, scale(upright_width), crop_width);
        let y = Axis::center(upright_height, scale(upright_height), crop_height);
        let (column, row) = if orientation.swapped { (y, x) } else { (x, y) };
        let column = if orientation.mirrored_x {
            column.mirrored()
        } else {
            column
        };
        let row = if orientation.mirrored_y {
            row.mirrored()
        } else {
            row
        };
        Ok(Self {
            orientation,
            crop_width,
            crop_height,
            x,
            y,
            column,
            row,
        })
    }

    /// The stored columns and rows that the crop depends on.
    pub(super) fn region(&self) -> (Range<u32>, Range<u32>) {
        (self.column.region(), self.row.region())
    }

    fn needs_no_rearrangement(&self) -> bool {
        self.orientation == Orientation::default()
            && self.x.length == self.crop_width
            && self.y.length == self.crop_height
    }
}

/// Scales and crops images; keeps its buffers for the next one.
#[derive(Debug, Default)]
pub struct Resizer {
    resizer: fir::Resizer,
    scaled: Vec<u8>,
    lines: Vec<u8>,
}

impl Resizer {
    /// Writes the upright crop as `geometry.height` x `geometry.width` x 3 bytes of RGB.
    ///
    /// # Errors
    /// [`ImageError::ZeroSize`], [`ImageError::Geometry`] or [`ImageError::CropLength`].
    pub fn crop(
        &mut self,
        pixels: &Pixels,
        geometry: &Geometry,
        crop: &mut [u8],
    ) -> Result<(), ImageError> {
        let &Pixels {
            width,
            height,
            layout,
            orientation,
            ref data,
        } = pixels;
        if width == 0 || height == 0 {
            return Err(ImageError::ZeroSize { width, height });
        }
        let plan = Plan::new(width, height, orientation, geometry)?;
        let source = view(width, height, data, layout)?;
        self.crop_view(&source, (0, 0), layout, &plan, crop)
    }

    /// The same for any view; `origin` is the column and row of the stored image where the view
    /// begins.
    pub(super) fn crop_view(
        &mut self,
        source: &impl IntoImageView,
        origin: (u32, u32),
        layout: Layout,
        plan: &Plan,
        crop: &mut [u8],
    ) -> Result<(), ImageError> {
        let expected = u64::from(plan.crop_width) * u64::from(plan.crop_height) * 3;
        if crop.len() as u64 != expected {
            return Err(ImageError::CropLength {
                expected,
                got: crop.len() as u64,
            });
        }
        let (columns, rows) = (plan.column.length, plan.row.length);
        if columns == 0 || rows == 0 {
            crop.fill(0);
            return Ok(());
        }
        if layout == Layout::Rgb && plan.needs_no_rearrangement() {
            return self.scale(source, origin, layout, plan, crop);
        }
        let mut scaled = std::mem::take(&mut self.scaled);
        resize_buffer(
            &mut scaled,
            columns as usize * rows as usize * layout.channels(),
        );
        let result = self.scale(source, origin, layout, plan, &mut scaled);
        if result.is_ok() {
            rearrange(&scaled, layout, plan, crop);
        }
        self.scaled = scaled;
        result
    }

    /// Scales the stored stretches to the crop's size.
    fn scale(
        &mut self,
        source: &impl IntoImageView,
        origin: (u32, u32),
        layout: Layout,
        plan: &Plan,
        target: &mut [u8],
    ) -> Result<(), ImageError> {
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
            .use_alpha(false);
        let (columns, rows) = (plan.column.length, plan.row.length);
        let (left, width) = plan.column.stretch();
        let (top, height) = plan.row.stretch();
        let left = left - f64::from(origin.0);
        let pixel_type = pixel_type(layout);
        let mut target = Image::from_slice_u8(columns, rows, target, pixel_type).map_err(defect)?;
        if plan.orientation.swapped {
            let options = options.crop(left, top - f64::from(origin.1), width, height);
            return self
                .resizer
                .resize(source, &mut target, &options)
                .map_err(defect);
        }

        // Pillow scales upright rows before columns and rounds in between; the resampler by itself
        // does the opposite.
        let lines = plan.row.region();
        let line_count = lines.len() as u32;
        resize_buffer(
            &mut self.lines,
            columns as usize * lines.len() * layout.channels(),
        );
        let mut narrowed = Image::from_slice_u8(columns, line_count, &mut self.lines, pixel_type)
            .map_err(defect)?;
        let horizontal = options.crop(
            left,
            f64::from(lines.start - origin.1),
            width,
            f64::from(line_count),
        );
        self.resizer
            .resize(source, &mut narrowed, &horizontal)
            .map_err(defect)?;
        let vertical = options.crop(
            0.0,
            top - f64::from(lines.start),
            f64::from(columns),
            height,
        );
        self.resizer
            .resize(&narrowed, &mut target, &vertical)
            .map_err(defect)
    }

    /// The bytes that the buffers take.
    pub(super) fn memory(&self) -> usize {
        self.scaled.capacity() + self.lines.capacity() + self.resizer.size_of_internal_buffers()
    }
}

/// A view of packed pixels.
pub(super) fn view(
    width: u32,
    height: u32,
    data: &[u8],
    layout: Layout,
) -> Result<ImageRef<'_>, ImageError> {
    ImageRef::new(width, height, data, pixel_type(layout)).map_err(defect)
}

pub(super) fn defect(error: impl std::fmt::Display) -> ImageError {
    ImageError::Resize(error.to_string())
}

fn pixel_type(layout: Layout) -> PixelType {
    match layout {
        Layout::Gray => PixelType::U8,
        Layout::GrayAlpha => PixelType::U8x2,
        Layout::Rgb | Layout::Bgr => PixelType::U8x3,
        Layout::Rgba | Layout::Bgra => PixelType::U8x4,
    }
}

/// Turns scaled pixels upright and to RGB, and puts them into the crop.
fn rearrange(scaled: &[u8], layout: Layout, plan: &Plan, crop: &mut [u8]) {
    let (width, height) = (plan.x.length as usize, plan.y.length as usize);
    let crop_width = plan.crop_width as usize;
    if width < crop_width || height < plan.crop_height as usize {
        crop.fill(0);
    }
    let rows = crop
        .chunks_exact_mut(3 * crop_width)
        .skip(plan.y.padding as usize)
        .take(height)
        .map(|row| &mut row[3 * plan.x.padding as usize..][..3 * width]);

    let channels = layout.channels();
    let picked = layout.red_green_blue();
    if plan.orientation == Orientation::default() {
        for (row, source) in rows.zip(scaled.chunks_exact(width * channels)) {
            match channels {
                1 => pick::<1>(source, row, picked),
                2 => pick::<2>(source, row, picked),
                3 => pick::<3>(source, row, picked),
                _ => pick::<4>(source, row, picked),
            }
        }
        return;
    }
    let (stored_width, stored_height) = (plan.column.length as usize, plan.row.length as usize);
    for (y, row) in rows.enumerate() {
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            let (mut column, mut line) = if plan.orientation.swapped {
                (y, x)
            } else {
                (x, y)
            };
            if plan.orientation.mirrored_x {
                column = stored_width - 1 - column;
            }
            if plan.orientation.mirrored_y {
                line = stored_height - 1 - line;
            }
            let source = &scaled[(line * stored_width + column) * channels..][..channels];
            pixel.copy_from_slice(&picked.map(|channel| source[channel]));
        }
    }
}

fn pick<const CHANNELS: usize>(source: &[u8], target: &mut [u8], picked: [usize; 3]) {
    for (pixel, target) in source
        .chunks_exact(CHANNELS)
        .zip(target.chunks_exact_mut(3))
    {
        target.copy_from_slice(&picked.map(|channel| pixel[channel]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGENET: Geometry = Geometry {
        width: 224,
        height: 224,
        resize_shorter_side: 256,
    };

    fn plan(width: u32, height: u32, geometry: &Geometry) -> Plan {
        Plan::new(width, height, Orientation::default(), geometry).unwrap()
    }

    #[test]
    fn the_longer_side_truncates() {
        let plan = plan(500, 333, &IMAGENET);
        assert_eq!((plan.x.scaled, plan.y.scaled), (384, 256));
        assert_eq!((plan.x.offset, plan.y.offset), (80, 16));
    }

    #[test]
    fn offsets_round_halves_to_even() {
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

    #[test]
    fn a_crop_larger_than_the_image_is_padded_with_black() {
        let geometry = Geometry {
            width: 5,
            height: 4,
            resize_shorter_side: 2,
        };
        let pixels = Pixels {
            width: 2,
            height: 2,
            layout: Layout::Gray,
            orientation: Orientation::default(),
            data: vec![9; 4],
        };
        let mut crop = vec![1; 5 * 4 * 3];
        Resizer::default()
            .crop(&pixels, &geometry, &mut crop)
            .unwrap();
        let gray: Vec<u8> = crop.chunks_exact(3).map(|pixel| pixel[0]).collect();
        assert_eq!(
            gray,
            [0, 0, 0, 0, 0, 0, 9, 9, 0, 0, 0, 9, 9, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn a_wrong_geometry_or_buffer_is_an_error() {
        let pixels = Pixels {
            width: 2,
            height: 2,
            layout: Layout::Gray,
            orientation: Orientation::default(),
            data: vec![9; 4],
        };
        let mut resizer = Resizer::default();
        let error = resizer.crop(&pixels, &IMAGENET, &mut [0; 7]).unwrap_err();
        assert_eq!(
            error,
            ImageError::CropLength {
                expected: 150_528,
                got: 7
            }
        );
        let error = resizer
            .crop(
                &pixels,
                &Geometry {
                    width: 0,
                    ..IMAGENET
                },
                &mut [],
            )
            .unwrap_err();
        assert!(matches!(error, ImageError::Geometry { width: 0, .. }));
        let error = resizer
            .crop(&Pixels::default(), &IMAGENET, &mut [])
            .unwrap_err();
        assert_eq!(
            error,
            ImageError::ZeroSize {
                width: 0,
                height: 0
            }
        );
    }

    #[test]
    fn channels_are_reordered_and_alpha_is_dropped() {
        let geometry = Geometry {
            width: 1,
            height: 1,
            resize_shorter_side: 1,
        };
        for (layout, data, expected) in [
            (Layout::Gray, vec![7], [7, 7, 7]),
            (Layout::GrayAlpha, vec![7, 0], [7, 7, 7]),
            (Layout::Rgb, vec![1, 2, 3], [1, 2, 3]),
            (Layout::Bgr, vec![1, 2, 3], [3, 2, 1]),
            (Layout::Rgba, vec![1, 2, 3, 0], [1, 2, 3]),
            (Layout::Bgra, vec![1, 2, 3, 0], [3, 2, 1]),
        ] {
            let pixels = Pixels {
                width: 1,
                height: 1,
                layout,
                orientation: Orientation::default(),
                data,
            };
            let mut crop = [0; 3];
            Resizer::default()
                .crop(&pixels, &geometry, &mut crop)
                .unwrap();
            assert_eq!(crop, expected, "{layout:?}");
        }
    }

    #[test]
    fn every_orientation_agrees_with_the_pixels_turned_by_hand() {
        let (width, height) = (31u32, 47u32);
        let stored: Vec<u8> = (0..width * height)
            .flat_map(|i| [i as u8, (i / 7) as u8, (i * i / 11) as u8])
            .collect();
        let geometry = Geometry {
            width: 20,
            height: 14,
            resize_shorter_side: 24,
        };
        let at = |x: u32, y: u32| -> [u8; 3] {
            stored[3 * (y * width + x) as usize..][..3]
                .try_into()
                .unwrap()
        };
        for value in 1..=8u8 {
            let turned = value > 4;
            let (upright_width, upright_height) = if turned {
                (height, width)
            } else {
                (width, height)
            };
            let mut upright = Vec::new();
            for y in 0..upright_height {
                for x in 0..upright_width {
                    // As the EXIF standard says where the stored row 0 and column 0 are seen.
                    upright.extend(match value {
                        1 => at(x, y),
                        2 => at(width - 1 - x, y),
                        3 => at(width - 1 - x, height - 1 - y),
                        4 => at(x, height - 1 - y),
                        5 => at(y, x),
                        6 => at(y, height - 1 - x),
                        7 => at(width - 1 - y, height - 1 - x),
                        _ => at(width - 1 - y, x),
                    });
                }
            }
            let crop_of = |width, height, orientation, data: &[u8]| {
                let pixels = Pixels {
                    width,
                    height,
                    layout: Layout::Rgb,
                    orientation,
                    data: data.to_vec(),
                };
                let mut crop = vec![0; 20 * 14 * 3];
                Resizer::default()
                    .crop(&pixels, &geometry, &mut crop)
                    .unwrap();
                crop
            };
            let expected = crop_of(
                upright_width,
                upright_height,
                Orientation::default(),
                &upright,
            );
            let got = crop_of(width, height, Orientation::from_exif(value), &stored);
            let worst = got
                .iter()
                .zip(&expected)
                .map(|(a, b)| a.abs_diff(*b))
                .max()
                .unwrap();
            assert!(worst <= 1, "orientation {value} differs by {worst}");
        }
    }
}
