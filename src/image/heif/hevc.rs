//! HEVC pictures, as in HEIC files. The decoder is `heifer`'s.

use heifer::heifer_hevc_dec::{
    self as hevc,
    decoder::{DecodeOptions, decode_picture},
    recon::Frame,
};

use super::{super::ImageError, errors::Named};

/// A coded picture may be larger than what is shown of it, by less than the largest block on each
/// side.
const LARGEST_BLOCK: u64 = 64;
/// The bytes that the decoder takes for each pixel of a picture: samples of 16 bits, and what is
/// remembered of every block.
pub(super) const BYTES_PER_PIXEL: u64 = 8;
/// The time of decoding one pixel, in nanoseconds.
pub(super) const NANOSECONDS_PER_PIXEL: u64 = 160;

/// Decodes a picture that is to have `size`, or a little more.
pub(super) fn decode(stream: &[u8], size: (u32, u32), named: Named) -> Result<Frame, ImageError> {
    let side = |length: u32| u64::from(length) + LARGEST_BLOCK;
    let options = DecodeOptions {
        max_pixels: side(size.0) * side(size.1),
        ..DecodeOptions::default()
    };
    decode_picture(stream, options).map_err(|error| match error {
        hevc::Error::Unimplemented(what) => named.unsupported(what),
        hevc::Error::UnexpectedEof => named.damaged("the data of its picture ends early"),
        error => named.damaged(error.to_string()),
    })
}
