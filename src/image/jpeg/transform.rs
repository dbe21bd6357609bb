//! The inverse cosine transform of a block (ITU-T T.81, A.3.3), to the bit as libjpeg's accurate
//! integer method.
//!
//! The method is that of C. Loeffler, A. Ligtenberg and G. Moschytz, "Practical fast 1-D DCT
//! algorithms with 11 multiplications" (ICASSP 1989), in fixed-point arithmetic with 13 fraction
//! bits: first the columns, whose results keep two more bits, then the rows.

use super::huffman::Block;
use crate::image::simd::simd;

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
        for row in 0..8 {
            *line(samples, stride, row) = [value; 8];
        }
    } else if last < FIRST_OUTSIDE_QUARTER {
        transform_quarter(block, quantization, samples, stride);
    } else {
        transform(block, quantization, samples, stride);
    }
}

simd! {
    fn transform(block: &Block, quantization: &[i16; 64], samples: &mut [u8], stride: usize)
        = transform_avx2(avx2::transform::<false>), transform_inline::<8>;
    fn transform_quarter(
        block: &Block,
        quantization: &[i16; 64],
        samples: &mut [u8],
        stride: usize,
    ) = transform_quarter_avx2(avx2::transform::<true>), transform_inline::<4>;
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

    let mut columns = one_dimension::<N, { FRACTION - BETWEEN }>(&rows);
    for value in columns.as_flattened_mut() {
        // As libjpeg-turbo does; only products of damaged files are so large.
        *value = (*value).clamp(i16::MIN.into(), i16::MAX.into());
    }
    let rows = one_dimension::<N, { FRACTION + BETWEEN + 3 }>(&transposed(&columns));
    let rows = transposed(&rows);

    for (row, values) in rows.iter().enumerate() {
        *line(samples, stride, row) = values.map(|value| (value + 128).clamp(0, 255) as u8);
    }
}

/// Where a row of the block goes.
#[inline(always)]
fn line(samples: &mut [u8], stride: usize, row: usize) -> &mut [u8; 8] {
    samples[row * stride..]
        .first_chunk_mut()
        .expect("planes have room for whole blocks")
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

/// The same with instructions chosen by hand. Products of 16 bits are added in pairs to 32 bits, so
/// that the even and the odd frequencies each are a small matrix, which gives the same sums as the
/// fewer but wider multiplications of [`butterfly`].
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BETWEEN, Block, FRACTION, line};
    use crate::image::simd::x86::load_words;

    /// The factors of two frequencies, for each pair of positions.
    type Factors = [(i16, i16); 4];

    const EVEN_0_2: Factors = [(8192, 10703), (8192, 4433), (8192, -4433), (8192, -10703)];
    const EVEN_4_6: Factors = [(8192, 4433), (-8192, -10704), (-8192, 10704), (8192, -4433)];
    const ODD_1_3: Factors = [(11363, 9633), (9633, -2259), (6437, -11362), (2260, -6436)];
    const ODD_5_7: Factors = [(6437, 2260), (-11362, -6436), (2261, 9633), (9633, -11363)];

    /// Rows or columns 0 to 3, and below each in the upper half that which is four further.
    type Rows = [__m256i; 4];

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn transform<const QUARTER: bool>(
        block: &Block,
        quantization: &[i16; 64],
        samples: &mut [u8],
        stride: usize,
    ) {
        let (coefficients, factors) = (block.as_chunks().0, quantization.as_chunks().0);
        let rows = [
            product::<QUARTER>(coefficients, factors, 0),
            product::<QUARTER>(coefficients, factors, 1),
            product::<QUARTER>(coefficients, factors, 2),
            product::<QUARTER>(coefficients, factors, 3),
        ];
        let columns = pass::<QUARTER, { (FRACTION - BETWEEN) as i32 }>(rows);
        let [a, b, c, d] = pass::<QUARTER, { (FRACTION + BETWEEN + 3) as i32 }>(columns);

        let level = _mm256_set1_epi8(-128);
        let [first, second] = [_mm256_packs_epi16(a, b), _mm256_packs_epi16(c, d)];
        let [first, second] = [
            _mm256_xor_si256(first, level),
            _mm256_xor_si256(second, level),
        ];
        let lines = [
            _mm256_extract_epi64::<0>(first),
            _mm256_extract_epi64::<1>(first),
            _mm256_extract_epi64::<0>(second),
            _mm256_extract_epi64::<1>(second),
            _mm256_extract_epi64::<2>(first),
            _mm256_extract_epi64::<3>(first),
            _mm256_extract_epi64::<2>(second),
            _mm256_extract_epi64::<3>(second),
        ];
        for (row, values) in lines.into_iter().enumerate() {
            *line(samples, stride, row) = values.to_le_bytes();
        }
    }

    /// The dequantized coefficients of a row, and of the one that is four further.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn product<const QUARTER: bool>(
        coefficients: &[[i16; 8]],
        factors: &[[i16; 8]],
        row: usize,
    ) -> __m256i {
        let upper = _mm_mullo_epi16(load_words(&coefficients[row]), load_words(&factors[row]));
        if QUARTER {
            return _mm256_castsi128_si256(upper);
        }
        let lower = _mm_mullo_epi16(
            load_words(&coefficients[row + 4]),
            load_words(&factors[row + 4]),
        );
        _mm256_set_m128i(lower, upper)
    }

    /// Transforms columns of eight frequencies to eight values, rounds off `SHIFT` bits, and
    /// transposes the result.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn pass<const QUARTER: bool, const SHIFT: i32>([a, b, c, d]: Rows) -> Rows {
        let [even, odd] = [
            sums::<QUARTER>(a, c, &EVEN_0_2, &EVEN_4_6, 1 << (SHIFT - 1)),
            sums::<QUARTER>(b, d, &ODD_1_3, &ODD_5_7, 0),
        ];
        let first = |i: usize| _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(even[i], odd[i]));
        let last = |i: usize| _mm256_srai_epi32::<SHIFT>(_mm256_sub_epi32(even[i], odd[i]));

        // In each half: rows 0 and 2 of four columns, 1 and 3, 4 and 6, 5 and 7.
        let [p, q] = [
            _mm256_packs_epi32(first(0), first(2)),
            _mm256_packs_epi32(first(1), first(3)),
        ];
        let [r, s] = [
            _mm256_packs_epi32(last(3), last(1)),
            _mm256_packs_epi32(last(2), last(0)),
        ];
        let [p, q] = [_mm256_unpacklo_epi16(p, q), _mm256_unpackhi_epi16(p, q)];
        let [r, s] = [_mm256_unpacklo_epi16(r, s), _mm256_unpackhi_epi16(r, s)];
        let [p, q] = [_mm256_unpacklo_epi32(p, q), _mm256_unpackhi_epi32(p, q)];
        let [r, s] = [_mm256_unpacklo_epi32(r, s), _mm256_unpackhi_epi32(r, s)];
        [
            _mm256_unpacklo_epi64(p, r),
            _mm256_unpackhi_epi64(p, r),
            _mm256_unpacklo_epi64(q, s),
            _mm256_unpackhi_epi64(q, s),
        ]
    }

    /// The sums of four frequencies for four positions: `a` and `b` hold the first two, and in their
    /// upper halves the other two.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn sums<const QUARTER: bool>(
        a: __m256i,
        b: __m256i,
        first: &Factors,
        second: &Factors,
        rounding: i32,
    ) -> Rows {
        let low = _mm256_unpacklo_epi16(a, b);
        let high = _mm256_unpackhi_epi16(a, b);
        let pairs = _mm256_permute2x128_si256::<0x20>(low, high);
        let other = _mm256_permute2x128_si256::<0x31>(low, high);
        let mut sums = [_mm256_set1_epi32(rounding); 4];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, twice(first[i])));
            if !QUARTER {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(other, twice(second[i])));
            }
        }
        sums
    }

    /// Two factors, in each lane.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn twice((first, second): (i16, i16)) -> __m256i {
        let [a, b] = [first, second].map(i16::to_le_bytes);
        _mm256_set1_epi32(i32::from_le_bytes([a[0], a[1], b[0], b[1]]))
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use super::*;
    use crate::{image::jpeg::zigzag::ZIGZAG, testing::random_numbers};

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
    fn vectors_compute_what_the_portable_code_does() {
        let mut random = random_numbers(11);
        for case in 0..20_000 {
            let quarter = case % 2 == 0;
            // Small coefficients, as in files, and any.
            let bits = 1 + random(16) as u32;
            let mut block = [0; 64];
            let mut quantization = [0; 64];
            for (index, coefficient) in block.iter_mut().enumerate() {
                if !quarter || index % 8 < 4 && index < 32 {
                    *coefficient = random(1 << 16) as u16 as i16 >> (16 - bits);
                }
            }
            for factor in &mut quantization {
                *factor = 1 + random(if case % 3 == 0 { 255 } else { 8 }) as i16;
            }
            let mut samples = [[7; 8 * 13]; 2];
            if quarter {
                transform_quarter(&block, &quantization, &mut samples[0], 13);
                transform_inline::<4>(&block, &quantization, &mut samples[1], 13);
            } else {
                transform(&block, &quantization, &mut samples[0], 13);
                transform_inline::<8>(&block, &quantization, &mut samples[1], 13);
            }
            assert_eq!(samples[0], samples[1], "{block:?} {quantization:?}");
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
