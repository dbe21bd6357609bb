//! The picture at its full size, to the bit as libjpeg and Pillow decode it.

use std::ops::Range;

use super::{
    colour::Colours,
    huffman::Block,
    output::{Output, Picture, Region},
    transform,
    upsample::Upsampling,
};
use crate::image::rows::Rows;

/// Turns the blocks of a strip (a row of MCUs) into rows of pixels.
///
/// Rows of pixels at the edge of a strip can depend on samples of the next one, so the last row of a
/// strip is written with the next strip.
pub(super) struct FullSize {
    colours: Colours,
    height: usize,
    region: Region,
    /// The current strip.
    strip: usize,
    /// Rows of pixels in a strip.
    strip_rows: usize,
    /// Whether the last row of a strip depends on the next one.
    waits: bool,
    components: Vec<Component>,
    /// The enlarged rows, one for each component.
    rows: Vec<Vec<u8>>,
    /// Working memory of [`Upsampling::row`].
    sums: Vec<u16>,
}

struct Component {
    quantization: [i16; 64],
    upsampling: Upsampling,
    /// The samples of the strip, below the last row of the previous strip.
    plane: Vec<u8>,
    stride: usize,
    /// Rows of samples in a strip.
    strip_rows: usize,
    /// Rows of blocks in a strip.
    strip_blocks: usize,
    /// Pixels for each sample, horizontally and vertically.
    wide: usize,
    high: usize,
    /// The number of rows of the whole component.
    height: usize,
    /// The columns of samples that the region depends on, and the columns and rows of blocks.
    columns: Range<usize>,
    block_columns: Range<usize>,
    block_rows: Range<usize>,
}

/// The samples that these pixels depend on: their own, and the neighbours that can have a part in
/// them.
fn samples_of(pixels: &Range<usize>, pixels_per_sample: usize, samples: usize) -> Range<usize> {
    let first = pixels.start / pixels_per_sample;
    let last = (pixels.end - 1) / pixels_per_sample;
    first.saturating_sub(1)..(last + 2).min(samples)
}

/// The blocks that these samples are in.
fn blocks_of(samples: &Range<usize>) -> Range<usize> {
    samples.start / 8..samples.end.div_ceil(8)
}

impl FullSize {
    /// `region` must not be empty.
    pub fn new(picture: &Picture, colours: Colours, region: Region) -> Self {
        let Picture {
            frame,
            quantization,
            ..
        } = picture;
        let components: Vec<_> = frame
            .components
            .iter()
            .zip(quantization)
            .map(|(component, quantization)| {
                let stride = frame.mcus_per_strip() * component.horizontal * 8;
                let strip_rows = component.vertical * 8;
                let wide = frame.h_max / component.horizontal;
                let high = frame.v_max / component.vertical;
                let columns = samples_of(&region.columns, wide, component.width);
                let rows = samples_of(&region.rows, high, component.height);
                Component {
                    quantization: quantization.map(|value| value as i16),
                    upsampling: Upsampling::of(component, frame),
                    plane: vec![0; (1 + strip_rows) * stride],
                    stride,
                    strip_rows,
                    strip_blocks: component.vertical,
                    wide,
                    high,
                    height: component.height,
                    block_columns: blocks_of(&columns),
                    block_rows: blocks_of(&rows),
                    columns,
                }
            })
            .collect();
        let padded_width = frame.mcus_per_strip() * frame.h_max * 8;
        Self {
            colours,
            height: frame.height as usize,
            region,
            strip: 0,
            strip_rows: frame.v_max * 8,
            waits: components
                .iter()
                .any(|component| component.upsampling.interpolates_rows()),
            rows: vec![vec![0; padded_width]; components.len()],
            sums: vec![0; padded_width],
            components,
        }
    }

    fn write_row(&mut self, y: usize, strip: usize, row: &mut [u8]) {
        for (component, enlarged) in self.components.iter().zip(&mut self.rows) {
            if component.upsampling == Upsampling::None {
                continue;
            }
            let nearest = y / component.high;
            let below = !y.is_multiple_of(component.high);
            let other = if below {
                (nearest + 1).min(component.height - 1)
            } else {
                nearest.saturating_sub(1)
            };
            let other = if component.upsampling.interpolates_rows() {
                other
            } else {
                nearest
            };
            component.upsampling.row(
                &mut enlarged[component.wide * component.columns.start..],
                component.samples(nearest, strip),
                component.samples(other, strip),
                below,
                &mut self.sums,
            );
        }

        let mut samples: [&[u8]; 4] = [&[]; 4];
        for ((samples, component), enlarged) in
            samples.iter_mut().zip(&self.components).zip(&self.rows)
        {
            let Region { columns, .. } = &self.region;
            *samples = match component.upsampling {
                Upsampling::None => component.row(y, strip, columns),
                _ => &enlarged[columns.clone()],
            };
        }
        self.colours
            .write_row(row, &samples[..self.components.len()]);
    }
}

impl Component {
    /// The samples of a row that the region depends on, while this strip is the current one.
    fn samples(&self, row: usize, strip: usize) -> &[u8] {
        self.row(row, strip, &self.columns)
    }

    fn row(&self, row: usize, strip: usize, columns: &Range<usize>) -> &[u8] {
        // The first row of the plane is the last one of the previous strip.
        let start = (row + 1 - strip * self.strip_rows) * self.stride;
        &self.plane[start..][columns.clone()]
    }
}

impl Output for FullSize {
    fn last_of_interest(&self, _component: usize) -> usize {
        63
    }

    fn depends_on(&self) -> usize {
        usize::from(self.waits)
    }

    fn rows_of(&self, strips: &Range<usize>) -> Range<usize> {
        let waits = usize::from(self.waits);
        let begin = (strips.start * self.strip_rows).saturating_sub(waits);
        let end = strips.end * self.strip_rows;
        let end = if end >= self.height {
            self.height
        } else {
            end - waits
        };
        let begin = begin.max(self.region.rows.start);
        begin..end.min(self.region.rows.end).max(begin)
    }

    fn begin_at(&mut self, strip: usize) {
        self.strip = strip;
    }

    fn needed_columns(&self, component: usize, row: usize) -> Range<usize> {
        let component = &self.components[component];
        if component
            .block_rows
            .contains(&(self.strip * component.strip_blocks + row))
        {
            component.block_columns.clone()
        } else {
            0..0
        }
    }

    #[inline(always)]
    fn block(&mut self, component: usize, row: usize, column: usize, block: &Block, last: usize) {
        let component = &mut self.components[component];
        let start = (1 + 8 * row) * component.stride + 8 * column;
        transform::inverse(
            block,
            &component.quantization,
            last,
            &mut component.plane[start..],
            component.stride,
        );
    }

    fn finish_strip(&mut self, strip: usize, target: &mut Rows<'_>) {
        let channels = self.colours.layout(self.components.len()).channels();
        let columns = self.region.columns.clone();
        for y in self.rows_of(&(strip..strip + 1)) {
            let row = &mut target.row(y)[columns.start * channels..columns.end * channels];
            self.write_row(y, strip, row);
        }
        self.strip = strip + 1;

        for component in &mut self.components {
            let last = component.strip_rows * component.stride;
            component
                .plane
                .copy_within(last..last + component.stride, 0);
        }
    }
}
