//! Undoes the prediction of samples from their left neighbours (TIFF 6.0, section 14, and Adobe's
//! technical note 3 for floating-point samples).

use super::{
    directory::{ByteOrder, Directory, tag},
    unsupported,
};
use crate::image::ImageError;

/// How the samples of a row were predicted before they were compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Predictor {
    None,
    /// Each sample is stored as its difference to that of the pixel on its left.
    Horizontal,
    /// The same with the bytes of the samples, which are sorted by significance.
    FloatingPoint,
}

impl Predictor {
    pub fn of(directory: &Directory<'_>, bits: u16) -> Result<Self, ImageError> {
        match directory.number(tag::PREDICTOR)?.unwrap_or(1) {
            1 => Ok(Self::None),
            2 if matches!(bits, 8 | 16 | 32) => Ok(Self::Horizontal),
            3 if bits == 32 => Ok(Self::FloatingPoint),
            2 | 3 => Err(unsupported(&format!(
                "it predicts samples of {bits} bits from their neighbours; \
                 accepted are 8, 16 and 32 bits"
            ))),
            other => Err(unsupported(&format!(
                "its predictor is {other}, not 1, 2 or 3"
            ))),
        }
    }

    /// Restores a row with this many samples of `bits` per pixel, in place. Afterwards the samples
    /// are in the order of bytes that is returned.
    pub fn restore(
        self,
        row: &mut [u8],
        bits: u16,
        samples: usize,
        order: ByteOrder,
        scratch: &mut Vec<u8>,
    ) -> ByteOrder {
        match (self, bits) {
            (Self::None, _) => order,
            (Self::Horizontal, 8) => {
                for index in samples..row.len() {
                    row[index] = row[index].wrapping_add(row[index - samples]);
                }
                order
            }
            (Self::Horizontal, 16) => {
                sum(row, samples, |a, b| match order {
                    ByteOrder::Little => u16::from_le_bytes(a)
                        .wrapping_add(u16::from_le_bytes(b))
                        .to_le_bytes(),
                    ByteOrder::Big => u16::from_be_bytes(a)
                        .wrapping_add(u16::from_be_bytes(b))
                        .to_be_bytes(),
                });
                order
            }
            (Self::Horizontal, _) => {
                sum(row, samples, |a, b| match order {
                    ByteOrder::Little => u32::from_le_bytes(a)
                        .wrapping_add(u32::from_le_bytes(b))
                        .to_le_bytes(),
                    ByteOrder::Big => u32::from_be_bytes(a)
                        .wrapping_add(u32::from_be_bytes(b))
                        .to_be_bytes(),
                });
                order
            }
            (Self::FloatingPoint, _) => {
                for index in samples..row.len() {
                    row[index] = row[index].wrapping_add(row[index - samples]);
                }
                scratch.clear();
                scratch.extend_from_slice(row);
                let values = row.len() / 4;
                for (index, value) in row.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    *value = [0, 1, 2, 3].map(|byte| scratch[byte * values + index]);
                }
                // The most significant bytes come first, whatever the order in the file.
                ByteOrder::Big
            }
        }
    }
}

/// Adds to each value that of the pixel on its left.
fn sum<const N: usize>(row: &mut [u8], samples: usize, add: impl Fn([u8; N], [u8; N]) -> [u8; N]) {
    let values = row.as_chunks_mut::<N>().0;
    for index in samples..values.len() {
        values[index] = add(values[index], values[index - samples]);
    }
}
