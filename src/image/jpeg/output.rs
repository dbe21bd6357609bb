//! What becomes of the blocks of a picture: the trait of all outputs, and what is asked of them.

use std::ops::Range;

use super::{frame::Frame, huffman::Block, scan::ScanHeader, tables::Quantization};
use crate::image::{budget::Budget, rows::Rows, task_group::Help};

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
