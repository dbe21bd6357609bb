//! JPEG files → pixels.

use std::borrow::Cow;

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::orientation::Orientation;
use super::pixels::{Layout, Pixels, resize_buffer};
use super::{Exif, ImageError, Kind, PreprocessConfig};

mod scaled;
#[cfg(feature = "turbojpeg")]
mod turbo;

use scaled::Scale;

const MAX_SIDE: usize = u16::MAX as usize;
const APP15: u8 = 0xef;

/// Decodes a JPEG file into `pixels`, possibly scaled down to a shorter side of at least `enough`
/// pixels.
pub(super) fn decode(
    pixels: &mut Pixels,
    encoded: &[u8],
    config: &PreprocessConfig,
    enough: Option<u32>,
) -> Result<(), ImageError> {
    let header = Header::read(encoded)?;
    config.check_size(header.width, header.height)?;
    header.check_length(encoded)?;

    let (layout, channels, unwanted) = header.colours()?;
    let input = match unwanted {
        // The decoder believes this segment, so it must not see it.
        Some(position) => {
            let mut copy = encoded.to_vec();
            copy[position] = APP15;
            Cow::Owned(copy)
        }
        None => Cow::Borrowed(encoded),
    };
    let options = DecoderOptions::default()
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        // Otherwise what is missing would be painted gray.
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(channels);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&input[..]), options);
    decoder
        .decode_headers()
        .map_err(|error| header.explain(error, encoded))?;
    if decoder.dimensions() != Some((header.width as usize, header.height as usize)) {
        return Err(damaged("two headers disagree about the size"));
    }

    pixels.width = header.width;
    pixels.height = header.height;
    pixels.layout = layout;
    pixels.orientation = match (config.exif, decoder.exif()) {
        (Exif::Apply, Some(block)) => Orientation::from_exif_block(block),
        _ => Orientation::default(),
    };
    // Four channels, and files whose colours are labelled wrongly, are left to the decoder that is
    // known to read them.
    if let Some(scale) = enough.and_then(|least| Scale::choose(&header, least))
        && header.components.len() < 4
        && unwanted.is_none()
        && (channels == ColorSpace::RGB || layout == Layout::Gray)
        && header.is_complete(encoded)
        && scaled::decode(pixels, encoded, &header, scale).is_some()
    {
        return Ok(());
    }
    (pixels.width, pixels.height) = (header.width, header.height);
    let row = header.width as usize * layout.channels();
    resize_buffer(&mut pixels.data, row * header.height as usize);
    // What libjpeg-turbo complains about is judged below, so that both builds refuse the same files
    // in the same words.
    #[cfg(feature = "turbojpeg")]
    if header.components.len() < 4 && turbo::decode(pixels, encoded).is_ok() {
        return Ok(());
    }
    // The decoder writes rows in order, and may stop early without an error: then the last row
    // still has this pattern.
    let last_row = pixels.data.len() - row;
    pixels.data[last_row..]
        .iter_mut()
        .zip(pattern())
        .for_each(|(byte, mark)| *byte = mark);
    decoder
        .decode_into(&mut pixels.data)
        .map_err(|error| header.explain(error, encoded))?;
    if pixels.data[last_row..]
        .iter()
        .zip(pattern())
        .all(|(byte, mark)| *byte == mark)
    {
        return Err(truncated(encoded));
    }
    Ok(())
}

fn pattern() -> impl Iterator<Item = u8> {
    (0u8..=255)
        .cycle()
        .map(|index| index.wrapping_mul(151) ^ 0x5a)
}

fn truncated(encoded: &[u8]) -> ImageError {
    ImageError::Truncated {
        kind: Kind::Jpeg,
        bytes: encoded.len(),
    }
}

fn damaged(reason: &str) -> ImageError {
    ImageError::Damaged {
        kind: Kind::Jpeg,
        reason: reason.to_owned(),
    }
}

fn unsupported(reason: &str) -> ImageError {
    ImageError::UnsupportedVariety {
        kind: Kind::Jpeg,
        reason: reason.to_owned(),
    }
}

/// A part of a file.
struct Segment<'a> {
    /// The second byte of its marker, and where that is.
    marker: u8,
    position: usize,
    /// What follows the length.
    body: &'a [u8],
}

/// The segments of a file up to its first scan's header, or to the first damage.
fn segments(encoded: &[u8]) -> impl Iterator<Item = Result<Segment<'_>, ImageError>> {
    let mut next = Some(2);
    std::iter::from_fn(move || {
        let segment = Segment::read(encoded, next?);
        next = match &segment {
            Ok(segment) if segment.marker != 0xda => {
                Some(segment.position + 3 + segment.body.len())
            }
            _ => None,
        };
        Some(segment)
    })
}

impl<'a> Segment<'a> {
    /// The first at `position` or after it.
    fn read(encoded: &'a [u8], mut position: usize) -> Result<Self, ImageError> {
        loop {
            while *encoded.get(position).ok_or_else(|| truncated(encoded))? != 0xff {
                position += 1;
            }
            while *encoded.get(position).ok_or_else(|| truncated(encoded))? == 0xff {
                position += 1;
            }
            let marker = encoded[position];
            if matches!(marker, 0x00 | 0x01 | 0xd0..=0xd8) {
                position += 1;
                continue;
            }
            if marker == 0xd9 {
                return Err(damaged("it ends before any image data"));
            }
            let length = match encoded.get(position + 1..position + 3) {
                Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
                _ => return Err(truncated(encoded)),
            };
            if length < 2 {
                return Err(damaged("a segment's length is below 2"));
            }
            let body = encoded
                .get(position + 3..position + 1 + length)
                .ok_or_else(|| truncated(encoded))?;
            return Ok(Self {
                marker,
                position,
                body,
            });
        }
    }
}

/// What a file says of itself before its first scan.
struct Header {
    width: u32,
    height: u32,
    progressive: bool,
    components: Vec<Component>,
    jfif: bool,
    adobe: Option<Adobe>,
    /// Where the first scan's data begin.
    scan: usize,
}

struct Component {
    id: u8,
    horizontal: u8,
    vertical: u8,
    /// The number of its quantization table.
    quantization: u8,
}

/// The segment by which Adobe's programs say how colours are stored.
#[derive(Clone, Copy)]
struct Adobe {
    /// Where the second byte of its marker is.
    position: usize,
    transform: u8,
}

impl Header {
    fn read(encoded: &[u8]) -> Result<Self, ImageError> {
        let mut header = Self {
            width: 0,
            height: 0,
            progressive: false,
            components: Vec::new(),
            jfif: false,
            adobe: None,
            scan: 0,
        };
        for segment in segments(encoded) {
            let Segment {
                marker,
                position,
                body,
            } = segment?;
            match (marker, body) {
                (0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf, _) => {
                    header.read_frame(marker, body)?
                }
                (0xe0, [b'J', b'F', b'I', b'F', 0, ..]) => header.jfif = true,
                (
                    0xee,
                    [
                        b'A',
                        b'd',
                        b'o',
                        b'b',
                        b'e',
                        _,
                        _,
                        _,
                        _,
                        _,
                        _,
                        transform,
                        ..,
                    ],
                ) => {
                    header.adobe = Some(Adobe {
                        position,
                        transform: *transform,
                    });
                }
                (0xda, _) => {
                    if header.components.is_empty() {
                        return Err(damaged("a scan comes before the header that describes it"));
                    }
                    header.scan = position + 3 + body.len();
                    return Ok(header);
                }
                _ => {}
            }
        }
        Err(truncated(encoded))
    }

    fn read_frame(&mut self, marker: u8, body: &[u8]) -> Result<(), ImageError> {
        match marker {
            0xc0 | 0xc1 => {}
            0xc2 => self.progressive = true,
            0xc3 => return Err(unsupported("it is losslessly compressed")),
            0xc9 | 0xca => return Err(unsupported("it is arithmetically coded")),
            _ => {
                return Err(unsupported(
                    "it is hierarchical, lossless or arithmetically coded",
                ));
            }
        }
        let &[precision, h1, h0, w1, w0, count, ref components @ ..] = body else {
            return Err(damaged("its frame header is too short"));
        };
        if precision != 8 {
            return Err(unsupported(&format!("it has {precision} bits a channel")));
        }
        if components.len() != 3 * usize::from(count) {
            return Err(damaged("its frame header has the wrong length"));
        }
        if !matches!(count, 1 | 3 | 4) {
            return Err(unsupported(&format!("it has {count} channels")));
        }
        self.width = u32::from(u16::from_be_bytes([w1, w0]));
        self.height = u32::from(u16::from_be_bytes([h1, h0]));
        self.components = components
            .chunks_exact(3)
            .map(|entry| Component {
                id: entry[0],
                horizontal: entry[1] >> 4,
                vertical: entry[1] & 15,
                quantization: entry[2],
            })
            .collect();
        if self
            .components
            .iter()
            .any(|c| !(1..=4).contains(&c.horizontal) || !(1..=4).contains(&c.vertical))
        {
            return Err(damaged("a channel's sampling factor is not from 1 to 4"));
        }
        Ok(())
    }

    /// Refuses a file that is too short for its size in pixels, before any memory is reserved for
    /// them.
    fn check_length(&self, encoded: &[u8]) -> Result<(), ImageError> {
        let most = |factor: fn(&Component) -> u8| {
            self.components
                .iter()
                .map(factor)
                .max()
                .map_or(1, u32::from)
        };
        let (h_max, v_max) = (most(|c| c.horizontal), most(|c| c.vertical));
        let blocks: u64 = self
            .components
            .iter()
            .map(|component| {
                let columns = (self.width * u32::from(component.horizontal)).div_ceil(8 * h_max);
                let rows = (self.height * u32::from(component.vertical)).div_ceil(8 * v_max);
                u64::from(columns) * u64::from(rows)
            })
            .sum();
        // A block takes at least one bit for its mean, and in baseline files another to say that
        // nothing follows.
        let bits = if self.progressive { blocks } else { 2 * blocks };
        if ((encoded.len() - self.scan) as u64) < bits / 8 {
            return Err(truncated(encoded));
        }
        Ok(())
    }

    /// What pixels become, which channels to ask the decoder for, and the position of a marker to
    /// hide from it.
    fn colours(&self) -> Result<(Layout, ColorSpace, Option<usize>), ImageError> {
        let adobe = self.adobe;
        let hide_if =
            |wrong: fn(u8) -> bool| adobe.filter(|a| wrong(a.transform)).map(|a| a.position);
        match &self.components[..] {
            [_] => Ok((
                Layout::Gray,
                ColorSpace::Luma,
                hide_if(|transform| transform > 2),
            )),
            [_, _, _] => {
                if self.stores_rgb() {
                    return Ok((
                        Layout::Rgb,
                        ColorSpace::RGB,
                        hide_if(|transform| transform > 2),
                    ));
                }
                let plain_rgb = !self.jfif && adobe.is_some_and(|a| a.transform == 0);
                // Asked for the channels as they are stored, the decoder hands out red, green and
                // blue.
                let channels = if plain_rgb {
                    ColorSpace::YCbCr
                } else {
                    ColorSpace::RGB
                };
                Ok((Layout::Rgb, channels, hide_if(|transform| transform != 1)))
            }
            [_, _, _, _] => Ok((
                Layout::Rgb,
                ColorSpace::RGB,
                hide_if(|transform| transform > 2),
            )),
            _ => Err(unsupported("its number of channels is not 1, 3 or 4")),
        }
    }

    /// Whether red, green and blue are stored as they are, by the channels' names.
    fn stores_rgb(&self) -> bool {
        self.components
            .iter()
            .map(|component| component.id)
            .eq(*b"RGB")
    }

    /// Whether the marker of the end is there.
    fn is_complete(&self, encoded: &[u8]) -> bool {
        encoded[self.scan..]
            .windows(2)
            .rev()
            .any(|pair| pair == [0xff, 0xd9])
    }

    fn explain(&self, error: DecodeErrors, encoded: &[u8]) -> ImageError {
        match error {
            _ if !self.is_complete(encoded) => truncated(encoded),
            DecodeErrors::ExhaustedData | DecodeErrors::IoErrors(_) => truncated(encoded),
            error => damaged(error.to_string().trim().trim_matches('"')),
        }
    }
}
