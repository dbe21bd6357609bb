//! Decoded rows on their way to the crop: a decoder writes them from top to bottom, and they are
//! either kept or scaled at once, a band of them at a time, so that no picture has to be in memory
//! whole.

use std::ops::Range;

use super::{
    Geometry, ImageError,
    budget::Budget,
    crop_plan::CropPlan,
    pixels::{PixelLayout, Pixels, resize_buffer},
    resize::Resizer,
    source_view::SourceView,
};

/// The bytes of a band: few enough to be in a processor's cache beside the tables of a decoder, and
/// enough rows to be worth it.
const BAND_BYTES: usize = 1 << 16;

/// The rows that `convolution` scales side by side.
const ROWS_AT_ONCE: usize = 4;

/// The rows in a band of a picture.
pub(super) fn band_rows(row_bytes: usize) -> usize {
    (BAND_BYTES / row_bytes.max(1))
        .max(1)
        .next_multiple_of(ROWS_AT_ONCE)
}

/// Where a decoded picture is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Decoded {
    /// It is in the [`Pixels`].
    Pixels,
    /// The rows that this crop needs have been given to the [`Resizer`], which can finish it.
    Scaled(CropPlan),
}

/// Rows of a picture that are made apart from the others, perhaps by another thread.
pub(super) struct Part {
    rows: Range<usize>,
    /// Bytes of a row, and of a pixel.
    row_bytes: usize,
    channels: usize,
    /// All of the rows, or a band of them: this many.
    buffer: Vec<u8>,
    band: usize,
    /// What scales the rows, if that is done at once.
    scaling: Option<PartScaling>,
}

struct PartScaling {
    resizer: Resizer,
    plan: CropPlan,
    width: u32,
    layout: PixelLayout,
}

impl Part {
    /// Takes the rows of this part.
    pub fn rows(&mut self) -> Rows<'_> {
        resize_buffer(&mut self.buffer, self.row_bytes * self.band);
        let scaling = self.scaling.as_mut().map(|scaling| Scaling {
            resizer: &mut scaling.resizer,
            plan: scaling.plan,
            width: scaling.width,
            layout: scaling.layout,
            band: self.band,
            filled: 0,
        });
        Rows {
            buffer: &mut self.buffer,
            row_bytes: self.row_bytes,
            channels: self.channels,
            first: self.rows.start,
            scaling,
        }
    }
}

/// Takes the rows of a picture, from top to bottom.
pub(super) struct Rows<'a> {
    buffer: &'a mut Vec<u8>,
    row_bytes: usize,
    channels: usize,
    /// Which row the buffer begins with.
    first: usize,
    scaling: Option<Scaling<'a>>,
}

/// Where rows are scaled at once.
struct Scaling<'a> {
    resizer: &'a mut Resizer,
    plan: CropPlan,
    width: u32,
    layout: PixelLayout,
    /// The rows that the buffer holds at most.
    band: usize,
    /// The rows that it holds now.
    filled: usize,
}

impl<'a> Rows<'a> {
    /// Takes the rows of `pixels`, whose size, layout and orientation are known. They are scaled at
    /// once if there is a resizer and if that is possible: not where the picture is turned by a
    /// quarter, which is scaled when it is complete.
    ///
    /// # Errors
    /// [`ImageError::Geometry`].
    pub fn of(
        pixels: &'a mut Pixels,
        crop: Option<&Geometry>,
        resizer: Option<&'a mut Resizer>,
    ) -> Result<(Self, Decoded), ImageError> {
        let &mut Pixels {
            width,
            height,
            orientation,
            ..
        } = pixels;
        if let Some((geometry, resizer)) = crop.zip(resizer) {
            let plan = CropPlan::new(width, height, orientation, geometry)?;
            if plan.is_scaled_by_rows() {
                let rows = Self::scaled(pixels, resizer, plan);
                return Ok((rows, Decoded::Scaled(plan)));
            }
        }
        Ok((Self::kept(pixels), Decoded::Pixels))
    }

    /// Keeps all rows in `pixels`, whose size and layout are known.
    pub fn kept(pixels: &'a mut Pixels) -> Self {
        let row_bytes = pixels.width as usize * pixels.layout.channels();
        resize_buffer(&mut pixels.data, row_bytes * pixels.height as usize);
        Self {
            buffer: &mut pixels.data,
            row_bytes,
            channels: pixels.layout.channels(),
            first: 0,
            scaling: None,
        }
    }

    /// Scales the rows that the plan needs for `resizer`, by way of the memory of `pixels`.
    fn scaled(pixels: &'a mut Pixels, resizer: &'a mut Resizer, plan: CropPlan) -> Self {
        let row_bytes = pixels.width as usize * pixels.layout.channels();
        let rows = plan.region().1;
        let band = band_rows(row_bytes).min(rows.len());
        resize_buffer(&mut pixels.data, row_bytes * band);
        resizer.begin(&plan, pixels.layout);
        Self {
            row_bytes,
            channels: pixels.layout.channels(),
            first: rows.start as usize,
            scaling: Some(Scaling {
                resizer,
                plan,
                width: pixels.width,
                layout: pixels.layout,
                band,
                filled: 0,
            }),
            buffer: &mut pixels.data,
        }
    }

    /// Whether this row is needed at all.
    pub fn needs(&self, y: usize) -> bool {
        self.scaling.as_ref().is_none_or(|scaling| {
            let rows = scaling.plan.region().1;
            (rows.start as usize..rows.end as usize).contains(&y)
        })
    }

    /// Where a row is to be written that is needed. Rows have to come in order, and each is done
    /// when the next one comes.
    #[inline]
    pub fn row(&mut self, y: usize) -> &mut [u8] {
        if let Some(scaling) = &mut self.scaling {
            if y == self.first + scaling.band {
                scaling.flush(self.buffer, self.first);
                self.first = y;
            }
            scaling.filled = y + 1 - self.first;
        }
        &mut self.buffer[(y - self.first) * self.row_bytes..][..self.row_bytes]
    }

    /// Some of the rows that are needed, to be made apart and [put](Self::put) here.
    pub fn part(&self, rows: Range<usize>) -> Part {
        let band = match &self.scaling {
            Some(_) => band_rows(self.row_bytes).min(rows.len()),
            None => rows.len(),
        };
        let range = rows.start as u32..rows.end as u32;
        Part {
            row_bytes: self.row_bytes,
            channels: self.channels,
            buffer: Vec::new(),
            band,
            scaling: self.scaling.as_ref().map(|scaling| PartScaling {
                resizer: scaling.resizer.part(&scaling.plan, scaling.layout, range),
                plan: scaling.plan,
                width: scaling.width,
                layout: scaling.layout,
            }),
            rows,
        }
    }

    /// Takes rows that were made apart, of which these columns are wanted.
    pub fn put(&mut self, part: &Part, columns: &Range<usize>) {
        if part.rows.is_empty() {
            return;
        }
        if let (Some(into), Some(scaling)) = (&mut self.scaling, &part.scaling) {
            into.resizer.put(&scaling.resizer, &into.plan, into.layout);
            return;
        }
        let bytes = columns.start * self.channels..columns.end * self.channels;
        for (y, row) in part
            .rows
            .clone()
            .zip(part.buffer.chunks_exact(self.row_bytes))
        {
            let start = (y - self.first) * self.row_bytes;
            self.buffer[start..][bytes.clone()].copy_from_slice(&row[bytes.clone()]);
        }
    }

    /// Scales what is left.
    ///
    /// # Errors
    /// As for [`Budget::check`].
    pub fn finish(self, budget: &Budget) -> Result<(), ImageError> {
        budget.check()?;
        if let Some(mut scaling) = self.scaling {
            scaling.flush(self.buffer, self.first);
        }
        Ok(())
    }
}

impl Scaling<'_> {
    fn flush(&mut self, buffer: &[u8], first: usize) {
        let filled = std::mem::take(&mut self.filled);
        if filled == 0 {
            return;
        }
        let bytes = self.width as usize * self.layout.channels() * filled;
        let rows = first as u32..(first + filled) as u32;
        let source = SourceView::packed(self.width, &buffer[..bytes], self.layout);
        self.resizer
            .narrow(source.at((0, rows.start)), &self.plan, rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{PreprocessConfig, orientation::Orientation};

    #[test]
    fn a_crop_is_the_same_whether_rows_are_kept_or_scaled_in_bands() {
        let geometry = Geometry::cropped(40, 30, 50);
        let budget = Budget::new(&PreprocessConfig::default());
        for layout in [PixelLayout::Rgb, PixelLayout::GrayAlpha] {
            let mut whole = Pixels {
                width: 3001,
                height: 701,
                layout,
                orientation: Orientation::default(),
                data: (0..3001 * 701 * layout.channels())
                    .map(|index| (index / 7 + index / 3001) as u8)
                    .collect(),
            };
            for exif in 1..=8 {
                whole.orientation = Orientation::from_exif(exif);
                let mut expected = vec![0; geometry.bytes()];
                let mut resizer = Resizer::default();
                resizer.crop(&whole, &geometry, &mut expected).unwrap();

                let row_bytes = 3001 * layout.channels();
                let mut pixels = Pixels {
                    data: vec![99; 10],
                    ..whole
                };
                let (mut rows, decoded) =
                    Rows::of(&mut pixels, Some(&geometry), Some(&mut resizer)).unwrap();
                for y in (0..701).filter(|y| rows.needs(*y)).collect::<Vec<_>>() {
                    let row = &whole.data[y * row_bytes..][..row_bytes];
                    rows.row(y).copy_from_slice(row);
                }
                rows.finish(&budget).unwrap();

                let mut crop = vec![0; geometry.bytes()];
                match decoded {
                    Decoded::Scaled(plan) => {
                        assert!(exif < 5 && pixels.data.len() < row_bytes * 701 / 3);
                        resizer.finish(&plan, layout, &mut crop).unwrap();
                    }
                    Decoded::Pixels => {
                        assert!(exif >= 5);
                        resizer.crop(&pixels, &geometry, &mut crop).unwrap();
                    }
                }
                assert_eq!(crop, expected, "{layout:?}, orientation {exif}");
            }
        }
    }
}
