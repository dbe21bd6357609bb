//! Huffman decoding of coefficients (ITU-T T.81, annex C and F.2.2).
//!
//! A Huffman code stands for a symbol of one byte. Its lower four bits are the size of the value
//! that follows the code, in bits; for AC coefficients, its upper four bits are the number of zero
//! coefficients before that value. Lookup tables decode a code together with its value.

use super::{bits::BitReader, zigzag::ZIGZAG};

/// How many bits the table of single coefficients looks at. Larger tables would not fit into the
/// processor's first-level cache.
const STEP_BITS: u32 = 10;
/// How many bits the table of skipped coefficients looks at, for the same reason.
const SKIP_BITS: u32 = 12;
/// The symbol for the end of the block: all remaining coefficients are 0.
const END_OF_BLOCK: u8 = 0x00;
/// The symbol for sixteen zeros that are not followed by a value.
const SIXTEEN_ZEROS: u8 = 0xf0;

/// A decoded symbol with its value: one coefficient, or the end of the block.
#[derive(Clone, Copy, Default)]
struct Step {
    value: i16,
    /// Zero coefficients before this one; [`Step::END`] at the end of the block.
    zeros: u8,
    /// The length in bits; 0 in a table means longer than the table looks at.
    bits: u8,
}

impl Step {
    const END: u8 = 64;
}

/// Several symbols that are skipped at once.
#[derive(Clone, Copy, Default)]
struct Skip {
    /// How many coefficients they stand for; the end of the block counts as one.
    coefficients: u8,
    /// Their length in bits, with [`Skip::ENDS_BLOCK`] set if the last is the end of the block. 0
    /// means that not even one symbol fits into the bits that the table looks at.
    bits: u8,
}

impl Skip {
    const ENDS_BLOCK: u8 = 0x80;
}

/// The coefficients of a block, row by row, as they are coded: not yet dequantized.
pub(super) type Block = [i16; 64];

/// The Huffman codes of one table. They are canonical: codes of equal length are consecutive
/// numbers, so their counts by length define them (C.2).
#[derive(Clone)]
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

    /// The symbol of the code that a window of 16 bits begins with, and the code's length in bits.
    fn symbol(&self, window: usize) -> Option<(u8, u32)> {
        let length = (1..=16).find(|length| (window as u32) < self.upper_bound[*length])?;
        let index = (window >> (16 - length)) as i32 + self.symbol_offset[length];
        Some((*self.symbols.get(index as usize)?, length as u32))
    }

    /// The windows of `width` bits that begin with a code of at most this many bits, each with the
    /// code's symbol and length.
    fn windows(&self, width: u32) -> impl Iterator<Item = (usize, u8, u32)> {
        (1..=width).flat_map(move |length| {
            let bound = |length: u32| (self.upper_bound[length as usize] >> (16 - width)) as usize;
            (bound(length - 1)..bound(length)).filter_map(move |window| {
                let code = (window >> (width - length)) as i32;
                let index = code + self.symbol_offset[length as usize];
                Some((window, *self.symbols.get(index as usize)?, length))
            })
        })
    }

    /// Decodes the first symbol in a window of `width` bits, with its value. `None` if it needs
    /// more bits, or if the bits are invalid.
    fn decode_step(&self, window: usize, width: u32) -> Option<Step> {
        let window_of_16 = if width < 16 {
            window << (16 - width)
        } else {
            window >> (width - 16)
        };
        let (symbol, length) = self.symbol(window_of_16)?;
        step(symbol, length, window, width)
    }

    /// Decodes as many symbols as fit into a window of [`SKIP_BITS`] bits, up to the end of the
    /// block.
    fn decode_skip(&self, window: usize) -> Skip {
        let mut skip = Skip::default();
        loop {
            let left = SKIP_BITS - u32::from(skip.bits);
            let Some(step) = self.decode_step(window & ((1 << left) - 1), left) else {
                return skip;
            };
            skip.bits += step.bits;
            if step.zeros == Step::END {
                skip.coefficients += 1;
                skip.bits |= Skip::ENDS_BLOCK;
                return skip;
            }
            skip.coefficients += step.zeros + 1;
        }
    }
}

/// The step of a symbol whose code of this length begins a window of `width` bits. `None` if its value
/// needs more bits, or if it stands for nothing.
#[inline(always)]
fn step(symbol: u8, length: u32, window: usize, width: u32) -> Option<Step> {
    let (zeros, size) = (symbol >> 4, symbol & 15);
    let bits = length + u32::from(size);
    if bits > width {
        return None;
    }

    let (value, zeros) = match (symbol, size) {
        (END_OF_BLOCK, _) => (0, Step::END),
        (SIXTEEN_ZEROS, _) => (0, 15),
        (_, 0) => return None,
        _ => {
            let value_bits = window >> (width - bits) & ((1 << size) - 1);
            (extend(value_bits, size), zeros)
        }
    };
    Some(Step {
        value,
        zeros,
        bits: bits as u8,
    })
}

/// The value that `size` bits stand for (F.2.2.1, procedure EXTEND): those that begin with a 0 are
/// negative.
pub(super) fn extend(bits: usize, size: u8) -> i16 {
    let negative = bits >> (size - 1) == 0;
    let offset = if negative { (1 << size) - 1 } else { 0 };
    (bits as i32 - offset) as i16
}

/// A lookup table for single steps, and the codes for steps that are longer than it looks at.
struct StepTable {
    codes: HuffmanCodes,
    steps: Vec<Step>,
}

impl StepTable {
    fn new(codes: HuffmanCodes) -> Self {
        let mut steps = vec![Step::default(); 1 << STEP_BITS];
        for (window, symbol, length) in codes.windows(STEP_BITS) {
            steps[window] = step(symbol, length, window, STEP_BITS).unwrap_or_default();
        }
        Self { steps, codes }
    }

    /// Reads the next step from filled bits; `None` if they are invalid.
    #[inline(always)]
    fn read(&self, bits: &mut BitReader<'_>) -> Option<Step> {
        let mut step = self.steps[bits.peek(STEP_BITS)];
        if step.bits == 0 {
            step = self.codes.decode_step(bits.peek(32), 32)?;
        }
        bits.consume(step.bits.into());
        Some(step)
    }
}

/// A table for DC coefficients, which are the first of their blocks.
pub(super) struct DcTable(StepTable);

impl DcTable {
    /// `None` if a symbol has upper bits, which DC coefficients do not use.
    pub fn new(codes: &HuffmanCodes) -> Option<Self> {
        if codes.symbols.iter().any(|size| *size >= 16) {
            return None;
        }
        Some(Self(StepTable::new(codes.clone())))
    }

    /// Reads the difference from the DC coefficient of the previous block (F.2.2.1).
    #[inline(always)]
    pub fn difference(&self, bits: &mut BitReader<'_>) -> Option<i32> {
        bits.fill();
        // The symbol 0, which would end a block of AC coefficients, is a difference of 0 here.
        Some(self.0.read(bits)?.value.into())
    }
}

/// A table for AC coefficients, which are all others of a block.
pub(super) struct AcTable {
    steps: StepTable,
    /// Not built where no coefficient is skipped.
    skips: Vec<Skip>,
}

impl AcTable {
    /// `may_skip` says whether blocks are to be read with less than all of their coefficients.
    pub fn new(codes: &HuffmanCodes, may_skip: bool) -> Self {
        let windows = if may_skip { 1 << SKIP_BITS } else { 0 };
        let skips = (0..windows)
            .map(|window| codes.decode_skip(window))
            .collect();
        Self {
            steps: StepTable::new(codes.clone()),
            skips,
        }
    }

    /// Reads the AC coefficients of one block (F.2.2.2), and stores those up to index `last` in
    /// zigzag order.
    ///
    /// Returns the index in zigzag order of the last one that was stored, 0 if there is none;
    /// `None` if the bits are invalid.
    // Not inlined, because the caller's loop would leave it too few registers.
    #[inline(never)]
    pub fn read(
        &self,
        source: &mut BitReader<'_>,
        last: usize,
        block: &mut Block,
    ) -> Option<usize> {
        // A local copy can stay in registers.
        let mut bits = *source;
        let mut index = 1;
        let mut last_stored = 0;
        while index < 64 {
            bits.fill();

            // Coefficients after the last one that matters are skipped, several at a time. Near the
            // end of the block they are read one by one, because the next symbols in the table may
            // belong to the next block.
            if index > last {
                let skip = self.skips[bits.peek(SKIP_BITS)];
                if skip.bits != 0 && index + usize::from(skip.coefficients) <= 64 {
                    bits.consume((skip.bits & !Skip::ENDS_BLOCK).into());
                    index += usize::from(skip.coefficients);
                    if skip.bits & Skip::ENDS_BLOCK != 0 {
                        break;
                    }
                    continue;
                }
            }

            let step = self.steps.read(&mut bits)?;
            if step.zeros == Step::END {
                break;
            }
            index += usize::from(step.zeros);
            if index <= last {
                block[usize::from(ZIGZAG[index]) & 63] = step.value;
                last_stored = index;
            }
            index += 1;
        }

        *source = bits;
        if index <= 64 { Some(last_stored) } else { None }
    }
}

/// A table of symbols alone, for the scans of progressive files, in which symbols mean other things
/// than in sequential ones.
pub(super) struct SymbolTable {
    codes: HuffmanCodes,
    /// Symbols with the lengths of their codes; 0 means longer than the table looks at.
    symbols: Vec<(u8, u8)>,
}

impl SymbolTable {
    pub fn new(codes: &HuffmanCodes) -> Self {
        let mut symbols = vec![(0, 0); 1 << STEP_BITS];
        for (window, symbol, length) in codes.windows(STEP_BITS) {
            symbols[window] = (symbol, length as u8);
        }
        Self {
            symbols,
            codes: codes.clone(),
        }
    }

    /// Reads the next symbol from filled bits; `None` if they are invalid.
    #[inline(always)]
    pub fn read(&self, bits: &mut BitReader<'_>) -> Option<u8> {
        let (symbol, length) = match self.symbols[bits.peek(STEP_BITS)] {
            (_, 0) => self.codes.symbol(bits.peek(16))?,
            (symbol, length) => (symbol, length.into()),
        };
        bits.consume(length);
        Some(symbol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table whose codes 0, 10, 110 and 1110 stand for the end of the block, a value of one bit,
    /// two zeros before a value of three bits, and sixteen zeros.
    fn ac_table() -> AcTable {
        let counts = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        AcTable::new(
            &HuffmanCodes::new(&counts, &[0x00, 0x01, 0x23, 0xf0]).unwrap(),
            true,
        )
    }

    /// Packs a string of bits into bytes, padded with ones, and appends an end-of-image marker.
    fn bytes(bits: &str) -> Vec<u8> {
        let mut bits: Vec<u8> = bits
            .bytes()
            .filter(|bit| *bit != b' ')
            .map(|bit| bit - b'0')
            .collect();
        bits.resize(bits.len().next_multiple_of(8), 1);
        let bytes = bits
            .chunks(8)
            .map(|byte| byte.iter().fold(0, |byte, bit| byte << 1 | bit));
        bytes.chain([0xff, 0xd9]).collect()
    }

    /// The coefficients up to `last` in zigzag order, and the index of the last one stored.
    fn read(bits: &str, last: usize) -> Option<(Vec<i16>, usize)> {
        let bytes = bytes(bits);
        let mut bits = BitReader::at(&bytes, 0);
        let mut block = [0; 64];
        let last_stored = ac_table().read(&mut bits, last, &mut block)?;
        bits.next_marker()?;
        let stored = ZIGZAG[..=last].iter();
        Some((
            stored.map(|place| block[usize::from(*place)]).collect(),
            last_stored,
        ))
    }

    #[test]
    fn coefficients_up_to_the_last_are_stored_and_the_rest_skipped() {
        // 1 at 1; two zeros and -6 at 4; 1 at 5; sixteen zeros and -1 at 22; end.
        let block = "101 110001 101 1110 100 0";
        assert_eq!(read(block, 5), Some((vec![0, 1, 0, 0, -6, 1], 5)));
        assert_eq!(read(block, 3), Some((vec![0, 1, 0, 0], 1)));
        assert_eq!(read(block, 63).unwrap().0[22], -1);
        assert_eq!(read("1110 101 0", 3), Some((vec![0; 4], 0)));
        assert_eq!(read("0", 3), Some((vec![0; 4], 0)));
    }

    #[test]
    fn a_full_block_has_no_end_and_the_next_begins_at_once() {
        let full = "101".repeat(63);
        for last in [1, 4, 24, 62, 63] {
            assert_eq!(read(&full, last).unwrap().1, last);
            let two = bytes(&[&full[..], "101 0"].concat());
            let (mut bits, mut block) = (BitReader::at(&two, 0), [0; 64]);
            let table = ac_table();
            for _ in 0..2 {
                table.read(&mut bits, last, &mut block).unwrap();
            }
            assert_eq!(bits.next_marker(), Some(0xd9), "{last}");
        }
    }

    #[test]
    fn invalid_codes_are_detected() {
        let full = "101".repeat(62);
        for (case, bits) in [
            ("too many", format!("{full} 110001")),
            ("no such code", "1111".repeat(8)),
        ] {
            for last in [1, 4, 63] {
                assert_eq!(read(&bits, last), None, "{case}, {last}");
            }
        }
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
    fn values_are_extended_as_the_standard_says() {
        assert_eq!(
            [(0, 1), (1, 1), (0, 3), (3, 3), (4, 3), (7, 3)].map(|(bits, size)| extend(bits, size)),
            [-1, 1, -7, -4, 4, 7]
        );
        assert_eq!((extend(0, 15), extend(0x7fff, 15)), (-32767, 32767));
    }
}
