//! Pictures that several threads decode: bands of strips, each of which becomes pixels by itself, and
//! all of which together are what one thread makes of the picture, to the bit.
//!
//! Where pixels at the edge of a band depend on samples of its neighbours, a band decodes the last
//! strip before it as well. What has to be decoded in order stays with one thread: the codes of a scan
//! without restart markers, and the scans of a progressive file.

use std::{ops::Range, sync::Arc};

use super::{
    huffman::Block,
    intervals::{IntervalStart, Intervals},
    output::{MakeOutput, Nothing, Output, Picture, Region, Request},
    scan::{EntropyDecoder, Fault},
    scans::{Stored, StoredStrips},
    sequential::{Codes, SequentialDecoder},
    strips::{CodedStrips, ScanError, Strips, write_strips},
    tape::{RecordedStrips, Recorder, Tape},
};
use crate::image::{
    ImageError, ImageFormat, PreprocessConfig,
    budget::Budget,
    rows::{Part, Rows},
    task_group::{Done, Help, TaskGroup},
};

/// The fewest pixels for which it pays to wake another thread. Pictures of tests are small.
const MIN_PIXELS: u64 = if cfg!(test) { 1 } else { 1 << 16 };

/// About how many bands a picture is cut into, if that leaves each long enough: the last one is done
/// when all others are.
const BANDS: usize = 12;

/// The most strips of a band.
const MAX_STRIPS: usize = 8;

/// The most memory that the blocks of a band may take, in bytes.
const MAX_BAND_BYTES: usize = 1 << 20;

/// How many bands may be on their way at most, which limits the memory of their blocks.
const MAX_OPEN: usize = 6;

/// How many bands of restart intervals a thread gets, so that all end at about the same time.
const BANDS_A_THREAD: usize = 4;

/// How many times the blocks of a band may be in memory: on their way, recorded, and kept for their
/// neighbours, each time in vectors that have grown to twice their length, and as pixels.
const COPIES: usize = 3 * (MAX_OPEN + 2);

/// A picture that is shared out.
pub(super) struct Bands<'a, F> {
    picture: Arc<Picture>,
    make: Arc<F>,
    region: Region,
    budget: &'a Budget,
    help: Help<'a>,
    /// Strips of the picture, and of a band.
    strips: usize,
    step: usize,
    /// What the blocks of a strip take, in bytes; its pixels take no more.
    strip_bytes: usize,
}

/// A part of a picture, from its left edge to its right one.
struct Band {
    /// The strips that belong to it and to no other.
    strips: Range<usize>,
    /// The rows of pixels that are wanted of it.
    rows: Range<usize>,
    /// The strip that decoding begins with.
    first: usize,
}

/// What comes of a band: its rows, and the tapes that they were on.
type Outcome = (Result<Part, ScanError>, Vec<Arc<Tape>>);

impl<'a, F: MakeOutput> Bands<'a, F> {
    /// For a picture of so many strips; `None` if one thread is to decode it, because no other one is
    /// idle, there is no memory for it, or the picture is too small or too wide.
    pub fn of(
        request: &Request<'a>,
        picture: Arc<Picture>,
        make: F,
        strips: usize,
    ) -> Option<Self> {
        let help = request.help?;
        let frame = &picture.frame;
        let components = frame.components.iter();
        let blocks = components.map(|component| component.horizontal * component.vertical);
        let bytes = frame.mcus_per_strip() * blocks.sum::<usize>() * size_of::<Block>();
        let fit = MAX_BAND_BYTES / bytes.max(1);
        let pixels = u64::from(frame.width) * u64::from(frame.height);
        let step = strips.div_ceil(BANDS).clamp(1, MAX_STRIPS.min(fit.max(1)));
        let fits = fit > 0 && (COPIES * step * bytes) as u64 <= help.memory;
        if !fits || pixels < MIN_PIXELS || help.helpers.idle() == 0 {
            return None;
        }
        Some(Self {
            picture,
            make: Arc::new(make),
            region: request.region.clone(),
            budget: request.budget,
            help,
            strips,
            step,
            strip_bytes: bytes,
        })
    }

    /// Decodes the scan with this thread; the others make pixels of it.
    pub fn share_output(
        &self,
        mut source: CodedStrips<'_, impl EntropyDecoder>,
        output: F::Output,
        rows: &mut Rows<'_>,
    ) -> Result<(), ScanError> {
        let tasks = self.task_group(MAX_OPEN);
        let mut spare = Vec::new();
        let mut before: Option<Arc<Tape>> = None;
        let bands = self.cut(&output, self.step);
        let mut recorder = Recorder {
            output,
            tape: Tape::default(),
        };
        for band in bands {
            recorder.tape = spare.pop().unwrap_or_default();
            recorder.tape.rewind(band.strips.start);
            for strip in band.strips.clone() {
                source.strip(strip, &mut recorder)?;
                recorder.finish_strip(strip, rows);
            }
            let tape = Arc::new(std::mem::take(&mut recorder.tape));
            let tapes: Vec<_> = before
                .take()
                .into_iter()
                .chain([Arc::clone(&tape)])
                .collect();
            before = Some(tape);
            if !band.rows.is_empty() {
                let work = self.work(&band, rows);
                let config = *self.budget.config();
                tasks.spawn(move || {
                    let picture = Arc::clone(&work.picture);
                    let source = RecordedStrips {
                        picture: &picture,
                        tapes: &tapes,
                    };
                    (work.write(source, &config), tapes)
                });
            }
            self.collect(tasks.done()?, rows, &mut spare)?;
        }
        self.collect(tasks.finish()?, rows, &mut spare)
    }

    /// Makes pixels of coefficients that are all known.
    pub fn share_stored(
        &self,
        stored: Stored,
        output: &F::Output,
        rows: &mut Rows<'_>,
    ) -> Result<(), ScanError> {
        let tasks = self.task_group((MAX_OPEN + self.help.helpers.idle()).min(COPIES));
        let stored = Arc::new(stored);
        for band in self.cut(output, self.step) {
            if !band.rows.is_empty() {
                let work = self.work(&band, rows);
                let stored = Arc::clone(&stored);
                let config = *self.budget.config();
                tasks.spawn(move || {
                    let budget = Budget::new(&config);
                    let source = StoredStrips::of(&stored, &budget);
                    (work.write(source, &config), Vec::new())
                });
            }
            self.collect(tasks.done()?, rows, &mut Vec::new())?;
        }
        self.collect(tasks.finish()?, rows, &mut Vec::new())
    }

    /// Decodes the restart intervals of the scan with all threads. False if that is not possible: the
    /// intervals do not fit the strips, or something is wrong with the data, so that it has to be
    /// decoded in order to know what.
    ///
    /// # Errors
    /// What is wrong beside the data.
    pub fn share_intervals(
        &self,
        intervals: &Intervals<'_>,
        codes: &Arc<Codes>,
        output: &F::Output,
        rows: &mut Rows<'_>,
    ) -> Result<bool, ImageError> {
        let threads = self.help.helpers.idle() + 1;
        let step = self.strips.div_ceil(BANDS_A_THREAD * threads);
        let step = step.max(self.step).next_multiple_of(intervals.strips());
        let open = MAX_OPEN + threads;
        if (open * step * self.strip_bytes) as u64 > self.help.memory {
            return Ok(false);
        }
        let bands = self.cut(output, step);
        let firsts: Vec<_> = bands.iter().map(|band| band.first).collect();
        let Some(starts) = intervals.find(&firsts) else {
            return Ok(false);
        };

        let tasks = self.task_group(open);
        let mut spare = Vec::new();
        for (index, band) in bands.iter().enumerate() {
            let work = self.work(band, rows);
            let codes = Arc::clone(codes);
            let file = self.help.file.clone();
            let config = *self.budget.config();
            let start = starts[index];
            let next = starts.get(index + 1).copied();
            tasks.spawn(move || {
                let budget = Budget::new(&config);
                let picture = Arc::clone(&work.picture);
                let decoder = SequentialDecoder::new(&codes, &file, start.data);
                let Picture { frame, scan, .. } = &*picture;
                let scan = CodedStrips::new(decoder, start.restarts(), frame, scan, &budget);
                (work.write(Joined { scan, next }, &config), Vec::new())
            });
            if self.collect(tasks.done()?, rows, &mut spare).is_err() {
                return Ok(false);
            }
        }
        Ok(self.collect(tasks.finish()?, rows, &mut spare).is_ok())
    }

    fn task_group(&self, max_open: usize) -> TaskGroup<Outcome> {
        TaskGroup::new(self.help.helpers, ImageFormat::Jpeg, max_open)
    }

    fn cut(&self, output: &F::Output, step: usize) -> Vec<Band> {
        let starts = (0..self.strips).step_by(step);
        let bands = starts.map(|start| {
            // Bands begin a little later than their first strip, which is that of an interval.
            let shared = output.depends_on();
            let strips = match start {
                0 => 0,
                _ => (start + shared).min(self.strips),
            }..(start + step + shared).min(self.strips);
            Band {
                rows: output.rows_of(&strips),
                first: start,
                strips,
            }
        });
        bands.filter(|band| !band.strips.is_empty()).collect()
    }

    fn work(&self, band: &Band, rows: &Rows<'_>) -> Work<F> {
        Work {
            picture: Arc::clone(&self.picture),
            make: Arc::clone(&self.make),
            region: Region {
                columns: self.region.columns.clone(),
                rows: band.rows.clone(),
            },
            strips: band.first..band.strips.end,
            part: rows.part(band.rows.clone()),
        }
    }

    /// Takes over what is done.
    fn collect(
        &self,
        Done { results, helped }: Done<Outcome>,
        rows: &mut Rows<'_>,
        spare: &mut Vec<Tape>,
    ) -> Result<(), ScanError> {
        self.budget.help(helped);
        for (part, tapes) in results {
            rows.put(&part?, &self.region.columns);
            spare.extend(tapes.into_iter().filter_map(Arc::into_inner));
        }
        Ok(())
    }
}

/// What has to be done for a band.
struct Work<F> {
    picture: Arc<Picture>,
    make: Arc<F>,
    /// The rows of the band.
    region: Region,
    /// The strips to decode.
    strips: Range<usize>,
    part: Part,
}

impl<F: MakeOutput> Work<F> {
    fn write(mut self, source: impl Strips, config: &PreprocessConfig) -> Result<Part, ScanError> {
        let mut rows = self.part.rows();
        if self.region.rows.is_empty() {
            write_strips(self.strips, source, Nothing, &mut rows)?;
        } else {
            let mut output = self.make.make(&self.picture, self.region);
            output.begin_at(self.strips.start);
            write_strips(self.strips, source, output, &mut rows)?;
        }
        rows.finish(&Budget::new(config))?;
        Ok(self.part)
    }
}

/// The strips of a band of restart intervals, which has to end where the next one begins.
struct Joined<'a, D> {
    scan: CodedStrips<'a, D>,
    next: Option<IntervalStart>,
}

impl<D: EntropyDecoder> Strips for Joined<'_, D> {
    fn strip(&mut self, strip: usize, output: &mut impl Output) -> Result<(), ScanError> {
        self.scan.strip(strip, output)?;
        if let Some(next) = &self.next
            && next.strip == strip + 1
            && self.scan.restarted()? != next.data
        {
            return Err(Fault::Restart.into());
        }
        Ok(())
    }
}
