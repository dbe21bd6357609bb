//! The samples of a row: numbers of any length, as one byte each.

use super::{
    directory::{ByteOrder, Directory, tag},
    unsupported,
};
use crate::image::ImageError;

/// The type of all samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SampleType {
    /// Unsigned integers of up to 16 bits.
    Unsigned(u16),
    Signed8,
    Signed16,
    /// Signed integers of 32 bits. Unsigned ones are taken as signed, as with Pillow.
    Signed32,
    Float32,
}

impl SampleType {
    /// Reads the type of the first `samples` samples of a pixel.
    pub fn of(directory: &Directory<'_>, samples: u16) -> Result<Self, ImageError> {
        let uniform = |tag, default, what: &str| {
            let Some(values) = directory.values(tag)? else {
                return Ok(default);
            };
            let mut values =
                (0..values.len().min(samples.into())).map_while(|index| values.number(index));
            let first = values.next().unwrap_or(default);
            match values.find(|value| *value != first) {
                Some(other) => Err(unsupported(&format!(
                    "its channels differ in their {what}, {first} and {other}"
                ))),
                None => Ok(first),
            }
        };
        let bits = uniform(tag::BITS_PER_SAMPLE, 1, "numbers of bits")?;
        let format = uniform(tag::SAMPLE_FORMAT, 1, "sample formats")?;
        match (format, bits) {
            (1 | 4, 1..=16) => Ok(Self::Unsigned(bits as u16)),
            (1 | 2 | 4, 32) => Ok(Self::Signed32),
            (2, 8) => Ok(Self::Signed8),
            (2, 16) => Ok(Self::Signed16),
            (3, 32) => Ok(Self::Float32),
            _ => {
                let kind = match format {
                    1 | 4 => "unsigned integers",
                    2 => "signed integers",
                    3 => "floating-point numbers",
                    5 | 6 => "complex numbers",
                    _ => "an unknown type",
                };
                Err(unsupported(&format!(
                    "its samples are {kind} of {bits} bits; accepted are unsigned integers of 1 to \
                     16 and 32, signed ones of 8, 16 and 32, and floating-point numbers of 32"
                )))
            }
        }
    }

    pub fn bits(self) -> u16 {
        match self {
            Self::Unsigned(bits) => bits,
            Self::Signed8 => 8,
            Self::Signed16 => 16,
            Self::Signed32 | Self::Float32 => 32,
        }
    }

    /// Converts a row of pixels, which have `samples` samples each, of which the first `taken` are
    /// wanted. `target` holds `taken` bytes for each pixel that is wanted.
    ///
    /// Unsigned integers are scaled to the range of a byte, unless `scaled` is false, and signed
    /// and floating-point numbers are clipped to it, as with Pillow.
    pub fn read(
        self,
        row: &[u8],
        order: ByteOrder,
        samples: usize,
        taken: usize,
        scaled: bool,
        target: &mut [u8],
    ) {
        match self {
            Self::Unsigned(8) | Self::Signed8 => {
                if samples == taken {
                    target.copy_from_slice(&row[..target.len()]);
                } else {
                    let pixels = target.chunks_exact_mut(taken);
                    for (target, pixel) in pixels.zip(row.chunks_exact(samples)) {
                        target.copy_from_slice(&pixel[..taken]);
                    }
                }
            }
            Self::Unsigned(16) => pick(row, samples, taken, target, |bytes| {
                ((u32::from(order.u16(bytes)) * 255 + 32_767) / 65_535) as u8
            }),
            Self::Unsigned(bits) => read_bits(row, bits, samples, taken, scaled, target),
            Self::Signed16 => pick(row, samples, taken, target, |bytes| {
                (order.u16(bytes) as i16).clamp(0, 255) as u8
            }),
            Self::Signed32 => pick(row, samples, taken, target, |bytes| {
                (order.u32(bytes) as i32).clamp(0, 255) as u8
            }),
            // The conversion truncates, clips, and makes zero of what is not a number.
            Self::Float32 => pick(row, samples, taken, target, |bytes| {
                f32::from_bits(order.u32(bytes)) as u8
            }),
        }
    }
}

/// Converts samples of `N` bytes.
fn pick<const N: usize>(
    row: &[u8],
    samples: usize,
    taken: usize,
    target: &mut [u8],
    convert: impl Fn([u8; N]) -> u8,
) {
    let pixels = row.as_chunks::<N>().0.chunks_exact(samples);
    for (target, pixel) in target.chunks_exact_mut(taken).zip(pixels) {
        for (target, sample) in target.iter_mut().zip(pixel) {
            *target = convert(*sample);
        }
    }
}

/// Converts samples that are packed bit by bit, from the highest bit of each byte.
fn read_bits(row: &[u8], bits: u16, samples: usize, taken: usize, scaled: bool, target: &mut [u8]) {
    let max = (1u32 << bits) - 1;
    let bits = usize::from(bits);
    let scale = |sample: u32| match (scaled, max) {
        (false, _) => sample as u8,
        (true, 1 | 3 | 15) => (sample * (255 / max)) as u8,
        (true, _) => ((sample * 255 + max / 2) / max) as u8,
    };
    for (x, target) in target.chunks_exact_mut(taken).enumerate() {
        for (channel, target) in target.iter_mut().enumerate() {
            let position = (x * samples + channel) * bits;
            let byte = |offset| u32::from(row.get(position / 8 + offset).copied().unwrap_or(0));
            let window = byte(0) << 16 | byte(1) << 8 | byte(2);
            let sample = (window >> (24 - position % 8 - bits)) & max;
            *target = scale(sample);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: SampleType, row: &[u8], order: ByteOrder, target: &mut [u8]) {
        kind.read(row, order, 1, 1, true, target);
    }

    #[test]
    fn integers_of_every_length_are_scaled() {
        for bits in 1..=15 {
            // All ones, then all zeros.
            let ones = u64::MAX << (64 - bits);
            let mut pixels = [7; 2];
            read(
                SampleType::Unsigned(bits),
                &ones.to_be_bytes(),
                ByteOrder::Little,
                &mut pixels,
            );
            assert_eq!(pixels, [255, 0], "{bits} bits");
        }
        let mut pixels = [0; 4];
        let row = [0x00, 0x80, 0xff, 0xff, 0x80, 0x80, 0x00, 0x00];
        read(SampleType::Unsigned(16), &row, ByteOrder::Big, &mut pixels);
        assert_eq!(pixels, [0, 255, 128, 0]);
        read(
            SampleType::Unsigned(16),
            &row,
            ByteOrder::Little,
            &mut pixels,
        );
        assert_eq!(pixels, [128, 255, 128, 0]);
    }

    #[test]
    fn signed_and_floating_point_numbers_are_clipped() {
        let mut pixels = [7; 4];
        let row: Vec<u8> = [-3i16, 0, 200, 300]
            .iter()
            .flat_map(|v| v.to_be_bytes())
            .collect();
        read(SampleType::Signed16, &row, ByteOrder::Big, &mut pixels);
        assert_eq!(pixels, [0, 0, 200, 255]);
        let row: Vec<u8> = [f32::NAN, -1.0, 99.9, 1e9]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        read(SampleType::Float32, &row, ByteOrder::Little, &mut pixels);
        assert_eq!(pixels, [0, 0, 99, 255]);
    }
}
