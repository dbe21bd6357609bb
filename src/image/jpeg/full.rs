//! The picture at its full size, to the bit as libjpeg and Pillow decode it.

use super::{
    colour::Colours, frame::Frame, huffman::Block, picture::Output, tables::Quantization,
    transform, upsample::Upsampling,
};

/// Turns the blocks of a strip (a row of MCUs) into rows of pixels.
///
/// Rows of pixels at the edge of a strip can depend on samples of the next one, so the last row of a
/// strip is written with the next strip.
pub(super) struct FullSize {
    colours: Colours,
    width: usize,
    height: usize,
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
    /// Pixels for each sample, vertically.
    high: usize,
    /// The size of the whole component.
    width: usize,
    height: usize,
}

impl FullSize {
    pub fn new(frame: &Frame, colours: Colours, quantization: &[Quantization]) -> Self {
        let components: Vec<_> = frame
            .components
            .iter()
            .zip(quantization)
            .map(|(component, quantization)| {
                let stride = frame.mcus_per_strip() * component.horizontal * 8;
                let strip_rows = component.vertical * 8;
                Component {
                    quantization: quantization.map(|value| value as i16),
                    upsampling: Upsampling::of(component, frame),
                    plane: vec![0; (1 + strip_rows) * stride],
                    stride,
                    strip_rows,
                    high: frame.v_max / component.vertical,
                    width: component.width,
                    height: component.height,
                }
            })
            .collect();
        let padded_width = frame.mcus_per_strip() * frame.h_max * 8;
        Self {
            colours,
            width: frame.width as usize,
            height: frame.height as usize,
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
            let below = y % component.high != 0;
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
                enlarged,
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
            let source = match component.upsampling {
                Upsampling::None => component.samples(y, strip),
                _ => &enlarged[..],
            };
            *samples = &source[..self.width];
        }
        self.colours
            .write_row(row, &samples[..self.components.len()]);
    }
}

impl Component {
    /// A row of the component's samples, while this strip is the current one.
    fn samples(&self, row: usize, strip: usize) -> &[u8] {
        // The first row of the plane is the last one of the previous strip.
        let start = (row + 1 - strip * self.strip_rows) * self.stride;
        &self.plane[start..start + self.width]
    }
}

impl Output for FullSize {
    fn last_of_interest(&self, _component: usize) -> usize {
        63
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

    fn finish_strip(&mut self, strip: usize, pixels: &mut [u8]) {
        let waits = usize::from(self.waits);
        let begin = (strip * self.strip_rows).saturating_sub(waits);
        let end = (strip + 1) * self.strip_rows;
        let end = if end >= self.height {
            self.height
        } else {
            end - waits
        };

        let row_bytes = pixels.len() / self.height;
        for y in begin..end {
            self.write_row(y, strip, &mut pixels[y * row_bytes..][..row_bytes]);
        }

        for component in &mut self.components {
            let last = component.strip_rows * component.stride;
            component
                .plane
                .copy_within(last..last + component.stride, 0);
        }
    }
}
