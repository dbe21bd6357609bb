//! JPEG files: the header is read and checked here, then the file is decoded by one of
//! up to three decoders.
//!
//! - [`scaled`] decodes common sequential files at a fraction of their size, if the caller allows;
//! - `turbo` (feature `turbojpeg`) decodes with libjpeg-turbo, bit-exact with Pillow;
//! - zune-jpeg decodes everything else, and decides what is wrong with damaged files.

mod embedded;
mod header;
mod marker;
mod scaled;
#[cfg(feature = "turbojpeg")]
mod turbo;

use std::borrow::Cow;

use zune_jpeg::{
    JpegDecoder,
    errors::DecodeErrors,
    zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions},
};

pub(super) use self::embedded::{ExpectedFrame, decode_embedded};
use self::{
    header::{ColourHandling, Header},
    scaled::Scale,
};
use super::{
    Exif, ImageError, ImageFormat, PreprocessConfig,
    orientation::Orientation,
    pixels::{PixelLayout, Pixels, resize_buffer},
};

/// The largest width or height that a frame header can state.
const MAX_SIDE: usize = u16::MAX as usize;

/// Decodes a JPEG file into `pixels`, at reduced scale if its shorter side then still has at least
/// `min_shorter_side` pixels. `None` decodes at full size.
pub(super) fn decode(
    pixels: &mut Pixels,
    encoded: &[u8],
    config: &PreprocessConfig,
    min_shorter_side: Option<u32>,
) -> Result<(), ImageError> {
    let header = Header::read(encoded)?;
    config.check_size(header.width, header.height)?;
    header.check_length(encoded)?;

    let colours = header.colour_handling()?;
    let input = hide_marker(encoded, colours.misleading_marker);
    let options = DecoderOptions::default()
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        // Without strict mode, missing parts of the image would be painted gray.
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(colours.output);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&input[..]), options);
    decoder
        .decode_headers()
        .map_err(|error| explain(error, &header, encoded))?;
    if decoder.dimensions() != Some((header.width as usize, header.height as usize)) {
        return Err(damaged("two headers disagree about the size"));
    }

    pixels.layout = colours.layout;
    pixels.orientation = match (config.exif, decoder.exif()) {
        (Exif::Apply, Some(block)) => Orientation::from_exif_block(block),
        _ => Orientation::default(),
    };

    if let Some(min_shorter_side) = min_shorter_side
        && let Some(scale) = Scale::choose(&header, min_shorter_side)
        && is_scalable(&header, &colours, encoded)
        && scaled::decode(pixels, encoded, &header, scale).is_some()
    {
        return Ok(());
    }

    pixels.width = header.width;
    pixels.height = header.height;
    let row = header.width as usize * pixels.layout.channels();
    resize_buffer(&mut pixels.data, row * header.height as usize);

    // An error of libjpeg-turbo is not reported: zune-jpeg then decides, so that builds with and
    // without it reject the same files with the same messages.
    #[cfg(feature = "turbojpeg")]
    if header.components.len() < 4 && turbo::decode(pixels, encoded).is_ok() {
        return Ok(());
    }

    // zune-jpeg writes rows in order and may stop early without an error. The last row then still
    // has this pattern.
    let last_row = pixels.data.len() - row;
    for (byte, mark) in pixels.data[last_row..].iter_mut().zip(unlikely_pattern()) {
        *byte = mark;
    }
    decoder
        .decode_into(&mut pixels.data)
        .map_err(|error| explain(error, &header, encoded))?;
    if pixels.data[last_row..]
        .iter()
        .copied()
        .eq(unlikely_pattern().take(row))
    {
        return Err(truncated(encoded));
    }
    Ok(())
}

/// Returns the file with the marker code at this position replaced by that of a segment which
/// decoders ignore.
fn hide_marker(encoded: &[u8], position: Option<usize>) -> Cow<'_, [u8]> {
    match position {
        Some(position) => {
            let mut copy = encoded.to_vec();
            copy[position] = marker::APP15;
            Cow::Owned(copy)
        }
        None => Cow::Borrowed(encoded),
    }
}

/// Whether [`scaled::decode`] may be tried. Files with four channels, with mislabelled colours or
/// without an end are left to the general decoder, which is known to handle them.
fn is_scalable(header: &Header, colours: &ColourHandling, encoded: &[u8]) -> bool {
    header.components.len() < 4
        && colours.misleading_marker.is_none()
        && (colours.output == ColorSpace::RGB || colours.layout == PixelLayout::Gray)
        && header.is_complete(encoded)
}

fn unlikely_pattern() -> impl Iterator<Item = u8> {
    (0u8..=255)
        .cycle()
        .map(|index| index.wrapping_mul(151) ^ 0x5a)
}

/// Translates an error of zune-jpeg.
fn explain(error: DecodeErrors, header: &Header, encoded: &[u8]) -> ImageError {
    if !header.is_complete(encoded) {
        return truncated(encoded);
    }
    match error {
        DecodeErrors::ExhaustedData | DecodeErrors::IoErrors(_) => truncated(encoded),
        error => damaged(error.to_string().trim().trim_matches('"')),
    }
}

fn truncated(encoded: &[u8]) -> ImageError {
    ImageError::Truncated {
        format: ImageFormat::Jpeg,
        bytes: encoded.len(),
    }
}

fn damaged(reason: &str) -> ImageError {
    ImageError::Damaged {
        format: ImageFormat::Jpeg,
        reason: reason.to_owned(),
    }
}

fn unsupported(reason: &str) -> ImageError {
    ImageError::UnsupportedVariant {
        format: ImageFormat::Jpeg,
        reason: reason.to_owned(),
    }
}
