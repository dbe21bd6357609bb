//! The coefficients of a whole picture, for files whose scans each hold only a part of them.

use super::{
    frame::{Component, Frame},
    huffman::Block,
};
use crate::image::{ImageError, ImageFormat, PreprocessConfig};

/// All blocks of all components, padded to whole MCUs.
pub(super) struct Coefficients {
    components: Vec<Plane>,
}

struct Plane {
    blocks: Vec<Block>,
    /// Blocks in a row.
    columns: usize,
}

/// The blocks of a component in a row and in a column, in whole MCUs.
fn padded(frame: &Frame, component: &Component) -> [usize; 2] {
    [
        frame.mcus_per_strip() * component.horizontal,
        frame.strips() * component.vertical,
    ]
}

impl Coefficients {
    /// The memory that the coefficients of a picture take.
    pub fn bytes(frame: &Frame) -> u64 {
        let blocks = frame.components.iter().map(|component| {
            let [columns, rows] = padded(frame, component);
            columns as u64 * rows as u64
        });
        blocks.sum::<u64>() * size_of::<Block>() as u64
    }

    /// All zeros.
    ///
    /// # Errors
    /// [`ImageError::TooMuchMemory`], before memory is reserved.
    pub fn new(frame: &Frame, config: &PreprocessConfig) -> Result<Self, ImageError> {
        let max_bytes = config.max_decoded_bytes();
        if Self::bytes(frame) > max_bytes {
            return Err(ImageError::TooMuchMemory {
                format: ImageFormat::Jpeg,
                max_bytes,
            });
        }

        let components = frame
            .components
            .iter()
            .map(|component| {
                let [columns, rows] = padded(frame, component);
                Plane {
                    blocks: vec![[0; 64]; columns * rows],
                    columns,
                }
            })
            .collect();
        Ok(Self { components })
    }

    #[inline(always)]
    pub fn block(&self, component: usize, row: usize, column: usize) -> &Block {
        let plane = &self.components[component];
        &plane.blocks[row * plane.columns + column]
    }

    #[inline(always)]
    pub fn block_mut(&mut self, component: usize, row: usize, column: usize) -> &mut Block {
        let plane = &mut self.components[component];
        &mut plane.blocks[row * plane.columns + column]
    }
}
