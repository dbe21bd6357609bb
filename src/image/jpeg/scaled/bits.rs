//! The bits of an entropy-coded segment, first bit first.

/// After [`Bits::fill`], at least this many bits can be looked at and taken.
const FILLED: u32 = 33;

#[derive(Clone, Copy)]
pub(super) struct Bits<'a> {
    data: &'a [u8],
    position: usize,
    /// The next bits, from the most significant down; zeros after `count`.
    buffer: u64,
    count: u32,
    /// How many of the last bits in `buffer` are zeros that the file doesn't have.
    padding: u32,
}

impl<'a> Bits<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self {
            data,
            position: 0,
            buffer: 0,
            count: 0,
            padding: 0,
        }
    }

    /// Makes 33 bits or more ready: as many as the longest code has with the number that may follow
    /// it.
    #[inline(always)]
    pub fn fill(&mut self) {
        if self.count >= FILLED {
            return;
        }
        match self.data[self.position..]
            .first_chunk()
            .map(|word| u32::from_be_bytes(*word))
        {
            Some(word) if !has_marker_byte(word) => {
                self.buffer |= u64::from(word) << (32 - self.count);
                self.count += 32;
                self.position += 4;
            }
            // By value: what has an address can't stay in registers.
            _ => *self = self.filled_bytewise(),
        }
    }

    #[cold]
    fn filled_bytewise(mut self) -> Self {
        while self.count <= 56 {
            let byte = match self.data[self.position..] {
                [0xff, 0, ..] => {
                    self.position += 2;
                    0xff
                }
                [byte, ..] if byte != 0xff => {
                    self.position += 1;
                    byte
                }
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

    #[inline(always)]
    pub fn take(&mut self, count: u32) {
        self.buffer <<= count;
        self.count -= count;
    }

    /// Whether more bits were taken than there are.
    pub fn overrun(&self) -> bool {
        self.padding > self.count
    }

    /// The marker that follows the segment; `None` where anything but the last byte's padding is
    /// left.
    pub fn marker(&mut self) -> Option<u8> {
        let left = self.count.checked_sub(self.padding)?;
        let rest = &self.data[self.position..];
        let length = rest.iter().take_while(|byte| **byte == 0xff).count();
        let marker = *rest.get(length)?;
        if left >= 8 || length == 0 || marker == 0 {
            return None;
        }
        let position = self.position + length + 1;
        *self = Self {
            position,
            ..Self::new(self.data)
        };
        Some(marker)
    }
}

fn has_marker_byte(word: u32) -> bool {
    (!word).wrapping_sub(0x0101_0101) & word & 0x8080_8080 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_in_order_without_the_stuffed_bytes() {
        let data = [
            0x12, 0xff, 0x00, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xff, 0xff, 0xd3, 0x0f,
        ];
        let mut bits = Bits::new(&data);
        for expected in [0x1, 0x2f, 0xf3, 0x45, 0x67, 0x89, 0xab, 0xcd] {
            let count = if expected == 1 { 4 } else { 8 };
            bits.fill();
            assert_eq!(bits.peek(count), expected);
            bits.take(count);
        }
        assert!(!bits.overrun());
        assert_eq!(bits.marker(), Some(0xd3));
        bits.fill();
        assert_eq!(bits.peek(8), 0x0f);
        bits.take(8);
        assert!(!bits.overrun());
        bits.take(1);
        assert!(bits.overrun());
    }

    #[test]
    fn a_segment_ends_at_its_marker_and_nowhere_else() {
        let marker = |data: &[u8], taken: u32| {
            let mut bits = Bits::new(data);
            bits.fill();
            bits.take(taken);
            bits.marker()
        };
        assert_eq!(marker(b"\x12\x34\xff\xd9", 9), Some(0xd9));
        assert_eq!(marker(b"\x12\x34\xff\xd9", 8), None, "a byte is left");
        assert_eq!(marker(b"\x12\x34\xff\xd9", 17), None, "too much was taken");
        assert_eq!(marker(b"\x12\x34", 16), None, "no marker follows");
        assert_eq!(marker(b"\x12\x34\xff", 16), None, "no marker follows");
    }

    #[test]
    fn marker_bytes_are_seen_wherever_they_are() {
        for shift in [0, 8, 16, 24] {
            assert!(has_marker_byte(0xff << shift));
            assert!(has_marker_byte(0x01fe_7f80 | 0xff << shift));
        }
        for word in [0, 0xfefe_fefe, 0x7f80_01fe, 0xf00f_f00f] {
            assert!(!has_marker_byte(word), "{word:x}");
        }
    }
}
