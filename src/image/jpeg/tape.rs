//! Blocks that one thread has decoded and another one makes pixels of.

use std::{ops::Range, sync::Arc};

use super::{
    huffman::Block,
    output::{Output, Picture},
    strips::{ScanError, Strips},
};
use crate::image::rows::Rows;

/// The needed blocks of some strips, in the order in which they are coded.
#[derive(Default)]
pub(super) struct Tape {
    first_strip: usize,
    /// Where each strip ends.
    ends: Vec<usize>,
    blocks: Vec<Block>,
    places: Vec<Place>,
}

/// What belongs to a block of a tape.
struct Place {
    component: u8,
    row: u8,
    last: u8,
    column: u32,
}

impl Tape {
    /// Makes room for strips from this one on.
    pub fn rewind(&mut self, first_strip: usize) {
        self.first_strip = first_strip;
        self.ends.clear();
        self.blocks.clear();
        self.places.clear();
    }

    fn strip(&self, strip: usize) -> Option<(&[Block], &[Place])> {
        let index = strip.checked_sub(self.first_strip)?;
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some((&self.blocks[start..end], &self.places[start..end]))
    }
}

/// Records the blocks that an output needs.
pub(super) struct Recorder<O> {
    pub output: O,
    pub tape: Tape,
}

impl<O: Output> Output for Recorder<O> {
    fn last_of_interest(&self, component: usize) -> usize {
        self.output.last_of_interest(component)
    }

    fn depends_on(&self) -> usize {
        self.output.depends_on()
    }

    fn rows_of(&self, strips: &Range<usize>) -> Range<usize> {
        self.output.rows_of(strips)
    }

    fn begin_at(&mut self, strip: usize) {
        self.output.begin_at(strip);
    }

    fn needed_columns(&self, component: usize, row: usize) -> Range<usize> {
        self.output.needed_columns(component, row)
    }

    #[inline(always)]
    fn block(&mut self, component: usize, row: usize, column: usize, block: &Block, last: usize) {
        self.tape.blocks.push(*block);
        self.tape.places.push(Place {
            component: component as u8,
            row: row as u8,
            last: last as u8,
            column: column as u32,
        });
    }

    fn finish_strip(&mut self, strip: usize, _: &mut Rows<'_>) {
        self.tape.ends.push(self.tape.blocks.len());
        self.output.begin_at(strip + 1);
    }
}

/// The strips of a tape, and those of the tape before it.
pub(super) struct RecordedStrips<'a> {
    pub picture: &'a Picture,
    pub tapes: &'a [Arc<Tape>],
}

impl Strips for RecordedStrips<'_> {
    fn strip(&mut self, strip: usize, output: &mut impl Output) -> Result<(), ScanError> {
        let mut tapes = self.tapes.iter();
        let Some((blocks, places)) = tapes.find_map(|tape| tape.strip(strip)) else {
            return Ok(());
        };
        // By component and row.
        let components = self.picture.frame.components.iter().enumerate();
        let needed: Vec<Vec<_>> = components
            .map(|(index, component)| {
                (0..component.vertical)
                    .map(|row| output.needed_columns(index, row))
                    .collect()
            })
            .collect();
        for (block, place) in blocks.iter().zip(places) {
            let (component, row) = (usize::from(place.component), usize::from(place.row));
            let column = place.column as usize;
            if needed[component][row].contains(&column) {
                output.block(component, row, column, block, place.last.into());
            }
        }
        Ok(())
    }
}
