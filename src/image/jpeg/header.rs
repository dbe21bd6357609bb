//! What a JPEG file says before its first scan: the frame, the tables, colours and orientation.

use super::{
    colour::Colours, damaged, frame::Frame, marker, scan::ScanHeader, segment::Segment,
    tables::Tables, truncated,
};
use crate::image::ImageError;

/// The most segments before the first scan. Each costs some time, however small it is.
pub(super) const MAX_SEGMENTS: usize = 4096;

/// The properties of a file that are known before its first scan is decoded.
pub(super) struct Header<'a> {
    pub frame: Frame,
    pub tables: Tables,
    /// The first scan's header.
    pub scan: ScanHeader,
    /// Where in the file the first scan's entropy-coded data begins.
    pub data: usize,
    /// The first EXIF block, from its TIFF header on.
    pub exif: Option<&'a [u8]>,
    /// Whether the file has a JFIF segment, which implies YCbCr.
    jfif: bool,
    /// The transform that the segment of Adobe's programs declares, if there is one: 0 means RGB or
    /// CMYK, 1 YCbCr, 2 YCCK.
    adobe: Option<u8>,
}

impl<'a> Header<'a> {
    pub fn read(encoded: &'a [u8]) -> Result<Self, ImageError> {
        let mut frame: Option<Frame> = None;
        let mut tables = Tables::default();
        let mut exif = None;
        let mut jfif = false;
        let mut adobe = None;

        // The first two bytes are the start-of-image marker.
        let mut position = 2;
        for _ in 0..MAX_SEGMENTS {
            let segment = Segment::read(encoded, position)?;
            position = segment.end;
            let body = segment.body;
            match segment.marker {
                marker::EOI => return Err(damaged("it ends before any image data")),
                marker::SOS => {
                    let Some(frame) = frame else {
                        return Err(damaged("a scan comes before the header that describes it"));
                    };
                    if !frame.arithmetic && !frame.progressive {
                        tables.add_standard_codes();
                    }
                    return Ok(Self {
                        scan: ScanHeader::read(body, &frame)?,
                        frame,
                        tables,
                        data: position,
                        exif,
                        jfif,
                        adobe,
                    });
                }
                code if marker::is_start_of_frame(code) => {
                    if frame.is_some() {
                        return Err(damaged("it has two frame headers"));
                    }
                    frame = Some(Frame::read(code, body)?);
                }
                marker::APP0 if body.len() >= 14 && body.starts_with(b"JFIF\0") => jfif = true,
                marker::APP1 => {
                    exif = exif.or_else(|| body.strip_prefix(b"Exif\0\0"));
                }
                // The transform follows the version and two words of flags.
                marker::APP14 if body.starts_with(b"Adobe") => {
                    adobe = body.get(11).copied().or(adobe);
                }
                code => tables.read(code, body)?,
            }
        }
        Err(damaged(&format!(
            "it has more than {MAX_SEGMENTS} segments before its first scan"
        )))
    }

    /// Rejects a file that is too short for its number of pixels, before memory is reserved for
    /// them.
    pub fn check_length(&self, encoded: &[u8]) -> Result<(), ImageError> {
        // A block takes at least one bit for its DC coefficient and, in sequential files, another
        // for the end of its AC coefficients. Arithmetic coding has no such minimum.
        let bits_per_block = match &self.frame {
            Frame {
                arithmetic: true, ..
            } => 0,
            Frame {
                progressive: true, ..
            } => 1,
            _ => 2,
        };
        if ((encoded.len() - self.data) as u64) < self.frame.blocks() * bits_per_block / 8 {
            return Err(truncated(encoded));
        }
        Ok(())
    }

    /// How the stored components relate to colours, by the rules of libjpeg.
    pub fn colours(&self) -> Colours {
        let ids = self.frame.components.iter().map(|component| component.id);
        match (self.frame.components.len(), self.jfif, self.adobe) {
            (1, _, _) => Colours::Gray,
            (3, true, _) => Colours::YCbCr,
            (3, false, Some(0)) => Colours::Rgb,
            (3, false, Some(_)) => Colours::YCbCr,
            (3, false, None) if ids.eq(*b"RGB") => Colours::Rgb,
            (3, false, None) => Colours::YCbCr,
            (_, _, None | Some(0)) => Colours::Cmyk,
            (_, _, Some(_)) => Colours::Ycck,
        }
    }
}
