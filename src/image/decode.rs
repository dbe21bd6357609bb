//! The bytes of an image file → pixels as they are stored, with one byte a channel.

use std::io::Cursor;

use image::codecs::{
    bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, pnm::PnmDecoder, tiff::TiffDecoder,
    webp::WebPDecoder,
};
use image::error::{DecodingError, UnsupportedErrorKind};
use image::{ColorType, ImageDecoder, ImageResult, Limits};

use super::orientation::Orientation;
use super::pixels::{Layout, Pixels, resize_buffer};
use super::sniff::looks_like;
use super::{Exif, ImageError, Kind, PreprocessConfig, jpeg};

/// Decodes an image file.
///
/// # Errors
/// Whatever makes the file unusable: see [`ImageError`].
pub fn decode(encoded: &[u8], config: &PreprocessConfig) -> Result<Pixels, ImageError> {
    let mut pixels = Pixels::default();
    pixels.decode(encoded, config)?;
    Ok(pixels)
}

impl Pixels {
    /// Like [`decode`], into this image's memory. After an error the content is unspecified.
    ///
    /// # Errors
    /// Whatever makes the file unusable: see [`ImageError`].
    pub fn decode(&mut self, encoded: &[u8], config: &PreprocessConfig) -> Result<(), ImageError> {
        self.decode_at_least(encoded, config, None)
    }

    /// Like [`Pixels::decode`], but a JPEG may be scaled down to a shorter side of `enough` pixels
    /// or more.
    pub(super) fn decode_at_least(
        &mut self,
        encoded: &[u8],
        config: &PreprocessConfig,
        enough: Option<u32>,
    ) -> Result<(), ImageError> {
        if encoded.is_empty() {
            return Err(ImageError::Empty);
        }
        let Some(kind) = Kind::of(encoded) else {
            return Err(ImageError::Unrecognised {
                looks_like: looks_like(encoded),
            });
        };
        let input = Input {
            kind,
            encoded,
            config,
        };
        let reader = Cursor::new(encoded);
        match kind {
            Kind::Jpeg => jpeg::decode(self, encoded, config, enough),
            Kind::Png => self.decode_with(&input, PngDecoder::with_limits(reader, input.limits())),
            Kind::WebP => self.decode_with(&input, WebPDecoder::new(reader)),
            Kind::Gif => self.decode_with(&input, GifDecoder::new(reader)),
            Kind::Bmp => self.decode_with(&input, BmpDecoder::new(reader)),
            Kind::Tiff => self.decode_with(&input, TiffDecoder::new(reader)),
            Kind::Pnm => self.decode_with(&input, PnmDecoder::new(reader)),
        }
    }

    fn decode_with<D: ImageDecoder>(
        &mut self,
        input: &Input<'_>,
        decoder: ImageResult<D>,
    ) -> Result<(), ImageError> {
        let mut decoder = decoder.map_err(|error| input.explain(error))?;
        (self.width, self.height) = decoder.dimensions();
        input.config.check_size(self.width, self.height)?;
        let (layout, wide) = match decoder.color_type() {
            ColorType::L8 => (Layout::Gray, false),
            ColorType::La8 => (Layout::GrayAlpha, false),
            ColorType::Rgb8 => (Layout::Rgb, false),
            ColorType::Rgba8 => (Layout::Rgba, false),
            ColorType::L16 => (Layout::Gray, true),
            ColorType::La16 => (Layout::GrayAlpha, true),
            ColorType::Rgb16 => (Layout::Rgb, true),
            ColorType::Rgba16 => (Layout::Rgba, true),
            other => return Err(input.unsupported(format!("its pixels are {other:?}"))),
        };
        self.layout = layout;
        decoder
            .set_limits(input.limits())
            .map_err(|error| input.explain(error))?;
        self.orientation = match input.config.exif {
            Exif::Apply => decoder
                .orientation()
                .map_or_else(|_| Orientation::default(), Orientation::from),
            Exif::Ignore => Orientation::default(),
        };

        let samples = self.width as usize * self.height as usize * layout.channels();
        let bytes = if wide { 2 * samples } else { samples };
        if decoder.total_bytes() != bytes as u64 {
            return Err(input.unsupported("its pixels have an unknown size".to_owned()));
        }
        zero_buffer(&mut self.data, bytes);
        decoder
            .read_image(&mut self.data)
            .map_err(|error| input.explain(error))?;
        if wide {
            narrow(&mut self.data, samples);
        }
        Ok(())
    }
}

/// A file and what is known of it.
struct Input<'a> {
    kind: Kind,
    encoded: &'a [u8],
    config: &'a PreprocessConfig,
}

impl Input<'_> {
    /// Room for the largest image with the widest pixels, and something for the decoder's own
    /// tables.
    fn max_bytes(&self) -> u64 {
        const TABLES: u64 = 16 << 20;
        self.config
            .max_pixels
            .saturating_mul(8)
            .saturating_add(TABLES)
    }

    fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        limits.max_alloc = Some(self.max_bytes());
        limits
    }

    fn unsupported(&self, reason: String) -> ImageError {
        ImageError::UnsupportedVariety {
            kind: self.kind,
            reason,
        }
    }

    fn explain(&self, error: image::ImageError) -> ImageError {
        let kind = self.kind;
        match error {
            image::ImageError::IoError(error) if ends_early(&error) => self.truncated(),
            image::ImageError::Decoding(error) => self.explain_decoding(&error),
            image::ImageError::Limits(_) => ImageError::TooMuchMemory {
                kind,
                max_bytes: self.max_bytes(),
            },
            image::ImageError::Unsupported(error) => self.unsupported(match error.kind() {
                UnsupportedErrorKind::Color(color) => format!("its pixels are {color:?}"),
                UnsupportedErrorKind::GenericFeature(feature) => feature,
                _ => error.to_string(),
            }),
            other => ImageError::Damaged {
                kind,
                reason: other.to_string(),
            },
        }
    }

    fn explain_decoding(&self, error: &DecodingError) -> ImageError {
        let mut reason = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            if inner
                .downcast_ref::<std::io::Error>()
                .is_some_and(ends_early)
            {
                return self.truncated();
            }
            reason = inner.to_string();
            cause = inner.source();
        }
        if reason.starts_with("CRC error") {
            reason = "a checksum is wrong".to_owned();
        }
        // Not every decoder keeps the error that it met when it read.
        if ["end of file", "eof"]
            .iter()
            .any(|end| reason.to_ascii_lowercase().contains(end))
        {
            return self.truncated();
        }
        ImageError::Damaged {
            kind: self.kind,
            reason,
        }
    }

    fn truncated(&self) -> ImageError {
        ImageError::Truncated {
            kind: self.kind,
            bytes: self.encoded.len(),
        }
    }
}

fn ends_early(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::UnexpectedEof
}

/// Gives `buffer` a length and fills it with zeros, so that no decoder can leave pixels of the
/// image before in place.
fn zero_buffer(buffer: &mut Vec<u8>, length: usize) {
    buffer.clear();
    resize_buffer(buffer, length);
}

/// Scales native-endian 16-bit samples to 8 bits, in place.
fn narrow(data: &mut Vec<u8>, samples: usize) {
    for index in 0..samples {
        let sample = u16::from_ne_bytes([data[2 * index], data[2 * index + 1]]);
        data[index] = ((u32::from(sample) * 255 + 32_767) / 65_535) as u8;
    }
    data.truncate(samples);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_samples_are_scaled_and_rounded() {
        let samples = [0u16, 128, 129, 257, 32_896, 65_535];
        let mut data: Vec<u8> = samples
            .iter()
            .flat_map(|sample| sample.to_ne_bytes())
            .collect();
        narrow(&mut data, samples.len());
        assert_eq!(data, [0, 0, 1, 1, 128, 255]);
    }
}
