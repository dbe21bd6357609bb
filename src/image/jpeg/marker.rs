//! The marker codes of JPEG that the decoder looks at (ITU-T T.81, table B.1).
//!
//! A marker is the byte `0xff` followed by one of these codes. Most markers begin a segment: a
//! length of two bytes, which counts itself, and parameters.

/// Temporary use in arithmetic coding; has no parameters.
pub(super) const TEM: u8 = 0x01;

/// Start of frame, baseline DCT.
pub(super) const SOF0: u8 = 0xc0;
/// Start of frame, extended sequential DCT.
pub(super) const SOF1: u8 = 0xc1;
/// Start of frame, progressive DCT.
pub(super) const SOF2: u8 = 0xc2;
/// Start of frame, lossless.
pub(super) const SOF3: u8 = 0xc3;
/// Start of frame, extended sequential DCT with arithmetic coding.
pub(super) const SOF9: u8 = 0xc9;
/// Start of frame, progressive DCT with arithmetic coding.
pub(super) const SOF10: u8 = 0xca;

/// Define Huffman tables.
pub(super) const DHT: u8 = 0xc4;
/// Define the conditioning of arithmetic coding.
pub(super) const DAC: u8 = 0xcc;
/// The first of the eight restart markers.
pub(super) const RST0: u8 = 0xd0;
/// Start of image.
pub(super) const SOI: u8 = 0xd8;
/// End of image.
pub(super) const EOI: u8 = 0xd9;
/// Start of scan.
pub(super) const SOS: u8 = 0xda;
/// Define quantization tables.
pub(super) const DQT: u8 = 0xdb;
/// Define restart interval.
pub(super) const DRI: u8 = 0xdd;

/// Application segment 0, used by JFIF.
pub(super) const APP0: u8 = 0xe0;
/// Application segment 1, used by EXIF.
pub(super) const APP1: u8 = 0xe1;
/// Application segment 14, used by Adobe.
pub(super) const APP14: u8 = 0xee;

/// Whether this code begins a frame header, of any coding process.
pub(super) fn is_start_of_frame(code: u8) -> bool {
    // The gaps are DHT, JPG (reserved) and DAC.
    matches!(code, 0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf)
}
