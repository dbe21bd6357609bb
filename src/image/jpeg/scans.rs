//! Files of several scans, each of which holds a part of the picture: all of them are decoded to the
//! coefficients of the whole picture first.

use std::sync::Arc;

use super::{
    arithmetic::ArithmeticDecoder,
    coefficients::Coefficients,
    damaged,
    frame::Frame,
    header::Header,
    huffman::Block,
    marker,
    output::{Output, Picture},
    progressive::ProgressiveDecoder,
    scan::{EntropyDecoder, Fault, Restarts, ScanHeader},
    segment::Segment,
    sequential::{Codes, SequentialDecoder},
    smoothing::Smoothing,
    strips::{ScanError, Strips},
    tables::{Quantization, Tables},
};
use crate::image::{ImageError, budget::Budget};

/// A picture all of whose scans have been decoded.
pub(super) struct Stored {
    pub picture: Arc<Picture>,
    coefficients: Coefficients,
    progress: Progress,
}

/// Decodes all scans to coefficients.
pub(super) fn decode_scans(
    encoded: &[u8],
    header: Header<'_>,
    budget: &Budget,
) -> Result<Stored, ImageError> {
    let Header {
        frame,
        mut tables,
        mut scan,
        data: mut position,
        ..
    } = header;
    let first_scan = position;
    let mut coefficients = Coefficients::new(&frame, budget.config())?;
    let mut quantization = vec![None; frame.components.len()];
    let mut progress = Progress::new(&frame);

    loop {
        latch_quantization(&mut quantization, &frame, &scan, &tables)?;
        let pass = Pass {
            frame: &frame,
            scan: &scan,
            tables: &tables,
            repeats: progress.has_any_of(&scan),
            budget,
        };
        progress.note(&scan, frame.progressive);
        budget.spend(SAMPLES_PER_SCAN)?;
        position = decode_scan(encoded, position, &pass, &mut coefficients)
            .map_err(|error| error.explain(encoded, first_scan))?;

        match next_scan(encoded, position, &frame, &mut tables) {
            Ok(Some((next, data))) => (scan, position) = (next, data),
            Ok(None) => break,
            // A missing end of the image matters only if something of it is missing.
            Err(ImageError::Truncated { .. }) if progress.is_complete() => break,
            Err(error) => return Err(error),
        }
    }

    let quantization: Option<Vec<_>> = quantization.into_iter().collect();
    let Some(quantization) = quantization else {
        return Err(damaged("it has no image data for one of its channels"));
    };
    Ok(Stored {
        picture: Arc::new(Picture {
            frame,
            scan,
            quantization,
        }),
        coefficients,
        progress,
    })
}

/// The strips of a picture all of whose coefficients are known.
pub(super) struct StoredStrips<'a> {
    frame: &'a Frame,
    coefficients: &'a Coefficients,
    smoothing: Option<Smoothing<'a>>,
    budget: &'a Budget,
}

impl<'a> StoredStrips<'a> {
    pub fn of(stored: &'a Stored, budget: &'a Budget) -> Self {
        let Stored {
            picture,
            coefficients,
            progress,
        } = stored;
        let Picture {
            frame,
            quantization,
            ..
        } = &**picture;
        Self {
            frame,
            coefficients,
            smoothing: Smoothing::new(frame, coefficients, quantization, progress),
            budget,
        }
    }
}

impl Strips for StoredStrips<'_> {
    fn strip(&mut self, strip: usize, output: &mut impl Output) -> Result<(), ScanError> {
        for (index, component) in self.frame.components.iter().enumerate() {
            let first_row = strip * component.vertical;
            let rows_of_blocks = component.vertical.min(component.blocks_high - first_row);
            for row in 0..rows_of_blocks {
                let needed = output.needed_columns(index, row);
                for column in needed.start..needed.end.min(component.blocks_wide) {
                    if let Some(smoothing) = &self.smoothing {
                        let block = smoothing.block(index, strip, row, column);
                        output.block(index, row, column, &block, 63);
                        continue;
                    }
                    let block = self.coefficients.block(index, first_row + row, column);
                    let is_flat = block[1..].iter().all(|coefficient| *coefficient == 0);
                    output.block(index, row, column, block, if is_flat { 0 } else { 63 });
                }
            }
            self.budget
                .spend(64 * rows_of_blocks * component.blocks_wide)?;
        }
        Ok(())
    }
}

/// One scan of several, and what it needs.
struct Pass<'a> {
    frame: &'a Frame,
    scan: &'a ScanHeader,
    tables: &'a Tables,
    /// Whether an earlier scan has coded some of its components.
    repeats: bool,
    budget: &'a Budget,
}

/// What the tables of a scan cost, in samples.
const SAMPLES_PER_SCAN: usize = 1 << 14;

/// Adds a scan to the coefficients; returns where in the file to look for the next marker.
fn decode_scan(
    encoded: &[u8],
    position: usize,
    pass: &Pass<'_>,
    coefficients: &mut Coefficients,
) -> Result<usize, ScanError> {
    let &Pass {
        frame,
        scan,
        tables,
        ..
    } = pass;
    if frame.arithmetic {
        let decoder = ArithmeticDecoder::new(encoded, position, frame, scan, tables);
        decode_blocks(decoder, pass, coefficients)
    } else if frame.progressive {
        let decoder = ProgressiveDecoder::new(encoded, position, scan, tables)?;
        decode_blocks(decoder, pass, coefficients)
    } else {
        let codes = Codes::new(encoded.len() - position, scan, tables, |_| 63)?;
        let decoder = SequentialDecoder::new(&codes, encoded, position);
        if pass.repeats {
            decode_blocks(Repeated(decoder), pass, coefficients)
        } else {
            decode_blocks(decoder, pass, coefficients)
        }
    }
}

/// Decodes components that an earlier scan has coded. As in libjpeg, an AC coefficient that this scan
/// leaves at 0 keeps its earlier value.
struct Repeated<'a>(SequentialDecoder<'a>);

impl EntropyDecoder for Repeated<'_> {
    fn block(&mut self, component: usize, block: &mut Block) -> Result<usize, Fault> {
        let mut decoded = [0; 64];
        let last = self.0.block(component, &mut decoded)?;
        block[0] = decoded[0];
        for (earlier, now) in block[1..].iter_mut().zip(&decoded[1..]) {
            if *now != 0 {
                *earlier = *now;
            }
        }
        Ok(last)
    }

    fn restart(&mut self, number: u8) -> Result<(), Fault> {
        self.0.restart(number)
    }

    fn check(&self) -> Result<(), Fault> {
        self.0.check()
    }

    fn position(&self) -> usize {
        self.0.position()
    }
}

fn decode_blocks(
    mut decoder: impl EntropyDecoder,
    pass: &Pass<'_>,
    coefficients: &mut Coefficients,
) -> Result<usize, ScanError> {
    let scan = pass.scan;
    let mut restarts = Restarts::new(pass.tables.restart_interval);
    let (columns, rows) = scan.mcus(pass.frame);
    let samples = 64 * columns * scan.blocks_per_mcu();
    for mcu_row in 0..rows {
        for mcu in 0..columns {
            restarts.before_mcu(&mut decoder)?;
            for (number, component) in scan.components.iter().enumerate() {
                for row in 0..component.vertical {
                    for column in 0..component.horizontal {
                        let block = coefficients.block_mut(
                            component.index,
                            mcu_row * component.vertical + row,
                            mcu * component.horizontal + column,
                        );
                        decoder.block(number, block)?;
                    }
                }
            }
        }
        decoder.check()?;
        pass.budget.spend(samples)?;
    }
    Ok(decoder.position())
}

/// Reads the segments up to the next scan's data; `None` at the end of the image.
fn next_scan(
    encoded: &[u8],
    mut position: usize,
    frame: &Frame,
    tables: &mut Tables,
) -> Result<Option<(ScanHeader, usize)>, ImageError> {
    loop {
        let segment = Segment::read(encoded, position)?;
        position = segment.end;
        match segment.marker {
            marker::EOI => return Ok(None),
            marker::SOS => {
                let scan = ScanHeader::read(segment.body, frame)?;
                return Ok(Some((scan, position)));
            }
            code if marker::is_start_of_frame(code) => {
                return Err(damaged("it has two frame headers"));
            }
            code => tables.read(code, segment.body)?,
        }
    }
}

/// Keeps the quantization table of each component of a scan, as it is at the component's first scan.
pub(super) fn latch_quantization(
    quantization: &mut [Option<Quantization>],
    frame: &Frame,
    scan: &ScanHeader,
    tables: &Tables,
) -> Result<(), ImageError> {
    for component in &scan.components {
        if quantization[component.index].is_none() {
            let destination = frame.components[component.index].quantization;
            let table = tables.quantization.get(destination).copied().flatten();
            let table = table.ok_or_else(|| damaged("a quantization table is missing"))?;
            quantization[component.index] = Some(table);
        }
    }
    Ok(())
}

/// Which bits of the coefficients are known, by component.
pub(super) struct Progress {
    /// The lowest known bit of each coefficient, in zigzag order.
    pub low: Vec<[Option<u32>; 64]>,
}

impl Progress {
    fn new(frame: &Frame) -> Self {
        Self {
            low: vec![[None; 64]; frame.components.len()],
        }
    }

    fn note(&mut self, scan: &ScanHeader, progressive: bool) {
        for component in &scan.components {
            let low = &mut self.low[component.index];
            if progressive {
                low[scan.first..=scan.last].fill(Some(scan.low));
            } else {
                low.fill(Some(0));
            }
        }
    }

    /// Whether anything is known of a component of this scan.
    fn has_any_of(&self, scan: &ScanHeader) -> bool {
        let mut components = scan.components.iter();
        components.any(|component| self.low[component.index].iter().any(Option::is_some))
    }

    /// Whether all bits of all coefficients are known.
    fn is_complete(&self) -> bool {
        self.low.as_flattened().iter().all(|low| *low == Some(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::PreprocessConfig;

    /// The DC coefficient and the first two AC coefficients of a grey picture of one block, whose
    /// scans have these data in the standard's codes.
    fn coefficients(scans: &[&[u8]]) -> [i16; 3] {
        let mut file = vec![0xff, 0xd8, 0xff, 0xdb, 0, 67, 0];
        file.extend([1; 64]);
        file.extend([0xff, 0xc0, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0]);
        for data in scans {
            file.extend([0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0]);
            file.extend_from_slice(data);
        }
        file.extend([0xff, 0xd9]);

        let header = Header::read(&file).unwrap();
        let budget = Budget::new(&PreprocessConfig::default());
        let stored = decode_scans(&file, header, &budget).unwrap();
        let block = stored.coefficients.block(0, 0, 0);
        [block[0], block[1], block[8]]
    }

    #[test]
    fn a_repeated_channel_keeps_what_is_0_in_its_last_scan() {
        // 0, 1, 1, end: 00 001 001 1010.
        let first: &[u8] = &[0b0000_1001, 0b1010_1111];
        assert_eq!(coefficients(&[first]), [0, 1, 1]);
        // 0, end: 00 1010.
        assert_eq!(coefficients(&[first, &[0b0010_1011]]), [0, 1, 1]);
        // 1, a zero and -1, end: 0101 11000 1010.
        let second: &[u8] = &[0b0101_1100, 0b0101_0111];
        assert_eq!(coefficients(&[first, second]), [1, 1, -1]);
        assert_eq!(coefficients(&[second, first]), [0, 1, 1]);
    }
}
