//! Decodes image files to pixels as stored in the file, one byte per channel.

use std::{error::Error, io};

use image::{
    ColorType, ImageDecoder, ImageResult, Limits,
    codecs::{
        bmp::BmpDecoder, gif::GifDecoder, ico::IcoDecoder, pnm::PnmDecoder, qoi::QoiDecoder,
        tga::TgaDecoder, webp::WebPDecoder,
    },
    error::{DecodingError, LimitError, LimitErrorKind, UnsupportedErrorKind},
};

use super::{
    Exif, ImageError, ImageFormat, PreprocessConfig,
    bmp::RunLength,
    budget::{Budget, Timed},
    gif, heif, ico,
    jpeg::{self, Needed},
    orientation::Orientation,
    pixels::{PixelLayout, Pixels, resize_buffer},
    png, pnm,
    resize::Resizer,
    rows::{Decoded, Rows},
    sniff::looks_like,
    tiff, webp,
};

/// Decodes an image file.
///
/// # Errors
/// An [`ImageError`] that says why the file cannot be used.
pub fn decode(encoded: &[u8], config: &PreprocessConfig) -> Result<Pixels, ImageError> {
    let mut pixels = Pixels::default();
    pixels.decode(encoded, config)?;
    Ok(pixels)
}

impl Pixels {
    /// Like [`decode`], but reuses the memory of this image. After an error its content is
    /// unspecified.
    ///
    /// # Errors
    /// An [`ImageError`] that says why the file cannot be used.
    pub fn decode(&mut self, encoded: &[u8], config: &PreprocessConfig) -> Result<(), ImageError> {
        self.decode_for_crop(encoded, &Budget::new(config), Needed::default(), None)?;
        Ok(())
    }

    /// Like [`Pixels::decode`], but of a JPEG only what is needed has to be decoded.
    #[cfg(test)]
    pub(super) fn decode_needed(
        &mut self,
        encoded: &[u8],
        config: &PreprocessConfig,
        needed: Needed<'_>,
    ) -> Result<(), ImageError> {
        self.decode_for_crop(encoded, &Budget::new(config), needed, None)?;
        Ok(())
    }

    /// Decodes what is needed. If there is a `resizer`, rows may be given to it for the needed crop
    /// as they are decoded, in place of being kept.
    pub(super) fn decode_for_crop(
        &mut self,
        encoded: &[u8],
        budget: &Budget,
        needed: Needed<'_>,
        resizer: Option<&mut Resizer>,
    ) -> Result<Decoded, ImageError> {
        if encoded.is_empty() {
            return Err(ImageError::Empty);
        }
        let Some(format) = ImageFormat::of(encoded) else {
            return Err(ImageError::Unrecognized {
                looks_like: looks_like(encoded),
            });
        };

        let input = Input {
            format,
            encoded,
            budget,
        };
        let reader = Timed::new(encoded, budget);
        match format {
            ImageFormat::Jpeg => return jpeg::decode(self, encoded, budget, needed, resizer),
            ImageFormat::Png => return self.decode_png(&input, needed, resizer),
            ImageFormat::Heic | ImageFormat::Avif => {
                let file = (format, encoded);
                return heif::decode(self, file, budget, needed.crop, resizer);
            }
            ImageFormat::WebP => {
                input.check_outline()?;
                self.decode_with(&input, WebPDecoder::new(reader))
            }
            ImageFormat::Gif => {
                input.check_outline()?;
                self.decode_with(&input, GifDecoder::new(reader))
            }
            ImageFormat::Bmp => match RunLength::of(encoded) {
                Some(runs) => self.decode_runs(&input, runs),
                None => self.decode_with(&input, BmpDecoder::new(reader)),
            },
            ImageFormat::Tiff => tiff::decode(self, encoded, budget),
            ImageFormat::Qoi => self.decode_with(&input, QoiDecoder::new(reader)),
            ImageFormat::Tga => self.decode_with(&input, TgaDecoder::new(reader)),
            ImageFormat::Ico => {
                let picture = ico::Picture::largest(encoded)?;
                if let Some(encoded) = picture.png() {
                    let input = Input {
                        format: ImageFormat::Png,
                        encoded,
                        budget,
                    };
                    return self.decode_png(&input, needed, resizer);
                }
                let alone = picture.alone();
                self.decode_with(&input, IcoDecoder::new(Timed::new(&alone, budget)))
            }
            ImageFormat::Pnm => {
                let decoder = PnmDecoder::new(reader);
                if decoder.is_ok() {
                    pnm::check(encoded)?;
                }
                self.decode_with(&input, decoder)
            }
        }?;
        Ok(Decoded::Pixels)
    }

    /// Decodes with a decoder of the `image` crate. Sizes are checked before memory is reserved.
    fn decode_with<D: ImageDecoder>(
        &mut self,
        input: &Input<'_>,
        decoder: ImageResult<D>,
    ) -> Result<(), ImageError> {
        let mut decoder = decoder.map_err(|error| input.explain(error))?;
        (self.width, self.height) = decoder.dimensions();
        input.budget.config().check_size(self.width, self.height)?;

        let (layout, is_16_bit) = match decoder.color_type() {
            ColorType::L8 => (PixelLayout::Gray, false),
            ColorType::La8 => (PixelLayout::GrayAlpha, false),
            ColorType::Rgb8 => (PixelLayout::Rgb, false),
            ColorType::Rgba8 => (PixelLayout::Rgba, false),
            ColorType::L16 => (PixelLayout::Gray, true),
            ColorType::La16 => (PixelLayout::GrayAlpha, true),
            ColorType::Rgb16 => (PixelLayout::Rgb, true),
            ColorType::Rgba16 => (PixelLayout::Rgba, true),
            other => return Err(input.unsupported(format!("its pixels are of type {other:?}"))),
        };
        self.layout = layout;

        decoder
            .set_limits(input.limits())
            .map_err(|error| input.explain(error))?;
        let exif = match (input.budget.config().exif, input.format) {
            (Exif::Ignore, _) => None,
            (Exif::Apply, ImageFormat::WebP) => webp::exif(input.encoded),
            // The other formats have none.
            (Exif::Apply, _) => None,
        };
        self.orientation = exif.map_or_else(Orientation::default, Orientation::from_exif_block);

        let samples = self.width as usize * self.height as usize * layout.channels();
        let bytes = if is_16_bit { 2 * samples } else { samples };
        if decoder.total_bytes() != bytes as u64 {
            return Err(input.unsupported("its pixels have an unexpected size".to_owned()));
        }

        zero_buffer(&mut self.data, bytes);
        decoder
            .read_image(&mut self.data)
            .map_err(|error| input.explain(error))?;
        if is_16_bit {
            reduce_to_8_bits(&mut self.data, samples);
        }
        input.budget.check()
    }

    /// Decodes a PNG file, row by row unless it is interlaced.
    fn decode_png(
        &mut self,
        input: &Input<'_>,
        needed: Needed<'_>,
        resizer: Option<&mut Resizer>,
    ) -> Result<Decoded, ImageError> {
        let config = input.budget.config();
        input.check_outline()?;
        let file = png::without_metadata(input.encoded);
        let mut reader = png::open(Timed::new(&file, input.budget), config.max_decoded_bytes())
            .map_err(|error| input.explain_png(error))?;
        (self.width, self.height) = reader.info().size();
        config.check_size(self.width, self.height)?;
        let (layout, is_16_bit) = png::layout(&reader)
            .ok_or_else(|| input.unsupported("its pixels are of an unknown type".to_owned()))?;
        self.layout = layout;
        self.orientation = match (config.exif, png::exif(input.encoded)) {
            (Exif::Apply, Some(block)) => Orientation::from_exif_block(block),
            _ => Orientation::default(),
        };

        let row_samples = self.width as usize * layout.channels();
        let row_bytes = if is_16_bit {
            2 * row_samples
        } else {
            row_samples
        };
        if reader.output_line_size(self.width) != Some(row_bytes) {
            return Err(input.unsupported("its pixels have an unexpected size".to_owned()));
        }
        if reader.info().interlaced {
            zero_buffer(&mut self.data, row_bytes * self.height as usize);
            reader
                .next_frame(&mut self.data)
                .map_err(|error| input.explain_png(error))?;
            if is_16_bit {
                png::reduce_to_8_bits(&mut self.data);
            }
            input.budget.check()?;
            return Ok(Decoded::Pixels);
        }

        let height = self.height as usize;
        let (mut rows, decoded) = Rows::of(self, needed.crop, resizer)?;
        // Rows of 16 bits, and those that are not needed.
        let mut other = vec![0; row_bytes];
        for y in 0..height {
            input.budget.spend(row_bytes)?;
            let direct = rows.needs(y) && !is_16_bit;
            let target = if direct { rows.row(y) } else { &mut other[..] };
            match reader.read_row(target) {
                Ok(Some(_)) => {}
                Ok(None) => return Err(input.truncated()),
                Err(error) => return Err(input.explain_png(error)),
            }
            if is_16_bit && rows.needs(y) {
                png::reduce_row(&other, rows.row(y));
            }
        }
        // Reads what is left of the compressed data, which shows whether the file is whole.
        reader
            .read_row(&mut other)
            .map_err(|error| input.explain_png(error))?;
        rows.finish(input.budget)?;
        Ok(decoded)
    }
}

impl Pixels {
    /// Decodes a run-length encoded BMP file.
    fn decode_runs(&mut self, input: &Input<'_>, runs: RunLength) -> Result<(), ImageError> {
        let decoder = BmpDecoder::new(Timed::new(input.encoded, input.budget))
            .map_err(|error| input.explain(error))?;
        (self.width, self.height) = decoder.dimensions();
        input.budget.config().check_size(self.width, self.height)?;
        let Some(palette) = decoder.get_palette() else {
            return Err(input.damaged("it has no palette".to_owned()));
        };

        let width = self.width as usize;
        input.budget.check()?;
        let mut indices = vec![0; width * self.height as usize];
        if !runs.decode(input.encoded, width, &mut indices) {
            return Err(input.truncated());
        }
        self.layout = PixelLayout::Rgb;
        self.orientation = Orientation::default();
        resize_buffer(&mut self.data, 3 * indices.len());
        for (pixel, index) in self.data.as_chunks_mut().0.iter_mut().zip(indices) {
            *pixel = palette.get(usize::from(index)).copied().unwrap_or_default();
        }
        input.budget.check()
    }
}

/// A file, its detected format and the configuration: the context of a decoder's errors.
struct Input<'a> {
    format: ImageFormat,
    encoded: &'a [u8],
    budget: &'a Budget,
}

impl Input<'_> {
    fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        limits.max_alloc = Some(self.budget.config().max_decoded_bytes());
        limits
    }

    fn unsupported(&self, reason: String) -> ImageError {
        ImageError::UnsupportedVariant {
            format: self.format,
            reason,
        }
    }

    fn truncated(&self) -> ImageError {
        ImageError::Truncated {
            format: self.format,
            bytes: self.encoded.len(),
        }
    }

    fn damaged(&self, reason: String) -> ImageError {
        ImageError::Damaged {
            format: self.format,
            reason,
        }
    }

    /// Checks sizes that a decoder would not check before it reserves memory for them.
    fn check_outline(&self) -> Result<(), ImageError> {
        match self.format {
            ImageFormat::Gif => gif::check(self.encoded, self.budget.config()),
            ImageFormat::Png => png::check(self.encoded),
            ImageFormat::WebP => webp::check(self.encoded, self.budget),
            _ => Ok(()),
        }
    }

    /// Translates an error of the `png` crate.
    fn explain_png(&self, error: ::png::DecodingError) -> ImageError {
        self.explain(match error {
            ::png::DecodingError::IoError(error) => image::ImageError::IoError(error),
            ::png::DecodingError::LimitsExceeded => {
                image::ImageError::Limits(LimitError::from_kind(LimitErrorKind::InsufficientMemory))
            }
            error => image::ImageError::Decoding(DecodingError::new(
                image::ImageFormat::Png.into(),
                error,
            )),
        })
    }

    /// Translates an error of the `image` crate.
    fn explain(&self, error: image::ImageError) -> ImageError {
        if let Err(too_late) = self.budget.check() {
            return too_late;
        }
        match error {
            image::ImageError::IoError(error) if is_unexpected_eof(&error) => self.truncated(),
            image::ImageError::Decoding(error) => self.explain_decoding(&error),
            image::ImageError::Limits(_) => ImageError::TooMuchMemory {
                format: self.format,
                max_bytes: self.budget.config().max_decoded_bytes(),
            },
            image::ImageError::Unsupported(error) => self.unsupported(match error.kind() {
                UnsupportedErrorKind::Color(color) => {
                    format!("its pixels are of type {color:?}")
                }
                UnsupportedErrorKind::GenericFeature(feature) => feature,
                _ => error.to_string(),
            }),
            other => self.damaged(other.to_string()),
        }
    }

    /// Finds the root cause of a decoder's error: a truncated file, or else what is damaged.
    fn explain_decoding(&self, error: &DecodingError) -> ImageError {
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            if inner
                .downcast_ref::<io::Error>()
                .is_some_and(is_unexpected_eof)
            {
                return self.truncated();
            }
            reason = inner.to_string();
            cause = inner.source();
        }

        if reason.starts_with("CRC error") {
            return self.damaged("a checksum does not match".to_owned());
        }

        // Some decoders do not pass on the I/O error as their source; only its text is left.
        let lower_case = reason.to_ascii_lowercase();
        let ends = ["end of file", "eof", "fill whole buffer"];
        if ends.iter().any(|words| lower_case.contains(words)) {
            return self.truncated();
        }
        self.damaged(reason)
    }
}

fn is_unexpected_eof(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

/// Sets the length of `buffer` and fills it with zeros, so that no decoder can leave pixels of the
/// previous image in place.
fn zero_buffer(buffer: &mut Vec<u8>, length: usize) {
    buffer.clear();
    resize_buffer(buffer, length);
}

/// Scales native-endian 16-bit samples to 8 bits, in place, rounding to the nearest value.
fn reduce_to_8_bits(data: &mut Vec<u8>, samples: usize) {
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
    fn sixteen_bit_samples_are_scaled_and_rounded() {
        let samples = [0u16, 128, 129, 257, 32_896, 65_535];
        let mut data: Vec<u8> = samples
            .iter()
            .flat_map(|sample| sample.to_ne_bytes())
            .collect();
        reduce_to_8_bits(&mut data, samples.len());
        assert_eq!(data, [0, 0, 1, 1, 128, 255]);
    }
}
