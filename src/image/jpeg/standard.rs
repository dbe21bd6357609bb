//! The typical Huffman codes of ITU-T T.81, annex K.3, which Motion JPEG takes for granted.

use super::huffman::HuffmanCodes;

/// By length: how many codes of the luma's DC and AC coefficients have 1, 2, ... 16 bits.
const LUMA_DC: [u8; 16] = [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0];
const LUMA_AC: [u8; 16] = [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125];
const CHROMA_DC: [u8; 16] = [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0];
const CHROMA_AC: [u8; 16] = [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119];

/// The AC symbols with the shortest codes. All others follow in ascending order.
const LUMA_FREQUENT: &[u8] = &[
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07,
    0x22, 0x71, 0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0,
    0x24, 0x33, 0x62, 0x72, 0x82, 0x09, 0x0a,
];
const CHROMA_FREQUENT: &[u8] = &[
    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71,
    0x13, 0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0,
    0x15, 0x62, 0x72, 0xd1, 0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1,
];

/// The codes of DC and AC coefficients, for luma and then for chroma.
pub(super) fn codes() -> [(HuffmanCodes, HuffmanCodes); 2] {
    // The sizes of differences, from 0 to 11 bits.
    let dc_symbols: Vec<u8> = (0..12).collect();
    [
        (LUMA_DC, LUMA_AC, LUMA_FREQUENT),
        (CHROMA_DC, CHROMA_AC, CHROMA_FREQUENT),
    ]
    .map(|(dc, ac, frequent)| {
        let codes = |counts, symbols: &[u8]| {
            HuffmanCodes::new(counts, symbols).expect("the standard's tables are valid")
        };
        (codes(&dc, &dc_symbols), codes(&ac, &ac_symbols(frequent)))
    })
}

/// The frequent symbols, then all others: up to 15 zeros and a value of 1 to 10 bits.
fn ac_symbols(frequent: &[u8]) -> Vec<u8> {
    let all = (0..16).flat_map(|zeros| (1..=10).map(move |size| zeros << 4 | size));
    let others = all.filter(|symbol| !frequent.contains(symbol));
    frequent.iter().copied().chain(others).collect()
}
