//! Scales, crops and turns decoded pixels upright, and converts them to RGB. Only the region of the
//! image that the crop depends on is processed, as `crop_plan` says.

use std::ops::Range;

use super::{
    Geometry, ImageError,
    convolution::{self, Weights},
    crop_plan::CropPlan,
    orientation::Orientation,
    pixels::{PixelLayout, Pixels, resize_buffer},
    sampling::{self, Table},
    source_view::SourceView,
};

/// Scales and crops images. Its buffers are kept for the next image.
#[derive(Debug, Default)]
pub struct Resizer {
    /// The scaled pixels, before they are turned upright and converted to RGB.
    scaled: Vec<u8>,
    /// The pixels scaled horizontally but not yet vertically.
    narrowed: Vec<u8>,
    /// The stored row that they begin with.
    first: u32,
    /// What scaled columns and rows are made of, where they are sampled.
    columns: Table,
    rows: Table,
    /// What scaled columns and rows are made of, where that is a convolution.
    column_weights: Weights,
    row_weights: Weights,
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

        let plan = CropPlan::new(width, height, orientation, geometry)?;
        self.crop_view(SourceView::packed(width, data, layout), &plan, crop)
    }

    /// Like [`Resizer::crop`], for any view of the stored pixels.
    pub(super) fn crop_view(
        &mut self,
        source: SourceView<'_>,
        plan: &CropPlan,
        crop: &mut [u8],
    ) -> Result<(), ImageError> {
        plan.check_length(crop)?;
        if plan.column.length == 0 || plan.row.length == 0 {
            plan.fill(crop);
            return Ok(());
        }
        if plan.orientation.swapped && plan.sampling().is_none() {
            self.write(plan, source.layout, crop, |resizer, target| {
                resizer.convolve_columns_first(source, plan, target);
            });
            return Ok(());
        }
        self.begin(plan, source.layout);
        self.narrow(source, plan, plan.rows());
        self.finish(plan, source.layout, crop)
    }

    /// Makes room for the rows of a plan, which [`Resizer::narrow`] scales.
    pub(super) fn begin(&mut self, plan: &CropPlan, layout: PixelLayout) {
        resize_buffer(
            &mut self.narrowed,
            plan.narrowed_row_bytes(layout) * plan.rows().len(),
        );
        self.first = plan.rows().start;
        match plan.sampling() {
            Some(sampling) => {
                self.columns.fill(sampling, plan.column.to_stretch());
                self.rows.fill(sampling, plan.row.to_stretch());
            }
            None => self.weigh(plan),
        }
    }

    /// What narrows some of the rows of the plan that this has begun with.
    pub(super) fn part(&self, plan: &CropPlan, layout: PixelLayout, rows: Range<u32>) -> Self {
        let row_bytes = plan.narrowed_row_bytes(layout);
        Self {
            narrowed: vec![0; row_bytes * rows.len()],
            first: rows.start,
            columns: self.columns.clone(),
            column_weights: self.column_weights.clone(),
            ..Self::default()
        }
    }

    /// Takes the rows that a part of this has narrowed.
    pub(super) fn put(&mut self, part: &Self, plan: &CropPlan, layout: PixelLayout) {
        let row_bytes = plan.narrowed_row_bytes(layout);
        let start = (part.first - self.first) as usize * row_bytes;
        self.narrowed[start..][..part.narrowed.len()].copy_from_slice(&part.narrowed);
    }

    fn weigh(&mut self, plan: &CropPlan) {
        self.column_weights
            .fill(plan.filter, plan.column.to_stretch());
        self.row_weights.fill(plan.filter, plan.row.to_stretch());
    }

    /// Scales rows of the stored image horizontally, all of which the plan needs.
    ///
    /// Pillow scales the rows of the upright image before its columns, and rounds to bytes in
    /// between. Images that are stored with their axes swapped are convolved in the other order, and
    /// sampled in this one.
    pub(super) fn narrow(&mut self, source: SourceView<'_>, plan: &CropPlan, rows: Range<u32>) {
        let row_bytes = plan.narrowed_row_bytes(source.layout);
        let first = (rows.start - self.first) as usize;
        let target = &mut self.narrowed[first * row_bytes..][..rows.len() * row_bytes];
        if plan.sampling().is_some() {
            sampling::scale_rows(source, rows, &self.columns, target);
        } else {
            convolution::scale_rows(source, rows, &self.column_weights, target);
        }
    }

    /// Writes the crop of all rows that have been scaled horizontally.
    ///
    /// # Errors
    /// [`ImageError::CropLength`].
    pub(super) fn finish(
        &mut self,
        plan: &CropPlan,
        layout: PixelLayout,
        crop: &mut [u8],
    ) -> Result<(), ImageError> {
        plan.check_length(crop)?;
        self.write(plan, layout, crop, |resizer, target| {
            resizer.scale_columns(plan, layout, target);
        });
        Ok(())
    }

    /// Has the scaled pixels written to the crop, by way of a buffer if they have to be rearranged.
    fn write(
        &mut self,
        plan: &CropPlan,
        layout: PixelLayout,
        crop: &mut [u8],
        scale: impl FnOnce(&mut Self, &mut [u8]),
    ) {
        if layout == PixelLayout::Rgb && plan.needs_no_rearrangement() {
            return scale(self, crop);
        }
        // Taken out of `self`, because scaling borrows the rest of it.
        let mut scaled = std::mem::take(&mut self.scaled);
        resize_buffer(
            &mut scaled,
            plan.column.length as usize * plan.row.length as usize * layout.channels(),
        );
        scale(self, &mut scaled);
        rearrange(&scaled, layout, plan, crop);
        self.scaled = scaled;
    }

    /// The second pass: scales the narrowed rows vertically.
    fn scale_columns(&self, plan: &CropPlan, layout: PixelLayout, target: &mut [u8]) {
        let columns = plan.column.length;
        let first = plan.rows().start;
        if plan.sampling().is_some() {
            sampling::scale_columns(&self.narrowed, first, &self.rows, layout, columns, target);
            return;
        }
        let row_bytes = columns as usize * layout.channels();
        let packed: Vec<_> = self.narrowed.chunks_exact(row_bytes).collect();
        convolution::scale_columns(&packed, first, &self.row_weights, target);
    }

    /// Scales the stored region to `plan.column.length` x `plan.row.length` pixels, columns first.
    fn convolve_columns_first(
        &mut self,
        source: SourceView<'_>,
        plan: &CropPlan,
        target: &mut [u8],
    ) {
        let layout = source.layout;
        let (columns, lines) = plan.region();
        self.weigh(plan);
        resize_buffer(
            &mut self.narrowed,
            columns.len() * plan.row.length as usize * layout.channels(),
        );
        let flattened = &mut self.narrowed;
        convolution::scale_columns_of(source, columns.clone(), lines, &self.row_weights, flattened);

        let flattened = SourceView::packed(columns.len() as u32, flattened, layout);
        let flattened = flattened.at((columns.start, 0));
        convolution::scale_rows(flattened, 0..plan.row.length, &self.column_weights, target);
    }

    /// The size of the buffers, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.scaled.capacity()
            + self.narrowed.capacity()
            + self.columns.memory()
            + self.rows.memory()
            + self.column_weights.memory()
            + self.row_weights.memory()
    }
}

/// Turns scaled pixels upright, converts them to RGB, and writes them into the middle of the crop.
fn rearrange(scaled: &[u8], layout: PixelLayout, plan: &CropPlan, crop: &mut [u8]) {
    let (width, height) = (plan.x.length as usize, plan.y.length as usize);
    let crop_width = plan.crop_width as usize;
    if width < crop_width || height < plan.crop_height as usize {
        plan.fill(crop);
    }
    let rows = crop
        .chunks_exact_mut(3 * crop_width)
        .skip(plan.y.padding as usize)
        .take(height)
        .map(|row| &mut row[3 * plan.x.padding as usize..][..3 * width]);

    if plan.orientation == Orientation::default() {
        copy_rows_as_rgb(scaled, layout, width, rows);
    } else {
        copy_upright_as_rgb(scaled, layout, plan, rows);
    }
}

fn copy_rows_as_rgb<'a>(
    scaled: &[u8],
    layout: PixelLayout,
    width: usize,
    rows: impl Iterator<Item = &'a mut [u8]>,
) {
    let channels = layout.channels();
    let offsets = layout.rgb_offsets();
    for (row, source) in rows.zip(scaled.chunks_exact(width * channels)) {
        // The number of channels is a constant in each loop, so that each can be vectorised.
        match channels {
            1 => copy_row_as_rgb::<1>(source, row, offsets),
            2 => copy_row_as_rgb::<2>(source, row, offsets),
            3 => copy_row_as_rgb::<3>(source, row, offsets),
            _ => copy_row_as_rgb::<4>(source, row, offsets),
        }
    }
}

fn copy_row_as_rgb<const CHANNELS: usize>(source: &[u8], target: &mut [u8], offsets: [usize; 3]) {
    for (pixel, target) in source
        .chunks_exact(CHANNELS)
        .zip(target.chunks_exact_mut(3))
    {
        target.copy_from_slice(&offsets.map(|offset| pixel[offset]));
    }
}

fn copy_upright_as_rgb<'a>(
    scaled: &[u8],
    layout: PixelLayout,
    plan: &CropPlan,
    rows: impl Iterator<Item = &'a mut [u8]>,
) {
    let channels = layout.channels();
    let offsets = layout.rgb_offsets();
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
            pixel.copy_from_slice(&offsets.map(|offset| source[offset]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGENET: Geometry = Geometry::cropped(224, 224, 256);

    #[test]
    fn a_crop_larger_than_the_image_is_padded_with_black() {
        let geometry = Geometry::cropped(5, 4, 2);
        let pixels = Pixels {
            width: 2,
            height: 2,
            layout: PixelLayout::Gray,
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
            layout: PixelLayout::Gray,
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
        let geometry = Geometry::cropped(1, 1, 1);
        for (layout, data, expected) in [
            (PixelLayout::Gray, vec![7], [7, 7, 7]),
            (PixelLayout::GrayAlpha, vec![7, 0], [7, 7, 7]),
            (PixelLayout::Rgb, vec![1, 2, 3], [1, 2, 3]),
            (PixelLayout::Bgr, vec![1, 2, 3], [3, 2, 1]),
            (PixelLayout::Rgba, vec![1, 2, 3, 0], [1, 2, 3]),
            (PixelLayout::Bgra, vec![1, 2, 3, 0], [3, 2, 1]),
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
    fn every_orientation_agrees_with_manually_turned_pixels() {
        let (width, height) = (31u32, 47u32);
        let stored: Vec<u8> = (0..width * height)
            .flat_map(|i| [i as u8, (i / 7) as u8, (i * i / 11) as u8])
            .collect();
        let geometry = Geometry::cropped(20, 14, 24);
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
                    // From the EXIF standard's table of where row 0 and column 0 are in the
                    // upright image.
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
                    layout: PixelLayout::Rgb,
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
