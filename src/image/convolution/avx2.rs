//! Scaling rows and columns with AVX2: the same as the portable code, with instructions chosen by hand.

use std::arch::x86_64::*;

use super::{FRACTION, Group, LOWER, ROUNDING, Weights};
use crate::image::simd::x86::{load, store};

/// Scales four rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn four_rows<const CHANNELS: usize>(
    rows: [&[u8]; 4],
    begin: usize,
    columns: &Weights,
    targets: [&mut [u8]; 4],
) {
    let orders = [order::<CHANNELS>(0), order::<CHANNELS>(2)];
    let packed = packed::<CHANNELS>();
    let [a, b, c, d] = rows;
    let shortest = a.len().min(b.len()).min(c.len()).min(d.len());
    // What is read for a pixel, with whole vectors.
    let window = columns.groups_per_pixel * Group::LENGTH * CHANNELS + 16;
    let [target_a, target_b, target_c, target_d] = targets;
    let mut done = 0;
    let batches = columns.first.as_chunks::<4>().0;
    let groups = columns
        .groups
        .chunks_exact(4 * columns.groups_per_pixel.max(1));
    for (first, groups) in batches.iter().zip(groups) {
        let starts = first.map(|column| (column as usize - begin) * CHANNELS);
        if starts[3] + window > shortest {
            break;
        }
        let mut pixels = [_mm256_setzero_si256(); 4];
        let groups = groups.chunks_exact(columns.groups_per_pixel);
        for ((pixel, start), groups) in pixels.iter_mut().zip(starts).zip(groups) {
            let end = start + window;
            let windows = [
                &a[start..end],
                &b[start..end],
                &c[start..end],
                &d[start..end],
            ];
            *pixel = one_pixel::<CHANNELS>(windows, groups, orders);
        }

        // In each half, pixels of two rows follow each other in turn.
        let [first, second, third, fourth] = pixels;
        let first = _mm256_unpacklo_epi32(first, second);
        let second = _mm256_unpacklo_epi32(third, fourth);
        let ab = _mm256_shuffle_epi8(_mm256_unpacklo_epi64(first, second), packed);
        let cd = _mm256_shuffle_epi8(_mm256_unpackhi_epi64(first, second), packed);
        let byte = CHANNELS * done;
        store_pixels::<CHANNELS>(target_a, byte, _mm256_castsi256_si128(ab));
        store_pixels::<CHANNELS>(target_b, byte, _mm256_extracti128_si256::<1>(ab));
        store_pixels::<CHANNELS>(target_c, byte, _mm256_castsi256_si128(cd));
        store_pixels::<CHANNELS>(target_d, byte, _mm256_extracti128_si256::<1>(cd));
        done += 4;
    }
    let targets = [target_a, target_b, target_c, target_d];
    super::four_rows_inline::<CHANNELS>(rows, begin, columns, targets, done);
}

/// A pixel of four rows: as four bytes each, those of the first and the third row in the lower
/// half.
#[inline]
#[target_feature(enable = "avx2")]
fn one_pixel<const CHANNELS: usize>(
    [a, b, c, d]: [&[u8]; 4],
    groups: &[Group],
    orders: [__m256i; 2],
) -> __m256i {
    let zero = _mm256_setzero_si256();
    let rounding = _mm256_set1_epi32(ROUNDING);
    let (mut upper_ab, mut upper_cd) = (zero, zero);
    let (mut lower_ab, mut lower_cd) = (rounding, rounding);
    let mut byte = 0;
    for group in groups {
        let ab = _mm256_set_m128i(load(&b[byte..]), load(&a[byte..]));
        let cd = _mm256_set_m128i(load(&d[byte..]), load(&c[byte..]));
        for (pair, order) in orders.into_iter().enumerate() {
            let upper = _mm256_set1_epi32(group.upper[pair]);
            let lower = _mm256_set1_epi32(group.lower[pair]);
            let ab = _mm256_shuffle_epi8(ab, order);
            let cd = _mm256_shuffle_epi8(cd, order);
            upper_ab = _mm256_add_epi32(upper_ab, _mm256_madd_epi16(ab, upper));
            upper_cd = _mm256_add_epi32(upper_cd, _mm256_madd_epi16(cd, upper));
            lower_ab = _mm256_add_epi32(lower_ab, _mm256_madd_epi16(ab, lower));
            lower_cd = _mm256_add_epi32(lower_cd, _mm256_madd_epi16(cd, lower));
        }
        byte += Group::LENGTH * CHANNELS;
    }
    let words = _mm256_packs_epi32(rounded(upper_ab, lower_ab), rounded(upper_cd, lower_cd));
    _mm256_packus_epi16(words, words)
}

/// Writes four pixels, and anything after them, where the next ones will be, as far as there is
/// room.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_pixels<const CHANNELS: usize>(target: &mut [u8], byte: usize, pixels: __m128i) {
    let rest = &mut target[byte..];
    if let Some(room) = rest.first_chunk_mut() {
        store(room, pixels);
    } else {
        let mut bytes = [0; 16];
        store(&mut bytes, pixels);
        rest[..4 * CHANNELS].copy_from_slice(&bytes[..4 * CHANNELS]);
    }
}

/// Makes a row of those from the first of `rows` on, sixteen bytes at a time.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn row_of_rows(rows: &[&[u8]], groups: &[Group], target: &mut [u8]) {
    let (batches, last) = target.as_chunks_mut::<16>();
    let done = 16 * batches.len();
    for (batch, values) in batches.iter_mut().enumerate() {
        let begin = 16 * batch;
        let words = |row: &[u8]| _mm256_cvtepu8_epi16(load(&row[begin..]));
        let zero = _mm256_setzero_si256();
        let rounding = _mm256_set1_epi32(ROUNDING);
        let (mut upper_a, mut upper_b) = (zero, zero);
        let (mut lower_a, mut lower_b) = (rounding, rounding);
        // Rows that are missing at the end have no weight.
        for (group, rows) in groups.iter().zip(rows.chunks(Group::LENGTH)) {
            for (pair, rows) in rows.chunks(2).enumerate() {
                let upper = _mm256_set1_epi32(group.upper[pair]);
                let lower = _mm256_set1_epi32(group.lower[pair]);
                let [first, second] = [words(rows[0]), words(rows[rows.len() - 1])];
                let a = _mm256_unpacklo_epi16(first, second);
                let b = _mm256_unpackhi_epi16(first, second);
                upper_a = _mm256_add_epi32(upper_a, _mm256_madd_epi16(a, upper));
                upper_b = _mm256_add_epi32(upper_b, _mm256_madd_epi16(b, upper));
                lower_a = _mm256_add_epi32(lower_a, _mm256_madd_epi16(a, lower));
                lower_b = _mm256_add_epi32(lower_b, _mm256_madd_epi16(b, lower));
            }
        }
        let words = _mm256_packs_epi32(rounded(upper_a, lower_a), rounded(upper_b, lower_b));
        let bytes = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi16(words, words));
        store(values, _mm256_castsi256_si128(bytes));
    }
    if !last.is_empty() {
        super::row_of_rows_inline(rows, groups, target, done);
    }
}

/// The sums of the upper and of the lower bits, joined and rounded.
#[inline]
#[target_feature(enable = "avx2")]
fn rounded(upper: __m256i, lower: __m256i) -> __m256i {
    let upper = _mm256_slli_epi32::<{ LOWER as i32 }>(upper);
    _mm256_srai_epi32::<{ FRACTION as i32 }>(_mm256_add_epi32(upper, lower))
}

#[inline]
#[target_feature(enable = "avx2")]
fn order<const CHANNELS: usize>(first: usize) -> __m256i {
    twice(super::order::<CHANNELS>(first))
}

#[inline]
#[target_feature(enable = "avx2")]
fn packed<const CHANNELS: usize>() -> __m256i {
    twice(super::packed::<CHANNELS>())
}

#[inline]
#[target_feature(enable = "avx2")]
fn twice(order: [u8; 16]) -> __m256i {
    let order = load(&order);
    _mm256_set_m128i(order, order)
}
