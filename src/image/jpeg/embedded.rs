//! JPEG data within a file of another format, which knows its size and its colours.

use std::{borrow::Cow, ops::RangeInclusive};

use zune_jpeg::{
    JpegDecoder,
    zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions},
};

use super::{
    MAX_SIDE, damaged, explain,
    header::{Header, segments},
    hide_marker, marker, truncated, unlikely_pattern, unsupported,
};
use crate::image::{ImageError, PreprocessConfig};

/// What the surrounding file says of JPEG data.
pub(in crate::image) struct ExpectedFrame {
    pub width: u32,
    pub heights: RangeInclusive<u32>,
    pub components: usize,
    /// Whether the components are YCbCr to be converted to RGB. Otherwise they are returned as they
    /// are stored, whatever the JPEG data says of them.
    pub converted: bool,
}

/// Decodes JPEG data to packed pixels of `expected.components` bytes, after the segments of
/// `tables`, which is empty or a JPEG stream without an image. Its size is checked before memory is
/// reserved.
///
/// # Errors
/// Data that is no JPEG image, damaged, incomplete or of another size than expected.
pub(in crate::image) fn decode_embedded(
    data: &[u8],
    tables: &[u8],
    expected: &ExpectedFrame,
    config: &PreprocessConfig,
) -> Result<Vec<u8>, ImageError> {
    let jpeg = with_tables(data, tables)?;
    let header = Header::read(&jpeg)?;
    config.check_size(header.width, header.height)?;
    if header.width != expected.width
        || !expected.heights.contains(&header.height)
        || header.components.len() != expected.components
    {
        return Err(damaged(&format!(
            "it has {}x{} pixels of {} channels where the file around it says {}x{} of {}",
            header.width,
            header.height,
            header.components.len(),
            expected.width,
            expected.heights.end(),
            expected.components
        )));
    }
    header.check_length(&jpeg)?;

    let output = match expected.components {
        1 => ColorSpace::Luma,
        3 if expected.converted || header.stores_rgb() => ColorSpace::RGB,
        3 => ColorSpace::YCbCr,
        4 => ColorSpace::CMYK,
        _ => return Err(unsupported("its number of channels is not 1, 3 or 4")),
    };
    // The decoder would convert by what this segment says.
    let adobe = segments(&jpeg)
        .filter_map(Result::ok)
        .find(|segment| segment.marker == marker::APP14)
        .map(|segment| segment.position);
    let input = hide_marker(&jpeg, adobe);

    let options = DecoderOptions::default()
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(output);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&input[..]), options);
    decoder
        .decode_headers()
        .map_err(|error| explain(error, &header, &jpeg))?;
    if decoder.dimensions() != Some((header.width as usize, header.height as usize)) {
        return Err(damaged("two headers disagree about the size"));
    }

    let row = header.width as usize * expected.components;
    let mut pixels = vec![0; row * header.height as usize];
    // The decoder may stop early without an error. The last row then still has this pattern.
    let last_row = pixels.len() - row;
    for (byte, mark) in pixels[last_row..].iter_mut().zip(unlikely_pattern()) {
        *byte = mark;
    }
    decoder
        .decode_into(&mut pixels)
        .map_err(|error| explain(error, &header, &jpeg))?;
    if pixels[last_row..]
        .iter()
        .copied()
        .eq(unlikely_pattern().take(row))
    {
        return Err(truncated(&jpeg));
    }
    Ok(pixels)
}

/// Inserts the segments of `tables` after the start of the image.
fn with_tables<'a>(data: &'a [u8], tables: &[u8]) -> Result<Cow<'a, [u8]>, ImageError> {
    const START: [u8; 2] = [0xff, marker::SOI];
    const END: [u8; 2] = [0xff, marker::EOI];
    let Some(image) = data.strip_prefix(&START) else {
        return Err(damaged("it does not begin with the marker of an image"));
    };
    if tables.is_empty() {
        return Ok(Cow::Borrowed(data));
    }
    let Some(segments) = tables.strip_prefix(&START) else {
        return Err(damaged(
            "its tables do not begin with the marker of an image",
        ));
    };
    let segments = segments.strip_suffix(&END).unwrap_or(segments);
    Ok(Cow::Owned([&START, segments, image].concat()))
}
