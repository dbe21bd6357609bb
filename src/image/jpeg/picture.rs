//! The way from a file's scans to an output: strip by strip if there is one scan, and by way of the
//! coefficients of the whole picture if there are several. Where threads are idle, the picture is
//! cut into `bands` of rows, which they help with.

use std::{ops::Range, sync::Arc};

use super::{
    arithmetic::ArithmeticDecoder,
    bands::Bands,
    frame::Frame,
    header::Header,
    huffman::Block,
    intervals::Intervals,
    scan::{Restarts, ScanHeader},
    scans::{Stored, StoredStrips, decode_scans, latch_quantization},
    sequential::{Codes, SequentialDecoder},
    strips::{CodedStrips, ScanError, Strips},
    tables::Quantization,
    work::check_work,
};
use crate::image::{ImageError, budget::Budget, rows::Rows, task_group::Help};

/// Takes the blocks of a picture, strip by strip, and makes pixels of them. A strip is a row of MCUs
/// of all components.
pub(super) trait Output {
    /// The last coefficient, in zigzag order, that matters for this component.
    fn last_of_interest(&self, component: usize) -> usize;

    /// How many strips before a row's own it depends on.
    fn depends_on(&self) -> usize;

    /// The wanted rows of pixels that are known with these strips and not before.
    fn rows_of(&self, strips: &Range<usize>) -> Range<usize>;

    /// Has the blocks come from this strip on. The rows of the strip itself are not written unless
    /// it depends on none before it.
    fn begin_at(&mut self, strip: usize);

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

/// What is known of a picture beside its blocks.
pub(super) struct Picture {
    pub frame: Frame,
    /// Its only scan, or its last one.
    pub scan: ScanHeader,
    /// By component.
    pub quantization: Vec<Quantization>,
}

/// Makes an output for a region, which is not empty.
pub(super) trait MakeOutput: Send + Sync + 'static {
    type Output: Output;

    fn make(&self, picture: &Picture, region: Region) -> Self::Output;
}

impl<O: Output, F: Fn(&Picture, Region) -> O + Send + Sync + 'static> MakeOutput for F {
    type Output = O;

    fn make(&self, picture: &Picture, region: Region) -> O {
        self(picture, region)
    }
}

/// What of a file is decoded, and by whom.
#[derive(Clone)]
pub(super) struct Request<'a> {
    pub encoded: &'a [u8],
    pub budget: &'a Budget,
    pub region: Region,
    /// Others that may help.
    pub help: Option<Help<'a>>,
}

/// Needs no block.
pub(super) struct Nothing;

impl Output for Nothing {
    fn last_of_interest(&self, _: usize) -> usize {
        0
    }

    fn depends_on(&self) -> usize {
        0
    }

    fn rows_of(&self, _: &Range<usize>) -> Range<usize> {
        0..0
    }

    fn begin_at(&mut self, _: usize) {}

    fn needed_columns(&self, _: usize, _: usize) -> Range<usize> {
        0..0
    }

    fn block(&mut self, _: usize, _: usize, _: usize, _: &Block, _: usize) {}

    fn finish_strip(&mut self, _: usize, _: &mut Rows<'_>) {}
}

/// Decodes all scans.
pub(super) fn decode(
    header: Header<'_>,
    request: &Request<'_>,
    rows: &mut Rows<'_>,
    make: impl MakeOutput,
) -> Result<(), ImageError> {
    let &Request {
        encoded, budget, ..
    } = request;
    check_work(encoded, &header)?;
    let data = header.data;
    let result = if header.scan.is_whole(&header.frame) {
        decode_only_scan(header, request, rows, make)
    } else {
        let stored = decode_scans(encoded, header, budget)?;
        write_stored(stored, request, rows, make)
    };
    result.map_err(|error| error.explain(encoded, data))
}

fn write_stored(
    stored: Stored,
    request: &Request<'_>,
    rows: &mut Rows<'_>,
    make: impl MakeOutput,
) -> Result<(), ScanError> {
    let picture = Arc::clone(&stored.picture);
    let strips = picture.frame.strips();
    let output = make.make(&picture, request.region.clone());
    match Bands::of(request, picture, make, strips) {
        Some(bands) => bands.share_stored(stored, &output, rows),
        None => {
            let source = StoredStrips::of(&stored, request.budget);
            write_strips(0..strips, source, output, rows)
        }
    }
}

fn decode_only_scan(
    header: Header<'_>,
    request: &Request<'_>,
    rows: &mut Rows<'_>,
    make: impl MakeOutput,
) -> Result<(), ScanError> {
    let Header {
        frame,
        tables,
        scan,
        data,
        ..
    } = header;
    let &Request {
        encoded, budget, ..
    } = request;
    let mut latched = vec![None; frame.components.len()];
    latch_quantization(&mut latched, &frame, &scan, &tables)?;
    let picture = Arc::new(Picture {
        quantization: latched.into_iter().flatten().collect(),
        frame,
        scan,
    });
    let Picture { frame, scan, .. } = &*picture;
    let (columns, strips) = scan.mcus(frame);
    let output = make.make(&picture, request.region.clone());
    let bands = Bands::of(request, Arc::clone(&picture), make, strips);
    let restarts = Restarts::new(tables.restart_interval);

    if frame.arithmetic {
        let decoder = ArithmeticDecoder::new(encoded, data, frame, scan, &tables);
        let source = CodedStrips::new(decoder, restarts, frame, scan, budget);
        return match bands {
            Some(bands) => bands.share_output(source, output, rows),
            None => write_strips(0..strips, source, output, rows),
        };
    }

    let codes = Codes::new(encoded.len() - data, scan, &tables, |component| {
        output.last_of_interest(component)
    })?;
    let codes = Arc::new(codes);
    let decoder = SequentialDecoder::new(&codes, encoded, data);
    let source = CodedStrips::new(decoder, restarts, frame, scan, budget);
    let Some(bands) = bands else {
        return write_strips(0..strips, source, output, rows);
    };
    if tables.restart_interval > 0 {
        let intervals = Intervals {
            encoded,
            data,
            mcus: tables.restart_interval,
            columns,
        };
        if bands.share_intervals(&intervals, &codes, &output, rows)? {
            return Ok(());
        }
    }
    bands.share_output(source, output, rows)
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
