//! The coefficients of a whole picture, for files whose scans each hold only a part of them.

use super::{frame::Frame, huffman::Block};
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

impl Coefficients {
    /// All zeros.
    ///
    /// # Errors
    /// [`ImageError::TooMuchMemory`], before memory is reserved.
    pub fn new(frame: &Frame, config: &PreprocessConfig) -> Result<Self, ImageError> {
        let size = |component: &super::frame::Component| {
            let columns = frame.mcus_per_strip() * component.horizontal;
            (columns, frame.strips() * component.vertical)
        };

        let blocks: usize = frame
            .components
            .iter()
            .map(|component| {
                let (columns, rows) = size(component);
                columns * rows
            })
            .sum();
        let max_bytes = config.max_decoded_bytes();
        if (blocks * size_of::<Block>()) as u64 > max_bytes {
            return Err(ImageError::TooMuchMemory {
                format: ImageFormat::Jpeg,
                max_bytes,
            });
        }

        let components = frame
            .components
            .iter()
            .map(|component| {
                let (columns, rows) = size(component);
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
