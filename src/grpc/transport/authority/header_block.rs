//! Walks through a header block of HPACK without its tables: nothing in it changes its length.

use std::ops::Range;

/// The index of `:authority` in HPACK's static table (RFC 7541, Appendix A).
const AUTHORITY: usize = 1;

/// Replaces what is no part of an authority in a header block (RFC 7541, 6). `None` if the block is
/// not valid; it may have changed up to there.
pub(super) fn mend(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while at < block.len() {
        let first = block[at];
        let prefix = match first {
            // An indexed header, or a new size of the table: nothing follows.
            0x80.. => {
                integer(block, &mut at, 7)?;
                continue;
            }
            0x20..=0x3f => {
                integer(block, &mut at, 5)?;
                continue;
            }
            0x40..=0x7f => 6,
            _ => 4,
        };
        let index = integer(block, &mut at, prefix)?;
        let mut is_authority = index == AUTHORITY;
        if index == 0 {
            let name = string(block, &mut at)?;
            is_authority = !name.huffman && block[name.bytes] == *b":authority";
        }
        let value = string(block, &mut at)?;
        if is_authority {
            let bytes = &mut block[value.bytes];
            if value.huffman {
                mend_huffman(bytes);
            } else {
                mend_plain(bytes);
            }
        }
    }
    Some(())
}

/// A string of a header block.
struct Text {
    huffman: bool,
    bytes: Range<usize>,
}

fn string(block: &[u8], at: &mut usize) -> Option<Text> {
    let huffman = block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let end = at.checked_add(length).filter(|end| *end <= block.len())?;
    let bytes = *at..end;
    *at = end;
    Some(Text { huffman, bytes })
}

/// An integer whose first byte has a `prefix` of so many bits (RFC 7541, 5.1).
fn integer(block: &[u8], at: &mut usize, prefix: u32) -> Option<usize> {
    let limit = (1 << prefix) - 1;
    let mut value = usize::from(*block.get(*at)?) & limit;
    *at += 1;
    if value < limit {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = *block.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn mend_plain(authority: &mut [u8]) {
    for byte in authority {
        if matches!(byte, b'%' | b'/') {
            *byte = b'-';
        }
    }
}

/// The lengths of HPACK's Huffman codes in bits, each with the first code that is longer, at 8 bits.
/// Codes grow with their length (RFC 7541, Appendix B); an authority has none beyond 8 bits.
const CODES: [(usize, u8); 4] = [(5, 0x50), (6, 0xb8), (7, 0xf8), (8, 0xfe)];
const PERCENT: u8 = 0x15;
const SLASH: u8 = 0x18;
const HYPHEN: u8 = 0x16;

/// The same for a string in Huffman code. Stops at a character that no path to a socket needs.
fn mend_huffman(authority: &mut [u8]) {
    let mut bit = 0;
    while bit < authority.len() * 8 {
        let next = eight_bits(authority, bit);
        let Some((length, _)) = CODES.into_iter().find(|(_, longer)| next < *longer) else {
            return;
        };
        if length == 6 && matches!(next >> 2, PERCENT | SLASH) && bit + 6 <= authority.len() * 8 {
            for i in 0..6 {
                let (byte, mask) = ((bit + i) / 8, 0x80 >> ((bit + i) % 8));
                if HYPHEN >> (5 - i) & 1 == 1 {
                    authority[byte] |= mask;
                } else {
                    authority[byte] &= !mask;
                }
            }
        }
        bit += length;
    }
}

/// Eight bits from this one on; behind the end there are ones.
fn eight_bits(bytes: &[u8], bit: usize) -> u8 {
    let byte = |i: usize| u16::from(bytes.get(i).copied().unwrap_or(u8::MAX));
    let both = byte(bit / 8) << 8 | byte(bit / 8 + 1);
    (both >> (8 - bit % 8)) as u8
}
