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

/// The codes of a scan, made ready for decoding.
pub(super) struct Codes {
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
            dc: Default::default(),
            ac: Default::default(),
            components: Vec::with_capacity(scan.components.len()),
        };
        let components = scan
            .components
            .iter()
            .map(|component| (component, last_of_interest(component.index)));
        let may_skip = bytes >= LONG_DATA || components.clone().any(|(_, last)| last < 63);
        for (component, last) in components {
            let (Some(dc), Some(ac)) = (&tables.dc[component.dc], &tables.ac[component.ac]) else {
                return Err(missing_table());
            };
            if codes.dc[component.dc].is_none() {
                let table = DcTable::new(dc).ok_or_else(impossible_size)?;
                codes.dc[component.dc] = Some(table);
            }
            codes.ac[component.ac].get_or_insert_with(|| AcTable::new(ac, may_skip));
            codes.components.push(Component {
                dc: component.dc,
                ac: component.ac,
                last,
            });
        }
        Ok(codes)
    }

    #[inline(always)]
    fn of(&self, component: &Component) -> Result<(&DcTable, &AcTable), Fault> {
        match (&self.dc[component.dc], &self.ac[component.ac]) {
            (Some(dc), Some(ac)) => Ok((dc, ac)),
            _ => Err(Fault::Invalid),
        }
    }
}

/// Decodes whole blocks one after the other.
pub(super) struct SequentialDecoder<'a> {
    bits: BitReader<'a>,
    codes: &'a Codes,
    /// The DC coefficient of the previous block of each component: the prediction of the next one
    /// (A.3.5).
    predictors: Vec<i32>,
}

impl<'a> SequentialDecoder<'a> {
    /// Begins at this position, which is the first one of a restart interval.
    pub fn new(codes: &'a Codes, encoded: &'a [u8], position: usize) -> Self {
        Self {
            bits: BitReader::at(encoded, position),
            codes,
            predictors: vec![0; codes.components.len()],
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
        let component = &self.codes.components[number];
        let (dc, ac) = self.codes.of(component)?;
        let read = match component.last {
            63 => ac.read(dc, &mut self.bits, block),
            last => ac.read_up_to(last, dc, &mut self.bits, block),
        };
        let (difference, last) = read.ok_or(Fault::Invalid)?;
        let predictor = &mut self.predictors[number];
        *predictor = predictor.wrapping_add(difference);
        block[0] = *predictor as i16;
        Ok(last)
    }

    #[inline(always)]
    fn skip(&mut self, number: usize) -> Result<(), Fault> {
        let (dc, ac) = self.codes.of(&self.codes.components[number])?;
        let difference = ac.skip(dc, &mut self.bits).ok_or(Fault::Invalid)?;
        let predictor = &mut self.predictors[number];
        *predictor = predictor.wrapping_add(difference);
        Ok(())
    }

    fn restart(&mut self, number: u8) -> Result<(), Fault> {
        self.predictors.fill(0);
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
