//! Huffman codes (ITU-T T.81, annex C) and what they stand for (F.1.2).
//!
//! A Huffman code stands for a symbol of one byte. Its lower four bits are the size of the value
//! that follows the code, in bits; for AC coefficients, its upper four bits are the number of zero
//! coefficients before that value.

use super::bits::{BitReader, TOPPED_UP};

/// The symbol for the end of the block: all remaining coefficients are 0.
const END_OF_BLOCK: u8 = 0x00;
/// The symbol for sixteen zeros that are not followed by a value.
const SIXTEEN_ZEROS: u8 = 0xf0;

/// The longest code with its value that tables take, in bits: almost all are shorter, and so many of
/// this length can be decoded before bits have to be topped up.
pub(super) const LONGEST: u32 = 18;
/// How many times a table can be looked into after bits have been topped up.
pub(super) const LOOKUPS: u32 = TOPPED_UP / LONGEST;

/// The coefficients of a block, row by row, as they are coded: not yet dequantized.
pub(super) type Block = [i16; 64];

/// A decoded symbol with its value: one coefficient, or the end of the block.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub value: i16,
    /// Zero coefficients before this one; [`Step::END`] at the end of the block.
    pub zeros: u8,
}

impl Step {
    pub const END: u8 = 64;

    /// What a symbol stands for that is followed by these bits, where the value is the last of them;
    /// `None` if it stands for nothing.
    fn new(symbol: u8, bits: u32) -> Option<Self> {
        let (zeros, size) = (symbol >> 4, symbol & 15);
        match symbol {
            END_OF_BLOCK => Some(Self {
                value: 0,
                zeros: Self::END,
            }),
            SIXTEEN_ZEROS => Some(Self {
                value: 0,
                zeros: 15,
            }),
            _ if size == 0 => None,
            _ => Some(Self {
                value: extend((bits & ((1 << size) - 1)) as usize, size),
                zeros,
            }),
        }
    }
}

/// A symbol at the beginning of a window of bits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Coded {
    pub symbol: u8,
    /// The length of its code in bits; 0 in a table means that it is longer than the window.
    pub length: u8,
}

impl Coded {
    /// The size of the value that follows, in bits.
    pub fn size(self) -> u32 {
        u32::from(self.symbol & 15)
    }

    /// The length of the code and the value, in bits.
    pub fn bits(self) -> u32 {
        u32::from(self.length) + self.size()
    }

    /// Whether the code fits into so many bits, and the bit after it, which tells the sign of the
    /// value if there is one.
    pub fn shows_sign(self, bits: u32) -> bool {
        u32::from(self.length) + self.size().min(1) <= bits
    }

    /// What it stands for, at the beginning of a window of so many bits; `None` if that is nothing, or
    /// if the code is longer than a table knows. Of a value that does not fit into the window, the
    /// bits that are missing are taken for zeros.
    pub fn step(self, window: usize, width: u32) -> Option<Step> {
        if self.length == 0 {
            return None;
        }
        let bits = (window as u64) << (64 - width) >> (64 - self.bits());
        Step::new(self.symbol, bits as u32)
    }
}

/// The Huffman codes of one table. They are canonical: codes of equal length are consecutive
/// numbers, so their counts by length define them (C.2).
#[derive(Clone, PartialEq, Eq)]
pub(super) struct HuffmanCodes {
    /// By length: the first 16-bit window that is greater than all windows that begin with a code
    /// of at most this length.
    upper_bound: [u32; 17],
    /// By length: the index of a code's symbol, less the code.
    symbol_offset: [i32; 17],
    symbols: Vec<u8>,
}

impl HuffmanCodes {
    /// `counts[i]` codes are `i + 1` bits long. `None` if there are more codes of a length than
    /// fit, or not as many symbols as codes.
    pub fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        let mut codes = Self {
            upper_bound: [0; 17],
            symbol_offset: [0; 17],
            symbols: symbols.to_vec(),
        };

        let mut code = 0;
        let mut index = 0;
        for (length, count) in (1..).zip(counts) {
            codes.symbol_offset[length] = index - code;
            index += i32::from(*count);
            code += i32::from(*count);
            if code > 1 << length {
                return None;
            }
            codes.upper_bound[length] = (code as u32) << (16 - length);
            code <<= 1;
        }

        if index as usize == symbols.len() {
            Some(codes)
        } else {
            None
        }
    }

    /// The symbol of the code that a window of 16 bits begins with, and the code's length in bits,
    /// which is at least `shortest`.
    fn symbol(&self, window: usize, shortest: usize) -> Option<(u8, u32)> {
        let length = (shortest..=16).find(|length| (window as u32) < self.upper_bound[*length])?;
        let index = (window >> (16 - length)) as i32 + self.symbol_offset[length];
        Some((*self.symbols.get(index as usize)?, length as u32))
    }

    /// By the next `width` bits, the symbol whose code they begin with.
    pub fn table(&self, width: u32) -> Vec<Coded> {
        let mut table = vec![Coded::default(); 1 << width];
        for length in 1..=width {
            let bound = |length: u32| (self.upper_bound[length as usize] >> (16 - width)) as usize;
            let windows = bound(length - 1)..bound(length);
            let first_code = (windows.start >> (width - length)) as i32;
            let first_index = first_code + self.symbol_offset[length as usize];
            let codes = table[windows].chunks_exact_mut(1 << (width - length));
            for (entries, symbol) in codes.zip(&self.symbols[first_index as usize..]) {
                entries.fill(Coded {
                    symbol: *symbol,
                    length: length as u8,
                });
            }
        }
        table
    }

    /// Whether every symbol meets a condition.
    pub fn all(&self, condition: impl Fn(u8) -> bool) -> bool {
        self.symbols.iter().all(|symbol| condition(*symbol))
    }

    /// Reads the next symbol, whose code has at least `shortest` bits, with its value from bits that
    /// have been topped up, and tops them up again; `None` if they are invalid.
    // Not inlined, for it is seldom needed; its callers keep the reader in registers.
    #[cold]
    #[inline(never)]
    pub fn read_step<'a>(
        &self,
        mut bits: BitReader<'a>,
        shortest: usize,
    ) -> Option<(Step, BitReader<'a>)> {
        let (symbol, length) = self.symbol(bits.peek(16), shortest)?;
        let coded = Coded {
            symbol,
            length: length as u8,
        };
        let step = coded.step(bits.peek(32), 32)?;
        bits.consume(coded.bits());
        bits.top_up();
        Some((step, bits))
    }
}

/// The value that `size` bits stand for (F.2.2.1, procedure EXTEND): those that begin with a 0 are
/// negative.
pub(super) fn extend(bits: usize, size: u8) -> i16 {
    let negative = bits >> (size - 1) == 0;
    let offset = if negative { (1 << size) - 1 } else { 0 };
    (bits as i32 - offset) as i16
}

/// What has to be added to the bits of a value of this size to get the value (F.2.2.1), where
/// `is_positive` is its first bit.
pub(super) fn offset(size: u32, is_positive: bool) -> i16 {
    if is_positive {
        0
    } else {
        (1 - (1 << size)) as i16
    }
}

/// A table of symbols alone, for the scans of progressive files, in which symbols mean other things
/// than in sequential ones.
pub(super) struct SymbolTable {
    codes: HuffmanCodes,
    symbols: Vec<Coded>,
}

impl SymbolTable {
    const BITS: u32 = 10;

    pub fn new(codes: &HuffmanCodes) -> Self {
        Self {
            symbols: codes.table(Self::BITS),
            codes: codes.clone(),
        }
    }

    /// Reads the next symbol from filled bits; `None` if they are invalid.
    #[inline(always)]
    pub fn read(&self, bits: &mut BitReader<'_>) -> Option<u8> {
        let (symbol, length) = match self.symbols[bits.peek(Self::BITS)] {
            Coded { length: 0, .. } => self.codes.symbol(bits.peek(16), Self::BITS as usize + 1)?,
            Coded { symbol, length } => (symbol, length.into()),
        };
        bits.consume(length);
        Some(symbol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_cannot_be_are_rejected() {
        assert!(
            HuffmanCodes::new(&[3; 16], &[0; 48]).is_none(),
            "three codes of one bit"
        );
        assert!(
            HuffmanCodes::new(&[1; 16], &[0; 15]).is_none(),
            "fewer symbols than codes"
        );
    }

    #[test]
    fn tables_know_the_codes_that_fit() {
        let counts = [0, 2, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let codes = HuffmanCodes::new(&counts, &[7, 8, 9, 10, 11]).unwrap();
        for width in [3, 4, 5, 10, 12] {
            for (window, coded) in codes.table(width).into_iter().enumerate() {
                let expected = codes.symbol(window << (16 - width), 1);
                let expected = expected.filter(|(_, length)| *length <= width);
                let got = (coded.length != 0).then_some((coded.symbol, coded.length.into()));
                assert_eq!(got, expected, "{window:b} of {width} bits");
            }
        }
    }

    #[test]
    fn an_offset_makes_values_of_bits() {
        for size in 1..=15u8 {
            let first_bit = 1 << (size - 1);
            for bits in [0, 1, first_bit - 1, first_bit, (1 << size) - 1] {
                let value = bits as i16 + offset(size.into(), bits & first_bit != 0);
                assert_eq!(value, extend(bits, size), "{bits} of {size} bits");
            }
        }
    }

    #[test]
    fn values_are_extended_as_the_standard_says() {
        assert_eq!(
            [(0, 1), (1, 1), (0, 3), (3, 3), (4, 3), (7, 3)].map(|(bits, size)| extend(bits, size)),
            [-1, 1, -7, -4, 4, 7]
        );
        assert_eq!((extend(0, 15), extend(0x7fff, 15)), (-32767, 32767));
    }
}
