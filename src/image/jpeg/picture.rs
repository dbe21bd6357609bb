//! The way from a file's scans to an output: strip by strip if there is one scan, and by way of the
//! coefficients of the whole picture if there are several. Where threads are idle, the picture is
//! cut into `bands` of rows, which they help with.

use std::sync::Arc;

use super::{
    arithmetic::ArithmeticDecoder,
    bands::Bands,
    header::Header,
    intervals::Intervals,
    output::{MakeOutput, Output, Picture, Request},
    scan::Restarts,
    scans::{Stored, StoredStrips, decode_scans, latch_quantization},
    sequential::{Codes, SequentialDecoder},
    strips::{CodedStrips, ScanError, write_strips},
    work::check_work,
};
use crate::image::{ImageError, rows::Rows};

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
