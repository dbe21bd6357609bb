//! The inverse cosine transform of a block (ITU-T T.81, A.3.3), at a fraction of its size.
//!
//! The lowest `W` x `H` of the 8 x 8 coefficients are, except for a constant factor, those that a
//! block of `W` x `H` pixels of the same picture would have. So the inverse transform of that
//! smaller size, applied to them, gives the block scaled down.

use super::zigzag::ZIGZAG;

/// cos(i · π / 16) / 2
const HALF_COSINES: [f32; 9] = [
    0.5,
    0.490_392_64,
    0.461_939_77,
    0.415_734_8,
    0.353_553_38,
    0.277_785_12,
    0.191_341_71,
    0.097_545_16,
    0.0,
];

/// The inverse transform of a block of coefficients to `width` x `height` pixels.
#[derive(Clone, Copy)]
pub(super) struct InverseTransform {
    pub width: usize,
    pub height: usize,
    /// The index, in zigzag order, of the last coefficient that matters at this size.
    pub last: usize,
    apply: fn(&[f32; 64], &mut [f32], usize),
}

impl InverseTransform {
    /// `None` for sizes that no common chroma subsampling leads to.
    pub fn new(width: usize, height: usize) -> Option<Self> {
        let apply = match (width, height) {
            (1, 1) => inverse::<1, 1>,
            (1, 2) => inverse::<1, 2>,
            (2, 1) => inverse::<2, 1>,
            (2, 2) => inverse::<2, 2>,
            (2, 4) => inverse::<2, 4>,
            (4, 2) => inverse::<4, 2>,
            (4, 4) => inverse::<4, 4>,
            (4, 8) => inverse::<4, 8>,
            (8, 4) => inverse::<8, 4>,
            (8, 8) => inverse::<8, 8>,
            _ => return None,
        };

        let matters = |place: &u8| {
            let (column, row) = (usize::from(place % 8), usize::from(place / 8));
            column < width && row < height
        };
        let last = ZIGZAG.iter().rposition(matters)?;
        Some(Self {
            width,
            height,
            last,
            apply,
        })
    }

    /// Transforms a block of dequantized coefficients to rows of pixels, `stride` apart. `flat`
    /// says that all but the first coefficient are 0.
    #[inline(always)]
    pub fn apply(&self, block: &[f32; 64], flat: bool, pixels: &mut [f32], stride: usize) {
        if flat {
            for row in pixels.chunks_mut(stride).take(self.height) {
                row[..self.width].fill(block[0] / 8.0);
            }
        } else {
            (self.apply)(block, pixels, stride);
        }
    }
}

/// The one-dimensional basis, by position and frequency: what a coefficient of 1 adds to a pixel.
const fn basis<const N: usize>() -> [[f32; N]; N] {
    let mut basis = [[0.0; N]; N];
    let mut position = 0;
    while position < N {
        let mut frequency = 0;
        while frequency < N {
            // In units of π / 16, reduced to 0 to π by the symmetry of the cosine.
            let angle = (2 * position + 1) * frequency * (8 / N) % 32;
            let angle = if angle > 16 { 32 - angle } else { angle };
            basis[position][frequency] = match (frequency, angle) {
                (0, _) => HALF_COSINES[4],
                (_, 0..=8) => HALF_COSINES[angle],
                _ => -HALF_COSINES[16 - angle],
            };
            frequency += 1;
        }
        position += 1;
    }
    basis
}

/// Transforms the rows of coefficients first, then the columns.
fn inverse<const W: usize, const H: usize>(block: &[f32; 64], pixels: &mut [f32], stride: usize) {
    let horizontal = const { basis::<W>() };
    let vertical = const { basis::<H>() };

    let mut rows = [[0.0; W]; H];
    for (v, row) in rows.iter_mut().enumerate() {
        for (x, sum) in row.iter_mut().enumerate() {
            for u in 0..W {
                *sum += horizontal[x][u] * block[8 * v + u];
            }
        }
    }

    for (y, line) in pixels.chunks_mut(stride).take(H).enumerate() {
        let line: &mut [f32; W] = line
            .first_chunk_mut()
            .expect("planes have room for whole blocks");
        *line = [0.0; W];
        for (v, row) in rows.iter().enumerate() {
            for (pixel, value) in line.iter_mut().zip(row) {
                *pixel += vertical[y][v] * value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use super::*;

    fn full_size_pixel(column: usize, row: usize) -> f64 {
        let wave = |position: usize, turns: f64| (turns * (position as f64 + 0.5) / 8.0 * PI).cos();
        100.0
            + 30.0 * wave(column, 1.0)
            + 20.0 * wave(row, 1.0)
            + 8.0 * wave(column, 1.0) * wave(row, 1.0)
    }

    /// The coefficients of [`full_size_pixel`], by the definition of the forward transform (A.3.3).
    fn coefficients() -> [f32; 64] {
        let mut block = [0.0; 64];
        for (index, coefficient) in block.iter_mut().enumerate() {
            let (u, v) = (index % 8, index / 8);
            let factor = |frequency| if frequency == 0 { 0.5f64.sqrt() } else { 1.0 };
            let mut sum = 0.0;
            for (x, y) in (0..64).map(|pixel| (pixel % 8, pixel / 8)) {
                let cosine = |position: usize, frequency: usize| {
                    ((2 * position + 1) as f64 * frequency as f64 * PI / 16.0).cos()
                };
                sum += full_size_pixel(x, y) * cosine(x, u) * cosine(y, v);
            }
            *coefficient = (0.25 * factor(u) * factor(v) * sum) as f32;
        }
        block
    }

    #[test]
    fn every_size_shows_the_same_picture() {
        let block = coefficients();
        for (width, height) in [
            (1, 1),
            (1, 2),
            (2, 1),
            (2, 2),
            (2, 4),
            (4, 2),
            (4, 4),
            (4, 8),
            (8, 4),
            (8, 8),
        ] {
            let transform = InverseTransform::new(width, height).unwrap();
            let stride = width + 3;
            let mut pixels = vec![-1.0; stride * height];
            transform.apply(&block, false, &mut pixels, stride);
            for (x, y) in (0..width * height).map(|pixel| (pixel % width, pixel / width)) {
                let wave = |position: usize, side: usize| match side {
                    1 => 0.0,
                    _ => ((position as f64 + 0.5) / side as f64 * PI).cos(),
                };
                let (h, v) = (wave(x, width), wave(y, height));
                let expected = 100.0 + 30.0 * h + 20.0 * v + 8.0 * h * v;
                let got = f64::from(pixels[y * stride + x]);
                assert!(
                    (got - expected).abs() < 1e-3,
                    "{width}x{height} at {x}, {y}: {got} for {expected}"
                );
            }
            assert!(
                pixels.chunks(stride).all(|row| row[width..] == [-1.0; 3]),
                "{width}x{height}: too wide"
            );

            let mut flat = [[0.0; 64]; 2];
            flat[0][0] = block[0];
            let mut filled = [vec![0.0; stride * height], vec![0.0; stride * height]];
            transform.apply(&flat[0], true, &mut filled[0], stride);
            transform.apply(&flat[0], false, &mut filled[1], stride);
            assert!(
                filled[0]
                    .iter()
                    .zip(&filled[1])
                    .all(|(a, b)| (a - b).abs() < 1e-3),
                "{width}x{height}: flat"
            );
        }
        assert!(InverseTransform::new(16, 8).is_none());
    }

    #[test]
    fn the_last_coefficient_is_that_of_the_highest_frequency() {
        assert_eq!(
            [1, 2, 4, 8].map(|side| InverseTransform::new(side, side).unwrap().last),
            [0, 4, 24, 63]
        );
    }
}
