//! Huffman codes of JPEG: ITU-T T.81, annexes C and F.2.2.

use super::bits::Bits;

/// How many bits are looked up at once for a single step, and for coefficients that are passed
/// over. Tables for more bits would not fit into the processor's nearest cache.
const STEP_BITS: u32 = 10;
const PASSED_BITS: u32 = 12;
const END_OF_BLOCK: u8 = 0x00;
const SIXTEEN_ZEROS: u8 = 0xf0;

/// One coefficient, or the end of the block, out of the bits.
#[derive(Clone, Copy, Default)]
struct Step {
    value: i16,
    /// Zeros before it; [`Step::END`] at the end of the block.
    zeros: u8,
    /// 0 = it takes more bits than the table looks at.
    bits: u8,
}

impl Step {
    const END: u8 = 64;
}

/// Several symbols at once.
#[derive(Clone, Copy, Default)]
struct Passed {
    /// By how many coefficients they go forward; the end of the block counts as one.
    forward: u8,
    /// How many bits they take, and [`Passed::ENDS`] if the last is the end of the block. 0 = more
    /// than the table looks at.
    bits: u8,
}

impl Passed {
    const ENDS: u8 = 0x80;
}

/// The codes of one table.
pub(super) struct Codes {
    /// By length: the first 16-bit window that is beyond the codes of this length.
    beyond: [u32; 17],
    /// By length: what to add to a code to get its symbol's index.
    offset: [i32; 17],
    symbols: Vec<u8>,
}

impl Codes {
    /// Codes of which `counts[i]` are `i + 1` bits long; `None` where there can't be so many.
    pub fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        let mut codes = Self {
            beyond: [0; 17],
            offset: [0; 17],
            symbols: symbols.to_vec(),
        };
        let (mut code, mut index) = (0, 0);
        for (length, count) in (1..).zip(counts) {
            codes.offset[length] = index - code;
            index += i32::from(*count);
            code += i32::from(*count);
            if code > 1 << length {
                return None;
            }
            codes.beyond[length] = (code as u32) << (16 - length);
            code <<= 1;
        }
        (index as usize == symbols.len()).then_some(codes)
    }

    /// The symbol at the start of a window of 16 bits, and its length in bits.
    fn symbol(&self, window: usize) -> Option<(u8, u32)> {
        let length = (1..=16).find(|length| (window as u32) < self.beyond[*length])?;
        let index = (window >> (16 - length)) as i32 + self.offset[length];
        Some((*self.symbols.get(index as usize)?, length as u32))
    }
}

/// The number that `size` bits stand for (F.2.2.1, EXTEND).
fn extend(bits: usize, size: u8) -> i16 {
    let negative = bits >> (size - 1) == 0;
    (bits as i32 - if negative { (1 << size) - 1 } else { 0 }) as i16
}

/// Looks up steps.
struct Lookup {
    codes: Codes,
    steps: Vec<Step>,
}

impl Lookup {
    fn new(codes: Codes) -> Self {
        let steps = (0..1 << STEP_BITS)
            .map(|window| step_within(&codes, window, STEP_BITS).unwrap_or_default());
        Self {
            steps: steps.collect(),
            codes,
        }
    }

    /// Takes the next step out of filled bits; `None` where the codes make no sense.
    #[inline(always)]
    fn step(&self, bits: &mut Bits<'_>) -> Option<Step> {
        let mut step = self.steps[bits.peek(STEP_BITS)];
        if step.bits == 0 {
            step = step_within(&self.codes, bits.peek(32), 32)?;
        }
        bits.take(step.bits.into());
        Some(step)
    }
}

/// A table for DC coefficients, the first of their blocks.
pub(super) struct DcTable(Lookup);

impl DcTable {
    /// `None` where the codes stand for anything but differences.
    pub fn new(codes: Codes) -> Option<Self> {
        codes
            .symbols
            .iter()
            .all(|size| *size < 16)
            .then(|| Self(Lookup::new(codes)))
    }

    /// The difference to the DC coefficient of the block before (F.2.2.1).
    #[inline(always)]
    pub fn difference(&self, bits: &mut Bits<'_>) -> Option<i32> {
        bits.fill();
        // No bits, which would end a block, are no difference.
        Some(self.0.step(bits)?.value.into())
    }
}

/// A table for AC coefficients, all others of a block.
pub(super) struct AcTable {
    lookup: Lookup,
    passed: Vec<Passed>,
}

impl AcTable {
    pub fn new(codes: Codes) -> Self {
        let passed = (0..1 << PASSED_BITS)
            .map(|window| passed_within(&codes, window))
            .collect();
        Self {
            lookup: Lookup::new(codes),
            passed,
        }
    }

    /// Reads the coefficients of one block from the second on (F.2.2.2), and stores those up to
    /// `last` in zigzag order, dequantised. Returns whether any of these is other than zero; `None`
    /// where the codes make no sense.
    // Inlined, it has too few registers.
    #[inline(never)]
    pub fn read(
        &self,
        source: &mut Bits<'_>,
        quantization: &[f32; 64],
        last: usize,
        block: &mut [f32; 64],
    ) -> Option<bool> {
        let mut bits = *source;
        let mut index = 1;
        let mut any = false;
        while index < 64 {
            bits.fill();
            if index > last {
                let passed = self.passed[bits.peek(PASSED_BITS)];
                if passed.bits != 0 && index + usize::from(passed.forward) <= 64 {
                    bits.take((passed.bits & !Passed::ENDS).into());
                    index += usize::from(passed.forward);
                    if passed.bits & Passed::ENDS != 0 {
                        break;
                    }
                    continue;
                }
            }
            let step = self.lookup.step(&mut bits)?;
            if step.zeros == Step::END {
                break;
            }
            index += usize::from(step.zeros);
            if index <= last {
                block[index] = f32::from(step.value) * quantization[index];
                any = true;
            }
            index += 1;
        }
        *source = bits;
        (index <= 64).then_some(any)
    }
}

/// The first step in a window of `width` bits; `None` where it needs more bits, or the codes make
/// no sense.
fn step_within(codes: &Codes, window: usize, width: u32) -> Option<Step> {
    let (symbol, length) = codes.symbol(if width < 16 {
        window << (16 - width)
    } else {
        window >> (width - 16)
    })?;
    let (zeros, size) = (symbol >> 4, symbol & 15);
    let bits = length + u32::from(size);
    if bits > width {
        return None;
    }
    let (value, zeros) = match (symbol, size) {
        (END_OF_BLOCK, _) => (0, Step::END),
        (SIXTEEN_ZEROS, _) => (0, 15),
        (_, 0) => return None,
        _ => (
            extend(window >> (width - bits) & ((1 << size) - 1), size),
            zeros,
        ),
    };
    Some(Step {
        value,
        zeros,
        bits: bits as u8,
    })
}

fn passed_within(codes: &Codes, window: usize) -> Passed {
    let mut passed = Passed::default();
    loop {
        let left = PASSED_BITS - u32::from(passed.bits);
        let Some(step) = step_within(codes, window & ((1 << left) - 1), left) else {
            return passed;
        };
        passed.bits += step.bits;
        if step.zeros == Step::END {
            passed.forward += 1;
            passed.bits |= Passed::ENDS;
            return passed;
        }
        passed.forward += step.zeros + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes 0, 10, 110 and 1110 for: end of block, one bit, two zeros and three bits, sixteen
    /// zeros.
    fn ac_table() -> AcTable {
        let counts = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        AcTable::new(Codes::new(&counts, &[0x00, 0x01, 0x23, 0xf0]).unwrap())
    }

    /// Bytes out of a string of bits, filled up with ones, and the marker of the end.
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

    fn read(bits: &str, last: usize) -> Option<(Vec<f32>, bool)> {
        let bytes = bytes(bits);
        let mut bits = Bits::new(&bytes);
        let mut block = [0.0; 64];
        let any = ac_table().read(
            &mut bits,
            &std::array::from_fn(|index| index as f32),
            last,
            &mut block,
        )?;
        bits.marker()?;
        Some((block[..=last].to_vec(), any))
    }

    #[test]
    fn coefficients_up_to_the_last_are_stored_and_the_rest_passed_over() {
        // 1 at 1; two zeros and -6 at 4; 1 at 5; sixteen zeros and -1 at 22; end.
        let block = "101 110001 101 1110 100 0";
        assert_eq!(
            read(block, 5),
            Some((vec![0.0, 1.0, 0.0, 0.0, -24.0, 5.0], true))
        );
        assert_eq!(read(block, 3), Some((vec![0.0, 1.0, 0.0, 0.0], true)));
        assert_eq!(read(block, 63).unwrap().0[22], -22.0);
        assert_eq!(read("1110 101 0", 3), Some((vec![0.0; 4], false)));
        assert_eq!(read("0", 3), Some((vec![0.0; 4], false)));
    }

    #[test]
    fn a_full_block_has_no_end_and_the_next_begins_at_once() {
        let full = "101".repeat(63);
        for last in [1, 4, 24, 62, 63] {
            assert!(read(&full, last).unwrap().1, "{last}");
            let two = bytes(&[&full[..], "101 0"].concat());
            let (mut bits, mut block) = (Bits::new(&two), [0.0; 64]);
            let table = ac_table();
            for _ in 0..2 {
                table.read(&mut bits, &[1.0; 64], last, &mut block).unwrap();
            }
            assert_eq!(bits.marker(), Some(0xd9), "{last}");
        }
    }

    #[test]
    fn codes_that_make_no_sense_are_noticed() {
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
            Codes::new(&[3; 16], &[0; 48]).is_none(),
            "three codes of one bit"
        );
        assert!(
            Codes::new(&[1; 16], &[0; 15]).is_none(),
            "fewer symbols than codes"
        );
    }

    #[test]
    fn numbers_extend_as_the_standard_says() {
        assert_eq!(
            [(0, 1), (1, 1), (0, 3), (3, 3), (4, 3), (7, 3)].map(|(bits, size)| extend(bits, size)),
            [-1, 1, -7, -4, 4, 7]
        );
        assert_eq!((extend(0, 15), extend(0x7fff, 15)), (-32767, 32767));
    }
}
