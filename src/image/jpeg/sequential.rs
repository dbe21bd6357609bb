//! The scans of sequential files that are coded by Huffman codes (ITU-T T.81, F.2.2).

use super::{
    bits::BitReader,
    damaged,
    huffman::{AcTable, Block, DcTable},
    marker,
    scan::{EntropyDecoder, Fault, ScanHeader},
    tables::Tables,
};
use crate::image::ImageError;

/// The data of which skipping a part repays the making of tables for it, in bytes.
const LONG_DATA: usize = 1 << 17;

/// Decodes whole blocks one after the other.
pub(super) struct SequentialDecoder<'a> {
    bits: BitReader<'a>,
    /// By destination.
    dc: [Option<DcTable>; 4],
    ac: [Option<AcTable>; 4],
    components: Vec<Component>,
}

struct Component {
    dc: usize,
    ac: usize,
    /// The last coefficient, in zigzag order, that is of interest.
    last: usize,
    /// The DC coefficient of the previous block: the prediction of the next one (A.3.5).
    predictor: i32,
}

impl<'a> SequentialDecoder<'a> {
    /// `last_of_interest` gives, by the index of a component in the frame, the last coefficient in
    /// zigzag order that has to be decoded.
    pub fn new(
        encoded: &'a [u8],
        position: usize,
        scan: &ScanHeader,
        tables: &Tables,
        last_of_interest: impl Fn(usize) -> usize,
    ) -> Result<Self, ImageError> {
        let mut decoder = Self {
            bits: BitReader::at(encoded, position),
            dc: Default::default(),
            ac: Default::default(),
            components: Vec::with_capacity(scan.components.len()),
        };
        let components = scan
            .components
            .iter()
            .map(|component| (component, last_of_interest(component.index)));
        let is_long = encoded.len() - position >= LONG_DATA;
        let may_skip = is_long || components.clone().any(|(_, last)| last < 63);
        for (component, last) in components {
            let (Some(dc), Some(ac)) = (&tables.dc[component.dc], &tables.ac[component.ac]) else {
                return Err(missing_table());
            };
            if decoder.dc[component.dc].is_none() {
                let table = DcTable::new(dc).ok_or_else(impossible_size)?;
                decoder.dc[component.dc] = Some(table);
            }
            decoder.ac[component.ac].get_or_insert_with(|| AcTable::new(ac, may_skip));
            decoder.components.push(Component {
                dc: component.dc,
                ac: component.ac,
                last,
                predictor: 0,
            });
        }
        Ok(decoder)
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
    fn block(&mut self, component: usize, block: &mut Block) -> Result<usize, Fault> {
        let component = &mut self.components[component];
        let (Some(dc), Some(ac)) = (&self.dc[component.dc], &self.ac[component.ac]) else {
            return Err(Fault::Invalid);
        };
        let read = match component.last {
            63 => ac.read(dc, &mut self.bits, block),
            last => ac.read_up_to(last, dc, &mut self.bits, block),
        };
        let (difference, last) = read.ok_or(Fault::Invalid)?;
        component.predictor = component.predictor.wrapping_add(difference);
        block[0] = component.predictor as i16;
        Ok(last)
    }

    #[inline(always)]
    fn skip(&mut self, component: usize) -> Result<(), Fault> {
        let component = &mut self.components[component];
        let (Some(dc), Some(ac)) = (&self.dc[component.dc], &self.ac[component.ac]) else {
            return Err(Fault::Invalid);
        };
        let difference = ac.skip(dc, &mut self.bits).ok_or(Fault::Invalid)?;
        component.predictor = component.predictor.wrapping_add(difference);
        Ok(())
    }

    fn restart(&mut self, number: u8) -> Result<(), Fault> {
        for component in &mut self.components {
            component.predictor = 0;
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
