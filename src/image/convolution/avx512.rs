//! The same as in `avx2` with vectors twice as wide, and with products that are added in one instruction.

use std::arch::x86_64::*;

use super::{FRACTION, Group, LOWER, ROUNDING, Weights, avx2::store_pixels};
use crate::image::simd::x86::{load, load_32, store_32};

/// Scales four rows.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni")]
pub(super) fn four_rows<const CHANNELS: usize>(
    rows: [&[u8]; 4],
    begin: usize,
    columns: &Weights,
    targets: [&mut [u8]; 4],
) {
    let orders = [
        everywhere(super::order::<CHANNELS>(0)),
        everywhere(super::order::<CHANNELS>(2)),
    ];
    let packed = everywhere(super::packed::<CHANNELS>());
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
        let mut pixels = [_mm512_setzero_si512(); 4];
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

        // In each quarter, the pixels of a row.
        let [first, second, third, fourth] = pixels;
        let words = [
            _mm512_packs_epi32(first, second),
            _mm512_packs_epi32(third, fourth),
        ];
        let bytes = _mm512_packus_epi16(words[0], words[1]);
        let bytes = _mm512_shuffle_epi8(bytes, packed);
        let byte = CHANNELS * done;
        store_pixels::<CHANNELS>(target_a, byte, _mm512_castsi512_si128(bytes));
        store_pixels::<CHANNELS>(target_b, byte, _mm512_extracti32x4_epi32::<1>(bytes));
        store_pixels::<CHANNELS>(target_c, byte, _mm512_extracti32x4_epi32::<2>(bytes));
        store_pixels::<CHANNELS>(target_d, byte, _mm512_extracti32x4_epi32::<3>(bytes));
        done += 4;
    }
    let targets = [target_a, target_b, target_c, target_d];
    super::four_rows_inline::<CHANNELS>(rows, begin, columns, targets, done);
}

/// A pixel of four rows, each in a quarter.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni")]
fn one_pixel<const CHANNELS: usize>(
    [a, b, c, d]: [&[u8]; 4],
    groups: &[Group],
    orders: [__m512i; 2],
) -> __m512i {
    // Sums of their own for both pairs of a group: additions take a while.
    let zero = _mm512_setzero_si512();
    let (mut upper, mut lower) = ([zero; 2], [_mm512_set1_epi32(ROUNDING), zero]);
    let mut byte = 0;
    for group in groups {
        let ab = _mm256_set_m128i(load(&b[byte..]), load(&a[byte..]));
        let cd = _mm256_set_m128i(load(&d[byte..]), load(&c[byte..]));
        let rows = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(ab), cd);
        for (pair, order) in orders.into_iter().enumerate() {
            let words = _mm512_shuffle_epi8(rows, order);
            let [high, low] = [group.upper[pair], group.lower[pair]];
            upper[pair] = _mm512_dpwssd_epi32(upper[pair], words, _mm512_set1_epi32(high));
            lower[pair] = _mm512_dpwssd_epi32(lower[pair], words, _mm512_set1_epi32(low));
        }
        byte += Group::LENGTH * CHANNELS;
    }
    rounded(
        _mm512_add_epi32(upper[0], upper[1]),
        _mm512_add_epi32(lower[0], lower[1]),
    )
}

/// Makes a row of those from the first of `rows` on, thirty-two bytes at a time.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni")]
pub(super) fn row_of_rows(rows: &[&[u8]], groups: &[Group], target: &mut [u8]) {
    let (batches, last) = target.as_chunks_mut::<32>();
    let done = 32 * batches.len();
    for (batch, values) in batches.iter_mut().enumerate() {
        let begin = 32 * batch;
        let words = |row: &[u8]| {
            let bytes = row[begin..].first_chunk().expect("rows are equally long");
            _mm512_cvtepu8_epi16(load_32(bytes))
        };
        let zero = _mm512_setzero_si512();
        let rounding = _mm512_set1_epi32(ROUNDING);
        let (mut upper_a, mut upper_b) = (zero, zero);
        let (mut lower_a, mut lower_b) = (rounding, rounding);
        // Rows that are missing at the end have no weight.
        for (group, rows) in groups.iter().zip(rows.chunks(Group::LENGTH)) {
            for (pair, rows) in rows.chunks(2).enumerate() {
                let upper = _mm512_set1_epi32(group.upper[pair]);
                let lower = _mm512_set1_epi32(group.lower[pair]);
                let [first, second] = [words(rows[0]), words(rows[rows.len() - 1])];
                let a = _mm512_unpacklo_epi16(first, second);
                let b = _mm512_unpackhi_epi16(first, second);
                upper_a = _mm512_dpwssd_epi32(upper_a, a, upper);
                upper_b = _mm512_dpwssd_epi32(upper_b, b, upper);
                lower_a = _mm512_dpwssd_epi32(lower_a, a, lower);
                lower_b = _mm512_dpwssd_epi32(lower_b, b, lower);
            }
        }
        let words = _mm512_packs_epi32(rounded(upper_a, lower_a), rounded(upper_b, lower_b));
        // From 0 to 255, as words are when they are narrowed without a sign.
        let words = _mm512_max_epi16(words, zero);
        store_32(values, _mm512_cvtusepi16_epi8(words));
    }
    if !last.is_empty() {
        super::row_of_rows_inline(rows, groups, target, done);
    }
}

/// The same order in each quarter.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni")]
fn everywhere(order: [u8; 16]) -> __m512i {
    _mm512_broadcast_i32x4(load(&order))
}

/// The sums of the upper and of the lower bits, joined and rounded.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni")]
fn rounded(upper: __m512i, lower: __m512i) -> __m512i {
    let upper = _mm512_slli_epi32::<{ LOWER }>(upper);
    _mm512_srai_epi32::<{ FRACTION }>(_mm512_add_epi32(upper, lower))
}
