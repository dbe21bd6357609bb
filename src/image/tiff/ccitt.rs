//! CCITT's facsimile compressions of bilevel images: modified Huffman, group 3 (ITU-T T.4) and
//! group 4 (ITU-T T.6).
//!
//! A row is a list of the columns where the colour changes, beginning with white. Every code takes
//! bits off the input and is read once, and the search in the row above only moves forward, so the
//! work is bounded by the input and the output.

use std::io::{self, Read};

use fax::{
    BitReader,
    maps::{Mode, black, mode, white},
};

/// How rows are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// Runs only; every row begins at a multiple of this many bits.
    Runs { align: usize },
    /// Runs, or for some rows differences to the row above, with marks between rows.
    Group3 { two_dimensional: bool },
    /// Differences to the row above.
    Group4,
}

/// Decodes rows of one bit per pixel, the first in the highest bit: 0 is white and 1 is black.
pub(super) struct Ccitt<'a> {
    bits: Bits<'a>,
    coding: Coding,
    width: u32,
    /// Where the colour changes in the row above.
    above: Vec<u32>,
    /// Where it changes in the current row.
    changes: Vec<u32>,
    row: Vec<u8>,
    /// What has been read of `row`.
    read: usize,
}

impl<'a> Ccitt<'a> {
    pub fn new(data: &'a [u8], coding: Coding, width: u32) -> Self {
        let bytes = width.div_ceil(8) as usize;
        Self {
            bits: Bits { data, position: 0 },
            coding,
            width,
            above: Vec::new(),
            changes: Vec::new(),
            row: vec![0; bytes],
            read: bytes,
        }
    }

    /// Decodes the next row; `None` where the data is damaged or ends.
    fn advance(&mut self) -> Option<()> {
        std::mem::swap(&mut self.above, &mut self.changes);
        self.changes.clear();
        match self.coding {
            Coding::Runs { align } => {
                self.bits.position = self.bits.position.next_multiple_of(align);
                self.read_runs()
            }
            Coding::Group3 { two_dimensional } => {
                // At the end of the page such a mark is repeated, and then no row follows.
                let marked = self.bits.skip_end_of_line();
                if two_dimensional && marked && !self.bits.next_bit()? {
                    self.read_differences()
                } else {
                    self.read_runs()
                }
            }
            Coding::Group4 => self.read_differences(),
        }?;
        self.paint();
        Some(())
    }

    /// Adds a change of colour. Two at the same column cancel each other out.
    fn change(&mut self, column: u32) {
        if self.changes.last() == Some(&column) {
            self.changes.pop();
        } else {
            self.changes.push(column);
        }
    }

    fn read_runs(&mut self) -> Option<()> {
        let mut column = 0;
        let mut is_black = false;
        while column < self.width {
            column = column.checked_add(self.bits.run(is_black)?)?;
            if column > self.width {
                return None;
            }
            self.change(column);
            is_black = !is_black;
        }
        Some(())
    }

    fn read_differences(&mut self) -> Option<()> {
        let mut column = 0;
        let mut at_start = true;
        let mut is_black = false;
        // Of the changes above, those before this index are left of the current column.
        let mut next_above = 0;
        while column < self.width {
            // T.6 calls it b1: the next change above to the other colour.
            let mut index = next_above;
            while self
                .above
                .get(index)
                .is_some_and(|&change| change < column || (change == column && !at_start))
            {
                index += 1;
            }
            next_above = index;
            if index % 2 != usize::from(is_black) {
                index += 1;
            }
            let change_above = self.above.get(index).copied().unwrap_or(self.width);

            match mode::decode(&mut self.bits)? {
                Mode::Pass => {
                    column = self.above.get(index + 1).copied().unwrap_or(self.width);
                }
                Mode::Horizontal => {
                    for colour in [is_black, !is_black] {
                        column = column.checked_add(self.bits.run(colour)?)?;
                        if column > self.width {
                            return None;
                        }
                        self.change(column);
                    }
                }
                Mode::Vertical(delta) => {
                    let change = change_above.checked_add_signed(delta.into())?;
                    if change < column || change > self.width {
                        return None;
                    }
                    column = change;
                    self.change(column);
                    is_black = !is_black;
                }
                Mode::Extension | Mode::EOF => return None,
            }
            at_start = false;
        }
        Some(())
    }

    /// Sets the bits of the row.
    fn paint(&mut self) {
        self.row.fill(0);
        for pair in self.changes.chunks(2) {
            let end = pair.get(1).copied().unwrap_or(self.width);
            paint_black(&mut self.row, pair[0] as usize, end as usize);
        }
        self.read = 0;
    }
}

/// Sets the bits from `start` to before `end`.
fn paint_black(row: &mut [u8], start: usize, end: usize) {
    if start >= end {
        return;
    }
    let (first, last) = (start / 8, (end - 1) / 8);
    let from_start = 0xff >> (start % 8);
    let to_end = 0xff << (7 - (end - 1) % 8);
    if first == last {
        row[first] |= from_start & to_end;
    } else {
        row[first] |= from_start;
        row[first + 1..last].fill(0xff);
        row[last] |= to_end;
    }
}

impl Read for Ccitt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.row.len() && self.advance().is_none() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the facsimile code is damaged or ends early",
            ));
        }
        let rest = &self.row[self.read..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.read += length;
        Ok(length)
    }
}

/// The compressed data, bit by bit from the highest one of each byte.
struct Bits<'a> {
    data: &'a [u8],
    position: usize,
}

impl Bits<'_> {
    /// The length of a run: codes for multiples of 64, and one for the rest.
    fn run(&mut self, is_black: bool) -> Option<u32> {
        let mut length = 0u32;
        loop {
            let part = if is_black {
                black::decode(self)?
            } else {
                white::decode(self)?
            };
            length = length.checked_add(part.into())?;
            if part < 64 {
                return Some(length);
            }
        }
    }

    fn next_bit(&mut self) -> Option<bool> {
        let bit = self.peek(1)? != 0;
        self.consume(1).ok()?;
        Some(bit)
    }

    /// Skips the mark between rows, at least eleven zeros and a one, if it comes next.
    fn skip_end_of_line(&mut self) -> bool {
        const ZEROS: u8 = 11;
        if self.peek(ZEROS) != Some(0) {
            return false;
        }
        while self.position < 8 * self.data.len() {
            if self.next_bit() == Some(true) {
                return true;
            }
        }
        false
    }
}

impl BitReader for Bits<'_> {
    type Error = ();

    /// Beyond the end there are zeros, but they cannot be consumed.
    fn peek(&self, bits: u8) -> Option<u16> {
        let start = self.position / 8;
        let byte = |offset: usize| u32::from(self.data.get(start + offset).copied().unwrap_or(0));
        let window = byte(0) << 16 | byte(1) << 8 | byte(2);
        let shift = 24 - self.position % 8 - usize::from(bits);
        Some(((window >> shift) & ((1 << bits) - 1)) as u16)
    }

    fn consume(&mut self, bits: u8) -> Result<(), ()> {
        self.position += usize::from(bits);
        if self.position > 8 * self.data.len() {
            return Err(());
        }
        Ok(())
    }

    fn bits_to_byte_boundary(&self) -> u8 {
        (self.position.next_multiple_of(8) - self.position) as u8
    }
}
