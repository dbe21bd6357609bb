//! Luma and colour differences (TIFF 6.0, section 21), where JPEG does not bring its own.

use super::{
    damaged,
    directory::{Directory, tag},
};
use crate::image::ImageError;

/// Converts luma and colour differences to RGB, by tables for the image's coefficients.
pub(super) struct YCbCr {
    luma: [f32; 256],
    /// What the differences add to red and blue.
    red: [f32; 256],
    blue: [f32; 256],
    /// What either of them adds to green.
    green_of_blue: [f32; 256],
    green_of_red: [f32; 256],
}

impl YCbCr {
    pub fn of(directory: &Directory<'_>) -> Result<Self, ImageError> {
        let reals = |tag, default: &[f64]| -> Result<Vec<f64>, ImageError> {
            match directory.values(tag)? {
                Some(values) => (0..default.len())
                    .map(|index| values.real(index))
                    .collect::<Option<_>>()
                    .ok_or_else(|| damaged(&format!("tag {tag} has too few values"))),
                None => Ok(default.to_vec()),
            }
        };
        let luma = reals(tag::YCBCR_COEFFICIENTS, &[0.299, 0.587, 0.114])?;
        let range = reals(
            tag::REFERENCE_BLACK_WHITE,
            &[0.0, 255.0, 128.0, 255.0, 128.0, 255.0],
        )?;
        let [red, green, blue] = [luma[0], luma[1], luma[2]];
        if !(luma.iter().chain(&range).all(|value| value.is_finite()) && green != 0.0) {
            return Err(damaged(
                "its YCbCr coefficients or reference values are not finite, or the coefficient of \
                 green is 0",
            ));
        }

        // Black becomes 0, and white becomes `to`.
        let scale = |code: usize, pair: usize, to: f64| {
            let (black, white) = (range[2 * pair], range[2 * pair + 1]);
            let distance = if white == black { 1.0 } else { white - black };
            (code as f64 - black) * to / distance
        };
        let table = |value: &dyn Fn(usize) -> f64| std::array::from_fn(|code| value(code) as f32);
        let red_factor = 2.0 - 2.0 * red;
        let blue_factor = 2.0 - 2.0 * blue;
        Ok(Self {
            luma: table(&|code| scale(code, 0, 255.0)),
            red: table(&|code| red_factor * scale(code, 2, 127.0)),
            blue: table(&|code| blue_factor * scale(code, 1, 127.0)),
            green_of_blue: table(&|code| -blue * blue_factor / green * scale(code, 1, 127.0)),
            green_of_red: table(&|code| -red * red_factor / green * scale(code, 2, 127.0)),
        })
    }

    pub fn to_rgb(&self, [y, cb, cr]: [u8; 3]) -> [u8; 3] {
        let [y, cb, cr] = [y, cb, cr].map(usize::from);
        let luma = self.luma[y];
        [
            luma + self.red[cr],
            luma + self.green_of_blue[cb] + self.green_of_red[cr],
            luma + self.blue[cb],
        ]
        .map(|channel| (channel + 0.5) as u8)
    }
}

/// How many pixels share a pair of colour differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subsampling {
    pub across: u32,
    pub down: u32,
}

impl Subsampling {
    pub const NONE: Self = Self { across: 1, down: 1 };

    /// Reads the tag; `None` if it is absent.
    pub fn of(directory: &Directory<'_>) -> Result<Option<Self>, ImageError> {
        let Some(values) = directory.values(tag::YCBCR_SUBSAMPLING)? else {
            return Ok(None);
        };
        match (values.number(0), values.number(1)) {
            (Some(across @ (1 | 2 | 4)), Some(down @ (1 | 2 | 4))) => Ok(Some(Self {
                across: across as u32,
                down: down as u32,
            })),
            _ => Err(damaged("its YCbCr subsampling is not 1, 2 or 4")),
        }
    }

    /// The bytes of a row of blocks, each with the lumas of its pixels and one pair of differences.
    pub fn row_bytes(self, width: u32) -> u64 {
        let block = self.across * self.down + 2;
        u64::from(width.div_ceil(self.across)) * u64::from(block)
    }

    /// Copies row `y` of a row of blocks to pixels of three samples.
    pub fn expand(self, blocks: &[u8], y: u32, target: &mut [u8]) {
        let (across, down) = (self.across as usize, self.down as usize);
        let lumas = across * down;
        let pixels = target.chunks_mut(3 * across);
        for (pixels, block) in pixels.zip(blocks.chunks_exact(lumas + 2)) {
            let luma_row = &block[y as usize * across..][..across];
            for (pixel, luma) in pixels.as_chunks_mut::<3>().0.iter_mut().zip(luma_row) {
                *pixel = [*luma, block[lumas], block[lumas + 1]];
            }
        }
    }
}
