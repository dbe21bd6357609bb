//! How much work the scans of a file are, by their headers.

use super::{
    frame::Frame, header::Header, marker, scan::ScanHeader, segment::Segment, unsupported,
};
use crate::image::ImageError;

/// Rejects a file whose scans visit the blocks of the picture too often, before any is decoded. The
/// data of a scan can be tiny, so the size of a file does not limit this.
pub(super) fn check_work(encoded: &[u8], header: &Header<'_>) -> Result<(), ImageError> {
    let frame = &header.frame;
    if header.scan.is_whole(frame) {
        return Ok(());
    }
    let work = Work::count(encoded, frame, &header.scan, header.data);
    let max_visits = Work::max_visits(frame);
    if work.segments > Work::MAX_SEGMENTS {
        return Err(unsupported(&format!(
            "it has more than {} segments",
            Work::MAX_SEGMENTS
        )));
    }
    if work.visits > max_visits {
        let most = max_visits / (work.visits / work.scans);
        return Err(unsupported(&format!(
            "{} scans of a {}x{} picture would take too much work; at most {most} are read",
            work.scans, frame.width, frame.height
        )));
    }
    Ok(())
}

/// What the scans of a file have to do.
pub(super) struct Work {
    scans: u64,
    segments: u64,
    /// How often a block is visited, in all scans.
    pub visits: u64,
}

impl Work {
    /// Segments between the scans.
    const MAX_SEGMENTS: u64 = 1 << 16;
    /// Visits of blocks; 64 megapixels with three whole channels have three million blocks, and
    /// encoders visit each of them five times.
    const MAX_VISITS: u64 = 1 << 25;
    /// Visits of each block that are always allowed.
    const MAX_VISITS_PER_BLOCK: u64 = 12;
    /// What the tables of a scan cost, in visits.
    const VISITS_PER_SCAN: u64 = 1 << 12;

    /// Counts the visits of a file's scans by their headers. `position` is where the data of the
    /// first scan begins.
    pub fn count(encoded: &[u8], frame: &Frame, first: &ScanHeader, mut position: usize) -> Self {
        let mut work = Self {
            scans: 1,
            segments: 0,
            visits: Self::VISITS_PER_SCAN + first.blocks(frame),
        };
        while work.segments <= Self::MAX_SEGMENTS
            && let Ok(segment) = Segment::read(encoded, position)
        {
            position = segment.end;
            work.segments += 1;
            match segment.marker {
                marker::EOI => break,
                marker::SOS => {
                    // An invalid scan header is reported when the scan is decoded.
                    let Ok(scan) = ScanHeader::read(segment.body, frame) else {
                        break;
                    };
                    work.visits += Self::VISITS_PER_SCAN + scan.blocks(frame);
                    work.scans += 1;
                }
                _ => {}
            }
        }
        work
    }

    /// The most visits that are accepted.
    pub fn max_visits(frame: &Frame) -> u64 {
        Self::MAX_VISITS.max(Self::MAX_VISITS_PER_BLOCK * frame.blocks())
    }
}
