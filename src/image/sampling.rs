//! Scaling by the nearest pixel, as Pillow picks it, and by OpenCV's filters: linear, cubic and
//! Lanczos without antialiasing, and the mean of an area.
//!
//! Each axis is described by a [`Table`] of the source pixels that a scaled one is made of. Rows
//! are scaled before columns, and rounded in between as [`Sampling::keeps_fractions`] says.

use std::ops::Range;

use super::{pixels::PixelLayout, source_view::SourceView};

/// The longest axis along which Pillow's sum of steps is followed; beyond it, the steps are
/// multiplied, which differs only where a middle falls on the border of two pixels.
const LONGEST_SUM: u64 = 1 << 16;

/// The parts of a value of a pixel that are told apart between the passes of a filter that keeps
/// fractions. 16 bits hold more than twice the range of such values.
const PARTS: f32 = 64.0;

/// More than any negative value, in these parts.
const ABOVE_ZERO: f32 = 32768.0;

/// OpenCV's weights of pixels around a middle are multiples of one part of this many.
const WEIGHT_PARTS: f32 = 2048.0;

/// How a scaled pixel is made of those of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sampling {
    /// The pixel in the middle.
    Nearest,
    /// The mean of what it covers.
    Area,
    /// A blend of the two pixels around its middle.
    Linear,
    /// A cubic over the four pixels around its middle.
    Cubic,
    /// A windowed sinc over the eight pixels around its middle.
    Lanczos4,
    /// A blend of the pixel that contains its start and the next one, weighted by overlap: OpenCV's
    /// `INTER_AREA` where a side is scaled up.
    EnlargedArea,
}

impl Sampling {
    /// Whether values are rounded to parts of [`PARTS`] between the passes, and not to bytes. OpenCV
    /// keeps fractions as well, in fixed point. Values of [`Sampling::Cubic`] and
    /// [`Sampling::Lanczos4`] also lie outside the range of a byte.
    fn keeps_fractions(self) -> bool {
        matches!(self, Self::Linear | Self::Cubic | Self::Lanczos4)
    }
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
    sampling: Option<Sampling>,
    /// For each scaled pixel, its first source pixel and the end of its weights.
    pixels: Vec<(u32, usize)>,
    weights: Vec<f32>,
}

impl Table {
    /// Replaces the table by that of an axis.
    pub fn fill(&mut self, sampling: Sampling, axis: Stretch) {
        self.sampling = Some(sampling);
        self.pixels.clear();
        self.weights.clear();

        let last = axis.scaled - 1;
        let upright = |index: u64| if axis.mirrored { last - index } else { index };
        // As OpenCV computes it, by way of the inverse.
        let step = match sampling {
            Sampling::Nearest => f64::from(axis.source) / axis.scaled as f64,
            _ => 1.0 / (axis.scaled as f64 / f64::from(axis.source)),
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
                Sampling::Linear => self.push_around(index, step, axis.source, |x| [1.0 - x, x]),
                Sampling::Cubic => self.push_around(index, step, axis.source, cubic),
                Sampling::Lanczos4 => self.push_around(index, step, axis.source, lanczos4),
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

    /// The `N` pixels around the middle, by the `weights` for where it lies between two of them. Those
    /// beyond the edge are as the last one before it.
    fn push_around<const N: usize>(
        &mut self,
        index: u64,
        step: f64,
        source: u32,
        weights: fn(f32) -> [f32; N],
    ) -> u32 {
        let middle = ((index as f64 + 0.5) * step - 0.5) as f32;
        let before = middle.floor();
        let weights = weights(middle - before);
        let first = before as i64 - (N as i64 / 2 - 1);
        let last = i64::from(source) - 1;
        let clamped = |pixel: i64| pixel.clamp(0, last);
        let begin = clamped(first);
        let begun = self.weights.len();
        let length = clamped(first + N as i64 - 1) - begin + 1;
        self.weights.resize(begun + length as usize, 0.0);
        for (pixel, weight) in (first..).zip(weights) {
            let rounded = (weight * WEIGHT_PARTS).round_ties_even() / WEIGHT_PARTS;
            self.weights[begun + (clamped(pixel) - begin) as usize] += rounded;
        }
        begin as u32
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

    fn keeps_fractions(&self) -> bool {
        self.sampling.is_some_and(Sampling::keeps_fractions)
    }

    /// The size of the table, in bytes.
    pub fn memory(&self) -> usize {
        self.pixels.capacity() * size_of::<(u32, usize)>()
            + self.weights.capacity() * size_of::<f32>()
    }
}

/// The weights of a cubic with a = -0.75 on the pixels at -1, 0, 1 and 2, for a middle at `x` from 0
/// to 1.
fn cubic(x: f32) -> [f32; 4] {
    const A: f32 = -0.75;
    let near = |d: f32| ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0;
    let far = |d: f32| ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A;
    let [first, second, third] = [far(x + 1.0), near(x), near(1.0 - x)];
    [first, second, third, 1.0 - first - second - third]
}

/// The weights of a sinc within the first lobe of one four times as wide, on the pixels at -3 to 4,
/// for a middle at `x` from 0 to 1.
fn lanczos4(x: f32) -> [f32; 8] {
    let sinc = |d: f64| match d * std::f64::consts::PI {
        0.0 => 1.0,
        angle => angle.sin() / angle,
    };
    let weights: [f64; 8] = std::array::from_fn(|pixel| {
        let distance = f64::from(x) + 3.0 - pixel as f64;
        sinc(distance) * sinc(distance / 4.0)
    });
    let sum: f64 = weights.iter().sum();
    weights.map(|weight| (weight / sum) as f32)
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
pub(super) fn scale_rows(
    source: SourceView<'_>,
    rows: Range<u32>,
    columns: &Table,
    target: &mut [u8],
) {
    if columns.keeps_fractions() {
        scale_rows_to(source, rows, columns, target, |sum| {
            // Rounded by truncating a positive number, for which every processor has an instruction.
            let shifted = (sum * PARTS + ABOVE_ZERO + 0.5) as i32;
            ((shifted - ABOVE_ZERO as i32) as i16).to_le_bytes()
        });
    } else {
        scale_rows_to(source, rows, columns, target, |sum| [(sum + 0.5) as u8]);
    }
}

/// Scales rows to values of `BYTES` bytes, which `round` makes of sums.
fn scale_rows_to<const BYTES: usize>(
    source: SourceView<'_>,
    rows: Range<u32>,
    columns: &Table,
    target: &mut [u8],
    round: impl Fn(f32) -> [u8; BYTES],
) {
    let channels = source.layout.channels();
    let row_bytes = columns.pixels.len() * channels * BYTES;
    let left = source.origin.0 as usize;
    let rows = source.rows(rows);
    for (row, target) in rows.iter().zip(target.chunks_exact_mut(row_bytes)) {
        let values = target.as_chunks_mut::<BYTES>().0;
        // The number of channels is a constant in each loop, so that each can be vectorised.
        match channels {
            1 => scale_row::<1, BYTES>(row, left, columns, values, &round),
            2 => scale_row::<2, BYTES>(row, left, columns, values, &round),
            3 => scale_row::<3, BYTES>(row, left, columns, values, &round),
            _ => scale_row::<4, BYTES>(row, left, columns, values, &round),
        }
    }
}

/// Scales a row that begins with column `left` of the source.
fn scale_row<const CHANNELS: usize, const BYTES: usize>(
    row: &[u8],
    left: usize,
    columns: &Table,
    values: &mut [[u8; BYTES]],
    round: &impl Fn(f32) -> [u8; BYTES],
) {
    let row = row.as_chunks::<CHANNELS>().0;
    let pixels = values.as_chunks_mut::<CHANNELS>().0;
    for ((first, weights), pixel) in columns.rows().zip(pixels) {
        let mut sums = [0.0; CHANNELS];
        for (weight, source) in weights.iter().zip(&row[first - left..]) {
            for (sum, &value) in sums.iter_mut().zip(source) {
                *sum += weight * f32::from(value);
            }
        }
        *pixel = sums.map(round);
    }
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
    let row = columns as usize * layout.channels();
    if rows.keeps_fractions() {
        scale_columns_of(narrowed, first_row, rows, row, target, |bytes| {
            f32::from(i16::from_le_bytes(bytes)) / PARTS
        });
    } else {
        scale_columns_of(narrowed, first_row, rows, row, target, |[byte]| {
            f32::from(byte)
        });
    }
}

/// Scales the columns of rows of `row` values each, of `BYTES` bytes that are read by `value_of`.
fn scale_columns_of<const BYTES: usize>(
    narrowed: &[u8],
    first_row: u32,
    rows: &Table,
    row: usize,
    target: &mut [u8],
    value_of: impl Fn([u8; BYTES]) -> f32,
) {
    let narrowed = narrowed.as_chunks::<BYTES>().0;
    let mut sums = vec![0.0; row];
    for ((first, weights), target) in rows.rows().zip(target.chunks_exact_mut(row)) {
        sums.fill(0.0);
        let begin = (first - first_row as usize) * row;
        for (weight, values) in weights.iter().zip(narrowed[begin..].chunks_exact(row)) {
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum += weight * value_of(value);
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

    const ALL: [Sampling; 6] = [
        Sampling::Nearest,
        Sampling::Area,
        Sampling::EnlargedArea,
        Sampling::Linear,
        Sampling::Cubic,
        Sampling::Lanczos4,
    ];

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
        for sampling in ALL {
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
                            (sum - 1.0).abs() < 2e-3,
                            "{sampling:?} {source} to {scaled}: {weights:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_mirrored_axis_is_the_same_picture_backwards() {
        for sampling in ALL {
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
            for (upright, mirrored) in upright.iter().zip(&mirrored) {
                assert!((upright - mirrored).abs() < 1e-4, "{sampling:?}");
            }
        }
    }
}
