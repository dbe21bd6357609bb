//! Decodes large JPEGs at a half, a quarter or an eighth of their size, by scaling within the
//! inverse cosine transform.
//!
//! Most of the time that a large photo takes goes into its Huffman codes. The coefficients of high
//! frequencies, which a small picture cannot show, are not needed here: they are skipped, several
//! codes at a time, and the inverse transform of the remaining ones produces a smaller block. Only
//! sequential files (baseline and extended) with common chroma subsampling are supported.
//!
//! # Terms (ITU-T T.81)
//!
//! - **Block**: 8 x 8 samples of one component, the unit of the cosine transform (A.3.3).
//! - **MCU**, minimum coded unit: the smallest group of blocks that is coded together. With several
//!   components it holds, of each component, as many blocks as its sampling factors multiply to, so
//!   that all of them cover the same area of the picture; with one component it is a single block
//!   (A.2).
//! - **Scan**: one pass over the data of some or all components. The files read here have a single
//!   scan with all components interleaved MCU by MCU, row by row (A.2.3, B.2.3).
//! - **Restart interval**: a number of MCUs after which the entropy coder starts afresh: the codes
//!   are padded to a whole byte, a restart marker RST0 to RST7 follows, and the predictions of the
//!   DC coefficients are 0 again (B.2.4.4, E.2.4).
//! - **Coefficient order**: a block's coefficients are coded in zigzag order, from low to high
//!   frequencies in both directions, so that those which are mostly 0 form long runs at the end
//!   (A.3.6, figure A.6). The first is the DC coefficient, all others are AC coefficients.

mod bits;
mod huffman;
mod scan;
mod tables;
mod transform;

use self::{scan::ScanDecoder, tables::Tables};
use super::header::Header;
use crate::image::pixels::{PixelLayout, Pixels, resize_buffer};

/// How much a JPEG is scaled down while it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    Half,
    Quarter,
    Eighth,
}

impl Scale {
    const SMALLEST_FIRST: [Self; 3] = [Self::Eighth, Self::Quarter, Self::Half];

    fn divisor(self) -> u32 {
        match self {
            Self::Half => 2,
            Self::Quarter => 4,
            Self::Eighth => 8,
        }
    }

    /// Chooses the smallest scale at which the shorter side still has at least `min_shorter_side`
    /// pixels; `None` if even a half is too small.
    pub fn choose(header: &Header, min_shorter_side: u32) -> Option<Self> {
        let shorter = header.width.min(header.height);
        Self::SMALLEST_FIRST
            .into_iter()
            .find(|scale| shorter / scale.divisor() >= min_shorter_side)
    }

    /// The length of a side of the image after scaling, in pixels.
    fn scaled_side(self, side: u32) -> u32 {
        side.div_ceil(self.divisor())
    }

    /// The side of an 8 x 8 block after scaling, in pixels.
    fn block_side(self) -> usize {
        8 / self.divisor() as usize
    }
}

/// Decodes into `pixels`, whose layout and orientation have been set; sets their size and data.
///
/// Returns `None` if the file is unsupported or damaged. `pixels` are unspecified then, and the
/// general decoder should decide what is wrong with the file.
pub(super) fn decode(
    pixels: &mut Pixels,
    encoded: &[u8],
    header: &Header,
    scale: Scale,
) -> Option<()> {
    if header.progressive {
        return None;
    }
    let tables = Tables::read(encoded, header)?;
    let mut scan = ScanDecoder::new(encoded, header, &tables, scale)?;

    pixels.width = scale.scaled_side(header.width);
    pixels.height = scale.scaled_side(header.height);
    let width = pixels.width as usize;
    let row_bytes = width * pixels.layout.channels();
    resize_buffer(&mut pixels.data, row_bytes * pixels.height as usize);

    let stores_rgb = header.stores_rgb();
    for strip in pixels.data.chunks_mut(row_bytes * scan.strip_rows()) {
        scan.decode_strip()?;
        for (y, row) in strip.chunks_exact_mut(row_bytes).enumerate() {
            let samples = |component: usize| &scan.row(component, y)[..width];
            if pixels.layout == PixelLayout::Gray {
                for (pixel, gray) in row.iter_mut().zip(samples(0)) {
                    *pixel = round(*gray);
                }
            } else if stores_rgb {
                interleave(row, [samples(0), samples(1), samples(2)], |rgb| rgb);
            } else {
                interleave(row, [samples(0), samples(1), samples(2)], ycbcr_to_rgb);
            }
        }
    }

    if scan.reached_end_of_image() {
        Some(())
    } else {
        None
    }
}

/// Writes one row of pixels from the rows of its three components.
fn interleave(row: &mut [u8], [a, b, c]: [&[f32]; 3], to_rgb: impl Fn([f32; 3]) -> [f32; 3]) {
    for (((pixel, a), b), c) in row.as_chunks_mut::<3>().0.iter_mut().zip(a).zip(b).zip(c) {
        *pixel = to_rgb([*a, *b, *c]).map(round);
    }
}

/// Converts full-range YCbCr to RGB (ITU-T T.871, section 7).
fn ycbcr_to_rgb([y, cb, cr]: [f32; 3]) -> [f32; 3] {
    let (cb, cr) = (cb - 128.0, cr - 128.0);
    [
        y + 1.402 * cr,
        y - 0.344_136_3 * cb - 0.714_136_3 * cr,
        y + 1.772 * cb,
    ]
}

/// Rounds to the nearest value of a byte.
///
/// The addition leaves the whole number in the last bits of the mantissa. Compilers cannot
/// vectorise the usual conversion, which has to saturate.
fn round(value: f32) -> u8 {
    const TWO_TO_23: f32 = (1 << 23) as f32;
    (value.clamp(0.0, 255.0) + TWO_TO_23).to_bits() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_to_the_nearest_byte() {
        for (value, byte) in [
            (-1e9, 0),
            (-0.6, 0),
            (0.49, 0),
            (0.51, 1),
            (1.0, 1),
            (254.4, 254),
            (254.6, 255),
            (1e9, 255),
        ] {
            assert_eq!(round(value), byte, "{value}");
        }
    }
}
