//! The segments of a JPEG file before its first scan (ITU-T T.81, annex B).

use zune_jpeg::zune_core::colorspace::ColorSpace;

use super::{damaged, marker, truncated, unsupported};
use crate::image::{ImageError, pixels::PixelLayout};

/// A marker segment of a file.
pub(super) struct Segment<'a> {
    /// The marker's code: its second byte.
    pub marker: u8,
    /// Where in the file the marker's code is.
    pub position: usize,
    /// The parameters, which follow the segment's length.
    pub body: &'a [u8],
}

/// Iterates over the segments of a file up to and including the first scan's header, or up to the
/// first error.
pub(super) fn segments(encoded: &[u8]) -> impl Iterator<Item = Result<Segment<'_>, ImageError>> {
    // The first two bytes are the start-of-image marker.
    let mut next = Some(2);
    std::iter::from_fn(move || {
        let segment = Segment::read(encoded, next?);
        next = match &segment {
            Ok(segment) if segment.marker != marker::SOS => Some(segment.end()),
            _ => None,
        };
        Some(segment)
    })
}

impl<'a> Segment<'a> {
    /// Reads the first segment at or after `position`, skipping anything else, as other decoders
    /// do.
    fn read(encoded: &'a [u8], mut position: usize) -> Result<Self, ImageError> {
        let byte_at = |position: usize| {
            encoded
                .get(position)
                .copied()
                .ok_or_else(|| truncated(encoded))
        };

        let code = loop {
            while byte_at(position)? != 0xff {
                position += 1;
            }
            // Any number of 0xff bytes may precede a marker's code (B.1.1.2).
            while byte_at(position)? == 0xff {
                position += 1;
            }
            match encoded[position] {
                // Not a marker, or one that begins no segment.
                0x00 | marker::TEM | marker::RST0..=marker::SOI => position += 1,
                marker::EOI => return Err(damaged("it ends before any image data")),
                code => break code,
            }
        };

        let Some(&[high, low]) = encoded.get(position + 1..position + 3) else {
            return Err(truncated(encoded));
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length < 2 {
            return Err(damaged("the length of a segment is below 2"));
        }
        let body = encoded
            .get(position + 3..position + 1 + length)
            .ok_or_else(|| truncated(encoded))?;

        Ok(Self {
            marker: code,
            position,
            body,
        })
    }

    /// Where in the file the segment ends. The marker's code and the length take three bytes.
    fn end(&self) -> usize {
        self.position + 3 + self.body.len()
    }
}

/// The properties of a file that are known before its first scan is decoded.
pub(super) struct Header {
    pub width: u32,
    pub height: u32,
    pub progressive: bool,
    pub components: Vec<Component>,
    /// Whether the file has a JFIF segment, which implies YCbCr.
    jfif: bool,
    adobe: Option<AdobeSegment>,
    /// Where in the file the first scan's entropy-coded data begins.
    pub scan: usize,
}

/// One colour component's entry in the frame header (B.2.2).
pub(super) struct Component {
    pub id: u8,
    /// Horizontal and vertical sampling factors, from 1 to 4.
    pub horizontal: u8,
    pub vertical: u8,
    /// The index of its quantization table.
    pub quantization: u8,
}

/// The APP14 segment by which Adobe's programs declare how colours are stored.
#[derive(Clone, Copy)]
struct AdobeSegment {
    /// Where in the file the marker's code is.
    position: usize,
    /// 0 means RGB or CMYK, 1 YCbCr, 2 YCCK.
    transform: u8,
}

/// How the general decoder has to be called for correct colours.
pub(super) struct ColourHandling {
    /// The layout of the decoded pixels.
    pub layout: PixelLayout,
    /// The colour space to request from the decoder.
    pub output: ColorSpace,
    /// The position of a misleading Adobe segment's marker code, to be hidden from the decoder.
    pub misleading_marker: Option<usize>,
}

impl Header {
    pub fn read(encoded: &[u8]) -> Result<Self, ImageError> {
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
            let segment = segment?;
            match segment.marker {
                code if marker::is_start_of_frame(code) => {
                    header.read_frame(code, segment.body)?;
                }
                marker::APP0 if segment.body.starts_with(b"JFIF\0") => header.jfif = true,
                marker::APP14 if segment.body.starts_with(b"Adobe") => {
                    // The transform follows the version and two words of flags.
                    if let Some(&transform) = segment.body.get(11) {
                        header.adobe = Some(AdobeSegment {
                            position: segment.position,
                            transform,
                        });
                    }
                }
                marker::SOS => {
                    if header.components.is_empty() {
                        return Err(damaged("a scan comes before the header that describes it"));
                    }
                    header.scan = segment.end();
                    return Ok(header);
                }
                _ => {}
            }
        }
        Err(truncated(encoded))
    }

    /// Reads a frame header (B.2.2) that began with this marker code.
    fn read_frame(&mut self, code: u8, body: &[u8]) -> Result<(), ImageError> {
        match code {
            marker::SOF0 | marker::SOF1 => {}
            marker::SOF2 => self.progressive = true,
            marker::SOF3 => return Err(unsupported("it is losslessly compressed")),
            marker::SOF9 | marker::SOF10 => return Err(unsupported("it is arithmetically coded")),
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
            return Err(unsupported(&format!("it has {precision} bits per channel")));
        }
        if components.len() != 3 * usize::from(count) {
            return Err(damaged("its frame header has the wrong length"));
        }
        if !matches!(count, 1 | 3 | 4) {
            return Err(unsupported(&format!(
                "it has {count} channels, not 1, 3 or 4"
            )));
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

        let is_valid = |factor: u8| (1..=4).contains(&factor);
        if !self
            .components
            .iter()
            .all(|c| is_valid(c.horizontal) && is_valid(c.vertical))
        {
            return Err(damaged(
                "the sampling factor of a channel is not from 1 to 4",
            ));
        }
        Ok(())
    }

    /// Rejects a file that is too short for its number of pixels, before memory is reserved for
    /// them.
    pub fn check_length(&self, encoded: &[u8]) -> Result<(), ImageError> {
        let largest = |factor: fn(&Component) -> u8| {
            self.components
                .iter()
                .map(factor)
                .max()
                .map_or(1, u32::from)
        };
        let (h_max, v_max) = (largest(|c| c.horizontal), largest(|c| c.vertical));

        let blocks: u64 = self
            .components
            .iter()
            .map(|component| {
                let columns = (self.width * u32::from(component.horizontal)).div_ceil(8 * h_max);
                let rows = (self.height * u32::from(component.vertical)).div_ceil(8 * v_max);
                u64::from(columns) * u64::from(rows)
            })
            .sum();

        // A block takes at least one bit for its DC coefficient and, in sequential files, another
        // for the end of its AC coefficients.
        let bits = if self.progressive { blocks } else { 2 * blocks };
        if ((encoded.len() - self.scan) as u64) < bits / 8 {
            return Err(truncated(encoded));
        }
        Ok(())
    }

    /// Decides how the stored colours are to be interpreted. The general decoder believes every
    /// Adobe segment, so one that is wrong has to be hidden from it.
    pub fn colour_handling(&self) -> Result<ColourHandling, ImageError> {
        let adobe = self.adobe;
        let adobe_marker_if = |is_misleading: fn(u8) -> bool| {
            adobe
                .filter(|adobe| is_misleading(adobe.transform))
                .map(|adobe| adobe.position)
        };
        let unless_known = adobe_marker_if(|transform| transform > 2);

        match self.components.len() {
            1 => Ok(ColourHandling {
                layout: PixelLayout::Gray,
                output: ColorSpace::Luma,
                misleading_marker: unless_known,
            }),
            3 if self.stores_rgb() => Ok(ColourHandling {
                layout: PixelLayout::Rgb,
                output: ColorSpace::RGB,
                misleading_marker: unless_known,
            }),
            3 => {
                let is_adobe_rgb = !self.jfif && adobe.is_some_and(|a| a.transform == 0);
                Ok(ColourHandling {
                    layout: PixelLayout::Rgb,
                    // Asked for YCbCr, the decoder returns the components as they are stored: red,
                    // green and blue in this case.
                    output: if is_adobe_rgb {
                        ColorSpace::YCbCr
                    } else {
                        ColorSpace::RGB
                    },
                    misleading_marker: adobe_marker_if(|transform| transform != 1),
                })
            }
            4 => Ok(ColourHandling {
                layout: PixelLayout::Rgb,
                output: ColorSpace::RGB,
                misleading_marker: unless_known,
            }),
            _ => Err(unsupported("its number of channels is not 1, 3 or 4")),
        }
    }

    /// Whether the components are red, green and blue, by their identifiers.
    pub fn stores_rgb(&self) -> bool {
        self.components
            .iter()
            .map(|component| component.id)
            .eq(*b"RGB")
    }

    /// Whether the end-of-image marker is present.
    pub fn is_complete(&self, encoded: &[u8]) -> bool {
        encoded[self.scan..]
            .windows(2)
            .rev()
            .any(|pair| pair == [0xff, marker::EOI])
    }
}
