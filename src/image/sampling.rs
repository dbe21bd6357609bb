//! Scaling by filters that the resampler does not have: the nearest pixel as Pillow picks it, and
//! the mean of an area as OpenCV computes it.
//!
//! Each axis is described by a [`Table`] of the source pixels that a scaled one is made of. Rows
//! are scaled before columns, and rounded to bytes in between.

use std::ops::Range;

use fast_image_resize::IntoImageView;

use super::{ImageError, pixels::PixelLayout, source_view::SourceView};

/// The longest axis along which Pillow's sum of steps is followed; beyond it, the steps are
/// multiplied, which differs only where a middle falls on the border of two pixels.
const LONGEST_SUM: u64 = 1 << 16;

/// How a scaled pixel is made of those of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sampling {
    /// The pixel in the middle.
    Nearest,
    /// The mean of what it covers.
    Area,
    /// The pixel where it begins, and the next one as far as it is covered: what OpenCV makes of
    /// `INTER_AREA` where a side is scaled up.
    EnlargedArea,
}

/// An axis of an upright picture, and the stretch of its scaled pixels that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// The size of the source, in pixels.
    pub source: u32,
    /// The size of the source after scaling, in pixels.
    pub scaled: u64,
    /// Scaled pixels before the stretch.
    pub offset: u64,
    /// Scaled pixels in the stretch.
    pub length: u32,
    /// Whether the source is stored backwards. The offset is that in the picture as stored.
    pub mirrored: bool,
}

/// The source pixels of each scaled one along an axis.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// For each scaled pixel, its first source pixel and the end of its weights.
    pixels: Vec<(u32, usize)>,
    weights: Vec<f32>,
}

impl Table {
    /// Replaces the table by that of an axis.
    pub fn fill(&mut self, sampling: Sampling, axis: Stretch) {
        self.pixels.clear();
        self.weights.clear();

        let last = axis.scaled - 1;
        let upright = |index: u64| if axis.mirrored { last - index } else { index };
        // As OpenCV computes it, by way of the inverse.
        let step = match sampling {
            Sampling::Nearest => f64::from(axis.source) / axis.scaled as f64,
            Sampling::Area | Sampling::EnlargedArea => {
                1.0 / (axis.scaled as f64 / f64::from(axis.source))
            }
        };
        let end = axis.offset + u64::from(axis.length);
        let middles = (sampling == Sampling::Nearest)
            .then(|| Middles::new(step, upright(axis.offset).max(upright(end - 1))));

        for index in axis.offset..end {
            let index = upright(index);
            let begun = self.weights.len();
            let first = match sampling {
                Sampling::Nearest => {
                    self.weights.push(1.0);
                    middles
                        .as_ref()
                        .map_or(0, |middles| middles.at(index) as u32)
                        .min(axis.source - 1)
                }
                Sampling::Area => self.push_area(index, step, axis.source),
                Sampling::EnlargedArea => self.push_enlarged(index, step, axis.source),
            };
            let first = if axis.mirrored {
                self.weights[begun..].reverse();
                axis.source - first - (self.weights.len() - begun) as u32
            } else {
                first
            };
            self.pixels.push((first, self.weights.len()));
        }
    }

    /// The mean of the source pixels from `index · step` to one step further.
    fn push_area(&mut self, index: u64, step: f64, source: u32) -> u32 {
        let start = index as f64 * step;
        let end = (start + step).min(f64::from(source));
        let first = (start as u32).min(source - 1);
        let covered = (end - start).max(f64::MIN_POSITIVE);
        for pixel in first..source {
            let pixel = f64::from(pixel);
            let part = end.min(pixel + 1.0) - start.max(pixel);
            if part <= 0.0 && pixel > start {
                break;
            }
            self.weights.push((part.max(0.0) / covered) as f32);
        }
        first
    }

    fn push_enlarged(&mut self, index: u64, step: f64, source: u32) -> u32 {
        let first = ((index as f64 * step) as u32).min(source - 1);
        let beyond = (index + 1) as f64 - f64::from(first + 1) / step;
        let second = if beyond <= 0.0 || first + 1 >= source {
            0.0
        } else {
            beyond.fract()
        };
        self.weights.push((1.0 - second) as f32);
        if first + 1 < source {
            self.weights.push(second as f32);
        }
        first
    }

    /// For each scaled pixel, its first source pixel and the weights from there on.
    fn rows(&self) -> impl Iterator<Item = (usize, &[f32])> {
        let mut begun = 0;
        self.pixels.iter().map(move |&(first, end)| {
            let weights = &self.weights[begun..end];
            begun = end;
            (first as usize, weights)
        })
    }

    /// The size of the table, in bytes.
    pub fn memory(&self) -> usize {
        self.pixels.capacity() * size_of::<(u32, usize)>()
            + self.weights.capacity() * size_of::<f32>()
    }
}

/// The middles of scaled pixels in the source. Pillow adds one step after another, so that its
/// rounding errors add up as well.
struct Middles {
    step: f64,
    sums: Vec<f64>,
}

impl Middles {
    fn new(step: f64, last: u64) -> Self {
        let mut middle = step * 0.5;
        let sums = if last < LONGEST_SUM {
            (0..=last)
                .map(|_| {
                    let this = middle;
                    middle += step;
                    this
                })
                .collect()
        } else {
            Vec::new()
        };
        Self { step, sums }
    }

    fn at(&self, index: u64) -> f64 {
        let sum = self.sums.get(index as usize).copied();
        sum.unwrap_or((index as f64 + 0.5) * self.step)
    }
}

/// Scales these rows of the stored image into `target`.
pub(super) fn scale_rows<V: IntoImageView>(
    source: &SourceView<'_, V>,
    rows: Range<u32>,
    columns: &Table,
    target: &mut [u8],
) -> Result<(), ImageError> {
    let channels = source.layout.channels();
    let row_bytes = columns.pixels.len() * channels;
    let left = source.origin.0 as usize;
    source.with_rows(rows, |rows| {
        for (row, target) in rows.iter().zip(target.chunks_exact_mut(row_bytes)) {
            for ((first, weights), pixel) in columns.rows().zip(target.chunks_exact_mut(channels)) {
                let begin = (first - left) * channels;
                for (channel, value) in pixel.iter_mut().enumerate() {
                    let sum: f32 = weights
                        .iter()
                        .zip(row[begin + channel..].iter().step_by(channels))
                        .map(|(weight, &value)| weight * f32::from(value))
                        .sum();
                    *value = (sum + 0.5) as u8;
                }
            }
        }
    })
}

/// Scales the columns of packed rows, the first of which is row `first_row` of the source.
pub(super) fn scale_columns(
    narrowed: &[u8],
    first_row: u32,
    rows: &Table,
    layout: PixelLayout,
    columns: u32,
    target: &mut [u8],
) {
    let row_bytes = columns as usize * layout.channels();
    let mut sums = vec![0.0; row_bytes];
    for ((first, weights), target) in rows.rows().zip(target.chunks_exact_mut(row_bytes)) {
        sums.fill(0.0);
        let begin = (first - first_row as usize) * row_bytes;
        for (weight, row) in weights
            .iter()
            .zip(narrowed[begin..].chunks_exact(row_bytes))
        {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += weight * f32::from(value);
            }
        }
        for (value, sum) in target.iter_mut().zip(&sums) {
            *value = (sum + 0.5) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(
        sampling: Sampling,
        source: u32,
        scaled: u64,
        mirrored: bool,
    ) -> Vec<(usize, Vec<f32>)> {
        let mut table = Table::default();
        let axis = Stretch {
            source,
            scaled,
            offset: 0,
            length: scaled as u32,
            mirrored,
        };
        table.fill(sampling, axis);
        table
            .rows()
            .map(|(first, weights)| (first, weights.to_vec()))
            .collect()
    }

    #[test]
    fn an_area_weighs_pixels_by_what_it_covers() {
        assert_eq!(
            table(Sampling::Area, 4, 2, false),
            [(0, vec![0.5, 0.5]), (2, vec![0.5, 0.5])]
        );
        let uneven = table(Sampling::Area, 3, 2, false);
        assert_eq!((uneven[0].0, uneven[1].0), (0, 1));
        let (two, one) = (2.0 / 3.0, 1.0 / 3.0);
        for (found, expected) in uneven[0].1.iter().zip([two, one]) {
            assert!((found - expected).abs() < 1e-6, "{uneven:?}");
        }
        for (found, expected) in uneven[1].1.iter().zip([one, two]) {
            assert!((found - expected).abs() < 1e-6, "{uneven:?}");
        }
    }

    #[test]
    fn every_table_stays_within_the_source_and_sums_to_one() {
        for sampling in [Sampling::Nearest, Sampling::Area, Sampling::EnlargedArea] {
            for (source, scaled) in [
                (1, 1),
                (1, 7),
                (2, 3),
                (7, 3),
                (640, 224),
                (1000, 999),
                (5, 64),
            ] {
                for mirrored in [false, true] {
                    for (first, weights) in table(sampling, source, scaled, mirrored) {
                        assert!(first + weights.len() <= source as usize);
                        let sum: f32 = weights.iter().sum();
                        assert!(
                            (sum - 1.0).abs() < 1e-4,
                            "{sampling:?} {source} to {scaled}: {weights:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_mirrored_axis_is_the_same_picture_backwards() {
        for sampling in [Sampling::Nearest, Sampling::Area, Sampling::EnlargedArea] {
            let source: Vec<f32> = (0..10).map(|pixel| (pixel * pixel) as f32).collect();
            let backwards: Vec<f32> = source.iter().rev().copied().collect();
            let apply = |table: Vec<(usize, Vec<f32>)>, source: &[f32]| -> Vec<f32> {
                table
                    .iter()
                    .map(|(first, weights)| {
                        let pixels = source[*first..].iter().zip(weights);
                        pixels.map(|(pixel, weight)| pixel * weight).sum()
                    })
                    .collect()
            };
            let upright = apply(table(sampling, 10, 4, false), &source);
            let mut mirrored = apply(table(sampling, 10, 4, true), &backwards);
            mirrored.reverse();
            assert_eq!(upright, mirrored, "{sampling:?}");
        }
    }
}
