//! Decodes the AC coefficients of blocks (ITU-T T.81, F.2.2.2): those that are wanted two at a time,
//! and those that are only checked several at a time.

use std::sync::{Arc, LazyLock};

use super::{
    bits::BitReader,
    dc_table::DcTable,
    huffman::{Block, Coded, HuffmanCodes, LONGEST, LOOKUPS, Step, offset},
    standard,
    zigzag::ZIGZAG,
};
use crate::image::simd::simd;

/// How many bits the table of one or two coefficients looks at. Larger tables would not fit into the
/// processor's first-level cache.
const BITS: u32 = 11;
/// How many bits the table of skipped coefficients looks at, for the same reason.
const SKIP_BITS: u32 = 12;

/// Added to the coefficients of an entry whose last symbol is the end of the block, which makes them
/// too many for any block.
const END: usize = 128;
/// The coefficients of an entry that knows no symbol: likewise too many.
const UNKNOWN: u8 = 255;

/// One or two AC symbols, with their values. It is packed, so that a single load gets all of it; the
/// number of bits is in the lowest byte, where shifts take it from.
#[derive(Clone, Copy)]
struct Pair(u64);

impl Pair {
    /// No symbol is known. The shortest code that it can have is in place of the coefficients of the
    /// first symbol.
    fn unknown(coded: Coded) -> Self {
        let shortest = match coded.length {
            0 => BITS as u8 + 1,
            length => length,
        };
        Self(u64::from(UNKNOWN) << 16 | u64::from(shortest) << 24)
    }

    /// The symbol at the beginning of a window of [`BITS`] bits, and the one after it if it fits.
    fn new(window: usize, symbols: &[Coded]) -> Self {
        const MASK: usize = (1 << BITS) - 1;

        let first = symbols[window];
        let fits = first.shows_sign(BITS) && first.bits() <= LONGEST;
        let Some(step) = first.step(window, BITS).filter(|_| fits) else {
            return Self::unknown(first);
        };
        let left = BITS.saturating_sub(first.bits());
        if step.zeros == Step::END || left == 0 {
            return Self::packed(None, first, step, window);
        }
        let rest = window << first.bits() & MASK;
        let second = symbols[rest];
        let fits = second.shows_sign(left) && first.bits() + second.bits() <= LONGEST;
        match second.step(rest, BITS).filter(|_| fits) {
            Some(last) => Self::packed(Some((first, step)), second, last, rest),
            None => Self::packed(None, first, step, window),
        }
    }

    /// `window` begins with the last symbol.
    fn packed(first: Option<(Coded, Step)>, last: Coded, step: Step, window: usize) -> Self {
        let is_positive = window << last.length & 1 << (BITS - 1) != 0;
        let offset = offset(last.size(), is_positive);
        let mut bits = last.bits();
        let mut coefficients = match step.zeros {
            Step::END => END,
            zeros => usize::from(zeros) + 1,
        };
        let mut first_coefficients = coefficients % END;
        let mut first_value = 0;
        if let Some((coded, step)) = first {
            bits += coded.bits();
            first_coefficients = usize::from(step.zeros) + 1;
            coefficients += first_coefficients;
            first_value = step.value;
        }
        let [first_value, offset] = [first_value, offset].map(i16::to_le_bytes);
        Self(u64::from_le_bytes([
            bits as u8,
            last.size() as u8,
            coefficients as u8,
            first_coefficients as u8,
            first_value[0],
            first_value[1],
            offset[0],
            offset[1],
        ]))
    }

    /// The length of all symbols with their values in bits; 0 if no symbol is known.
    #[inline(always)]
    fn bits(self) -> u32 {
        (self.0 & 63) as u32
    }

    /// How many of these bits the last value has.
    #[inline(always)]
    fn size(self) -> u32 {
        (self.0 >> 8 & 15) as u32
    }

    /// How many coefficients all symbols stand for, with [`END`].
    #[inline(always)]
    fn coefficients(self) -> usize {
        (self.0 >> 16 & 255) as usize
    }

    /// How many coefficients the first symbol stands for.
    #[inline(always)]
    fn first_coefficients(self) -> usize {
        (self.0 >> 24 & 255) as usize
    }

    /// The value of the first symbol of two.
    #[inline(always)]
    fn first_value(self) -> i16 {
        (self.0 >> 32) as i16
    }

    /// What is added to the bits of the last value.
    #[inline(always)]
    fn offset(self) -> i16 {
        (self.0 >> 48) as i16
    }
}

/// Several AC symbols that are skipped at once.
#[derive(Clone, Copy)]
struct Skip {
    /// How many coefficients they stand for, with [`END`] if the last is the end of the block;
    /// [`UNKNOWN`] if no symbol is known.
    coefficients: u8,
    /// The length of all symbols with their values in bits.
    bits: u8,
}

impl Skip {
    /// The symbols whose codes are in a window of [`SKIP_BITS`] bits.
    fn new(window: usize, symbols: &[Coded]) -> Self {
        const MASK: usize = (1 << SKIP_BITS) - 1;

        let mut skip = Self {
            coefficients: 0,
            bits: 0,
        };
        loop {
            let used = u32::from(skip.bits);
            let rest = window << used & MASK;
            let coded = symbols[rest];
            let fits =
                used + u32::from(coded.length) <= SKIP_BITS && used + coded.bits() <= LONGEST;
            match coded.step(rest, SKIP_BITS).filter(|_| fits) {
                Some(step) if step.zeros == Step::END => {
                    skip.bits += coded.bits() as u8;
                    skip.coefficients += END as u8;
                    return skip;
                }
                Some(step) if usize::from(skip.coefficients + step.zeros) < 64 => {
                    skip.bits += coded.bits() as u8;
                    skip.coefficients += step.zeros + 1;
                }
                _ if skip.bits == 0 => {
                    skip.coefficients = UNKNOWN;
                    return skip;
                }
                _ => return skip,
            }
            if u32::from(skip.bits) >= SKIP_BITS {
                return skip;
            }
        }
    }
}

/// A table for AC coefficients, which are all others of a block.
pub(super) struct AcTable {
    codes: HuffmanCodes,
    /// By the next [`BITS`] bits.
    pairs: Box<[Pair; 1 << BITS]>,
    /// By the next [`SKIP_BITS`] bits; `None` where few coefficients are skipped.
    skips: Option<Box<[Skip; 1 << SKIP_BITS]>>,
}

/// How far the AC coefficients of a block have been read.
struct Pass {
    /// The index in zigzag order of the next coefficient.
    next: usize,
    /// Whether all others are 0, or there are none.
    ended: bool,
}

/// The tables of the codes that most encoders use, which need not be made for each picture.
static STANDARD: LazyLock<[Arc<AcTable>; 2]> =
    LazyLock::new(|| standard::codes().map(|(_, codes)| Arc::new(AcTable::new(&codes, true))));

impl AcTable {
    /// The table of these codes; `may_skip` as for [`AcTable::new`].
    pub fn of(codes: &HuffmanCodes, may_skip: bool) -> Arc<Self> {
        match STANDARD.iter().find(|table| table.codes == *codes) {
            Some(table) => Arc::clone(table),
            None => Arc::new(Self::new(codes, may_skip)),
        }
    }

    /// `may_skip` says whether coefficients are to be skipped, and so many of them that a table for it
    /// is worth making.
    fn new(codes: &HuffmanCodes, may_skip: bool) -> Self {
        let mut pairs = Box::new([Pair(0); 1 << BITS]);
        let symbols = codes.table(BITS);
        for (window, pair) in pairs.iter_mut().enumerate() {
            *pair = Pair::new(window, &symbols);
        }
        Self {
            pairs,
            skips: may_skip.then(|| {
                let symbols = codes.table(SKIP_BITS);
                Box::new(std::array::from_fn(|window| Skip::new(window, &symbols)))
            }),
            codes: codes.clone(),
        }
    }

    /// Reads the coefficients of one block, and stores them. `dc` is the table of its DC coefficient,
    /// and `prediction` the DC coefficient of the block before, which this one's becomes.
    ///
    /// `block` has to hold zeros: some of them are stored again, and most are not.
    ///
    /// Returns the index in zigzag order of the last coefficient that is not 0, or a greater one;
    /// `None` if the bits are invalid.
    #[inline(always)]
    pub fn read(
        &self,
        dc: &DcTable,
        bits: &mut BitReader<'_>,
        prediction: &mut i32,
        block: &mut Block,
    ) -> Option<usize> {
        read(self, dc, bits, prediction, block)
    }

    /// Like [`AcTable::read`], but stores only AC coefficients up to index `last` in zigzag order,
    /// and returns the index of the last one of them that is not 0, or 0 if there is none.
    #[inline(never)]
    pub fn read_up_to(
        &self,
        last: usize,
        dc: &DcTable,
        source: &mut BitReader<'_>,
        prediction: &mut i32,
        block: &mut Block,
    ) -> Option<usize> {
        let mut bits = *source;
        let difference = dc.difference(&mut bits)?;
        let mut last_stored = 0;
        let pass = if last == 0 {
            Pass {
                next: 1,
                ended: false,
            }
        } else {
            self.pass(1, &mut bits, last, |index, value| {
                if index <= last && value != 0 {
                    block[usize::from(ZIGZAG[index & 63]) & 63] = value;
                    last_stored = index;
                }
            })?
        };
        if !pass.ended {
            bits.top_up();
            self.skip_from(pass.next, &mut bits)?;
        }
        *source = bits;
        *prediction = prediction.wrapping_add(difference);
        block[0] = *prediction as i16;
        Some(last_stored)
    }

    /// Passes over the coefficients of one block, as [`AcTable::read`] does.
    #[inline(always)]
    pub fn skip(&self, dc: &DcTable, bits: &mut BitReader<'_>, prediction: &mut i32) -> Option<()> {
        skip(self, dc, bits, prediction)
    }

    /// Reads AC coefficients from this one on, at least up to index `last` in zigzag order, after a DC
    /// coefficient or a topping up.
    #[inline(always)]
    fn pass(
        &self,
        mut index: usize,
        bits: &mut BitReader<'_>,
        last: usize,
        mut store: impl FnMut(usize, i16),
    ) -> Option<Pass> {
        loop {
            let pair = 'unusual: {
                for _ in 0..LOOKUPS - 1 {
                    if let Some(pair) = self.look(&mut index, bits, &mut store) {
                        break 'unusual pair;
                    }
                    if index > last {
                        return Some(Pass {
                            next: index,
                            ended: false,
                        });
                    }
                }
                loop {
                    bits.top_up();
                    for _ in 0..LOOKUPS {
                        if let Some(pair) = self.look(&mut index, bits, &mut store) {
                            break 'unusual pair;
                        }
                        if index > last {
                            return Some(Pass {
                                next: index,
                                ended: false,
                            });
                        }
                    }
                }
            };

            let end = (index + pair.coefficients()).wrapping_sub(END);
            if pair.bits() != 0 && end < 64 {
                bits.consume(pair.bits());
                // Without a coefficient before it, this stores a 0 where there is one.
                store(
                    index + pair.first_coefficients().saturating_sub(1),
                    pair.first_value(),
                );
                return Some(Pass {
                    next: end,
                    ended: true,
                });
            }

            // The symbol is too long for the table, or the next ones belong to the next block.
            bits.top_up();
            let shortest = match pair.bits() {
                0 => pair.first_coefficients(),
                _ => 1,
            };
            let (step, rest) = self.codes.read_step(*bits, shortest)?;
            *bits = rest;
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
            if index > last {
                return Some(Pass {
                    next: index,
                    ended: index == 64,
                });
            }
        }
    }

    /// Reads a pair of coefficients. Returns what is not just that, of which nothing is read.
    #[inline(always)]
    fn look(
        &self,
        index: &mut usize,
        bits: &mut BitReader<'_>,
        store: &mut impl FnMut(usize, i16),
    ) -> Option<Pair> {
        let pair = self.pairs[bits.peek(BITS)];
        let next = *index + pair.coefficients();
        if next >= 64 {
            return Some(pair);
        }
        let value = bits.peek_last(pair.bits(), pair.size()) as i16;
        bits.consume(pair.bits());
        // Of a single coefficient, this is the place as well.
        store(*index + pair.first_coefficients() - 1, pair.first_value());
        store(next - 1, value.wrapping_add(pair.offset()));
        *index = next;
        None
    }

    /// Passes over the AC coefficients from this one on, several at a time, after a DC coefficient or
    /// a topping up.
    #[inline(always)]
    fn skip_from(&self, mut index: usize, bits: &mut BitReader<'_>) -> Option<()> {
        let Some(skips) = &self.skips else {
            return self.pass(index, bits, 63, |_, _| ()).map(|_| ());
        };
        let look = |index: &mut usize, bits: &mut BitReader<'_>| {
            let skip = skips[bits.peek(SKIP_BITS)];
            let next = *index + usize::from(skip.coefficients);
            if next >= 64 {
                return Some(skip);
            }
            bits.consume(skip.bits.into());
            *index = next;
            None
        };
        while index < 64 {
            let skip = 'unusual: {
                for _ in 0..LOOKUPS - 1 {
                    if let Some(skip) = look(&mut index, bits) {
                        break 'unusual skip;
                    }
                }
                loop {
                    bits.top_up();
                    for _ in 0..LOOKUPS {
                        if let Some(skip) = look(&mut index, bits) {
                            break 'unusual skip;
                        }
                    }
                }
            };

            let end = (index + usize::from(skip.coefficients)).wrapping_sub(END);
            if skip.bits != 0 && end < 64 {
                bits.consume(skip.bits.into());
                return Some(());
            }
            // One by one, because the next symbols may belong to the next block.
            bits.top_up();
            let (step, rest) = self.codes.read_step(*bits, 1)?;
            *bits = rest;
            if step.zeros == Step::END {
                return Some(());
            }
            index += usize::from(step.zeros);
            if index >= 64 {
                return None;
            }
            index += 1;
        }
        Some(())
    }
}

simd! {
    fn read(
        table: &AcTable,
        dc: &DcTable,
        bits: &mut BitReader<'_>,
        prediction: &mut i32,
        block: &mut Block,
    ) -> Option<usize> = read_bmi2(read_inline), read_portable;
    fn skip(
        table: &AcTable,
        dc: &DcTable,
        bits: &mut BitReader<'_>,
        prediction: &mut i32,
    ) -> Option<()> = skip_bmi2(skip_inline), skip_portable;
}

// Not inlined, because the caller's loop would leave it too few registers.
#[inline(never)]
fn read_portable(
    table: &AcTable,
    dc: &DcTable,
    bits: &mut BitReader<'_>,
    prediction: &mut i32,
    block: &mut Block,
) -> Option<usize> {
    read_inline(table, dc, bits, prediction, block)
}

#[inline(always)]
fn read_inline(
    table: &AcTable,
    dc: &DcTable,
    source: &mut BitReader<'_>,
    prediction: &mut i32,
    block: &mut Block,
) -> Option<usize> {
    // A local copy can stay in registers.
    let mut bits = *source;
    let difference = dc.difference(&mut bits)?;
    *prediction = prediction.wrapping_add(difference);
    block[0] = *prediction as i16;
    let pass = table.pass(1, &mut bits, 63, |index, value| {
        block[usize::from(ZIGZAG[index & 63]) & 63] = value;
    })?;
    *source = bits;
    Some(pass.next - 1)
}

#[inline(never)]
fn skip_portable(
    table: &AcTable,
    dc: &DcTable,
    bits: &mut BitReader<'_>,
    prediction: &mut i32,
) -> Option<()> {
    skip_inline(table, dc, bits, prediction)
}

#[inline(always)]
fn skip_inline(
    table: &AcTable,
    dc: &DcTable,
    source: &mut BitReader<'_>,
    prediction: &mut i32,
) -> Option<()> {
    let mut bits = *source;
    let difference = dc.difference(&mut bits)?;
    *prediction = prediction.wrapping_add(difference);
    table.skip_from(1, &mut bits)?;
    *source = bits;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random_numbers;

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
        let mut dc = 0;
        let stored = ac_table(true).read_up_to(last, &dc_table(), &mut bits, &mut dc, &mut block);
        let stored = stored.and_then(|last| {
            assert_eq!((dc, block[0]), (1, 1));
            last_stored = last;
            block[0] = 0;
            bits.next_marker()
        });

        // All ways agree on what is valid and where it ends.
        for may_skip in [false, true] {
            let table = ac_table(may_skip);
            let skipped = read(&|bits| {
                let mut dc = 0;
                table.skip(&dc_table(), bits, &mut dc)?;
                Some(dc)
            });
            assert_eq!(skipped, stored);
            let whole = read(&|bits| {
                let (mut whole, mut dc) = ([0; 64], 0);
                let last_of_all = table.read(&dc_table(), bits, &mut dc, &mut whole)?;
                assert_eq!(i32::from(std::mem::take(&mut whole[0])), dc);
                for (index, place) in ZIGZAG.iter().enumerate() {
                    let place = usize::from(*place);
                    if index <= last {
                        assert_eq!(whole[place], block[place]);
                    }
                    assert!(index <= last_of_all || whole[place] == 0);
                }
                Some(dc)
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
                let (table, mut dc) = (ac_table(true), 0);
                for _ in 0..2 {
                    table
                        .read_up_to(last, &dc_table(), &mut bits, &mut dc, &mut block)
                        .unwrap();
                }
                assert_eq!(bits.next_marker(), Some(0xd9), "{last}");
            }
            for may_skip in [false, true] {
                let table = ac_table(may_skip);
                let two = bytes(&["01", full, "00 0"].concat());
                let (mut bits, mut block) = (BitReader::at(&two, 0), [0; 64]);
                let mut dc = 0;
                let first = table.read(&dc_table(), &mut bits, &mut dc, &mut block);
                assert_eq!((first, dc), (Some(63), 1));
                table.skip(&dc_table(), &mut bits, &mut dc).unwrap();
                assert_eq!(dc, 0);
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
    }

    /// Codes of random lengths for random symbols, some of which may be invalid.
    fn random_codes(random: &mut impl FnMut(usize) -> usize, symbols: &[u8]) -> HuffmanCodes {
        let (mut counts, mut chosen, mut free) = ([0; 16], Vec::new(), 1);
        for (length, count) in (1..).zip(&mut counts) {
            free *= 2;
            // At least one code is left for longer ones, and few codes are short.
            let most = (free - 1).min(length).min(255 - chosen.len());
            *count = random(most + 1) as u8;
            free -= usize::from(*count);
            chosen.extend((0..*count).map(|_| symbols[random(symbols.len())]));
        }
        HuffmanCodes::new(&counts, &chosen).unwrap()
    }

    /// A block, symbol by symbol; and the bits after it.
    fn read_slowly<'a>(
        dc: &HuffmanCodes,
        ac: &HuffmanCodes,
        mut bits: BitReader<'a>,
    ) -> Option<(Block, BitReader<'a>)> {
        let mut block = [0; 64];
        bits.top_up();
        let (step, mut bits) = dc.read_step(bits, 1)?;
        block[0] = step.value;
        let mut index = 1;
        while index < 64 {
            let (step, rest) = ac.read_step(bits, 1)?;
            bits = rest;
            index += usize::from(step.zeros);
            if step.zeros == Step::END {
                break;
            }
            *block.get_mut(usize::from(*ZIGZAG.get(index)?))? = step.value;
            index += 1;
        }
        Some((block, bits))
    }

    #[test]
    fn tables_of_standard_codes_are_made_once() {
        for (_, codes) in standard::codes() {
            let [first, second] = [false, true].map(|skip| AcTable::of(&codes, skip));
            assert!(Arc::ptr_eq(&first, &second) && first.codes == codes);
        }
        let other = ac_table(false);
        assert!(AcTable::of(&other.codes, true).codes == other.codes);
    }

    #[test]
    fn tables_read_what_single_symbols_say() {
        let mut random = random_numbers(15);
        let mut blocks = 0;
        for case in 0..400 {
            let sizes: Vec<u8> = (0..16).collect();
            let dc_codes = random_codes(&mut random, &sizes);
            let mut symbols: Vec<u8> = (0..200).map(|_| random(256) as u8).collect();
            if case % 2 == 0 {
                // Small values, and few zeros.
                symbols = vec![
                    0, 1, 2, 3, 0x11, 0x12, 0x21, 4, 5, 0x31, 0xf0, 0x45, 0x1a, 0x13,
                ];
            }
            let ac_codes = random_codes(&mut random, &symbols);
            let dc = DcTable::new(&dc_codes).unwrap();
            let [ac, without_skips] = [true, false].map(|skip| AcTable::new(&ac_codes, skip));
            let data: Vec<u8> = (0..400).map(|_| random(255) as u8).collect();

            let mut reader = BitReader::at(&data, 0);
            let mut prediction = 0;
            for _ in 0..60 {
                let expected = read_slowly(&dc_codes, &ac_codes, reader);
                let next = |mut bits: BitReader<'_>| {
                    bits.top_up();
                    (bits.peek(32), bits.overrun())
                };
                let after = expected.map(|(_, bits)| next(bits));
                let read = |by: &dyn Fn(&mut BitReader<'_>, &mut i32, &mut Block) -> Option<()>| {
                    let (mut bits, mut dc, mut block) = (reader, prediction, [0; 64]);
                    by(&mut bits, &mut dc, &mut block).map(|()| (next(bits), dc, block))
                };

                let last = random(64);
                for (way, got) in [
                    read(&|bits, dc_value, block| {
                        read_inline(&ac, &dc, bits, dc_value, block).map(|_| ())
                    }),
                    read(&|bits, dc_value, block| ac.read(&dc, bits, dc_value, block).map(|_| ())),
                    read(&|bits, dc_value, block| {
                        ac.read_up_to(last, &dc, bits, dc_value, block).map(|_| ())
                    }),
                    read(&|bits, dc_value, _| ac.skip(&dc, bits, dc_value)),
                    read(&|bits, dc_value, _| without_skips.skip(&dc, bits, dc_value)),
                    read(&|bits, dc_value, _| skip_inline(&ac, &dc, bits, dc_value)),
                ]
                .into_iter()
                .enumerate()
                {
                    assert_eq!(got.map(|(next, ..)| next), after, "{case}, {way}");
                    let (Some((_, dc, block)), Some((expected, _))) = (got, expected) else {
                        continue;
                    };
                    assert_eq!(dc, prediction + i32::from(expected[0]), "{case}, {way}");
                    let seen = [64, 64, last + 1, 0, 0, 0][way];
                    for place in ZIGZAG.iter().take(seen).skip(1) {
                        let place = usize::from(*place);
                        assert_eq!(block[place], expected[place], "{case}, {way}");
                    }
                }
                match expected {
                    Some((block, rest)) if !rest.overrun() => {
                        prediction += i32::from(block[0]);
                        reader = rest;
                        blocks += 1;
                    }
                    // Goes on somewhere else.
                    _ => reader = BitReader::at(&data, random(data.len())),
                }
            }
        }
        assert!(blocks > 3_000, "{blocks}");
    }
}
