//! Scans: passes over the data of some or all components (ITU-T T.81, B.2.3).

use super::{damaged, frame::Frame, huffman::Block};
use crate::image::ImageError;

/// What a scan's header says.
pub(super) struct ScanHeader {
    pub components: Vec<ScanComponent>,
    /// The first and the last coefficient that are coded, in zigzag order.
    pub first: usize,
    pub last: usize,
    /// The lowest bit of the coefficients that earlier scans have coded, 0 if there were none; and
    /// the lowest that is known after this scan.
    pub high: u32,
    pub low: u32,
}

/// A component of a scan.
pub(super) struct ScanComponent {
    /// Its index in the frame header.
    pub index: usize,
    /// The destinations of its entropy coding tables.
    pub dc: usize,
    pub ac: usize,
    /// Blocks per MCU, horizontally and vertically.
    pub horizontal: usize,
    pub vertical: usize,
}

impl ScanHeader {
    /// The most blocks that an MCU of several components may have (B.2.3).
    pub const MAX_BLOCKS_PER_MCU: usize = 10;

    pub fn read(body: &[u8], frame: &Frame) -> Result<Self, ImageError> {
        let Some((count, rest)) = body.split_first() else {
            return Err(damaged("a scan's header is too short"));
        };
        let entries_and_selection = rest.split_at_checked(2 * usize::from(*count));
        let Some((entries, &[first, last, approximation])) = entries_and_selection else {
            return Err(damaged("a scan's header has the wrong length"));
        };

        let mut components: Vec<ScanComponent> = Vec::with_capacity(4);
        for [id, tables] in entries.as_chunks().0 {
            let index = frame
                .components
                .iter()
                .enumerate()
                .position(|(index, component)| {
                    component.id == *id && components.iter().all(|known| known.index != index)
                });
            let Some(index) = index else {
                return Err(damaged(
                    "a scan's header names a channel that does not exist",
                ));
            };
            let (dc, ac) = (usize::from(tables >> 4), usize::from(tables & 15));
            if dc > 3 || ac > 3 {
                return Err(damaged("a scan's header names a table that cannot exist"));
            }
            components.push(ScanComponent {
                index,
                dc,
                ac,
                horizontal: frame.components[index].horizontal,
                vertical: frame.components[index].vertical,
            });
        }

        match &mut components[..] {
            [] => return Err(damaged("a scan has no channels")),
            // The blocks of a single component follow each other whatever its factors (A.2.2).
            [single] => (single.horizontal, single.vertical) = (1, 1),
            several => {
                let blocks = several.iter().map(|c| c.horizontal * c.vertical);
                if blocks.sum::<usize>() > Self::MAX_BLOCKS_PER_MCU {
                    return Err(damaged("a scan codes more than ten blocks together"));
                }
            }
        }

        let (high, low) = (u32::from(approximation >> 4), u32::from(approximation & 15));
        let header = Self {
            components,
            first: first.into(),
            last: last.into(),
            high,
            low,
        };
        if frame.progressive && !header.is_step_of_progression() {
            return Err(damaged("a scan's header selects impossible coefficients"));
        }
        Ok(header)
    }

    /// Whether a progressive file may have a scan of these coefficients (G.1.1.1).
    fn is_step_of_progression(&self) -> bool {
        let coefficients = if self.first == 0 {
            self.last == 0
        } else {
            self.first <= self.last && self.last < 64 && self.components.len() == 1
        };
        coefficients && self.low <= 13 && (self.high == 0 || self.high == self.low + 1)
    }

    /// Whether the scan holds all components of a sequential file, so that it is the only one.
    pub fn is_whole(&self, frame: &Frame) -> bool {
        !frame.progressive && self.components.len() == frame.components.len()
    }

    /// The number of MCUs in a row, and of rows.
    pub fn mcus(&self, frame: &Frame) -> (usize, usize) {
        match &self.components[..] {
            [single] => {
                let component = &frame.components[single.index];
                (component.blocks_wide, component.blocks_high)
            }
            _ => (frame.mcus_per_strip(), frame.strips()),
        }
    }

    /// The number of blocks in an MCU.
    pub fn blocks_per_mcu(&self) -> usize {
        self.components
            .iter()
            .map(|component| component.horizontal * component.vertical)
            .sum()
    }

    /// The number of blocks that the scan visits.
    pub fn blocks(&self, frame: &Frame) -> u64 {
        let (columns, rows) = self.mcus(frame);
        columns as u64 * rows as u64 * self.blocks_per_mcu() as u64
    }
}

/// Why the entropy-coded data of a scan cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A marker or the end of the file comes before the last block.
    EndsEarly,
    /// The data is not what any encoder writes.
    Invalid,
    /// A restart marker is not where it should be.
    Restart,
}

/// Decodes the blocks of one scan, in the order in which they are coded.
pub(super) trait EntropyDecoder {
    /// Decodes the next block, which is of the scan's component number `component`, into `block`.
    ///
    /// Returns the index, in zigzag order, of the last coefficient that is not 0, or a greater one.
    /// What is beyond the end of the data counts as zeros until [`EntropyDecoder::check`] tells.
    fn block(&mut self, component: usize, block: &mut Block) -> Result<usize, Fault>;

    /// Passes over the next block, which is of the scan's component number `component`: what is
    /// wrong with it is found as by [`EntropyDecoder::block`].
    fn skip(&mut self, component: usize) -> Result<(), Fault> {
        self.block(component, &mut [0; 64])?;
        Ok(())
    }

    /// Begins the next restart interval, whose marker has this number from 0 to 7 (E.2.4).
    fn restart(&mut self, number: u8) -> Result<(), Fault>;

    /// Whether all that was decoded was there.
    fn check(&self) -> Result<(), Fault>;

    /// Where in the file to look for the next marker.
    fn position(&self) -> usize;
}

/// Counts the MCUs of a restart interval: a number of MCUs after which the entropy decoder starts
/// afresh.
pub(super) struct Restarts {
    interval: usize,
    left: usize,
    next: u8,
}

impl Restarts {
    /// An interval of 0 means that there are no restart markers.
    pub fn new(interval: usize) -> Self {
        Self {
            interval,
            left: interval,
            next: 0,
        }
    }

    /// Begins at this interval, behind the marker before it.
    pub fn from(interval: usize, number: usize) -> Self {
        Self {
            next: (number % 8) as u8,
            ..Self::new(interval)
        }
    }

    /// Has to be called before each MCU.
    #[inline(always)]
    pub fn before_mcu(&mut self, decoder: &mut impl EntropyDecoder) -> Result<(), Fault> {
        if self.interval != 0 {
            self.restart_if_due(decoder)?;
            self.left -= 1;
        }
        Ok(())
    }

    /// Begins the next interval if this one is over.
    #[inline(always)]
    pub fn restart_if_due(&mut self, decoder: &mut impl EntropyDecoder) -> Result<(), Fault> {
        if self.interval != 0 && self.left == 0 {
            // Data that was missing in this interval is worth more as an explanation.
            decoder.check()?;
            decoder.restart(self.next)?;
            self.next = (self.next + 1) % 8;
            self.left = self.interval;
        }
        Ok(())
    }
}
