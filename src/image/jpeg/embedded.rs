//! JPEG data within a file of another format, which knows its size and its colours.

use std::{borrow::Cow, ops::RangeInclusive};

use super::{
    colour::Colours,
    damaged, describe,
    full::FullSize,
    header::Header,
    marker,
    output::{Picture, Region, Request},
    picture, unsupported,
};
use crate::image::{ImageError, budget::Budget, pixels::Pixels, rows::Rows};

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
    budget: &Budget,
) -> Result<Vec<u8>, ImageError> {
    let jpeg = with_tables(data, tables)?;
    let header = Header::read(&jpeg)?;
    let [width, height] = [header.frame.width, header.frame.height];
    let components = header.frame.components.len();
    budget.config().check_size(width, height)?;
    if width != expected.width
        || !expected.heights.contains(&height)
        || components != expected.components
    {
        return Err(damaged(&format!(
            "it has {width}x{height} pixels of {components} channels where the file around it says \
             {}x{} of {}",
            expected.width,
            expected.heights.end(),
            expected.components
        )));
    }
    header.check_length(&jpeg)?;

    let colours = match components {
        3 if expected.converted => Colours::YCbCr,
        1 | 3 | 4 => Colours::Stored,
        _ => return Err(unsupported("its number of channels is not 1, 3 or 4")),
    };
    let mut pixels = Pixels::default();
    describe(&mut pixels, &header, colours, [width, height]);
    let request = Request {
        encoded: &jpeg,
        budget,
        region: Region::whole(width, height),
        help: None,
    };
    let mut rows = Rows::kept(&mut pixels);
    picture::decode(
        header,
        &request,
        &mut rows,
        move |picture: &Picture, region| FullSize::new(picture, colours, region),
    )?;
    Ok(pixels.data)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::PreprocessConfig;

    fn decoded(name: &str, components: usize, converted: bool) -> Vec<u8> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let encoded = std::fs::read(folder.join(name)).unwrap();
        let frame = Header::read(&encoded).unwrap().frame;
        let expected = ExpectedFrame {
            width: frame.width,
            heights: frame.height..=frame.height,
            components,
            converted,
        };
        let budget = Budget::new(&PreprocessConfig::default());
        decode_embedded(&encoded, &[], &expected, &budget).unwrap()
    }

    #[test]
    fn the_file_around_a_stream_decides_what_its_components_are() {
        let colour = decoded("cat.jpg", 3, true);
        let stored = decoded("cat.jpg", 3, false);
        for (rgb, ycbcr) in colour.chunks_exact(3).zip(stored.chunks_exact(3)) {
            // Equal but for rounding and clipping (ITU-T T.871).
            let luma =
                0.299 * f64::from(rgb[0]) + 0.587 * f64::from(rgb[1]) + 0.114 * f64::from(rgb[2]);
            assert!((luma - f64::from(ycbcr[0])).abs() < 12.0);
        }

        assert_eq!(decoded("cat_cmyk.jpg", 4, false).len() % 4, 0);
        assert!(!decoded("cat_gray.jpg", 1, false).is_empty());
    }
}
