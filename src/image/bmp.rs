//! Run-length encoded BMP files. Pixels that the runs skip have the first colour of the palette, as
//! with Pillow.

use super::outline::{Outline, area};

/// Reads the header of a file, run-length encoded or not.
pub(super) fn outline(encoded: &[u8]) -> Option<Outline> {
    let u16_at = |at: usize| Some(u16::from_le_bytes(*encoded.get(at..)?.first_chunk()?));
    let i32_at = |at: usize| Some(i32::from_le_bytes(*encoded.get(at..)?.first_chunk()?));
    // The first kind of header has sides of 16 bits.
    let (width, height, bits) = if encoded.get(14) == Some(&12) {
        (u16_at(18)?.into(), u16_at(20)?.into(), u16_at(24)?)
    } else {
        // Rows are from top to bottom where the height is negative.
        let height = i32_at(22)?.unsigned_abs();
        (u32::try_from(i32_at(18)?).ok()?, height, u16_at(28)?)
    };
    let pixels = area(width, height);
    let is_run_length = RunLength::of(encoded).is_some();
    Some(Outline {
        width,
        height,
        bytes_per_pixel: if bits == 32 { 4 } else { 3 },
        // Runs are drawn as indices first, by way of a list of rows.
        working_bytes: if is_run_length {
            pixels + 16 * u64::from(height) + 4096
        } else {
            4 * u64::from(width) + 4096
        },
        nanoseconds: 4 * pixels + 4 * encoded.len() as u64,
        ..Outline::default()
    })
}

/// How the pixels of a row are packed: one or two in a byte.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RunLength {
    Bytes,
    HalfBytes,
}

impl RunLength {
    /// The run-length encoding that a file's header states; `None` if it states none.
    pub fn of(encoded: &[u8]) -> Option<Self> {
        let number = |start: usize| encoded.get(start).copied();
        // The header's length, the bits of a pixel, and the compression's lowest byte.
        match (number(14)?, number(28)?, number(30)?) {
            (40.., 8, 1) => Some(Self::Bytes),
            (40.., 4, 2) => Some(Self::HalfBytes),
            _ => None,
        }
    }

    /// Decodes the runs of a file to one index per pixel, in rows from top to bottom. `false` if
    /// the file ends before its image does.
    pub fn decode(self, encoded: &[u8], width: usize, indices: &mut [u8]) -> bool {
        indices.fill(0);
        let offset = encoded.get(10..14).map_or(0, |bytes| {
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        });
        let data = encoded.get(offset as usize..).unwrap_or_default();
        let mut canvas = Canvas {
            rows: indices.chunks_exact_mut(width).rev().collect(),
            x: 0,
            y: 0,
        };
        self.draw(data, &mut canvas).is_some() || canvas.is_full(width)
    }

    /// Follows the instructions up to the one that ends the image; `None` if there is none.
    fn draw(self, mut data: &[u8], canvas: &mut Canvas<'_>) -> Option<()> {
        loop {
            let (&[count, value], rest) = data.split_first_chunk::<2>()?;
            data = rest;
            match (count, value) {
                (0, 0) => {
                    canvas.x = 0;
                    canvas.y += 1;
                }
                (0, 1) => return Some(()),
                (0, 2) => {
                    let (&[right, up], rest) = data.split_first_chunk::<2>()?;
                    data = rest;
                    canvas.x += usize::from(right);
                    canvas.y += usize::from(up);
                }
                (0, count) => {
                    let count = usize::from(count);
                    let bytes = match self {
                        Self::Bytes => count,
                        Self::HalfBytes => count.div_ceil(2),
                    };
                    let literal = data.get(..bytes)?;
                    canvas.draw((0..count).map(|index| match self {
                        Self::Bytes => literal[index],
                        Self::HalfBytes => half(literal[index / 2], index),
                    }));
                    // The next instruction is at an even place.
                    data = data.get(bytes.next_multiple_of(2)..).unwrap_or_default();
                }
                (count, value) => canvas.draw((0..usize::from(count)).map(|index| match self {
                    Self::Bytes => value,
                    Self::HalfBytes => half(value, index),
                })),
            }
        }
    }
}

/// The upper or the lower half of a byte.
fn half(byte: u8, index: usize) -> u8 {
    if index.is_multiple_of(2) {
        byte >> 4
    } else {
        byte & 15
    }
}

/// The rows of an image from bottom to top, and where the next pixel is drawn.
struct Canvas<'a> {
    rows: Vec<&'a mut [u8]>,
    x: usize,
    y: usize,
}

impl Canvas<'_> {
    /// Draws from left to right. What is outside is not drawn.
    fn draw(&mut self, indices: impl ExactSizeIterator<Item = u8>) {
        let count = indices.len();
        if let Some(row) = self.rows.get_mut(self.y) {
            let rest = row.get_mut(self.x..).unwrap_or_default();
            for (target, index) in rest.iter_mut().zip(indices) {
                *target = index;
            }
        }
        self.x += count;
    }

    /// Whether the last pixel has been passed.
    fn is_full(&self, width: usize) -> bool {
        self.y >= self.rows.len() || (self.y + 1 == self.rows.len() && self.x >= width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(kind: RunLength, data: &[u8]) -> Option<[u8; 12]> {
        let file = [&[0; 10][..], &[14, 0, 0, 0], data].concat();
        let mut indices = [9; 12];
        kind.decode(&file, 4, &mut indices).then_some(indices)
    }

    #[test]
    fn skipped_pixels_have_the_first_colour() {
        // A run of two, a step of one to the right and one up, three as they are, the end.
        let data = [2, 7, 0, 2, 1, 1, 0, 3, 4, 5, 6, 0, 0, 1];
        assert_eq!(
            decode(RunLength::Bytes, &data),
            Some([0, 0, 0, 0, 0, 0, 0, 4, 7, 7, 0, 0])
        );
        let data = [3, 0x78, 0, 0, 0, 5, 0x12, 0x34, 0x50, 0, 0, 1];
        assert_eq!(
            decode(RunLength::HalfBytes, &data),
            Some([0, 0, 0, 0, 1, 2, 3, 4, 7, 8, 7, 0])
        );
    }

    #[test]
    fn files_that_end_early_are_noticed() {
        let whole = [4, 1, 0, 0, 4, 2, 0, 0, 4, 3];
        assert_eq!(
            decode(RunLength::Bytes, &whole),
            Some([3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1])
        );
        for end in 0..whole.len() - 1 {
            assert_eq!(decode(RunLength::Bytes, &whole[..end]), None, "{end}");
        }
    }
}
