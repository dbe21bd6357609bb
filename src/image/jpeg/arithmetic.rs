//! Arithmetic coding of coefficients (ITU-T T.81, annex D, F.1.4, F.2.4, G.1.3 and G.2).
//!
//! Each binary decision is coded with an estimate of its probability, which is a state of a machine
//! and adapts to the decisions that were made in the same context.

use super::{
    frame::Frame,
    huffman::Block,
    marker,
    scan::{EntropyDecoder, Fault, ScanHeader},
    tables::{Conditioning, Tables},
    zigzag::ZIGZAG,
};

/// The states of the estimate (table D.3): the size of the less probable interval, the next state
/// after the less and after the more probable decision, and whether the former swaps the two.
#[rustfmt::skip]
const STATES: [(u32, u8, u8, bool); 114] = [
    (0x5a1d, 1, 1, true), (0x2586, 14, 2, false), (0x1114, 16, 3, false), (0x080b, 18, 4, false),
    (0x03d8, 20, 5, false), (0x01da, 23, 6, false), (0x00e5, 25, 7, false), (0x006f, 28, 8, false),
    (0x0036, 30, 9, false), (0x001a, 33, 10, false), (0x000d, 35, 11, false),
    (0x0006, 9, 12, false), (0x0003, 10, 13, false), (0x0001, 12, 13, false),
    (0x5a7f, 15, 15, true), (0x3f25, 36, 16, false), (0x2cf2, 38, 17, false),
    (0x207c, 39, 18, false), (0x17b9, 40, 19, false), (0x1182, 42, 20, false),
    (0x0cef, 43, 21, false), (0x09a1, 45, 22, false), (0x072f, 46, 23, false),
    (0x055c, 48, 24, false), (0x0406, 49, 25, false), (0x0303, 51, 26, false),
    (0x0240, 52, 27, false), (0x01b1, 54, 28, false), (0x0144, 56, 29, false),
    (0x00f5, 57, 30, false), (0x00b7, 59, 31, false), (0x008a, 60, 32, false),
    (0x0068, 62, 33, false), (0x004e, 63, 34, false), (0x003b, 32, 35, false),
    (0x002c, 33, 9, false), (0x5ae1, 37, 37, true), (0x484c, 64, 38, false),
    (0x3a0d, 65, 39, false), (0x2ef1, 67, 40, false), (0x261f, 68, 41, false),
    (0x1f33, 69, 42, false), (0x19a8, 70, 43, false), (0x1518, 72, 44, false),
    (0x1177, 73, 45, false), (0x0e74, 74, 46, false), (0x0bfb, 75, 47, false),
    (0x09f8, 77, 48, false), (0x0861, 78, 49, false), (0x0706, 79, 50, false),
    (0x05cd, 48, 51, false), (0x04de, 50, 52, false), (0x040f, 50, 53, false),
    (0x0363, 51, 54, false), (0x02d4, 52, 55, false), (0x025c, 53, 56, false),
    (0x01f8, 54, 57, false), (0x01a4, 55, 58, false), (0x0160, 56, 59, false),
    (0x0125, 57, 60, false), (0x00f6, 58, 61, false), (0x00cb, 59, 62, false),
    (0x00ab, 61, 63, false), (0x008f, 61, 32, false), (0x5b12, 65, 65, true),
    (0x4d04, 80, 66, false), (0x412c, 81, 67, false), (0x37d8, 82, 68, false),
    (0x2fe8, 83, 69, false), (0x293c, 84, 70, false), (0x2379, 86, 71, false),
    (0x1edf, 87, 72, false), (0x1aa9, 87, 73, false), (0x174e, 72, 74, false),
    (0x1424, 72, 75, false), (0x119c, 74, 76, false), (0x0f6b, 74, 77, false),
    (0x0d51, 75, 78, false), (0x0bb6, 77, 79, false), (0x0a40, 77, 48, false),
    (0x5832, 80, 81, true), (0x4d1c, 88, 82, false), (0x438e, 89, 83, false),
    (0x3bdd, 90, 84, false), (0x34ee, 91, 85, false), (0x2eae, 92, 86, false),
    (0x299a, 93, 87, false), (0x2516, 86, 71, false), (0x5570, 88, 89, true),
    (0x4ca9, 95, 90, false), (0x44d9, 96, 91, false), (0x3e22, 97, 92, false),
    (0x3824, 99, 93, false), (0x32b4, 99, 94, false), (0x2e17, 93, 86, false),
    (0x56a8, 95, 96, true), (0x4f46, 101, 97, false), (0x47e5, 102, 98, false),
    (0x41cf, 103, 99, false), (0x3c3d, 104, 100, false), (0x375e, 99, 93, false),
    (0x5231, 105, 102, false), (0x4c0f, 106, 103, false), (0x4639, 107, 104, false),
    (0x415e, 103, 99, false), (0x5627, 105, 106, true), (0x50e7, 108, 107, false),
    (0x4b85, 109, 103, false), (0x5597, 110, 109, false), (0x504f, 111, 107, false),
    (0x5a10, 110, 111, true), (0x5522, 112, 109, false), (0x59eb, 112, 111, true),
    // A fixed estimate of one half.
    (0x5a1d, 113, 113, false),
];

/// The estimate of one decision's probability.
#[derive(Clone, Copy, Default)]
struct Estimate {
    state: u8,
    /// The decision that is more probable.
    probable: bool,
}

/// Decodes binary decisions (D.2).
struct DecisionDecoder<'a> {
    data: &'a [u8],
    position: usize,
    /// The coded number less the base of the current interval: 16 bits, and below them the bits that
    /// follow.
    code: u32,
    /// The size of the current interval.
    interval: u32,
    /// Bits of the last byte that have not moved up.
    count: u32,
    /// How many bytes beyond the end of the file were asked for.
    missing: u32,
}

impl<'a> DecisionDecoder<'a> {
    fn at(data: &'a [u8], position: usize) -> Self {
        let mut decoder = Self {
            data,
            position,
            code: 0,
            interval: 0x1_0000,
            count: 0,
            missing: 0,
        };
        for _ in 0..2 {
            decoder.read_byte();
            decoder.code <<= 8;
        }
        decoder
    }

    /// Appends the next byte. Zeros at the end of the data are not coded, so a marker stands for as
    /// many of them as are needed.
    fn read_byte(&mut self) {
        let byte = match self.data[self.position..] {
            [0xff, 0, ..] => {
                self.position += 2;
                0xff
            }
            [byte, ..] if byte != 0xff => {
                self.position += 1;
                byte
            }
            [0xff, _, ..] => 0,
            _ => {
                self.missing = self.missing.saturating_add(1);
                0
            }
        };
        self.code |= u32::from(byte) << 8;
    }

    fn decide(&mut self, estimate: &mut Estimate) -> bool {
        let (size, after_less, after_more, swap) = STATES[usize::from(estimate.state)];
        self.interval -= size;
        let below = self.code >> 16 < self.interval;
        if below && self.interval >= 0x8000 {
            return estimate.probable;
        }

        // The smaller interval is that of the less probable decision, whichever comes first.
        let is_probable = below == (self.interval >= size);
        if !below {
            self.code -= self.interval << 16;
            self.interval = size;
        }
        let decision = estimate.probable == is_probable;
        if is_probable {
            estimate.state = after_more;
        } else {
            estimate.state = after_less;
            estimate.probable ^= swap;
        }

        while self.interval < 0x8000 {
            if self.count == 0 {
                self.read_byte();
                self.count = 8;
            }
            self.interval <<= 1;
            self.code <<= 1;
            self.count -= 1;
        }
        decision
    }

    /// A decision that is not predicted.
    fn bit(&mut self) -> bool {
        let mut fixed = Estimate {
            state: 113,
            probable: false,
        };
        self.decide(&mut fixed)
    }
}

/// Decodes the blocks of any scan that is coded arithmetically.
pub(super) struct ArithmeticDecoder<'a> {
    decisions: DecisionDecoder<'a>,
    step: Step,
    low: u32,
    first: usize,
    last: usize,
    conditioning: Conditioning,
    /// By destination, with the contexts of tables F.4 and F.5.
    dc: [[Estimate; 49]; 4],
    ac: [[Estimate; 245]; 4],
    components: Vec<Component>,
}

#[derive(Clone, Copy)]
enum Step {
    Sequential,
    DcFirst,
    DcRefine,
    AcFirst,
    AcRefine,
}

struct Component {
    dc: usize,
    ac: usize,
    predictor: i32,
    /// The context that the previous difference leads to.
    context: usize,
}

impl<'a> ArithmeticDecoder<'a> {
    pub fn new(
        encoded: &'a [u8],
        position: usize,
        frame: &Frame,
        scan: &ScanHeader,
        tables: &Tables,
    ) -> Self {
        let step = match (frame.progressive, scan.first, scan.high) {
            (false, ..) => Step::Sequential,
            (true, 0, 0) => Step::DcFirst,
            (true, 0, _) => Step::DcRefine,
            (true, _, 0) => Step::AcFirst,
            (true, ..) => Step::AcRefine,
        };
        let (first, last) = match step {
            Step::Sequential => (1, 63),
            _ => (scan.first, scan.last),
        };
        let components = scan.components.iter().map(|component| Component {
            dc: component.dc,
            ac: component.ac,
            predictor: 0,
            context: 0,
        });
        Self {
            decisions: DecisionDecoder::at(encoded, position),
            step,
            low: scan.low,
            first,
            last,
            conditioning: tables.conditioning.clone(),
            dc: [[Estimate::default(); 49]; 4],
            ac: [[Estimate::default(); 245]; 4],
            components: components.collect(),
        }
    }

    /// Decodes a difference and returns the DC coefficient (F.2.4.1).
    fn dc_coefficient(&mut self, component: usize) -> Result<i32, Fault> {
        let component = &mut self.components[component];
        let estimates = &mut self.dc[component.dc];
        let decisions = &mut self.decisions;
        let context = component.context;
        if !decisions.decide(&mut estimates[context]) {
            component.context = 0;
            return Ok(component.predictor);
        }

        let negative = decisions.decide(&mut estimates[context + 1]);
        let first = context + 2 + usize::from(negative);
        let magnitude = magnitude(decisions, estimates, first, 20)?;
        let (lower, upper) = self.conditioning.dc[component.dc];
        let sign = 4 * usize::from(negative);
        component.context = match magnitude.category {
            category if category < (1 << lower) >> 1 => 0,
            category if category > (1 << upper) >> 1 => 12 + sign,
            _ => 4 + sign,
        };
        let difference = signed(magnitude.value, negative);
        component.predictor = component.predictor.wrapping_add(difference);
        Ok(component.predictor)
    }

    /// Decodes the first bits of a range of AC coefficients (F.2.4.2).
    fn ac_coefficients(&mut self, component: usize, block: &mut Block) -> Result<(), Fault> {
        let destination = self.components[component].ac;
        let estimates = &mut self.ac[destination];
        let decisions = &mut self.decisions;
        let mut index = self.first;
        while index <= self.last {
            if decisions.decide(&mut estimates[3 * (index - 1)]) {
                break;
            }
            while !decisions.decide(&mut estimates[3 * (index - 1) + 1]) {
                index += 1;
                if index > self.last {
                    return Err(Fault::Invalid);
                }
            }

            let negative = decisions.bit();
            let larger = if index <= usize::from(self.conditioning.ac[destination]) {
                189
            } else {
                217
            };
            let value = ac_magnitude(decisions, estimates, 3 * (index - 1) + 2, larger)?;
            block[usize::from(ZIGZAG[index])] =
                signed(value, negative).wrapping_shl(self.low) as i16;
            index += 1;
        }
        Ok(())
    }

    /// Decodes one more bit of a range of AC coefficients (G.1.3.3).
    fn refine_ac(&mut self, block: &mut Block) -> Result<(), Fault> {
        let estimates = &mut self.ac[self.components[0].ac];
        let decisions = &mut self.decisions;
        let bit = 1i16 << self.low;
        let known_end = (1..=self.last)
            .rev()
            .find(|index| block[usize::from(ZIGZAG[*index])] != 0)
            .unwrap_or(0);

        let mut index = self.first;
        while index <= self.last {
            if index > known_end && decisions.decide(&mut estimates[3 * (index - 1)]) {
                break;
            }
            loop {
                let context = 3 * (index - 1);
                let coefficient = &mut block[usize::from(ZIGZAG[index])];
                index += 1;
                if *coefficient != 0 {
                    if decisions.decide(&mut estimates[context + 2]) {
                        let step = if *coefficient < 0 { -bit } else { bit };
                        *coefficient = coefficient.wrapping_add(step);
                    }
                    break;
                }
                if decisions.decide(&mut estimates[context + 1]) {
                    *coefficient = if decisions.bit() { -bit } else { bit };
                    break;
                }
                if index > self.last {
                    return Err(Fault::Invalid);
                }
            }
        }
        Ok(())
    }
}

/// The magnitude of a value, less 1, and its highest bit, which is its category.
struct Magnitude {
    value: i32,
    category: i32,
}

/// Decodes a magnitude (figures F.23 and F.24) whose first decision has this context, and the next
/// ones those from `larger` on.
fn magnitude<const N: usize>(
    decisions: &mut DecisionDecoder<'_>,
    estimates: &mut [Estimate; N],
    first: usize,
    larger: usize,
) -> Result<Magnitude, Fault> {
    let mut context = first;
    let mut category = 0;
    if decisions.decide(&mut estimates[context]) {
        category = 1;
        context = larger;
        while decisions.decide(&mut estimates[context]) {
            category <<= 1;
            if category == 0x8000 {
                return Err(Fault::Invalid);
            }
            context += 1;
        }
    }
    Ok(Magnitude {
        value: category | lower_bits(decisions, estimates, context, category),
        category,
    })
}

/// The same for AC coefficients, whose first two decisions share a context.
fn ac_magnitude(
    decisions: &mut DecisionDecoder<'_>,
    estimates: &mut [Estimate; 245],
    first: usize,
    larger: usize,
) -> Result<i32, Fault> {
    if !decisions.decide(&mut estimates[first]) {
        return Ok(0);
    }
    if !decisions.decide(&mut estimates[first]) {
        return Ok(1);
    }
    let mut context = larger;
    let mut category = 2;
    while decisions.decide(&mut estimates[context]) {
        category <<= 1;
        if category == 0x8000 {
            return Err(Fault::Invalid);
        }
        context += 1;
    }
    Ok(category | lower_bits(decisions, estimates, context, category))
}

/// The bits below the highest one. They share a context, 14 after that of the category.
fn lower_bits<const N: usize>(
    decisions: &mut DecisionDecoder<'_>,
    estimates: &mut [Estimate; N],
    context: usize,
    category: i32,
) -> i32 {
    let mut value = 0;
    let mut bit = category >> 1;
    while bit > 0 {
        if decisions.decide(&mut estimates[context + 14]) {
            value |= bit;
        }
        bit >>= 1;
    }
    value
}

fn signed(magnitude_less_1: i32, negative: bool) -> i32 {
    let magnitude = magnitude_less_1 + 1;
    if negative { -magnitude } else { magnitude }
}

impl EntropyDecoder for ArithmeticDecoder<'_> {
    fn block(&mut self, component: usize, block: &mut Block) -> Result<usize, Fault> {
        match self.step {
            Step::Sequential => {
                block[0] = self.dc_coefficient(component)? as i16;
                self.ac_coefficients(component, block)?;
            }
            Step::DcFirst => {
                block[0] = self.dc_coefficient(component)?.wrapping_shl(self.low) as i16;
            }
            Step::DcRefine => {
                if self.decisions.bit() {
                    block[0] |= 1 << self.low;
                }
            }
            Step::AcFirst => self.ac_coefficients(component, block)?,
            Step::AcRefine => self.refine_ac(block)?,
        }
        Ok(63)
    }

    fn restart(&mut self, number: u8) -> Result<(), Fault> {
        // The end of an interval may not have been needed.
        let data = self.decisions.data;
        let mut position = self.decisions.position;
        while let Some([first, second]) = data.get(position..position + 2) {
            if *first == 0xff && !matches!(second, 0 | 0xff) {
                break;
            }
            position += 1;
        }
        if data.get(position + 1) != Some(&(marker::RST0 + number)) {
            return Err(Fault::Restart);
        }

        self.decisions = DecisionDecoder::at(data, position + 2);
        self.dc = [[Estimate::default(); 49]; 4];
        self.ac = [[Estimate::default(); 245]; 4];
        for component in &mut self.components {
            component.predictor = 0;
            component.context = 0;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Fault> {
        // The decoder looks two bytes ahead.
        if self.decisions.missing > 2 {
            Err(Fault::EndsEarly)
        } else {
            Ok(())
        }
    }

    fn position(&self) -> usize {
        self.decisions.position
    }
}
