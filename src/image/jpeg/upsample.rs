//! Enlarges subsampled components to the size of the picture, to the bit as libjpeg does.
//!
//! Where a component has half the samples in a direction, libjpeg interpolates linearly between
//! them ("fancy upsampling"): each sample becomes two, each of which takes three quarters of the
//! sample and one of its neighbour. The roundings alternate, so that there is no bias. All other
//! factors just repeat samples.

use super::frame::{Component, Frame};
use crate::image::simd::simd;

/// How a component is enlarged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upsampling {
    /// It has the size of the picture.
    None,
    /// Twice as wide, interpolated.
    Wide,
    /// Twice as high, interpolated.
    High,
    /// Twice as wide and high, interpolated.
    Both,
    /// This many times as wide, by repetition.
    Repeat(usize),
}

impl Upsampling {
    pub fn of(component: &Component, frame: &Frame) -> Self {
        let wide = frame.h_max / component.horizontal;
        let high = frame.v_max / component.vertical;
        // libjpeg does not interpolate rows of one or two samples.
        let interpolated = component.width > 2;
        match (wide, high) {
            (1, 1) => Self::None,
            (1, 2) => Self::High,
            (2, 1) if interpolated => Self::Wide,
            (2, 2) if interpolated => Self::Both,
            (factor, _) => Self::Repeat(factor),
        }
    }

    /// Whether a row depends on a neighbouring row of samples.
    pub fn interpolates_rows(self) -> bool {
        matches!(self, Self::High | Self::Both)
    }

    /// Enlarges a row of samples into `row`, which may be longer than needed.
    ///
    /// Where rows are interpolated, `other` is the neighbouring row that is nearer, and `below`
    /// says whether it is the next one, not the previous one.
    pub fn row(self, row: &mut [u8], samples: &[u8], other: &[u8], below: bool, sums: &mut [u16]) {
        match self {
            Self::None => row[..samples.len()].copy_from_slice(samples),
            Self::Wide => wide(row, samples),
            Self::High => {
                let bias = if below { 2 } else { 1 };
                high(row, samples, other, bias);
            }
            Self::Both => both(row, samples, other, sums),
            Self::Repeat(factor) => {
                for (pixels, sample) in row.chunks_mut(factor).zip(samples) {
                    pixels.fill(*sample);
                }
            }
        }
    }
}

simd! {
    fn wide(row: &mut [u8], samples: &[u8]) = wide_avx2(wide_inline), wide_inline;
    fn high(row: &mut [u8], samples: &[u8], other: &[u8], bias: u16) = high_avx2(high_inline), high_inline;
    fn both(row: &mut [u8], samples: &[u8], other: &[u8], sums: &mut [u16])
        = both_avx2(both_inline), both_inline;
}

#[inline(always)]
fn wide_inline(row: &mut [u8], samples: &[u8]) {
    let row = &mut row[..2 * samples.len()];
    let [first, .., last] = samples else {
        return;
    };
    let (inner, _) = row[1..].as_chunks_mut::<2>();
    for (pair, neighbours) in inner.iter_mut().zip(samples.windows(2)) {
        let [left, right] = [neighbours[0], neighbours[1]].map(u16::from);
        *pair = [
            ((3 * left + right + 2) >> 2) as u8,
            ((3 * right + left + 1) >> 2) as u8,
        ];
    }
    row[0] = *first;
    row[2 * samples.len() - 1] = *last;
}

#[inline(always)]
fn high_inline(row: &mut [u8], samples: &[u8], other: &[u8], bias: u16) {
    for ((value, sample), other) in row.iter_mut().zip(samples).zip(other) {
        *value = ((3 * u16::from(*sample) + u16::from(*other) + bias) >> 2) as u8;
    }
}

#[inline(always)]
fn both_inline(row: &mut [u8], samples: &[u8], other: &[u8], sums: &mut [u16]) {
    let sums = &mut sums[..samples.len()];
    for ((sum, sample), other) in sums.iter_mut().zip(samples).zip(other) {
        *sum = 3 * u16::from(*sample) + u16::from(*other);
    }

    let row = &mut row[..2 * samples.len()];
    let [first, .., last] = &*sums else {
        return;
    };
    let (inner, _) = row[1..].as_chunks_mut::<2>();
    for (pair, neighbours) in inner.iter_mut().zip(sums.windows(2)) {
        let (left, right) = (neighbours[0], neighbours[1]);
        *pair = [
            ((3 * left + right + 7) >> 4) as u8,
            ((3 * right + left + 8) >> 4) as u8,
        ];
    }
    row[0] = ((4 * first + 8) >> 4) as u8;
    row[2 * samples.len() - 1] = ((4 * last + 7) >> 4) as u8;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enlarged(method: Upsampling, samples: &[u8], other: &[u8], below: bool) -> Vec<u8> {
        let mut row = vec![0; 4 * samples.len()];
        let mut sums = vec![0; samples.len()];
        method.row(&mut row, samples, other, below, &mut sums);
        row
    }

    #[test]
    fn interpolated_samples_are_rounded_alternately() {
        assert_eq!(
            enlarged(Upsampling::Wide, &[0, 10, 255], &[], false)[..6],
            [0, 3, 7, 71, 194, 255]
        );
        assert_eq!(
            enlarged(Upsampling::High, &[0, 10, 255], &[2, 10, 0], false)[..3],
            [0, 10, 191]
        );
        assert_eq!(
            enlarged(Upsampling::High, &[0, 10, 255], &[2, 10, 0], true)[..3],
            [1, 10, 191]
        );
        assert_eq!(
            enlarged(Upsampling::Both, &[0, 10, 255], &[2, 10, 0], false)[..6],
            [1, 3, 8, 55, 146, 191]
        );
    }

    #[test]
    fn other_factors_repeat_samples() {
        assert_eq!(
            enlarged(Upsampling::Repeat(3), &[7, 9], &[], false)[..6],
            [7, 7, 7, 9, 9, 9]
        );
        assert_eq!(
            enlarged(Upsampling::Repeat(1), &[7, 9], &[], false)[..2],
            [7, 9]
        );
    }
}
