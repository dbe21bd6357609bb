//! What the headers of an AV1 picture say, before any of it is decoded (AV1 Bitstream & Decoding
//! Process Specification, 5.3 to 5.5).

use crate::image::outline::area;

/// The most units of a picture's data; each costs some time, however small it is.
const MAX_UNITS: usize = 4096;
/// The most frames of a picture. A photo has one frame; a photo in layers has several, of which the
/// last is shown. Each may take as long to decode as the photo itself.
const MAX_FRAMES: usize = 8;

/// The types of units.
mod unit {
    pub const SEQUENCE_HEADER: u8 = 1;
    pub const FRAME_HEADER: u8 = 3;
    pub const FRAME: u8 = 6;
}

/// What is told of a picture in its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub frames: usize,
    pub sequence: Sequence,
}

/// The parts of a sequence header that say how a picture's samples are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    pub max_width: u32,
    pub max_height: u32,
    /// The bits of a sample: 8, 10 or 12.
    pub depth: u8,
    pub monochrome: bool,
    /// Whether chroma has half the columns, and half the rows.
    pub subsampled: [bool; 2],
    /// `matrix_coefficients` of ITU-T H.273.
    pub matrix: u8,
    pub full_range: bool,
    /// Whether frames may be coded at a smaller width.
    pub superres: bool,
    pub film_grain: bool,
}

/// Why headers can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// The data ends within a unit.
    Ends,
    Damaged,
    TooManyUnits,
    TooManyFrames,
}

impl HeaderError {
    pub fn reason(self) -> &'static str {
        match self {
            Self::Ends => "the data of its picture ends early",
            Self::Damaged => "the header of its picture is damaged",
            Self::TooManyUnits => "its picture has more than 4096 parts",
            Self::TooManyFrames => "its picture has more than 8 frames",
        }
    }
}

impl Header {
    /// Reads the headers of a picture's data.
    pub fn read(mut data: &[u8]) -> Result<Self, HeaderError> {
        let mut found: Option<(&[u8], Sequence)> = None;
        let mut frames = 0;
        let mut units = 0;
        while let Some((&first, rest)) = data.split_first() {
            units += 1;
            if units > MAX_UNITS {
                return Err(HeaderError::TooManyUnits);
            }
            let kind = (first >> 3) & 15;
            let extension = usize::from(first & 4 != 0);
            let rest = rest.get(extension..).ok_or(HeaderError::Ends)?;
            let (length, rest) = if first & 2 == 0 {
                (rest.len(), rest)
            } else {
                length(rest).ok_or(HeaderError::Ends)?
            };
            let (content, after) = rest.split_at_checked(length).ok_or(HeaderError::Ends)?;
            data = after;
            match (kind, found) {
                (unit::SEQUENCE_HEADER, None) => {
                    let sequence = Sequence::read(content).ok_or(HeaderError::Damaged)?;
                    found = Some((content, sequence));
                }
                // It may be repeated, and not changed.
                (unit::SEQUENCE_HEADER, Some((before, _))) if before != content => {
                    return Err(HeaderError::Damaged);
                }
                (unit::FRAME_HEADER | unit::FRAME, _) => frames += 1,
                _ => {}
            }
        }
        if frames > MAX_FRAMES {
            return Err(HeaderError::TooManyFrames);
        }
        let (_, sequence) = found.filter(|_| frames > 0).ok_or(HeaderError::Damaged)?;
        Ok(Self { frames, sequence })
    }

    /// The bytes that decoding such a picture takes at its peak, `pixels` being its size: the
    /// frames, their variants, and what is remembered of every block.
    pub fn decoder_bytes(&self, pixels: u64) -> u64 {
        let Self { frames, sequence } = self;
        let sample_bytes = if sequence.depth > 8 { 2 } else { 1 };
        let variants = u64::from(sequence.superres) + u64::from(sequence.film_grain);
        let copies = *frames as u64 + variants;
        sequence.samples(pixels) * sample_bytes * copies + 2 * pixels
    }
}

impl Sequence {
    /// The samples of a picture of this many pixels. Halves are rounded up generously.
    pub fn samples(&self, pixels: u64) -> u64 {
        match (self.monochrome, self.subsampled) {
            (true, _) => pixels,
            (false, [true, true]) => pixels + pixels.div_ceil(2) + 1024,
            (false, [true, false] | [false, true]) => 2 * pixels + 1024,
            (false, [false, false]) => 3 * pixels,
        }
    }

    /// The most pixels of a frame.
    pub fn max_pixels(&self) -> u64 {
        area(self.max_width, self.max_height)
    }

    fn read(content: &[u8]) -> Option<Self> {
        let mut bits = Bits {
            data: content,
            position: 0,
        };
        let profile = bits.read(3)?;
        let _still = bits.flag()?;
        let reduced = bits.flag()?;
        if reduced {
            bits.read(5)?;
        } else {
            skip_operating_points(&mut bits)?;
        }

        let width_bits = bits.read(4)? + 1;
        let height_bits = bits.read(4)? + 1;
        let max_width = bits.read(width_bits)? + 1;
        let max_height = bits.read(height_bits)? + 1;
        if !reduced && bits.flag()? {
            // The lengths of the frames' numbers.
            bits.read(7)?;
        }
        // The size of blocks, and two filters.
        bits.read(3)?;
        if !reduced {
            skip_tools(&mut bits)?;
        }
        let superres = bits.flag()?;
        // Two filters.
        bits.read(2)?;

        let mut sequence = Self {
            max_width,
            max_height,
            superres,
            ..Self::default()
        };
        sequence.read_colours(profile, &mut bits)?;
        sequence.film_grain = bits.flag()?;
        Some(sequence)
    }

    fn read_colours(&mut self, profile: u32, bits: &mut Bits<'_>) -> Option<()> {
        const BT709: u32 = 1;
        const SRGB: u32 = 13;
        const IDENTITY: u32 = 0;
        const UNSPECIFIED: u32 = 2;

        let high = bits.flag()?;
        self.depth = match (profile, high) {
            (_, false) => 8,
            (2, true) if bits.flag()? => 12,
            _ => 10,
        };
        self.monochrome = profile != 1 && bits.flag()?;
        let described = bits.flag()?;
        let [primaries, transfer, matrix] = if described {
            [bits.read(8)?, bits.read(8)?, bits.read(8)?]
        } else {
            [UNSPECIFIED; 3]
        };
        self.matrix = matrix as u8;
        if self.monochrome {
            self.full_range = bits.flag()?;
            return Some(());
        }
        if [primaries, transfer, matrix] == [BT709, SRGB, IDENTITY] {
            self.full_range = true;
        } else {
            self.full_range = bits.flag()?;
            self.subsampled = match profile {
                0 => [true, true],
                1 => [false, false],
                _ if self.depth == 12 => {
                    let columns = bits.flag()?;
                    [columns, columns && bits.flag()?]
                }
                _ => [true, false],
            };
            if self.subsampled == [true, true] {
                // Where chroma samples are.
                bits.read(2)?;
            }
        }
        let _separate_quantizers = bits.flag()?;
        Some(())
    }
}

/// Skips what is said of times and of operating points.
fn skip_operating_points(bits: &mut Bits<'_>) -> Option<()> {
    let mut delay_bits = None;
    if bits.flag()? {
        bits.read(32)?;
        bits.read(32)?;
        if bits.flag()? {
            // A number of as many bits as there are zeros before it.
            let mut zeros = 0;
            while !bits.flag()? {
                zeros += 1;
            }
            if zeros < 32 {
                bits.read(zeros)?;
            }
        }
        if bits.flag()? {
            delay_bits = Some(bits.read(5)? + 1);
            bits.read(32)?;
            bits.read(10)?;
        }
    }
    let has_display_delays = bits.flag()?;
    let points = bits.read(5)? + 1;
    for _ in 0..points {
        bits.read(12)?;
        let level = bits.read(5)?;
        if level > 7 {
            bits.flag()?;
        }
        if let Some(delay_bits) = delay_bits
            && bits.flag()?
        {
            bits.read(delay_bits)?;
            bits.read(delay_bits)?;
            bits.flag()?;
        }
        if has_display_delays && bits.flag()? {
            bits.read(4)?;
        }
    }
    Some(())
}

/// Skips which tools frames after the first may use.
fn skip_tools(bits: &mut Bits<'_>) -> Option<()> {
    bits.read(4)?;
    let has_order = bits.flag()?;
    if has_order {
        bits.read(2)?;
    }
    let chosen_by_frame = bits.flag()?;
    if (chosen_by_frame || bits.flag()?) && !bits.flag()? {
        bits.flag()?;
    }
    if has_order {
        bits.read(3)?;
    }
    Some(())
}

/// A length of up to eight bytes of seven bits, the lowest first, and what follows it.
fn length(data: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0u64;
    for (index, &byte) in data.iter().take(8).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((usize::try_from(value).ok()?, &data[index + 1..]));
        }
    }
    None
}

/// Bits, the highest of each byte first.
struct Bits<'a> {
    data: &'a [u8],
    position: usize,
}

impl Bits<'_> {
    fn flag(&mut self) -> Option<bool> {
        let byte = *self.data.get(self.position / 8)?;
        let bit = (byte >> (7 - self.position % 8)) & 1;
        self.position += 1;
        Some(bit == 1)
    }

    /// A number of up to 32 bits.
    fn read(&mut self, count: u32) -> Option<u32> {
        (0..count).try_fold(0, |value, _| Some((value << 1) | u32::from(self.flag()?)))
    }
}
