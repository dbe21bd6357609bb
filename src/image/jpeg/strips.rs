//! The strips of a picture, as they come out of the data of its only scan.

use std::ops::Range;

use super::{
    damaged,
    frame::Frame,
    huffman::Block,
    marker,
    output::Output,
    scan::{EntropyDecoder, Fault, Restarts, ScanHeader},
    truncated,
};
use crate::image::{ImageError, budget::Budget, rows::Rows};

/// Where the blocks of a picture come from.
pub(super) trait Strips {
    /// Passes the needed blocks of a strip on. Strips come in order.
    ///
    /// # Errors
    /// What is wrong with the data of the scan up to the end of this strip.
    fn strip(&mut self, strip: usize, output: &mut impl Output) -> Result<(), ScanError>;
}

/// Writes what is wanted of the rows of these strips.
pub(super) fn write_strips(
    strips: Range<usize>,
    mut source: impl Strips,
    mut output: impl Output,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    for strip in strips {
        source.strip(strip, &mut output)?;
        output.finish_strip(strip, rows);
    }
    Ok(())
}

/// Decodes the strips of the only scan of a file.
pub(super) struct CodedStrips<'a, D> {
    decoder: D,
    restarts: Restarts,
    places: Vec<Place>,
    /// The blocks of an MCU. They are all decoded before any is transformed: processors are slow to
    /// read several small values at once that have just been written.
    blocks: [(Block, usize); ScanHeader::MAX_BLOCKS_PER_MCU],
    /// The MCUs of a strip, and its samples.
    columns: usize,
    samples: usize,
    budget: &'a Budget,
}

impl<'a, D: EntropyDecoder> CodedStrips<'a, D> {
    /// `decoder` is where the `restarts` begin.
    pub fn new(
        decoder: D,
        restarts: Restarts,
        frame: &Frame,
        scan: &ScanHeader,
        budget: &'a Budget,
    ) -> Self {
        let mut places = Vec::with_capacity(ScanHeader::MAX_BLOCKS_PER_MCU);
        for (number, component) in scan.components.iter().enumerate() {
            for row in 0..component.vertical {
                for column in 0..component.horizontal {
                    places.push(Place {
                        number,
                        component: component.index,
                        row,
                        column,
                        columns_per_mcu: component.horizontal,
                        needed: 0..0,
                    });
                }
            }
        }
        let (columns, _) = scan.mcus(frame);
        Self {
            decoder,
            restarts,
            places,
            blocks: std::array::from_fn(|_| ([0; 64], 0)),
            columns,
            samples: 64 * columns * scan.blocks_per_mcu(),
            budget,
        }
    }

    /// Where in the file the next strip begins, which has to be behind a restart marker, or at the
    /// end of the scan's data.
    ///
    /// # Errors
    /// What is wrong with the data up to there, or that there is no such marker.
    pub fn restarted(&mut self) -> Result<usize, Fault> {
        self.restarts.restart_if_due(&mut self.decoder)?;
        Ok(self.decoder.position())
    }
}

impl<D: EntropyDecoder> Strips for CodedStrips<'_, D> {
    fn strip(&mut self, _strip: usize, output: &mut impl Output) -> Result<(), ScanError> {
        let Self {
            decoder,
            restarts,
            places,
            blocks,
            ..
        } = self;
        for place in &mut *places {
            place.needed = output.needed_columns(place.component, place.row);
        }
        for mcu in 0..self.columns {
            restarts.before_mcu(decoder)?;
            for (place, (block, last)) in places.iter().zip(&mut *blocks) {
                if place.needed.contains(&place.column_at(mcu)) {
                    *block = [0; 64];
                    *last = decoder.block(place.number, block)?;
                } else {
                    decoder.skip(place.number)?;
                }
            }
            for (place, (block, last)) in places.iter().zip(&*blocks) {
                let column = place.column_at(mcu);
                if place.needed.contains(&column) {
                    output.block(place.component, place.row, column, block, *last);
                }
            }
        }
        decoder.check()?;
        self.budget.spend(self.samples)?;
        Ok(())
    }
}

/// Where a block of an MCU is.
struct Place {
    /// The number of its component in the scan, and in the frame.
    number: usize,
    component: usize,
    /// Its row in the strip, and its column in the MCU.
    row: usize,
    column: usize,
    columns_per_mcu: usize,
    /// The columns that are needed of its row.
    needed: Range<usize>,
}

impl Place {
    #[inline(always)]
    fn column_at(&self, mcu: usize) -> usize {
        mcu * self.columns_per_mcu + self.column
    }
}

/// Why a scan could not be decoded.
pub(super) enum ScanError {
    Image(ImageError),
    Data(Fault),
}

impl From<ImageError> for ScanError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<Fault> for ScanError {
    fn from(fault: Fault) -> Self {
        Self::Data(fault)
    }
}

impl ScanError {
    pub fn explain(self, encoded: &[u8], first_scan: usize) -> ImageError {
        match self {
            Self::Image(error) => error,
            Self::Data(fault) => explain(fault, encoded, first_scan),
        }
    }
}

fn explain(fault: Fault, encoded: &[u8], first_scan: usize) -> ImageError {
    // Whatever is wrong with the data, a file without its end is not whole.
    let is_complete = encoded[first_scan..]
        .windows(2)
        .rev()
        .any(|pair| pair == [0xff, marker::EOI]);
    if !is_complete {
        return truncated(encoded);
    }
    damaged(match fault {
        Fault::EndsEarly => "its image data ends early",
        Fault::Invalid => "its image data is invalid",
        Fault::Restart => "its image data has a restart marker in the wrong place",
    })
}
