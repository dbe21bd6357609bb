//! Reads the bits of entropy-coded segments, most significant bit first, without the stuffed zero
//! byte that follows every data byte of `0xff` (ITU-T T.81, B.1.1.5 and F.1.2.3).

/// After [`BitReader::fill`], at least this many bits can be peeked at and consumed: the longest
/// Huffman code has 16 bits, and up to 15 bits of a coefficient's value follow it.
const FILLED: u32 = 33;

/// After [`BitReader::top_up`], at least this many bits can be peeked at and consumed.
pub(super) const TOPPED_UP: u32 = 56;

/// Reads bits up to the next marker. Past the end of a segment it returns zeros, so that decoding
/// loops need not check every read; [`BitReader::overrun`] tells afterwards.
#[derive(Clone, Copy)]
pub(super) struct BitReader<'a> {
    /// The data that has not been read, and where it ends.
    rest: &'a [u8],
    end: usize,
    /// The next bits, from the most significant one down. After `count` of them there are zeros, or
    /// bits of the byte that `rest` begins with.
    buffer: u64,
    /// Less than 64.
    count: u32,
    /// How many of the last bits in `buffer` are zeros from beyond the end of the segment.
    padding: u32,
}

impl<'a> BitReader<'a> {
    /// Reads from this position of `data` on.
    pub fn at(data: &'a [u8], position: usize) -> Self {
        Self {
            rest: &data[position..],
            end: data.len(),
            buffer: 0,
            count: 0,
            padding: 0,
        }
    }

    /// Makes at least [`FILLED`] bits available.
    #[inline(always)]
    pub fn fill(&mut self) {
        if self.count < FILLED {
            self.top_up();
        }
    }

    /// Makes at least [`TOPPED_UP`] bits available.
    ///
    /// Where none of the next bytes is `0xff`, as mostly, this takes no branch that depends on how
    /// many bits there are.
    #[inline(always)]
    pub fn top_up(&mut self) {
        let word = match self.rest.first_chunk() {
            Some(word) => u64::from_be_bytes(*word),
            None => u64::MAX,
        };
        // As many whole bytes as fit, 0 to 7, make 56 to 63 bits.
        let topped_up = self.count | TOPPED_UP;
        let bytes = ((topped_up - self.count) as usize / 8) & 7;
        if contains_ff(word >> 1 >> (self.count | 7)) {
            // Passed by value: taking its address would keep the reader out of registers.
            *self = self.filled_bytewise();
            return;
        }
        // Bits of the byte after the last whole one are set as well. They do not count, and are set
        // again by the next call.
        self.buffer |= word >> self.count;
        self.rest = &self.rest[bytes..];
        self.count = topped_up;
    }

    #[cold]
    fn filled_bytewise(mut self) -> Self {
        self.buffer &= !(u64::MAX >> self.count);
        while self.count < TOPPED_UP {
            let byte = match self.rest {
                [0xff, 0, rest @ ..] => {
                    self.rest = rest;
                    0xff
                }
                [byte, rest @ ..] if *byte != 0xff => {
                    self.rest = rest;
                    *byte
                }
                // A marker, or the end of the file.
                _ => {
                    self.padding += 8;
                    0
                }
            };
            self.buffer |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
        self
    }

    /// The next `count` bits, 1 to 32, as a number.
    #[inline(always)]
    pub fn peek(&self, count: u32) -> usize {
        (self.buffer >> (64 - count)) as usize
    }

    /// The last `size` of the next `count` bits, 1 to 32, as a number.
    #[inline(always)]
    pub fn peek_last(&self, count: u32, size: u32) -> u32 {
        (self.buffer >> (64 - count)) as u32 & !(u32::MAX << size)
    }

    #[inline(always)]
    pub fn consume(&mut self, count: u32) {
        self.buffer <<= count;
        self.count -= count;
    }

    /// Takes the next `count` bits, 1 to 32, out of filled bits.
    #[inline(always)]
    pub fn take(&mut self, count: u32) -> usize {
        let bits = self.peek(count);
        self.consume(count);
        bits
    }

    /// Fills the bits and takes the next one.
    #[inline(always)]
    pub fn next_bit(&mut self) -> bool {
        self.fill();
        self.take(1) != 0
    }

    /// Where the data begins that has not been read: no marker is before it.
    pub fn position(&self) -> usize {
        self.end - self.rest.len()
    }

    /// Whether more bits were consumed than the segment has.
    pub fn overrun(&self) -> bool {
        self.padding > self.count
    }

    /// Ends the segment and returns the code of the marker that follows it.
    ///
    /// `None` if no marker follows, or if more is left of the segment than the bits that fill its
    /// last byte.
    pub fn next_marker(&mut self) -> Option<u8> {
        let bits_left = self.count.checked_sub(self.padding)?;
        let ff_bytes = self.rest.iter().take_while(|byte| **byte == 0xff).count();
        let marker = *self.rest.get(ff_bytes)?;
        if bits_left >= 8 || ff_bytes == 0 || marker == 0 {
            return None;
        }

        *self = Self {
            rest: &self.rest[ff_bytes + 1..],
            buffer: 0,
            count: 0,
            padding: 0,
            ..*self
        };
        Some(marker)
    }
}

/// Whether one of the eight bytes is `0xff`: the usual test for a zero byte, on the complement.
#[inline(always)]
fn contains_ff(word: u64) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    (!word).wrapping_sub(ONES) & word & (ONES << 7) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_in_order_without_the_stuffed_bytes() {
        let data = [
            0x12, 0xff, 0x00, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xff, 0xff, 0xd3, 0x0f,
        ];
        let mut bits = BitReader::at(&data, 0);
        for expected in [0x1, 0x2f, 0xf3, 0x45, 0x67, 0x89, 0xab, 0xcd] {
            let count = if expected == 1 { 4 } else { 8 };
            bits.fill();
            assert_eq!(bits.peek(count), expected);
            bits.consume(count);
        }
        assert!(!bits.overrun());
        assert_eq!(bits.next_marker(), Some(0xd3));
        bits.fill();
        assert_eq!(bits.peek(8), 0x0f);
        bits.consume(8);
        assert!(!bits.overrun());
        bits.consume(1);
        assert!(bits.overrun());
    }

    #[test]
    fn a_segment_ends_at_its_marker_and_nowhere_else() {
        let marker = |data: &[u8], consumed: u32| {
            let mut bits = BitReader::at(data, 0);
            bits.fill();
            bits.consume(consumed);
            bits.next_marker()
        };
        assert_eq!(marker(b"\x12\x34\xff\xd9", 9), Some(0xd9));
        assert_eq!(marker(b"\x12\x34\xff\xd9", 8), None, "a byte is left");
        assert_eq!(
            marker(b"\x12\x34\xff\xd9", 17),
            None,
            "too much was consumed"
        );
        assert_eq!(marker(b"\x12\x34", 16), None, "no marker follows");
        assert_eq!(marker(b"\x12\x34\xff", 16), None, "no marker follows");
    }

    #[test]
    fn bytes_of_ff_are_found_at_any_position() {
        for shift in (0..64).step_by(8) {
            assert!(contains_ff(0xff << shift));
            assert!(contains_ff(0x01fe_7f80_f00f_1000 | 0xff << shift));
        }
        for word in [0, 0xfefe_fefe_fefe_fefe, 0x7f80_01fe_fe01_807f, 0xf00f_f00f] {
            assert!(!contains_ff(word), "{word:x}");
        }
    }
}
