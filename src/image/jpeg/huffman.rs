//! Huffman decoding of coefficients (ITU-T T.81, annex C and F.2.2).
//!
//! A Huffman code stands for a symbol of one byte. Its lower four bits are the size of the value
//! that follows the code, in bits; for AC coefficients, its upper four bits are the number of zero
//! coefficients before that value. Lookup tables decode a code together with its value, and often two
//! of them at once.

use super::{
    bits::{BitReader, TOPPED_UP},
    zigzag::ZIGZAG,
};

/// How many bits the tables of one or two coefficients look at. Larger tables would not fit into the
/// processor's first-level cache.
const STEP_BITS: u32 = 10;
/// How many bits the table of skipped coefficients looks at, for the same reason.
const SKIP_BITS: u32 = 12;
/// The longest code, with the longest value after it.
const LONGEST_SYMBOL: u32 = 16 + 15;
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

/// One or two decoded AC symbols, with their values. It is packed, so that a single load gets all of
/// it; the number of bits is in the lowest byte, where shifts take it from.
#[derive(Clone, Copy, Default)]
struct Pair(u64);

impl Pair {
    /// Added to the coefficients of a pair whose last symbol is the end of the block, which makes
    /// them too many for any block.
    const END: usize = 128;
    /// The coefficients of what is longer than the table looks at: likewise too many.
    const LONG: u64 = 255;

    /// A symbol, or two. Of a single one the value is repeated, so that it can be stored twice.
    fn new(first: Step, second: Option<Step>) -> Self {
        let mut coefficients = match first.zeros {
            Step::END => 0,
            zeros => usize::from(zeros) + 1,
        };
        let (first_bits, first_coefficients) = (first.bits, coefficients);
        let last = second.unwrap_or(first);
        let mut value = last.value;
        let mut bits = first.bits;
        if second.is_some() {
            bits += last.bits;
        }
        match (last.zeros, second) {
            (Step::END, _) => {
                coefficients += Self::END;
                value = first.value;
            }
            (zeros, Some(_)) => coefficients += usize::from(zeros) + 1,
            (_, None) => {}
        }
        let [first_value, value] = [first.value, value].map(i16::to_le_bytes);
        Self(u64::from_le_bytes([
            bits,
            coefficients as u8,
            first_bits,
            first_coefficients as u8,
            first_value[0],
            first_value[1],
            value[0],
            value[1],
        ]))
    }

    /// A symbol whose code of this length fits into the bits that the table looks at, but not its
    /// value.
    fn long(symbol: u8, length: u32) -> Self {
        Self(Self::LONG << 8 | u64::from(length) << 16 | u64::from(symbol) << 32)
    }

    /// The length of all symbols in bits, as a shift takes it.
    #[inline(always)]
    fn bits(self) -> u32 {
        (self.0 & 63) as u32
    }

    /// How many coefficients all symbols stand for, with [`Pair::END`].
    #[inline(always)]
    fn coefficients(self) -> usize {
        (self.0 >> 8 & 255) as usize
    }

    #[inline(always)]
    fn first_bits(self) -> u32 {
        (self.0 >> 16 & 63) as u32
    }

    #[inline(always)]
    fn first_coefficients(self) -> usize {
        (self.0 >> 24 & 255) as usize
    }

    #[inline(always)]
    fn first_value(self) -> i16 {
        (self.0 >> 32) as i16
    }

    /// The value of the last coefficient.
    #[inline(always)]
    fn value(self) -> i16 {
        (self.0 >> 48) as i16
    }

    /// The symbol and the length of the code of a long one; `None` if the code is too long as well.
    fn long_code(self) -> Option<(u8, u32)> {
        let length = self.first_bits();
        (length != 0).then_some((self.first_value() as u8, length))
    }
}

/// Several AC symbols that are skipped at once.
#[derive(Clone, Copy, Default)]
struct Skip {
    /// How many coefficients they stand for, with [`Pair::END`] if the last is the end of the block;
    /// [`Pair::LONG`] if not even one symbol fits into the bits that the table looks at.
    coefficients: u8,
    /// Their length in bits.
    bits: u8,
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

    /// The symbol of the code that a window of 16 bits begins with, and the code's length in bits,
    /// which is at least `shortest`.
    fn symbol(&self, window: usize, shortest: usize) -> Option<(u8, u32)> {
        let length = (shortest..=16).find(|length| (window as u32) < self.upper_bound[*length])?;
        let index = (window >> (16 - length)) as i32 + self.symbol_offset[length];
        Some((*self.symbols.get(index as usize)?, length as u32))
    }

    /// Visits the windows of `width` bits that begin with a code of at most this many bits, each
    /// with the code's symbol and length.
    fn for_windows(&self, width: u32, mut visit: impl FnMut(usize, u8, u32)) {
        for length in 1..=width {
            let bound = |length: u32| (self.upper_bound[length as usize] >> (16 - width)) as usize;
            let windows = bound(length - 1)..bound(length);
            for first in windows.step_by(1 << (width - length)) {
                let code = (first >> (width - length)) as i32;
                let index = code + self.symbol_offset[length as usize];
                if let Some(symbol) = self.symbols.get(index as usize) {
                    for window in first..first + (1 << (width - length)) {
                        visit(window, *symbol, length);
                    }
                }
            }
        }
    }

    /// Decodes the first symbol in a window of `width` bits, with its value. Its code has at least
    /// `shortest` bits. `None` if it needs more bits, or if the bits are invalid.
    fn decode_step(&self, window: usize, width: u32, shortest: usize) -> Option<Step> {
        let window_of_16 = if width < 16 {
            window << (16 - width)
        } else {
            window >> (width - 16)
        };
        let (symbol, length) = self.symbol(window_of_16, shortest)?;
        step(symbol, length, window, width)
    }

    /// Decodes as many symbols as fit into a window of [`SKIP_BITS`] bits, up to the end of the
    /// block, most of them by a table of steps.
    fn decode_skip(&self, window: usize, steps: &[Step]) -> Skip {
        let mut skip = Skip::default();
        loop {
            let left = SKIP_BITS - u32::from(skip.bits);
            let rest = window & ((1 << left) - 1);
            let known = steps[rest << skip.bits >> (SKIP_BITS - STEP_BITS)];
            let step = match known.bits {
                0 => self.decode_step(rest, left, 1),
                bits => (u32::from(bits) <= left).then_some(known),
            };
            match step {
                Some(step) if step.zeros == Step::END => {
                    skip.bits += step.bits;
                    skip.coefficients += Pair::END as u8;
                    return skip;
                }
                Some(step) if usize::from(skip.coefficients + step.zeros) < 64 => {
                    skip.bits += step.bits;
                    skip.coefficients += step.zeros + 1;
                }
                _ if skip.bits == 0 => {
                    skip.coefficients = Pair::LONG as u8;
                    return skip;
                }
                _ => return skip,
            }
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
        codes.for_windows(STEP_BITS, |window, symbol, length| {
            steps[window] = step(symbol, length, window, STEP_BITS).unwrap_or_default();
        });
        Self { steps, codes }
    }

    /// Reads the next step from filled bits; `None` if they are invalid.
    #[inline(always)]
    fn read(&self, bits: &mut BitReader<'_>) -> Option<Step> {
        let mut step = self.steps[bits.peek(STEP_BITS)];
        if step.bits == 0 {
            step = self.codes.decode_step(bits.peek(32), 32, 1)?;
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
    /// By the next [`STEP_BITS`] bits.
    pairs: Box<[Pair; 1 << STEP_BITS]>,
    /// Empty where few coefficients are skipped.
    skips: Vec<Skip>,
}

/// How far the AC coefficients of a block have been read.
struct Pass {
    /// The index in zigzag order of the next coefficient.
    next: usize,
    /// Whether all others are 0, or there are none.
    ended: bool,
}

impl AcTable {
    /// `may_skip` says whether coefficients are to be skipped, and so many of them that a table for it
    /// is worth making.
    pub fn new(codes: &HuffmanCodes, may_skip: bool) -> Self {
        let steps = StepTable::new(codes.clone());
        let windows = if may_skip { 1 << SKIP_BITS } else { 0 };
        let skips = (0..windows)
            .map(|window| codes.decode_skip(window, &steps.steps))
            .collect();
        Self {
            pairs: Self::pairs(&steps),
            steps,
            skips,
        }
    }

    fn pairs(table: &StepTable) -> Box<[Pair; 1 << STEP_BITS]> {
        let mut pairs = Box::new([Pair::long(0, 0); 1 << STEP_BITS]);
        table
            .codes
            .for_windows(STEP_BITS, |window, symbol, length| {
                let first = table.steps[window];
                pairs[window] = if first.bits == 0 {
                    Pair::long(symbol, length)
                } else if first.zeros == Step::END {
                    Pair::new(first, None)
                } else {
                    let rest = window << first.bits & ((1 << STEP_BITS) - 1);
                    let second = table.steps[rest];
                    let fits = second.bits != 0 && u32::from(first.bits + second.bits) <= STEP_BITS;
                    Pair::new(first, fits.then_some(second))
                };
            });
        pairs
    }

    /// Reads the coefficients of one block (F.2.2.2), and stores those with AC. `dc` is the table of
    /// its DC coefficient.
    ///
    /// Returns the difference of the latter from that of the previous block, and the index in zigzag
    /// order of the last coefficient that is not 0, or a greater one; `None` if the bits are invalid.
    // Not inlined, because the caller's loop would leave it too few registers.
    #[inline(never)]
    pub fn read(
        &self,
        dc: &DcTable,
        source: &mut BitReader<'_>,
        block: &mut Block,
    ) -> Option<(i32, usize)> {
        // A local copy can stay in registers.
        let mut bits = *source;
        let difference = dc.difference(&mut bits)?;
        let pass = self.pass(&mut bits, 63, |index, value| {
            block[usize::from(ZIGZAG[index & 63]) & 63] = value;
        })?;
        *source = bits;
        Some((difference, pass.next - 1))
    }

    /// Passes over the coefficients of one block, and returns the difference of its DC coefficient;
    /// `None` if the bits are invalid.
    #[inline(never)]
    pub fn skip(&self, dc: &DcTable, source: &mut BitReader<'_>) -> Option<i32> {
        let mut bits = *source;
        let difference = dc.difference(&mut bits)?;
        if self.skips.is_empty() {
            self.pass(&mut bits, 63, |_, _| ())?;
        } else {
            self.skip_from(1, &mut bits)?;
        }
        *source = bits;
        Some(difference)
    }

    /// Reads AC coefficients, at least up to index `last` in zigzag order.
    #[inline(always)]
    fn pass(
        &self,
        bits: &mut BitReader<'_>,
        last: usize,
        mut store: impl FnMut(usize, i16),
    ) -> Option<Pass> {
        /// Pairs that can be read before the bits are topped up, so that enough are left for any
        /// symbol.
        const PAIRS: u32 = (TOPPED_UP - LONGEST_SYMBOL) / STEP_BITS + 1;

        // The next coefficient.
        let mut index = 1;
        'block: while index <= last {
            bits.top_up();
            for _ in 0..PAIRS {
                let pair = self.pairs[bits.peek(STEP_BITS)];
                let next = index + pair.coefficients();
                if next < 64 {
                    bits.consume(pair.bits());
                    store(index + pair.first_coefficients() - 1, pair.first_value());
                    store(next - 1, pair.value());
                    index = next;
                    if index > last {
                        break 'block;
                    }
                    continue;
                }

                let step = if pair.bits() == 0 {
                    self.long_step(pair, bits)?
                } else if next >= Pair::END && next - Pair::END < 64 {
                    bits.consume(pair.bits());
                    // Without a coefficient before it, this stores a 0 where there is one.
                    store(
                        index + pair.first_coefficients().saturating_sub(1),
                        pair.first_value(),
                    );
                    return Some(Pass {
                        next: next - Pair::END,
                        ended: true,
                    });
                } else {
                    // The block is full after the first symbol, or the second one is too much.
                    Step {
                        value: pair.first_value(),
                        zeros: pair.first_coefficients() as u8 - 1,
                        bits: pair.first_bits() as u8,
                    }
                };
                bits.consume(step.bits.into());
                if step.zeros == Step::END {
                    return Some(Pass {
                        next: index,
                        ended: true,
                    });
                }
                index += usize::from(step.zeros);
                if index >= 64 {
                    return None;
                }
                store(index, step.value);
                index += 1;
                continue 'block;
            }
        }
        Some(Pass {
            next: index,
            ended: index == 64,
        })
    }

    /// Passes over the AC coefficients from this one on, several at a time.
    #[inline(always)]
    fn skip_from(&self, mut index: usize, bits: &mut BitReader<'_>) -> Option<()> {
        const SKIPS: u32 = (TOPPED_UP - LONGEST_SYMBOL) / SKIP_BITS + 1;

        'block: while index < 64 {
            bits.top_up();
            for _ in 0..SKIPS {
                let skip = self.skips[bits.peek(SKIP_BITS)];
                let next = index + usize::from(skip.coefficients);
                if next < 64 {
                    bits.consume(skip.bits.into());
                    index = next;
                    continue;
                }
                if skip.bits != 0 && next >= Pair::END && next - Pair::END < 64 {
                    bits.consume(skip.bits.into());
                    break 'block;
                }

                // One by one, because the next symbols may belong to the next block.
                let step = self.steps.read(bits)?;
                if step.zeros == Step::END {
                    break 'block;
                }
                index += usize::from(step.zeros);
                if index >= 64 {
                    return None;
                }
                index += 1;
                continue 'block;
            }
        }
        Some(())
    }

    /// The next step where it is longer than the tables look at.
    fn long_step(&self, pair: Pair, bits: &BitReader<'_>) -> Option<Step> {
        let window = bits.peek(32);
        match pair.long_code() {
            Some((symbol, length)) => step(symbol, length, window, 32),
            None => self
                .steps
                .codes
                .decode_step(window, 32, STEP_BITS as usize + 1),
        }
    }

    /// Like [`AcTable::read`], but stores only AC coefficients up to index `last` in zigzag order,
    /// and returns the index of the last one of them that is not 0, or 0 if there is none.
    #[inline(never)]
    pub fn read_up_to(
        &self,
        last: usize,
        dc: &DcTable,
        source: &mut BitReader<'_>,
        block: &mut Block,
    ) -> Option<(i32, usize)> {
        let mut bits = *source;
        let difference = dc.difference(&mut bits)?;
        let mut last_stored = 0;
        let pass = self.pass(&mut bits, last, |index, value| {
            if index <= last && value != 0 {
                block[usize::from(ZIGZAG[index & 63]) & 63] = value;
                last_stored = index;
            }
        })?;
        if !pass.ended {
            self.skip_from(pass.next, &mut bits)?;
        }
        *source = bits;
        Some((difference, last_stored))
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
        codes.for_windows(STEP_BITS, |window, symbol, length| {
            symbols[window] = (symbol, length as u8);
        });
        Self {
            symbols,
            codes: codes.clone(),
        }
    }

    /// Reads the next symbol from filled bits; `None` if they are invalid.
    #[inline(always)]
    pub fn read(&self, bits: &mut BitReader<'_>) -> Option<u8> {
        let (symbol, length) = match self.symbols[bits.peek(STEP_BITS)] {
            (_, 0) => self.codes.symbol(bits.peek(16), STEP_BITS as usize + 1)?,
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
    fn ac_table(may_skip: bool) -> AcTable {
        let counts = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        AcTable::new(
            &HuffmanCodes::new(&counts, &[0x00, 0x01, 0x23, 0xf0]).unwrap(),
            may_skip,
        )
    }

    /// A table whose only code, 0, stands for a value of one bit.
    fn dc_table() -> DcTable {
        let mut counts = [0; 16];
        counts[0] = 1;
        DcTable::new(&HuffmanCodes::new(&counts, &[1]).unwrap()).unwrap()
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

    /// The coefficients up to `last` in zigzag order, and the index of the last one stored. The DC
    /// coefficient, which comes first, is left out.
    fn read(bits: &str, last: usize) -> Option<(Vec<i16>, usize)> {
        let bytes = bytes(&["01", bits].concat());
        let mut block = [0; 64];
        let read = |by: &dyn Fn(&mut BitReader<'_>) -> Option<i32>| {
            let mut bits = BitReader::at(&bytes, 0);
            assert_eq!(by(&mut bits)?, 1);
            bits.next_marker()
        };
        let mut last_stored = 0;
        let mut bits = BitReader::at(&bytes, 0);
        let stored = ac_table(true).read_up_to(last, &dc_table(), &mut bits, &mut block);
        let stored = stored.and_then(|(difference, last)| {
            assert_eq!(difference, 1);
            last_stored = last;
            bits.next_marker()
        });

        // All ways agree on what is valid and where it ends.
        for may_skip in [false, true] {
            let table = ac_table(may_skip);
            let skipped = read(&|bits| table.skip(&dc_table(), bits));
            assert_eq!(skipped, stored);
            let whole = read(&|bits| {
                let mut whole = [0; 64];
                let (difference, last_of_all) = table.read(&dc_table(), bits, &mut whole)?;
                for (index, place) in ZIGZAG.iter().enumerate() {
                    let place = usize::from(*place);
                    if index <= last {
                        assert_eq!(whole[place], block[place]);
                    }
                    assert!(index <= last_of_all || whole[place] == 0);
                }
                Some(difference)
            });
            assert_eq!(whole, stored);
        }
        stored?;
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
        // One coefficient at a time, then three at a time, whose codes end at any bit of a window.
        let fulls = ["101".repeat(63), "110111".repeat(21)];
        for full in &fulls {
            for last in [1, 4, 24, 62, 63] {
                read(full, last).unwrap();
                let two = bytes(&["01", full, "01 101 0"].concat());
                let (mut bits, mut block) = (BitReader::at(&two, 0), [0; 64]);
                let table = ac_table(true);
                for _ in 0..2 {
                    table
                        .read_up_to(last, &dc_table(), &mut bits, &mut block)
                        .unwrap();
                }
                assert_eq!(bits.next_marker(), Some(0xd9), "{last}");
            }
            for may_skip in [false, true] {
                let table = ac_table(may_skip);
                let two = bytes(&["01", full, "00 0"].concat());
                let (mut bits, mut block) = (BitReader::at(&two, 0), [0; 64]);
                let first = table.read(&dc_table(), &mut bits, &mut block);
                assert_eq!(first, Some((1, 63)));
                assert_eq!(table.skip(&dc_table(), &mut bits), Some(-1));
                assert_eq!(bits.next_marker(), Some(0xd9));
            }
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
