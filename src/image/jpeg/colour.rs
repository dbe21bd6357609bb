//! How stored components become red, green and blue: to the bit as libjpeg and Pillow do it.

use crate::image::{pixels::PixelLayout, simd::simd};

/// What the components of a file mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colours {
    Gray,
    Rgb,
    YCbCr,
    /// Four inks, stored inverted, as Adobe's programs write them and Pillow expects them.
    Cmyk,
    /// The same, with the first three converted like YCbCr.
    Ycck,
    /// Components that are written as they are stored, whatever they mean.
    Stored,
}

impl Colours {
    /// The layout of pixels with these colours; that of four stored components has four channels.
    pub fn layout(self, components: usize) -> PixelLayout {
        match (self, components) {
            (_, 1) => PixelLayout::Gray,
            (Self::Stored, 4) => PixelLayout::Rgba,
            _ => PixelLayout::Rgb,
        }
    }

    /// Writes a row of pixels from rows of samples, of which there is one for each component.
    pub fn write_row(self, row: &mut [u8], samples: &[&[u8]]) {
        match (self, samples) {
            (Self::Gray | Self::Stored, [gray]) => row.copy_from_slice(gray),
            (Self::YCbCr, [y, cb, cr]) => ycbcr_to_rgb(row, [y, cb, cr]),
            (Self::Rgb | Self::Stored, [red, green, blue]) => {
                for (((pixel, red), green), blue) in row
                    .as_chunks_mut()
                    .0
                    .iter_mut()
                    .zip(*red)
                    .zip(*green)
                    .zip(*blue)
                {
                    *pixel = [*red, *green, *blue];
                }
            }
            (Self::Ycck, [y, cb, cr, black]) => {
                ycbcr_to_rgb(row, [y, cb, cr]);
                for (pixel, black) in row.as_chunks_mut::<3>().0.iter_mut().zip(*black) {
                    *pixel = pixel.map(|ink| ink_to_light(ink, *black));
                }
            }
            (Self::Cmyk, [cyan, magenta, yellow, black]) => {
                for ((((pixel, cyan), magenta), yellow), black) in row
                    .as_chunks_mut()
                    .0
                    .iter_mut()
                    .zip(*cyan)
                    .zip(*magenta)
                    .zip(*yellow)
                    .zip(*black)
                {
                    *pixel = [*cyan, *magenta, *yellow].map(|ink| ink_to_light(255 - ink, *black));
                }
            }
            _ => {
                for (channel, samples) in samples.iter().enumerate() {
                    let pixels = row.iter_mut().skip(channel).step_by(4);
                    for (value, sample) in pixels.zip(*samples) {
                        *value = *sample;
                    }
                }
            }
        }
    }
}

/// How much light is left by an ink, where `black` is what the black ink leaves.
fn ink_to_light(ink: u8, black: u8) -> u8 {
    // The product divided by 255 and rounded.
    let product = u32::from(ink) * u32::from(black) + 128;
    let absorbed = ((product >> 8) + product) >> 8;
    black.saturating_sub(absorbed as u8)
}

simd! {
    /// Converts full-range YCbCr to RGB (ITU-T T.871, section 7), with coefficients rounded to
    /// 1/65536 as libjpeg rounds them.
    fn ycbcr_to_rgb(row: &mut [u8], samples: [&[u8]; 3])
        = [ycbcr_to_rgb_avx512(avx512::ycbcr_to_rgb)], ycbcr_to_rgb_avx2(|row, samples| {
            ycbcr_to_rgb_inline(row, samples, |pixels, y, cb, cr| avx2::convert(pixels, y, cb, cr));
        }), |row, samples| ycbcr_to_rgb_inline(row, samples, convert);
}

/// Pixels that are converted at once.
const BATCH: usize = 16;

#[inline(always)]
fn ycbcr_to_rgb_inline(
    row: &mut [u8],
    [y, cb, cr]: [&[u8]; 3],
    convert: impl Fn(&mut [u8; 3 * BATCH], &[u8; BATCH], &[u8; BATCH], &[u8; BATCH]),
) {
    let width = row.len() / 3;
    let [y, cb, cr] = [y, cb, cr].map(|samples| &samples[..width]);
    let (batches, last) = row.as_chunks_mut::<{ 3 * BATCH }>();
    let count = batches.len();
    for (((batch, y), cb), cr) in batches
        .iter_mut()
        .zip(y.as_chunks().0)
        .zip(cb.as_chunks().0)
        .zip(cr.as_chunks().0)
    {
        convert(batch, y, cb, cr);
    }

    let rest = |samples: &[u8]| {
        let mut batch = [0; BATCH];
        let samples = &samples[count * BATCH..];
        batch[..samples.len()].copy_from_slice(samples);
        batch
    };
    if !last.is_empty() {
        let mut batch = [0; 3 * BATCH];
        convert(&mut batch, &rest(y), &rest(cb), &rest(cr));
        last.copy_from_slice(&batch[..last.len()]);
    }
}

/// All products fit into 16 bits after their rounding, so that processors can work on many at once:
/// a coefficient above a half is split into a whole number and a rest.
#[inline(always)]
fn convert(pixels: &mut [u8; 3 * BATCH], y: &[u8; BATCH], cb: &[u8; BATCH], cr: &[u8; BATCH]) {
    /// The product with a fraction of 65536, rounded to the nearest number.
    #[inline(always)]
    fn times(value: i16, fraction: i16) -> i16 {
        let doubled = (i32::from(2 * value) * i32::from(fraction)) >> 16;
        (doubled as i16 + 1) >> 1
    }

    for (i, pixel) in pixels.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let y = i16::from(y[i]);
        let (cb, cr) = (i16::from(cb[i]) - 128, i16::from(cr[i]) - 128);
        // 1.402, 0.34414, 0.71414 and 1.772
        let red = y + cr + times(cr, 26_345);
        let subtracted = i32::from(cb) * -22_554 + i32::from(cr) * 18_734 + 32_768;
        let green = y + (subtracted >> 16) as i16 - cr;
        let blue = y + 2 * cb + times(cb, -14_942);
        *pixel = [red, green, blue].map(|value| value.clamp(0, 255) as u8);
    }
}

/// The same with instructions chosen by hand.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::BATCH;
    use crate::image::simd::x86::{load, store};

    /// For each third of the pixels and each plane: which byte of the plane goes where. Indices from
    /// 128 on give a zero.
    const ORDERS: [[[u8; 16]; 3]; 3] = {
        let mut orders = [[[128; 16]; 3]; 3];
        let mut index = 0;
        while index < 48 {
            orders[index / 16][index % 3][index % 16] = (index / 3) as u8;
            index += 1;
        }
        orders
    };

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn convert(
        pixels: &mut [u8; 3 * BATCH],
        y: &[u8; BATCH],
        cb: &[u8; BATCH],
        cr: &[u8; BATCH],
    ) {
        let middle = _mm256_set1_epi16(128);
        let y = _mm256_cvtepu8_epi16(load(y));
        let cb = _mm256_sub_epi16(_mm256_cvtepu8_epi16(load(cb)), middle);
        let cr = _mm256_sub_epi16(_mm256_cvtepu8_epi16(load(cr)), middle);
        let [twice_cb, twice_cr] = [_mm256_add_epi16(cb, cb), _mm256_add_epi16(cr, cr)];

        let red = _mm256_add_epi16(_mm256_add_epi16(y, cr), times(twice_cr, 26_345));
        let blue = _mm256_add_epi16(_mm256_add_epi16(y, twice_cb), times(twice_cb, -14_942));

        let [first, second] = [-22_554, 18_734].map(i16::to_le_bytes);
        let factors = i32::from_le_bytes([first[0], first[1], second[0], second[1]]);
        let factors = _mm256_set1_epi32(factors);
        let rounding = _mm256_set1_epi32(32_768);
        let low = _mm256_madd_epi16(_mm256_unpacklo_epi16(cb, cr), factors);
        let high = _mm256_madd_epi16(_mm256_unpackhi_epi16(cb, cr), factors);
        let subtracted = _mm256_packs_epi32(
            _mm256_srai_epi32::<16>(_mm256_add_epi32(low, rounding)),
            _mm256_srai_epi32::<16>(_mm256_add_epi32(high, rounding)),
        );
        let green = _mm256_add_epi16(_mm256_sub_epi16(y, cr), subtracted);

        let planes = [bytes(red), bytes(green), bytes(blue)];
        for (third, orders) in pixels.as_chunks_mut::<16>().0.iter_mut().zip(&ORDERS) {
            let red = _mm_shuffle_epi8(planes[0], load(&orders[0]));
            let green = _mm_shuffle_epi8(planes[1], load(&orders[1]));
            let blue = _mm_shuffle_epi8(planes[2], load(&orders[2]));
            store(third, _mm_or_si128(_mm_or_si128(red, green), blue));
        }
    }

    /// The product of a doubled value with a fraction of 65536, rounded to the nearest number.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn times(twice: __m256i, fraction: i16) -> __m256i {
        let doubled = _mm256_mulhi_epi16(twice, _mm256_set1_epi16(fraction));
        _mm256_srai_epi16::<1>(_mm256_add_epi16(doubled, _mm256_set1_epi16(1)))
    }

    /// Sixteen words, as bytes from 0 to 255.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn bytes(words: __m256i) -> __m128i {
        _mm_packus_epi16(
            _mm256_castsi256_si128(words),
            _mm256_extracti128_si256::<1>(words),
        )
    }
}

/// The same for 64 pixels at once.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use crate::image::simd::x86::{load_64, store_64};

    /// Pixels that are converted at once.
    const BATCH: usize = 64;

    /// By the third of the pixels: the pixel that each byte belongs to.
    const PIXELS: [[u8; BATCH]; 3] = {
        let mut pixels = [[0; BATCH]; 3];
        let mut index = 0;
        while index < 3 * BATCH {
            pixels[index / BATCH][index % BATCH] = (index / 3) as u8;
            index += 1;
        }
        pixels
    };

    /// By the third of the pixels and the channel: a bit for each byte of the channel.
    const CHANNELS: [[u64; 3]; 3] = {
        let mut channels = [[0; 3]; 3];
        let mut index = 0;
        while index < 3 * BATCH {
            channels[index / BATCH][index % 3] |= 1 << (index % BATCH);
            index += 1;
        }
        channels
    };

    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vbmi")]
    pub(super) fn ycbcr_to_rgb(row: &mut [u8], [y, cb, cr]: [&[u8]; 3]) {
        let (batches, rest) = row.as_chunks_mut::<{ 3 * BATCH }>();
        let done = batches.len() * BATCH;
        for (((batch, y), cb), cr) in batches
            .iter_mut()
            .zip(y.as_chunks().0)
            .zip(cb.as_chunks().0)
            .zip(cr.as_chunks().0)
        {
            convert(batch, y, cb, cr);
        }
        let samples = [&y[done..], &cb[done..], &cr[done..]];
        super::ycbcr_to_rgb_inline(rest, samples, |pixels, y, cb, cr| {
            super::avx2::convert(pixels, y, cb, cr);
        });
    }

    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vbmi")]
    fn convert(pixels: &mut [u8; 3 * BATCH], y: &[u8; BATCH], cb: &[u8; BATCH], cr: &[u8; BATCH]) {
        let zero = _mm512_setzero_si512();
        let (y, cb, cr) = (load_64(y), load_64(cb), load_64(cr));
        let first = colours(
            _mm512_unpacklo_epi8(y, zero),
            _mm512_unpacklo_epi8(cb, zero),
            _mm512_unpacklo_epi8(cr, zero),
        );
        let second = colours(
            _mm512_unpackhi_epi8(y, zero),
            _mm512_unpackhi_epi8(cb, zero),
            _mm512_unpackhi_epi8(cr, zero),
        );
        let planes = [
            _mm512_packus_epi16(first[0], second[0]),
            _mm512_packus_epi16(first[1], second[1]),
            _mm512_packus_epi16(first[2], second[2]),
        ];
        let thirds = pixels.as_chunks_mut::<BATCH>().0.iter_mut();
        for ((third, order), channels) in thirds.zip(&PIXELS).zip(&CHANNELS) {
            let order = load_64(order);
            let mut bytes = _mm512_permutexvar_epi8(order, planes[0]);
            bytes = _mm512_mask_permutexvar_epi8(bytes, channels[1], order, planes[1]);
            bytes = _mm512_mask_permutexvar_epi8(bytes, channels[2], order, planes[2]);
            store_64(third, bytes);
        }
    }

    /// The red, green and blue of 32 pixels, which may be beyond 0 to 255.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vbmi")]
    fn colours(y: __m512i, cb: __m512i, cr: __m512i) -> [__m512i; 3] {
        let middle = _mm512_set1_epi16(128);
        let [cb, cr] = [_mm512_sub_epi16(cb, middle), _mm512_sub_epi16(cr, middle)];
        let [twice_cb, twice_cr] = [_mm512_add_epi16(cb, cb), _mm512_add_epi16(cr, cr)];
        let red = _mm512_add_epi16(_mm512_add_epi16(y, cr), times(twice_cr, 26_345));
        let blue = _mm512_add_epi16(_mm512_add_epi16(y, twice_cb), times(twice_cb, -14_942));

        let [first, second] = [-22_554i16, 18_734].map(i16::to_le_bytes);
        let factors = i32::from_le_bytes([first[0], first[1], second[0], second[1]]);
        let factors = _mm512_set1_epi32(factors);
        let rounding = _mm512_set1_epi32(32_768);
        let low = _mm512_madd_epi16(_mm512_unpacklo_epi16(cb, cr), factors);
        let high = _mm512_madd_epi16(_mm512_unpackhi_epi16(cb, cr), factors);
        let subtracted = _mm512_packs_epi32(
            _mm512_srai_epi32::<16>(_mm512_add_epi32(low, rounding)),
            _mm512_srai_epi32::<16>(_mm512_add_epi32(high, rounding)),
        );
        let green = _mm512_add_epi16(_mm512_sub_epi16(y, cr), subtracted);
        [red, green, blue]
    }

    /// The product of a doubled value with a fraction of 65536, rounded to the nearest number.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vbmi")]
    fn times(twice: __m512i, fraction: i16) -> __m512i {
        let doubled = _mm512_mulhi_epi16(twice, _mm512_set1_epi16(fraction));
        _mm512_srai_epi16::<1>(_mm512_add_epi16(doubled, _mm512_set1_epi16(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{image::simd::with_and_without_avx512, testing::random_numbers};

    #[test]
    fn every_colour_is_converted_as_by_the_rounded_formula() {
        let fix = |factor: f64| (factor * 65_536.0 + 0.5) as i32;
        let all: Vec<u8> = (0..=255).collect();
        for y in (0..=255).step_by(5) {
            for cb in 0..=255u8 {
                let mut row = [0; 768];
                Colours::YCbCr.write_row(&mut row, &[&[y; 256], &[cb; 256], &all]);
                for (cr, pixel) in row.as_chunks::<3>().0.iter().enumerate() {
                    let (cb, cr) = (i32::from(cb) - 128, cr as i32 - 128);
                    let sums = [
                        (fix(1.402) * cr + 32_768) >> 16,
                        (-fix(0.34414) * cb - fix(0.71414) * cr + 32_768) >> 16,
                        (fix(1.772) * cb + 32_768) >> 16,
                    ];
                    let expected = sums.map(|sum| (i32::from(y) + sum).clamp(0, 255) as u8);
                    assert_eq!(*pixel, expected, "{y} {cb} {cr}");
                }
            }
        }
    }

    #[test]
    fn vectors_compute_what_the_portable_code_does() {
        with_and_without_avx512(|| {
            let mut random = random_numbers(12);
            for width in 1..300 {
                let samples: [Vec<u8>; 3] =
                    std::array::from_fn(|_| (0..width).map(|_| random(256) as u8).collect());
                let samples = [0, 1, 2].map(|component: usize| &samples[component][..]);
                let mut rows = [vec![0; 3 * width], vec![0; 3 * width]];
                ycbcr_to_rgb(&mut rows[0], samples);
                ycbcr_to_rgb_inline(&mut rows[1], samples, convert);
                assert_eq!(rows[0], rows[1], "{width}");
            }
        });
    }

    #[test]
    fn rows_of_any_length_are_converted() {
        let samples: Vec<u8> = (0..100).map(|i| (i * 37) as u8).collect();
        let mut whole = [0; 300];
        Colours::YCbCr.write_row(&mut whole, &[&samples, &samples, &samples]);
        for width in 0..100 {
            let mut row = vec![0; 3 * width];
            Colours::YCbCr.write_row(&mut row, &[&samples[..width]; 3]);
            assert_eq!(row, whole[..3 * width]);
        }
    }

    #[test]
    fn inks_are_stored_inverted() {
        let mut row = [0; 6];
        // White paper, and red under half of the black ink.
        let inks: [&[u8]; 4] = [&[255, 255], &[255, 0], &[255, 0], &[255, 128]];
        Colours::Cmyk.write_row(&mut row, &inks);
        assert_eq!(row, [255, 255, 255, 128, 0, 0]);
    }
}
