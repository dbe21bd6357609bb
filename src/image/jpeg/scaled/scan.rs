//! The single scan of a sequential file, decoded strip by strip.

use super::{
    Scale,
    bits::BitReader,
    huffman::{AcTable, DcTable},
    tables::Tables,
    transform::InverseTransform,
};
use crate::image::jpeg::{
    header::{Component, Header},
    marker,
};

/// A component of the scan, with its tables and its part of the current strip.
struct ScanComponent<'a> {
    /// Blocks per MCU, horizontally and vertically.
    horizontal: usize,
    vertical: usize,
    quantization: &'a [f32; 64],
    dc: &'a DcTable,
    ac: &'a AcTable,
    transform: InverseTransform,
    /// The DC coefficient of the previous block, still quantized: the prediction of the next one
    /// (A.3.5).
    predictor: i32,
    /// The decoded samples of the current strip.
    plane: Vec<f32>,
}

/// Decodes a scan by strips: a strip is one row of MCUs across the width of the picture.
pub(super) struct ScanDecoder<'a> {
    bits: BitReader<'a>,
    components: Vec<ScanComponent<'a>>,
    mcus_per_strip: usize,
    /// Rows of pixels per strip, after scaling.
    strip_rows: usize,
    /// Samples from one row of a plane to the next. All planes have the same size.
    stride: usize,
    restart_interval: usize,
    /// MCUs before the next restart marker.
    until_restart: usize,
    /// The number, modulo 8, of the next restart marker.
    next_restart: u8,
}

impl<'a> ScanDecoder<'a> {
    /// `None` if the scan does not hold all components completely, if one of their tables is
    /// missing, or if their sampling factors are unusual.
    pub fn new(
        encoded: &'a [u8],
        header: &Header,
        tables: &'a Tables,
        scale: Scale,
    ) -> Option<Self> {
        // The scan header (B.2.3): the number of components, two bytes for each, and the selection
        // of coefficients, which is all of them in a sequential file.
        let (count, entries) = tables.scan_header.split_first()?;
        let (entries, selection) = entries.split_at_checked(2 * usize::from(*count))?;
        if usize::from(*count) != header.components.len() || selection != [0, 63, 0] {
            return None;
        }

        let sampling = sampling_factors(header);
        let h_max = sampling.iter().map(|(h, _)| *h).max().unwrap_or(1);
        let v_max = sampling.iter().map(|(_, v)| *v).max().unwrap_or(1);
        let mcus_per_strip = (header.width as usize).div_ceil(8 * h_max);
        let stride = mcus_per_strip * h_max * scale.block_side();
        let strip_rows = v_max * scale.block_side();

        let mut components = Vec::with_capacity(header.components.len());
        for ((component, &[id, table_destinations]), (horizontal, vertical)) in header
            .components
            .iter()
            .zip(entries.as_chunks().0)
            .zip(sampling)
        {
            if component.id != id || h_max % horizontal != 0 || v_max % vertical != 0 {
                return None;
            }
            // Subsampled components are scaled down less, so that all planes get the same size.
            let width = scale.block_side() * h_max / horizontal;
            let height = scale.block_side() * v_max / vertical;
            let dc_destination = usize::from(table_destinations >> 4);
            let ac_destination = usize::from(table_destinations & 15);
            components.push(ScanComponent {
                horizontal,
                vertical,
                quantization: tables
                    .quantization
                    .get(usize::from(component.quantization))?
                    .as_ref()?,
                dc: tables.dc.get(dc_destination)?.as_ref()?,
                ac: tables.ac.get(ac_destination)?.as_ref()?,
                transform: InverseTransform::new(width, height)?,
                predictor: 0,
                plane: vec![0.0; stride * strip_rows],
            });
        }

        Some(Self {
            bits: BitReader::new(&encoded[header.scan..]),
            components,
            mcus_per_strip,
            strip_rows,
            stride,
            restart_interval: tables.restart_interval,
            until_restart: tables.restart_interval,
            next_restart: 0,
        })
    }

    /// Rows of pixels per strip, after scaling.
    pub fn strip_rows(&self) -> usize {
        self.strip_rows
    }

    /// A component's samples in row `y` of the current strip and all rows after it.
    pub fn row(&self, component: usize, y: usize) -> &[f32] {
        &self.components[component].plane[y * self.stride..]
    }

    /// Decodes the next strip; `None` if the data is damaged or ends early.
    pub fn decode_strip(&mut self) -> Option<()> {
        let mut block = [0.0; 64];
        for mcu in 0..self.mcus_per_strip {
            if self.restart_interval != 0 {
                if self.until_restart == 0 {
                    self.restart()?;
                }
                self.until_restart -= 1;
            }
            for component in &mut self.components {
                component.decode_mcu(&mut self.bits, mcu, self.stride, &mut block)?;
            }
        }

        if self.bits.overrun() { None } else { Some(()) }
    }

    /// Starts the next restart interval (E.2.4); `None` if its marker is missing.
    fn restart(&mut self) -> Option<()> {
        if self.bits.next_marker()? != marker::RST0 + self.next_restart {
            return None;
        }
        self.next_restart = (self.next_restart + 1) % 8;
        self.until_restart = self.restart_interval;
        for component in &mut self.components {
            component.predictor = 0;
        }
        Some(())
    }

    /// Whether the end-of-image marker follows the MCUs decoded so far.
    pub fn reached_end_of_image(mut self) -> bool {
        self.bits.next_marker() == Some(marker::EOI)
    }
}

/// The horizontal and vertical sampling factors of each component. The blocks of a single component
/// follow each other whatever its factors (A.2.2).
fn sampling_factors(header: &Header) -> Vec<(usize, usize)> {
    match &header.components[..] {
        [_] => vec![(1, 1)],
        components => {
            let factors = |c: &Component| (usize::from(c.horizontal), usize::from(c.vertical));
            components.iter().map(factors).collect()
        }
    }
}

impl ScanComponent<'_> {
    /// Decodes this component's blocks of MCU number `mcu` of the strip; `block` is working memory.
    #[inline(always)]
    fn decode_mcu(
        &mut self,
        bits: &mut BitReader<'_>,
        mcu: usize,
        stride: usize,
        block: &mut [f32; 64],
    ) -> Option<()> {
        /// Samples are coded less 128 (A.3.1), and a DC coefficient is 8 times a block's mean
        /// (A.3.3).
        const LEVEL_SHIFT: f32 = 128.0 * 8.0;

        let InverseTransform {
            width,
            height,
            last,
            ..
        } = self.transform;
        for row in 0..self.vertical {
            for column in 0..self.horizontal {
                block[..=last].fill(0.0);
                self.predictor = self.predictor.wrapping_add(self.dc.difference(bits)?);
                let any_ac = self.ac.read(bits, self.quantization, last, block)?;
                block[0] = self.predictor as f32 * self.quantization[0] + LEVEL_SHIFT;

                let start = row * height * stride + (mcu * self.horizontal + column) * width;
                self.transform
                    .apply(block, !any_ac, &mut self.plane[start..], stride);
            }
        }
        Some(())
    }
}
