//! How stored components become red, green and blue: to the bit as libjpeg and Pillow do it.

use super::simd::simd;
use crate::image::pixels::PixelLayout;

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
        = ycbcr_to_rgb_avx2(|row, samples| {
            ycbcr_to_rgb_inline(row, samples, |planes| interleaved_avx2(planes));
        }), |row, samples| ycbcr_to_rgb_inline(row, samples, interleaved);
}

/// Pixels that are converted at once.
const BATCH: usize = 16;

#[inline(always)]
fn ycbcr_to_rgb_inline(
    row: &mut [u8],
    [y, cb, cr]: [&[u8]; 3],
    interleaved: impl Fn([[u8; BATCH]; 3]) -> [u8; 3 * BATCH],
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
        *batch = interleaved(convert(y, cb, cr));
    }

    let rest = |samples: &[u8]| {
        let mut batch = [0; BATCH];
        let samples = &samples[count * BATCH..];
        batch[..samples.len()].copy_from_slice(samples);
        batch
    };
    if !last.is_empty() {
        let batch = interleaved(convert(&rest(y), &rest(cb), &rest(cr)));
        last.copy_from_slice(&batch[..last.len()]);
    }
}

/// All products fit into 16 bits after their rounding, so that processors can work on many at once:
/// a coefficient above a half is split into a whole number and a rest.
#[inline(always)]
fn convert(y: &[u8; BATCH], cb: &[u8; BATCH], cr: &[u8; BATCH]) -> [[u8; BATCH]; 3] {
    /// The product with a fraction of 65536, rounded to the nearest number.
    #[inline(always)]
    fn times(value: i16, fraction: i16) -> i16 {
        let doubled = (i32::from(2 * value) * i32::from(fraction)) >> 16;
        (doubled as i16 + 1) >> 1
    }

    let mut planes = [[0; BATCH]; 3];
    for i in 0..BATCH {
        let y = i16::from(y[i]);
        let (cb, cr) = (i16::from(cb[i]) - 128, i16::from(cr[i]) - 128);
        // 1.402, 0.34414, 0.71414 and 1.772
        let red = y + cr + times(cr, 26_345);
        let subtracted = i32::from(cb) * -22_554 + i32::from(cr) * 18_734 + 32_768;
        let green = y + (subtracted >> 16) as i16 - cr;
        let blue = y + 2 * cb + times(cb, -14_942);
        planes[0][i] = red.clamp(0, 255) as u8;
        planes[1][i] = green.clamp(0, 255) as u8;
        planes[2][i] = blue.clamp(0, 255) as u8;
    }
    planes
}

fn interleaved(planes: [[u8; BATCH]; 3]) -> [u8; 3 * BATCH] {
    std::array::from_fn(|index| planes[index % 3][index / 3])
}

/// Compilers move the bytes one by one; this moves sixteen at once.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn interleaved_avx2(planes: [[u8; BATCH]; 3]) -> [u8; 3 * BATCH] {
    use std::arch::x86_64::{
        __m128i, _mm_cvtsi128_si64, _mm_extract_epi64, _mm_or_si128, _mm_set_epi64x,
        _mm_shuffle_epi8,
    };

    /// For each third of the result and each plane: which byte of the plane goes where. Indices
    /// from 128 on give a zero.
    const ORDERS: [[[u8; 16]; 3]; 3] = {
        let mut orders = [[[128; 16]; 3]; 3];
        let mut index = 0;
        while index < 48 {
            orders[index / 16][index % 3][index % 16] = (index / 3) as u8;
            index += 1;
        }
        orders
    };
    let vector = |bytes: &[u8; 16]| -> __m128i {
        let halves = bytes.as_chunks::<8>().0;
        _mm_set_epi64x(i64::from_le_bytes(halves[1]), i64::from_le_bytes(halves[0]))
    };

    let planes = planes.map(|plane| vector(&plane));
    let mut pixels = [0; 3 * BATCH];
    for (third, orders) in pixels.as_chunks_mut::<16>().0.iter_mut().zip(&ORDERS) {
        let [red, green, blue] =
            [0, 1, 2].map(|plane: usize| _mm_shuffle_epi8(planes[plane], vector(&orders[plane])));
        let merged = _mm_or_si128(_mm_or_si128(red, green), blue);
        third[..8].copy_from_slice(&_mm_cvtsi128_si64(merged).to_le_bytes());
        third[8..].copy_from_slice(&_mm_extract_epi64::<1>(merged).to_le_bytes());
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;

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
