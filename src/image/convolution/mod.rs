//! Pillow's resampling, to the bit: each scaled pixel is a weighted sum of source pixels, in integer
//! arithmetic with 22 fraction bits.
//!
//! Rows are scaled before columns, and rounded to bytes in between. [`Weights`] hold what the pixels
//! of an axis are made of.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use std::ops::Range;

use super::{Filter, sampling::Stretch, simd::simd, source_view::SourceView};

/// Fraction bits of the weights.
const FRACTION: u32 = 22;
/// The lower bits of a weight, which are multiplied apart from the upper ones, for processors multiply
/// numbers of 16 bits the fastest.
const LOWER: u32 = 12;
/// Half of the last place of a sum, which rounds it.
const ROUNDING: i32 = 1 << (FRACTION - 1);

/// Four weights, as pairs of 16 bits: the upper bits of the first and the second, those of the third
/// and the fourth, and then the lower bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Group {
    upper: [i32; 2],
    lower: [i32; 2],
}

impl Group {
    const LENGTH: usize = 4;

    fn new(weights: [i32; Self::LENGTH]) -> Self {
        let pair = |a: i32, b: i32| a & 0xffff | b << 16;
        let [a, b, c, d] = weights;
        let [upper, lower] = [
            weights.map(|weight| weight >> LOWER),
            weights.map(|weight| weight & ((1 << LOWER) - 1)),
        ];
        debug_assert_eq!([a, b, c, d], Self::joined(upper, lower));
        Self {
            upper: [pair(upper[0], upper[1]), pair(upper[2], upper[3])],
            lower: [pair(lower[0], lower[1]), pair(lower[2], lower[3])],
        }
    }

    fn joined(upper: [i32; Self::LENGTH], lower: [i32; Self::LENGTH]) -> [i32; Self::LENGTH] {
        std::array::from_fn(|i| (upper[i] << LOWER) + lower[i])
    }

    #[inline(always)]
    fn weights(self) -> [i32; Self::LENGTH] {
        let halves = |[a, b]: [i32; 2]| [a as i16, (a >> 16) as i16, b as i16, (b >> 16) as i16];
        Self::joined(
            halves(self.upper).map(i32::from),
            halves(self.lower).map(i32::from),
        )
    }
}

/// What the scaled pixels of a stretch are made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Weights {
    /// What they are for.
    made_for: Option<(Filter, Stretch)>,
    /// The first source pixel of each.
    first: Vec<u32>,
    /// The weights from there on: the same number for each, with zeros at the end.
    groups: Vec<Group>,
    groups_per_pixel: usize,
}

impl Weights {
    /// Computes the weights as Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc` do, unless
    /// they are those of the image before.
    pub fn fill(&mut self, filter: Filter, axis: Stretch) {
        if self.made_for.replace((filter, axis)) == Some((filter, axis)) {
            return;
        }
        let scale = f64::from(axis.source) / axis.scaled as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let steepness = 1.0 / filter_scale;
        let middle = |index: u64| (index as f64 + 0.5) * scale;
        let covered = |index: u64| {
            let first = (middle(index) - support + 0.5).max(0.0) as u32;
            let end = ((middle(index) + support + 0.5) as u32).min(axis.source);
            first..end.max(first)
        };
        let stretch = axis.offset..axis.offset + u64::from(axis.length);
        let most = stretch.clone().map(|index| covered(index).len()).max();

        self.groups_per_pixel = most.unwrap_or(0).div_ceil(Group::LENGTH);
        self.first.clear();
        self.groups.clear();
        let mut weights = vec![0.0; self.groups_per_pixel * Group::LENGTH];
        for index in stretch {
            let covered = covered(index);
            let first = covered.start;
            weights.fill(0.0);
            let mut sum = 0.0;
            for (weight, pixel) in weights.iter_mut().zip(covered) {
                let distance = f64::from(pixel) - middle(index) + 0.5;
                *weight = value_of(filter, distance * steepness);
                sum += *weight;
            }
            self.first.push(first);
            for group in weights.as_chunks().0 {
                self.groups.push(Group::new(group.map(|weight| {
                    let weight = if sum == 0.0 { weight } else { weight / sum };
                    let half = if weight < 0.0 { -0.5 } else { 0.5 };
                    (half + weight * f64::from(1 << FRACTION)) as i32
                })));
            }
        }
    }

    /// For each scaled pixel, its first source pixel and the weights from there on.
    fn pixels(&self) -> impl Iterator<Item = (usize, &[Group])> {
        self.first
            .iter()
            .map(|first| *first as usize)
            .zip(self.groups.chunks_exact(self.groups_per_pixel.max(1)))
    }

    /// The size of the weights, in bytes.
    pub fn memory(&self) -> usize {
        self.first.capacity() * size_of::<u32>() + self.groups.capacity() * size_of::<Group>()
    }
}

/// The value of a filter at a distance from its middle.
fn value_of(filter: Filter, distance: f64) -> f64 {
    let x = distance.abs();
    match filter {
        Filter::Bicubic => {
            const A: f64 = -0.5;
            if x < 1.0 {
                ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
            } else if x < 2.0 {
                (((x - 5.0) * x + 8.0) * x - 4.0) * A
            } else {
                0.0
            }
        }
        Filter::Lanczos => {
            let sinc = |x: f64| {
                if x == 0.0 {
                    1.0
                } else {
                    let x = x * std::f64::consts::PI;
                    x.sin() / x
                }
            };
            if (-3.0..3.0).contains(&distance) {
                sinc(distance) * sinc(distance / 3.0)
            } else {
                0.0
            }
        }
        _ => (1.0 - x).max(0.0),
    }
}

/// Scales four rows that begin with a column, into as many targets.
type ScaleFourRows = fn([&[u8]; 4], usize, &Weights, [&mut [u8]; 4]);

/// Scales these rows of the stored image into `target`.
pub(super) fn scale_rows(
    source: SourceView<'_>,
    rows: Range<u32>,
    columns: &Weights,
    target: &mut [u8],
) {
    let channels = source.layout.channels();
    let row_bytes = columns.first.len() * channels;
    let begin = source.origin.0 as usize;
    let scale: ScaleFourRows = match channels {
        1 => four_rows_of_1,
        2 => four_rows_of_2,
        3 => four_rows_of_3,
        _ => four_rows_of_4,
    };
    let targets = target.chunks_mut(4 * row_bytes);
    for (rows, targets) in source.rows(rows).chunks(4).zip(targets) {
        // In place of missing ones, the last is scaled again, to nowhere.
        let mut nowhere = vec![0; (4 - rows.len()) * row_bytes];
        let rows = std::array::from_fn(|i| rows[i.min(rows.len() - 1)]);
        let targets = targets.chunks_exact_mut(row_bytes);
        let mut targets = targets.chain(nowhere.chunks_exact_mut(row_bytes));
        let targets = std::array::from_fn(|_| targets.next().unwrap_or_default());
        scale(rows, begin, columns, targets);
    }
}

simd! {
    fn four_rows_of_1(rows: [&[u8]; 4], begin: usize, columns: &Weights, targets: [&mut [u8]; 4])
        = [four_rows_of_1_avx512(avx512::four_rows::<1>)],
        four_rows_of_1_avx2(avx2::four_rows::<1>), |rows, begin, columns, targets| {
            four_rows_inline::<1>(rows, begin, columns, targets, 0);
        };
    fn four_rows_of_2(rows: [&[u8]; 4], begin: usize, columns: &Weights, targets: [&mut [u8]; 4])
        = [four_rows_of_2_avx512(avx512::four_rows::<2>)],
        four_rows_of_2_avx2(avx2::four_rows::<2>), |rows, begin, columns, targets| {
            four_rows_inline::<2>(rows, begin, columns, targets, 0);
        };
    fn four_rows_of_3(rows: [&[u8]; 4], begin: usize, columns: &Weights, targets: [&mut [u8]; 4])
        = [four_rows_of_3_avx512(avx512::four_rows::<3>)],
        four_rows_of_3_avx2(avx2::four_rows::<3>), |rows, begin, columns, targets| {
            four_rows_inline::<3>(rows, begin, columns, targets, 0);
        };
    fn four_rows_of_4(rows: [&[u8]; 4], begin: usize, columns: &Weights, targets: [&mut [u8]; 4])
        = [four_rows_of_4_avx512(avx512::four_rows::<4>)],
        four_rows_of_4_avx2(avx2::four_rows::<4>), |rows, begin, columns, targets| {
            four_rows_inline::<4>(rows, begin, columns, targets, 0);
        };
    fn row_of_rows(rows: &[&[u8]], groups: &[Group], target: &mut [u8])
        = [row_of_rows_avx512(avx512::row_of_rows)],
        row_of_rows_avx2(avx2::row_of_rows), |rows, groups, target| {
            row_of_rows_inline(rows, groups, target, 0);
        };
}

/// Scales four rows that begin with the column `begin`, as far as there are targets, from the scaled
/// pixel `from` on.
#[inline(always)]
fn four_rows_inline<const CHANNELS: usize>(
    rows: [&[u8]; 4],
    begin: usize,
    columns: &Weights,
    targets: [&mut [u8]; 4],
    from: usize,
) {
    for (row, target) in rows.into_iter().zip(targets) {
        let (source, _) = row.as_chunks::<CHANNELS>();
        let (pixels, _) = target.as_chunks_mut::<CHANNELS>();
        for ((first, groups), pixel) in columns.pixels().zip(pixels).skip(from) {
            let mut sums = [ROUNDING; CHANNELS];
            let weights = groups.iter().flat_map(|group| group.weights());
            for (weight, source) in weights.zip(&source[first - begin..]) {
                for (sum, value) in sums.iter_mut().zip(source) {
                    *sum = sum.wrapping_add(weight.wrapping_mul(i32::from(*value)));
                }
            }
            *pixel = sums.map(|sum| (sum >> FRACTION).clamp(0, 255) as u8);
        }
    }
}

/// Scales the columns of rows of equal length, the first of which is row `first_row` of the source.
pub(super) fn scale_columns(lines: &[&[u8]], first_row: u32, rows: &Weights, target: &mut [u8]) {
    let Some(row_bytes) = lines
        .first()
        .map(|line| line.len())
        .filter(|bytes| *bytes > 0)
    else {
        return;
    };
    for ((first, groups), target) in rows.pixels().zip(target.chunks_exact_mut(row_bytes)) {
        row_of_rows(&lines[first - first_row as usize..], groups, target);
    }
}

/// Scales the columns of a part of the stored image: `columns` by those that `rows` need.
pub(super) fn scale_columns_of(
    source: SourceView<'_>,
    columns: Range<u32>,
    lines: Range<u32>,
    rows: &Weights,
    target: &mut [u8],
) {
    let byte = |column: u32| (column - source.origin.0) as usize * source.layout.channels();
    let bytes = byte(columns.start)..byte(columns.end);
    let first = lines.start;
    let parts: Vec<_> = source
        .rows(lines)
        .into_iter()
        .map(|row| &row[bytes.clone()])
        .collect();
    scale_columns(&parts, first, rows, target);
}

/// Makes a row of those from the first of `rows` on, from its byte `begin` on.
#[inline(always)]
fn row_of_rows_inline(rows: &[&[u8]], groups: &[Group], target: &mut [u8], begin: usize) {
    for (byte, value) in target.iter_mut().enumerate().skip(begin) {
        let weights = groups.iter().flat_map(|group| group.weights());
        let sum = weights.zip(rows).fold(ROUNDING, |sum, (weight, row)| {
            sum.wrapping_add(weight.wrapping_mul(i32::from(row[byte])))
        });
        *value = (sum >> FRACTION).clamp(0, 255) as u8;
    }
}

/// Which byte goes where, so that each channel of the pixel `first` of four is beside that of the next
/// one, in words of 16 bits. Indices from 128 on give a zero.
#[cfg(target_arch = "x86_64")]
fn order<const CHANNELS: usize>(first: usize) -> [u8; 16] {
    let mut order = [128; 16];
    for channel in 0..CHANNELS {
        order[4 * channel] = (first * CHANNELS + channel) as u8;
        order[4 * channel + 2] = ((first + 1) * CHANNELS + channel) as u8;
    }
    order
}

/// Which byte goes where, so that four pixels of four bytes become packed ones.
#[cfg(target_arch = "x86_64")]
fn packed<const CHANNELS: usize>() -> [u8; 16] {
    let mut order = [128; 16];
    for (byte, source) in order.iter_mut().enumerate().take(4 * CHANNELS) {
        *source = (byte / CHANNELS * 4 + byte % CHANNELS) as u8;
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{image::simd::with_and_without_avx512, testing::random_numbers};

    const FILTERS: [Filter; 3] = [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos];

    fn weights(filter: Filter, source: u32, scaled: u64) -> Weights {
        let mut weights = Weights::default();
        weights.fill(filter, whole(source, scaled));
        weights
    }

    fn whole(source: u32, scaled: u64) -> Stretch {
        Stretch {
            source,
            scaled,
            offset: 0,
            length: scaled as u32,
            mirrored: false,
        }
    }

    #[test]
    fn weights_are_those_of_pillow() {
        let of = |filter, source, scaled| -> Vec<(usize, Vec<i32>)> {
            let weights = weights(filter, source, scaled);
            let pixels = weights.pixels().map(|(first, groups)| {
                let mut all: Vec<_> = groups.iter().flat_map(|group| group.weights()).collect();
                while all.last() == Some(&0) {
                    all.pop();
                }
                (first, all)
            });
            pixels.collect()
        };
        // Each half of a triangle that is as wide as both pixels: 3 : 3 : 1 of 7 at the edges.
        let half = |weight: f64| (weight * f64::from(1 << FRACTION) + 0.5) as i32;
        assert_eq!(
            of(Filter::Bilinear, 4, 2),
            [
                (0, vec![half(3.0 / 7.0), half(3.0 / 7.0), half(1.0 / 7.0)]),
                (1, vec![half(1.0 / 7.0), half(3.0 / 7.0), half(3.0 / 7.0)]),
            ]
        );
        for filter in FILTERS {
            for (source, scaled) in [(1, 1), (7, 7)] {
                let one = 1 << FRACTION;
                for (index, (first, weights)) in of(filter, source, scaled).into_iter().enumerate()
                {
                    let place = index - first;
                    assert_eq!(
                        (weights.len(), weights[place]),
                        (place + 1, one),
                        "{filter:?}"
                    );
                    assert!(weights[..place].iter().all(|weight| *weight == 0));
                }
            }
        }
    }

    #[test]
    fn weights_are_kept_for_the_same_axis_alone() {
        let mut kept = Weights::default();
        for (source, scaled) in [(30, 20), (30, 20), (31, 20), (30, 40)] {
            for filter in FILTERS {
                kept.fill(filter, whole(source, scaled));
                kept.fill(filter, whole(source, scaled));
                let new = weights(filter, source, scaled);
                assert_eq!(
                    (kept.first.clone(), kept.groups.clone()),
                    (new.first, new.groups)
                );
            }
        }
    }

    /// Random rows of this many bytes.
    fn rows(random: &mut impl FnMut(usize) -> usize, count: usize, bytes: usize) -> Vec<Vec<u8>> {
        let extreme = random(3) == 0;
        let mut byte = || {
            if extreme {
                [0, 255][random(2)]
            } else {
                random(256) as u8
            }
        };
        (0..count)
            .map(|_| (0..bytes).map(|_| byte()).collect())
            .collect()
    }

    #[test]
    fn vectors_scale_rows_as_the_portable_code_does() {
        with_and_without_avx512(check_rows);
    }

    fn check_rows() {
        let mut random = random_numbers(13);
        for case in 0..600 {
            let filter = FILTERS[case % 3];
            let source = 1 + random(if case % 5 == 0 { 2000 } else { 60 });
            let scaled = 1 + random(50);
            let weights = weights(filter, source as u32, scaled as u64);
            let kinds: [(usize, ScaleFourRows, ScaleFourRows); 4] = [
                (1, four_rows_of_1, |a, b, c, d| {
                    four_rows_inline::<1>(a, b, c, d, 0);
                }),
                (2, four_rows_of_2, |a, b, c, d| {
                    four_rows_inline::<2>(a, b, c, d, 0);
                }),
                (3, four_rows_of_3, |a, b, c, d| {
                    four_rows_inline::<3>(a, b, c, d, 0);
                }),
                (4, four_rows_of_4, |a, b, c, d| {
                    four_rows_inline::<4>(a, b, c, d, 0);
                }),
            ];
            for (channels, vectors, portable) in kinds {
                let rows = rows(&mut random, 4, source * channels);
                let [mut got, mut expected] = [(); 2].map(|()| vec![9; 4 * scaled * channels]);
                for (scale, target) in [(vectors, &mut got), (portable, &mut expected)] {
                    let mut targets = target.chunks_exact_mut(scaled * channels);
                    scale(
                        std::array::from_fn(|row| &rows[row][..]),
                        0,
                        &weights,
                        std::array::from_fn(|_| targets.next().unwrap()),
                    );
                }
                assert_eq!(got, expected, "{filter:?} {channels} {source} to {scaled}");
            }
        }
    }

    #[test]
    fn vectors_scale_columns_as_the_portable_code_does() {
        with_and_without_avx512(check_columns);
    }

    fn check_columns() {
        let mut random = random_numbers(14);
        for case in 0..600 {
            let filter = FILTERS[case % 3];
            let (source, scaled) = (1 + random(90), 1 + random(40));
            let bytes = 1 + random(100);
            let weights = weights(filter, source as u32, scaled as u64);
            let lines = rows(&mut random, source, bytes);
            let lines: Vec<_> = lines.iter().map(|line| &line[..]).collect();
            let mut got = vec![9; scaled * bytes];
            scale_columns(&lines, 0, &weights, &mut got);
            let mut expected = vec![7; scaled * bytes];
            for ((first, groups), target) in weights.pixels().zip(expected.chunks_exact_mut(bytes))
            {
                row_of_rows_inline(&lines[first..], groups, target, 0);
            }
            assert_eq!(
                got, expected,
                "{filter:?} {source} to {scaled}, {bytes} bytes"
            );
        }
    }
}
