//! JPEG streams inside other files, such as the strips and tiles of a TIFF.

// Until a reader of such files calls it.
#![allow(dead_code)]

use super::{
    colour::Colours,
    full::FullSize,
    header::Header,
    picture::{self, Region},
    prepare,
};
use crate::image::{ImageError, PreprocessConfig, pixels::Pixels};

/// What the components of an embedded stream are, which the file around it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image) enum EmbeddedColours {
    /// The samples are wanted as they are stored: gray, red, green and blue, or four inks.
    Stored,
    /// Luma and chroma, to be converted to red, green and blue.
    YCbCr,
}

/// Decodes a whole JPEG stream, whose own statements about colours are ignored.
///
/// The pixels have one channel for each component, upright; four inks have the layout
/// [`PixelLayout::Rgba`](crate::image::PixelLayout::Rgba), in the order in which they are stored.
pub(in crate::image) fn decode_embedded(
    encoded: &[u8],
    config: &PreprocessConfig,
    colours: EmbeddedColours,
) -> Result<Pixels, ImageError> {
    let header = Header::read(encoded)?;
    config.check_size(header.frame.width, header.frame.height)?;
    header.check_length(encoded)?;

    let colours = match (colours, header.frame.components.len()) {
        (EmbeddedColours::YCbCr, 3) => Colours::YCbCr,
        _ => Colours::Stored,
    };
    let mut pixels = Pixels::default();
    prepare(
        &mut pixels,
        &header,
        colours,
        [header.frame.width, header.frame.height],
    );
    let region = Region::whole(pixels.width, pixels.height);
    picture::decode(
        encoded,
        header,
        config,
        &mut pixels.data,
        |frame, quantization| FullSize::new(frame, colours, quantization, region),
    )?;
    Ok(pixels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::PixelLayout;

    fn decoded(name: &str, colours: EmbeddedColours) -> Pixels {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let encoded = std::fs::read(folder.join(name)).unwrap();
        decode_embedded(&encoded, &PreprocessConfig::default(), colours).unwrap()
    }

    #[test]
    fn the_file_around_a_stream_decides_what_its_components_are() {
        let colour = decoded("cat.jpg", EmbeddedColours::YCbCr);
        let stored = decoded("cat.jpg", EmbeddedColours::Stored);
        assert_eq!(colour.layout, PixelLayout::Rgb);
        assert_eq!(stored.layout, PixelLayout::Rgb);
        for (rgb, ycbcr) in colour.data.chunks_exact(3).zip(stored.data.chunks_exact(3)) {
            // Where the conversion does not clip, green and the stored luma are related.
            let luma =
                0.299 * f64::from(rgb[0]) + 0.587 * f64::from(rgb[1]) + 0.114 * f64::from(rgb[2]);
            assert!((luma - f64::from(ycbcr[0])).abs() < 12.0);
        }

        let inks = decoded("cat_cmyk.jpg", EmbeddedColours::Stored);
        assert_eq!(inks.layout, PixelLayout::Rgba);
        assert_eq!(inks.data.len(), (inks.width * inks.height * 4) as usize);
        let gray = decoded("cat_gray.jpg", EmbeddedColours::YCbCr);
        assert_eq!(gray.layout, PixelLayout::Gray);
    }
}
