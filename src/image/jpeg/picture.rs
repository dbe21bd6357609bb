//! The way from a file's scans to an output: block by block if there is one scan, and by way of the
//! coefficients of the whole picture if there are several.

use std::ops::Range;

use super::{
    arithmetic::ArithmeticDecoder,
    coefficients::Coefficients,
    damaged,
    frame::Frame,
    header::Header,
    huffman::Block,
    marker,
    progressive::ProgressiveDecoder,
    scan::{EntropyDecoder, Fault, Restarts, ScanHeader},
    segment::Segment,
    sequential::SequentialDecoder,
    smoothing::Smoothing,
    tables::{Quantization, Tables},
    truncated, unsupported,
};
use crate::image::{ImageError, budget::Budget, rows::Rows};

/// Takes the blocks of a picture, strip by strip, and makes pixels of them. A strip is a row of MCUs
/// of all components.
pub(super) trait Output {
    /// The last coefficient, in zigzag order, that matters for this component.
    fn last_of_interest(&self, component: usize) -> usize;

    /// The columns of blocks that are needed of this row of the strip's blocks of this component.
    fn needed_columns(&self, component: usize, row: usize) -> Range<usize>;

    /// Takes a block, at this row and column of the strip's blocks of this component. `last` is the
    /// index in zigzag order of its last coefficient that is not 0, or a greater one.
    fn block(&mut self, component: usize, row: usize, column: usize, block: &Block, last: usize);

    /// Writes those wanted rows that are known now.
    fn finish_strip(&mut self, strip: usize, rows: &mut Rows<'_>);
}

/// The part of a picture that is wanted, in pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub columns: Range<usize>,
    pub rows: Range<usize>,
}

impl Region {
    pub fn whole(width: u32, height: u32) -> Self {
        Self {
            columns: 0..width as usize,
            rows: 0..height as usize,
        }
    }
}

/// Decodes all scans. `output` makes an output for the quantization tables of the components, and
/// is called once.
pub(super) fn decode<O: Output>(
    encoded: &[u8],
    header: Header<'_>,
    budget: &Budget,
    rows: &mut Rows<'_>,
    output: impl FnOnce(&Frame, &[Quantization]) -> O,
) -> Result<(), ImageError> {
    let frame = &header.frame;
    check_work(encoded, &header)?;
    if !header.scan.is_whole(frame) {
        return decode_scans(encoded, header, budget, rows, output);
    }

    let mut latched = vec![None; frame.components.len()];
    latch_quantization(&mut latched, frame, &header.scan, &header.tables)?;
    let quantization: Vec<_> = latched.into_iter().flatten().collect();
    let mut output = output(frame, &quantization);
    let tables = &header.tables;
    let result = if frame.arithmetic {
        let decoder = ArithmeticDecoder::new(encoded, header.data, frame, &header.scan, tables);
        decode_strips(decoder, &header, budget, &mut output, rows)
    } else {
        let decoder =
            SequentialDecoder::new(encoded, header.data, &header.scan, tables, |component| {
                output.last_of_interest(component)
            })?;
        decode_strips(decoder, &header, budget, &mut output, rows)
    };
    result.map_err(|error| error.explain(encoded, header.data))
}

/// Decodes the only scan of a file, and passes each block on at once.
fn decode_strips<O: Output>(
    mut decoder: impl EntropyDecoder,
    header: &Header<'_>,
    budget: &Budget,
    output: &mut O,
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    let mut restarts = Restarts::new(header.tables.restart_interval);
    let mut places = Vec::with_capacity(ScanHeader::MAX_BLOCKS_PER_MCU);
    for (number, component) in header.scan.components.iter().enumerate() {
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
    // Those of an MCU are all decoded before any is transformed: processors are slow to read several
    // small values at once that have just been written.
    let mut blocks: [(Block, usize); ScanHeader::MAX_BLOCKS_PER_MCU] =
        std::array::from_fn(|_| ([0; 64], 0));
    let (columns, strips) = header.scan.mcus(&header.frame);
    let samples = 64 * columns * header.scan.blocks_per_mcu();
    for strip in 0..strips {
        for place in &mut places {
            place.needed = output.needed_columns(place.component, place.row);
        }
        for mcu in 0..columns {
            restarts.before_mcu(&mut decoder)?;
            for (place, (block, last)) in places.iter().zip(&mut blocks) {
                if place.needed.contains(&place.column_at(mcu)) {
                    *block = [0; 64];
                    *last = decoder.block(place.number, block)?;
                } else {
                    decoder.skip(place.number)?;
                }
            }
            for (place, (block, last)) in places.iter().zip(&blocks) {
                let column = place.column_at(mcu);
                if place.needed.contains(&column) {
                    output.block(place.component, place.row, column, block, *last);
                }
            }
        }
        decoder.check()?;
        budget.spend(samples)?;
        output.finish_strip(strip, rows);
    }
    Ok(())
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

/// Decodes all scans to coefficients, and then those to pixels.
fn decode_scans<O: Output>(
    encoded: &[u8],
    header: Header<'_>,
    budget: &Budget,
    rows: &mut Rows<'_>,
    output: impl FnOnce(&Frame, &[Quantization]) -> O,
) -> Result<(), ImageError> {
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
        progress.note(&scan, frame.progressive);
        budget.spend(SAMPLES_PER_SCAN)?;
        let pass = Pass {
            frame: &frame,
            scan: &scan,
            tables: &tables,
            budget,
        };
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
    let smoothing = Smoothing::new(&frame, &coefficients, &quantization, &progress);
    let mut output = output(&frame, &quantization);
    for strip in 0..frame.strips() {
        for (index, component) in frame.components.iter().enumerate() {
            let first_row = strip * component.vertical;
            let rows_of_blocks = component.vertical.min(component.blocks_high - first_row);
            for row in 0..rows_of_blocks {
                let needed = output.needed_columns(index, row);
                for column in needed.start..needed.end.min(component.blocks_wide) {
                    if let Some(smoothing) = &smoothing {
                        let block = smoothing.block(index, strip, row, column);
                        output.block(index, row, column, &block, 63);
                        continue;
                    }
                    let block = coefficients.block(index, first_row + row, column);
                    let is_flat = block[1..].iter().all(|coefficient| *coefficient == 0);
                    output.block(index, row, column, block, if is_flat { 0 } else { 63 });
                }
            }
            budget.spend(64 * rows_of_blocks * component.blocks_wide)?;
        }
        output.finish_strip(strip, rows);
    }
    Ok(())
}

/// Why a scan of several could not be decoded.
enum ScanError {
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
    fn explain(self, encoded: &[u8], first_scan: usize) -> ImageError {
        match self {
            Self::Image(error) => error,
            Self::Data(fault) => explain(fault, encoded, first_scan),
        }
    }
}

/// One scan of several, and what it needs.
struct Pass<'a> {
    frame: &'a Frame,
    scan: &'a ScanHeader,
    tables: &'a Tables,
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
        let decoder = SequentialDecoder::new(encoded, position, scan, tables, |_| 63)?;
        decode_blocks(decoder, pass, coefficients)
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
fn latch_quantization(
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

    /// Whether all bits of all coefficients are known.
    fn is_complete(&self) -> bool {
        self.low.as_flattened().iter().all(|low| *low == Some(0))
    }
}

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
                    // What is wrong with a header is said when its turn comes.
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
