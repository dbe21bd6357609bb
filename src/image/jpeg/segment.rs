//! The marker segments of a JPEG file (ITU-T T.81, annex B).

use memchr::memchr;

use super::{damaged, marker, truncated};
use crate::image::ImageError;

/// A marker segment of a file.
pub(super) struct Segment<'a> {
    /// The marker's code: its second byte.
    pub marker: u8,
    /// The parameters, which follow the segment's length; none at the end of the image.
    pub body: &'a [u8],
    /// Where in the file the segment ends.
    pub end: usize,
}

impl<'a> Segment<'a> {
    /// Reads the first segment at or after `position`.
    ///
    /// Anything else is skipped: the entropy-coded data of a scan, and what some programs leave
    /// between segments.
    pub fn read(encoded: &'a [u8], mut position: usize) -> Result<Self, ImageError> {
        let byte_at = |position: usize| {
            encoded
                .get(position)
                .copied()
                .ok_or_else(|| truncated(encoded))
        };

        let code = loop {
            let rest = encoded.get(position..).unwrap_or_default();
            position += memchr(0xff, rest).ok_or_else(|| truncated(encoded))?;
            // Any number of 0xff bytes may precede a marker's code (B.1.1.2).
            while byte_at(position)? == 0xff {
                position += 1;
            }
            match encoded[position] {
                // Not a marker, or one that begins no segment.
                0x00 | marker::TEM | marker::RST0..=marker::SOI => position += 1,
                code => break code,
            }
        };

        if code == marker::EOI {
            return Ok(Self {
                marker: code,
                body: &[],
                end: position + 1,
            });
        }

        let Some(&[high, low]) = encoded.get(position + 1..position + 3) else {
            return Err(truncated(encoded));
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length < 2 {
            return Err(damaged("the length of a segment is below 2"));
        }
        let end = position + 1 + length;
        let body = encoded
            .get(position + 3..end)
            .ok_or_else(|| truncated(encoded))?;

        Ok(Self {
            marker: code,
            body,
            end,
        })
    }
}
