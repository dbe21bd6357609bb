//! The inverse cosine transform of a block (ITU-T T.81, A.3.3), to the bit as libjpeg's accurate
//! integer method.
//!
//! The method is that of C. Loeffler, A. Ligtenberg and G. Moschytz, "Practical fast 1-D DCT
//! algorithms with 11 multiplications" (ICASSP 1989), in fixed-point arithmetic with 13 fraction
//! bits: first the columns, whose results keep two more bits, then the rows.

use super::{huffman::Block, simd::simd};

/// Fraction bits of the constants.
const FRACTION: u32 = 13;
/// Fraction bits of the values between the two passes.
const BETWEEN: u32 = 2;

/// The first coefficient in zigzag order that is not in the first four rows and columns.
const FIRST_OUTSIDE_QUARTER: usize = 10;

/// Eight values that are transformed side by side.
type Lanes = [i32; 8];

/// Transforms a block of coefficients, multiplied by `quantization`, to 8 rows of samples, `stride`
/// apart. `last` is the index in zigzag order of the last coefficient that is not 0, or a greater
/// one.
pub(super) fn inverse(
    block: &Block,
    quantization: &[i16; 64],
    last: usize,
    samples: &mut [u8],
    stride: usize,
) {
    if last == 0 {
        let mean = i32::from(block[0].wrapping_mul(quantization[0]));
        let value = (((mean + 4) >> 3) + 128).clamp(0, 255) as u8;
        for row in samples.chunks_mut(stride).take(8) {
            row[..8].fill(value);
        }
    } else if last < FIRST_OUTSIDE_QUARTER {
        transform_quarter(block, quantization, samples, stride);
    } else {
        transform(block, quantization, samples, stride);
    }
}

simd! {
    fn transform(block: &Block, quantization: &[i16; 64], samples: &mut [u8], stride: usize)
        = transform_avx2(transform_inline::<8>), transform_inline::<8>;
    fn transform_quarter(
        block: &Block,
        quantization: &[i16; 64],
        samples: &mut [u8],
        stride: usize,
    ) = transform_quarter_avx2(transform_inline::<4>), transform_inline::<4>;
}

/// Only the first `N` rows and columns have coefficients other than 0.
#[inline(always)]
fn transform_inline<const N: usize>(
    block: &Block,
    quantization: &[i16; 64],
    samples: &mut [u8],
    stride: usize,
) {
    let mut rows = [[0; 8]; 8];
    for (row, (coefficients, factors)) in rows
        .iter_mut()
        .zip(
            block
                .as_chunks::<8>()
                .0
                .iter()
                .zip(quantization.as_chunks::<8>().0),
        )
        .take(N)
    {
        for i in 0..8 {
            // Products of more than 16 bits are in no valid file.
            row[i] = coefficients[i].wrapping_mul(factors[i]).into();
        }
    }

    let columns = one_dimension::<N, { FRACTION - BETWEEN }>(&rows);
    let rows = one_dimension::<N, { FRACTION + BETWEEN + 3 }>(&transposed(&columns));
    let rows = transposed(&rows);

    for (line, row) in samples.chunks_mut(stride).zip(&rows) {
        let line: &mut [u8; 8] = line
            .first_chunk_mut()
            .expect("planes have room for whole blocks");
        for i in 0..8 {
            line[i] = (row[i] + 128).clamp(0, 255) as u8;
        }
    }
}

#[inline(always)]
fn transposed(rows: &[Lanes; 8]) -> [Lanes; 8] {
    let mut columns = [[0; 8]; 8];
    for i in 0..8 {
        for j in 0..8 {
            columns[j][i] = rows[i][j];
        }
    }
    columns
}

/// Transforms eight frequencies, the first `N` of which are not 0, to eight values in each lane, and
/// rounds off `SHIFT` bits.
#[inline(always)]
fn one_dimension<const N: usize, const SHIFT: u32>(input: &[Lanes; 8]) -> [Lanes; 8] {
    let mut output = [[0; 8]; 8];
    for lane in 0..8 {
        let x: [i32; 8] = std::array::from_fn(|frequency| match frequency {
            frequency if frequency < N => input[frequency][lane],
            _ => 0,
        });
        let y = butterfly::<SHIFT>(x);
        for position in 0..8 {
            output[position][lane] = y[position];
        }
    }
    output
}

/// The products are those of cosines, scaled by 2 to the power of [`FRACTION`].
#[inline(always)]
fn butterfly<const SHIFT: u32>(x: [i32; 8]) -> [i32; 8] {
    // Only coefficients that no encoder writes can overflow.
    let times = |value: i32, factor: i32| value.wrapping_mul(factor);
    let add = |a: i32, b: i32| a.wrapping_add(b);
    let subtract = |a: i32, b: i32| a.wrapping_sub(b);

    // The even frequencies.
    let rotated = times(add(x[2], x[6]), 4_433);
    let even_2 = subtract(rotated, times(x[6], 15_137));
    let even_3 = add(rotated, times(x[2], 6_270));
    let even_0 = add(x[0], x[4]) << FRACTION;
    let even_1 = subtract(x[0], x[4]) << FRACTION;
    let rounding = 1 << (SHIFT - 1);
    let even = [
        add(add(even_0, even_3), rounding),
        add(add(even_1, even_2), rounding),
        add(subtract(even_1, even_2), rounding),
        add(subtract(even_0, even_3), rounding),
    ];

    // The odd frequencies.
    let sum = times(add(add(x[7], x[3]), add(x[5], x[1])), 9_633);
    let outer = times(add(x[7], x[1]), -7_373);
    let inner = times(add(x[5], x[3]), -20_995);
    let left = add(times(add(x[7], x[3]), -16_069), sum);
    let right = add(times(add(x[5], x[1]), -3_196), sum);
    let odd = [
        add(add(times(x[1], 12_299), outer), right),
        add(add(times(x[3], 25_172), inner), left),
        add(add(times(x[5], 16_819), inner), right),
        add(add(times(x[7], 2_446), outer), left),
    ];

    let mut y = [0; 8];
    for i in 0..4 {
        y[i] = add(even[i], odd[i]) >> SHIFT;
        y[7 - i] = subtract(even[i], odd[i]) >> SHIFT;
    }
    y
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use super::*;
    use crate::image::jpeg::zigzag::ZIGZAG;

    /// The inverse transform by its definition (A.3.3), without rounding.
    fn exact(block: &Block, x: usize, y: usize) -> f64 {
        let mut sum = 0.0;
        for (i, coefficient) in block.iter().enumerate() {
            let factor = |frequency: usize| if frequency == 0 { 0.5f64.sqrt() } else { 1.0 };
            let cosine = |position: usize, frequency: usize| {
                factor(frequency) * ((2 * position + 1) as f64 * frequency as f64 * PI / 16.0).cos()
            };
            sum += f64::from(*coefficient) * cosine(x, i % 8) * cosine(y, i / 8);
        }
        (sum / 4.0 + 128.0).clamp(0.0, 255.0)
    }

    #[test]
    fn samples_are_within_rounding_of_the_definition() {
        let mut state = 1u32;
        for case in 0..200 {
            let mut block = [0; 64];
            for coefficient in block.iter_mut().take(1 + case % 64) {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *coefficient = (state >> 16) as i16 % 200;
            }
            let mut samples = [0; 8 * 11];
            inverse(&block, &[1; 64], 63, &mut samples, 11);
            for (x, y) in (0..64).map(|pixel| (pixel % 8, pixel / 8)) {
                let got = f64::from(samples[11 * y + x]);
                assert!((got - exact(&block, x, y)).abs() < 0.6, "{case} {x} {y}");
            }
            assert!(samples.chunks(11).all(|row| row[8..] == [0; 3]));
        }
    }

    #[test]
    fn blocks_of_low_frequencies_are_those_of_the_general_method() {
        for case in 0..100i16 {
            let mut block = [0; 64];
            for (index, place) in ZIGZAG[..FIRST_OUTSIDE_QUARTER].iter().enumerate() {
                block[usize::from(*place)] = (case * 37 + index as i16 * 101) % 300 - 150;
            }
            let mut samples = [[0; 64]; 2];
            inverse(
                &block,
                &[1; 64],
                FIRST_OUTSIDE_QUARTER - 1,
                &mut samples[0],
                8,
            );
            inverse(&block, &[1; 64], 63, &mut samples[1], 8);
            assert_eq!(samples[0], samples[1], "{case}");
        }
    }

    #[test]
    fn flat_blocks_are_those_of_the_general_method() {
        for mean in -1100..1100 {
            let mut block = [0; 64];
            block[0] = mean;
            let mut samples = [[0; 64]; 2];
            inverse(&block, &[2; 64], 0, &mut samples[0], 8);
            inverse(&block, &[2; 64], 63, &mut samples[1], 8);
            assert_eq!(samples[0], samples[1], "{mean}");
        }
    }
}
