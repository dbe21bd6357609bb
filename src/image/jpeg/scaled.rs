//! The picture at a half, a quarter or an eighth of its size, scaled within the inverse cosine
//! transform.
//!
//! Most of the time that a large photo takes goes into its Huffman codes. The coefficients of high
//! frequencies, which a small picture cannot show, are not needed here: they are skipped, several
//! codes at a time, and the inverse transform of the remaining ones produces a smaller block. Only
//! common chroma subsampling is supported.

use std::ops::Range;

use super::{
    colour::Colours,
    frame::Frame,
    huffman::Block,
    output::{Output, Picture, Region},
    scaled_transform::InverseTransform,
};
use crate::image::rows::Rows;

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
    /// pixels; `None` if even a half is too small, or if such files are not scaled.
    pub fn choose(frame: &Frame, min_shorter_side: u32) -> Option<Self> {
        let shorter = frame.width.min(frame.height);
        Self::SMALLEST_FIRST
            .into_iter()
            .find(|scale| shorter / scale.divisor() >= min_shorter_side)
            .filter(|scale| scale.transforms(frame).is_some())
    }

    /// The inverse transform of each component; `None` if the file has four channels or unusual
    /// sampling factors.
    fn transforms(self, frame: &Frame) -> Option<Vec<InverseTransform>> {
        if frame.components.len() > 3 {
            return None;
        }
        // Subsampled components are scaled down less, so that all planes get the same size.
        let transforms = frame.components.iter().map(|component| {
            InverseTransform::new(
                self.block_side() * frame.h_max / component.horizontal,
                self.block_side() * frame.v_max / component.vertical,
            )
        });
        transforms.collect()
    }

    /// The width and the height of the picture after scaling, in pixels.
    pub fn size(self, frame: &Frame) -> [u32; 2] {
        [frame.width, frame.height].map(|side| side.div_ceil(self.divisor()))
    }

    /// The side of an 8 x 8 block after scaling, in pixels.
    fn block_side(self) -> usize {
        8 / self.divisor() as usize
    }
}

/// Turns the blocks of a strip into rows of pixels.
pub(super) struct Scaled {
    colours: Colours,
    region: Region,
    /// The current strip.
    strip: usize,
    components: Vec<Component>,
    /// Samples from one row of a plane to the next. All planes have the same size.
    stride: usize,
    /// Rows of pixels in a strip.
    strip_rows: usize,
}

struct Component {
    quantization: [f32; 64],
    transform: InverseTransform,
    /// The samples of the current strip.
    plane: Vec<f32>,
}

impl Scaled {
    /// The scale has to be one that [`Scale::choose`] chose for this frame.
    pub fn new(picture: &Picture, colours: Colours, scale: Scale, region: Region) -> Self {
        let Picture {
            frame,
            quantization,
            ..
        } = picture;
        let stride = frame.mcus_per_strip() * frame.h_max * scale.block_side();
        let strip_rows = frame.v_max * scale.block_side();
        let transforms = scale.transforms(frame).unwrap_or_default();
        let components = transforms.into_iter().zip(quantization);
        Self {
            colours,
            region,
            strip: 0,
            components: components
                .map(|(transform, quantization)| Component {
                    quantization: quantization.map(f32::from),
                    transform,
                    plane: vec![0.0; stride * strip_rows],
                })
                .collect(),
            stride,
            strip_rows,
        }
    }

    /// A component's wanted samples in row `y` of the current strip.
    fn row(&self, component: usize, y: usize) -> &[f32] {
        &self.components[component].plane[y * self.stride..][self.region.columns.clone()]
    }
}

impl Output for Scaled {
    fn last_of_interest(&self, component: usize) -> usize {
        self.components[component].transform.last
    }

    fn depends_on(&self) -> usize {
        0
    }

    fn rows_of(&self, strips: &Range<usize>) -> Range<usize> {
        let Range { start, end } = self.region.rows;
        let begin = (strips.start * self.strip_rows).max(start);
        begin..(strips.end * self.strip_rows).min(end).max(begin)
    }

    fn begin_at(&mut self, strip: usize) {
        self.strip = strip;
    }

    fn needed_columns(&self, component: usize, row: usize) -> Range<usize> {
        let Region { columns, rows } = &self.region;
        let transform = self.components[component].transform;
        let top = self.strip * self.strip_rows + row * transform.height;
        if top < rows.end && top + transform.height > rows.start {
            columns.start / transform.width..columns.end.div_ceil(transform.width)
        } else {
            0..0
        }
    }

    #[inline(always)]
    fn block(&mut self, component: usize, row: usize, column: usize, block: &Block, last: usize) {
        /// Samples are coded less 128 (A.3.1), and a DC coefficient is 8 times a block's mean
        /// (A.3.3).
        const LEVEL_SHIFT: f32 = 128.0 * 8.0;

        let component = &mut self.components[component];
        let transform = component.transform;
        let mut dequantized = [0.0; 64];
        for (value, (coefficient, factor)) in dequantized
            .iter_mut()
            .zip(block.iter().zip(&component.quantization))
            .take(8 * transform.height.max(1))
        {
            *value = f32::from(*coefficient) * factor;
        }
        dequantized[0] += LEVEL_SHIFT;

        let start = row * transform.height * self.stride + column * transform.width;
        let plane = &mut component.plane[start..];
        transform.apply(&dequantized, last == 0, plane, self.stride);
    }

    fn finish_strip(&mut self, strip: usize, target: &mut Rows<'_>) {
        let channels = self.components.len();
        let columns = self.region.columns.clone();
        let first = strip * self.strip_rows;
        for y in self.rows_of(&(strip..strip + 1)) {
            let row = &mut target.row(y)[columns.start * channels..columns.end * channels];
            let y = y - first;
            if channels == 1 {
                for (pixel, gray) in row.iter_mut().zip(self.row(0, y)) {
                    *pixel = round(*gray);
                }
                continue;
            }
            let samples = [0, 1, 2].map(|component| self.row(component, y));
            match self.colours {
                Colours::YCbCr => interleave(row, samples, ycbcr_to_rgb),
                _ => interleave(row, samples, |rgb| rgb),
            }
        }
        self.strip = strip + 1;
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
