//! Estimates the coefficients that the scans of a progressive file leave out, to the bit as libjpeg
//! does, so that a file without its finest details shows no blocks.
//!
//! The lowest frequencies of a block are estimated from the mean values, that is the DC coefficients,
//! of the 5 x 5 blocks around it (ITU-T T.81, K.8, extended). An estimate is used only for a
//! coefficient that is 0 and not known to its last bit.

use super::{
    coefficients::Coefficients, frame::Frame, huffman::Block, scans::Progress, tables::Quantization,
};

/// Weights of the 5 x 5 mean values, row by row.
type Kernel = [i32; 25];

/// The positions of the estimated coefficients in a block, in zigzag order from the second one on.
const PLACES: [usize; 9] = [1, 8, 16, 9, 2, 3, 10, 17, 24];

/// The weights for [`PLACES`] where no AC coefficient is known at all.
#[rustfmt::skip]
const WITHOUT_AC: [Kernel; 9] = [
    [
        -1, -1, 0, 1, 1,
        -3, 13, 0, -13, 3,
        -3, 38, 0, -38, 3,
        -3, 13, 0, -13, 3,
        -1, -1, 0, 1, 1,
    ],
    [
        -1, -3, -3, -3, -1,
        -1, 13, 38, 13, -1,
        0, 0, 0, 0, 0,
        1, -13, -38, -13, 1,
        1, 3, 3, 3, 1,
    ],
    [
        0, 0, 1, 0, 0,
        0, 2, 7, 2, 0,
        0, -5, -14, -5, 0,
        0, 2, 7, 2, 0,
        0, 0, 1, 0, 0,
    ],
    [
        -1, 0, 0, 0, 1,
        0, 9, 0, -9, 0,
        0, 0, 0, 0, 0,
        0, -9, 0, 9, 0,
        1, 0, 0, 0, -1,
    ],
    [
        0, 0, 0, 0, 0,
        0, 2, -5, 2, 0,
        1, 7, -14, 7, 1,
        0, 2, -5, 2, 0,
        0, 0, 0, 0, 0,
    ],
    [
        0, 0, 0, 0, 0,
        0, 1, 0, -1, 0,
        0, 2, 0, -2, 0,
        0, 1, 0, -1, 0,
        0, 0, 0, 0, 0,
    ],
    [
        0, 0, 0, 0, 0,
        0, 1, -3, 1, 0,
        0, 0, 0, 0, 0,
        0, -1, 3, -1, 0,
        0, 0, 0, 0, 0,
    ],
    [
        0, 0, 0, 0, 0,
        0, 1, 0, -1, 0,
        0, -3, 0, 3, 0,
        0, 1, 0, -1, 0,
        0, 0, 0, 0, 0,
    ],
    [
        0, 0, 0, 0, 0,
        0, 1, 2, 1, 0,
        0, 0, 0, 0, 0,
        0, -1, -2, -1, 0,
        0, 0, 0, 0, 0,
    ],
];

/// The weights for the mean value itself, where no AC coefficient is known at all.
#[rustfmt::skip]
const MEAN: Kernel = [
    -2, -6, -8, -6, -2,
    -6, 6, 42, 6, -6,
    -8, 42, 152, 42, -8,
    -6, 6, 42, 6, -6,
    -2, -6, -8, -6, -2,
];

/// The weights for the first five of [`PLACES`] where some AC coefficients are known.
#[rustfmt::skip]
const WITH_AC: [Kernel; 5] = [
    [
        0, 0, 0, 0, 0,
        0, 0, 0, 0, 0,
        -7, 50, 0, -50, 7,
        0, 0, 0, 0, 0,
        0, 0, 0, 0, 0,
    ],
    [
        0, 0, -7, 0, 0,
        0, 0, 50, 0, 0,
        0, 0, 0, 0, 0,
        0, 0, -50, 0, 0,
        0, 0, 7, 0, 0,
    ],
    [
        0, 0, -1, 0, 0,
        0, 0, 13, 0, 0,
        0, 0, -24, 0, 0,
        0, 0, 13, 0, 0,
        0, 0, -1, 0, 0,
    ],
    [
        0, -1, 0, 1, 0,
        -1, 10, 0, -10, 1,
        0, 0, 0, 0, 0,
        1, -10, 0, 10, -1,
        0, 1, 0, -1, 0,
    ],
    [
        0, 0, 0, 0, 0,
        0, 0, 0, 0, 0,
        -1, 13, -24, 13, -1,
        0, 0, 0, 0, 0,
        0, 0, 0, 0, 0,
    ],
];

/// Estimates coefficients of the blocks of one picture.
pub(super) struct Smoothing<'a> {
    frame: &'a Frame,
    coefficients: &'a Coefficients,
    components: Vec<Component<'a>>,
}

struct Component<'a> {
    quantization: &'a Quantization,
    /// The lowest known bits of the coefficients at [`PLACES`].
    low: [Option<u32>; 9],
}

impl<'a> Smoothing<'a> {
    /// `None` if there is nothing to estimate, or if it is not possible.
    pub fn new(
        frame: &'a Frame,
        coefficients: &'a Coefficients,
        quantization: &'a [Quantization],
        progress: &Progress,
    ) -> Option<Self> {
        let components: Vec<_> = quantization
            .iter()
            .zip(&progress.low)
            .map(|(quantization, low)| Component {
                quantization,
                low: std::array::from_fn(|index| low[1 + index]),
            })
            .collect();

        let is_useful = components
            .iter()
            .any(|component| component.low.iter().any(|low| *low != Some(0)));
        let is_possible = components.iter().all(|component| {
            let factor = |place: &usize| component.quantization[*place];
            factor(&0) != 0 && PLACES.iter().all(|place| factor(place) != 0)
        });
        (frame.progressive && is_useful && is_possible).then_some(Self {
            frame,
            coefficients,
            components,
        })
    }

    /// The block at this row of the strip and this column, with estimates.
    pub fn block(&self, component: usize, strip: usize, row: usize, column: usize) -> Block {
        let Component { quantization, low } = &self.components[component];
        let means = self.means(component, strip, row, column);
        let row = strip * self.frame.components[component].vertical + row;
        let mut block = *self.coefficients.block(component, row, column);

        let without_ac = low.iter().all(Option::is_none);
        let kernels = if without_ac {
            &WITHOUT_AC[..]
        } else {
            &WITH_AC[..]
        };
        let estimate = |kernel: &Kernel, factor: u16| -> i64 {
            let products = kernel.iter().zip(&means);
            let sum: i64 = products
                .map(|(weight, mean)| i64::from(*weight) * i64::from(*mean))
                .sum();
            let sum = sum * i64::from(quantization[0]);
            // Divided by 256 times the factor, and rounded away from zero.
            let factor = i64::from(factor);
            ((factor << 7) + sum.abs()) / (factor << 8) * sum.signum()
        };

        for ((place, kernel), low) in PLACES.into_iter().zip(kernels).zip(low) {
            if *low == Some(0) || block[place] != 0 {
                continue;
            }
            let value = estimate(kernel, quantization[place]);
            // If upper bits are known to be 0, the estimate has none of them.
            let value = match low {
                Some(low) => value.clamp(1 - (1 << low), (1 << low) - 1),
                None => value,
            };
            block[place] = value as i16;
        }
        if without_ac {
            block[0] = estimate(&MEAN, quantization[0]) as i16;
        }
        block
    }

    /// The DC coefficients of the 5 x 5 blocks around this one. At the edges of the picture they
    /// are repeated.
    fn means(&self, component: usize, strip: usize, row: usize, column: usize) -> [i16; 25] {
        let frame = &self.frame.components[component];
        // libjpeg counts rows by the height of the strip, which is less in the last one.
        let strips = self.frame.strips();
        let strip_rows = (frame.blocks_high - strip * frame.vertical).min(frame.vertical);
        let (counted, count) = (strip * strip_rows + row, strips * strip_rows);
        let middle = strip * frame.vertical + row;
        let above = if counted > 0 { middle - 1 } else { middle };
        let above_2 = if counted > 1 { middle - 2 } else { above };
        let below = if counted + 1 < count {
            middle + 1
        } else {
            middle
        };
        let below_2 = if counted + 2 < count {
            middle + 2
        } else {
            below
        };

        let rows = [above_2, above, middle, below, below_2];
        std::array::from_fn(|index| {
            let neighbour = (column + index % 5).saturating_sub(2);
            let neighbour = neighbour.min(frame.blocks_wide - 1);
            self.coefficients
                .block(component, rows[index / 5], neighbour)[0]
        })
    }
}
