//! What is scaled: the pixels of a stored image, or of a part of it.

use std::ops::Range;

use super::pixels::PixelLayout;

/// Pixels of a stored image, or of a part of it that contains what is scaled.
#[derive(Clone, Copy)]
pub(super) struct SourceView<'a> {
    data: &'a [u8],
    /// Bytes from one row to the next.
    stride: usize,
    /// Bytes of a row, without padding.
    row_bytes: usize,
    /// The column and row of the stored image where the view begins.
    pub origin: (u32, u32),
    pub layout: PixelLayout,
}

impl<'a> SourceView<'a> {
    /// Rows of `width` pixels, one directly after another.
    pub fn packed(width: u32, data: &'a [u8], layout: PixelLayout) -> Self {
        let row_bytes = width as usize * layout.channels();
        Self {
            data,
            stride: row_bytes,
            row_bytes,
            origin: (0, 0),
            layout,
        }
    }

    /// The same pixels as a part of an image that begins at this column and row.
    pub fn at(self, origin: (u32, u32)) -> Self {
        Self { origin, ..self }
    }

    /// The same with rows that begin `stride` bytes after one another.
    pub fn with_stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// These rows of the stored image, each from the view's first column on.
    pub fn rows(&self, rows: Range<u32>) -> Vec<&'a [u8]> {
        let rows = rows.map(|row| (row - self.origin.1) as usize);
        rows.map(|row| &self.data[row * self.stride..][..self.row_bytes])
            .collect()
    }
}
