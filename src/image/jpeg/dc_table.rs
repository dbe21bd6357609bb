//! Decodes the DC coefficients of blocks (ITU-T T.81, F.2.2.1).

use super::{
    bits::BitReader,
    huffman::{Coded, HuffmanCodes, LONGEST, offset},
};

/// How many bits the table looks at.
const BITS: u32 = 10;

/// A table for DC coefficients, which are the first of their blocks.
pub(super) struct DcTable {
    codes: HuffmanCodes,
    entries: Box<[Entry; 1 << BITS]>,
}

/// How long a symbol and its value are, in bits; 0 if the table does not tell.
#[derive(Clone, Copy, Default)]
struct Entry {
    bits: u8,
    /// The size of the value.
    size: u8,
    /// What is added to the value's bits.
    offset: i16,
}

impl Entry {
    /// The symbol at the beginning of a window of [`BITS`] bits.
    fn new(coded: Coded, window: usize) -> Self {
        if coded.length == 0 || !coded.shows_sign(BITS) || coded.bits() > LONGEST {
            return Self::default();
        }
        let is_positive = window << coded.length & 1 << (BITS - 1) != 0;
        Self {
            bits: coded.bits() as u8,
            size: coded.size() as u8,
            offset: offset(coded.size(), is_positive),
        }
    }
}

impl DcTable {
    /// `None` if a symbol has upper bits, which DC coefficients do not use.
    pub fn new(codes: &HuffmanCodes) -> Option<Self> {
        if !codes.all(|size| size < 16) {
            return None;
        }
        let mut entries = Box::new([Entry::default(); 1 << BITS]);
        let table = codes.table(BITS);
        for (window, (entry, coded)) in entries.iter_mut().zip(table).enumerate() {
            *entry = Entry::new(coded, window);
        }
        Some(Self {
            entries,
            codes: codes.clone(),
        })
    }

    /// Reads the difference from the DC coefficient of the previous block. Of the bits that are
    /// topped up for it, at most [`LONGEST`] are gone afterwards.
    #[inline(always)]
    pub fn difference(&self, bits: &mut BitReader<'_>) -> Option<i32> {
        bits.top_up();
        let entry = self.entries[bits.peek(BITS)];
        let (count, size) = (u32::from(entry.bits), u32::from(entry.size));
        if count == 0 {
            // The symbol 0, which would end a block of AC coefficients, is a difference of 0 here.
            let (step, rest) = self.codes.read_step(*bits, 1)?;
            *bits = rest;
            return Some(step.value.into());
        }
        let value = (bits.peek_last(count, size) as i16).wrapping_add(entry.offset);
        bits.consume(count);
        Some(value.into())
    }
}
