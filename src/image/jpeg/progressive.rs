//! The scans of progressive files that are coded by Huffman codes (ITU-T T.81, G.1.2 and G.2).
//!
//! Such a scan codes some bits of some coefficients: first the upper bits, which later scans refine
//! bit by bit.

use super::{
    bits::BitReader,
    dc_table::DcTable,
    huffman::{Block, SymbolTable, extend},
    scan::{EntropyDecoder, Fault, ScanHeader},
    sequential::{check, impossible_size, missing_table, restart},
    tables::Tables,
    zigzag::ZIGZAG,
};
use crate::image::ImageError;

/// Adds what one scan codes to the blocks.
pub(super) struct ProgressiveDecoder<'a> {
    bits: BitReader<'a>,
    step: Step,
    /// The lowest bit that is coded.
    low: u32,
    first: usize,
    last: usize,
    /// The number of blocks, from the next one on, whose remaining coefficients of the scan are
    /// coded together (G.1.2.2).
    end_of_band_run: u32,
}

enum Step {
    /// The upper bits of the DC coefficients. The tables are those of the scan's components.
    DcFirst {
        tables: Vec<DcTable>,
        predictors: [i32; 4],
    },
    /// One more bit of the DC coefficients.
    DcRefine,
    /// The upper bits of a range of AC coefficients.
    AcFirst(SymbolTable),
    /// One more bit of a range of AC coefficients.
    AcRefine(SymbolTable),
}

impl<'a> ProgressiveDecoder<'a> {
    pub fn new(
        encoded: &'a [u8],
        position: usize,
        scan: &ScanHeader,
        tables: &Tables,
    ) -> Result<Self, ImageError> {
        let step = if scan.first == 0 {
            if scan.high == 0 {
                let mut dc = Vec::with_capacity(scan.components.len());
                for component in &scan.components {
                    let codes = tables.dc[component.dc].as_ref().ok_or_else(missing_table)?;
                    dc.push(DcTable::new(codes).ok_or_else(impossible_size)?);
                }
                Step::DcFirst {
                    tables: dc,
                    predictors: [0; 4],
                }
            } else {
                Step::DcRefine
            }
        } else {
            let codes = tables.ac[scan.components[0].ac].as_ref();
            let table = SymbolTable::new(codes.ok_or_else(missing_table)?);
            if scan.high == 0 {
                Step::AcFirst(table)
            } else {
                Step::AcRefine(table)
            }
        };

        Ok(Self {
            bits: BitReader::at(encoded, position),
            step,
            low: scan.low,
            first: scan.first,
            last: scan.last,
            end_of_band_run: 0,
        })
    }
}

impl EntropyDecoder for ProgressiveDecoder<'_> {
    #[inline(always)]
    fn block(&mut self, component: usize, block: &mut Block) -> Result<usize, Fault> {
        match &mut self.step {
            Step::DcFirst { tables, predictors } => {
                let difference = tables[component].difference(&mut self.bits);
                let predictor = &mut predictors[component];
                *predictor = predictor.wrapping_add(difference.ok_or(Fault::Invalid)?);
                block[0] = predictor.wrapping_shl(self.low) as i16;
            }
            Step::DcRefine => {
                if self.bits.next_bit() {
                    block[0] |= 1 << self.low;
                }
            }
            Step::AcFirst(table) => {
                if self.end_of_band_run > 0 {
                    self.end_of_band_run -= 1;
                } else {
                    self.end_of_band_run = ac_first(
                        &mut self.bits,
                        table,
                        self.first..=self.last,
                        self.low,
                        block,
                    )
                    .ok_or(Fault::Invalid)?;
                }
            }
            Step::AcRefine(table) => {
                self.end_of_band_run = ac_refine(
                    &mut self.bits,
                    table,
                    self.first..=self.last,
                    self.low,
                    self.end_of_band_run,
                    block,
                )
                .ok_or(Fault::Invalid)?;
            }
        }
        Ok(63)
    }

    fn restart(&mut self, number: u8) -> Result<(), Fault> {
        self.end_of_band_run = 0;
        if let Step::DcFirst { predictors, .. } = &mut self.step {
            *predictors = [0; 4];
        }
        restart(&mut self.bits, number)
    }

    fn check(&self) -> Result<(), Fault> {
        check(&self.bits)
    }

    fn position(&self) -> usize {
        self.bits.position()
    }
}

/// Reads how many more blocks the end-of-band code with this symbol stands for.
#[inline(always)]
fn end_of_band_run(bits: &mut BitReader<'_>, symbol: u8) -> u32 {
    match u32::from(symbol >> 4) {
        0 => 0,
        size => (1 << size) + bits.take(size) as u32 - 1,
    }
}

/// Reads the upper bits of a block's coefficients; returns how many blocks after this one have no
/// more of them. `None` if the bits are invalid.
fn ac_first(
    source: &mut BitReader<'_>,
    table: &SymbolTable,
    band: std::ops::RangeInclusive<usize>,
    low: u32,
    block: &mut Block,
) -> Option<u32> {
    // A local copy can stay in registers.
    let mut bits = *source;
    let mut run = 0;
    let mut index = *band.start();
    while index <= *band.end() {
        bits.fill();
        let symbol = table.read(&mut bits)?;
        let (zeros, size) = (symbol >> 4, symbol & 15);
        if size == 0 && zeros < 15 {
            run = end_of_band_run(&mut bits, symbol);
            break;
        }
        index += usize::from(zeros);
        if size > 0 {
            if index > *band.end() {
                return None;
            }
            let value = extend(bits.take(size.into()), size);
            block[usize::from(ZIGZAG[index])] = value.wrapping_shl(low);
        }
        index += 1;
    }
    *source = bits;
    Some(run)
}

/// Reads one more bit of a block's coefficients (G.1.2.3): a bit for each that is known not to be 0,
/// and codes for those that become so. Returns how many blocks after this one have none that become
/// so; `run` is what this was for the previous block.
fn ac_refine(
    source: &mut BitReader<'_>,
    table: &SymbolTable,
    band: std::ops::RangeInclusive<usize>,
    low: u32,
    run: u32,
    block: &mut Block,
) -> Option<u32> {
    let bit = 1i16 << low;
    let refine = |bits: &mut BitReader<'_>, coefficient: &mut i16| {
        if bits.next_bit() && *coefficient & bit == 0 {
            let step = if *coefficient >= 0 { bit } else { -bit };
            *coefficient = coefficient.wrapping_add(step);
        }
    };

    let mut bits = *source;
    let mut index = *band.start();
    let mut blocks_left = run;
    while blocks_left == 0 && index <= *band.end() {
        bits.fill();
        let symbol = table.read(&mut bits)?;
        let (mut zeros, size) = (symbol >> 4, symbol & 15);
        let value = match size {
            0 if zeros < 15 => {
                // This block counts too.
                blocks_left = end_of_band_run(&mut bits, symbol) + 1;
                break;
            }
            0 => 0,
            1 if bits.take(1) != 0 => bit,
            1 => -bit,
            _ => return None,
        };

        // Passes over as many coefficients that stay 0 as the code says.
        loop {
            if index > *band.end() {
                if value != 0 {
                    return None;
                }
                break;
            }
            let coefficient = &mut block[usize::from(ZIGZAG[index])];
            index += 1;
            if *coefficient != 0 {
                refine(&mut bits, coefficient);
            } else if zeros > 0 {
                zeros -= 1;
            } else {
                *coefficient = value;
                break;
            }
        }
    }

    if blocks_left > 0 {
        // Most blocks that are left have no coefficients at all.
        let any = block[1..]
            .iter()
            .fold(0, |any, coefficient| any | coefficient);
        let end = if any == 0 { index } else { *band.end() + 1 };
        for place in &ZIGZAG[index..end] {
            let coefficient = &mut block[usize::from(*place)];
            if *coefficient != 0 {
                refine(&mut bits, coefficient);
            }
        }
        blocks_left -= 1;
    }
    *source = bits;
    Some(blocks_left)
}
