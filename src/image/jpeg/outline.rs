//! What decoding a JPEG file needs, by its frame header and the headers of its scans.

use super::{
    coefficients::Coefficients, frame::Frame, header::MAX_SEGMENTS, marker, scan::ScanHeader,
    segment::Segment, work::Work,
};
use crate::image::{
    Exif,
    orientation::Orientation,
    outline::{Outline, area},
};

/// Reads the headers of a file; `None` if it has no frame header or no scan.
pub(in crate::image) fn outline(encoded: &[u8], settings: Exif) -> Option<Outline> {
    let mut frame: Option<Frame> = None;
    let mut exif = None;
    // The first two bytes are the start-of-image marker.
    let mut position = 2;
    for _ in 0..MAX_SEGMENTS {
        let segment = Segment::read(encoded, position).ok()?;
        position = segment.end;
        match segment.marker {
            marker::EOI => return None,
            marker::SOS => {
                let frame = frame?;
                let scan = ScanHeader::read(segment.body, &frame).ok()?;
                let turned = settings == Exif::Apply
                    && exif.is_some_and(|block| Orientation::from_exif_block(block).swapped);
                return Some(Outline {
                    // libjpeg-turbo decodes whole pictures.
                    by_rows: !turned && !cfg!(feature = "turbojpeg"),
                    ..of_frame(encoded, &frame, &scan, position)
                });
            }
            marker::APP1 => exif = exif.or_else(|| segment.body.strip_prefix(b"Exif\0\0")),
            code if marker::is_start_of_frame(code) => {
                frame = Some(Frame::read(code, segment.body).ok()?);
            }
            _ => {}
        }
    }
    None
}

fn of_frame(encoded: &[u8], frame: &Frame, scan: &ScanHeader, data: usize) -> Outline {
    let pixels = area(frame.width, frame.height);
    let components = frame.components.len() as u64;
    let padded_width = (frame.mcus_per_strip() * frame.h_max * 8) as u64;
    // The samples of a strip, at most as floating-point numbers, and its enlarged rows.
    let strips = padded_width * components * (8 * frame.v_max as u64 + 4);

    let (coefficients, visits) = if scan.is_whole(frame) {
        (0, frame.blocks())
    } else {
        let visits = Work::count(encoded, frame, scan, data).visits;
        (
            Coefficients::bytes(frame),
            visits.min(Work::max_visits(frame)),
        )
    };
    let per_visit = if frame.arithmetic { 500 } else { 30 };
    Outline {
        width: frame.width,
        height: frame.height,
        // Four channels become RGB.
        bytes_per_pixel: if components == 1 { 1 } else { 3 },
        working_bytes: coefficients + strips + (256 << 10),
        nanoseconds: 20 * (encoded.len() - data) as u64
            + per_visit * visits
            + 4 * pixels * components
            + coefficients / 8,
        by_rows: false,
    }
}
