//! The scans of sequential files that are coded by Huffman codes (ITU-T T.81, F.2.2).

use std::sync::Arc;

use super::{
    ac_table::AcTable,
    bits::BitReader,
    damaged,
    dc_table::DcTable,
    huffman::Block,
    marker,
    scan::{EntropyDecoder, Fault, ScanHeader},
    tables::Tables,
};
use crate::image::ImageError;

/// The data of which skipping a part repays the making of tables for it, in bytes.
const LONG_DATA: usize = 1 << 17;

/// The codes of a scan, made ready for decoding.
pub(super) struct Codes {
    dc: Vec<DcTable>,
    ac: Vec<Arc<AcTable>>,
    components: Vec<Choice>,
}

/// What is used for a component.
struct Choice {
    /// The tables, by their indices.
    dc: usize,
    ac: usize,
    /// The last coefficient, in zigzag order, that is of interest.
    last: usize,
}

impl Codes {
    /// For a scan with this many bytes of data. `last_of_interest` gives, by the index of a component
    /// in the frame, the last coefficient in zigzag order that has to be decoded.
    pub fn new(
        bytes: usize,
        scan: &ScanHeader,
        tables: &Tables,
        last_of_interest: impl Fn(usize) -> usize,
    ) -> Result<Self, ImageError> {
        let mut codes = Self {
            dc: Vec::with_capacity(2),
            ac: Vec::with_capacity(2),
            components: Vec::with_capacity(scan.components.len()),
        };
        let components = scan
            .components
            .iter()
            .map(|component| (component, last_of_interest(component.index)));
        let may_skip = bytes >= LONG_DATA || components.clone().any(|(_, last)| last < 63);
        // By destination.
        let [mut dc_made, mut ac_made] = [[None; 4]; 2];
        for (component, last) in components {
            let (Some(dc), Some(ac)) = (&tables.dc[component.dc], &tables.ac[component.ac]) else {
                return Err(missing_table());
            };
            let dc = match dc_made[component.dc] {
                Some(index) => index,
                None => {
                    codes.dc.push(DcTable::new(dc).ok_or_else(impossible_size)?);
                    codes.dc.len() - 1
                }
            };
            let ac = ac_made[component.ac].unwrap_or_else(|| {
                codes.ac.push(AcTable::of(ac, may_skip));
                codes.ac.len() - 1
            });
            dc_made[component.dc] = Some(dc);
            ac_made[component.ac] = Some(ac);
            codes.components.push(Choice { dc, ac, last });
        }
        Ok(codes)
    }
}

/// Decodes whole blocks one after the other.
pub(super) struct SequentialDecoder<'a> {
    bits: BitReader<'a>,
    components: Vec<Component<'a>>,
}

struct Component<'a> {
    dc: &'a DcTable,
    ac: &'a AcTable,
    last: usize,
    /// The DC coefficient of the previous block: the prediction of the next one (A.3.5).
    prediction: i32,
}

impl<'a> SequentialDecoder<'a> {
    /// Begins at this position, which is the first one of a restart interval.
    pub fn new(codes: &'a Codes, encoded: &'a [u8], position: usize) -> Self {
        let components = codes.components.iter().map(|choice| Component {
            dc: &codes.dc[choice.dc],
            ac: &codes.ac[choice.ac],
            last: choice.last,
            prediction: 0,
        });
        Self {
            bits: BitReader::at(encoded, position),
            components: components.collect(),
        }
    }
}

pub(super) fn missing_table() -> ImageError {
    damaged("a scan uses a Huffman table that is missing")
}

pub(super) fn impossible_size() -> ImageError {
    damaged("a Huffman table has a size that no coefficient can have")
}

impl EntropyDecoder for SequentialDecoder<'_> {
    #[inline(always)]
    fn block(&mut self, number: usize, block: &mut Block) -> Result<usize, Fault> {
        let Component {
            dc,
            ac,
            last,
            prediction,
        } = &mut self.components[number];
        let read = match *last {
            63 => ac.read(dc, &mut self.bits, prediction, block),
            last => ac.read_up_to(last, dc, &mut self.bits, prediction, block),
        };
        read.ok_or(Fault::Invalid)
    }

    #[inline(always)]
    fn skip(&mut self, number: usize) -> Result<(), Fault> {
        let Component {
            dc, ac, prediction, ..
        } = &mut self.components[number];
        let skipped = ac.skip(dc, &mut self.bits, prediction);
        skipped.ok_or(Fault::Invalid)
    }

    fn restart(&mut self, number: u8) -> Result<(), Fault> {
        for component in &mut self.components {
            component.prediction = 0;
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

/// Goes on after the restart marker of this number, which has to come next.
pub(super) fn restart(bits: &mut BitReader<'_>, number: u8) -> Result<(), Fault> {
    if bits.next_marker() == Some(marker::RST0 + number) {
        Ok(())
    } else {
        Err(Fault::Restart)
    }
}

pub(super) fn check(bits: &BitReader<'_>) -> Result<(), Fault> {
    if bits.overrun() {
        Err(Fault::EndsEarly)
    } else {
        Ok(())
    }
}
